"""The light of a mounted volume: what the engine knows of its stores reaches it, and leaves it again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.protection import Light, Protection, judge
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.volume import MountedVolume
from tests.support.machine import write_file
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc

HOUR_S = 3600.0


class Pc(VirtualPc):
    """With two stores that fail as told."""

    def __init__(self, root: Path) -> None:
        self.home, self.s3 = SimulatedStore("home", seed=1), SimulatedStore("s3", seed=2)
        super().__init__(root, [self.home, self.s3])

    def judged(self, volume: MountedVolume) -> Protection:
        """What `status` says now, after the kernel wrote back."""
        told: dict[str, Any] = asdict(volume.status())
        return judge(told, asked_ns=self.clock.now_ns(), written_back=True, thresholds=AlarmConfig())


async def settled(volume: MountedVolume) -> None:
    """Everything is on both stores, and nobody writes."""
    await write_file(volume, b"letter", b"x" * 1000)
    await volume.flush()


@pytest.mark.parametrize(
    ("fault", "word"),
    [("outage", StateWord.UNREACHABLE), ("denied", StateWord.DENIED), ("full", StateWord.FULL)],
)
@pytest.mark.expects_warnings("A lease could not be given back")
async def test_a_store_that_fails_while_nobody_writes(
    tmp_path: Path, autojump_clock: MockClock, fault: str, word: StateWord
) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted(wait=False) as volume:
        await settled(volume)
        assert pc.judged(volume).light is Light.PROTECTED
        before_ns = pc.clock.now_ns()
        setattr(pc.s3, fault, True)
        await trio.sleep(LEASE_PERIOD_S)
        home, s3 = volume.status().stores
        assert (home.state, s3.state, s3.pending_count) == (StateWord.UP_TO_DATE, word, 0)
        assert s3.last_error is not None and "s3" in s3.last_error
        assert s3.failing_since_ns is not None
        assert before_ns <= s3.failing_since_ns <= before_ns + LEASE_PERIOD_S * 1e9
        assert pc.judged(volume).light is Light.PROTECTED
        await trio.sleep(3 * HOUR_S)
        found = pc.judged(volume)
        assert found.light is Light.AT_RISK
        assert found.reason is not None and found.reason.startswith(f"Store s3 has been {word} for 3 hours: ")
        assert volume.status().stores[1].failing_since_ns == s3.failing_since_ns
        setattr(pc.s3, fault, False)
        await trio.sleep(LEASE_PERIOD_S)
        s3 = volume.status().stores[1]
        assert (s3.state, s3.last_error, s3.failing_since_ns) == (StateWord.UP_TO_DATE, None, None)
        assert pc.judged(volume).light is Light.PROTECTED
        setattr(pc.s3, fault, True)


async def test_a_change_that_meets_it_is_at_risk_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        await settled(volume)
        pc.s3.outage = True
        await trio.sleep(LEASE_PERIOD_S)
        await write_file(volume, b"another", b"x" * 1000)
        found = pc.judged(volume)
        assert (found.light, found.reason) == (Light.AT_RISK, volume.status().stores[1].last_error)
        pc.s3.outage = False
