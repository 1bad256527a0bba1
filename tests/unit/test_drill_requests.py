"""Which stores a mounted volume tries by itself, and when."""

from __future__ import annotations

import argparse
import errno
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli import drill_requests
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.drill_record import LastDrills
from mirrorfs.cli.drill_requests import EVERY_S, FIRST_S, DrillRequests
from mirrorfs.cli.key_pipe import SessionRequest, UnlockedSession
from mirrorfs.core.retention import DAY_NS
from mirrorfs.errors import MirrorfsError, StoreUnavailable
from tests.support.volumes import KEY_SET
from tests.unit.test_config import CONFIG

NOW_NS = 1000 * DAY_NS


@pytest.mark.expects_warnings("failed a restore drill")
async def test_by_schedule(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [store.name for store in CONFIG.stores]
    last = dict.fromkeys(names, LastDrills())
    config = replace(CONFIG, alarm=AlarmConfig(drill_every_days=30))
    tried: list[tuple[float, str]] = []
    begun_s = trio.current_time()

    class Record:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def last(self, stores: object) -> dict[str, LastDrills]:
            return last

    async def run(self: DrillRequests, store: str, sample: str, say: object) -> dict[str, Any]:
        tried.append((trio.current_time() - begun_s, store))
        if len(tried) == 1:
            raise StoreUnavailable("It is away.")
        last[store] = LastDrills(good_ns=NOW_NS) if len(tried) == 2 else LastDrills(failed_ns=NOW_NS)
        return {"passed": len(tried) == 2}

    monkeypatch.setattr(drill_requests, "load_config", lambda paths: config)
    monkeypatch.setattr(drill_requests, "DrillRecord", Record)
    monkeypatch.setattr(drill_requests.time, "time_ns", lambda: NOW_NS)
    monkeypatch.setattr(DrillRequests, "_run", run)
    unlocked = UnlockedSession(SessionRequest("v", "", "/v"), KEY_SET, b"")
    drills = DrillRequests(unlocked, cast(Any, Path("/nowhere")), cast(Any, None))
    with trio.move_on_after(FIRST_S + 3 * EVERY_S + 60):
        await drills.by_schedule()
    assert [store for _, store in tried] == [names[0], names[1], names[0]]
    assert [round(at_s) for at_s, _ in tried] == [FIRST_S, FIRST_S, FIRST_S + EVERY_S]
    monkeypatch.setattr(drill_requests.time, "time_ns", lambda: NOW_NS + 30 * DAY_NS)
    assert [store.name for store in drills._due()] == names
    config = replace(CONFIG, alarm=AlarmConfig())
    assert drills._due() == []


@pytest.mark.parametrize("broken", ["work_directory", "command"])
async def test_a_disk_or_system_that_is_full_fails_the_drill_alone(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """An OSError would end the mount."""

    def full(*_: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Control:
        limits = None

        def volume(self) -> Any:
            return argparse.Namespace(header_bytes=b"")

    monkeypatch.setattr(drill_requests, broken, full)
    unlocked = UnlockedSession(SessionRequest("v", "", "/v"), KEY_SET, b"")
    drills = DrillRequests(unlocked, cast(Any, Path("/nowhere")), cast(Any, Control()))

    async def say(message: object) -> None:
        raise AssertionError(message)

    with pytest.raises(MirrorfsError, match="cannot be run: No space left on device"):
        await drills._run("nas", "", say)


@pytest.mark.expects_warnings("No drill is run: the reports cannot be read")
def test_reports_that_cannot_be_read_end_no_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    config = replace(CONFIG, alarm=AlarmConfig(drill_every_days=30))
    monkeypatch.setattr(drill_requests, "load_config", lambda paths: config)
    monkeypatch.setattr(drill_requests.DrillRecord, "last", broken)
    unlocked = UnlockedSession(SessionRequest("v", "", "/v"), KEY_SET, b"")
    assert DrillRequests(unlocked, cast(Any, Path("/nowhere")), cast(Any, None))._due() == []
