"""The reports of restore drills that this machine keeps for ever: STATE/drills/<start in ns>-<store>.

They are signed documents (format/drill.py). Whoever asks here has no keys of the volume: a report counts if
its signature verifies under the drill key of a header in the local state. Any other is none.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirrorfs.cli.config import StoreConfig, VolumePaths
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.errors import DamagedError, LimitError
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.drill import DrillReport, check_drill_report
from mirrorfs.format.header import VolumeHeader, parse_header

DIRECTORY: Final = "drills"
_NAME: Final = re.compile(r"[0-9]{20}-[A-Za-z0-9][A-Za-z0-9._-]*")
LOOKED_AT_MAX: Final = 1000
"""So many of the newest reports are looked at: 19 years of a drill a week."""


@dataclass(frozen=True, slots=True)
class LastDrills:
    """What is known of the drills on one store."""

    good_ns: int | None = None
    """When the last one that passed began."""
    failed_ns: int | None = None
    """When the last one began, if it failed."""
    position: int = 0
    """The highest one that was ever restored from it."""


@dataclass(frozen=True, slots=True)
class KeptReport:
    """A report whose signature verifies."""

    file: Path
    report: DrillReport
    key: bytes
    """Public key of the drill role under which it does, 32 bytes."""


class DrillRecord:
    """The reports in one local state."""

    def __init__(self, paths: VolumePaths, *, volume: bytes) -> None:
        """`volume`: its UUID, 16 bytes."""
        self._paths = paths
        self._volume = volume
        self._seen: tuple[int, int] | None = None
        self._reports: list[KeptReport] = []
        self.unverified = 0
        """Files among those that `kept` looked at which are no such report."""

    def add(self, report: DrillReport, data: bytes) -> Path:
        """Keep a report durably. Returns where. Raises: DiskError."""
        name = f"{DIRECTORY}/{report.started_ns:020d}-{report.store}"
        LocalDisk(self._paths.state).write_whole(name, data)
        return self._paths.state / name

    def newest_digest(self) -> bytes:
        """SHA-256 of the newest report, whatever it is; empty when there is none."""
        names = self._names()
        return hashlib.sha256(_read(self.directory / names[-1])).digest() if names else b""

    def last(self, stores: tuple[StoreConfig, ...]) -> dict[str, LastDrills]:
        """Of each store, by name; a place that took a store's name is another store."""
        reports = [one.report for one in self.kept()]
        return {store.name: _last(reports, store.instance) for store in stores}

    def drill_keys(self) -> list[bytes]:
        """Public keys of the drill role, newest header first, 32 bytes each; not authenticated here."""
        headers = sorted(self._headers(), key=lambda one: (one.key_generation, one.generation), reverse=True)
        return list(dict.fromkeys(header.public_keys.drill for header in headers))

    @property
    def directory(self) -> Path:
        """Where they lie."""
        return self._paths.state / DIRECTORY

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.directory) if _NAME.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def kept(self) -> list[KeptReport]:
        """The newest LOOKED_AT_MAX, newest first; read again only when a file came or went."""
        seen = _changed_ns(self.directory), _changed_ns(self._paths.headers)
        if seen != self._seen:
            keys = self.drill_keys()
            names = self._names()[: -LOOKED_AT_MAX - 1 : -1]
            self._reports = [one for name in names for one in self._verified(name, keys)]
            self.unverified = len(names) - len(self._reports)
            self._seen = seen
        return self._reports

    def _verified(self, name: str, keys: list[bytes]) -> Iterator[KeptReport]:
        try:
            data = _read(self.directory / name)
        except OSError:
            return
        for key in keys:
            try:
                report = check_drill_report(data, volume=self._volume, public_key=key)
                yield KeptReport(self.directory / name, report, key)
                return
            except (DamagedError, LimitError):
                continue

    def _headers(self) -> Iterator[VolumeHeader]:
        try:
            names = os.listdir(self._paths.headers)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            try:
                header = parse_header(_read(self._paths.headers / name), key=f"header/{name}")
            except (DamagedError, LimitError, OSError):
                continue
            if header.volume == self._volume:
                yield header


def _last(reports: list[DrillReport], instance: bytes) -> LastDrills:
    mine = [report for report in reports if report.instance == instance]
    good = next((report.started_ns for report in mine if report.passed), None)
    failed = mine[0].started_ns if mine and not mine[0].passed else None
    return LastDrills(good, failed, max((report.position for report in mine), default=0))


def last_drills(
    paths: VolumePaths, *, volume: bytes, stores: tuple[StoreConfig, ...]
) -> Mapping[str, LastDrills]:
    """For one look; `DrillRecord.last` for several."""
    return DrillRecord(paths, volume=volume).last(stores)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(DOCUMENT_SIZE_MAX + 1)


def _changed_ns(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
