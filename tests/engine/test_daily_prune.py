"""Pruning by itself: by the policy in force, never without one, and not because a clock is ahead."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.retention import DAY_NS, POLICY_DELAY_NS, STEP_DAYS_MAX, Policy, PolicyState
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import daily_prune
from mirrorfs.engine.policy_record import POLICY_PATH, read_policy, write_policy
from mirrorfs.errors import FormatError
from tests.engine.test_pruner import Diary, tree
from tests.support.practice import Practice

POLICY = Policy(every_moment=3, daily=20)
DAMAGED = (
    b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "in_force": null, "wanted": null}',
    b'{"version": 1, "in_force": 3, "wanted": null, "since_ns": 0}',
    b'{"version": 1, "in_force": {"every_moment": -1}, "wanted": null, "since_ns": 0}',
    b'{"version": 1, "in_force": {"every_moment": true}, "wanted": null, "since_ns": 0}',
    b'{"version": 1, "in_force": {"hourly": 1}, "wanted": null, "since_ns": 0}',
    b'{"version": 1, "in_force": ["every_moment"], "wanted": null, "since_ns": 0}',
    b'{"version": 1, "in_force": null, "wanted": null, "since_ns": 1e999}',
    b'{"version": 1, "in_force": null, "wanted": null, "since_ns": -5}',
)  # fmt: skip


def test_what_is_remembered(tmp_path: Path) -> None:
    disk = LocalDisk(tmp_path)
    assert read_policy(disk) == PolicyState()
    for state in (PolicyState(POLICY), PolicyState(POLICY, Policy(1), 5), PolicyState(None, POLICY, 7)):
        write_policy(disk, state)
        assert read_policy(disk) == state


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_record(tmp_path: Path, data: bytes) -> None:
    disk = LocalDisk(tmp_path)
    disk.write_whole(POLICY_PATH, data)
    with pytest.raises(FormatError):
        read_policy(disk)


@pytest.mark.expects_warnings("damaged; everything is kept")
async def test_after_a_damaged_record_a_policy_waits_anew(autojump_clock: MockClock, tmp_path: Path) -> None:
    pc = Practice(tmp_path).pc("pc")
    pc.retention = POLICY
    pc.disk.write_whole(POLICY_PATH, json.dumps({"version": 1, "in_force": "all"}).encode())
    async with pc.mounted() as volume:
        waiting = volume.daily_prune.policy()
        assert (waiting.in_force, waiting.wanted) == (None, POLICY)
        assert read_policy(pc.disk) == waiting


async def test_without_a_policy_nothing_happens_and_a_new_one_waits(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daily_prune, "FIRST_S", 5.0)
    monkeypatch.setattr(daily_prune, "EVERY_S", 30.0)
    practice = Practice(tmp_path)
    diary = Diary(practice, 1)
    pc = diary.pc
    async with pc.mounted() as volume:
        for _ in range(6):
            await diary.day(volume)
        await volume.flush()
        before = practice.objects()
        await trio.sleep(60)
        assert read_policy(pc.disk) == PolicyState()
    pc.retention = POLICY
    async with pc.mounted() as volume:
        await trio.sleep(1)
        since_ns = read_policy(pc.disk).since_ns
        await trio.sleep(60)
        assert read_policy(pc.disk) == PolicyState(None, POLICY, since_ns)
        assert volume.pruner.moments.base() is None and not practice.lost(before)
        pc.clock.stepped_s += POLICY_DELAY_NS // 10**9 - 3600
    async with pc.mounted() as volume:
        await trio.sleep(60)
        assert volume.pruner.moments.base() is None and not practice.lost(before)
        pc.clock.stepped_s += 3600
        # The delay was over mounts, and then it is in force.
        volume.pruner.moments.zone = UTC
        volume.pruner.sweeper.grace_ns = 0
        await trio.sleep(120)
        assert read_policy(pc.disk) == PolicyState(POLICY)
        assert volume.pruner.moments.base() is not None and practice.lost(before)
        assert await tree(volume) == diary.state


async def test_a_clock_that_is_ahead_by_years_takes_a_month_at_a_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 2)
    policy = Policy(every_moment=3, daily=8)
    async with diary.pc.mounted() as volume:
        for _ in range(40):
            await diary.work(volume)
            diary.pc.clock.stepped_s += 24 * 3600
        pruner = volume.pruner
        pruner.moments.zone = UTC
        diary.pc.clock.stepped_s += 20 * 366 * 24 * 3600
        await pruner.run(policy, attended=False)
        base = pruner.moments.base()
        assert base is not None
        assert 29 * DAY_NS < base.time_ns - diary.states[0][0] <= STEP_DAYS_MAX * DAY_NS
        # Days before are kept, though the clock says that they are long over.
        days = [row.time_ns for row in volume._local.index.list_moments() if not row.base]
        assert len(days) >= 4
        # Weeks in which nothing was written hold nothing up.
        await diary.work(volume)
        for _ in range(2):
            await pruner.run(policy, attended=False)
        base = pruner.moments.base()
        assert base is not None and base.time_ns >= diary.states[-2][0]
