"""Which snapshots this machine knows, and since when which of them are to go: in its state directory.

A snapshot that a person deletes stays, name and all, for POLICY_DELAY_NS, and is named by no record of the
log before that. One that another machine's log lets go of at once is kept here for as long: who prunes goes
by his own memory and his own clock, and not by the times that a writer puts down. Names are not written here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any, Final

from mirrorfs.core.retention import POLICY_DELAY_NS, remembered
from mirrorfs.errors import FormatError
from mirrorfs.format.rows import SnapshotRow
from mirrorfs.ports import Clock, Disk

logger = logging.getLogger(__name__)

SNAPSHOTS_PATH: Final = "snapshots"
"""Local file: JSON, version 1; `known` maps positions to the time since when they are to go, 0: they stay."""


class SnapshotRecord:
    """The record of one volume. Where the file is damaged every snapshot that there is stays."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self._since: dict[int, int] | None = None

    def leaving(self) -> dict[int, int]:
        """By position when a snapshot goes that was deleted; also of those that the log has no more."""
        return {at: since_ns + POLICY_DELAY_NS for at, since_ns in self._known().items() if since_ns}

    def mark(self, position: int, *, leaves: bool) -> None:
        """Remember, durably, that a snapshot is to go, or stays. Raises: DiskError, DiskFull."""
        known = dict(self._known())
        known[position] = self._clock.now_ns() if leaves else 0
        self._write(known)

    def look(self, rows: Iterable[SnapshotRow]) -> list[SnapshotRow]:
        """Take in which snapshots there are now. Returns: those that go now. Raises: DiskError, DiskFull."""
        now_ns = self._clock.now_ns()
        present = {row.position: row for row in rows}
        held = {position for position, row in present.items() if row.held}
        known = remembered(self._known(), present.keys(), held, now_ns)
        if known != self._known():
            self._write(known)
        return [
            row
            for position, row in present.items()
            if known[position] and now_ns - known[position] >= POLICY_DELAY_NS
        ]

    def _known(self) -> dict[int, int]:
        if self._since is None:
            try:
                self._since = read_snapshots(self._disk)
            except FormatError as exc:
                logger.warning("%s", exc)
                self._since = {}
        return self._since

    def _write(self, known: dict[int, int]) -> None:
        document = {"version": 1, "known": {str(position): since for position, since in known.items()}}
        self._disk.write_whole(SNAPSHOTS_PATH, json.dumps(document).encode())
        self._since = known


def read_snapshots(disk: Disk) -> dict[int, int]:
    """What is remembered. Raises: FormatError: the file is damaged."""
    try:
        file = disk.open(SNAPSHOTS_PATH)
    except FileNotFoundError:
        return {}
    try:
        found = json.loads(file.read(offset=0, size_bytes=file.size()))
        if not isinstance(found, dict) or found.get("version") != 1:
            raise FormatError("The record of the snapshots is of another version; those that there are stay.")
        return {_number(int(position)): _number(since) for position, since in found["known"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise FormatError("The record of the snapshots is damaged; those that there are stay.") from exc
    finally:
        file.close()


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("no number")
    return value
