"""A store that goes back to an earlier state: it is said, brought forward, and remembered."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.daily_look import FIRST_S
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.engine.went_back import PATH
from mirrorfs.errors import DiskFull
from mirrorfs.format.control import LEASE_KEY
from tests.support.practice import SAID, Practice, names, save
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc

GONE_BACK = "has gone back to an earlier state"
SOON_S = 120.0
"""Long before the first daily look would be due by itself."""


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


async def written_twice(practice: Practice) -> dict[str, bytes]:
    """Two mounts of one PC that both stores hold. Returns what store home held after the first."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
        await volume.flush()
    early = {key: data for key, data in practice.places["home"].items() if key != LEASE_KEY}
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"b")
        await volume.flush()
    return early


def set_back(practice: Practice, early: dict[str, bytes]) -> None:
    """Have store home hold again what it held earlier."""
    home = practice.places["home"]
    for key in [key for key in home if key not in early]:
        del home[key]


def went_back(volume: MountedVolume) -> dict[str, int]:
    """What the status says: stores that went back, and when that was found."""
    stores = volume.status().stores
    return {one.store: one.went_back_ns for one in stores if one.went_back_ns is not None}


@pytest.mark.expects_warnings(GONE_BACK, "Mended|missing", "is lost: waiting")
@pytest.mark.parametrize("whole", [True, False])
async def test_it_is_said_and_brought_forward(
    autojump_clock: MockClock, practice: Practice, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    early = await written_twice(practice)
    full = practice.objects()["home"]
    home = practice.places["home"]
    for key in [key for key in home if key not in early and (whole or key.startswith("heads/"))]:
        del home[key]
    async with practice.pc("one").mounted() as volume:
        assert names(volume) == [b"a", b"b"]
        await trio.sleep(SOON_S)
        assert not full.keys() - home.keys()
        assert set(went_back(volume)) == {"home"}, "mended, and not forgotten"
    assert [record.args for record in caplog.records if GONE_BACK in record.message] == [("home",)]
    assert all(home[key] == data for key, data in full.items())


@pytest.mark.expects_warnings(GONE_BACK, "Mended|missing", "is lost: waiting")
async def test_it_is_remembered_until_a_person_acknowledges_it(
    autojump_clock: MockClock, practice: Practice
) -> None:
    early = await written_twice(practice)
    set_back(practice, early)
    async with practice.pc("one").mounted() as volume:
        found = went_back(volume)
        assert volume.went_back.untold() == list(found.items())
        volume.went_back.told("home")
        await trio.sleep(SOON_S)
        await volume.flush()
    async with practice.pc("one").mounted() as volume:
        assert set(found) == {"home"} and went_back(volume) == found
        assert not volume.went_back.untold(), "it was told before"
        assert await volume.went_back.acknowledge("s3") is None
        assert await volume.went_back.acknowledge("home") == found["home"]
        assert not went_back(volume)
    set_back(practice, early)
    async with practice.pc("one").mounted() as volume:
        again = went_back(volume)
        assert set(again) == {"home"} and again["home"] > found["home"]
        assert volume.went_back.untold() == list(again.items())
        await trio.sleep(SOON_S)
        assert await volume.went_back.acknowledge("home") == again["home"]
    async with practice.pc("one").mounted() as volume:
        assert not went_back(volume)


@pytest.mark.expects_warnings(
    GONE_BACK, "Mended|missing", "is lost: waiting", "went back failed and is begun again"
)
async def test_a_disk_that_is_full_for_a_while_forgets_nothing(
    autojump_clock: MockClock, practice: Practice
) -> None:
    set_back(practice, await written_twice(practice))
    pc = practice.pc("one")
    pc.disk.full_for = PATH
    async with pc.mounted() as volume:
        await trio.sleep(SOON_S)
        assert pc.disk.refused
        with pytest.raises(DiskFull):
            await volume.went_back.acknowledge("home")
        found = went_back(volume)
        pc.disk.full_for = ""
        await trio.sleep(SOON_S)
    async with practice.pc("one").mounted() as volume:
        assert found and went_back(volume) == found


@pytest.mark.expects_warnings(GONE_BACK, "Mended|missing", "is lost: waiting", "is begun anew")
async def test_a_list_that_is_damaged_stops_nobody(autojump_clock: MockClock, practice: Practice) -> None:
    set_back(practice, await written_twice(practice))
    async with practice.pc("one").mounted() as volume:
        await trio.sleep(SOON_S)
    practice.pc("one").disk.write_whole(PATH, b'{"version": 1, "stores": []}')
    async with practice.pc("one").mounted() as volume:
        assert names(volume) == [b"a", b"b"] and not went_back(volume)


@pytest.mark.expects_warnings(GONE_BACK, "Mended|missing", "falling behind", "not held yet", *SAID)
async def test_one_that_was_away_at_the_mount_is_looked_at_when_it_answers(
    autojump_clock: MockClock, practice: Practice
) -> None:
    early = await written_twice(practice)
    full = practice.objects()["home"]
    home = practice.places["home"]
    set_back(practice, early)
    pc = practice.pc("one")
    pc.cut_off("home")
    async with pc.mounted() as volume:
        assert names(volume) == [b"a", b"b"]
        await trio.sleep(FIRST_S + SOON_S)
        pc.reconnect()
        await trio.sleep(LEASE_PERIOD_S + SOON_S)
        assert not full.keys() - home.keys()
        assert set(went_back(volume)) == {"home"}


async def test_a_store_that_is_only_behind_is_not_accused(
    autojump_clock: MockClock, practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    early = await written_twice(practice)
    assert early
    async with practice.pc("one").mounted() as volume:
        await trio.sleep(SOON_S)
        await volume.flush()
        assert not went_back(volume)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.expects_warnings("is full", "not held yet", "falling behind", "could not be given back")
async def test_a_store_that_took_no_head_since_the_keys_were_rotated_is_not_accused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    places: dict[str, dict[str, bytes]] = {"home": {}, "s3": {}}
    links = [SimulatedStore(name, seed=1, objects=place) for name, place in places.items()]
    pc = VirtualPc(tmp_path, links)
    async with pc.mounted() as volume:
        await save(volume, b"a")
        await volume.flush()
        ends = await volume.ends()
    pc.rotate(ends)
    old = {key for key in places["s3"] if key.startswith("heads/")}
    async with pc.mounted(wait=False) as volume:
        links[1].full = True
        await save(volume, b"b")
        with trio.move_on_after(SOON_S):
            await volume.flush()
    links[1].full = False
    assert old == {key for key in places["s3"] if key.startswith("heads/")}
    assert old < {key for key in places["home"] if key.startswith("heads/")}
    async with pc.mounted() as volume:
        assert names(volume) == [b"a", b"b"] and not went_back(volume)
