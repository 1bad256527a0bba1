"""Opening the local state: the index is brought to the end of the verified local log.

Order of events, each of which may be the last before another power cut:
0. remove the reserve file, as the disk may have been full; drop what a refused mount took from stores;
1. remove the youngest segments that hold no commit: they never were part of the log;
2. open the index (or start one from the newest checkpoint, or from nothing), and take from a store what is
   bad here of the youngest closed segment: it would pass for one that a crash cut;
3. replay the local log from its position; an index that is ahead of it drops its write-ahead log;
4. cut the torn tail: the last segment is written anew up to its last whole commit, durably; only then is
   it named to anybody as `previous`;
5. follow what stores have behind that; it is settled with the mount (`Recovery.accepted`).
Nothing here appends to an existing segment. Running it twice gives the same as running it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mirrorfs.engine.behind_base import BEHIND_PATH, BehindBase, note_behind, was_behind
from mirrorfs.engine.checkpoint_loader import OnLoaded
from mirrorfs.engine.closed_segments import mend_youngest, newest_local_head
from mirrorfs.engine.first_checkpoint import load_first
from mirrorfs.engine.joining import Joiner, check_reaches, longer_copy, missed, undecided_in
from mirrorfs.engine.late_segments import check_no_late_segment
from mirrorfs.engine.log import LogPosition
from mirrorfs.engine.replay import ReplayEnd, Replayer, previous_of
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.space import RESERVE_PATH
from mirrorfs.engine.torn_tail import cut_tail
from mirrorfs.engine.unborn import drop_unborn
from mirrorfs.errors import ChainError, DamagedError, MirrorfsError, StoreUnavailable
from mirrorfs.format.control import Head
from mirrorfs.format.ids import STREAM_PREFIX, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Index, IndexFiles, Offload, Store

logger = logging.getLogger(__name__)

_PREFIX = STREAM_PREFIX[Stream.MAIN]
_DIRECTORY = LOCAL_PREFIX + _PREFIX.rstrip("/")
_CHECKPOINTS = LOCAL_PREFIX + STREAM_PREFIX[Stream.CHECKPOINT].rstrip("/")
_HEADS = LOCAL_PREFIX + "heads"


@dataclass(frozen=True, slots=True)
class Recovered:
    """A volume's local state, ready to go on."""

    index: Index
    start: LogPosition
    position: int
    time_ns: int
    rebuilt: bool
    """The index was rebuilt from the log."""
    undecided: frozenset[int] = frozenset()
    """ReplayEnd.undecided, for the next commit."""


class Recovery:
    """Recovers one volume's local state.

    Invariant: without its write-ahead log, if it is doubted (ports.IndexFiles), the index holds a position of
    the log that this machine may go on from, whatever was broken off or refused.
    """

    def __init__(
        self,
        disk: Disk,
        files: IndexFiles,
        offload: Offload,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        *,
        stores: Sequence[Store] = (),
        follows: bool = True,
        takes_over: bool = False,
        instances: Collection[str] = (),
        on_progress: Callable[[int, int], None] | None = None,
        on_loaded: OnLoaded | None = None,
    ) -> None:
        """`stores` are asked for what is damaged or gone here and, if it `follows`, for what comes after.
        `takes_over`: who mounts was told to go on without what stores that are away may have.
        `instances`: of all that may have been sent something, in hexadecimal.
        """
        self._disk = disk
        self._files = files
        self._offload = offload
        self._keys = keys
        self._writer = writer
        self._stores = stores
        self._on_progress = on_progress
        self._on_loaded = on_loaded
        self._silent: list[str] = []
        self._is_partial, self._follows, self._takes_over = False, follows, takes_over
        self._public_key = public_key = writer.public_bytes_raw()
        self._joiner = Joiner(
            stores if follows else (), offload, keys, public_key, writer,
            on_progress=on_progress, on_loaded=on_loaded, instances=instances, doubt=self._doubt_what_follows,
        )  # fmt: skip

    async def run(self) -> Recovered:
        """Once it is known that the volume is gone on with from there, `accepted` has to be called.

        Raises: DamagedError: segments that are not the torn tail are damaged and no store has them.
        ChainError: this machine wrote on with keys that were out of use.
        StoreUnavailable: a store may have them, and does not answer.
        """
        self._disk.remove(RESERVE_PATH)
        await self._offload.sync(self._drop_doubted)
        await drop_unborn(self._disk, self._offload, self._keys, self._writer)
        found = await self._offload.run(
            partial(newest_local_head, self._disk, keys=self._keys, public_key=self._public_key)
        )
        head = found[0] if found is not None else None
        await check_no_late_segment(self._disk, self._offload, self._keys, self._writer)
        recovered = await self._joined() or await self._anew() or await self._local(head)
        check_reaches(recovered.index, recovered.start, self._keys)
        if self._follows and self._is_whole:
            await self._trust()
        return recovered

    async def accepted(self, index: Index) -> None:
        """The index is gone on with, also where it was filled while a store was away."""
        if not self._is_whole:
            await self._settle(index)
        await self._trust()

    async def _trust(self) -> None:
        await self._offload.sync(self._files.trust)
        self._disk.remove(BEHIND_PATH)

    @property
    def _is_whole(self) -> bool:
        """Whether no store was away that may have otherwise what was put into the index."""
        return not (self._is_partial or self._joiner.is_partial)

    async def _doubt(self) -> None:
        """Before something is put into the index that stores gave.

        It may be the end of a writer that was fenced, or have damage, while the store that has it right is
        away. Until the mount is settled it is in the write-ahead log alone, with which it can be dropped.
        """
        await self._offload.sync(self._files.doubt)

    async def _doubt_what_follows(self, index: Index) -> None:
        if self._is_whole:
            await self._settle(index)
        await self._doubt()

    def _drop_doubted(self) -> None:
        """Undo what a mount took from stores that was refused or broken off; a power cut might do so too."""
        if self._files.is_doubted():
            self._files.drop_wal()
            self._files.trust()

    async def _local(self, head: Head | None) -> Recovered:
        """What the local log leads to, and what stores have of it behind that."""
        index, rebuilt = await self._opened()
        try:
            await mend_youngest(
                self._disk, self._offload, index, head, self._stores,
                keys=self._keys, public_key=self._public_key,
            )  # fmt: skip
            end = await self._replay(index)
        except ChainError:
            # The index stands at a position the verified log does not hold: its last commits were ahead
            # of the log when the power went. What was moved into the database was durable by then.
            index.close()
            self._files.drop_wal()
            index, end, rebuilt = await self._without_wal()
        except BaseException:
            _let_go(index)
            raise
        if end.damage is not None:
            index.close()
            raise DamagedError(f"The local log is damaged and no store has a good copy: {end.damage}.")
        if await self._has_more(end):
            end = await self._replay(index)
        start = await cut_tail(self._disk, self._offload, index, end)
        try:
            start, undecided = await self._follow(index, start, end.undecided)
        except BehindBase as exc:
            index.close()
            if self._joiner.silent and not self._takes_over:
                raise missed(self._joiner.silent, "another machine wrote last") from exc
            logger.warning("%s Beginning anew from the stores' newest state.", exc)
            await self._offload.sync(partial(note_behind, self._disk))
            anew = await self._anew()
            assert anew is not None, "just noted"
            return anew
        except BaseException:
            _let_go(index)
            raise
        return self._recovered(index, start, rebuilt=rebuilt, undecided=undecided)

    async def go_on(self, recovered: Recovered) -> Recovered:
        """Follow what the stores got since `run` looked. Raises DamagedError: it is not whole."""
        start, undecided = await self._follow(recovered.index, recovered.start, recovered.undecided)
        if self._is_whole:
            await self._trust()
        return self._recovered(recovered.index, start, rebuilt=recovered.rebuilt, undecided=undecided)

    async def _follow(
        self, index: Index, start: LogPosition, undecided: frozenset[int]
    ) -> tuple[LogPosition, frozenset[int]]:
        end, undecided = await self._joiner.follow(index, start, undecided)
        if end != start and self._is_whole:
            await self._settle(index)
        return end, undecided

    async def _settle(self, index: Index) -> None:
        """Move what only the stores have of the log into the index's own file, for good.

        A power cut may take the write-ahead log of the index: where the segments behind it are not on the
        disk, it could be had from the stores alone, and the machine would depend on their being there.
        """
        # The log completes a move that is cut, so that from now on it must not be dropped.
        await self._offload.sync(self._files.trust)
        index.commit()
        await self._offload.run(index.backfill)
        index.finish_backfill()

    async def _anew(self) -> Recovered | None:
        """Where the local log was found to be behind what stores keep, and nothing was written since."""
        if not self._joiner.stores or not await self._offload.run(partial(was_behind, self._disk)):
            return None
        filled = await self._filled(is_attached=True)
        assert filled is not None, "a volume that was written to has a log"
        return filled

    async def _joined(self) -> Recovered | None:
        """Where there is no local log but stores have one: the stores' newest state."""
        if not self._joiner.stores or await self._list(_DIRECTORY) or await self._list(_CHECKPOINTS):
            return None
        try:
            index = self._files.open()
            is_empty = not index.get_meta("journal_sequence")
            index.close()
        except DamagedError:
            is_empty = True
        if not is_empty:
            return None
        self._files.remove()
        return await self._filled(is_attached=bool(await self._list(_HEADS)))

    async def _filled(self, *, is_attached: bool) -> Recovered | None:
        await self._doubt()
        filled = await self._joiner.fill(self._files, is_attached=is_attached)
        if filled is None:
            return None
        if self._is_whole:
            await self._settle(filled)
        return self._recovered(filled, self._joiner.end_of(filled), rebuilt=True, undecided=frozenset())

    def _recovered(
        self, index: Index, start: LogPosition, *, rebuilt: bool, undecided: frozenset[int]
    ) -> Recovered:
        found = (index.get_meta("position"), index.get_meta("time_ns"))
        position, time_ns = (value if isinstance(value, int) else 0 for value in found)
        return Recovered(index, start, position, time_ns, rebuilt, undecided)

    async def _opened(self) -> tuple[Index, bool]:
        """The index, and whether it is a new one, begun from a checkpoint or instead of a damaged one."""
        rebuilt = False
        try:
            index = self._files.open()
            if index.get_meta("journal_sequence") is not None:
                return index, False
            # It has no position, so that it may hold any part of a checkpoint that was being loaded.
            index.close()
        except DamagedError:
            logger.warning("The index cannot be read; rebuilding it from the log.")
            rebuilt = True
        self._files.remove()
        index = self._files.open()
        try:
            return index, await self._from_checkpoint(index) or rebuilt
        except BaseException:
            _let_go(index)
            raise

    async def _without_wal(self) -> tuple[Index, ReplayEnd, bool]:
        index, rebuilt = await self._opened()
        try:
            return index, await self._replay(index), rebuilt
        except ChainError as exc:
            index.close()
            if self._silent:
                raise self._needs_stores() from exc
            raise DamagedError(
                "The local log lacks what was durable in it;"
                " keep the state directory and restore from a store."
            ) from exc
        except BaseException:
            _let_go(index)
            raise

    async def _list(self, directory: str) -> Sequence[str]:
        return await self._offload.run(partial(self._disk.list, directory))

    async def _from_checkpoint(self, index: Index) -> bool:
        return await load_first(
            index, self._disk, self._offload, self._keys, self._writer,
            stores=self._joiner.stores, on_loaded=self._on_loaded, doubt=self._doubt,
            local=[parse_segment_object_key(_PREFIX + name)[1] for name in await self._list(_DIRECTORY)],
        )  # fmt: skip

    async def _replay(self, index: Index) -> ReplayEnd:
        position = index.get_meta("position")
        segments = Segments(
            Stream.MAIN, disk=self._disk, offload=self._offload, stores=self._stores, keys=self._keys,
            is_local_log=True,
        )  # fmt: skip
        from_sequence = position >> 20 if isinstance(position, int) else 0
        # The stores are listed only when the local log alone does not do.
        await segments.look(from_sequence=from_sequence, stores=False)
        try:
            end = await self._run(index, segments)
            if end.damage is None and not self._lost_behind(end, segments):
                return end
        except ChainError:
            if not self._stores:
                raise
        if self._stores:
            await self._doubt()
        silent = await segments.look(from_sequence=from_sequence)
        try:
            end = await self._run(index, segments)
        finally:
            self._silent = sorted(segments.unreached.union(silent))
            self._is_partial = self._is_partial or bool(self._silent)
        if self._silent and (end.damage is not None or self._lost_behind(end, segments)):
            raise self._needs_stores()
        if end.damage is None and self._lost_behind(end, segments):
            raise DamagedError(
                "The local log has segments that do not continue it;"
                " keep the state directory and restore from a store."
            )
        return end

    async def _run(self, index: Index, segments: Segments) -> ReplayEnd:
        """Replay from where the index stands.

        If that is in a closed segment that is not on the disk, as what was followed from the stores, then
        from its end: all of it was applied before the index was settled. So the index, which is kept where
        the log is not whole, must not hold a last segment with damage for which nobody vouches.
        """
        replayer = Replayer(
            index, segments, self._keys, self._writer, whole=True, on_progress=self._on_progress
        )
        position, row = index.get_meta("position"), index.last_segment()
        if (
            not isinstance(position, int)
            or row is None
            or row.sequence != position >> 20
            or row.sequence in segments.local_sequences
        ):
            return await replayer.run(keep_tail=True)
        return await replayer.follow(
            previous_of(row),
            next_sequence=row.sequence + 1,
            undecided=undecided_in(index, row.sequence),
            keep_tail=True,
        )

    def _needs_stores(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"A part of the log is not on this machine, and store {' and store '.join(self._silent)} does not"
            " answer: mount again when it does."
        )

    def _lost_behind(self, end: ReplayEnd, segments: Segments) -> bool:
        """Whether there are segments after the end of the chain, or durable frames after the torn tail."""
        if any(sequence >= end.next_sequence for sequence in segments.local_sequences):
            return True
        tail = end.tail
        return tail is not None and tail.known_durable > tail.end

    async def _has_more(self, end: ReplayEnd) -> bool:
        """Whether a store has the open last segment longer, or sealed: then that is on the disk now."""
        if end.tail is None or end.last is None:
            return False
        data = await longer_copy(self._joiner.stores, end.last, self._keys, self._writer)
        if data is None:
            return False
        path = LOCAL_PREFIX + segment_object_key(Stream.MAIN, end.last.segment)
        await self._offload.sync(partial(self._disk.write_whole, path, data))
        return True


def _let_go(index: Index) -> None:
    """Close it where something else is to be said."""
    with suppress(MirrorfsError):
        index.close()
