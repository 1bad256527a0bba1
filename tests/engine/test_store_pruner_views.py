"""Pruning from another machine: each store must do without the others, and no old list is believed."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pytest
from trio.testing import MockClock

from mirrorfs.core.retention import DAY_NS, Policy
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.prune_ledger import AHEAD_NS, LEDGER_PATH, Ledger, read_ledger
from mirrorfs.engine.store_pruner import StorePruner, StorePruneReport
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.manifest import Listed, Manifest, manifest_key, seal_manifest
from mirrorfs.format.record import Snapshot, SnapshotGone
from mirrorfs.format.rows import MomentRow
from tests.engine.test_pruner import look_back
from tests.engine.test_store_pruner import POLICY, STORE, Elsewhere, deleted_here
from tests.support.machine import write_file
from tests.support.volumes import HEADER, KEY_SET, KEYS

pytestmark = pytest.mark.expects_warnings(".*")

DAY_S = 86400
NAMES = [entry.name for entry in HEADER.stores]


async def save(volume: MountedVolume, name: bytes, data: bytes) -> None:
    await write_file(volume, name, data)
    await volume.filesystem.sync()
    await volume._local.quiesce()


async def prune_all(one: Elsewhere, *, confirmed: bool = False) -> StorePruneReport:
    one.pc.world.clock.stepped_s = one.diary.pc.world.clock.stepped_s
    stores = {entry.instance: one.pc.links[entry.name] for entry in HEADER.stores}
    pruner = StorePruner(
        stores, one.pc.disk, one.pc.scratch, one.pc.world.offload, one.pc.world.clock, KEYS,
        HEADER.public_keys, KEY_SET.pruner, zone=UTC,
    )  # fmt: skip
    return await pruner.run(POLICY, confirmed=confirmed)


async def test_a_store_keeps_what_its_own_log_needs(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = Elsewhere(tmp_path, 3)
    one.diary.pc.append_only = frozenset(NAMES)
    place = one.practice.places[NAMES[0]]
    async with one.diary.pc.mounted() as volume:
        await prune_all(one, confirmed=True)
        collect = volume.pruner._collect
        before: dict[str, bytes] = {}

        async def remember(copied: object, done: list[object]) -> None:
            # Every store has the copies; no log says so yet.
            if any(victim.needed_bytes for victim in done):  # type: ignore[attr-defined]
                before.update(place)
            await collect(copied, done)  # type: ignore[arg-type]

        volume.pruner._collect = remember  # type: ignore[assignment, method-assign]
        for day in range(14):
            before.clear()
            if day < 12:
                await save(volume, b"static %d" % day, b"%d" % day * 300)
            await one.day(volume)
            if day >= 6 and before:
                break
            await prune_all(one)
        assert before
        place.clear()
        place.update(before)  # the line to the first store broke off then
        shown = await look_back(one.practice, NAMES[0], NEWEST)
        deleted = 0
        for _ in range(2):
            one.diary.pc.world.clock.stepped_s += DAY_S + 5
            deleted += (await prune_all(one)).deleted[NAMES[1]]
        assert deleted
        assert await look_back(one.practice, NAMES[0], NEWEST) == shown


async def test_a_pc_that_keeps_more_is_no_alarm(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = Elsewhere(tmp_path, 5)
    here, there = Policy(every_moment=3, daily=5), Policy(every_moment=3, daily=20, monthly=100)
    async with one.diary.pc.mounted() as volume:
        await one.prune(here, confirmed=True)
        for _ in range(12):
            await one.day(volume, there)
            assert (await one.prune(here)).alarms == []
    assert read_ledger(one.pc.disk).base


async def test_a_held_snapshot_that_is_let_go_of_is_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = Elsewhere(tmp_path, 4)
    async with one.diary.pc.mounted() as volume:
        await one.prune(confirmed=True)
        for _ in range(5):
            await one.day(volume)
            await one.prune()
        await save(volume, b"precious", b"precious" * 900)
        row = await volume.snapshots.create(b"of Mrs X", held=True)
        volume.filesystem.unlink(1, b"precious")
        await volume.flush()
        await one.prune()
        for record in (Snapshot(1, 0, b"of Mrs X"), SnapshotGone(1, b"of Mrs X")):
            volume._local.state.record(record)
        await volume.flush()
        for _ in range(9):
            await one.day(volume)
            report = await one.prune()
            assert deleted_here(row.position) in report.alarms
    kept = one.pc.disk.open(LEDGER_PATH)
    said = kept.read(offset=0, size_bytes=kept.size())
    kept.close()
    assert str(row.position).encode() in said
    assert b"of Mrs X" not in said and b"of Mrs X".hex().encode() not in said
    ledger = read_ledger(one.pc.disk)
    assert ledger.base <= row.position or row.position in ledger.moments


async def test_what_an_earlier_run_listed_is_judged_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = Elsewhere(tmp_path, 6)
    place = one.practice.places[STORE]
    async with one.diary.pc.mounted() as volume:
        await one.prune(confirmed=True)
        for _ in range(6):
            await one.day(volume)
            await one.prune()
    (instance,) = (entry.instance for entry in HEADER.stores if entry.name == STORE)
    key = max(key for key in place if key.startswith("segments/"))
    listed = (Listed(key, len(place[key]), bytes(32)),)
    manifest = Manifest(instance, 1000, 1, 1, 1, (3, 10, 0, 100, 0), listed)
    data = seal_manifest(manifest, keys=KEYS, seed=KEY_SET.pruner)
    place[manifest_key(1000, data)] = data
    await one.prune()
    assert key in place


@pytest.mark.parametrize("days", [1, 8])
async def test_a_store_that_was_put_back_in_time_keeps_everything_until_a_person_confirms(
    autojump_clock: MockClock, tmp_path: Path, days: int
) -> None:
    """Whether it was before the base that is relied on, or before all that was."""
    one = Elsewhere(tmp_path, 8)
    place = one.practice.places[STORE]
    async with one.diary.pc.mounted() as volume:
        await one.prune(confirmed=True)
        for day in range(9):
            await one.day(volume)
            assert (await one.prune()).alarms == []
            if day == days - 1:
                earlier, end = dict(place), read_ledger(one.pc.disk).seen[-1][1]
                then = dict(one.diary.state)
    ledger = read_ledger(one.pc.disk)
    later, base = ledger.seen[-1][1], ledger.base
    assert later > end and base
    place.clear()
    place.update(earlier)
    for _ in range(2):
        one.diary.pc.world.clock.stepped_s += DAY_S
        report = await one.prune()
        assert [alarm for alarm in report.alarms if "ends earlier than it was seen to" in alarm]
        assert not report.deleted and dict(place) == earlier
        assert read_ledger(one.pc.disk).seen[-1][1] == later
    assert (await one.prune(confirmed=True)).alarms == []
    ledger = read_ledger(one.pc.disk)
    assert ledger.seen[-1][1] <= end and ledger.base < base and bool(ledger.base) == (days > 1)
    one.diary.pc.world.clock.stepped_s += DAY_S
    report = await one.prune()
    assert report.alarms == []
    assert (await look_back(one.practice, STORE, NEWEST))[1] == then


def test_a_moment_is_of_the_time_when_it_was_seen() -> None:
    ledger = Ledger()
    for day in (10, 11, 12):
        ledger.observe(day * DAY_NS, day << 20)
    for position, told_ns, known_ns in (
        (11 << 20, 400 * DAY_NS, 11 * DAY_NS + AHEAD_NS),
        (11 << 20, 11 * DAY_NS + 5, 11 * DAY_NS + 5),
        (12 << 20, 1, 4 * DAY_NS),
        (13 << 20, 400 * DAY_NS, 13 * DAY_NS + AHEAD_NS),
    ):
        ledger.add_moment(MomentRow(position, 1, 0, bytes(8), bytes(32), told_ns, 0), 13 * DAY_NS)
        assert ledger.moments[position].time_ns == known_ns
