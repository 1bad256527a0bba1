"""How one machine's log stands to what a store holds: gone on from, overtaken, put back, or an orphan."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from mirrorfs.core.held import HeldKeys
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.branches import Branches
from mirrorfs.engine.known_held import known_held
from mirrorfs.engine.standing import NOBODY, Known, Standing, first_unsent
from mirrorfs.errors import ChainError, InUseError
from mirrorfs.format.ids import SegmentId
from mirrorfs.ports import Index, Store
from tests.support.made_up_log import MadeUpLog, writer_of
from tests.support.segment_bytes import PUBLIC
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS, LEASE

HOME, S3 = "20" * 16, "21" * 16
OVERTAKEN = "went on from an earlier state"
MAY_BE_OVERTAKEN = "may have gone on from an earlier state"
PUT_BACK = "put back in time"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = SqliteIndexFiles(str(tmp_path / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key).open()
    yield index
    index.close()


async def standing(
    log: MadeUpLog,
    index: Index,
    ours: Sequence[SegmentId],
    *,
    first: int = 0,
    may_leave: Collection[SegmentId] | None = None,
    more: Sequence[Store] = (),
) -> Standing:
    """Of a machine whose log is `ours`; `more` stores than the log's own."""
    for segment in ours:
        index.put_segment(log.rows[segment])
    return Standing(
        index,
        await log.segments(*more),
        KEYS,
        PUBLIC,
        first=first,
        may_leave=may_leave,
        held=dict(zip(("home", "s3"), await held_by(index, HOME, S3), strict=True)),
    )


async def held_by(index: Index, *instances: str) -> list[HeldKeys]:
    return [await known_held(index, instance) for instance in instances]


def known(epoch: int) -> Known:
    return Known(1, epoch, -1, writer_of(epoch))


def at(segment: SegmentId) -> Known:
    """What is known of a machine whose last segment that a store has is this one."""
    return Known(1, segment.epoch, segment.sequence, segment.writer)


@pytest.mark.parametrize(
    ("epoch", "writer", "has"),
    [(4, 4, True), (5, 5, True), (5, 9, False), (6, 6, False), (6, 5, False)],
)
def test_whose_changes_are_known(epoch: int, writer: int, has: bool) -> None:
    """Earlier epochs are behind us; of our own epoch one writer is, and another is a fork."""
    lease = replace(LEASE, epoch=epoch, writer=writer_of(writer))
    assert known(5).has(lease) is has


async def test_the_first_segment_that_is_not_everywhere(autojump_clock: MockClock, index: Index) -> None:
    log = MadeUpLog()
    ours = [log.add(sequence, 1) for sequence in range(4)]
    assert await first_unsent(index, await held_by(index, HOME, S3)) == 0
    for segment in ours:
        index.put_segment(log.rows[segment])
        index.put_held(HOME, log.key(segment))
    assert await first_unsent(index, await held_by(index, HOME)) == 4
    assert await first_unsent(index, await held_by(index, HOME, S3)) == 0
    index.put_held(S3, log.key(ours[0]))
    index.put_held(S3, log.key(ours[2]))
    assert await first_unsent(index, await held_by(index, HOME, S3)) == 1
    assert await first_unsent(index, await held_by(index)) == 4


async def test_known_is_what_reached_a_store(autojump_clock: MockClock, index: Index) -> None:
    """Epochs that were counted up without a network say nothing."""
    log = MadeUpLog()
    root = log.add(0, 1)
    second = log.add(1, 2, root, sent=False)
    third = log.add(2, 9, second, sent=False)
    it = await standing(log, index, [root, second, third])
    assert await it.known([], own=[]) == at(root)
    index.put_held(S3, log.key(second))
    it = await standing(log, index, [])
    assert await it.known([], own=[]) == at(second), (
        "also what a store that was not looked at is known to hold"
    )
    it = await standing(log, index, [], first=2)
    assert await it.known([], own=[]) == at(second), "what is before the first unsent one is in the stores"


async def test_our_own_leases_are_known(autojump_clock: MockClock, index: Index) -> None:
    log = MadeUpLog()
    it = await standing(log, index, [log.add(0, 1)])
    mine, other = (replace(LEASE, epoch=epoch, writer=writer_of(epoch)) for epoch in (4, 7))
    assert await it.known([mine, other], own=[writer_of(4)]) == known(4)


async def test_an_empty_log(autojump_clock: MockClock, index: Index) -> None:
    it = await standing(MadeUpLog(), index, [])
    assert await it.known([], own=[]) == NOBODY
    await it.check(NOBODY)


@pytest.mark.parametrize("epoch", [2, 9])
async def test_overtaken(autojump_clock: MockClock, index: Index, epoch: int) -> None:
    """However high the epoch of our own unsent end was counted."""
    log = MadeUpLog()
    root = log.add(0, 1)
    ours = log.add(1, epoch, root, sent=False)
    log.add(1, 3, root)
    it = await standing(log, index, [root, ours])
    with pytest.raises(ChainError, match=OVERTAKEN):
        await it.check(await it.known([], own=[]))


@pytest.mark.expects_warnings("was left by a crash")
async def test_what_a_crash_left_overtakes_nobody(autojump_clock: MockClock, index: Index) -> None:
    """No reader follows it, neither before we wrote anything nor later; with a next segment they do."""
    log = MadeUpLog()
    root = log.add(0, 1)
    left = log.add(1, 2, root, crashed=True)
    it = await standing(log, index, [root])
    await it.check(at(root))
    ours = log.add(1, 9, root, sent=False)
    it = await standing(log, index, [ours])
    await it.check(at(root))
    log.add(2, 2, left)
    it = await standing(log, index, [])
    with pytest.raises(ChainError, match=OVERTAKEN):
        await it.check(at(root))


@pytest.mark.expects_warnings("was left by a crash")
@pytest.mark.parametrize("sequence", [0, 1])
async def test_what_a_crash_left_may_be_vouched_for(
    autojump_clock: MockClock, index: Index, sequence: int
) -> None:
    """Where not all heads can be read, only what was left behind before may be left behind."""
    log = MadeUpLog()
    root = log.add(0, 1) if sequence else None
    left = log.add(sequence, 2, root, crashed=True)
    ours = log.add(sequence, 9, root, sent=False)
    before = NOBODY if root is None else at(root)
    if root is not None:
        it = await standing(log, index, [root], may_leave=())
        with pytest.raises(InUseError, match="not all heads"):
            await it.check(before)
    it = await standing(log, index, [ours], may_leave=())
    with pytest.raises(ChainError, match=MAY_BE_OVERTAKEN):
        await it.check(before)
    assert not it.left
    for may_leave in (None, {left}):
        it = await standing(log, index, [], may_leave=may_leave)
        await it.check(before)
        assert it.left == {left}


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_copy_that_lost_its_end(autojump_clock: MockClock, index: Index, is_first: bool) -> None:
    """Cut between two frames it looks like what a crash left; the other copy shows that it was closed."""
    log = MadeUpLog()
    root = log.add(0, 1)
    other = log.add(1, 2, root)
    cut = MadeUpLog()
    cut.add(1, 2, cut.add(0, 1), crashed=True)
    s3 = MemoryStore("s3", dict(log.store.objects))
    (log.store if is_first else s3).objects[log.key(other)] = cut.store.objects[cut.key(other)]
    it = await standing(log, index, [root, log.add(1, 9, root, sent=False)], more=[s3])
    with pytest.raises(ChainError, match=OVERTAKEN):
        await it.check(at(root))


async def test_overtaken_from_the_very_beginning(autojump_clock: MockClock, index: Index) -> None:
    log = MadeUpLog()
    ours = log.add(0, 1, sent=False)
    log.add(0, 2)
    it = await standing(log, index, [ours])
    with pytest.raises(ChainError, match=OVERTAKEN):
        await it.check(await it.known([], own=[]))


async def test_a_machine_that_goes_on_from_our_end_just_now(autojump_clock: MockClock, index: Index) -> None:
    """It came after our log was read, and has all that we have: nothing of ours is an earlier state."""
    log = MadeUpLog()
    root = log.add(0, 1)
    log.add(2, 3, log.add(1, 3, root))
    it = await standing(log, index, [root])
    await it.check(known(4))
    for before in (at(root), NOBODY):
        with pytest.raises(InUseError, match="just now"):
            await it.check(before)


async def test_an_orphan_is_no_fault(autojump_clock: MockClock, index: Index) -> None:
    """A writer that was fenced sent its end; ours is later, and has reached a store."""
    log = MadeUpLog()
    root = log.add(0, 1)
    orphan = log.add(1, 2, root)
    log.add(2, 2, orphan)
    ours = log.add(1, 3, root)
    it = await standing(log, index, [root, ours])
    assert await it.known([], own=[]) == at(ours)
    await it.check(known(3))
    with pytest.raises(ChainError, match=OVERTAKEN):
        await it.check(known(1))


@pytest.mark.parametrize(
    ("theirs", "writer", "is_overtaken"),
    [(1, b"writer00", False), (1, b"writer99", True), (2, b"writer00", True)],
    ids=["a lesser id", "a greater id", "a longer log"],
)
async def test_two_writers_of_one_epoch(
    autojump_clock: MockClock, index: Index, theirs: int, writer: bytes, is_overtaken: bool
) -> None:
    """Two that could not see each other: the one that readers follow may write, and nobody else."""
    log = MadeUpLog()
    root = log.add(0, 1)
    ours = log.add(1, 3, root)
    other = log.add(1, 3, root, writer=writer)
    if theirs > 1:
        log.add(2, 3, other, writer=writer)
    it = await standing(log, index, [root, ours])
    known = await it.known([], own=[])
    assert known == at(ours)
    order = await Branches(await log.segments(), KEYS, PUBLIC).order([ours, other])
    assert order[0] == (other if is_overtaken else ours), "readers see it the same way"
    if is_overtaken:
        with pytest.raises(ChainError, match=OVERTAKEN):
            await it.check(known)
    else:
        await it.check(known)


async def test_what_continues_an_orphan_is_none_of_ours(autojump_clock: MockClock, index: Index) -> None:
    log = MadeUpLog()
    root = log.add(0, 1)
    ours = log.add(1, 3, root)
    second = log.add(2, 3, ours)
    orphan = log.add(1, 2, root)
    log.add(2, 4, orphan)  # parts at 1, not at 2
    it = await standing(log, index, [root, ours, second], first=2)
    await it.check(known(3))


@pytest.mark.parametrize("place", [1, 2])
async def test_put_back(autojump_clock: MockClock, index: Index, place: int) -> None:
    """The stores go on from another state of a segment of ours, the last or one on the way."""
    log = MadeUpLog()
    root = log.add(0, 1)
    ours = [root]
    if place == 1:
        ours.append(log.add(1, 9, root))
    else:
        second = log.add(1, 1, root)
        ours.append(second)
    log.add(place, 2, ours[place - 1], state=64)
    it = await standing(log, index, ours)
    with pytest.raises(ChainError, match=PUT_BACK):
        await it.check(known(9))


async def test_where_old_segments_were_collected(autojump_clock: MockClock, index: Index) -> None:
    """The one before is not known then: a branch that ends later has overtaken us all the same."""
    log = MadeUpLog()
    ours = [log.add(0, 1)]
    for sequence in range(1, 6):
        ours.append(log.add(sequence, 3, ours[-1]))
    it = await standing(log, index, ours[3:], first=3)
    await it.check(at(ours[-1]))
    log.add(3, 2, log.add(2, 2, ours[1]))
    it = await standing(log, index, ours[3:], first=3)
    await it.check(at(ours[-1]))
    log.add(3, 4, ours[2])
    it = await standing(log, index, ours[3:], first=3)
    with pytest.raises(ChainError, match=OVERTAKEN):
        await it.check(at(ours[-1]))
