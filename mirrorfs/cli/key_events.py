"""Recording what is done with keys, stores and snapshots of a volume, and telling the alarm's command of it.

The record names the header up to which it tells everything: so what another PC changed, or a command that was
killed, is found by whoever opens the volume next.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from mirrorfs.cli.alarm import start_command
from mirrorfs.cli.config import VolumePaths, configured_volumes, load_config, volume_paths
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.headers import age, local_header, local_headers
from mirrorfs.cli.key_record import (
    FOUND,
    Change,
    KeyEvent,
    Record,
    Result,
    differences,
    read_record,
    update_record,
)
from mirrorfs.errors import DiskError, MirrorfsError, UnlockError
from mirrorfs.format.header import VolumeHeader, header_key, parse_header
from mirrorfs.format.slot import Slot
from mirrorfs.format.slot_token import SlotKind

log = logging.getLogger(__name__)

_EVENTS: Final = {
    "slot": "keys-changed",
    "keys": "keys-changed",
    "store": "stores-changed",
    "snapshot": "snapshots-changed",
    "policy": "retention-changed",
}
"""What the alarm's command is told, by the first word of what all changes are."""


def note_opened(paths: VolumePaths, alarm: AlarmConfig, header: VolumeHeader, data: bytes) -> None:
    """Record what is another in a header that was opened than in the one that is accounted for.

    It is called before the header is kept here. What cannot be written down stops nobody, but is said.
    """
    key = header_key(header.generation, data)
    record = read_record(paths)
    if record.header == key:
        return
    before = _known_header(paths, record)
    changes = () if before is None else differences(before, header)
    _add(paths, alarm, key, KeyEvent(0, time.time_ns(), FOUND, None, changes, Result.DONE, False))


def _known_header(paths: VolumePaths, record: Record) -> VolumeHeader | None:
    for _, header, data in local_headers(paths):
        if header is not None and header_key(header.generation, data) == record.header:
            return header
    newest = local_header(paths)
    return None if newest is None else parse_header(newest)


def _add(paths: VolumePaths, alarm: AlarmConfig, key: str | None, event: KeyEvent) -> None:
    """Record an event, if it is one, and tell the alarm's command of what it changed."""
    is_one = bool(event.changes) or event.code_used or event.command != FOUND

    def changed(record: Record) -> Record:
        record = record.with_event(event) if is_one else record
        return replace(record, header=record.header if key is None else key)

    try:
        update_record(paths, changed)
    except DiskError as exc:
        _say(f"What was done with the keys could not be recorded: {one_line(str(exc))}")
    if event.changes or event.code_used:
        _tell(paths.name, alarm, event)


def _tell(volume: str, alarm: AlarmConfig, event: KeyEvent) -> None:
    kinds = {change.what.partition("-")[0] for change in event.changes}
    kind = _EVENTS[kinds.pop()] if len(kinds) == 1 else "keys-changed"
    message: dict[str, Any] = {
        "volume": volume, "event": "recovery-code-used" if event.code_used else kind,
        "light": None, "previous": None, "reason": event.sentence(), "time_ns": event.time_ns, "stores": [],
    }  # fmt: skip
    if not start_command(alarm, message):
        _say("The alarm command could not be started.")


class Recording:
    """One command that may change keys, stores or snapshots. `recorded` makes it."""

    def __init__(self) -> None:
        self._opened: tuple[VolumeHeader, Slot] | None = None
        self._done: tuple[Change, ...] = ()

    def opened(self, header: VolumeHeader, slot: Slot) -> None:
        """Somebody with password and token has opened the volume."""
        self._opened = header, slot

    def did(self, change: Change) -> None:
        """Something was done that no header shows."""
        self._done += (change,)

    def finish(
        self, paths: VolumePaths, command: str, error: BaseException | None
    ) -> tuple[str | None, KeyEvent | None]:
        """The header that is accounted for now, and what there is to record; None for nothing."""
        result = Result.DONE if error is None else Result.FAILED
        if isinstance(error, UnlockError):
            result = Result.REFUSED
        if self._opened is None:
            refused = KeyEvent(0, time.time_ns(), command, None, (), result, False)
            return None, refused if result is Result.REFUSED else None
        before, slot = self._opened
        key: str | None = None
        changes: tuple[Change, ...] = ()
        newest = local_header(paths)
        # `key check` keeps nothing here: what it opened may be newer than what is.
        if newest is not None and age(after := parse_header(newest)) >= age(before):
            key, changes = header_key(after.generation, newest), differences(before, after)
        changes += self._done
        code_used = slot.kind is SlotKind.RECOVERY
        if result is Result.DONE and not changes and not code_used:
            return None, None
        return key, KeyEvent(0, time.time_ns(), command, slot.name, changes, result, code_used)


@contextmanager
def recorded(
    paths: VolumePaths, alarm: AlarmConfig, command: str, *, heard: Callable[[], None] = lambda: None
) -> Iterator[Recording]:
    """Record what a command did, however it ends.

    Args:
        command: as in "key add".
        heard: called when there is something new in the record.
    """
    recording = Recording()
    error: BaseException | None = None
    try:
        yield recording
    except BaseException as exc:
        error = exc
        raise
    finally:
        key, event = recording.finish(paths, command, error)
        if event is not None:
            _add(paths, alarm, key, event)
            heard()


def carry_over(paths: VolumePaths, record: Record) -> None:
    """Go on with the record of a state that was set aside. Raises: DiskError."""
    update_record(paths, lambda _: record)


def note_attached(
    paths: VolumePaths, alarm: AlarmConfig, header: VolumeHeader, data: bytes, slot: Slot
) -> None:
    """Record that the volume came to this PC, whose state is new."""
    event = KeyEvent(0, time.time_ns(), "attach", slot.name, (), Result.DONE, slot.kind is SlotKind.RECOVERY)
    _add(paths, alarm, header_key(header.generation, data), event)


def note_code_used(header: VolumeHeader, slot: Slot, environment: Mapping[str, str], command: str) -> None:
    """Record that the recovery code opened a volume from its stores, with what is configured here of it."""
    if slot.kind is not SlotKind.RECOVERY:
        return
    _say("The recovery code was used: when things are in order again, print a new sheet with `key recovery`.")
    for name in configured_volumes(environment):
        try:
            paths = volume_paths(name, environment)
            config = load_config(paths)
        except MirrorfsError:
            continue  # that is said where it is used
        if config.volume == header.volume and paths.state.is_dir():
            _add(
                paths, config.alarm, None,
                KeyEvent(0, time.time_ns(), command, slot.name, (), Result.DONE, True),
            )  # fmt: skip


class EventLog:
    """Logs, for a mounted volume, what comes into the record."""

    def __init__(self, paths: VolumePaths, seen: int) -> None:
        """`seen`: how many events there were; none of those is logged."""
        self._paths = paths
        self._seen = seen

    def log_new(self) -> None:
        """Log what is new. Blocks for reading a small file."""
        record = read_record(self._paths)
        for event in record.events:
            if event.number <= self._seen:
                continue
            level = logging.WARNING if event.code_used else logging.INFO
            log.log(level, "Keys and stores: %s", event.sentence())
        self._seen = record.count


def _say(sentence: str) -> None:
    print(f"mirrorfs: {sentence}", file=sys.stderr)
