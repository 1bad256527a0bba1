"""Two ends of one log: of the volume's it is always clear which, and of the other nothing is removed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine import checkpointer, lease_documents
from mirrorfs.engine.heads import newest_head
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.lease_taker import RELEASE_S
from mirrorfs.engine.mend_turns import AGAIN_S
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.scrub import DEEP, SIZES
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ReadOnlyVolume as ReadOnly
from mirrorfs.format.control import LEASE_KEY, open_lease
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Store
from tests.sim.world import InlineOffload
from tests.support.machine import write_file
from tests.support.practice import FORKED, SAID, Pc, Practice, fenced, names, names_in, save, seen_by_a_new_pc
from tests.support.store_simulated import NO_FAULTS, Faults
from tests.support.volumes import HEADER, KEYS

FOLLOWED = "Another machine wrote since"
ENDED = "holds the end of a writer that was fenced"


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


# --- a state directory that was put back -----------------------------------------------------


async def backed_up(practice: Practice, *, head: bool) -> dict[str, dict[str, bytes]]:
    """A PC whose state was copied inside a segment, and that went on. Returns the stores' objects."""
    pc = practice.pc("one")
    pc.mirror_delay_s = 2.0
    async with pc.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        await save(volume, b"b")
        practice.copy(pc, "back-up")
        for name in (b"c", b"d"):
            await save(volume, name)
            await trio.sleep(10)  # closed by its age, and sent
        assert [one.pending_count for one in volume.status().stores] == [0, 0]
        if head:
            await volume.flush()
    return practice.objects()


@pytest.mark.expects_warnings("The local log ends earlier than in store", FOLLOWED)
@pytest.mark.parametrize("head", [False, True])
async def test_a_state_put_back_goes_on_from_the_stores(
    autojump_clock: MockClock, practice: Practice, head: bool
) -> None:
    """The back-up ends inside a segment that the stores have to its end: that is gone on from."""
    before = await backed_up(practice, head=head)
    pc = practice.pc("back-up")
    async with pc.mounted() as volume:
        assert names(volume) == [b"a", b"b", b"c", b"d"]
        await save(volume, b"e")
    assert practice.lost(before) == []
    assert await seen_by_a_new_pc(practice) == [b"a", b"b", b"c", b"d", b"e"]


@pytest.mark.expects_warnings(*SAID, *FORKED)
@pytest.mark.parametrize("head", [False, True])
async def test_a_state_put_back_without_stores_is_fenced(
    autojump_clock: MockClock, practice: Practice, head: bool
) -> None:
    """With no store to ask it cannot know; when they answer nothing of theirs is changed, nothing sent."""
    before = await backed_up(practice, head=head)
    pc = practice.pc("back-up")
    pc.cut_off()
    async with pc.until_killed() as volume:
        assert names(volume) == [b"a", b"b"]
        await save(volume, b"other")
        pc.reconnect()
        await fenced(volume)
        await trio.sleep(600)
        assert practice.objects() == before
    await trio.sleep(LEASE_PERIOD_S)
    assert await seen_by_a_new_pc(practice) == [b"a", b"b", b"c", b"d"]


# --- a PC that comes back --------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED)
async def test_mounted_without_stores_while_another_wrote(
    autojump_clock: MockClock, practice: Practice
) -> None:
    """Each mount without a network counts the epoch up, past that of the PC whose changes the stores have."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with two.mounted() as volume:
        await save(volume, b"a week of work")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline 1")
    before = practice.objects()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline 2")
        one.reconnect()
        await fenced(volume)
        assert practice.objects() == before
    assert await seen_by_a_new_pc(practice) == [b"a", b"a week of work"]
    async with two.mounted() as volume:
        assert names(volume) == [b"a", b"a week of work"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED)
async def test_fenced_then_mounted_without_stores(autojump_clock: MockClock, practice: Practice) -> None:
    """A PC that was taken over does not become the writer again by being mounted where it reaches nothing."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted(wait=False) as first:
        await save(first, b"a")
        await first.flush()
        async with two.mounted(take_over=True) as volume:
            await save(volume, b"by two")
            await fenced(first)
    one.cut_off()
    for name in (b"late 1", b"late 2"):
        async with one.mounted(wait=False) as volume:
            await save(volume, name)
    before = practice.objects()
    async with one.mounted(wait=False) as volume:
        one.reconnect()
        await fenced(volume)
        assert practice.objects() == before
    for _ in range(2):
        assert await seen_by_a_new_pc(practice) == [b"a", b"by two"]


# --- what a crash left -----------------------------------------------------------------------


async def crashed(practice: Practice) -> Pc:
    """A PC after a crash in the midst of a segment, of which the stores have nothing."""
    one = practice.pc("one")
    async with one.until_killed(wait=False) as volume:
        await save(volume, b"a")
        await volume.flush()
        one.cut_off()
        await save(volume, b"b")
        return practice.copy(one, "one again")


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED)
async def test_what_a_crash_left_is_vouched_for_at_once(
    autojump_clock: MockClock, practice: Practice
) -> None:
    """The segment has no trailer: were the PC lost before it writes on, nobody could use it."""
    again = await crashed(practice)
    async with again.until_killed(wait=False) as volume:
        await trio.sleep(10)
        assert not any(state.pending_count for state in volume.status().stores)
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"b"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "was left by a crash")
@pytest.mark.parametrize("knew", [False, True])
async def test_what_a_crash_left_keeps_nobody_out(
    autojump_clock: MockClock, practice: Practice, knew: bool
) -> None:
    """Without a head it is no part of the log; who takes over goes on before it."""
    two = practice.pc("two")
    if knew:
        async with two.mounted() as volume:
            assert names(volume) == []
    again = await crashed(practice)
    async with again.until_killed(wait=False) as volume:
        await trio.sleep(10)
        epoch = f"-{volume._local.identity.epoch:08x}-"
    for place in practice.places.values():
        for key in [key for key in place if epoch in key]:
            del place[key]
    async with two.mounted(take_over=True) as volume:
        assert names(volume) == [b"a"]
        await save(volume, b"c")
    assert await seen_by_a_new_pc(practice) == [b"a", b"c"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "was left by a crash", "does not verify")
async def test_what_a_crash_left_overtakes_nobody(autojump_clock: MockClock, practice: Practice) -> None:
    """Who takes over without any lease is judged anew when there are some: what it left behind stays so."""
    again = await crashed(practice)
    async with again.until_killed(wait=False) as volume:
        await trio.sleep(10)
        epoch = f"-{volume._local.identity.epoch:08x}-"
    for name, place in practice.places.items():
        for key in [key for key in place if epoch in key]:
            del place[key]
        harm_lease(practice, name, "rotten", {})
    two = practice.new_pc()
    async with two.mounted(take_over=True) as volume:
        assert names(volume) == [b"a"]
        await save(volume, b"c")
        await trio.sleep(300)
        assert volume.status().fenced is None
        assert not any(state.pending_count for state in volume.status().stores)
    assert await seen_by_a_new_pc(practice) == [b"a", b"c"]


# --- judged once -----------------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED)
async def test_a_take_over_over_a_slow_line(autojump_clock: MockClock, practice: Practice) -> None:
    """The log grows meanwhile, and reading it takes longer than any store is waited for."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with two.mounted() as volume:
        await save(volume, b"b")
    for link in two.links.values():
        link.faults = Faults(latency_min_s=2.5, latency_max_s=3.0)

    async def write(volume: MountedVolume) -> None:
        """Directories and links: what counts twice is seen by their numbers."""
        filesystem = volume.filesystem
        for number in count():
            try:
                filesystem.create(1, b"d%d" % number, mode=0o40755, uid=0, gid=0, umask=0)
                made = filesystem.create(1, b"f%d" % number, mode=0o100644, uid=0, gid=0, umask=0)
                filesystem.link(made.inode, 1, b"hard%d" % number)
                await volume.flush()
            except ReadOnly:
                return
            await trio.sleep(2)

    async with one.mounted(wait=False) as volume, trio.open_nursery() as nursery:
        nursery.start_soon(write, volume)
        async with two.mounted(wait=False, take_over=True) as second:
            found = second.filesystem
            directories = [name for name in names(second) if name.startswith(b"d")]
            assert len(directories) > 20
            assert found.getattr(1).nlink == 2 + len(directories)
            for name in names(second):
                if name.startswith(b"f"):
                    assert found.getattr(found.lookup(1, name).inode).nlink == 2
        nursery.cancel_scope.cancel()


# --- a disk that travels ---------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED)
@pytest.mark.parametrize("trips", [1, 2, 3])
async def test_what_only_a_rotating_disk_has_overrules_nothing(
    autojump_clock: MockClock, practice: Practice, trips: int
) -> None:
    """A PC travels with it and mounts there, however often; meanwhile another one works at home."""
    one, two = practice.pc("one"), practice.pc("two")
    one.rotating = two.rotating = frozenset({"s3"})
    for pc, name in ((one, b"a"), (two, b"b"), (one, b"c")):
        async with pc.mounted() as volume:
            await save(volume, name)
    one.cut_off("home")
    for number in range(trips):
        async with one.mounted(wait=False) as volume:
            await save(volume, b"travel %d" % number)
            await trio.sleep(60)
    two.cut_off("s3")
    async with two.mounted() as volume:
        await save(volume, b"a week of work")
        await volume.flush()
    one.reconnect()
    assert "--from-state" in await one.refusal()
    two.reconnect()
    async with two.mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"a week of work", b"b", b"c"]


# --- a take-over, and then --------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "old lease")
@pytest.mark.parametrize("lost_s", [30, 41, 50, 58])
async def test_a_take_over_whose_leases_are_lost(
    autojump_clock: MockClock, practice: Practice, lost_s: float
) -> None:
    """The displaced PC was away, and finds no lease: nothing is safe there before it is sure."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted(wait=False) as first, trio.open_nursery() as nursery:
        await save(first, b"common")
        await first.flush()
        await trio.sleep(100)
        one.cut_off()

        async def lose() -> None:
            await trio.sleep(lost_s)
            for place in practice.places.values():
                del place[LEASE_KEY]
            one.reconnect()

        nursery.start_soon(lose)
        async with two.mounted(take_over=True, wait=False) as second:
            with trio.move_on_after(20) as told_first:
                await save(first, b"by one")
                await first.flush()
            with trio.move_on_after(120) as told_second:
                await save(second, b"by two")
                await second.flush()
            assert told_first.cancelled_caught or told_second.cancelled_caught
            await trio.sleep(300)
            assert (first.status().fenced is None) != (second.status().fenced is None)


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED, "does not verify")
async def test_a_late_take_over_and_a_crash(autojump_clock: MockClock, practice: Practice) -> None:
    """Its leases are in the stores, but it never read what the displaced PC was told is safe meanwhile."""
    one, two = practice.pc("one"), practice.pc("two")
    one.mirror_delay_s = 3600.0
    async with one.mounted(wait=False) as first:
        await save(first, b"a")
        await first.flush()
        for store in practice.places:
            harm_lease(practice, store, "rotten", {})
        async with two.until_killed(take_over=True, wait=False) as second:
            await save(second, b"by two")
            for _ in range(1200):
                if any(one.lease._lease is not None for one in second._stores):
                    break
                await trio.sleep(0.1)
            await save(first, b"told safe")
            with trio.fail_after(20):
                await first.flush()
            two = practice.copy(two, "two again")
    assert "--from-state" in await two.refusal()
    async with practice.pc("three").mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"told safe"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "is lost")
@pytest.mark.parametrize("are_lost", [False, True])
async def test_what_is_told_safe_while_it_is_displaced(
    autojump_clock: MockClock, practice: Practice, are_lost: bool
) -> None:
    """It is not left behind for what only the PC has that takes over, which could not know of it before."""
    again = await crashed(practice)
    async with practice.pc("two").mounted(wait=False) as second, trio.open_nursery() as nursery:

        async def tell() -> None:
            await trio.sleep(5)
            await save(second, b"told safe")
            with trio.fail_after(20):
                await second.flush()
            if are_lost:
                for place in practice.places.values():
                    del place[LEASE_KEY]

        nursery.start_soon(tell)
        assert "--from-state" in await again.refusal(take_over=True)
    assert await seen_by_a_new_pc(practice) == [b"a", b"told safe"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED)
async def test_a_take_over_that_is_broken_off(autojump_clock: MockClock, practice: Practice) -> None:
    """While the displaced PC is given notice: nobody misses changes that were never made."""
    one, two = practice.pc("one"), practice.pc("two")
    async with two.mounted() as volume:
        await save(volume, b"0")
    async with one.mounted(wait=False) as first:
        await save(first, b"a")
        await first.flush()
        with trio.move_on_after(30):
            async with two.mounted(take_over=True):
                pytest.fail("it waits a minute")
        await trio.sleep(LEASE_PERIOD_S)
    async with practice.pc("three").mounted() as volume:
        assert names(volume) == [b"0", b"a"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "does not verify")
@pytest.mark.parametrize("harm", ["none", "rot"])
async def test_a_head_helps_a_pc_with_an_older_state(
    autojump_clock: MockClock, practice: Practice, harm: str
) -> None:
    """It says how the last segment was: one that a crash left, or one with a bad frame in every store."""
    two = practice.pc("two")
    async with two.mounted():
        pass
    if harm == "none":
        again = await crashed(practice)
        again.mirror_delay_s = 60.0
        async with again.until_killed() as volume:
            await trio.sleep(20)
    else:
        async with practice.pc("one").until_killed() as volume:
            await write_file(volume, b"b", random.Random(1).randbytes(50_000))
            await volume.flush()
        for place in practice.places.values():
            key = max(key for key in place if key.startswith("segments/") and len(place[key]) > 50_000)
            place[key] = place[key][:2000] + bytes([place[key][2000] ^ 1]) + place[key][2001:]
    async with two.mounted(take_over=True, wait=False) as volume:
        assert b"b" in names(volume)


# --- damage at the end ---------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "does not verify", "Mended|mended", "is damaged")
@pytest.mark.parametrize("is_new", [True, False])
async def test_nobody_vouches_for_damage(autojump_clock: MockClock, practice: Practice, is_new: bool) -> None:
    """One bit of a file in the last segment, and the good copy away: who wrote on would attest that bit."""
    one, two = practice.pc("one"), practice.pc("two")
    if not is_new:
        async with two.mounted() as volume:
            await save(volume, b"a")
    async with one.until_killed() as volume:
        await write_file(volume, b"scan", random.Random(1).randbytes(50_000))
        await trio.sleep(60)
        assert [state.pending_count for state in volume.status().stores] == [0, 0]
    key = max(key for key in practice.places["home"] if key.startswith("segments/"))
    data = bytearray(practice.places["home"][key])
    data[2000] ^= 1
    practice.places["home"][key] = bytes(data)
    two.cut_off("s3")
    for _ in range(2):
        assert ("not whole" if is_new else "did not answer") in await two.refusal(take_over=True)
    two.reconnect()
    async with two.mounted(take_over=True) as volume:
        assert b"scan" in names(volume)
        await save(volume, b"b")
        await volume.flush()
        report = await volume.scrubber.run(DEEP, restart=True)
        assert set((await volume.mender.mend(report.bad)).values()) <= {None}
        assert not (await volume.scrubber.run(DEEP, restart=True)).bad
    assert practice.places["home"][key] == practice.places["s3"][key]


# --- two that could not see each other -------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED)
@pytest.mark.parametrize("more", ["one", "two"])
async def test_two_writers_of_one_epoch(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """Each had one store. A new PC follows the longer log, and may write; the PC with the other may not."""
    monkeypatch.setattr(lease_documents, "BLIND_STEP", 1)
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    two.cut_off("home")
    one.cut_off("s3")
    epochs = []
    for pc, name, take_over in ((two, "two", True), (one, "one", False)):
        async with pc.mounted(take_over=take_over, wait=False) as volume:
            epochs.append(volume._local.identity.epoch)
            for number in range(4 if name == more else 2):
                await save(volume, b"%s %d" % (name.encode(), number))
                await trio.sleep(60)
    assert epochs[0] == epochs[1]
    assert all(any(key.startswith("segments/") for key in place) for place in practice.places.values())
    three = practice.pc("three")
    async with three.mounted(take_over=True) as volume:
        assert names(volume) == [b"a", *(b"%s %d" % (more.encode(), number) for number in range(4))]
        await save(volume, b"by three")
        await volume.flush()
    one.reconnect()
    two.reconnect()
    loser, winner = (two, one) if more == "one" else (one, two)
    assert "--from-state" in await loser.refusal()
    async with winner.mounted() as volume:
        assert b"by three" in names(volume)


def harm_lease(practice: Practice, store: str, how: str, old: dict[str, bytes]) -> None:
    """Make a store's lease worthless."""
    place = practice.places[store]
    match how:
        case "rotten":
            place[LEASE_KEY] = bytes(9) + place[LEASE_KEY][9:]
        case "gone":
            del place[LEASE_KEY]
        case "old":
            place[LEASE_KEY] = old[store]


@pytest.mark.expects_warnings(*SAID, FOLLOWED, "does not verify", "is lost", "old lease", "written anew")
@pytest.mark.parametrize(
    "harm", [("rotten", "rotten"), ("gone", "gone"), ("rotten", "old"), ("gone", "old"), ("old", "old")]
)
@pytest.mark.parametrize("is_alive", [True, False])
async def test_both_leases_are_lost(
    autojump_clock: MockClock, practice: Practice, harm: tuple[str, str], is_alive: bool
) -> None:
    """Then a second PC looks whether the writer puts them back before it takes them, and is refused."""
    one, two = practice.pc("one"), practice.pc("two")
    async with two.mounted() as volume:
        await save(volume, b"a")
    old = {store: place[LEASE_KEY] for store, place in practice.places.items()}
    async with one.until_killed(wait=False) as first:
        await save(first, b"b")
        await first.flush()
        if is_alive:
            for (store, _), how in zip(practice.places.items(), harm, strict=True):
                harm_lease(practice, store, how, old)
            assert "is in use" in await two.refusal()
            await save(first, b"c")
            await first.flush()
            assert first.status().fenced is None
    for (store, _), how in zip(practice.places.items(), harm, strict=True):
        harm_lease(practice, store, how, old)
    began_s = trio.current_time()
    async with two.mounted() as volume:
        assert LEASE_PERIOD_S <= trio.current_time() - began_s <= 4 * LEASE_PERIOD_S
        assert names(volume) == ([b"a", b"b", b"c"] if is_alive else [b"a", b"b"])
        await save(volume, b"d")


# --- what a fenced writer left behind --------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED)
async def test_heads_of_a_fenced_writer(autojump_clock: MockClock, practice: Practice) -> None:
    """In one store their counters are higher than the successor's; that misleads no new PC."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with one.until_killed() as volume:
        one.cut_off("home")
        for number in range(12):
            await save(volume, b"orphan %d" % number)
            with trio.move_on_after(60):
                await volume.flush()
        heads = [key for key in practice.places["s3"] if key.startswith("heads/")]
        assert len(heads) > 10
        two.cut_off("s3")
        async with two.mounted(wait=False, take_over=True) as second:
            await save(second, b"by two 1")
    two.reconnect()
    await trio.sleep(LEASE_PERIOD_S)
    async with two.mounted() as volume:
        await save(volume, b"by two 2")
    three = practice.pc("three")
    three.cut_off("home")
    async with three.mounted(take_over=True, wait=False) as volume:
        assert names(volume) == [b"a", b"by two 1", b"by two 2"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, ENDED)
async def test_the_only_head_is_of_a_fenced_writer(
    autojump_clock: MockClock, practice: Practice, tmp_path: Path
) -> None:
    """It misses nothing in what readers follow. Their log's first head goes above it, and names it."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.until_killed() as volume:
        await save(volume, b"a")
        await trio.sleep(60)
    one = practice.copy(one, "one again")
    one.cut_off("home")
    async with one.until_killed() as volume:
        await save(volume, b"orphan")
        with trio.move_on_after(60):
            await volume.flush()
    two.cut_off("s3")
    async with two.until_killed(take_over=True) as volume:
        await save(volume, b"by two 1")
        await trio.sleep(60)
    heads = {store: [key for key in place if "heads/" in key] for store, place in practice.places.items()}
    assert (heads["home"], len(heads["s3"])) == ([], 1)
    assert await restored(practice.pc("restore").stores, tmp_path) == [b"a", b"by two 1"]
    two = practice.copy(two, "two again")
    async with two.mounted() as volume:
        await save(volume, b"by two 2")
        await volume.flush()
        assert volume.status().fatal is None
    assert await seen_by_a_new_pc(practice) == [b"a", b"by two 1", b"by two 2"]


@pytest.mark.expects_warnings(
    *SAID,
    *FORKED,
    FOLLOWED,
    ENDED,
    "A checkpoint is of a writer that was fenced",
    "checkpoint cannot be used",
)
@pytest.mark.parametrize("has_newer", [False, True])
async def test_checkpoints_of_a_fenced_writer(
    autojump_clock: MockClock,
    practice: Practice,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    has_newer: bool,
) -> None:
    """They are on a branch that nobody follows: restore, views, a new PC pass them over, newest or not."""
    monkeypatch.setattr(checkpointer, "JOURNAL_MIN_BYTES", 10)
    monkeypatch.setattr(checkpointer, "SEGMENTS_MAX", 0)
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with one.until_killed() as volume:
        one.cut_off("home")
        for number in range(6):
            await save(volume, b"orphan %d" % number)
            with trio.move_on_after(60):
                await volume.flush()
        if not has_newer:
            monkeypatch.setattr(checkpointer, "JOURNAL_MIN_BYTES", 1 << 40)
            monkeypatch.setattr(checkpointer, "SEGMENTS_MAX", 1000)
        two.cut_off("s3")
        async with two.mounted(wait=False, take_over=True) as second:
            await save(second, b"by two 1")
    two.reconnect()
    await trio.sleep(LEASE_PERIOD_S)
    async with two.mounted() as volume:
        await save(volume, b"by two 2")
    orphans = set(practice.places["s3"]) - set(practice.places["home"])
    assert any(key.startswith("checkpoints/") for key in orphans)
    expected = [b"a", b"by two 1", b"by two 2"]
    for number, moment in enumerate((NEWEST, Moment(time_ns=1 << 62))):
        viewer = practice.pc(f"viewer {number}")
        async with trio.open_nursery() as nursery:
            view = await ReadOnlyVolume.open(
                nursery=nursery, world=viewer.world, files=viewer.files, keys=KEYS,
                writer_key=HEADER.public_keys.writer, stores=viewer.stores, moment=moment,
                random=random.Random(1).random,
            )  # fmt: skip
            rows = view.filesystem.readdir(1, after_cookie=0, limit=100)
            assert sorted(row.name for row in rows) == expected
            nursery.cancel_scope.cancel()
        view.close()
    assert await restored(practice.pc("restore").stores, tmp_path) == expected
    assert await seen_by_a_new_pc(practice) == expected


@pytest.mark.expects_warnings(*SAID, FOLLOWED)
@pytest.mark.parametrize("count", [1, 3])
async def test_unsent_changes_of_a_pc_whose_index_is_lost_too(
    autojump_clock: MockClock, practice: Practice, tmp_path: Path, count: int
) -> None:
    """Part of its log is in the stores alone, where another one went on: what is on the disk counts first."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with two.mounted() as volume:
        await save(volume, b"b")
    two.cut_off()
    async with two.mounted(wait=False) as volume:
        for number in range(count):
            await save(volume, b"unsent %d" % number)
            await volume._local.quiesce()
    async with one.mounted() as volume:
        for number in range(3):
            await save(volume, b"c %d" % number)
            await volume.flush()
    two.reconnect()
    two.files.remove()
    assert "went on from an earlier state" in await two.refusal()
    two.files.remove()
    recovered = await Recovery(
        two.world.disk, two.files, two.world.offload, KEYS, load_public_key(HEADER.public_keys.writer),
        stores=two.stores, follows=False,
    ).run()  # fmt: skip
    assert names_in(recovered.index) == [b"a", b"b", *(b"unsent %d" % number for number in range(count))]
    recovered.index.close()


async def restored(stores: Sequence[Store], root: Path) -> list[bytes]:
    """The names that a restore from these stores finds, which must be whole."""
    files = SqliteIndexFiles(str(root / "restore.db"), KEYS.index_key, digest_key=KEYS.dedup_key)
    planner = Planner(stores, files, InlineOffload(random.Random(2)), KEYS, HEADER.public_keys.writer)
    index, plan = await planner.run(NEWEST)
    try:
        assert plan.damage is None
        return names_in(index)
    finally:
        index.close()


@pytest.mark.expects_warnings(*SAID, *FORKED)
async def test_a_head_inside_a_segment_that_never_came(autojump_clock: MockClock, practice: Practice) -> None:
    """A head names a position in the open segment, which dies with its PC: a new PC mounts nevertheless."""
    one = practice.pc("one")
    one.mirror_delay_s = 3600.0
    async with one.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        await save(volume, b"never sent")
        await volume._publish()
        await trio.sleep(30)
        assert [state.pending_count for state in volume.status().stores] == [0, 0]
    two = practice.pc("two")
    async with two.mounted(take_over=True) as volume:
        assert names(volume) == [b"a"]
        await save(volume, b"b")
    assert await seen_by_a_new_pc(practice) == [b"a", b"b"]


# --- what a fenced writer does ---------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, *FORKED)
async def test_a_fenced_writer_gives_its_other_leases_back(
    autojump_clock: MockClock, practice: Practice
) -> None:
    """One store says that it was taken over; its lease on the other is not in the successor's way."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with one.mounted(wait=False) as first:
        one.cut_off("home")
        await trio.sleep(LEASE_PERIOD_S)
        two.cut_off("s3")
        async with two.mounted(wait=False, take_over=True) as second:
            await save(second, b"by two")
            one.reconnect()
            await fenced(first)
            await trio.sleep(RELEASE_S)
            left = open_lease(
                practice.places["s3"][LEASE_KEY], keys=KEYS, public_key=HEADER.public_keys.writer
            )
            assert left.released
            two.reconnect()
            with trio.fail_after(LEASE_PERIOD_S):
                await second.flush()
            assert second.status().fenced is None
            assert [state.state for state in second.status().stores] == [StateWord.UP_TO_DATE] * 2


@pytest.mark.expects_warnings(*FORKED, "is damaged", "damaged")
async def test_a_fenced_writer_deletes_nothing(autojump_clock: MockClock, practice: Practice) -> None:
    """Mending begins with the removal of the bad copy, which is its successor's to do."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted(wait=False) as first:
        await save(first, b"a")
        await first.flush()
        async with two.mounted(take_over=True) as second:
            await save(second, b"b")
            await second.flush()
            await fenced(first)
            place = practice.places["home"]
            key = min(key for key in place if key.startswith("segments/"))
            place[key] = bytes(7) + place[key][7:]
            before = practice.objects()
            first.mender.suspect("home", key)
            await trio.sleep(600)
            assert practice.objects() == before
            second.mender.suspect("home", key)
            await trio.sleep(600)
            assert practice.places["home"][key] == practice.places["s3"][key]


# --- the end of the local log ----------------------------------------------------------------


@pytest.mark.expects_warnings(
    "damaged", "The local log ends earlier", "object segments/", "Segment ", "Local object"
)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(
    ("how", "where"),
    [("flip", 0.999), ("flip", 0.985), ("flip", 0.975), ("flip", 0.5), ("cut", 0.99), ("cut", 0.5)],
)
async def test_rot_in_the_last_local_segment(
    autojump_clock: MockClock, practice: Practice, how: str, where: float, head: bool
) -> None:
    """One bit or the end, trailer or commit: both stores have it whole, and nothing is forgotten."""
    pc = practice.pc("one")
    async with pc.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        await save(volume, b"b")
        await save(volume, b"acknowledged")
        await trio.sleep(30)
        if head:
            await volume.flush()
        assert [state.pending_count for state in volume.status().stores] == [0, 0]
    pc = practice.copy(pc, "one again")
    before = practice.objects()
    last = max((pc.root / "objects" / "segments").iterdir())
    data = bytearray(last.read_bytes())
    if how == "flip":
        data[int(len(data) * where)] ^= 4
    else:
        del data[int(len(data) * where) :]
    last.write_bytes(data)
    async with pc.mounted() as volume:
        assert names(volume) == [b"a", b"acknowledged", b"b"]
        await save(volume, b"c")
    assert practice.lost(before) == []
    assert await seen_by_a_new_pc(practice) == [b"a", b"acknowledged", b"b", b"c"]


# --- with a store away -----------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, FOLLOWED)
async def test_who_wrote_last_mounts_with_a_store_away(autojump_clock: MockClock, practice: Practice) -> None:
    """Any other PC may miss what that store alone has, and asks for --take-over; a pinned head counts too."""
    one, two, three = practice.pc("one"), practice.pc("two"), practice.pc("three")
    async with one.mounted() as volume:
        await save(volume, b"a")
    one.cut_off("home")
    async with one.mounted(wait=False) as volume:
        await save(volume, b"only in s3")
        await volume._local.quiesce()
        await volume._publish()
        await trio.sleep(60)
    # What `mirrorfs attach` writes down of the stores that it saw.
    head = await newest_head(two.links["s3"], keys=KEYS, public_key=HEADER.public_keys.writer)
    assert head is not None
    two.world.disk.write_whole(f"objects/{head.key}", head.data)
    for pc in (two, three):
        pc.cut_off("s3")
    before = dict(practice.places["home"])
    said = await two.refusal()
    assert "--take-over" in said
    assert "another machine wrote last" in await three.refusal()
    assert practice.places["home"] == before, "a refused mount leaves no trace, not even a lease"
    two.reconnect()
    async with two.mounted() as volume:
        assert names(volume) == [b"a", b"only in s3"]


@pytest.mark.expects_warnings(*SAID, FOLLOWED)
@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("after_s", [0.5, 7, 13])
async def test_the_index_lost_its_wal_after_following(
    autojump_clock: MockClock, practice: Practice, is_new: bool, after_s: float
) -> None:
    """A power cut soon after a PC followed another's segments; it mounts again with no store in reach."""
    one, two = practice.pc("one"), practice.pc("two")
    if not is_new:
        async with one.mounted() as volume:
            await save(volume, b"a")
    async with two.mounted() as volume:
        await save(volume, b"b")
    async with one.until_killed() as volume:
        await save(volume, b"c")
        expected = names(volume)
        await trio.sleep(after_s)
    again = practice.copy(one, "after the power cut")
    for path in again.root.glob("index.db-*"):
        path.unlink()
    again.cut_off()
    async with again.mounted(wait=False) as volume:
        assert names(volume) == expected
        await save(volume, b"d")


# --- mending that is broken off --------------------------------------------------------------


@pytest.mark.expects_warnings("is damaged|is mended|holds other bytes|missing|truncated|wrong size")
@pytest.mark.parametrize("after_s", [0, 1, 2, 3, 5, 7, 9, 11])
async def test_mending_that_is_broken_off(
    autojump_clock: MockClock, practice: Practice, after_s: float
) -> None:
    """The program that wanted it ends: what was found bad is not forgotten."""
    pc = practice.pc("one")
    async with pc.mounted() as volume:
        for name in (b"a", b"b"):
            await save(volume, name)
            await volume.flush()
        place = practice.places["s3"]
        key = max(key for key in place if key.startswith("segments/"))
        place[key] = place[key][:-10]
        bad = (await volume.scrubber.run(SIZES)).bad
        pc.links["s3"].faults = Faults(latency_min_s=1.0, latency_max_s=1.0)
        with trio.move_on_after(after_s):
            await volume.mender.mend(bad)
        pc.links["s3"].faults = NO_FAULTS
        await trio.sleep(AGAIN_S)
        await volume.mender.mend((await volume.scrubber.run(SIZES)).bad)
        await volume.flush()
        assert place[key] == practice.places["home"][key]


# --- a log that is just being begun ----------------------------------------------------------


@pytest.mark.expects_warnings(*SAID, FOLLOWED)
@pytest.mark.parametrize("comes", [True, False])
async def test_the_second_segment_came_first(
    autojump_clock: MockClock, practice: Practice, comes: bool
) -> None:
    """Before the first head a gap may be what is on its way: it is waited for a little, and then said."""
    async with practice.pc("one").until_killed() as volume:
        for name in (b"a", b"b"):
            await save(volume, name)
            await trio.sleep(60)
    assert not any(key.startswith("heads/") for key in practice.places["home"])
    first = min(key for key in practice.places["home"] if key.startswith("segments/"))
    data = [place.pop(first) for place in practice.places.values()]

    async def arrive() -> None:
        await trio.sleep(5)
        for place, one in zip(practice.places.values(), data, strict=True):
            place[first] = one

    two = practice.pc("two")
    async with trio.open_nursery() as nursery:
        if comes:
            nursery.start_soon(arrive)
            async with two.mounted(take_over=True) as volume:
                assert names(volume) == [b"a", b"b"]
        else:
            assert "segment 0 is in no store" in await two.refusal(take_over=True)
