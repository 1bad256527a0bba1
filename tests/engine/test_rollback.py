"""A store that goes back to an earlier state: it is said at the next mount, and brought forward."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.daily_look import FIRST_S
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.format.control import LEASE_KEY
from tests.support.practice import SAID, Practice, names, save

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
    assert [record.args for record in caplog.records if GONE_BACK in record.message] == [("home",)]
    assert all(home[key] == data for key, data in full.items())


@pytest.mark.expects_warnings(GONE_BACK, "Mended|missing", "falling behind", "not held yet", *SAID)
async def test_one_that_was_away_at_the_mount_is_looked_at_when_it_answers(
    autojump_clock: MockClock, practice: Practice
) -> None:
    early = await written_twice(practice)
    full = practice.objects()["home"]
    home = practice.places["home"]
    for key in [key for key in home if key not in early]:
        del home[key]
    pc = practice.pc("one")
    pc.cut_off("home")
    async with pc.mounted() as volume:
        assert names(volume) == [b"a", b"b"]
        await trio.sleep(FIRST_S + SOON_S)
        pc.reconnect()
        await trio.sleep(LEASE_PERIOD_S + SOON_S)
        assert not full.keys() - home.keys()


async def test_a_store_that_is_only_behind_is_not_accused(
    autojump_clock: MockClock, practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    early = await written_twice(practice)
    assert early
    async with practice.pc("one").mounted() as volume:
        await trio.sleep(SOON_S)
        await volume.flush()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
