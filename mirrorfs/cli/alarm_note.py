"""Which light was told last, kept across mounts, and what `status` says when it could not be told.

The small file in the state directory holds lights, a position and a time; no names. A damaged one is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.protection import Light
from mirrorfs.cli.shown_times import local_time, timestamp
from mirrorfs.drivers.local_disk import LocalDisk

NAME: Final = "alarm.json"
_SIZE_MAX_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Told:
    """What the alarm command is, or was, told last."""

    light: Light
    previous: Light | None
    """None: none is known."""
    burst: int | None
    """Position of the last clean moment of the burst that is told with it."""
    time_ns: int
    """When it was first to be told."""
    heard: bool
    """The command ended well; else it is run again."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """The alarm command fails, and the newest light is not told."""

    light: Light
    since_ns: int
    error: str
    """How it failed last; a part of a sentence."""


class AlarmNote:
    """The file in the state directory of one volume."""

    def __init__(self, paths: VolumePaths) -> None:
        self._paths = paths

    def read(self) -> Told | None:
        """None when nothing was told yet, or the file cannot be made out."""
        try:
            with open(self._paths.state / NAME, "rb") as file:
                values = json.loads(file.read(_SIZE_MAX_BYTES))
            previous, burst = values["previous"], values["burst"]
            return Told(
                light=Light(values["light"]),
                previous=None if previous is None else Light(previous),
                burst=None if burst is None else int(burst),
                time_ns=int(values["time_ns"]),
                heard=values["heard"] is True,
            )
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return None

    def write(self, told: Told) -> None:
        """Raises: DiskError."""
        LocalDisk(self._paths.state).write_whole(NAME, json.dumps(asdict(told)).encode())

    def remove(self) -> None:
        """Nothing is known of what was told."""
        with suppress(OSError):  # then it stays, which does little harm
            (self._paths.state / NAME).unlink()


def alarm_lines(unheard: Mapping[str, Any] | None, *, now_ns: int) -> list[str]:
    """Of a mounted volume: fields of Unheard; None: there is nothing to say."""
    if unheard is None:
        return []
    since = local_time(unheard["since_ns"], now_ns=now_ns)
    return [
        f"  THE ALARM COMMAND FAILS since {since}: {unheard['error']}; nobody was told that the volume is"
        f" {unheard['light']}; it is tried again every few minutes"
    ]


def alarm_json(unheard: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`alarm` of docs/status-json.md."""
    if unheard is None:
        return None
    return {
        "light": unheard["light"],
        "failing_since": timestamp(unheard["since_ns"]),
        "error": unheard["error"],
    }
