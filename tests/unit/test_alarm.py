"""When a change of the light is told, and to whom; what a bad alarm command does."""

from __future__ import annotations

import errno
import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.alarm import AGAIN_FIRST_S, AGAIN_MAX_S, HOLDS_S, LOOK_EVERY_S, Alarm, check_command
from mirrorfs.cli.alarm_note import NAME, AlarmNote, Told, Unheard, alarm_json, alarm_lines
from mirrorfs.cli.config import volume_paths
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.protection import Light
from mirrorfs.errors import ConfigError, DiskFull
from tests.unit.test_protection import AWAY, BURST, PENDING, status, store


class TellingAlarm(Alarm):
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
    alarm = TellingAlarm()
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
    alarm = TellingAlarm()
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
    alarm._told = Told(Light.PROTECTED, None, None, 0, heard=True)
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


class HookedAlarm(Alarm):
    """Its command is this test: it notes what it is told, and may fail."""

    def __init__(self, tmp_path: Path, *, command: tuple[str, ...] = ("/bin/true",)) -> None:
        home = {"MIRRORFS_CONFIG_HOME": str(tmp_path), "MIRRORFS_STATE_HOME": str(tmp_path)}
        paths = volume_paths("practice", home)
        paths.state.mkdir(exist_ok=True)
        self.file = paths.state / NAME
        self.now: dict[str, Any] = status(store())
        self.fails = False
        self.heard: list[tuple[str, str | None]] = []
        self.tried_s: list[float] = []
        self.messages: list[dict[str, Any]] = []
        config = AlarmConfig(max_lag_s=0, command=command)
        super().__init__("practice", config, status=lambda: self.now, note=AlarmNote(paths))

    async def _run_command(self, message: bytes) -> str | None:
        await trio.lowlevel.checkpoint()
        self.tried_s.append(trio.current_time())
        self.messages.append(json.loads(message))
        if self.fails:
            return "it ended with exit code 75"
        self.heard.append((self.messages[-1]["light"], self.messages[-1]["previous"]))
        return None

    async def mounted(self, now: dict[str, Any], *, seconds: float = 200.0) -> None:
        """Look at a state for a while, as a mount of its own does."""
        self.now = now
        with trio.move_on_after(seconds):
            await self.run()


@pytest.mark.expects_warnings("is at-risk", "The alarm command failed: it ended with exit code 75.")
async def test_what_could_not_be_told_is_told_again(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    alarm = HookedAlarm(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(60)
        assert (alarm.messages, alarm.unheard()) == ([], None)
        alarm.now, alarm.fails = status(store(**AWAY)), True
        await trio.sleep(3600)
        gaps_s = [later - before for before, later in itertools.pairwise(alarm.tried_s)]
        assert AGAIN_FIRST_S <= gaps_s[0] <= AGAIN_FIRST_S + 2 * LOOK_EVERY_S
        assert all(before <= later + LOOK_EVERY_S for before, later in itertools.pairwise(gaps_s))
        assert AGAIN_MAX_S <= gaps_s[-1] <= AGAIN_MAX_S + 2 * LOOK_EVERY_S, "every few minutes, for ever"
        unheard = alarm.unheard()
        assert unheard is not None
        assert (unheard.light, unheard.error) == (Light.AT_RISK, "it ended with exit code 75")
        assert len({message["time_ns"] for message in alarm.messages}) == 1, "when it began"
        assert sum("The alarm command failed" in record.message for record in caplog.records) == 1
        alarm.fails = False
        await trio.sleep(AGAIN_MAX_S + 2 * LOOK_EVERY_S)
        assert alarm.heard == [("at-risk", "protected")]
        assert alarm.unheard() is None
        await trio.sleep(3600)
        assert len(alarm.heard) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings("The alarm command failed: it ended with exit code 75.")
async def test_a_store_that_went_back_is_told_until_it_is_heard(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    alarm = HookedAlarm(tmp_path)
    untold = {"nas": time.time_ns()}
    alarm._untold, alarm._on_told = lambda: list(untold.items()), untold.__delitem__
    alarm.fails = True
    await alarm.mounted(status(store("nas")), seconds=AGAIN_FIRST_S + 2 * LOOK_EVERY_S)
    assert (len(alarm.tried_s), list(untold)) == (2, ["nas"])
    alarm.fails = False
    await alarm.mounted(status(store("nas")), seconds=AGAIN_MAX_S)
    assert (len(alarm.heard), untold) == (1, {})


class EventDeaf(HookedAlarm):
    """Its command fails for all that is no light."""

    async def _run_command(self, message: bytes) -> str | None:
        fails, self.fails = self.fails, self.fails or json.loads(message)["light"] is None
        try:
            return await super()._run_command(message)
        finally:
            self.fails = fails


@pytest.mark.expects_warnings("is at-risk", "The alarm command failed")
async def test_an_event_that_is_not_heard_holds_up_no_light(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    alarm = EventDeaf(tmp_path)
    alarm._untold = lambda: [("nas", 1)]
    alarm.now, alarm.fails = status(store("nas", **AWAY)), True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(100)
        alarm.fails = False
        await trio.sleep(3 * AGAIN_MAX_S)
        assert alarm.heard == [("at-risk", None)]
        unheard = alarm.unheard()
        assert unheard is not None and unheard.light is Light.AT_RISK, "nobody knows of the store"
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings("The alarm command failed")
async def test_status_says_that_an_event_was_not_heard(tmp_path: Path, autojump_clock: MockClock) -> None:
    alarm = HookedAlarm(tmp_path)
    untold = {"nas": 1}
    alarm._untold, alarm._on_told = lambda: list(untold.items()), untold.__delitem__
    alarm.fails = True
    await alarm.mounted(status(store("nas")))
    unheard = alarm.unheard()
    assert unheard is not None
    assert (unheard.light, unheard.error) == (Light.AT_RISK, "it ended with exit code 75")
    alarm.fails = False
    await alarm.mounted(status(store("nas")), seconds=2 * AGAIN_MAX_S)
    assert (alarm.heard, alarm.unheard()) == ([(None, None)], None)
    # So it is if a person acknowledges what nobody was told.
    untold["nas"], alarm.fails = 2, True
    await alarm.mounted(status(store("nas")))
    assert alarm.unheard() is not None
    untold.clear()
    await alarm.mounted(status(store("nas")))
    assert alarm.unheard() is None


@pytest.mark.expects_warnings("is at-risk", "The alarm command failed")
async def test_only_the_newest_light_is_told_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    alarm = HookedAlarm(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.sleep(60)
        alarm.now, alarm.fails = status(store(**AWAY)), True
        await trio.sleep(100)
        alarm.now, alarm.fails = status(store()), False
        await trio.sleep(2 * AGAIN_MAX_S)
        # A command that failed may have told somebody: so the end of it is told, too.
        assert alarm.heard == [("protected", "at-risk")]
        assert alarm.unheard() is None
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings("is at-risk")
async def test_what_was_told_is_known_to_the_next_mount(tmp_path: Path, autojump_clock: MockClock) -> None:
    heard = []
    for now in (store(), store(**AWAY), store(**AWAY), store(), store()):
        alarm = HookedAlarm(tmp_path)
        await alarm.mounted(status(now))
        heard.append(alarm.heard)
    assert heard == [[], [("at-risk", "protected")], [], [("protected", "at-risk")], []]
    assert set(json.loads(alarm.file.read_bytes())) == {"light", "previous", "burst", "time_ns", "heard"}


@pytest.mark.expects_warnings("is at-risk", "The alarm command failed")
async def test_what_could_not_be_told_is_told_by_the_next_mount(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    await HookedAlarm(tmp_path).mounted(status(store()))
    first = HookedAlarm(tmp_path)
    first.fails = True
    await first.mounted(status(store(**AWAY), burst=BURST))
    second = HookedAlarm(tmp_path)
    second._recall()
    unheard = second.unheard()
    assert unheard is not None and unheard.light is Light.AT_RISK
    await second.mounted(status(store(**AWAY), burst=BURST))
    assert second.heard == [("at-risk", "protected")]
    assert second.messages[0]["time_ns"] == first.messages[0]["time_ns"]
    third = HookedAlarm(tmp_path)
    await third.mounted(status(store(**AWAY), burst=BURST))
    assert third.heard == [], "the burst is known, too"
    await third.mounted(status(store(**AWAY), burst={**BURST, "clean_position": 19 << 20}))
    assert third.heard == [("at-risk", "at-risk")]


@pytest.mark.expects_warnings("is at-risk")
@pytest.mark.parametrize(
    "kept",
    [b"", b"{", b"[1]", b"5", b"[" * 4000, b"\xff\xfe", b'{"light": "at-risk"}',
     b'{"light": "blue", "previous": null, "burst": null, "time_ns": 1, "heard": true}',
     b'{"light": "at-risk", "previous": 7, "burst": null, "time_ns": 1, "heard": true}',
     b'{"light": "at-risk", "previous": null, "burst": [], "time_ns": 1e999, "heard": true}'],
)  # fmt: skip
async def test_a_damaged_note_is_none(tmp_path: Path, autojump_clock: MockClock, kept: bytes) -> None:
    alarm = HookedAlarm(tmp_path)
    alarm.file.write_bytes(kept)
    await alarm.mounted(status(store(**AWAY)))
    assert alarm.heard == [("at-risk", None)]
    assert AlarmNote.read(alarm._note) is not None  # type: ignore[arg-type]


@pytest.mark.expects_warnings("is at-risk")
async def test_a_command_that_comes_later_has_heard_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    await HookedAlarm(tmp_path).mounted(status(store(**AWAY)))
    without = HookedAlarm(tmp_path, command=())
    await without.mounted(status(store(**AWAY)))
    assert (without.messages, without.file.exists()) == ([], False)
    later = HookedAlarm(tmp_path)
    await later.mounted(status(store(**AWAY)))
    assert later.heard == [("at-risk", None)]


@pytest.mark.expects_warnings("is at-risk", "What the alarm command was told cannot be kept")
async def test_a_full_disk_stops_no_alarm(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(note: AlarmNote, told: Told) -> None:
        raise DiskFull("The local disk is full.")

    monkeypatch.setattr(AlarmNote, "write", full)
    alarm = HookedAlarm(tmp_path)
    await alarm.mounted(status(store(**AWAY)), seconds=1000)
    assert alarm.heard == [("at-risk", None)]


@pytest.mark.expects_warnings("is at-risk", "What the alarm command was told cannot be kept")
async def test_what_cannot_be_kept_hides_no_risk_from_the_next_mount(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(note: AlarmNote, told: Told) -> None:
        raise DiskFull("The local disk is full.")

    await HookedAlarm(tmp_path).mounted(status(store(**AWAY)))
    with monkeypatch.context() as during:
        during.setattr(AlarmNote, "write", full)
        await HookedAlarm(tmp_path).mounted(status(store()))
    alarm = HookedAlarm(tmp_path)
    await alarm.mounted(status(store(**AWAY)))
    assert alarm.heard == [("at-risk", None)], "it was over in between"


@pytest.mark.expects_warnings("is at-risk")
async def test_drills_that_cannot_be_read_end_no_alarm(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An OSError would end the mount."""

    def broken() -> Any:
        raise OSError(errno.EIO, "Input/output error")

    alarm = HookedAlarm(tmp_path)
    alarm._drills = broken
    await alarm.mounted(status(store(**AWAY)))
    assert alarm.heard == [("at-risk", None)]


@pytest.mark.expects_warnings("is at-risk", "The alarm command failed: it ended with exit code 1.")
async def test_a_command_that_ends_with_an_error_has_failed() -> None:
    alarm = Alarm("practice", AlarmConfig(command=("/bin/false",)), status=lambda: status(store(**AWAY)))
    alarm.look()
    alarm._since_s -= HOLDS_S[Light.AT_RISK]
    protection = alarm.look()
    assert protection is not None
    await alarm._tell(protection)
    unheard = alarm.unheard()
    assert unheard is not None and unheard.error == "it ended with exit code 1"


@pytest.mark.parametrize("ending", ["", "trap '' TERM\n"])
async def test_a_command_that_does_not_end_leaves_nothing_behind(
    told_by: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """It is run again and again: a mail that hangs must not hang once more each time."""
    monkeypatch.setattr("mirrorfs.cli.alarm.DEADLINE_S", 0.5)
    monkeypatch.setattr("mirrorfs.cli.alarm.END_S", 0.5)
    program, out = told_by
    program.write_text(f'#!/bin/sh\n{ending}sleep 600 &\necho $! > "$1.new"\nmv "$1.new" "$1"\nwait\n')
    alarm = Alarm("practice", AlarmConfig(command=(str(program), str(out))), status=lambda: status(store()))
    assert await alarm._run_command(b"{}") == "it did not end in time"
    child = Path("/proc") / out.read_text().strip() / "cmdline"
    with trio.fail_after(10):
        while child.exists() and child.read_bytes():  # noqa: ASYNC110 - it is no child of ours
            await trio.sleep(0.05)


def test_what_status_says_of_a_command_that_fails() -> None:
    assert (alarm_lines(None, now_ns=5), alarm_json(None)) == ([], None)
    fields = asdict(Unheard(Light.AT_RISK, 1_700_000_000 * 10**9, "it could not be started"))
    (line,) = alarm_lines(fields, now_ns=1_700_000_100 * 10**9)
    assert "it could not be started; nobody was told that the volume is at-risk" in line
    assert alarm_json(fields) == {
        "light": "at-risk", "failing_since": "2023-11-14T22:13:20.000Z", "error": "it could not be started",
    }  # fmt: skip


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
