"""What `status` says of a volume's keys: the ways in, a sheet that is due, and the latest events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.headers import local_header
from mirrorfs.cli.key_record import KeyEvent, Record, read_record
from mirrorfs.cli.shown_times import local_time, timestamp
from mirrorfs.format.header import VolumeHeader, parse_header
from mirrorfs.format.slot_token import SlotKind

SHOWN: Final = 3
"""Events that people are shown; programs get all."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """Of one volume, as the local state has it."""

    slots: int
    key_generation: int
    only_way_in: str | None
    """What alone opens the volume; None: there are several such."""
    sheet_due_since_ns: int | None
    """When the recovery code was used; None where there is a newer sheet, or it never was."""
    events: tuple[KeyEvent, ...]
    """Oldest first."""


def read_key_status(paths: VolumePaths) -> KeyStatus | None:
    """None when there is no header in the local state yet, or it cannot be read."""
    try:
        data = local_header(paths)
    except OSError:
        return None
    if data is None:
        return None
    header, record = parse_header(data), read_record(paths)
    return KeyStatus(
        slots=len(header.slots),
        key_generation=header.key_generation,
        only_way_in=only_way_in(header),
        sheet_due_since_ns=_sheet_due_since_ns(header, record),
        events=record.events,
    )


def only_way_in(header: VolumeHeader) -> str | None:
    """What alone opens the volume, for `only_way_in_note`."""
    if len(header.slots) > 1:
        return None
    (slot,) = header.slots
    return "the recovery code" if slot.kind is SlotKind.RECOVERY else one_line(slot.name)


def only_way_in_note(what: str) -> str:
    """One sentence for a person."""
    return (
        f"Only {what} opens this volume: if it is lost, all is lost. Run `mirrorfs key add` or"
        " `mirrorfs key recovery`."
    )


def _sheet_due_since_ns(header: VolumeHeader, record: Record) -> int | None:
    used_ns = record.code_used_ns
    sheets = [slot for slot in header.slots if slot.kind is SlotKind.RECOVERY]
    if used_ns is None or any(slot.created_ns > used_ns for slot in sheets):
        return None
    return used_ns


def key_lines(name: str, keys: KeyStatus | None) -> list[str]:
    """The lines for people."""
    if keys is None:
        return []
    now_ns = time.time_ns()
    lines = []
    if keys.only_way_in is not None:
        lines.append(f"  {only_way_in_note(keys.only_way_in)}")
    if keys.sheet_due_since_ns is not None:
        moment = local_time(keys.sheet_due_since_ns, now_ns=now_ns)
        lines.append(
            f"  RECOVERY CODE USED at {moment}: print a new sheet with `mirrorfs key recovery {name}`;"
            " if it was not you, rotate the keys as well"
        )
    for event in reversed(keys.events[-SHOWN:]):
        lines.append(f"  {local_time(event.time_ns, now_ns=now_ns)} {event.sentence()}")
    return lines


def keys_json(keys: KeyStatus | None) -> dict[str, Any] | None:
    """`keys` of docs/status-json.md."""
    if keys is None:
        return None
    due_ns = keys.sheet_due_since_ns
    return {
        "slots": keys.slots,
        "key_generation": keys.key_generation,
        "sheet_due_since": None if due_ns is None else timestamp(due_ns),
        "events": [
            {
                "at": timestamp(event.time_ns),
                "command": event.command,
                "slot": event.slot,
                "changes": [{"change": one.what.value, "name": one.name or None} for one in event.changes],
                "result": event.result.value,
                "recovery_code": event.code_used,
            }
            for event in keys.events
        ],
    }
