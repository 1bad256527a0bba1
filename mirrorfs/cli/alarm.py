"""The alarm of a mounted volume: its light is looked at now and then, and a change of it is told.

The light is the one that `status` shows (cli/protection.py). A change, and a burst of files that look
encrypted, is logged and told once it has held for a while, so that a store that comes and goes, or a volume
that is written to all day, calls nobody each time.

A store that went back to an earlier state is told of by itself, once, whatever the light is.

The command is run without a shell, in "/", with a bare environment and JSON on its standard input: volume,
light, previous light, reason, time. One at a time, each with a deadline; what changes meanwhile is told
afterwards, the newest state only. Of changes of keys and stores it is told by the command that made or found
them (cli/key_events.py). It is started by exec from this process (vfork: no copy of its memory).
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import trio

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
from mirrorfs.errors import ConfigError

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
    ) -> None:
        """
        Args:
            status: returns the fields of engine.volume.VolumeStatus.
            drills: returns what is known of the drills on each store, by name.
            untold: returns the stores that went back of which nothing was told, and when that was found.
            on_told: hears of which of these it was told.
        """
        self._volume = volume
        self._config = config
        self._status = status
        self._drills = drills
        self._untold = untold
        self._on_told = on_told
        self._told: Light | None = None
        self._told_burst: int | None = None
        """Position of the last clean moment of the burst that was told."""
        self._light: Light | None = None
        self._burst: int | None = None
        self._since_s = 0.0
        self._failed = False

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._tell_of_stores()
            protection = self.look()
            if protection is not None:
                await self._tell(protection)
            await trio.sleep(LOOK_EVERY_S)

    def look(self) -> Protection | None:
        """The state now, if its light has changed since it was told, and held since."""
        protection = judge(
            self._status(),
            asked_ns=time.time_ns(),
            written_back=False,
            thresholds=self._config,
            drills=self._drills(),
        )
        now_s = trio.current_time()
        burst = _began(protection)
        if (protection.light, burst) != (self._light, self._burst):
            self._light, self._burst, self._since_s = protection.light, burst, now_s
        is_told = protection.light is self._told and burst in (None, self._told_burst)
        if is_told or now_s - self._since_s < HOLDS_S[protection.light]:
            return None
        return protection

    async def _tell(self, protection: Protection) -> None:
        before, self._told = self._told, protection.light
        self._told_burst = _began(protection)
        if before is None and protection.light is Light.PROTECTED:
            return  # so it begins
        level = logging.WARNING if protection.light is Light.AT_RISK else logging.INFO
        log.log(level, "The volume is %s. %s", protection.light.value, protection.reason or "")
        if self._config.command:
            message = {
                "volume": self._volume,
                "light": protection.light.value,
                "previous": None if before is None else before.value,
                "reason": protection.reason,
                "time_ns": time.time_ns(),
                "stores": [asdict(store) for store in protection.stores],
                "burst": burst_json(protection.burst),
            }
            await self._run_command(json.dumps(message).encode())

    async def _tell_of_stores(self) -> None:
        if not self._config.command:
            return  # a command that is configured later is told then
        for store, found_ns in self._untold():
            reason = went_back_reason(store, found_ns, time.time_ns())
            message: dict[str, Any] = {
                "volume": self._volume, "event": "store-went-back", "light": None, "previous": None,
                "reason": reason, "time_ns": found_ns, "stores": [],
            }  # fmt: skip
            await self._run_command(json.dumps(message).encode())
            self._on_told(store)

    def locked(self, reason: str) -> None:
        """The volume is being locked: start the command, which is not waited for.

        Its message is that of a light that did not change, and `event`.
        """
        light = None if self._told is None else self._told.value
        message: dict[str, Any] = {
            "volume": self._volume, "event": "locked", "light": light, "previous": light,
            "reason": reason, "time_ns": time.time_ns(), "stores": [],
        }  # fmt: skip
        if not start_command(self._config, message):
            log.warning("The alarm command could not be started.")

    async def _run_command(self, message: bytes) -> None:
        try:
            how = _how(self._config)
            program = how.pop("args")
            with trio.move_on_after(DEADLINE_S) as scope:
                done = await trio.run_process(program, stdin=message, check=False, **how)
            failure = "it did not end in time" if scope.cancelled_caught else ""
            if not failure and done.returncode != 0:
                failure = f"it ended with exit code {done.returncode}"
        except (ConfigError, OSError, ValueError, LookupError) as exc:
            failure = str(exc) if isinstance(exc, ConfigError) else "it could not be started"
        if failure and not self._failed:
            log.warning("The alarm command failed: %s.", failure.rstrip("."))
        self._failed = bool(failure)


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
