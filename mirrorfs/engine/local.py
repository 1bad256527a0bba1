"""The local half of a mounted volume: recovered log, index, writer task, filesystem. No store is needed."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from mirrorfs.core.sense import LIMIT, Sense
from mirrorfs.engine.bursts import Bursts
from mirrorfs.engine.cache import CACHE_SIZE, SegmentCache
from mirrorfs.engine.committer import Committer
from mirrorfs.engine.duplicates import Duplicates
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.lasting import lasting
from mirrorfs.engine.log import Log
from mirrorfs.engine.reader import Reader
from mirrorfs.engine.recovery import Recovered
from mirrorfs.engine.sealer import Sealer
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.snapshots import Snapshots
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import DiskError
from mirrorfs.format.content import ContentDigester
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.record import Create, Epoch
from mirrorfs.format.rows import RelocationRow, SegmentRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Clock, Disk, Entropy, Index, Offload, Store, Throttle

logger = logging.getLogger(__name__)

BUSY_NS: Final = 1_000_000_000
"""Who asked for something a moment ago may ask for more."""


@dataclass(frozen=True, slots=True)
class World:
    """What the engine gets from outside."""

    disk: Disk
    clock: Clock
    entropy: Entropy
    offload: Offload
    throttle: Throttle | None = None
    """What the stores keep to; None: no limit."""


@dataclass(frozen=True, slots=True)
class Mirrors:
    """What the local half of a volume needs of its stores."""

    stores: Callable[[], Iterable[Store]] = lambda: ()
    """Those to read from now."""
    is_held: Callable[[str], bool] = lambda key: False
    """Whether every store is known to hold an object."""
    is_expected: Callable[[str, str], bool] = lambda store, key: True
    """Whether a store of that name should have an object by now."""
    on_bad_copy: Callable[[str | None, str], None] = lambda store, key: None
    """Hears the store (None: the local disk) and the key of a copy that a reader found bad or gone."""


class LocalVolume:
    """A writable volume on this machine.

    Order of closing matters: the filesystem gets no calls any more; `quiesce` commits everything and seals
    the last segment; the tasks are cancelled; `close` closes the index.
    """

    def __init__(
        self,
        world: World,
        recovered: Recovered,
        identity: WriterIdentity,
        writer: WriterPublicKey,
        *,
        nursery: trio.Nursery,
        mirrors: Mirrors | None = None,
        cache_bytes: int = CACHE_SIZE,
        owner: tuple[int, int] = (0, 0),
        mirror_delay_s: float = 10.0,
        level: int = 1,
        encrypted_max: int = LIMIT,
        deduplicate: bool = False,
        on_closed: Callable[[SegmentRow, str], None] = lambda row, key: None,
        on_commit: Callable[[int, int], None] = lambda position, size: None,
    ) -> None:
        """
        Args:
            mirrors: none: a volume without stores, which keeps everything here.
            cache_bytes: bound of what is kept locally of segments that every store has.
            owner: (uid, gid) of the root directory of a new volume.
            encrypted_max: so many files replaced by what looks encrypted are a burst; 0: nobody looks.
            deduplicate: whether bytes that all stores have are referred to when they are written again.
        """
        self.index: Index = recovered.index
        self.identity = identity
        self.state = VolumeState(self.index, world.clock, read_only=False)
        self.state.applier.emptied |= recovered.undecided
        self.state.sense = Sense(encrypted_max)
        self.state.sense.committed(recovered.position, recovered.time_ns)
        self.bursts = Bursts(self.state.sense, world.disk, world.clock, world.offload)
        self.space = SpaceGuard(world.disk, world.clock)
        self._on_closed = on_closed
        self._owner = owner
        self.log = Log(
            world.disk,
            world.offload,
            identity,
            world.entropy,
            start=recovered.start,
            on_closed=self._closed,
            on_relocated=self._relocated,
        )
        mirrors = Mirrors() if mirrors is None else mirrors
        self.duplicates = self._make_duplicates(mirrors) if deduplicate else None
        self.committer = Committer(
            self.state,
            self.log,
            self._make_sealer(world.offload, level),
            world.disk,
            self.space,
            world.offload,
            mirror_delay_s=mirror_delay_s,
            on_commit=on_commit,
        )
        self.committer.durable_position = recovered.position
        self.committer.durable_ns = recovered.time_ns
        self.snapshots = Snapshots(self.state, self.committer, self.space, world.disk)
        self.cache, self.reader = self._make_reading(world, writer, mirrors, cache_bytes, nursery)
        self.filesystem = FileSystem(
            self.state,
            self.space,
            self.reader,
            self.committer,
            world.offload,
            removable_bytes=self.cache.removable_bytes,
        )
        self._nursery = nursery

    def _make_duplicates(self, mirrors: Mirrors) -> Duplicates:
        return Duplicates(self.index, ContentDigester(self.identity.keys.dedup_key), mirrors.is_held)

    def _make_sealer(self, offload: Offload, level: int) -> Sealer:
        return Sealer(
            self.state,
            self.log,
            offload,
            level=level,
            duplicates=self.duplicates,
            on_progress=lambda: self.committer.made_space(),
        )

    def _make_reading(
        self,
        world: World,
        writer: WriterPublicKey,
        mirrors: Mirrors,
        cache_bytes: int,
        nursery: trio.Nursery,
    ) -> tuple[SegmentCache, Reader]:
        cache = SegmentCache(
            world.disk,
            self.space,
            world.offload,
            limit_bytes=cache_bytes,
            is_held=mirrors.is_held,
            settle_index=self.committer.settle_index,
            on_removed=lambda path: reader.let_go(path),
        )
        reader = Reader(
            self.state,
            world.disk,
            world.offload,
            self.identity.keys,
            writer,
            log=lambda: self.log,
            stores=mirrors.stores,
            nursery=nursery,
            ranges=cache.ranges,
            on_used=cache.used,
            on_bad_copy=mirrors.on_bad_copy,
            is_expected=mirrors.is_expected,
            throttle=world.throttle,
        )
        return cache, reader

    def _closed(self, row: SegmentRow, key: str) -> None:
        self.index.put_segment(row)
        self.cache.closed(key, row.size)
        self._on_closed(row, key)

    def _relocated(self, row: RelocationRow) -> None:
        self.index.put_relocation(row)
        frame = self.index.get_frame(row.frame)
        if frame is not None:
            self.index.put_frame(frame._replace(offset=row.offset))

    async def start(self) -> None:
        """Start the writer task, record the epoch, make the root if the volume is new, remove orphans."""
        await self.cache.load()
        await self._nursery.start(self.committer.run)
        state = self.state
        now = state.clock.now_ns()
        state.record(Epoch(self.identity.epoch, now, self.identity.writer))
        if self.index.get_inode(ROOT_INODE) is None:
            uid, gid = self._owner
            mode = stat.S_IFDIR | 0o755
            state.record(Create(ROOT_INODE, ROOT_INODE, 1, 0, mode, uid, gid, 0, now, b"", b""))
        for inode in self.index.orphans():
            self.filesystem.forget(inode)
        await self.committer.commit(None)
        start = partial(self._nursery.start_soon, partial(lasting, on_unforeseen=self.unforeseen))
        start(self.cache.run, "the cache")
        start(self.bursts.run, "the list of bursts")

    def adopt(self, identity: WriterIdentity) -> None:
        """Take another header generation for all segments that begin from now on."""
        self.identity = identity
        self.log.identity = identity

    def is_busy(self) -> bool:
        """Whether files are written, or read from a store, or were a moment ago."""
        idle_ns = self.state.clock.boottime_ns() - self.state.written_ns
        return idle_ns < BUSY_NS or self.reader.is_fetching(within_s=BUSY_NS / 1e9)

    async def quiesce(self) -> None:
        """Commit everything and seal the last segment. Raises what the commit raises."""
        await self.committer.commit(None, seal=True)

    def unforeseen(self, error: Exception) -> None:
        """Stop writing for good, for an exception that nobody foresaw; reads go on until the unmount."""
        if self.state.fatal is None:
            kind = type(error).__name__
            self.state.fatal = f"Unforeseen ({kind}): writing has stopped; mount the volume again."
            self.committer.made_space()

    def _close_bursts(self) -> None:
        try:
            self.bursts.close()
        except DiskError as exc:
            logger.warning("The list of suspicious bursts could not be written: %s", exc)

    def close(self) -> None:
        """Close the index. Nothing uncommitted may be left but what is no part of a position."""
        self.reader.close()
        self._close_bursts()
        if self.state.pending:
            self.index.rollback()
        elif self.state.fatal is None:
            # All commits are durable: leave one file that needs no write-ahead log.
            self.index.commit()
            self.index.backfill()
            self.index.finish_backfill()
        self.index.close()
