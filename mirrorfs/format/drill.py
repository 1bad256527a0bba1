"""The report of a restore drill: a document that only the drill role signs (FORMAT.md, "Drill report").

It is handed to people who do not have the volume's keys, so it tells nothing that must not be known outside:
counts, moments and names of objects; no name of a file. Its signature alone shows who wrote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from mirrorfs.errors import FormatError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import (
    DocumentKind,
    open_document,
    parse_document_unauthenticated,
    seal_document,
    verify_signature,
)
from mirrorfs.format.header import (
    HASH_SIZE_BYTES,
    HEADER_GENERATION_MAX,
    INSTANCE_SIZE_BYTES,
    check_store_name,
)
from mirrorfs.format.kdf import VolumeKeys

HOST_SIZE_MAX_BYTES = 255
PROGRAM_SIZE_MAX_BYTES = 64
OBJECTS_MAX = 64
"""Bad objects that a report names; all of them are counted."""

_OBJECT_KEY = re.compile(r"[a-z0-9/-]{1,128}")
_FIELDS = (
    "store", "instance", "host", "program", "started_ns", "ended_ns", "previous", "header_generation",
    "header_hash", "position", "time_ns", "journal_sequence", "journal_hash", "missing_since_ns", "names",
    "files", "size_bytes", "drilled_files", "drilled_bytes", "compared_files", "differing_names",
    "damaged_files", "differing_files", "object_count", "objects", "faults",
)  # fmt: skip


class DrillFault(StrEnum):
    """Why a drill failed. The order here is the order in a report."""

    HEADER = "header"
    """The store lacks the volume's newest header."""
    NOTHING = "nothing"
    """Nothing at all can be restored from it."""
    LOG = "log"
    """It has newer commits that cannot be read."""
    HISTORY = "history"
    """Its log is another than the one that the rest of the volume has up to that position."""
    BEHIND = "behind"
    """It lacks changes for longer than the volume's configuration allows."""
    WENT_BACK = "went-back"
    """An earlier drill restored a later position from it."""
    NAMES = "names"
    """Names or attributes differ."""
    DAMAGED = "damaged"
    """Files lack bytes, for which it has no good copy."""
    CONTENTS = "contents"
    """Contents of files differ from another copy."""


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What one drill on one store found. Times are nanoseconds since 1970, UTC."""

    store: str
    instance: bytes
    """UUID of the store's instance, 16 bytes."""
    host: str
    """Name of the machine that carried it out."""
    program: str
    """Version of the program."""
    started_ns: int
    ended_ns: int
    previous: bytes
    """SHA-256 of the bytes of the report that this machine wrote before; empty in the first."""
    header_generation: int
    header_hash: bytes
    """SHA-256 of the bytes of the newest header, which names the public key of the drill role."""
    position: int
    """What was restored; 0 when nothing could be."""
    time_ns: int
    """Commit time of the position."""
    journal_sequence: int
    journal_hash: bytes
    """SHA-256 of that journal frame's plaintext, and so of all before; empty when nothing was restored."""
    missing_since_ns: int
    """Commit time of the oldest change that the store lacked; 0 when it lacked none that was known."""
    names: int
    """Names in the tree, hard links counted each; all were restored and compared."""
    files: int
    """Regular files in the tree, hard links counted once."""
    size_bytes: int
    """Contents of the whole tree, holes not counted."""
    drilled_files: int
    """Files whose contents were restored: all of them, or a sample."""
    drilled_bytes: int
    """Bytes of them that were restored."""
    compared_files: int
    """Those that were compared with another copy; of the others no other copy could be read."""
    differing_names: int
    """Paths that are missing, or too many, or whose attributes differ."""
    damaged_files: int
    differing_files: int
    object_count: int
    """Objects of the store that were met damaged or missing, or passed over."""
    objects: tuple[str, ...]
    """Keys of up to OBJECTS_MAX of them, in order."""
    faults: tuple[DrillFault, ...]
    """Empty when the drill passed."""

    @property
    def passed(self) -> bool:
        """Whether everything that was tried came back as it is."""
        return not self.faults

    def to_body(self) -> dict[str, object]:
        """Raises: FormatError, LimitError."""
        body: dict[str, object] = {name: getattr(self, name) for name in _FIELDS}
        for name in ("instance", "previous", "header_hash", "journal_hash"):
            body[name] = getattr(self, name).hex()
        body["objects"] = list(self.objects)
        body["faults"] = [fault.value for fault in self.faults]
        DrillReport.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> DrillReport:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="drill report", names=_FIELDS)
        store = read.string("store")
        check_store_name(store)
        started_ns, files = read.integer("started_ns"), read.integer("files")
        drilled_files = read.integer("drilled_files", high=files)
        object_count = read.integer("object_count")
        report = cls(
            store=store,
            instance=read.hexadecimal("instance", low=INSTANCE_SIZE_BYTES),
            host=read.text("host", size_max_bytes=HOST_SIZE_MAX_BYTES),
            program=read.text("program", size_max_bytes=PROGRAM_SIZE_MAX_BYTES),
            started_ns=started_ns,
            ended_ns=read.integer("ended_ns", low=started_ns),
            previous=read.hexadecimal("previous", low=HASH_SIZE_BYTES, empty=True),
            header_generation=read.integer("header_generation", low=1, high=HEADER_GENERATION_MAX),
            header_hash=read.hexadecimal("header_hash", low=HASH_SIZE_BYTES),
            position=read.integer("position"),
            time_ns=read.integer("time_ns"),
            journal_sequence=read.integer("journal_sequence"),
            journal_hash=read.hexadecimal("journal_hash", low=HASH_SIZE_BYTES, empty=True),
            missing_since_ns=read.integer("missing_since_ns"),
            names=read.integer("names"),
            files=files,
            size_bytes=read.integer("size_bytes"),
            drilled_files=drilled_files,
            drilled_bytes=read.integer("drilled_bytes"),
            compared_files=read.integer("compared_files", high=drilled_files),
            differing_names=read.integer("differing_names"),
            damaged_files=read.integer("damaged_files", high=drilled_files),
            differing_files=read.integer("differing_files", high=drilled_files),
            object_count=object_count,
            objects=_objects(read.items("objects", low=0, high=min(OBJECTS_MAX, object_count))),
            faults=_faults(read.items("faults", low=0, high=len(DrillFault))),
        )
        report._check()
        return report

    def _check(self) -> None:
        counted = {
            DrillFault.NAMES: self.differing_names,
            DrillFault.DAMAGED: self.damaged_files,
            DrillFault.CONTENTS: self.differing_files,
        }
        if any((fault in self.faults) != (count > 0) for fault, count in counted.items()):
            raise FormatError("The faults of a drill report are not those that it counts.")
        if (DrillFault.NOTHING in self.faults) != (not self.journal_hash):
            raise FormatError("A drill report that is not of nothing names what was restored.")


def _objects(values: list[object]) -> tuple[str, ...]:
    keys = tuple(value for value in values if isinstance(value, str) and _OBJECT_KEY.fullmatch(value))
    if list(keys) != values or list(keys) != sorted(set(keys)):
        raise FormatError("The objects of a drill report are no keys in order.")
    return keys


def _faults(values: list[object]) -> tuple[DrillFault, ...]:
    faults = tuple(fault for fault in DrillFault if fault.value in values)
    if [fault.value for fault in faults] != values:
        raise FormatError("The faults of a drill report are unknown or out of order.")
    return faults


def seal_drill_report(report: DrillReport, *, keys: VolumeKeys, seed: bytes) -> bytes:
    """Sign and authenticate a report with the drill role's seed. Raises: FormatError, LimitError."""
    body = report.to_body()
    return seal_document(DocumentKind.DRILL_REPORT, body, volume=keys.volume, keys=keys, seed=seed)


def open_drill_report(data: bytes, *, keys: VolumeKeys, public_key: bytes) -> DrillReport:
    """Verify MAC and signature. Raises: FormatError, LimitError, AuthenticationError.

    Args:
        public_key: of the drill role, 32 bytes.
    """
    kind = DocumentKind.DRILL_REPORT
    return DrillReport.from_body(
        open_document(data, kind, volume=keys.volume, keys=keys, public_key=public_key)
    )


def check_drill_report(data: bytes, *, volume: bytes, public_key: bytes) -> DrillReport:
    """Verify a report by its signature alone, as one who has no keys of the volume can.

    Args:
        volume: UUID, 16 bytes.
        public_key: of the drill role, 32 bytes.
    Raises: FormatError, LimitError, AuthenticationError.
    """
    kind = DocumentKind.DRILL_REPORT
    verify_signature(data, kind, volume=volume, public_key=public_key)
    named, body = parse_document_unauthenticated(data, kind)
    if named != volume:
        raise FormatError("A drill report names another volume than the one it is signed for.")
    return DrillReport.from_body(body)


def volume_of_report(data: bytes) -> bytes:
    """The UUID of the volume that a report names; not authenticated. Raises: FormatError, LimitError."""
    return parse_document_unauthenticated(data, DocumentKind.DRILL_REPORT)[0]
