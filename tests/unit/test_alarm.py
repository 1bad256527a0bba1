"""When a change of the light is told, and to whom; what a bad alarm command does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.alarm import HOLDS_S, LOOK_EVERY_S, Alarm, check_command
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.protection import Light
from mirrorfs.errors import ConfigError
from tests.unit.test_protection import AWAY, BURST, PENDING, status, store


class Told(Alarm):
    """Notes what would be told."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = status(store())
        self.told: list[tuple[float, Light]] = []
        super().__init__("practice", AlarmConfig(max_lag_s=0), status=lambda: self.now)

    async def _tell(self, protection: Any) -> None:
        await super()._tell(protection)
        self.told.append((trio.current_time(), protection.light))


@pytest.mark.expects_warnings("is at-risk")
async def test_a_light_is_told_when_it_has_held(autojump_clock: MockClock) -> None:
    alarm = Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(60)
        for _ in range(20):
            alarm.now = status(store(**PENDING))
            await trio.sleep(HOLDS_S[Light.CATCHING_UP] / 2)
            alarm.now = status(store())
            await trio.sleep(HOLDS_S[Light.PROTECTED] + 2 * LOOK_EVERY_S)
        assert [light for _, light in alarm.told] == [Light.PROTECTED], "written to and sent, all day"
        began_s = trio.current_time()
        alarm.now = status(store(**AWAY))
        await trio.sleep(100)
        when_s, light = alarm.told[-1]
        assert light is Light.AT_RISK
        assert when_s - began_s <= HOLDS_S[Light.AT_RISK] + 2 * LOOK_EVERY_S
        alarm.now = status(store())
        await trio.sleep(100)
        assert [light for _, light in alarm.told[1:]] == [Light.AT_RISK, Light.PROTECTED]
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings("is at-risk")
async def test_a_burst_is_told_although_the_light_was_on(autojump_clock: MockClock) -> None:
    alarm = Told()
    alarm.now = status(store(**AWAY))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(100)
        assert len(alarm.told) == 1
        alarm.now = status(store(**AWAY), burst=BURST)
        await trio.sleep(100)
        assert len(alarm.told) == 2
        # One that goes on is not told again, another one is, and that it was cleared is not.
        alarm.now = status(store(**AWAY), burst={**BURST, "files": 100, "last_position": 19 << 20})
        await trio.sleep(100)
        assert len(alarm.told) == 2
        alarm.now = status(store(**AWAY), burst=None)
        await trio.sleep(100)
        assert len(alarm.told) == 2
        alarm.now = status(store(**AWAY), burst={**BURST, "clean_position": 19 << 20})
        await trio.sleep(100)
        assert [light for _, light in alarm.told] == 3 * [Light.AT_RISK]
        nursery.cancel_scope.cancel()


@pytest.fixture
def told_by(tmp_path: Path) -> tuple[Path, Path]:
    """A program that any user may run, and the file that it writes."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    program, out = tmp_path / "alarm", tmp_path / "out" / "told"
    out.parent.mkdir()
    out.parent.chmod(0o777)
    program.write_text('#!/bin/sh\ncat > "$1"\necho "$HOME" > "$1.home"\n')
    program.chmod(0o755)
    return program, out


def read_json(out: Path) -> dict[str, Any]:
    home = out.with_name(f"{out.name}.home").read_text().strip()
    return {**json.loads(out.read_text()), "home": home}


@pytest.mark.expects_warnings("is at-risk")
async def test_the_command_gets_json(told_by: tuple[Path, Path]) -> None:
    program, out = told_by
    alarm = Alarm(
        "practice",
        AlarmConfig(command=(str(program), str(out)), max_lag_s=0),
        status=lambda: status(store(**AWAY)),
    )
    alarm._told = Light.PROTECTED
    alarm.look()
    alarm._since_s -= HOLDS_S[Light.AT_RISK]
    protection = alarm.look()
    assert protection is not None
    await alarm._tell(protection)
    told = read_json(out)
    assert (told["volume"], told["light"], told["previous"]) == ("practice", "at-risk", "protected")
    assert "away" in told["reason"]
    assert told["home"] == "", "nothing of our environment"


async def test_that_a_store_went_back_is_told_once(told_by: tuple[Path, Path]) -> None:
    program, out = told_by
    untold = {"nas": time.time_ns()}
    found_ns = untold["nas"]

    def alarm(*command: str) -> Alarm:
        return Alarm(
            "practice", AlarmConfig(command=command), status=lambda: status(store("nas")),
            untold=lambda: list(untold.items()), on_told=untold.pop,
        )  # fmt: skip

    await alarm()._tell_of_stores()
    assert untold, "there is no command yet"
    await alarm(str(program), str(out))._tell_of_stores()
    told = read_json(out)
    assert (told["volume"], told["event"], told["time_ns"]) == ("practice", "store-went-back", found_ns)
    assert told["reason"].startswith("Store nas went back to an earlier state")
    assert told["light"] is None and not untold


async def test_a_store_that_went_back_is_told_at_the_mount(told_by: tuple[Path, Path]) -> None:
    program, out = told_by
    told = trio.Event()
    alarm = Alarm(
        "practice", AlarmConfig(command=(str(program), str(out))), status=lambda: status(store("nas")),
        untold=lambda: [] if told.is_set() else [("nas", time.time_ns())], on_told=lambda name: told.set(),
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        with trio.fail_after(60):
            await told.wait()
        nursery.cancel_scope.cancel()
    assert read_json(out)["event"] == "store-went-back"


@pytest.mark.expects_warnings("is at-risk", "The alarm command failed")
async def test_a_command_that_fails_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alarm = Alarm("practice", AlarmConfig(command=("/bin/false",)), status=lambda: status(store(**AWAY)))
    alarm.look()
    alarm._since_s -= HOLDS_S[Light.AT_RISK]
    protection = alarm.look()
    assert protection is not None
    for _ in range(3):
        await alarm._tell(protection)
    assert sum("The alarm command failed" in record.message for record in caplog.records) == 1


def test_commands_that_are_refused(tmp_path: Path) -> None:
    check_command(AlarmConfig())
    check_command(AlarmConfig(command=("/bin/true",)))
    program = tmp_path / "alarm"
    for mode, words in ((None, "cannot be found"), (0o644, "no program"), (0o777, "changed by others")):
        if mode is not None:
            program.write_text("#!/bin/sh\n")
            program.chmod(mode)
        with pytest.raises(ConfigError, match=words):
            check_command(AlarmConfig(command=(str(program),)))


@pytest.mark.parametrize(
    "table",
    [
        {"max_lag_s": -1},
        {"max_lag_s": True},
        {"max_pending": 5},
        {"min_free": "much"},
        {"command": "/bin/true"},
        {"command": ["true"]},
        {"command": ["/bin/true", 5]},
        {"user": 0},
        {"max_encrypted_files": -1},
        {"max_encrypted_files": 1 << 30},
        {"other": 1},
        [],
    ],
)
def test_configurations_that_are_refused(table: Any) -> None:
    with pytest.raises(ConfigError, match="alarm"):
        AlarmConfig.from_table(table)


def test_that_a_volume_is_locked_is_told_and_not_waited_for(told_by: tuple[Path, Path]) -> None:
    program, out = told_by
    command = (str(program), str(out))
    Alarm("practice", AlarmConfig(command=command), status=lambda: status(store())).locked("It was locked.")
    deadline_s = time.monotonic() + 20
    while not out.with_name(f"{out.name}.home").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    told = read_json(out)
    assert (told["event"], told["reason"], told["light"]) == ("locked", "It was locked.", None)


@pytest.mark.expects_warnings("The alarm command could not be started")
def test_a_lock_does_not_fail_for_its_alarm() -> None:
    Alarm("practice", AlarmConfig(command=("/nowhere",)), status=lambda: status(store())).locked("Locked.")
    Alarm("practice", AlarmConfig(), status=lambda: status(store())).locked("Locked.")
