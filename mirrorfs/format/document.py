"""Signed documents: the small control objects beside the log (docs/FORMAT.md, "Documents").

    magic "MFSDOC1\\n" | kind u8 | 3 zero bytes | body length u32le | body | signature 64 | MAC 32

The body is canonical JSON, so that one value has one encoding and a re-encoded document is never a
second valid document. The signature tells which role wrote it; the MAC tells that the writer holds
the volume key, and is checked first, because it alone can be trusted before the public keys are.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.kdf import VOLUME_ID_SIZE_BYTES, VolumeKeys
from mirrorfs.format.limits import FORMAT_VERSION, INTEGER_MAX

BODY_SIZE_MAX = 64 * 1024
DEPTH_MAX = 8
SIGNATURE_SIZE_BYTES = 64
MAC_SIZE_BYTES = 32
SEED_SIZE_BYTES = 32

DOCUMENT_MAGIC = b"MFSDOC1\n"
_PREFIX = struct.Struct("<8sB3sI")
_CONTEXT = b"mirrorfs v1 document"
_TAIL_SIZE_BYTES = SIGNATURE_SIZE_BYTES + MAC_SIZE_BYTES
# 19 digits and a sign: longer ones are out of range whatever they are, so they are never converted.
_INTEGER_DIGITS_MAX = 20

DOCUMENT_SIZE_MAX = _PREFIX.size + BODY_SIZE_MAX + _TAIL_SIZE_BYTES


class DocumentKind(IntEnum):
    """What a document is; the number is in its bytes and under its signature."""

    HEADER = 1
    HEAD = 2
    LEASE = 3
    INSTANCE = 4
    MANIFEST = 5
    DRILL_REPORT = 6


# --- canonical JSON --------------------------------------------------------------------------


def _check_value(value: object, depth: int) -> None:
    """Refuse what canonical JSON cannot hold: only integers, strings, lists and dicts exist in it."""
    if isinstance(value, bool):
        raise FormatError("Canonical JSON holds no booleans; they are written 0 and 1.")
    if isinstance(value, int):
        if not -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
            raise LimitError("A number in canonical JSON exceeds 64 bits.")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FormatError("A string in canonical JSON holds half of a surrogate pair.") from None
    elif isinstance(value, list | dict):
        if depth >= DEPTH_MAX:
            raise LimitError(f"Canonical JSON is nested at most {DEPTH_MAX} deep.")
        for item in value.values() if isinstance(value, dict) else value:
            _check_value(item, depth + 1)
        for key in value if isinstance(value, dict) else ():
            if not isinstance(key, str) or not key.isascii():
                raise FormatError("A key in canonical JSON is an ASCII string.")
    else:
        raise FormatError("Canonical JSON holds integers, strings, lists and objects only.")


def canonical_json(value: object) -> bytes:
    """Encode a value in its only valid form.

    Sorted keys, no spaces, ASCII: what is outside U+0020..U+007E is escaped, as \\b \\f \\n \\r \\t where
    JSON has a short form, else as \\u and four lower-case digits (a surrogate pair above U+FFFF).
    Raises: FormatError: the value holds something else than integers, strings, lists and dicts.
        LimitError: it exceeds 64-bit integers, DEPTH_MAX or BODY_SIZE_MAX.
    """
    _check_value(value, 0)
    encoded = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")
    if len(encoded) > BODY_SIZE_MAX:
        raise LimitError(f"A document body has at most {BODY_SIZE_MAX} bytes.")
    return encoded


def _check_depth(data: bytes) -> None:
    # The decoder recurses once per level, so the depth is bounded before it sees the bytes.
    depth = 0
    in_string = False
    escaped = False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise LimitError(f"Canonical JSON is nested at most {DEPTH_MAX} deep.")
        elif byte in b"]}":
            depth -= 1


def _refuse_number(_text: str) -> int:
    raise FormatError("Canonical JSON holds no fractions.")


def _bounded_integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS_MAX:
        raise LimitError("A number in canonical JSON exceeds 64 bits.")
    return int(text)


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("Canonical JSON names a key twice.")
    return result


def parse_canonical_json(data: bytes) -> object:
    """Decode canonical JSON; bytes that `canonical_json` would not have written are refused.

    Raises: FormatError: not JSON, or not in canonical form. LimitError: too long, deep or big.
    """
    if len(data) > BODY_SIZE_MAX:
        raise LimitError(f"A document body has at most {BODY_SIZE_MAX} bytes.")
    _check_depth(data)
    try:
        value = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_unique_pairs,
            parse_int=_bounded_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except ValueError:
        # Not `from`: the decoder's error carries the document's text.
        raise FormatError("A document body is not JSON.") from None
    if canonical_json(value) != data:
        raise FormatError("A document body is not in canonical form.")
    return value


# --- the envelope ----------------------------------------------------------------------------


def _split(data: bytes, kind: DocumentKind) -> bytes:
    """Check the envelope's shape and return the body's bytes, not yet parsed."""
    if len(data) > DOCUMENT_SIZE_MAX:
        raise LimitError(f"A document has at most {DOCUMENT_SIZE_MAX} bytes.")
    if len(data) < _PREFIX.size + _TAIL_SIZE_BYTES:
        raise FormatError("A document is cut short.")
    magic, found_kind, reserved, body_size_bytes = _PREFIX.unpack_from(data)
    if magic != DOCUMENT_MAGIC:
        raise FormatError("The bytes are not a MirrorFS document.")
    if found_kind != kind or reserved != bytes(3):
        raise FormatError(f"The document is not of kind {kind.name.lower()} in a format known here.")
    if body_size_bytes != len(data) - _PREFIX.size - _TAIL_SIZE_BYTES:
        raise FormatError("A document's length is not the one it states.")
    return data[_PREFIX.size : -_TAIL_SIZE_BYTES]


def _parse_body(encoded: bytes) -> tuple[bytes, dict[str, object]]:
    """Return the volume named in a body, and the body without `format` and `volume`."""
    body = parse_canonical_json(encoded)
    if not isinstance(body, dict):
        raise FormatError("A document body is not an object.")
    if body.pop("format", None) != FORMAT_VERSION:
        raise FormatError("The document is of a format version that this program does not know.")
    volume = body.pop("volume", None)
    if not isinstance(volume, str) or len(volume) != 2 * VOLUME_ID_SIZE_BYTES:
        raise FormatError("A document names no volume.")
    try:
        volume_id = bytes.fromhex(volume)
    except ValueError:
        raise FormatError("A document names no volume.") from None
    if volume_id.hex() != volume:
        raise FormatError("A document names no volume.")
    return volume_id, body


def _mac(signed: bytes, volume: bytes, keys: VolumeKeys) -> bytes:
    return hmac.digest(keys.document_mac_key, volume + signed, hashlib.sha256)


def seal_document(
    kind: DocumentKind, body: dict[str, object], *, volume: bytes, keys: VolumeKeys, seed: bytes
) -> bytes:
    """Sign and authenticate a document.

    Args:
        body: what the kind defines, without `format` and `volume`: they are added here.
        seed: Ed25519 private key seed of the role that writes this kind, 32 bytes, not all zero.
    Raises: FormatError, LimitError: the body cannot be written.
    """
    if "format" in body or "volume" in body:
        raise FormatError("The format version and the volume are added by the document itself.")
    if len(volume) != VOLUME_ID_SIZE_BYTES:
        raise LimitError("A volume id has 16 bytes.")
    if len(seed) != SEED_SIZE_BYTES or seed == bytes(SEED_SIZE_BYTES):
        raise LimitError("The slot that opened the volume does not grant the role that signs this document.")
    encoded = canonical_json({**body, "format": FORMAT_VERSION, "volume": volume.hex()})
    unsigned = _PREFIX.pack(DOCUMENT_MAGIC, kind, bytes(3), len(encoded)) + encoded
    signed = unsigned + Ed25519PrivateKey.from_private_bytes(seed).sign(_CONTEXT + volume + unsigned)
    return signed + _mac(signed, volume, keys)


def open_document(
    data: bytes,
    kind: DocumentKind,
    *,
    volume: bytes,
    keys: VolumeKeys,
    public_key: bytes,
    with_past: bool = False,
) -> dict[str, object]:
    """Verify a document and return its body without `format` and `volume`.

    Nothing of the body is parsed before MAC and signature hold.
    Args:
        public_key: Ed25519 public key of the role that writes this kind, 32 bytes.
        with_past: one of an earlier key generation will do; only for what the writer role signs.
    Raises: FormatError, LimitError: not a document of this kind. AuthenticationError: the MAC or
        the signature does not verify for this volume.
    """
    encoded = _split(data, kind)
    signed, mac = data[:-MAC_SIZE_BYTES], data[-MAC_SIZE_BYTES:]
    for past in keys.past if with_past else ():
        if hmac.compare_digest(_mac(signed, volume, past.keys), mac):
            keys, public_key = past.keys, past.writer
            break
    if not hmac.compare_digest(_mac(signed, volume, keys), mac):
        raise AuthenticationError(f"The MAC of a {kind.name.lower()} document does not verify.")
    _verify_signature(signed, kind, volume=volume, public_key=public_key)
    named, body = _parse_body(encoded)
    if named != volume:
        raise FormatError("A document names another volume than the one it is authenticated for.")
    return body


def _verify_signature(signed: bytes, kind: DocumentKind, *, volume: bytes, public_key: bytes) -> None:
    unsigned, signature = signed[:-SIGNATURE_SIZE_BYTES], signed[-SIGNATURE_SIZE_BYTES:]
    if len(public_key) != 32:
        raise FormatError("An Ed25519 public key has 32 bytes.")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _CONTEXT + volume + unsigned)
    except (InvalidSignature, ValueError) as exc:
        name = kind.name.lower()
        raise AuthenticationError(f"The signature of a {name} document does not verify.") from exc


def verify_signature(data: bytes, kind: DocumentKind, *, volume: bytes, public_key: bytes) -> None:
    """Verify the signature of a document alone, where the keys for its MAC are not there yet.

    Raises: FormatError, LimitError: not a document of this kind. AuthenticationError.
    """
    _split(data, kind)
    _verify_signature(data[:-MAC_SIZE_BYTES], kind, volume=volume, public_key=public_key)


def parse_document_unauthenticated(data: bytes, kind: DocumentKind) -> tuple[bytes, dict[str, object]]:
    """Return (volume, body) of a document that cannot be verified yet: the volume header.

    Trust nothing in it. Raises: FormatError, LimitError.
    """
    return _parse_body(_split(data, kind))
