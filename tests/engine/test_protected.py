"""The light of a mounted volume: what the engine knows of its stores reaches it, and leaves it again."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.protection import Light, Protection, judge
from mirrorfs.cli.scrubbing import scrub as cli_scrub
from mirrorfs.engine.daily_look import FIRST_S
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.scrub import DEEP, LOCAL, SIZES, Depth
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


# --- copies that a scrub found bad -----------------------------------------------------------------


def rot(pc: Pc, place: str, key: str) -> None:
    """Flip a bit of one copy."""
    if place != LOCAL:
        next(store for store in (pc.home, pc.s3) if store.name == place).flip_bit(key)
        return
    path = pc.root / "objects" / key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(pc: Pc, place: str, key: str) -> None:
    """Drop one copy."""
    if place == LOCAL:
        (pc.root / "objects" / key).unlink()
    else:
        next(store for store in (pc.home, pc.s3) if store.name == place).lose(key)


def cut(pc: Pc, place: str, key: str) -> None:
    """Shorten one copy."""
    if place == LOCAL:
        os.truncate(pc.root / "objects" / key, 20)
    else:
        next(store for store in (pc.home, pc.s3) if store.name == place).truncate(key, size_bytes=20)


HARM = {"rot": rot, "lose": lose, "cut": cut}


def a_key(pc: Pc, prefix: str) -> str:
    return min(key for key in pc.home.objects if key.startswith(prefix))


async def scrub(volume: MountedVolume, depth: Depth = DEEP) -> None:
    async with volume.scrubbing:
        await volume.scrubber.run(depth)


async def repair(volume: MountedVolume) -> list[dict[str, Any]]:
    """As `mirrorfs repair` does. Returns what it said."""
    said: list[dict[str, Any]] = []

    async def say(message: dict[str, Any]) -> None:
        said.append(message)

    await cli_scrub(volume, {"share": 0.0, "mend": True}, say)
    return said


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize(
    ("harm", "place", "prefix"),
    [
        # That a segment is not here is no fault: the cache may give it up.
        one
        for one in product(HARM, ("home", LOCAL), ("segments/", "heads/"))
        if one != ("lose", LOCAL, "segments/")
    ],
)
async def test_what_verify_finds_is_a_risk_until_repair(
    tmp_path: Path, autojump_clock: MockClock, harm: str, place: str, prefix: str
) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        await settled(volume)
        HARM[harm](pc, place, a_key(pc, prefix))
        assert pc.judged(volume).light is Light.PROTECTED
        await scrub(volume)
        found = pc.judged(volume)
        assert found.light is Light.AT_RISK and "Run `mirrorfs repair`" in str(found.reason)
        assert volume.status().damaged == {place: 1}
        await repair(volume)
        assert volume.status().damaged == {}
        assert pc.judged(volume).light is Light.PROTECTED
    async with pc.mounted() as volume:
        assert volume.status().damaged == {}


@pytest.mark.expects_warnings("is damaged")
async def test_it_is_known_after_a_restart(tmp_path: Path, autojump_clock: MockClock) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        await settled(volume)
        rot(pc, "home", a_key(pc, "segments/"))
        await scrub(volume)
    async with pc.mounted() as volume:
        await volume.flush()
        assert pc.judged(volume).light is Light.AT_RISK
        await scrub(volume, SIZES)
        assert volume.status().damaged == {"home": 1}, "its size says nothing"
        said = await repair(volume)
        assert [one["why"] for one in said if one["type"] == "mended"] == [None]
        assert pc.judged(volume).light is Light.PROTECTED


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize(
    ("harm", "depth"), [("rot", DEEP), ("rot", Depth(0.9999)), ("lose", SIZES), ("cut", SIZES)]
)
async def test_what_is_whole_again_is_none(
    tmp_path: Path, autojump_clock: MockClock, harm: str, depth: Depth
) -> None:
    """The owner of a store may have put it back."""
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        await settled(volume)
        key = a_key(pc, "segments/")
        good = pc.home.objects[key]
        HARM[harm](pc, "home", key)
        await scrub(volume)
        assert volume.status().damaged == {"home": 1}
        pc.home.objects[key] = good
        await scrub(volume, depth)
        assert volume.status().damaged == {}


@pytest.mark.expects_warnings("Mended", "is damaged")
async def test_what_the_daily_look_mends_is_none(tmp_path: Path, autojump_clock: MockClock) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        await settled(volume)
        for prefix in ("segments/", "heads/"):
            lose(pc, "home", a_key(pc, prefix))
        await scrub(volume, SIZES)
        assert volume.status().damaged == {"home": 2}
        await trio.sleep(FIRST_S + 60)
        await volume.flush()
        assert volume.status().damaged == {}
        assert pc.judged(volume).light is Light.PROTECTED
        await trio.sleep(24 * HOUR_S)
        assert pc.judged(volume).light is Light.PROTECTED


@pytest.mark.expects_warnings("is mended", "is damaged")
@pytest.mark.parametrize("place", ["home", LOCAL])
async def test_what_a_reader_has_mended_is_none(
    tmp_path: Path, autojump_clock: MockClock, place: str
) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        await settled(volume)
        key = a_key(pc, "segments/")
        rot(pc, place, key)
        await scrub(volume)
        assert volume.status().damaged == {place: 1}
        volume.mender.suspect(None if place == LOCAL else place, key)
        await trio.sleep(60)
        await volume.flush()
        assert volume.status().damaged == {}
        assert pc.judged(volume).light is Light.PROTECTED


@pytest.mark.expects_warnings("is damaged", "cannot be sent")
async def test_what_cannot_be_mended_stays_a_risk(tmp_path: Path, autojump_clock: MockClock) -> None:
    pc = Pc(tmp_path)
    async with pc.mounted(wait=False) as volume:
        await settled(volume)
        key = a_key(pc, "segments/")
        for place in ("home", "s3", LOCAL):
            cut(pc, place, key)
        await scrub(volume)
        said = await repair(volume)
        assert all("no good copy" in one["why"] for one in said if one["type"] == "mended")
        assert volume.status().damaged == {"home": 1, "s3": 1, LOCAL: 1}


@pytest.mark.expects_warnings("is damaged")
async def test_the_cache_keeps_what_a_damaged_copy_is_mended_from(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Both stores may have lost it: then the local copy is the only one."""
    pc = Pc(tmp_path)
    async with pc.mounted() as volume:
        for number in range(4):
            await write_file(volume, b"%d" % number, b"x" * 1000)
            await volume.flush()
        first, second = sorted(key for key in pc.home.objects if key.startswith("segments/"))[:2]
        for place in ("home", "s3"):
            rot(pc, place, first)
        await scrub(volume)
        volume._local.cache._limit_bytes = 0
        await volume._local.cache.shrink()
        assert not (pc.root / "objects" / second).exists()
        assert (pc.root / "objects" / first).exists()
        await repair(volume)
        assert volume.status().damaged == {}
        await volume._local.cache.shrink()
        assert not (pc.root / "objects" / first).exists()
