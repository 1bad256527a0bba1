"""A mount that is refused leaves the PC as it was: what only it knew, and what it may do without a network.

What it took from one store meanwhile is dropped from its index, and never the index itself: that says of old
segments, which no store keeps, that they were sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.retention import Policy
from mirrorfs.drivers.index_sqlite import SqliteIndex
from mirrorfs.engine import replay
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import ObjectKey
from tests.engine.test_kept_index import leave_orphan
from tests.engine.test_pruner import Diary
from tests.support.practice import Pc, Practice, names, names_in, save, with_bad_data, write_large
from tests.support.volumes import HEADER, KEYS

# Stores that are away, PCs that are overruled: what comes of it is judged here.
pytestmark = pytest.mark.expects_warnings(".*")
POLICY = Policy(every_moment=3, daily=10)
AWAY = "does not answer"


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


async def refused(practice: Practice, name: str = "one", diary: Diary | None = None) -> None:
    """A mount on a PC while store s3 is away, and another machine wrote last."""
    pc = pc_of(practice, name, diary)
    pc.cut_off("s3")
    said = await pc.refusal()
    assert AWAY in said or "--from-state" in said


def pc_of(practice: Practice, name: str, diary: Diary | None = None) -> Pc:
    """A PC, whose clock goes as that of the diary."""
    pc = practice.pc(name)
    if diary is not None:
        pc.clock.stepped_s = diary.pc.clock.stepped_s
    return pc


async def from_state(pc: Pc) -> list[bytes]:
    """What is in a state directory, as `restore --from-state` shows it."""
    recovered = await Recovery(
        pc.world.disk, pc.files, pc.world.offload, KEYS, load_public_key(HEADER.public_keys.writer),
        stores=pc.stores, follows=False,
    ).run()  # fmt: skip
    try:
        return names_in(recovered.index)
    finally:
        recovered.index.close()


class _Cut(Exception):
    pass


# --- a store that is away shows the right branch -----------------------------------------------


@pytest.mark.parametrize("has_stores", [False, True])
async def test_an_export_does_not_settle_what_was_refused(
    autojump_clock: MockClock, practice: Practice, has_stores: bool
) -> None:
    async with practice.pc("three").mounted() as volume:
        await save(volume, b"c")
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    await leave_orphan(practice, practice.pc("one"))
    await refused(practice, "three")
    three = practice.pc("three")
    three.cut_off()
    if not has_stores:
        three.stores = []
    assert await from_state(three) == [b"c"]
    async with practice.pc("three").mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"c", b"winner"]


@pytest.mark.parametrize("listed", [("home",), ("home", "s3")])
async def test_an_export_with_one_store(
    autojump_clock: MockClock, practice: Practice, listed: tuple[str, ...]
) -> None:
    """It fills gaps from what it is given, and leaves nothing of that behind."""
    for pc, name in (("one", b"a"), ("three", b"c"), ("one", b"d"), ("three", b"e")):
        async with practice.pc(pc).mounted() as volume:
            await save(volume, name)
    await leave_orphan(practice, practice.pc("three"))
    one = practice.pc("one")
    one.files.remove()
    one.cut_off("s3")
    one.stores = [one.links[name] for name in listed]
    assert {b"a", b"d"}.issubset(await from_state(one))
    async with practice.pc("one").mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"c", b"d", b"e", b"winner"]


@pytest.mark.parametrize(("is_lost", "count"), [(True, 1), (False, 1), (False, 2)])
async def test_a_pc_whose_log_has_gaps(
    autojump_clock: MockClock, practice: Practice, is_lost: bool, count: int
) -> None:
    """Where its index was lost, or not; each refused mount fills them from the store that has an orphan."""
    for pc, name in (("one", b"a"), ("three", b"c"), ("one", b"d"), ("three", b"e")):
        async with practice.pc(pc).mounted() as volume:
            await save(volume, name)
    await leave_orphan(practice, practice.pc("three"))
    if is_lost:
        practice.pc("one").files.remove()
    for _ in range(count):
        await refused(practice)
    async with practice.pc("one").mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"c", b"d", b"e", b"winner"]


async def test_a_store_lists_and_does_not_read(autojump_clock: MockClock, practice: Practice) -> None:
    """The orphan is followed by a part, and that is found only then."""
    async with practice.pc("three").mounted() as volume:
        await save(volume, b"c")
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    first, place = practice.pc("one"), practice.places["home"]
    first.cut_off("s3")
    before = set(place)
    async with first.mounted(wait=False) as volume:
        await save(volume, b"orphan")
        await trio.sleep(60)
        await write_large(volume, b"orphan too")
        await trio.sleep(60)
    last = max(key for key in set(place) - before if key.startswith("segments/"))
    two = practice.pc("two")
    two.cut_off("home")
    async with two.mounted(take_over=True, wait=False) as volume:
        await save(volume, b"winner")
        await trio.sleep(60)
    await trio.sleep(600)
    good = place[last]
    place[last] = with_bad_data(good)
    three = practice.pc("three")
    link = three.links["s3"]

    def failing(read: Callable[..., Awaitable[bytes]]) -> Any:
        async def fail(key: ObjectKey, **options: Any) -> bytes:
            if key.startswith("segments/"):
                raise StoreUnavailable("Store s3 did not answer in time.")
            return await read(key, **options)

        return fail

    link.get, link.get_range = failing(link.get), failing(link.get_range)  # type: ignore[method-assign]
    await three.refusal()
    place[last] = good
    async with practice.pc("three").mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"c", b"winner"]


# --- what no store keeps any more ----------------------------------------------------------------


async def days(diary: Diary, count: int, *, prune: bool) -> None:
    """Another PC works, day by day, and prunes."""
    for _ in range(count):
        async with diary.pc.mounted() as volume:
            volume.pruner.moments.zone = UTC
            volume.pruner.sweeper.grace_ns = 0
            await diary.day(volume)
            if prune:
                await volume.pruner.run(POLICY)


async def left_behind(practice: Practice) -> Diary:
    """PC "one" was not there for longer than anything is kept; all that it wrote was sent and let go of."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    async with practice.pc("two").mounted() as volume:
        volume.filesystem.unlink(1, b"a")
        await volume.filesystem.sync()
    diary = Diary(practice, 1)
    await days(diary, 16, prune=True)
    return diary


async def left_behind_with_unsent(practice: Practice) -> Diary:
    """PC "killed" has changes that no store ever got; it was overruled, and all since was let go of."""
    diary = Diary(practice, 1)
    await days(diary, 3, prune=False)
    async with pc_of(practice, "one", diary).mounted() as volume:
        await save(volume, b"mine")
    one = pc_of(practice, "one", diary)
    async with one.until_killed(wait=False) as volume:
        one.cut_off()
        await save(volume, b"unsent")
        await volume._local.quiesce()
        practice.copy(one, "killed")
    await trio.sleep(900)
    async with diary.pc.mounted(take_over=True):
        pass
    await trio.sleep(900)
    await days(diary, 12, prune=True)
    return diary


async def test_what_it_followed_long_ago_was_pruned(autojump_clock: MockClock, practice: Practice) -> None:
    """Its own segments are on the disk from the first on: without its index nothing leads to them."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    diary = Diary(practice, 1)
    for number in range(12):
        await days(diary, 1, prune=True)
        async with pc_of(practice, "one", diary).mounted() as volume:
            await save(volume, b"mine %d" % number)
    await days(diary, 1, prune=False)
    await refused(practice, "one", diary)
    async with pc_of(practice, "one", diary).mounted() as volume:
        assert b"mine 0" in names(volume)


@pytest.mark.parametrize("is_refused", [False, True])
async def test_away_for_longer_than_all_is_kept(
    autojump_clock: MockClock, practice: Practice, is_refused: bool
) -> None:
    """Only the index says that the last of its own segments was sent."""
    diary = await left_behind(practice)
    if is_refused:
        await refused(practice, "one", diary)
    async with pc_of(practice, "one", diary).mounted() as volume:
        assert names(volume)


@pytest.mark.parametrize("then", ["take over offline", "export", "export offline"])
async def test_away_for_long_and_refused(autojump_clock: MockClock, practice: Practice, then: str) -> None:
    """It has what it had: nothing is begun anew without a store that may have it otherwise."""
    async with practice.pc("two").mounted() as volume:
        await save(volume, b"b")
    diary = await left_behind(practice)
    await refused(practice, "one", diary)
    one = pc_of(practice, "one", diary)
    if "offline" in then:
        one.cut_off()
    if "export" in then:
        assert await from_state(one) == [b"a", b"b"]
        return
    async with one.mounted(take_over=True, wait=False) as volume:
        assert names(volume) == [b"a", b"b"]


@pytest.mark.parametrize("is_lost", [False, True])
async def test_unsent_changes_are_not_passed_over(
    autojump_clock: MockClock, practice: Practice, is_lost: bool
) -> None:
    """The log of the stores begins behind all that is on the disk; the index was lost, or not."""
    async with practice.pc("two").mounted() as volume:
        await save(volume, b"b")
    diary = await left_behind_with_unsent(practice)
    killed = pc_of(practice, "killed", diary)
    if is_lost:
        killed.files.remove()
    assert "may be in no store" in await killed.refusal()


@pytest.mark.parametrize("error", [None, StoreUnavailable("Store s3 cannot be reached.")])
async def test_beginning_anew_is_broken_off(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """The index that told that nothing was unsent is gone then, and the new one not there yet."""
    diary = await left_behind(practice)

    async def cut(self: Planner, end: replay.ReplayEnd) -> str | None:
        raise error or _Cut

    with monkeypatch.context() as patched:
        patched.setattr(Planner, "_unreached", cut)
        try:
            async with pc_of(practice, "one", diary).mounted():
                pytest.fail("mounted")
        except* (_Cut, StoreUnavailable):
            pass
    async with pc_of(practice, "one", diary).mounted() as volume:
        shown = names(volume)
        await save(volume, b"since")
    async with pc_of(practice, "one", diary).mounted() as volume:
        assert names(volume) == sorted([*shown, b"since"])


async def test_begun_anew_from_the_wrong_branch(autojump_clock: MockClock, practice: Practice) -> None:
    """A PC that was away for long is mounted with the one store that shows it, and refused."""
    diary = await left_behind(practice)
    first = pc_of(practice, "three", diary)
    first.cut_off("s3")
    async with first.mounted(take_over=True, wait=False) as volume:
        await save(volume, b"orphan")
        await trio.sleep(60)
    for number in range(2):
        two = pc_of(practice, "two", diary)
        two.cut_off("home")
        async with two.mounted(take_over=True, wait=False) as volume:
            await save(volume, b"winner %d" % number)
            await trio.sleep(60)
    await trio.sleep(600)
    await refused(practice, "one", diary)
    async with pc_of(practice, "one", diary).mounted(take_over=True) as volume:
        assert b"winner 1" in names(volume) and b"orphan" not in names(volume)


async def test_unsent_changes_can_be_exported(autojump_clock: MockClock, practice: Practice) -> None:
    """As the refusal says that they can."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    diary = await left_behind_with_unsent(practice)
    await refused(practice, "killed", diary)
    assert b"unsent" in await from_state(pc_of(practice, "killed", diary))


# --- the index's own move ------------------------------------------------------------------------


@pytest.mark.parametrize("is_away", [False, True])
async def test_pages_that_are_moved_are_not_doubted(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    """A move that is cut is completed from the write-ahead log, which must not be dropped then."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    async with practice.pc("two").mounted() as volume:
        await save(volume, b"b")
    one = practice.pc("one")
    if is_away:
        one.cut_off("s3")
    moved = 0
    backfill, finish = SqliteIndex.backfill, SqliteIndex.finish_backfill

    def check(index: SqliteIndex) -> None:
        nonlocal moved
        if index._path.startswith(str(one.root)) and index.wal_bytes():
            moved += 1
            assert not one.files.is_doubted()

    def checked_backfill(self: SqliteIndex) -> None:
        check(self)
        backfill(self)

    def checked_finish(self: SqliteIndex) -> None:
        check(self)
        finish(self)

    monkeypatch.setattr(SqliteIndex, "backfill", checked_backfill)
    monkeypatch.setattr(SqliteIndex, "finish_backfill", checked_finish)
    async with one.mounted(take_over=is_away, wait=False) as volume:
        assert names(volume) == [b"a", b"b"] and moved


# --- without a network ---------------------------------------------------------------------------


async def test_a_rebuild_is_broken_off(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index was lost; the local log has all, so that no store is needed the next time either."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    one = practice.pc("one")
    one.files.remove()
    one.cut_off()

    async def cut(self: replay.Replayer, *, keep_tail: bool) -> replay.ReplayEnd:
        raise _Cut

    with monkeypatch.context() as patched:
        patched.setattr(replay.Replayer, "run", cut)
        try:
            async with one.mounted():
                pytest.fail("mounted")
        except* _Cut:
            pass
    one = practice.copy(one, "one again")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        assert names(volume) == [b"a"]


async def test_a_refused_mount_and_then_none_answers(autojump_clock: MockClock, practice: Practice) -> None:
    """Who is told to go on all the same does so from what it had."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    async with practice.pc("two").mounted() as volume:
        await save(volume, b"b")
    await refused(practice)
    one = practice.pc("one")
    one.cut_off()
    async with one.mounted(take_over=True, wait=False) as volume:
        assert names(volume) == [b"a"]
