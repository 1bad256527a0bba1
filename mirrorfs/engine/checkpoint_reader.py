"""Finding checkpoints on the local disk and in the stores, and reading all of one, or some of its tables."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from typing import Final

from mirrorfs.engine.checkpoint_loader import CheckpointLoader, OnLoaded, OnRows
from mirrorfs.engine.giving_way import Pause
from mirrorfs.engine.kept import root_segment
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import AuthenticationError, DamagedError
from mirrorfs.format.checkpoint import TABLE_BY_CODE, TABLE_BY_NAME, Root, decode_root
from mirrorfs.format.frame import Kind, unpack
from mirrorfs.format.ids import Previous, SegmentId, Stream, format_position, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import SEQUENCE_MAX
from mirrorfs.format.rows import MomentRow, SegmentRow
from mirrorfs.format.segment import FOOTER, SegmentHeader, decode_header, open_trailer, read_footer, signer_of
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index

logger = logging.getLogger(__name__)

LOOKS_MAX: Final = 8
"""Checkpoints among which the latest state is searched for, where nobody names it."""


class CheckpointReader:
    """Finds and loads checkpoints from the local disk or the stores."""

    def __init__(
        self, segments: Segments, keys: VolumeKeys, writer: WriterPublicKey, *, pause: Pause | None = None
    ) -> None:
        """`segments` is the checkpoint stream, already looked at. `pause`: for loading beside a mount."""
        self._pause = pause
        self._segments = segments
        self._keys = keys
        self._writer = writer
        self._vouched: dict[int, list[Previous | None]] = {}
        """By key generation out of use: its checkpoint segments from the newest back, as far as was asked."""
        self._named: dict[SegmentId, bytes] | None = None
        """By segment the digests that vouch for roots of keys out of use, once they were asked for."""
        self._read: dict[SegmentId, bytes] = {}
        """The segment whose root was found last: many of the checkpoint's chunks may lie in it."""
        self._roots: dict[SegmentId, Root] = {}
        """Up to LOOKS_MAX that were found last."""
        self._rootless: set[SegmentId] = set()
        """Segments of which no copy gave a root that counts."""

    async def newest(
        self, accept: Callable[[Root], bool] = lambda root: True, *, but: Collection[SegmentId] = ()
    ) -> tuple[Root, SegmentId] | None:
        """The newest readable checkpoint that `accept` takes, with the segment that holds its root.

        That is the last of the last writer: each numbers its own, and one that was fenced may have come far.
        """
        for segment in self._segments.by_writer():
            root = None if segment in but else await self._root(segment)
            if root is not None and accept(root):
                return root, segment
        return None

    async def latest(
        self, tried: set[SegmentId], *, named: Collection[SegmentId] = ()
    ) -> list[tuple[Root, SegmentId]]:
        """Some of the newest checkpoints but for those `tried`, as they are now: the latest state first.

        After the newest state some of moments in the past may have been written, many in a row.
        Args:
            named: segments that heads name as that of the newest state; others are not searched for then.
        """
        looked: list[tuple[Root, SegmentId]] = []
        while (found := await self.newest(but=tried)) is not None:
            tried.add(found[1])
            looked.append(found)
            for segment in [one for one in named if one not in tried]:
                tried.add(segment)
                if (root := await self._root(segment)) is not None:
                    looked.append((root, segment))
            if len(looked) >= LOOKS_MAX or any(segment in named for _, segment in looked):
                break
        return sorted(looked, key=lambda one: one[0].position, reverse=True)

    async def root_of(self, segment: SegmentId) -> Root | None:
        """The root in a segment; None: there is none in it. Raises: DamagedError: no copy of it is good."""
        async for _, data in self._segments.copies(segment):
            try:
                found = self._decode(segment, data)
            except DamagedError:
                continue
            if found is not None:
                return found[1]
        raise DamagedError("no copy of a checkpoint segment is good.")

    async def of_moment(self, row: MomentRow) -> Root:
        """The checkpoint that a moment names. Raises DamagedError: no copy of its root is good."""
        segment = root_segment(row)
        async for where, data in self._segments.copies(segment):
            try:
                if hashlib.sha256(data).digest() != row.digest:
                    raise DamagedError("other bytes than the volume says of that moment.")
                decoded = self._decode(segment, data)
                root = None if decoded is None else decoded[1]
                if root is None or root.position != row.position:
                    raise DamagedError("it holds no checkpoint of that moment.")
            except DamagedError as exc:
                _warn(where, segment, exc)
            else:
                self._keep(segment, data, root)
                return root
        raise DamagedError(
            f"the checkpoint of position {format_position(row.position)} is damaged or missing in every store"
        )

    async def _root(self, segment: SegmentId) -> Root | None:
        if (known := self._roots.get(segment)) is not None:
            return known
        if segment in self._rootless:
            return None
        async for where, data in self._segments.copies(segment):
            try:
                decoded = self._decode(segment, data)
                if decoded is None:
                    continue
                header, root = decoded
                if root is None:
                    break
                if not await self._is_vouched(header, data):
                    raise AuthenticationError("checkpoint is sealed with keys that are out of use.")
                self._keep(segment, data, root)
                return root
            except DamagedError as exc:
                _warn(where, segment, exc)
        self._rootless.add(segment)
        return None

    def _keep(self, segment: SegmentId, data: bytes, root: Root) -> None:
        self._read = {segment: data}
        while len(self._roots) >= LOOKS_MAX:
            del self._roots[next(iter(self._roots))]
        self._roots[segment] = root

    def _decode(self, segment: SegmentId, data: bytes) -> tuple[SegmentHeader, Root | None] | None:
        """Header and root of a segment, if it has one. None: it is another, or has no end. Raises
        DamagedError.
        """
        header, cipher = decode_header(data, self._keys, self._writer)
        offset = read_footer(data)
        if header.segment != segment or header.stream is not Stream.CHECKPOINT or offset is None:
            return None
        trailer = open_trailer(
            memoryview(data)[offset : len(data) - FOOTER.size],
            offset=offset, header=header, cipher=cipher,
            writer=signer_of(header, self._keys, self._writer),
        )  # fmt: skip
        parts = []
        for ordinal, entry in enumerate(trailer.frames):
            if entry.kind == Kind.ROOT:
                _, body = cipher.open_body(
                    memoryview(data)[entry.offset :], offset=entry.offset, ordinal=ordinal
                )
                parts.append(unpack(body))
        return header, decode_root(b"".join(parts)) if parts else None

    async def _is_vouched(self, header: SegmentHeader, data: bytes) -> bool:
        """Whether a checkpoint is of the keys in use; or was, when the last keys went out of use.

        Of those the volume header names the newest, and each segment attests the one before it. Where some
        of that line are gone, the moments say which roots there were.
        """
        past = self._keys.past_of(header.key_generation)
        if past is None:
            return True
        line = self._vouched.setdefault(header.key_generation, [past.checkpoint])
        found = Previous(header.segment, len(data), hashlib.sha256(data).digest())
        if found in line:
            return True
        if self._named is None:
            self._named = {root_segment(row): row.digest for row in await self._trusted_moments()}
        if self._named.get(header.segment) == found.digest:
            return True
        while found not in line and (last := line[-1]) is not None:
            line.append(await self._before(last))
        return found in line

    async def _trusted_moments(self) -> list[MomentRow]:
        """Those that checkpoints name which are trusted without them: the newest of the keys in use, and the
        last of other keys, that the volume header names.
        """
        found: list[MomentRow] = []
        trusted = 0
        for segment in self._segments.by_writer():
            async for where, data in self._segments.copies(segment):
                try:
                    decoded = self._decode(segment, data)
                    if decoded is None:
                        continue
                    header, root = decoded
                    past = self._keys.past_of(header.key_generation)
                    attested = Previous(segment, len(data), hashlib.sha256(data).digest())
                    if root is not None and (past is None or attested == past.checkpoint):
                        found += await self.moments(root)
                        trusted += 1
                    break
                except DamagedError as exc:
                    _warn(where, segment, exc)
            if trusted >= LOOKS_MAX:
                break
        return found

    async def _before(self, attested: Previous) -> Previous | None:
        """What an attested segment attests of the one before it; None when it cannot be had."""
        async for _, data in self._segments.copies(attested.segment):
            if (len(data), hashlib.sha256(data).digest()) == attested[1:]:
                return decode_header(data, self._keys, self._writer)[0].previous
        return None

    async def attest(self, segment: SegmentId) -> Previous | None:
        """What the next checkpoint segment attests of this one; None when no copy can be read."""
        async for _, data in self._segments.copies(segment):
            return Previous(segment, len(data), hashlib.sha256(data).digest())
        return None

    async def load(self, root: Root, index: Index, on_loaded: OnLoaded | None = None) -> None:
        """Fill an empty index with a checkpoint that `newest` found.

        Raises: DamagedError: a chunk has no good copy, and the index is of no use.
        """
        loader = self._loader()
        self._read = {}
        await loader.load(root, index, on_loaded)

    def _loader(self) -> CheckpointLoader:
        return CheckpointLoader(
            self._segments, self._keys, self._writer, read_before=self._read, pause=self._pause
        )

    async def read(self, root: Root, names: Collection[str], take: OnRows) -> None:
        """Have the rows of some tables of a checkpoint taken, chunk by chunk. Raises: DamagedError."""
        chunks = [ref for ref in root.chunks if TABLE_BY_CODE[ref.table].name in names]
        await self._loader().read(chunks, take)

    async def moments(self, root: Root) -> list[MomentRow]:
        """The moments that a checkpoint says are kept. Raises: DamagedError."""
        found: list[MomentRow] = []
        await self.read(root, ["moments"], lambda _, rows: found.extend(map(MomentRow._make, rows)))
        return found

    async def segment_row(self, root: Root, sequence: int = SEQUENCE_MAX) -> SegmentRow | None:
        """What a checkpoint says of the last segment up to a number. Raises: DamagedError."""
        code = TABLE_BY_NAME["segments"].code
        chunks = [ref for ref in root.chunks if ref.table == code and ref.first <= (sequence,)]
        found: list[SegmentRow] = []
        await self._loader().read(
            chunks[-1:],
            lambda _, rows: found.extend(map(SegmentRow._make, rows)),
        )
        return max((row for row in found if row.sequence <= sequence), default=None)


def _warn(where: str, segment: SegmentId, exc: DamagedError) -> None:
    logger.warning("%s, object %s: %s", where, segment_object_key(Stream.CHECKPOINT, segment), exc)
