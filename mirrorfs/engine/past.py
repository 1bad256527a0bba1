"""A read-only view of a volume: of any moment that is kept, or following the writer.

It has an index of its own, filled by replay and thrown away; it takes no lease, and writes nothing to
the local state, but the newest head that it saw (witness.py), or to a store. What it fetched it keeps in a
directory of its own (view_cache.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio

from mirrorfs.engine.cache import SegmentCache
from mirrorfs.engine.checkpoint_loader import OnLoaded
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.follower import Follower
from mirrorfs.engine.lasting import lasting
from mirrorfs.engine.local import World
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.range_files import RangeFiles
from mirrorfs.engine.reader import Reader
from mirrorfs.engine.replay import ReplayEnd
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import DamagedError, UsageError
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.signing import WriterPublicKey, load_public_key
from mirrorfs.ports import Index, IndexFiles, Store


class ReadOnlyVolume:
    """One read-only session, from `open` to `close`."""

    def __init__(
        self,
        index: Index,
        reader: Reader,
        filesystem: FileSystem,
        follower: Follower | None,
        *,
        position: int,
        time_ns: int,
        next_ns: int | None,
    ) -> None:
        """Use `open`."""
        self._index = index
        self._reader = reader
        self.filesystem = filesystem
        self.follower = follower
        """Brings the view forward; None of one that shows a moment in the past."""
        self._position = position
        self._time_ns = time_ns
        self.next_ns = next_ns
        """RestorePlan.next_ns."""

    @property
    def index(self) -> Index:
        """Of the state that is shown."""
        return self._index

    @property
    def reader(self) -> Reader:
        """Reads its files."""
        return self._reader

    @property
    def position(self) -> int:
        """Of the last change that is shown."""
        return self._position if self.follower is None else self.follower.position

    @property
    def time_ns(self) -> int:
        """Commit time of the last change that is shown."""
        return self._time_ns if self.follower is None else self.follower.time_ns

    @classmethod
    async def open(
        cls,
        *,
        nursery: trio.Nursery,
        world: World,
        files: IndexFiles,
        keys: VolumeKeys,
        writer_key: bytes,
        stores: Sequence[Store],
        moment: Moment,
        random: Callable[[], float],
        cache: SegmentCache | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_loaded: OnLoaded | None = None,
    ) -> ReadOnlyVolume:
        """Replay the log up to a moment; if that is the newest, follow it from there.

        Args:
            files: of an index of its own, empty.
            writer_key: Ed25519 public key of the writer, 32 bytes.
            cache: keeps what stores send of files (`view_cache`), run here; None: it is kept nowhere.
        Raises: UsageError: the volume had no commit yet then. DamagedError: the log breaks off before.
        """
        planner = Planner(
            stores, files, world.offload, keys, writer_key,
            on_progress=on_progress, on_loaded=on_loaded, disk=world.disk,
        )  # fmt: skip
        writer = load_public_key(writer_key)
        index, plan = await index_at(planner, moment)
        try:
            view = cls._of(
                index, plan, planner.end, nursery, world, keys, writer, stores, moment, random, cache
            )
        except BaseException:
            index.close()
            raise
        if cache is not None:
            # Without its task it would grow up to the reserve of the disk: no reason to end the view.
            run = partial(lasting, cache.run, "the cache", on_unforeseen=lambda error: None)
            nursery.start_soon(run)
        return view

    @classmethod
    def _of(
        cls,
        index: Index,
        plan: RestorePlan,
        end: ReplayEnd,
        nursery: trio.Nursery,
        world: World,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        stores: Sequence[Store],
        moment: Moment,
        random: Callable[[], float],
        cache: SegmentCache | None,
    ) -> ReadOnlyVolume:
        state = VolumeState(index, world.clock, read_only=True)
        ranges = None if cache is None else cache.ranges
        files_reader = reader_of(state, world, keys, writer, stores, nursery, ranges)
        filesystem = FileSystem(state, SpaceGuard(world.disk, world.clock), files_reader, None, world.offload)
        follower = None
        if moment == NEWEST:
            follower = Follower(
                index,
                end,
                disk=world.disk,
                offload=world.offload,
                stores=stores,
                keys=keys,
                writer=writer,
                random=random,
            )
            nursery.start_soon(follower.run)
        return cls(
            index, files_reader, filesystem, follower,
            position=end.position, time_ns=end.time_ns, next_ns=plan.next_ns,
        )  # fmt: skip

    def close(self) -> None:
        """Close the index; the caller removes its files."""
        self._reader.close()
        self._index.close()


async def index_at(planner: Planner, moment: Moment, *, needs_all: bool = True) -> tuple[Index, RestorePlan]:
    """The index at a moment, to be read and no more; the caller closes it.

    Args:
        needs_all: whether it is an error that the log breaks off before the moment; else the plan says it.
    Raises: as `Planner.run`, and DamagedError: the log breaks off before.
    """
    index, plan = await planner.run(moment)
    try:
        if plan.damage is not None and needs_all:
            raise DamagedError(f"The log cannot be followed up to that moment: {plan.damage}.")
        if index.get_inode(ROOT_INODE) is None:
            raise UsageError("The volume had no commit yet at that moment; choose a later one.")
        if (segment := plan.open_segment) is not None:
            # Replay stopped inside it. Frames verify only in the right segment, whatever is named here.
            index.put_segment(SegmentRow(*segment, 0, 0, bytes(32), 0, 0))
    except BaseException:
        index.close()
        raise
    return index, plan


def reader_of(
    state: VolumeState,
    world: World,
    keys: VolumeKeys,
    writer: WriterPublicKey,
    stores: Sequence[Store],
    nursery: trio.Nursery,
    ranges: RangeFiles | None = None,
) -> Reader:
    """Reads the files of a volume that nobody here writes; `ranges` as of Reader."""
    return Reader(
        state,
        world.disk,
        world.offload,
        keys,
        writer,
        log=lambda: None,
        stores=lambda: stores,
        nursery=nursery,
        ranges=ranges,
        throttle=world.throttle,
    )
