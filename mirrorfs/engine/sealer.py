"""From dirty bytes to data frames: compress in threads, append in order, name the extents.

Only the writer task calls what awaits, and nothing else is called while it does. Across those awaits,
files may be written, truncated, unlinked: the pieces under way stay readable in `DirtyFile.sealing`,
truncates shorten them there, and what they then still are becomes the Extents record, in one
synchronous step after the append.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio

from mirrorfs.core.file_changes import Written, note_piece, written_by_inode
from mirrorfs.core.grouping import DirtyPiece, FramePlan, Group, cut_ranges, plan_frames
from mirrorfs.engine.duplicates import Duplicates, to_look_up
from mirrorfs.engine.log import INLINE_MAX, Log
from mirrorfs.engine.segment_writer import Placed
from mirrorfs.engine.state import MIB, DirtyFile, VolumeState
from mirrorfs.errors import DiskError
from mirrorfs.format.frame import Body, Kind, make_body
from mirrorfs.format.limits import SEGMENT_SIZE_MAX
from mirrorfs.format.record import Extents, Piece, pack_pieces
from mirrorfs.format.rows import FrameRow
from mirrorfs.ports import Offload

BATCH_BYTES = 8 * MIB
"""Bytes sealed before waiting fsyncs get their turn; well below a segment."""
PART_BYTES = 4 * MIB
"""Bytes appended while the next ones are compressed."""
COMPRESS_TOGETHER = 2 * MIB
"""Frames are compressed several to a thread hop: one costs as much as half a mebibyte of work."""
SEAL_NOW_MAX = 1 * MIB
"""Bytes that `seal_now` compresses and appends on the loop: less than a millisecond, and several thread
hops take longer."""

assert BATCH_BYTES * 2 <= SEGMENT_SIZE_MAX


class Sealer:
    """Moves dirty bytes of a volume into its log."""

    def __init__(
        self,
        state: VolumeState,
        log: Log,
        offload: Offload,
        *,
        level: int,
        duplicates: Duplicates | None = None,
        on_progress: Callable[[], None],
    ) -> None:
        """`duplicates`: None: all is stored. `on_progress` is called when dirty bytes became fewer."""
        self._state = state
        self._log = log
        self._offload = offload
        self._level = level
        self._duplicates = duplicates
        self._on_progress = on_progress

    async def seal_some(self) -> None:
        """Seal up to one batch of what is dirty, the fullest files first, without regard to completeness."""
        files = sorted(self._state.dirty.values(), key=lambda file: -file.waiting_bytes)
        pieces: list[tuple[Group, DirtyPiece]] = []
        budget = BATCH_BYTES
        for file in files:
            if budget <= 0 or not file.waiting_bytes:
                break
            budget -= self._take(file, pieces, budget)
        await self._seal(pieces)

    async def seal_all(self, inodes: Sequence[int], *, inline: bool = False) -> None:
        """Seal everything that is dirty in these files at the moment of the call.

        With `inline` the loop does the work itself, and awaits only where a segment ends.
        """
        files = [self._state.dirty[inode] for inode in inodes if inode in self._state.dirty]
        for file in files:
            self._state.dirty_bytes -= file.freeze()
        pieces: list[tuple[Group, DirtyPiece]] = []
        budget = BATCH_BYTES
        for file in files:
            # A file forgotten during an await below took its bytes, frozen ones included, out of the count.
            while file.frozen and self._state.dirty.get(file.inode) is file:
                budget -= self._take(file, pieces, budget)
                if budget <= 0:
                    await self._seal(pieces, inline=inline)
                    pieces, budget = [], BATCH_BYTES
        await self._seal(pieces, inline=inline)

    def seal_now(self, inodes: Iterable[int]) -> bool:
        """`seal_all` of a little data, in one step. False: too much, or the log does not take it now.

        After False the same bytes are dirty as before, but for what the log had already.
        """
        state = self._state
        files = [state.dirty[inode] for inode in inodes if inode in state.dirty]
        if sum(file.waiting_bytes for file in files) > SEAL_NOW_MAX:
            return False
        pieces: list[tuple[Group, DirtyPiece]] = []
        for file in files:
            state.dirty_bytes -= file.freeze()
            while file.frozen:
                self._take(file, pieces, SEAL_NOW_MAX)
        if not pieces:
            return True
        plans: list[FramePlan] = []
        try:
            if self._duplicates is not None:
                self._duplicates.digest(to_look_up(pieces))
            plans = self._plan(pieces)
            bodies = [self._make(plan) for plan in plans]
            if plans:
                if not self._log.ready_for(bodies):
                    return False
                self._name(plans, self._log.append_now(bodies))
                plans.clear()
        except DiskError:
            self._bury(self._log.take_strays())
            return False
        finally:
            self._put_back(piece for plan in plans for piece in plan.pieces)
        self._on_progress()
        return True

    async def make(self, payloads: Sequence[bytes]) -> list[Body]:
        """Bodies of data frames, made in a thread; anybody may call it."""
        level = self._level
        return await self._offload.run(
            lambda: [make_body(Kind.DATA, payload, level=level) for payload in payloads]
        )

    async def move(self, bodies: Sequence[Body], name: Callable[[Sequence[Placed]], None]) -> None:
        """Append frames with bytes that are in the log already; `name` records them, in the same step.

        What it does not name is dead. Raises: DiskError, DiskFull.
        """
        try:
            placed = await self._log.append_data(bodies)
        except DiskError:
            self._bury(self._log.take_strays())
            raise
        self._bury(placed)
        name(placed)

    def _take(self, file: DirtyFile, pieces: list[tuple[Group, DirtyPiece]], limit: int) -> int:
        source = file.frozen or file.ranges
        group = Group(file.uid, file.parent)
        total = 0
        for piece in cut_ranges(file.inode, source.take(max(limit, 1))):
            total += piece.length
            file.sealing.append(piece)
            pieces.append((group, piece))
        return total

    async def _seal(self, pieces: list[tuple[Group, DirtyPiece]], *, inline: bool = False) -> None:
        if not pieces:
            return
        await self._digest(pieces, inline=inline)
        plans = self._plan(pieces)
        try:
            if not plans:
                pass
            elif inline:
                bodies = [self._make(plan) for plan in plans]
                await self._append(plans, len(plans), bodies, inline=True)
            else:
                await self._make_and_append(plans)
        except BaseException:
            # Also when cancelled: the bytes not named yet go back under what was written since.
            self._put_back(piece for plan in plans for piece in plan.pieces)
            raise
        self._on_progress()

    async def _digest(self, pieces: Sequence[tuple[Group, DirtyPiece]], *, inline: bool) -> None:
        """Prepare the pieces for being looked up."""
        duplicates = self._duplicates
        if duplicates is None:
            return
        chosen = to_look_up(pieces)
        if inline or sum(len(piece.data) for _, piece in chosen) <= SEAL_NOW_MAX:
            duplicates.digest(chosen)
            return
        try:
            await self._offload.run(lambda: duplicates.digest(chosen))
        except BaseException:
            self._put_back(piece for _, piece in pieces)
            raise

    def _plan(self, pieces: Sequence[tuple[Group, DirtyPiece]]) -> list[FramePlan]:
        """Record what the log has already; the rest in frames. One step, without an await."""
        if self._duplicates is None:
            return plan_frames(pieces)
        rest: list[tuple[Group, DirtyPiece]] = []
        done = 0
        try:
            for entry in pieces:
                if not self._refer(entry[1]):
                    rest.append(entry)
                done += 1
        except BaseException:
            self._put_back(piece for _, piece in (*rest, *pieces[done:]))
            raise
        return plan_frames(rest)

    def _refer(self, piece: DirtyPiece) -> bool:
        """Record a piece, if the log has its bytes; what it has may be others after any record."""
        state = self._state
        if self._duplicates is None or piece.inode not in state.dirty:
            return False
        found = self._duplicates.find(piece)
        if found is None:
            return False
        written = Written()
        note_piece(written, piece, size=found.frame.size, length=found.frame.length)
        named = Piece(piece.offset, piece.length, found.frame.frame, found.frame_offset)
        self._record(piece.inode, [named], written, {id(piece)})
        state.dirty_bytes -= len(piece.data)
        return True

    async def _make_and_append(self, plans: list[FramePlan]) -> None:
        """Compress, append and name; some frames are compressed while those before them are appended."""
        counts = _parts(plans)
        bodies = await self._make_bodies(plans[: counts[0]])
        for number, count in enumerate(counts):
            if number + 1 == len(counts):
                await self._append(plans, count, bodies)
                return
            ahead = plans[count : count + counts[number + 1]]
            failure: DiskError | None = None
            async with trio.open_nursery() as nursery:
                made: list[Body] = []
                nursery.start_soon(self._make_into, made, ahead)
                try:
                    await self._append(plans, count, bodies)
                except DiskError as exc:
                    failure = exc
            if failure is not None:
                raise failure
            bodies = made

    async def _make_into(self, bodies: list[Body], plans: Sequence[FramePlan]) -> None:
        bodies += await self._make_bodies(plans)

    async def _append(
        self, plans: list[FramePlan], count: int, bodies: Sequence[Body], *, inline: bool = False
    ) -> None:
        """Append and name the first plans; these then leave the list, in the same step."""
        try:
            placed = await self._log.append_data(bodies, inline=inline)
        except DiskError:
            self._bury(self._log.take_strays())
            raise
        self._name(plans[:count], placed)
        del plans[:count]

    def _bury(self, strays: Sequence[Placed]) -> None:
        """Frames that no record will name: replay finds them in the log, so the index knows them too."""
        for place in strays:
            self._state.index.put_frame(FrameRow(place.frame, place.offset, place.size, place.length, 0, 0))
            self._state.applier.emptied.add(place.frame)

    async def _make_bodies(self, plans: Sequence[FramePlan]) -> list[Body]:
        make = self._make
        if sum(plan.length for plan in plans) <= INLINE_MAX:
            return [make(plan) for plan in plans]
        bodies: dict[int, Body] = {}

        async def make_many(numbers: Sequence[int]) -> None:
            made = await self._offload.run(lambda: [make(plans[number]) for number in numbers])
            bodies.update(zip(numbers, made, strict=True))

        async with trio.open_nursery() as nursery:
            numbers: list[int] = []
            size = 0
            for number, plan in enumerate(plans):
                numbers.append(number)
                size += plan.length
                if size >= COMPRESS_TOGETHER or number + 1 == len(plans):
                    nursery.start_soon(make_many, numbers)
                    numbers, size = [], 0
        return [bodies[number] for number in range(len(plans))]

    def _make(self, plan: FramePlan) -> Body:
        first = plan.pieces[0].data
        payload = first if len(plan.pieces) == 1 else b"".join([piece.data for piece in plan.pieces])
        return make_body(Kind.DATA, payload, level=self._level)

    def _name(self, plans: Sequence[FramePlan], placed: Sequence[Placed]) -> None:
        """Record the extents of appended frames; synchronous."""
        state = self._state
        by_inode: dict[int, list[Piece]] = {}
        stored: list[tuple[DirtyPiece, int]] = []
        for plan, place in zip(plans, placed, strict=True):
            state.index.put_frame(FrameRow(place.frame, place.offset, place.size, place.length, 0, 0))
            state.applier.emptied.add(place.frame)
            for piece in plan.pieces:
                pieces = by_inode.setdefault(piece.inode, [])
                if piece.length:
                    pieces.append(Piece(piece.offset, piece.length, place.frame, piece.frame_offset))
                if piece.digest and piece.inode in state.dirty:
                    stored.append((piece, place.frame))
        done = {id(piece) for plan in plans for piece in plan.pieces}
        written = written_by_inode(plans, [place.size for place in placed]) if state.sense.limit else {}
        for inode, pieces in by_inode.items():
            self._record(inode, pieces, written.get(inode), done)
        state.dirty_bytes -= sum(len(piece.data) for plan in plans for piece in plan.pieces)
        if self._duplicates is not None:
            self._duplicates.stored(stored)

    def _record(self, inode: int, pieces: list[Piece], written: Written | None, done: set[int]) -> None:
        """Record extents of a file; `done` are the identities of pieces that need not be kept any more."""
        state = self._state
        file = state.dirty.get(inode)
        if file is None:
            return  # Removed meanwhile: its bytes are dead in these frames.
        if pieces:
            end = max(piece.offset + piece.length for piece in pieces)
            state.record(Extents(inode, end, pack_pieces(pieces)))
            if state.sense.limit and written is not None:
                state.sense.wrote(inode, written, state.applier.take_lost())
        file.sealing = [piece for piece in file.sealing if id(piece) not in done]
        state.drop_if_clean(file)

    def _put_back(self, pieces: Iterable[DirtyPiece]) -> None:
        state = self._state
        for piece in pieces:
            file = state.dirty.get(piece.inode)
            if file is None:
                state.dirty_bytes -= len(piece.data)
            elif piece in file.sealing:
                file.sealing.remove(piece)
                before = file.frozen.size_bytes
                newer = file.frozen.take(before)
                file.frozen.write(piece.offset, bytes(piece.data[: piece.length]))
                for offset, data in newer:
                    file.frozen.write(offset, bytes(data))
                # Less than the piece comes back: what was cut off, and what newer bytes cover, is gone.
                state.dirty_bytes -= len(piece.data) - (file.frozen.size_bytes - before)
                state.drop_if_clean(file)


def _parts(plans: Sequence[FramePlan]) -> list[int]:
    """How many plans go together, part by part: PART_BYTES or a little more each, the last one the rest."""
    counts = [0]
    size = 0
    for plan in plans:
        if size >= PART_BYTES:
            counts.append(0)
            size = 0
        counts[-1] += 1
        size += plan.length
    return counts
