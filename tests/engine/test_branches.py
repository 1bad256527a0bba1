"""Which of several branches is the volume's: told from headers, and from no more of them than needed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from trio.testing import MockClock

from mirrorfs.engine.branches import Branches, End
from mirrorfs.engine.sources import Segments
from mirrorfs.format.ids import SegmentId
from tests.support.made_up_log import MadeUpLog, writer_of
from tests.support.segment_bytes import PUBLIC
from tests.support.volumes import KEYS


class Counting:
    """Segments of which the headers that are read are counted."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self.read: list[SegmentId] = []

    async def candidates(self, sequence: int) -> list[SegmentId]:
        return await self._segments.candidates(sequence)

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        self.read.append(segment)
        return self._segments.beginnings(segment)


async def looked(log: MadeUpLog) -> tuple[Branches, Counting]:
    source = Counting(await log.segments())
    return Branches(source, KEYS, PUBLIC), source


async def test_one_candidate_is_not_looked_at(autojump_clock: MockClock) -> None:
    log = MadeUpLog()
    only = log.add(0, 1)
    log.add(1, 1, only)
    branches, source = await looked(log)
    assert await branches.order([only]) == [only]
    assert await branches.order([]) == []
    assert source.read == []


async def test_the_end_counts_not_the_root_nor_the_length(autojump_clock: MockClock) -> None:
    """The orphan begins with a higher epoch and is longer; the other leads to a later writer."""
    log = MadeUpLog()
    root = log.add(0, 1)
    ours = log.add(1, 1, root)
    later = log.add(2, 3, ours)
    orphan = log.add(1, 2, root)
    end = orphan
    for sequence in range(2, 6):
        end = log.add(sequence, 2, end)
    branches, _ = await looked(log)
    assert await branches.order([orphan, ours]) == [ours, orphan]
    assert await branches.ends([orphan, ours]) == {
        ours: End(1, 3, later.sequence, writer_of(3)),
        orphan: End(1, 2, end.sequence, writer_of(2)),
    }


async def test_of_a_long_log_no_more_is_read_than_decides(autojump_clock: MockClock) -> None:
    log = MadeUpLog()
    root = log.add(0, 1)
    orphan = log.add(1, 2, root)
    ours = end = log.add(1, 3, root)
    for sequence in range(2, 60):
        end = log.add(sequence, 3, end)
    branches, source = await looked(log)
    assert await branches.order([orphan, ours]) == [ours, orphan]
    assert len(source.read) <= 2


async def test_two_ends_of_one_epoch_go_by_their_length(autojump_clock: MockClock) -> None:
    """That cannot be where writers saw each other; but the order must not depend on chance."""
    log = MadeUpLog()
    root = log.add(0, 1)
    short, long = log.add(1, 2, root), log.add(1, 1, root)
    log.add(2, 2, long)
    branches, _ = await looked(log)
    assert await branches.order([short, long]) == [long, short]


async def test_where_a_branch_leads(autojump_clock: MockClock) -> None:
    log = MadeUpLog()
    root = log.add(0, 1)
    ours, orphan = log.add(1, 3, root), log.add(1, 2, root)
    end = log.add(2, 3, ours)
    branches, _ = await looked(log)
    assert await branches.leads(root, end)
    assert await branches.leads(ours, end)
    assert not await branches.leads(orphan, end)
    assert await branches.leads(end, end)


async def test_what_cannot_be_read_may_lead_there(autojump_clock: MockClock) -> None:
    """A rotten header is no proof of a fork."""
    log = MadeUpLog()
    root = log.add(0, 1)
    ours, orphan = log.add(1, 3, root), log.add(1, 2, root)
    end = log.add(2, 3, ours)
    log.store.objects[log.key(end)] = bytes(5000)
    branches, _ = await looked(log)
    assert await branches.previous(end) is None
    assert await branches.leads(orphan, end)


async def test_without_a_fork_nothing_is_read(autojump_clock: MockClock) -> None:
    log = MadeUpLog()
    start = end = log.add(0, 1)
    for sequence in range(1, 9):
        end = log.add(sequence, 1, end)
    branches, source = await looked(log)
    assert await branches.leads(start, end)
    assert source.read == []


async def test_a_header_under_a_wrong_name_says_nothing(autojump_clock: MockClock) -> None:
    log = MadeUpLog()
    root = log.add(0, 1)
    ours, orphan = log.add(1, 3, root), log.add(1, 2)
    log.store.objects[log.key(orphan)] = log.store.objects[log.key(ours)]
    branches, _ = await looked(log)
    assert await branches.previous(orphan) is None
    found = await branches.previous(ours)
    assert found is not None and found.segment == root
