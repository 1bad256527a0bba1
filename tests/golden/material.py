"""What hostile files are made from, and what one of them is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey, load_signer
from mirrorfs.format.slot import KeySet


@dataclass(frozen=True, slots=True)
class Material:
    """What hostile files are made from."""

    objects: dict[str, bytes]
    keys: VolumeKeys
    key_set: KeySet
    header: bytes
    torn: bytes

    def segment(self, sequence: int) -> tuple[str, bytes]:
        """Key and bytes of a segment of the main stream."""
        prefix = f"segments/{sequence:016x}-"
        return next((key, data) for key, data in self.objects.items() if key.startswith(prefix))

    @property
    def writer(self) -> WriterPublicKey:
        return load_signer(self.key_set.writer).public_key()


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile file.

    `what` says who reads it: segment, header, document or log. `expect` has `raises` (a class of
    mirrorfs.errors), or for a segment what the scan must find, or for a log where replay must end.
    """

    name: str
    what: str
    why: str
    data: bytes
    expect: dict[str, Any] = field(default_factory=dict)


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    """The same with one bit changed."""
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def found(journals: int, **other: Any) -> dict[str, Any]:
    """What a scan of a segment finds, but for what is said."""
    return {
        "journals": journals,
        "sealed": False,
        "fault": True,
        "bad": 0,
        "journal_whole": True,
        "unreadable": 0,
        "bad_records": 0,
    } | other
