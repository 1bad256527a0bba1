"""The record of what was done with a volume's keys, stores and snapshots: a small file in the local state.

Bounded, and without secrets or names of files. cli/key_events.py writes it, `status` shows it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.failures import one_line
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.errors import DiskError
from mirrorfs.format.header import VolumeHeader

EVENTS_MAX: Final = 64
"""Of those that changed something, or used the recovery code."""
REFUSED_MAX: Final = 16
"""Of the others: whoever guesses passwords is not to push out the rest."""
RIVALS_MAX: Final = 32
SIZE_MAX_BYTES: Final = 512 * 1024
FOUND: Final = "found"
"""In place of a command: the change was there when the volume was opened."""
_NAME: Final = "key-events.json"
_LOCK: Final = "key-events.lock"


class What(StrEnum):
    """A difference between two headers; or what became of a snapshot."""

    SLOT_ADDED = "slot-added"
    SLOT_REMOVED = "slot-removed"
    SLOT_RENEWED = "slot-renewed"
    """The same name, with another password or code."""
    KEYS_ROTATED = "keys-rotated"
    STORE_ADDED = "store-added"
    STORE_REMOVED = "store-removed"
    STORE_REPLACED = "store-replaced"
    SNAPSHOT_RELEASED = "snapshot-released"
    SNAPSHOT_DELETED = "snapshot-deleted"
    POLICY_CONFIRMED = "policy-confirmed"
    """A retention policy that keeps less came into force at once."""


_WORDS: Final = {
    What.SLOT_ADDED: "slot {name} added",
    What.SLOT_REMOVED: "slot {name} removed",
    What.SLOT_RENEWED: "slot {name} renewed",
    What.KEYS_ROTATED: "keys rotated",
    What.STORE_ADDED: "store {name} added",
    What.STORE_REMOVED: "store {name} removed",
    What.STORE_REPLACED: "store {name} replaced",
    What.SNAPSHOT_RELEASED: "snapshot at {name} released",
    What.SNAPSHOT_DELETED: "snapshot at {name} deleted",
    What.POLICY_CONFIRMED: "retention is now {name}",
}


class Result(StrEnum):
    """How a command ended."""

    DONE = "done"
    REFUSED = "refused"
    """Password, PIN or token were not right."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference."""

    what: What
    name: str = ""
    """Of a slot or store; of a snapshot, whose name is nobody else's business, the position."""

    def __str__(self) -> str:
        return _WORDS[self.what].format(name=one_line(self.name))


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One command, or a change that was found."""

    number: int
    """1-based; of all that were ever recorded here."""
    time_ns: int
    command: str
    """As in "key add"; FOUND."""
    slot: str | None
    """The name of the one that opened the volume; None: none did, or it is not known."""
    changes: tuple[Change, ...]
    result: Result
    code_used: bool
    """The slot was that of the recovery code."""

    def sentence(self) -> str:
        """What it was, without the time."""
        said = ", ".join(map(str, self.changes)) or "nothing changed"
        if self.command == FOUND:
            return f"{said}: on another PC, or by a command that was cut short."
        if self.result is Result.REFUSED and not self.changes:
            said = "refused, password or token were not right"
        elif self.result is not Result.DONE:
            said += "; it ended with an error"
        if self.slot is None:
            return f"{self.command}: {said}."
        how = "with the recovery code" if self.code_used else f"with slot {one_line(self.slot)}"
        return f"{self.command}: {said}; opened {how}."


@dataclass(frozen=True, slots=True)
class Record:
    """All that is recorded of a volume."""

    header: str | None = None
    """Key of the header whose slots, keys and stores are accounted for; None: of none yet."""
    count: int = 0
    """Events that were ever recorded."""
    code_used_ns: int | None = None
    """When the recovery code was used last."""
    rivals: tuple[str, ...] = ()
    """Keys of headers that another PC made at the same time as one here, and of which people were told."""
    events: tuple[KeyEvent, ...] = ()
    """Oldest first."""

    def with_event(self, event: KeyEvent) -> Record:
        """The record with one more event, whose number is given here."""
        events = (*self.events, replace(event, number=self.count + 1))
        weighty = [one.number for one in events if one.changes or one.code_used][-EVENTS_MAX:]
        others = [one.number for one in events if not (one.changes or one.code_used)][-REFUSED_MAX:]
        kept = {*weighty, *others}
        return replace(
            self,
            count=self.count + 1,
            code_used_ns=event.time_ns if event.code_used else self.code_used_ns,
            events=tuple(one for one in events if one.number in kept),
        )

    def with_rivals(self, keys: Sequence[str]) -> Record:
        """The record with headers of which people are told now."""
        return replace(self, rivals=(*self.rivals, *keys)[-RIVALS_MAX:])


def differences(before: VolumeHeader, after: VolumeHeader) -> tuple[Change, ...]:
    """What of slots, keys and stores is another in a later header."""
    old, new = ({slot.slot_id: slot.name for slot in header.slots} for header in (before, after))
    gone = [name for one, name in old.items() if one not in new]
    come = [name for one, name in new.items() if one not in old]
    old_stores, new_stores = ({one.name: one.instance for one in header.stores} for header in (before, after))
    changes = [
        *(Change(What.SLOT_RENEWED if name in gone else What.SLOT_ADDED, name) for name in come),
        *(Change(What.SLOT_REMOVED, name) for name in gone if name not in come),
        *(Change(What.STORE_ADDED, name) for name in new_stores if name not in old_stores),
        *(Change(What.STORE_REMOVED, name) for name in old_stores if name not in new_stores),
        *(
            Change(What.STORE_REPLACED, name)
            for name, instance in new_stores.items()
            if old_stores.get(name, instance) != instance
        ),
    ]
    if before.fingerprint != after.fingerprint:
        changes.append(Change(What.KEYS_ROTATED))
    return tuple(changes)


# --- the file --------------------------------------------------------------------------------


def read_record(paths: VolumePaths) -> Record:
    """An empty one when there is none, or none that can be made out."""
    try:
        with open(paths.state / _NAME, "rb") as file:
            body = json.loads(file.read(SIZE_MAX_BYTES))
        events = tuple(_event(one) for one in body["events"])
        used = body["code_used_ns"]
        header = body["header"]
        return Record(
            header=None if header is None else str(header),
            count=int(body["count"]),
            code_used_ns=None if used is None else int(used),
            events=events,
            rivals=tuple(str(one) for one in body["rivals"]),
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return Record()


def _event(body: Mapping[str, Any]) -> KeyEvent:
    return KeyEvent(
        number=int(body["number"]),
        time_ns=int(body["time_ns"]),
        command=str(body["command"]),
        slot=None if body["slot"] is None else str(body["slot"]),
        changes=tuple(Change(What(one["what"]), str(one["name"])) for one in body["changes"]),
        result=Result(body["result"]),
        code_used=body["code_used"] is True,
    )


def update_record(paths: VolumePaths, change: Callable[[Record], Record]) -> Record:
    """Write the record anew, if it changes; others wait. Raises: DiskError."""
    disk = LocalDisk(paths.state)
    try:
        fd = os.open(paths.state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise DiskError(f"The record of volume {paths.name} cannot be written: {exc.strerror}.") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        before = read_record(paths)
        after = change(before)
        if after != before:
            disk.write_whole(_NAME, json.dumps(asdict(after)).encode())
        return after
    finally:
        os.close(fd)
