"""Pruning from another machine: it deletes what is of no use, and nothing that its own policy keeps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.retention import DAY_NS, Policy, wanted_times
from mirrorfs.engine.manifests import manifests_of
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.scrub import SIZES
from mirrorfs.engine.store_pruner import StorePruner, StorePruneReport
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.ids import format_position
from mirrorfs.format.manifest import Listed, manifest_key, seal_manifest
from mirrorfs.ports import Clock, ObjectKey
from tests.engine.test_pruner import Diary, look_back, tree
from tests.support.practice import Practice
from tests.support.volumes import HEADER, KEY_SET, KEYS

POLICY = Policy(every_moment=3, daily=10, monthly=100)
STORE = "s3"


def deleted_here(position: int) -> str:
    """The alarm of a snapshot that the PC has no more."""
    return f"The snapshot of position {format_position(position)} was deleted; here it is kept for 30 days."


class Elsewhere:
    """The machine that prunes the append-only store, with the PC whose diary it watches."""

    def __init__(self, root: Path, seed: int, *, practice: Practice | None = None) -> None:
        self.practice = practice or Practice(root)
        self.diary = Diary(self.practice, seed)
        self.diary.pc.append_only = frozenset({STORE})
        self.pc = self.practice.pc("elsewhere")
        self.pc.root.mkdir(exist_ok=True)

    async def day(self, volume: MountedVolume, policy: Policy = POLICY) -> None:
        """A day of work, and the PC's own pruning."""
        volume.pruner.moments.zone = UTC
        volume.pruner.sweeper.grace_ns = 0
        await self.diary.day(volume)
        await volume.flush()
        await volume.pruner.run(policy)
        await volume.flush()

    async def prune(
        self,
        policy: Policy = POLICY,
        *,
        confirmed: bool = False,
        dry_run: bool = False,
        clock: Clock | None = None,
    ) -> StorePruneReport:
        self.pc.world.clock.stepped_s = self.diary.pc.world.clock.stepped_s
        (instance,) = (entry.instance for entry in HEADER.stores if entry.name == STORE)
        pruner = StorePruner(
            {instance: self.pc.links[STORE]}, self.pc.disk, self.pc.scratch, self.pc.world.offload,
            clock or self.pc.world.clock, KEYS, HEADER.public_keys, KEY_SET.pruner, zone=UTC,
        )  # fmt: skip
        return await pruner.run(policy, confirmed=confirmed, dry_run=dry_run)

    def count(self, prefix: str) -> int:
        return sum(key.startswith(prefix) for key in self.practice.places[STORE])

    async def shows(self, left: dict[str, bytes], now_ns: int, policy: Policy = POLICY) -> None:
        """What is in the store, or in a part of it, has every moment that the policy keeps."""
        places = self.practice.places
        whole, places[STORE] = places[STORE], left
        start_ns = now_ns - policy.every_moment * DAY_NS
        wanted = [time_ns for time_ns, _ in self.diary.states if start_ns <= time_ns <= now_ns]
        wanted += wanted_times(policy, now_ns, start_ns, UTC)
        for time_ns in wanted:
            then = [state for at_ns, state in self.diary.states if at_ns <= time_ns]
            if then:
                assert (await look_back(self.practice, STORE, Moment(time_ns=time_ns)))[1] == then[-1]
        places[STORE] = whole


async def test_what_is_condemned_goes_and_what_is_kept_stays(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    one = Elsewhere(tmp_path, 3)
    deleted = 0
    async with one.diary.pc.mounted() as volume:
        first = await one.prune(confirmed=True)
        assert (first.base_ns, first.deleted, first.alarms) == (0, {}, [])
        for _ in range(14):
            await one.day(volume)
            before = dict(one.practice.places[STORE])
            said = await one.prune(dry_run=True)
            assert one.practice.places[STORE] == before
            report = await one.prune()
            assert report.alarms == said.alarms == [] and report.deleted == said.deleted
            gone = set(before) - set(one.practice.places[STORE])
            assert len(gone) == report.deleted.get(STORE, 0)
            deleted += len(gone)
            assert {key.partition("/")[0] for key in gone} <= {"segments", "relocated", "checkpoints"}
        assert await tree(volume) == one.diary.state
        await volume.pruner.run(POLICY)
        assert volume.pruner.history()[2] <= report.waiting
    assert deleted > 40 and one.count("manifests/") > 8
    await one.shows(one.practice.places[STORE], report.now_ns)


async def test_a_pc_that_lies_has_nothing_deleted_that_is_kept_here(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    one = Elsewhere(tmp_path, 4)
    async with one.diary.pc.mounted() as volume:
        await one.prune(confirmed=True)
        for number in range(10):
            await one.day(volume)
            if number == 2:
                await volume.snapshots.create(b"never", held=True)
            assert (await one.prune()).alarms == []
        before = dict(one.practice.places[STORE])
        (snapshot,) = volume._local.index.list_snapshots()
        # Whoever has the writer's keys has no use for our clock, or our policy.
        await volume.snapshots.hold(b"never", held=False)
        await volume.snapshots.delete(b"never")
        await volume.flush()
        clock, lie = one.diary.pc.world.clock, Policy(every_moment=1)
        clock.stepped_s += 200 * 86400
        await volume.pruner.run(lie)
        await volume.flush()
        assert len(volume._local.index.list_moments()) == 1
        clock.stepped_s -= 200 * 86400
        said: set[str] = set()
        for _ in range(4):
            clock.stepped_s += 86400
            report = await one.prune()
            said |= set(report.alarms)
            left = {key: data for key, data in before.items() if key in one.practice.places[STORE]}
            await one.shows(left, report.now_ns)
        assert report.kept
        assert any("given up moments" in sentence for sentence in said)
        assert any("given up the log" in sentence for sentence in said)
        assert deleted_here(snapshot.position) in said
        for days in (25, 3):
            clock.stepped_s += days * 86400
            left = {key: data for key, data in before.items() if key in one.practice.places[STORE]}
            one.practice.places[STORE], whole = left, one.practice.places[STORE]
            position, _ = await look_back(one.practice, STORE, Moment(position=snapshot.position))
            one.practice.places[STORE] = whole
            assert position == snapshot.position
            assert (deleted_here(snapshot.position) in (await one.prune()).alarms) == (days == 25)


async def test_a_shorter_policy_here_waits_and_a_run_that_is_cut_short_is_ended(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    one = Elsewhere(tmp_path, 5)
    link = one.pc.links[STORE]
    delete = link.delete

    async def fails(key: ObjectKey) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("Store s3 does not answer.")

    async with one.diary.pc.mounted() as volume:
        waits = await one.prune()
        assert waits.policy.in_force is None
        await one.prune(confirmed=True)
        for _ in range(6):
            await one.day(volume)
            await one.prune()
        shorter = await one.prune(Policy(every_moment=1))
        assert shorter.policy.in_force == POLICY and shorter.policy.wanted == Policy(every_moment=1)
        await one.day(volume)
        before = set(one.practice.places[STORE])
        link.delete = fails  # type: ignore[method-assign]  # as if the machine was switched off
        with pytest.raises(StoreUnavailable):
            await one.prune()
        link.delete = delete  # type: ignore[method-assign]
        assert one.count("manifests/") and before <= set(one.practice.places[STORE])
        ended = await one.prune()
        assert ended.finished == ended.deleted[STORE] > 0
        assert (await one.prune()).finished == 0


async def test_only_the_pruners_key_makes_a_manifest(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = Elsewhere(tmp_path, 6)
    async with one.diary.pc.mounted() as volume:
        for _ in range(6):
            await one.prune(confirmed=True)
            await one.day(volume)
        place, link = one.practice.places[STORE], one.pc.links[STORE]
        (instance,) = (entry.instance for entry in HEADER.stores if entry.name == STORE)
        found = await manifests_of(link, KEYS, HEADER.public_keys.pruner, instance=instance)
        assert found and [manifest.counter for manifest in found] == list(range(1, len(found) + 1))
        key = next(key for key in sorted(place, reverse=True) if key.startswith("segments/"))
        listed = Listed(key, len(place[key]), bytes(32))
        forged = replace(found[-1], counter=99, objects=(listed,))
        objects = one.diary.pc.root / "objects"
        ours = max(key for key in place if key.startswith("checkpoints/") and (objects / key).exists())
        lost = place.pop(ours)
        gone = replace(forged, counter=98, objects=(Listed(ours, len(lost), bytes(32)),))
        for seed, pruned in ((KEY_SET.writer, 0), (KEY_SET.pruner, 1)):
            data = seal_manifest(gone, keys=KEYS, seed=seed)
            place[manifest_key(98, data)] = data
            report = await volume.scrubber.run(SIZES, places=[STORE])
            # The PC tells a deletion from a loss.
            assert (report.places[0].pruned, len(report.bad)) == (pruned, 1 - pruned)
            del place[manifest_key(98, data)]
        place[ours] = lost
        for seed, counts in ((KEY_SET.writer, False), (KEY_SET.drill, False), (KEY_SET.pruner, True)):
            data = seal_manifest(forged, keys=KEYS, seed=seed)
            place[manifest_key(99, data)] = data
            again = await manifests_of(link, KEYS, HEADER.public_keys.pruner, instance=instance)
            assert (forged in again) == counts
            other = await manifests_of(link, KEYS, HEADER.public_keys.pruner, instance=bytes(16))
            assert other == []
            if not counts:
                await one.prune()
                assert key in place
