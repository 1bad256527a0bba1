"""The deletion manifest: what the pruner deletes from one store, written there first (FORMAT.md, "Manifest").

Only the pruner role signs it, so that whoever finds an object gone can tell a deletion from a loss.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import astuple, dataclass
from typing import Final, NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import DocumentKind, open_document, seal_document
from mirrorfs.format.header import HASH_SIZE_BYTES, INSTANCE_SIZE_BYTES
from mirrorfs.format.ids import parse_segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import SEGMENT_SIZE_MAX

MANIFEST_PREFIX: Final = "manifests/"
LISTED_MAX: Final = 256
"""Objects that one manifest names."""
STEPS: Final = 5
"""Numbers of a policy: days of every moment, and of daily, weekly, monthly and yearly ones."""
COUNTER_MAX: Final = 2**63 - 1

_KEY: Final = re.compile(r"manifests/([0-9a-f]{16})-([0-9a-f]{32})")
_FIELDS: Final = ("instance", "counter", "created_ns", "position", "base", "policy", "objects")


class Listed(NamedTuple):
    """One object that is deleted."""

    key: str
    size: int
    """Bytes."""
    digest: bytes
    """SHA-256 of all of it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is deleted from one store, and what was known when it was decided."""

    instance: bytes
    """UUID of the store's instance, 16 bytes."""
    counter: int
    """1-based; above that of every manifest that the store has."""
    created_ns: int
    """By the pruner's clock."""
    position: int
    """The newest one of the log that was read."""
    base: int
    """Every commit from this position on is kept."""
    policy: tuple[int, ...]
    """STEPS numbers of days."""
    objects: tuple[Listed, ...]
    """1..LISTED_MAX, keys rising."""

    def to_body(self) -> dict[str, object]:
        """Raises: FormatError, LimitError."""
        body: dict[str, object] = dict(zip(_FIELDS, astuple(self), strict=True))
        body["instance"] = self.instance.hex()
        body["policy"] = list(self.policy)
        body["objects"] = [[one.key, one.size, one.digest.hex()] for one in self.objects]
        Manifest.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> Manifest:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="manifest", names=_FIELDS)
        policy = read.items("policy", low=STEPS, high=STEPS)
        days = tuple(one for one in policy if isinstance(one, int) and one >= 0)
        if len(days) != STEPS:
            raise FormatError("The policy of a manifest is not one of days.")
        objects = tuple(_listed(item) for item in read.items("objects", low=1, high=LISTED_MAX))
        keys = [one.key for one in objects]
        if keys != sorted(set(keys)):
            raise FormatError("The objects of a manifest are not in order.")
        return cls(
            instance=read.hexadecimal("instance", low=INSTANCE_SIZE_BYTES),
            counter=read.integer("counter", low=1),
            created_ns=read.integer("created_ns"),
            position=read.integer("position"),
            base=read.integer("base"),
            policy=days,
            objects=objects,
        )


def _listed(item: object) -> Listed:
    if not isinstance(item, list) or len(item) != 3:
        raise FormatError("A manifest lists something that is no object.")
    read = BodyReader(dict(zip(("key", "size", "digest"), item, strict=True)), what="listed object",
                      names=("key", "size", "digest"))  # fmt: skip
    key = read.string("key")
    parse_segment_object_key(key)
    digest = read.hexadecimal("digest", low=HASH_SIZE_BYTES)
    return Listed(key, read.integer("size", high=SEGMENT_SIZE_MAX), digest)


def manifest_key(counter: int, data: bytes) -> str:
    """The object key of a sealed manifest."""
    return f"{MANIFEST_PREFIX}{counter:016x}-{hashlib.sha256(data).hexdigest()[:32]}"


def parse_manifest_key(key: str) -> int:
    """The counter in a key. Raises: FormatError."""
    match = _KEY.fullmatch(key)
    if match is None or not 0 < int(match[1], 16) <= COUNTER_MAX:
        raise FormatError("An object under manifests/ has a key that is not a manifest's.")
    return int(match[1], 16)


def seal_manifest(manifest: Manifest, *, keys: VolumeKeys, seed: bytes) -> bytes:
    """Sign and authenticate it with the pruner role's seed. Raises: FormatError, LimitError."""
    body = manifest.to_body()
    return seal_document(DocumentKind.MANIFEST, body, volume=keys.volume, keys=keys, seed=seed)


def open_manifest(data: bytes, *, key: str, keys: VolumeKeys, public_key: bytes) -> Manifest:
    """Verify a manifest, and that it lies under its own key.

    Args:
        public_key: of the pruner role, 32 bytes.
    Raises: FormatError, LimitError, AuthenticationError.
    """
    kind = DocumentKind.MANIFEST
    body = open_document(data, kind, volume=keys.volume, keys=keys, public_key=public_key)
    manifest = Manifest.from_body(body)
    if manifest_key(manifest.counter, data) != key:
        raise FormatError("A manifest lies under a key that is not its own.")
    return manifest
