"""Loading a checkpoint: its chunks are fetched in runs, ahead of the index that takes their rows.

Chunks that lie next to one another are one request, some requests are under way at a time, and bytes are
decrypted in threads, while the loop puts the rows of earlier chunks into the index. What is ahead is bounded
in chunks, so that memory is too. A chunk that is not good in the copy that came is looked for by itself, in
every copy there is.

The rows are committed now and then, the values of the position with the last of them: an index without a
position may hold any part of a checkpoint, and is thrown away.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import trio

from mirrorfs.engine.giving_way import Pause
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, MirrorfsError
from mirrorfs.format.checkpoint import ChunkRef, Fields, Root, Table, decode_fields
from mirrorfs.format.frame import FrameCipher, Kind, unpack
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import HEADER_SIZE, decode_header
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index

logger = logging.getLogger(__name__)

OnLoaded = Callable[[int, int], None]
"""Hears (chunks loaded, all chunks)."""
OnRows = Callable[[Table, list[Fields]], None]
"""Takes rows of one chunk, all or some that follow one another."""

RUN_CHUNKS_MAX: Final = 16
"""Chunks of one request; 8 MiB of rows."""
GAP_BYTES_MAX: Final = 256 * 1024
"""Bytes between two chunks that are fetched in vain, rather than asking twice."""
REQUESTS_MAX: Final = 8
CHUNKS_AHEAD_MAX: Final = 64
"""Chunks that were asked for and are not in the index yet."""
COMMIT_CHUNKS: Final = 64
"""The index holds the pages of so many chunks in memory."""
ROWS_PER_STEP: Final = 1000
COMMIT_CHUNKS_BESIDE: Final = 8
"""The same beside a mount, whose requests wait meanwhile."""
TRIES: Final = 5
"""How often a chunk is asked for of which no copy could be read."""
AGAIN_S: Final = 2.0


class CheckpointLoader:
    """Reads the chunks of checkpoints: all of one into an empty index, or some."""

    def __init__(
        self,
        segments: Segments,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        *,
        read_before: Mapping[SegmentId, bytes],
        pause: Pause | None = None,
    ) -> None:
        """
        Args:
            segments: the checkpoint stream, already looked at.
            read_before: bytes of segments that need not be fetched; not trusted.
            pause: called between some rows and the next.
        """
        self._segments = segments
        self._keys = keys
        self._writer = writer
        self._read_before = read_before
        self._pause = pause
        self._ciphers: dict[SegmentId, FrameCipher] = {}
        self._locks: dict[SegmentId, trio.Lock] = {}

    async def load(self, root: Root, index: Index, on_loaded: OnLoaded | None) -> None:
        """Raises DamagedError when a chunk has no good copy; the index is of no use then."""
        commit_chunks = COMMIT_CHUNKS if self._pause is None else COMMIT_CHUNKS_BESIDE

        def put_rows(table: Table, rows: list[Fields]) -> None:
            index.load_rows(table.name, rows)

        def note_loaded(loaded: int, count: int) -> None:
            if loaded % commit_chunks == 0:
                index.commit()
            if on_loaded is not None:
                on_loaded(loaded, count)

        await self.read(root.chunks, put_rows, note_loaded)
        put = index.put_meta
        put("position", root.position)
        put("journal_sequence", root.journal_sequence)
        put("journal_hash", root.journal_hash)
        put("time_ns", root.time_ns)
        put("next_inode", root.next_inode)
        put("next_generation", root.next_generation)
        put("next_cookie", root.next_cookie)
        put("epoch", root.epoch)
        index.commit()

    async def read(self, chunks: Sequence[ChunkRef], take: OnRows, on_loaded: OnLoaded | None = None) -> None:
        """Have the rows of some chunks of one checkpoint taken, some at a time, in the order given.

        Raises DamagedError: one has no good copy; those before it were taken.
        """
        failure: MirrorfsError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._read_all(chunks, take, nursery, on_loaded)
            except MirrorfsError as exc:
                # Raised outside: the nursery would wrap it.
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _read_all(
        self, chunks: Sequence[ChunkRef], take: OnRows, nursery: trio.Nursery, on_loaded: OnLoaded | None
    ) -> None:
        waiting = iter(runs_of(chunks))
        coming: deque[tuple[Sequence[ChunkRef], trio.MemoryReceiveChannel[list[bytes | None]]]] = deque()
        ahead = loaded = 0

        def ask() -> None:
            nonlocal ahead
            while len(coming) < REQUESTS_MAX and ahead < CHUNKS_AHEAD_MAX:
                run = next(waiting, None)
                if run is None:
                    return
                sending, receiving = trio.open_memory_channel[list[bytes | None]](1)
                nursery.start_soon(self._bring, run, sending)
                coming.append((run, receiving))
                ahead += len(run)

        ask()
        while coming:
            run, receiving = coming.popleft()
            payloads = await receiving.receive()
            ask()
            for ref, payload in zip(run, payloads, strict=True):
                table, rows = await self._decoded(payload if payload is not None else await self._search(ref))
                if table.code != ref.table or len(rows) != ref.rows:
                    raise DamagedError("a checkpoint chunk is not the one its root names.")
                for at in range(0, len(rows), ROWS_PER_STEP):
                    take(table, rows[at : at + ROWS_PER_STEP])
                    if self._pause is not None:
                        await self._pause()
                loaded += 1
                ahead -= 1
                if on_loaded is not None:
                    on_loaded(loaded, len(chunks))
                await trio.lowlevel.checkpoint()

    async def _decoded(self, payload: bytes) -> tuple[Table, list[Fields]]:
        if self._pause is None:
            return decode_fields(payload)
        # A tenth of a second of work in one piece.
        return await self._segments.offload.run(partial(decode_fields, payload))

    async def _bring(
        self, run: Sequence[ChunkRef], sending: trio.MemorySendChannel[list[bytes | None]]
    ) -> None:
        """Send the plaintexts of chunks that lie next to one another, from the first copy that comes."""
        segment, start = run[0].segment, run[0].offset
        size = run[-1].offset + run[-1].size - start
        payloads: list[bytes | None] = [None] * len(run)
        try:
            cipher = await self._cipher(segment)
            if cipher is not None:
                data = await self._read_part(segment, offset=start, size_bytes=size)
                if data is not None:
                    payloads = await self._segments.offload.run(partial(_open_run, cipher, run, data))
        except MirrorfsError as exc:
            # Whoever looks for the single chunks meets it again, and can raise it.
            logger.info("%d chunks of segment %d did not come: %s", len(run), segment.sequence, exc)
        await sending.send(payloads)

    async def _read_part(
        self, segment: SegmentId, *, offset: int, size_bytes: int
    ) -> bytes | memoryview | None:
        """The first copy of a part of a segment that can be read; None: there is none."""
        if (known := self._read_before.get(segment)) is not None:
            return memoryview(known)[offset : offset + size_bytes]
        async for _, data in self._segments.read_frame(segment, offset=offset, size_bytes=size_bytes):
            return data
        return None

    async def _search(self, ref: ChunkRef) -> bytes:
        """A chunk from whichever copy is good. Raises DamagedError: none is."""
        for attempt in range(TRIES):
            if attempt:
                await trio.sleep(AGAIN_S)
            was_read = False
            cipher = await self._cipher(ref.segment)
            async for where, data in self._segments.read_frame(
                ref.segment, offset=ref.offset, size_bytes=ref.size
            ):
                if cipher is None:
                    break
                was_read = True
                try:
                    return _open_chunk(cipher, ref, data)
                except DamagedError as exc:
                    key = segment_object_key(Stream.CHECKPOINT, ref.segment)
                    logger.warning("%s, object %s, offset %d: %s", where, key, ref.offset, exc)
            if was_read:
                break
        raise DamagedError("a chunk of the checkpoint has no good copy.")

    async def _cipher(self, segment: SegmentId) -> FrameCipher | None:
        """The key of a segment, from the first copy of its header that is good; None: there is none."""
        async with self._locks.setdefault(segment, trio.Lock()):
            known = self._ciphers.get(segment)
            if known is not None:
                return known
            if (data := self._read_before.get(segment)) is not None:
                try:
                    return self._learn(segment, data[:HEADER_SIZE])
                except DamagedError:
                    logger.info("the header of segment %d is looked for elsewhere", segment.sequence)
            async for where, data in self._segments.read_frame(segment, offset=0, size_bytes=HEADER_SIZE):
                try:
                    return self._learn(segment, data)
                except DamagedError as exc:
                    key = segment_object_key(Stream.CHECKPOINT, segment)
                    logger.warning("%s, object %s: %s", where, key, exc)
            return None

    def _learn(self, segment: SegmentId, data: bytes) -> FrameCipher:
        header, cipher = decode_header(data, self._keys, self._writer)
        if header.segment != segment or header.stream is not Stream.CHECKPOINT:
            raise DamagedError("the object holds another segment.")
        self._ciphers[segment] = cipher
        return cipher


def runs_of(chunks: Iterable[ChunkRef]) -> Iterator[list[ChunkRef]]:
    """Chunks in their order, those together that one request brings."""
    run: list[ChunkRef] = []
    for ref in chunks:
        if run:
            last = run[-1]
            gap = ref.offset - (last.offset + last.size)
            if ref.segment != last.segment or not 0 <= gap <= GAP_BYTES_MAX or len(run) >= RUN_CHUNKS_MAX:
                yield run
                run = []
        run.append(ref)
    if run:
        yield run


def _open_run(cipher: FrameCipher, run: Sequence[ChunkRef], data: bytes | memoryview) -> list[bytes | None]:
    """Plaintexts of chunks, of bytes that begin with the first; None where they are not good."""
    view, start = memoryview(data), run[0].offset
    payloads: list[bytes | None] = []
    for ref in run:
        try:
            payloads.append(
                _open_chunk(cipher, ref, view[ref.offset - start : ref.offset - start + ref.size])
            )
        except DamagedError:
            payloads.append(None)
    return payloads


def _open_chunk(cipher: FrameCipher, ref: ChunkRef, data: bytes | memoryview) -> bytes:
    _, body = cipher.open_body(data, offset=ref.offset, ordinal=ref.ordinal)
    payload = unpack(body)
    if body.kind is not Kind.CHECKPOINT or hashlib.sha256(payload).digest() != ref.digest:
        raise DamagedError("the frame is not the chunk that the root names.")
    return payload
