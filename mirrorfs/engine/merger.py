"""Writing anew what lies in very many small pieces: the chunks of a database that was changed page by page.

The bytes of a chunk that are older than the horizon are read and go, as they are, into one new frame. A
record says so (Extents with size 0), and is carried out like that of any write: no time changes, and the
frames of before die there as by an overwrite, so that every kept moment has them as long as it is kept.

Invariants
- A chunk is read while others may write to it, and named only if its extents are then what they were: frames
  never change, so these are its bytes. What is dirty is newer, and comes over it.
- Frame and record are one commit, or nothing has happened: a frame without its record is dead from birth.
- Of the bytes nothing is gone and nothing came: the ransomware sense hears of none.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from mirrorfs.core.merging import GAIN_MIN, Fragmented, Run, fragmented, gain_of, old_runs
from mirrorfs.engine.local import LocalVolume
from mirrorfs.engine.segment_writer import Placed
from mirrorfs.engine.state import MIB
from mirrorfs.errors import NoSpaceLeft, ReadFailed
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.record import Extents, Piece, pack_pieces
from mirrorfs.ports import Offload

logger = logging.getLogger(__name__)

MERGE_BYTES_MAX: Final = 128 * MIB
"""What one run writes at most; the next one goes on. It is kept twice until the horizon has passed it."""
BATCH_BYTES: Final = 4 * MIB
"""What goes into one commit."""


class _Read(NamedTuple):
    """A chunk that was read."""

    chunk: Fragmented
    runs: list[Run]
    payload: bytes
    """The runs' bytes, one after the other."""


class Merger:
    """Merges the extents of one mounted volume; one run at a time."""

    def __init__(self, local: LocalVolume, offload: Offload) -> None:
        self._local = local
        self._offload = offload
        self.bytes_max = MERGE_BYTES_MAX
        self.gain_min = GAIN_MIN
        self.saved = 0
        """Extents that there are less since the mount."""

    async def run(self, horizon: int, *, give_way: Callable[[], Awaitable[None]]) -> int:
        """Merge what is worth it, of what was written before a position.

        Args:
            give_way: waits until it is a good time for a batch.
        Returns: bytes written. Raises: WritesStopped.
        """
        written = 0
        batch: list[_Read] = []
        for chunk in await self._choose(horizon):
            if not batch:
                await give_way()
                if self._local.space.soft(extra_bytes=2 * BATCH_BYTES):
                    return written
            read = await self._read(chunk, horizon)
            if read is None:
                continue
            batch.append(read)
            if sum(len(one.payload) for one in batch) >= BATCH_BYTES:
                written += await self._write(batch)
                batch = []
        return written + await self._write(batch)

    async def _choose(self, horizon: int) -> list[Fragmented]:
        """The index is committed first: what is looked at is its last commit."""
        await self._local.committer.commit(None)
        snapshot = self._local.index.snapshot()
        try:
            return await self._offload.run(
                lambda: fragmented(
                    snapshot.rows("extents", first=()), horizon,
                    bytes_max=self.bytes_max, gain_min=self.gain_min,
                )
            )  # fmt: skip
        finally:
            snapshot.close()

    async def _read(self, chunk: Fragmented, horizon: int) -> _Read | None:
        """None: it is being written, is not worth it after all, or cannot be read."""
        if chunk.inode in self._local.state.dirty or not self._is_same(chunk):
            return None
        runs = old_runs(chunk.packed, horizon, is_shared=self._is_shared)
        if gain_of(runs) < self.gain_min:
            return None
        parts = [part for run in runs for part in run.parts]
        starts, size = [], 0
        for part in parts:
            starts.append(size)
            size += part.length
        buffer = bytearray(size)
        try:
            for frame in dict.fromkeys(part.frame for part in parts):
                plain = await self._local.reader.load(frame)
                for at, part in zip(starts, parts, strict=True):
                    if part.frame == frame:
                        end = part.frame_offset + part.length
                        if end > len(plain):
                            raise ReadFailed("a frame is shorter than what refers to it.")
                        buffer[at : at + part.length] = plain[part.frame_offset : end]
        except ReadFailed as exc:
            logger.info("a chunk is not merged: %s", exc)  # `verify` says what is wrong with it
            return None
        return _Read(chunk, runs, bytes(buffer))

    def _is_shared(self, frame: int) -> bool:
        row = self._local.index.get_frame(frame)
        return row is None or row.live > row.length

    def _is_same(self, chunk: Fragmented) -> bool:
        return self._local.index.get_extents(chunk.inode, chunk.chunk) == chunk.packed

    async def _write(self, batch: Sequence[_Read]) -> int:
        """Returns: bytes."""
        if not batch:
            return 0
        self._local.state.check_writable()
        try:
            await self._local.committer.move([one.payload for one in batch], partial(self._name, batch))
        except NoSpaceLeft:
            logger.info("nothing is merged while the local disk is full")
            return 0
        return sum(len(one.payload) for one in batch)

    def _name(self, batch: Sequence[_Read], placed: Sequence[Placed]) -> None:
        """Record where the bytes lie now; synchronous."""
        state = self._local.state
        for one, place in zip(batch, placed, strict=True):
            if not self._is_same(one.chunk):
                continue  # it was written to meanwhile, cut or removed
            base, at = one.chunk.chunk * CHUNK_SIZE, 0
            pieces = []
            for run in one.runs:
                pieces.append(Piece(base + run.start, run.length, place.frame, at))
                at += run.length
            state.record(Extents(one.chunk.inode, 0, pack_pieces(pieces)))
            self.saved += gain_of(one.runs)
        state.applier.take_lost()
