"""The small file in the state directory that says when and why a volume was locked; no secrets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from mirrorfs.cli.config import VolumePaths
from mirrorfs.drivers.local_disk import LocalDisk

_NAME: Final = "locked.json"
_SIZE_MAX_BYTES: Final = 4096


class LockEvent(StrEnum):
    """What locked a volume, as the log, `status` and the alarm command are told."""

    REMOVAL = "token-removed"
    COMMAND = "command"
    SUSPEND = "suspend"
    LOGOUT = "logout"


REASONS: Final = {
    LockEvent.REMOVAL: "its token was removed",
    LockEvent.COMMAND: "`mirrorfs lock` was run",
    LockEvent.SUSPEND: "the machine went to sleep",
    LockEvent.LOGOUT: "its user logged out",
}


@dataclass(frozen=True, slots=True)
class LockNote:
    """How the last mount of a volume ended, if it was locked."""

    event: LockEvent
    time_ns: int
    complete: bool
    """Whether everything that was written had reached the local log in time."""


def write_note(paths: VolumePaths, note: LockNote) -> None:
    """Raises: DiskError."""
    LocalDisk(paths.state).write_whole(_NAME, json.dumps(asdict(note)).encode())


def read_note(paths: VolumePaths) -> LockNote | None:
    """None when the last mount did not end so, or the file cannot be made out."""
    try:
        with open(paths.state / _NAME, "rb") as file:
            values = json.loads(file.read(_SIZE_MAX_BYTES))
        return LockNote(LockEvent(values["event"]), int(values["time_ns"]), values["complete"] is True)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remove_note(paths: VolumePaths) -> None:
    """The volume is mounted again."""
    (paths.state / _NAME).unlink(missing_ok=True)
