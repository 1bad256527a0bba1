"""The alarm of a mounted volume: its light is looked at now and then, and a change of it is told.

The light is the one that `status` shows (cli/protection.py). A change, and a burst of files that look
encrypted, is logged and told once it has held for a while, so that a store that comes and goes, or a volume
that is written to all day, calls nobody each time.

A store that went back to an earlier state is told of by itself, once, whatever the light is.

The command is run without a shell, in "/", with a bare environment and JSON on its standard input: volume,
light, previous light, reason, time. One at a time, each with a deadline; what changes meanwhile is told
afterwards, the newest state only. A command that fails is run again, with longer and longer pauses, while its
light is the newest. What was told last is kept (cli/alarm_note.py), so that the next mount tells what has
changed since. Of changes of keys and stores it is told by the command that made or found them
(cli/key_events.py). It is started by exec from this process (vfork: no copy of its memory).
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import trio

from mirrorfs.cli.alarm_note import AlarmNote, Told, Unheard
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.protection import (
    NO_DRILLS,
    LastDrill,
    Light,
    Protection,
    burst_json,
    judge,
    went_back_reason,
)
from mirrorfs.errors import ConfigError, DiskError

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
HOLDS_S: Final = {
    Light.AT_RISK: 10.0,
    Light.UNTESTED: 60.0,
    Light.CATCHING_UP: 60.0,
    Light.PROTECTED: 10.0,
}
"""How long a light must have been on before it is told."""
DEADLINE_S: Final = 60.0
END_S: Final = 5.0
"""How long a command that is broken off has until it is killed."""
AGAIN_FIRST_S: Final = 180.0
"""Pause after a command that failed; it doubles with each further failure ..."""
AGAIN_MAX_S: Final = 900.0
"""... up to this: there may be mails that did go out."""
_END_POLL_S: Final = 0.1
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


def check_command(alarm: AlarmConfig) -> None:
    """Raises: ConfigError: the program is not there, or others than root and the caller could change it."""
    if not alarm.command:
        return
    program = alarm.command[0]
    try:
        found = os.stat(program)
    except OSError as exc:
        raise ConfigError(f"The alarm command {program} cannot be found; correct the configuration.") from exc
    if not stat.S_ISREG(found.st_mode) or not os.access(program, os.X_OK):
        raise ConfigError(f"The alarm command {program} is no program that can be run; correct it.")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise ConfigError(
            f"The alarm command {program} could be changed by others; give it to root and run 'chmod go-w'."
        )


@dataclass(slots=True)
class _Trouble:
    """The command was told something in vain; the light and the stores have one each."""

    failures: int = 0
    """In a row."""
    again_s: float = 0.0
    """When it may be told again (trio's clock)."""
    unheard: Unheard | None = None

    def failed(self, light: Light, failure: str) -> None:
        """`failure`: a part of a sentence."""
        if not self.failures:
            log.warning("The alarm command failed: %s.", failure)
        pause_s = min(AGAIN_MAX_S, AGAIN_FIRST_S * 2.0 ** min(self.failures, 16))
        self.again_s = trio.current_time() + pause_s
        self.failures += 1
        since_ns = time.time_ns() if self.unheard is None else self.unheard.since_ns
        self.unheard = Unheard(light, since_ns, failure)

    def is_over(self) -> None:
        """The command was told, or there is nothing to tell any more."""
        self.unheard = None
        self.failures, self.again_s = 0, 0.0


class Alarm:
    """Watches one volume."""

    def __init__(
        self,
        volume: str,
        config: AlarmConfig,
        *,
        status: Callable[[], dict[str, Any]],
        drills: Callable[[], Mapping[str, LastDrill]] = lambda: NO_DRILLS,
        untold: Callable[[], Sequence[tuple[str, int]]] = lambda: (),
        on_told: Callable[[str], None] = lambda store: None,
        note: AlarmNote | None = None,
    ) -> None:
        """
        Args:
            status: returns the fields of engine.volume.VolumeStatus.
            drills: returns what is known of the drills on each store, by name.
            untold: returns the stores that went back of which nothing was told, and when that was found.
            on_told: hears of which of these it was told.
            note: where it is kept what was told last; None: nowhere.
        """
        self._volume = volume
        self._config = config
        self._status = status
        self._drills = drills
        self._known_drills = NO_DRILLS
        self._untold = untold
        self._on_told = on_told
        self._note = note
        self._told: Told | None = None
        self._of_light, self._of_stores = _Trouble(), _Trouble()
        self._light: Light | None = None
        self._burst: int | None = None
        self._since_s = 0.0

    def unheard(self) -> Unheard | None:
        """What the command could not be told; None: it was told everything."""
        return self._of_light.unheard or self._of_stores.unheard

    async def run(self) -> None:
        """Look until cancelled."""
        self._recall()
        while True:
            await self._tell_of_stores()
            protection = self.look()
            if protection is not None:
                await self._tell(protection)
            await trio.sleep(LOOK_EVERY_S)

    def _recall(self) -> None:
        if self._note is None:
            return
        if not self._config.command:
            self._note.remove()  # a command that is configured later has heard nothing
            return
        told = self._told = self._note.read()
        if told is not None and not told.heard:
            why = "it did not end well in an earlier mount"
            self._of_light.unheard = Unheard(told.light, told.time_ns, why)

    def look(self) -> Protection | None:
        """The state now, if its light has held, and is another than was told, or was told in vain."""
        protection = judge(
            self._status(),
            asked_ns=time.time_ns(),
            written_back=False,
            thresholds=self._config,
            drills=self._drilled(),
        )
        now_s = trio.current_time()
        burst = _began(protection)
        if (protection.light, burst) != (self._light, self._burst):
            self._light, self._burst, self._since_s = protection.light, burst, now_s
        if now_s - self._since_s < HOLDS_S[protection.light]:
            return None
        told = self._told
        if told is not None and self._was_told(protection) and (told.heard or now_s < self._of_light.again_s):
            return None
        return protection

    def _drilled(self) -> Mapping[str, LastDrill]:
        # What cannot be read says nothing new; the mount is not to end for it.
        with suppress(OSError):
            self._known_drills = self._drills()
        return self._known_drills

    def _was_told(self, protection: Protection) -> bool:
        told = self._told
        return (
            told is not None and told.light is protection.light and _began(protection) in (None, told.burst)
        )

    async def _tell(self, protection: Protection) -> None:
        told = self._told
        if told is None or not self._was_told(protection):
            before = None if told is None else told.light
            # So it begins: of a volume that is well nobody need hear.
            is_news = before is not None or protection.light is not Light.PROTECTED
            if is_news:
                level = logging.WARNING if protection.light is Light.AT_RISK else logging.INFO
                log.log(level, "The volume is %s. %s", protection.light.value, protection.reason or "")
            told = Told(
                protection.light, before, _began(protection), time.time_ns(),
                heard=not is_news or not self._config.command,
            )  # fmt: skip
            self._remember(told)
        if told.heard:
            return
        message = {
            "volume": self._volume,
            "light": protection.light.value,
            "previous": None if told.previous is None else told.previous.value,
            "reason": protection.reason,
            "time_ns": told.time_ns,
            "stores": [asdict(store) for store in protection.stores],
            "burst": burst_json(protection.burst),
        }
        failure = await self._run_command(json.dumps(message).encode())
        if failure is None:
            self._ended_well(self._of_light)
            self._remember(replace(told, heard=True))
        else:
            self._of_light.failed(told.light, failure)

    @staticmethod
    def _ended_well(trouble: _Trouble) -> None:
        if trouble.failures:
            log.info("The alarm command works again.")
        trouble.is_over()

    def _remember(self, told: Told) -> None:
        self._told = told
        if self._note is None or not self._config.command:
            return
        try:
            self._note.write(told)
        except DiskError as exc:
            # A disk that is full is what may have to be told. The next mount tells it again, which it would
            # not by a note of what was told before.
            self._note.remove()
            log.warning("What the alarm command was told cannot be kept: %s", exc)

    async def _tell_of_stores(self) -> None:
        if not self._config.command:
            return  # one that is configured later is told then
        untold = self._untold()
        if not untold:
            self._of_stores.is_over()  # it was acknowledged unheard
        if trio.current_time() < self._of_stores.again_s:
            return
        for store, found_ns in untold:
            reason = went_back_reason(store, found_ns, time.time_ns())
            message: dict[str, Any] = {
                "volume": self._volume, "event": "store-went-back", "light": None, "previous": None,
                "reason": reason, "time_ns": found_ns, "stores": [],
            }  # fmt: skip
            failure = await self._run_command(json.dumps(message).encode())
            if failure is not None:
                # What has gone back is at risk.
                self._of_stores.failed(Light.AT_RISK, failure)
                return  # it is told again later
            self._ended_well(self._of_stores)
            self._on_told(store)

    def locked(self, reason: str) -> None:
        """The volume is being locked: start the command, which is not waited for.

        Its message is that of a light that did not change, and `event`.
        """
        light = None if self._told is None else self._told.light.value
        message: dict[str, Any] = {
            "volume": self._volume, "event": "locked", "light": light, "previous": light,
            "reason": reason, "time_ns": time.time_ns(), "stores": [],
        }  # fmt: skip
        if not start_command(self._config, message):
            log.warning("The alarm command could not be started.")

    async def _run_command(self, message: bytes) -> str | None:
        """Returns: how it failed, a part of a sentence; None: it ended well."""
        try:
            how = _how(self._config)
            program = how.pop("args")
            with trio.move_on_after(DEADLINE_S) as scope:
                end = partial(_end, since_s=scope.deadline)
                done = await trio.run_process(program, stdin=message, check=False, deliver_cancel=end, **how)
        except ConfigError as exc:
            return str(exc).rstrip(".")
        except (OSError, ValueError, LookupError):
            return "it could not be started"
        if scope.cancelled_caught:
            return "it did not end in time"
        return f"it ended with exit code {done.returncode}" if done.returncode else None


async def _end(process: trio.Process, *, since_s: float) -> None:
    """Break off a command: one that is late, with all that it began, or the next one may hang beside it.

    Of one that the unmount breaks off what it began goes on: it may be the mail.
    Args: since_s: when it is late (trio's clock).
    """
    signal_to = os.killpg if trio.current_time() >= since_s else os.kill
    # The group may be there when the process itself has ended.
    with trio.CancelScope(shield=True), suppress(ProcessLookupError, PermissionError):
        signal_to(process.pid, signal.SIGTERM)
        with trio.move_on_after(END_S):
            while process.returncode is None or signal_to is os.killpg:
                await trio.sleep(_END_POLL_S)
                signal_to(process.pid, 0)
            return
        signal_to(process.pid, signal.SIGKILL)


def start_command(config: AlarmConfig, message: Mapping[str, Any]) -> bool:
    """Start the command, if there is one, and do not wait for it: this process ends before it.

    Returns: whether that went well.
    """
    if not config.command:
        return True
    try:
        process = subprocess.Popen(stdin=subprocess.PIPE, **_how(config))
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps(message).encode())  # far less than a pipe holds
        process.returncode = 0  # so that nobody is told of a process that was left behind
    except (ConfigError, OSError, ValueError, LookupError):
        return False
    return True


def _how(config: AlarmConfig) -> dict[str, Any]:
    """Arguments for starting the command. Raises: ConfigError. LookupError: no such user."""
    check_command(config)
    # What root serves need not be root's alarm.
    user = pwd.getpwnam(config.user or "nobody") if os.geteuid() == 0 else None
    return {
        "args": list(config.command),
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "cwd": "/",
        "env": {"PATH": _PATH, "LANG": "C.UTF-8"},
        "start_new_session": True,
        "user": user and user.pw_uid,
        "group": user and user.pw_gid,
        "extra_groups": user and [],
    }


def _began(protection: Protection) -> int | None:
    return None if protection.burst is None else int(protection.burst["clean_position"])
