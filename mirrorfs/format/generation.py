"""Key generations: how a header keeps the keys of before, and proves that they led to the newest."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mirrorfs.errors import AuthenticationError, FormatError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import SIGNATURE_SIZE_BYTES
from mirrorfs.format.ids import Previous, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.kdf import FINGERPRINT_SIZE_BYTES, KEY_GENERATION_MAX, PastKeys, VolumeKeys, hkdf
from mirrorfs.format.limits import SEGMENT_SIZE_MAX
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.format.slot import NONCE_SIZE_BYTES, TAG_SIZE_BYTES

_OLD_ROOT_SIZE_BYTES = NONCE_SIZE_BYTES + 32 + TAG_SIZE_BYTES
_NEWEST_FIELDS = ("generation", "from_sequence", "wrapped")
_OLD_FIELDS = (*_NEWEST_FIELDS, "fingerprint", "writer", "log_end", "checkpoint", "endorsement")
_ATTESTED = struct.Struct("<QI8sQ32s")


@dataclass(frozen=True, slots=True)
class KeyGeneration:
    """From which segment on a root key is used. Of an old one also its root key under its successor, and the
    proof that its own writer made the successor; all of that is empty in the newest.
    """

    generation: int
    from_sequence: int
    wrapped: bytes
    """Nonce and ciphertext of the root key, 60 bytes."""
    fingerprint: bytes = b""
    writer: bytes = b""
    """Public key of the writer role, 32 bytes."""
    log_end: Previous | None = None
    """The last segment of the main stream that it sealed."""
    checkpoint: Previous | None = None
    """The checkpoint segment with its newest root; None when it has no checkpoint."""
    endorsement: bytes = b""
    """The writer's signature over all that is fixed of this generation and the one after it, 64 bytes."""

    def to_body(self) -> dict[str, object]:
        body: dict[str, object] = {
            "generation": self.generation,
            "from_sequence": self.from_sequence,
            "wrapped": self.wrapped.hex(),
        }
        if self.wrapped:
            body |= {
                "fingerprint": self.fingerprint.hex(),
                "writer": self.writer.hex(),
                "log_end": _attested_body(Stream.MAIN, self.log_end),
                "checkpoint": _attested_body(Stream.CHECKPOINT, self.checkpoint),
                "endorsement": self.endorsement.hex(),
            }
        return body

    @classmethod
    def from_body(cls, body: object) -> KeyGeneration:
        """Raises: FormatError, LimitError."""
        is_newest = isinstance(body, dict) and body.get("wrapped") == ""
        names = _NEWEST_FIELDS if is_newest else _OLD_FIELDS
        read = BodyReader(body, what="key generation", names=names)
        generation = read.integer("generation", low=1, high=KEY_GENERATION_MAX)
        if is_newest:
            return cls(generation, read.integer("from_sequence"), b"")
        return cls(
            generation=generation,
            from_sequence=read.integer("from_sequence"),
            wrapped=read.hexadecimal("wrapped", low=_OLD_ROOT_SIZE_BYTES),
            fingerprint=read.hexadecimal("fingerprint", low=FINGERPRINT_SIZE_BYTES),
            writer=read.hexadecimal("writer", low=32),
            log_end=_attested_from_body(read.raw("log_end"), Stream.MAIN),
            checkpoint=_attested_from_body(read.raw("checkpoint"), Stream.CHECKPOINT),
            endorsement=read.hexadecimal("endorsement", low=SIGNATURE_SIZE_BYTES),
        )


def _attested_body(stream: Stream, attested: Previous | None) -> dict[str, object]:
    if attested is None:
        return {"key": "", "size": 0, "digest": ""}
    key = segment_object_key(stream, attested.segment)
    return {"key": key, "size": attested.size, "digest": attested.digest.hex()}


def _attested_from_body(body: object, stream: Stream) -> Previous | None:
    """Raises: FormatError, LimitError."""
    read = BodyReader(body, what="segment of a key generation", names=("key", "size", "digest"))
    key, digest = read.string("key"), read.hexadecimal("digest", low=32, empty=True)
    if not key:
        if digest or read.integer("size"):
            raise FormatError("A key generation describes a segment that it does not name.")
        return None
    found, segment = parse_segment_object_key(key)
    if found is not stream or not digest:
        raise FormatError("A key generation names a segment of another stream, or without its digest.")
    return Previous(segment, read.integer("size", low=HEADER_SIZE, high=SEGMENT_SIZE_MAX), digest)


def retire_generation(
    last: KeyGeneration,
    old: VolumeKeys,
    *,
    seed: bytes,
    newer: VolumeKeys,
    newer_writer: bytes,
    log_end: Previous,
    checkpoint: Previous | None,
    entropy: Callable[[int], bytes],
) -> KeyGeneration:
    """What a header keeps of the generation whose keys go out of use.

    Args:
        last, old: it, and its keys.
        seed: of its writer role: nobody else can make the next generation.
        newer, newer_writer: keys and writer's public key of the next.
        log_end, checkpoint: `KeyGeneration`; the next one begins with the segment after.
    """
    nonce = entropy(NONCE_SIZE_BYTES)
    aad = _old_root_aad(old.volume, last)
    signer = Ed25519PrivateKey.from_private_bytes(seed)
    first = log_end.segment.sequence + 1
    after = KeyGeneration(newer.generation, first, b"", newer.fingerprint, newer_writer)
    retired = replace(
        last,
        wrapped=nonce + AESGCM(_old_root_key(newer)).encrypt(nonce, old.root, aad),
        fingerprint=old.fingerprint,
        writer=signer.public_key().public_bytes_raw(),
        log_end=log_end,
        checkpoint=checkpoint,
    )
    return replace(retired, endorsement=signer.sign(_endorsed(old.volume, retired, after)))


def _old_root_key(newer: VolumeKeys) -> bytes:
    return hkdf(newer.root, salt=newer.volume, info=b"mirrorfs v1 old generation")


def _old_root_aad(volume: bytes, entry: KeyGeneration) -> bytes:
    place = struct.pack("<IQ", entry.generation, entry.from_sequence)
    return b"mirrorfs v1 old generation" + volume + place


def _endorsed(volume: bytes, entry: KeyGeneration, after: KeyGeneration) -> bytes:
    place = struct.pack("<IQ", after.generation, after.from_sequence)
    ends = _attested_bytes(entry.log_end) + _attested_bytes(entry.checkpoint)
    return b"mirrorfs v1 rotation" + volume + place + after.fingerprint + after.writer + ends


def _attested_bytes(attested: Previous | None) -> bytes:
    if attested is None:
        return bytes(_ATTESTED.size)
    sequence, epoch, writer = attested.segment
    return _ATTESTED.pack(sequence, epoch, writer, attested.size, attested.digest)


def check_descent(
    volume: bytes, line: Sequence[KeyGeneration], *, generation: int, fingerprint: bytes, writer: bytes
) -> None:
    """Return if the writers of all generations from a known one on have made the newest keys of a line.

    Args:
        line: `VolumeHeader.line`. Nothing else in the header is authenticated by this.
        generation, fingerprint, writer: what is known of the earlier generation.
    Raises: AuthenticationError.
    """
    rest = line[generation - 1 :]
    if not rest or (rest[0].fingerprint, rest[0].writer) != (fingerprint, writer):
        raise AuthenticationError("A header of the volume does not come from the keys that are known.")
    for entry, after in pairwise(rest):
        try:
            key = Ed25519PublicKey.from_public_bytes(entry.writer)
            key.verify(entry.endorsement, _endorsed(volume, entry, after))
        except (InvalidSignature, ValueError) as exc:
            raise AuthenticationError(
                "New keys in a header of the volume were not made by the writer of the old ones."
            ) from exc


def with_past(keys: VolumeKeys, line: Sequence[KeyGeneration]) -> VolumeKeys:
    """The newest keys of a line with those of all generations before.

    Raises: AuthenticationError: they are not those of the line, or do not come from one another.
    """
    past: list[PastKeys] = []
    newer = keys
    for entry, after in reversed(list(pairwise(line))):
        nonce, sealed = entry.wrapped[:NONCE_SIZE_BYTES], entry.wrapped[NONCE_SIZE_BYTES:]
        try:
            root = AESGCM(_old_root_key(newer)).decrypt(nonce, sealed, _old_root_aad(keys.volume, entry))
        except InvalidTag as exc:
            raise AuthenticationError("An earlier key generation of the header does not verify.") from exc
        old = VolumeKeys.derive(root, volume=keys.volume, generation=entry.generation)
        if old.fingerprint != entry.fingerprint:
            raise AuthenticationError("An earlier key generation of the header does not verify.")
        newer = replace(old, from_sequence=entry.from_sequence)
        past.append(PastKeys(newer, entry.writer, after.from_sequence, entry.log_end, entry.checkpoint))
    first = line[0]
    check_descent(keys.volume, line, generation=1, fingerprint=first.fingerprint, writer=first.writer)
    return replace(keys, from_sequence=line[-1].from_sequence, past=tuple(reversed(past)))
