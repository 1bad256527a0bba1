"""The volume header: the one document without which a volume cannot be opened (FORMAT.md, "Header").

A header is an immutable object under a key that holds its generation and hash; a change is a new
generation. It is read twice: `parse_header` before unlocking, when nothing in it is to be trusted,
and `verify_header` right after, when the root key that a slot yielded must authenticate all of it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from itertools import pairwise

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import (
    DocumentKind,
    open_document,
    parse_document_unauthenticated,
    seal_document,
    verify_signature,
)
from mirrorfs.format.generation import KeyGeneration, with_past
from mirrorfs.format.kdf import FINGERPRINT_SIZE_BYTES, KEY_GENERATION_MAX, VolumeKeys
from mirrorfs.format.slot import (
    KdfParameters,
    KeySet,
    PublicKeys,
    Role,
    Slot,
)

__all__ = [
    "KdfParameters",
    "KeyGeneration",
    "KeySet",
    "PublicKeys",
    "Role",
    "Slot",
    "StoreEntry",
    "VolumeHeader",
    "header_key",
    "parse_header",
    "parse_header_key",
    "seal_header",
    "verify_header",
]

HEADER_GENERATION_MAX = 2**32 - 1
SLOTS_MAX = 32
STORES_MAX = 16
KEY_GENERATIONS_MAX = 64
STORE_NAME_SIZE_MAX_BYTES = 64
INSTANCE_SIZE_BYTES = 16
HASH_SIZE_BYTES = 32

_KEY_HASH_DIGITS = 32
_HEADER_KEY = re.compile(r"header/([0-9a-f]{8})-([0-9a-f]{32})")
_STORE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEADER_FIELDS = (
    "generation", "previous", "fingerprint", "created_ns", "key_generation", "generations",
    "public_keys", "stores", "options", "slots",
)  # fmt: skip


def check_store_name(name: str) -> None:
    """Raises: FormatError: not 1..64 letters, digits, '.', '_' or '-', or no letter or digit first."""
    if len(name) > STORE_NAME_SIZE_MAX_BYTES or _STORE_NAME.fullmatch(name) is None:
        raise FormatError("A store's name has 1 to 64 letters, digits, dots, dashes and underscores.")


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """A store of the volume, and the instance that was made there at init."""

    name: str
    instance: bytes

    def to_body(self) -> dict[str, object]:
        return {"name": self.name, "instance": self.instance.hex()}

    @classmethod
    def from_body(cls, body: object) -> StoreEntry:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="store entry", names=("name", "instance"))
        name = read.string("name")
        check_store_name(name)
        return cls(name=name, instance=read.hexadecimal("instance", low=INSTANCE_SIZE_BYTES))


def _public_keys_body(keys: PublicKeys) -> dict[str, object]:
    return {"writer": keys.writer.hex(), "pruner": keys.pruner.hex(), "drill": keys.drill.hex()}


def _public_keys_from_body(body: object) -> PublicKeys:
    read = BodyReader(body, what="set of public keys", names=("writer", "pruner", "drill"))
    return PublicKeys(
        writer=read.hexadecimal("writer", low=32),
        pruner=read.hexadecimal("pruner", low=32),
        drill=read.hexadecimal("drill", low=32),
    )


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """One generation of the volume header."""

    volume: bytes
    """The volume's UUID, 16 bytes."""
    generation: int
    """1-based; each change writes the next."""
    previous: bytes
    """SHA-256 of the bytes of the generation before; empty in the first."""
    fingerprint: bytes
    created_ns: int
    key_generation: int
    """The newest key generation, the one that slots wrap and that authenticates this header."""
    generations: tuple[KeyGeneration, ...]
    public_keys: PublicKeys
    stores: tuple[StoreEntry, ...]
    pad_data: bool
    slots: tuple[Slot, ...]

    @property
    def line(self) -> tuple[KeyGeneration, ...]:
        """Its key generations, the newest with what the header says of it."""
        newest = replace(self.generations[-1], fingerprint=self.fingerprint, writer=self.public_keys.writer)
        return (*self.generations[:-1], newest)

    def to_body(self) -> dict[str, object]:
        """The body without `format` and `volume`. Raises: FormatError, LimitError."""
        body: dict[str, object] = {
            "generation": self.generation,
            "previous": self.previous.hex(),
            "fingerprint": self.fingerprint.hex(),
            "created_ns": self.created_ns,
            "key_generation": self.key_generation,
            "generations": [generation.to_body() for generation in self.generations],
            "public_keys": _public_keys_body(self.public_keys),
            "stores": [store.to_body() for store in self.stores],
            "options": {"pad_data": int(self.pad_data)},
            "slots": [slot.to_body() for slot in self.slots],
        }
        VolumeHeader.from_body(self.volume, body)
        return body

    @classmethod
    def from_body(cls, volume: bytes, body: object) -> VolumeHeader:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="volume header", names=_HEADER_FIELDS)
        options = BodyReader(read.raw("options"), what="volume header's options", names=("pad_data",))
        header = cls(
            volume=volume,
            generation=read.integer("generation", low=1, high=HEADER_GENERATION_MAX),
            previous=read.hexadecimal("previous", low=HASH_SIZE_BYTES, empty=True),
            fingerprint=read.hexadecimal("fingerprint", low=FINGERPRINT_SIZE_BYTES),
            created_ns=read.integer("created_ns"),
            key_generation=read.integer("key_generation", low=1, high=KEY_GENERATION_MAX),
            generations=tuple(
                KeyGeneration.from_body(item)
                for item in read.items("generations", low=1, high=KEY_GENERATIONS_MAX)
            ),
            public_keys=_public_keys_from_body(read.raw("public_keys")),
            stores=tuple(StoreEntry.from_body(item) for item in read.items("stores", low=1, high=STORES_MAX)),
            pad_data=options.flag("pad_data"),
            slots=tuple(Slot.from_body(item) for item in read.items("slots", low=1, high=SLOTS_MAX)),
        )
        header._check_relations()
        return header

    def _check_relations(self) -> None:
        if (self.generation == 1) != (self.previous == b""):
            raise FormatError("The first header generation has no previous one, and every other has.")
        newest = self.generations[-1]
        # Never a list as long as the number says: it is a stranger's, and may be 2^32-1.
        if len(self.generations) != self.key_generation or any(
            entry.generation != number for number, entry in enumerate(self.generations, 1)
        ):
            raise FormatError("The key generations of a header do not count from 1 to the newest.")
        starts = [entry.from_sequence for entry in self.generations]
        if starts[0] != 0 or any(first >= second for first, second in pairwise(starts)):
            raise FormatError("The key generations of a header do not follow one another.")
        if newest.wrapped or not all(entry.wrapped for entry in self.generations[:-1]):
            raise FormatError("A header wraps every key generation but the newest.")
        for entry, after in pairwise(self.generations):
            if entry.log_end is None or entry.log_end.segment.sequence + 1 != after.from_sequence:
                raise FormatError("A key generation does not begin where the one before it ends.")
        for slot in self.slots:
            if (slot.key_generation < self.key_generation) != bool(slot.boxed) or (
                slot.key_generation > self.key_generation
            ):
                raise FormatError("A slot of a header does not hold its newest keys, or holds them twice.")
        for found in (
            [store.name for store in self.stores],
            [store.instance for store in self.stores],
            [slot.slot_id for slot in self.slots],
        ):
            if len(set(found)) != len(found):
                raise FormatError("A header names a store, a store instance or a slot twice.")


def header_key(generation: int, data: bytes) -> str:
    """The object key of a header's bytes: `header/<generation>-<hash>`.

    Raises: LimitError: the generation is out of range.
    """
    if not 1 <= generation <= HEADER_GENERATION_MAX:
        raise LimitError("A header generation is a number from 1 to 4294967295.")
    return f"header/{generation:08x}-{hashlib.sha256(data).hexdigest()[:_KEY_HASH_DIGITS]}"


def parse_header_key(key: str) -> tuple[int, str]:
    """Return (generation, first 32 digits of the hash). Raises: FormatError."""
    match = _HEADER_KEY.fullmatch(key)
    if match is None or int(match[1], 16) == 0:
        raise FormatError("An object under header/ has a key that is not a header's.")
    return int(match[1], 16), match[2]


def seal_header(header: VolumeHeader, *, keys: VolumeKeys, seed: bytes) -> bytes:
    """Sign and authenticate a header.

    Args:
        keys: of the header's newest key generation.
        seed: the writer's.
    Raises: FormatError, LimitError: the header breaks a rule of the format, or does not fit its keys.
    """
    if (keys.volume, keys.generation) != (header.volume, header.key_generation):
        raise FormatError("A header is sealed with the keys of its own volume and newest key generation.")
    if keys.fingerprint != header.fingerprint:
        raise FormatError("A header names another fingerprint than that of its keys.")
    return seal_document(DocumentKind.HEADER, header.to_body(), volume=header.volume, keys=keys, seed=seed)


def parse_header(data: bytes, *, key: str | None = None) -> VolumeHeader:
    """Read a header before it can be authenticated; trust nothing in it but the limits.

    Args:
        key: the object key it came from; its generation and hash must be those of the bytes.
    Raises: FormatError, LimitError.
    """
    header = VolumeHeader.from_body(*parse_document_unauthenticated(data, DocumentKind.HEADER))
    if key is not None and header_key(header.generation, data) != key:
        raise FormatError("The bytes of a header are not those that its key names.")
    return header


def verify_successor(data: bytes, *, known: VolumeHeader) -> VolumeHeader:
    """Read a header that was found before the volume is unlocked, in place of one that is known.

    Its writer is the known one; `verify_header` is still to come.
    Raises: FormatError, LimitError: not a header. AuthenticationError: it is not of the known header's volume
        and writer.
    """
    header = parse_header(data)
    if (header.volume, header.fingerprint) != (known.volume, known.fingerprint):
        raise AuthenticationError("The header is that of another volume.")
    verify_signature(data, DocumentKind.HEADER, volume=known.volume, public_key=known.public_keys.writer)
    return header


def verify_header(data: bytes, key_set: KeySet) -> tuple[VolumeHeader, VolumeKeys]:
    """Authenticate the header that yielded a key set, and derive the volume's keys.

    The caller still compares the fingerprint and generation with those it has pinned: a header
    built around a planted root key authenticates itself.
    Raises: FormatError, LimitError: not a header. AuthenticationError: MAC, signature,
        fingerprint or role keys are not those of this key set.
    """
    header = parse_header(data)
    keys = VolumeKeys.derive(key_set.root, volume=header.volume, generation=header.key_generation)
    open_document(
        data, DocumentKind.HEADER, volume=header.volume, keys=keys, public_key=header.public_keys.writer
    )
    if not hmac.compare_digest(header.fingerprint, keys.fingerprint):
        raise AuthenticationError("The header names another fingerprint than that of the key it wraps.")
    granted = key_set.public_keys()
    for role in key_set.roles():
        if getattr(granted, role.value) != getattr(header.public_keys, role.value):
            raise AuthenticationError(f"The slot's {role.value} key is not the one the header names.")
    return header, with_past(keys, header.line)
