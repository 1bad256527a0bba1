"""What each operation of a mounted volume costs, counted one by one on a log of any length."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager

import trio

from mirrorfs.engine.follower import Follower
from mirrorfs.engine.heads import newest_head
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.replay import ReplayEnd, previous_of
from mirrorfs.engine.scrub import SIZES, ScrubReport
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.ids import Stream
from mirrorfs.format.signing import load_public_key
from tests.support.long_log import LongLog
from tests.support.machine import write_file
from tests.support.volumes import KEY_SET, KEYS
from tests.support.work import Counted, Work

QUIET_S = 120.0
"""After so long without a change every task waits."""

Counting = Callable[[str], AbstractContextManager[Work]]


class Costs:
    """The work of each operation, by its name."""

    def __init__(self, log: LongLog, *, lines: bool, quiet_s: float = QUIET_S) -> None:
        self.log = log
        self.quiet_s = quiet_s
        self._lines = lines
        self.of: dict[str, Work] = {}

    def counting(self, name: str, *, lines: bool = True) -> AbstractContextManager[Work]:
        """Count a block under a name."""
        context = Counted(self.log.disk, self.log.stores, lines=lines and self._lines)
        self.of[name] = context.work
        return context

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[MountedVolume]:
        """A mount, counted, after which everything has come to rest."""
        mounting = self.log.machine.mounted(wait=False)
        with self.counting("mount", lines=False):
            volume = await mounting.__aenter__()
            await volume.flush()
        try:
            with self.counting("the first checkpoint", lines=False):
                await write_file(volume, b"zero", b"bytes")
                await volume.flush()
                await trio.sleep(self.quiet_s)
            yield volume
        except BaseException as exc:
            await mounting.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        await mounting.__aexit__(None, None, None)


async def count_recovery(costs: Costs) -> None:
    """Open an index that stands at the end of its log."""
    log = costs.log
    writer = load_public_key(KEY_SET.public_keys().writer)
    with costs.counting("recovery of an index at its end"):
        recovery = Recovery(log.disk, log.machine.files, log.world.offload, KEYS, writer, stores=log.stores)
        recovered = await recovery.run()
    assert not recovered.rebuilt
    recovered.index.close()


async def count_operations(costs: Costs, volume: MountedVolume) -> None:
    """Everything that is done again and again while a volume is mounted."""
    log, local = costs.log, volume._local
    with costs.counting("status"):
        assert volume.status().stores[0].held_count > log.count
    with costs.counting("statfs"):
        assert volume.filesystem.statfs().blocks_free > 0
    # In one: how much of it is done before `quiesce` returns depends on which task runs first.
    with costs.counting("one segment, and a head, closed and on both stores"):
        await write_file(volume, b"one", b"bytes" * 1000)
        await local.quiesce()
        await volume.flush()
    assert [one.mirror.snapshot().pending_count for one in volume._stores] == [0, 0]
    with costs.counting("a quiet while", lines=False):
        await trio.sleep(costs.quiet_s)
    with costs.counting("the newest head of a store"):
        public_key = KEY_SET.public_keys().writer
        found = await newest_head(log.stores[0], keys=KEYS, public_key=public_key)
    assert (found is None) is (not log.head_count)
    with costs.counting("listing the log from a position on"):
        segments = Segments(Stream.MAIN, disk=log.disk, offload=log.world.offload, stores=log.stores)
        await segments.look(from_sequence=log.count)
    assert len(segments.sequences) < 10
    with costs.counting("a look of a read-only mount"):
        await _follower(log, volume).look()
    await _count_cache(costs, volume)


def _follower(log: LongLog, volume: MountedVolume) -> Follower:
    index = volume._local.index
    last, digest = index.last_segment(), index.get_meta("journal_hash")
    sequence = index.get_meta("journal_sequence")
    assert last is not None and isinstance(sequence, int) and isinstance(digest, bytes)
    position, next_sequence = volume.status().position, last.sequence + 1
    end = ReplayEnd(position, sequence, digest, last.last_ns, previous_of(last), next_sequence, None, None)
    return Follower(
        index, end, disk=log.disk, offload=log.world.offload, stores=log.stores, keys=KEYS,
        writer=load_public_key(KEY_SET.public_keys().writer), random=lambda: 0.5,
    )  # fmt: skip


async def _count_cache(costs: Costs, volume: MountedVolume) -> None:
    cache, settled = volume._local.cache, volume._local.cache._settle
    await settled()
    removable_bytes = cache.removable_bytes()
    cache._limit_bytes = cache.size_bytes - 1
    with costs.counting("one segment leaves the cache"):
        await cache.shrink()
    assert cache.removable_bytes() < removable_bytes


async def count_outage(costs: Costs, volume: MountedVolume) -> None:
    """A store is away, nothing may leave the cache, and the cache is too large."""
    log, cache = costs.log, volume._local.cache
    for one in volume._stores[:1]:
        for key in log.segment_keys():
            one.mirror._held.discard(key)
    cache._limit_bytes = 0
    await cache.shrink()
    with costs.counting("a cache that is full of what a store lacks"):
        await cache.shrink()
        assert cache.removable_bytes() == 0


async def count_scrub(costs: Costs, volume: MountedVolume) -> ScrubReport:
    """The daily look at what the stores have."""
    with costs.counting("the daily look at sizes", lines=False):
        return await volume.scrubber.run(SIZES)
