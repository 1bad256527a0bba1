"""Keys, canonical JSON and the envelope of signed documents."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mirrorfs.errors import AuthenticationError, FormatError, LimitError, MirrorfsError
from mirrorfs.format.document import (
    BODY_SIZE_MAX,
    DEPTH_MAX,
    DocumentKind,
    canonical_json,
    open_document,
    parse_canonical_json,
    parse_document_unauthenticated,
    seal_document,
)
from mirrorfs.format.kdf import VolumeKeys, format_fingerprint, hkdf, segment_key
from tests.support.volumes import KEY_SET, KEYS, VOLUME

BODY: dict[str, object] = {"number": 7, "text": "é\n\x7f", "list": [1, {"deep": "x"}]}
PUBLIC = KEY_SET.public_keys().writer


def sealed(kind: DocumentKind = DocumentKind.HEAD) -> bytes:
    return seal_document(kind, BODY, volume=VOLUME, keys=KEYS, seed=KEY_SET.writer)


def opened(data: bytes, *, volume: bytes = VOLUME, keys: VolumeKeys = KEYS) -> dict[str, object]:
    return open_document(data, DocumentKind.HEAD, volume=volume, keys=keys, public_key=PUBLIC)


# --- keys ------------------------------------------------------------------------------------


def independent_hkdf(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand, first block only."""
    prk = hmac.digest(salt, ikm, hashlib.sha256)
    return hmac.digest(prk, info + b"\x01", hashlib.sha256)


def test_hkdf_is_that_of_rfc_5869() -> None:
    # Test case 1 of the RFC.
    okm = hkdf(bytes([0x0B] * 22), salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA)), length=42)
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_every_key_has_its_own_label() -> None:
    labels = {
        "index_key": b"index",
        "dedup_key": b"dedup",
        "document_mac_key": b"document-mac",
        "segment_header_mac_key": b"segment-header-mac",
        "segment_chain_key": b"segment-chain",
        "lease_box_key": b"lease-box",
    }
    for name, label in labels.items():
        assert getattr(KEYS, name) == independent_hkdf(KEY_SET.root, VOLUME, b"mirrorfs v1 " + label)
    assert KEYS.fingerprint == independent_hkdf(KEY_SET.root, VOLUME, b"mirrorfs v1 fingerprint")[:16]
    assert len({getattr(KEYS, name) for name in labels}) == len(labels)


def test_segment_keys_depend_on_the_salt_and_commit() -> None:
    key, commitment = segment_key(KEYS, b"\x05" * 32)
    info = b"mirrorfs v1 segment key" + VOLUME
    assert key == independent_hkdf(KEY_SET.root, b"\x05" * 32, info)
    info = b"mirrorfs v1 segment commitment" + VOLUME
    assert commitment == independent_hkdf(KEY_SET.root, b"\x05" * 32, info)
    assert segment_key(KEYS, b"\x06" * 32)[0] != key
    with pytest.raises(LimitError):
        segment_key(KEYS, b"\x05" * 31)


@pytest.mark.parametrize(
    ("root", "volume", "generation"),
    [(b"\1" * 31, VOLUME, 1), (b"\1" * 32, VOLUME[1:], 1), (b"\1" * 32, VOLUME, 0)],
)
def test_keys_out_of_range_are_refused(root: bytes, volume: bytes, generation: int) -> None:
    with pytest.raises(LimitError):
        VolumeKeys.derive(root, volume=volume, generation=generation)


def test_no_repr_shows_a_secret() -> None:
    shown = repr(KEYS) + repr(KEY_SET) + str(KEYS) + str(KEY_SET) + repr([KEYS, KEY_SET])
    for secret in (KEY_SET.root, KEY_SET.writer, KEYS.index_key, KEYS.document_mac_key):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_fingerprints_are_written_in_groups() -> None:
    assert format_fingerprint(bytes(range(16))) == "0001-0203-0405-0607-0809-0a0b-0c0d-0e0f"


# --- canonical JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        (0, b"0"),
        (-(2**63), b"-9223372036854775808"),
        (2**63 - 1, b"9223372036854775807"),
        ({"b": 1, "a": [2, "x"]}, b'{"a":[2,"x"],"b":1}'),
        ("é\U0001f512", b'"\\u00e9\\ud83d\\udd12"'),
        ('\n\t"\\/\x01~\x7f', b'"\\n\\t\\"\\\\/\\u0001~\\u007f"'),
    ],
)
def test_canonical_json_both_ways(value: object, encoded: bytes) -> None:
    assert canonical_json(value) == encoded
    assert parse_canonical_json(encoded) == value


@pytest.mark.parametrize(
    "value",
    [1.0, True, None, b"x", (1,), {"a": 1.5}, [False], {1: 2}, {"é": 1}, "\ud800", 2**63, -(2**63) - 1, {1}],
)
def test_values_that_canonical_json_cannot_hold(value: object) -> None:
    with pytest.raises((FormatError, LimitError)):
        canonical_json(value)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b" 1",
        b"1 ",
        b"01",
        b"-0",
        b"+1",
        b"1.0",
        b"1e3",
        b"NaN",
        b"-Infinity",
        b"true",
        b"null",
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1,}',
        b'{"a":true}',
        b'"\xc3\xa9"',
        b'"\\u00E9"',
        b'"\\u0041"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\x01"',
        b'"\x7f"',
        b"9223372036854775808",
        b"1" * 5000,
        b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'["' + b"x" * BODY_SIZE_MAX + b'"]',
        b"1,2",
        b"]",
    ],
)
def test_bytes_that_are_not_canonical(encoded: bytes) -> None:
    with pytest.raises((FormatError, LimitError)):
        parse_canonical_json(encoded)


def test_the_deepest_and_longest_are_accepted() -> None:
    deep = b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    assert canonical_json(parse_canonical_json(deep)) == deep
    brackets = "[" * 100  # within a string they nest nothing
    assert parse_canonical_json(canonical_json([brackets, '\\"['])) == [brackets, '\\"[']
    longest = "x" * (BODY_SIZE_MAX - 2)
    assert parse_canonical_json(canonical_json(longest)) == longest
    with pytest.raises(LimitError):
        canonical_json(longest + "x")


def test_errors_do_not_carry_the_text() -> None:
    with pytest.raises(FormatError) as caught:
        parse_canonical_json(b'{"host":"private-name"')
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "private-name" not in str(caught.value)


# --- the envelope ----------------------------------------------------------------------------


def test_a_document_opens_as_it_was_sealed() -> None:
    assert opened(sealed()) == BODY
    assert parse_document_unauthenticated(sealed(), DocumentKind.HEAD) == (VOLUME, BODY)
    assert sealed() == sealed()


def test_the_bytes_are_those_of_the_specification() -> None:
    data = sealed()
    body = json.dumps(
        {**BODY, "format": 1, "volume": VOLUME.hex()}, sort_keys=True, separators=(",", ":")
    ).encode()
    unsigned = b"MFSDOC1\n" + struct.pack("<BxxxI", 2, len(body)) + body
    assert data[: len(unsigned)] == unsigned
    signature, mac = data[len(unsigned) : -32], data[-32:]
    assert len(signature) == 64
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(signature, b"mirrorfs v1 document" + VOLUME + unsigned)
    key = independent_hkdf(KEY_SET.root, VOLUME, b"mirrorfs v1 document-mac")
    assert mac == hmac.digest(key, VOLUME + unsigned + signature, hashlib.sha256)


def test_every_changed_byte_is_noticed() -> None:
    data = sealed()
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 0x01
        with pytest.raises((FormatError, AuthenticationError, LimitError)):
            opened(bytes(changed))


def test_every_cut_and_any_trailing_byte_is_noticed() -> None:
    data = sealed()
    for size in range(len(data)):
        with pytest.raises(FormatError):
            opened(data[:size])
    with pytest.raises(FormatError):
        opened(data + b"\0")


def test_a_document_is_bound_to_its_volume_keys_role_and_kind() -> None:
    data = sealed()
    other = VolumeKeys.derive(b"\x09" * 32, volume=VOLUME, generation=1)
    with pytest.raises(AuthenticationError, match="MAC"):
        opened(data, keys=other)
    with pytest.raises(AuthenticationError, match="MAC"):
        opened(data, volume=bytes(16))
    with pytest.raises(AuthenticationError, match="signature"):
        open_document(
            data, DocumentKind.HEAD, volume=VOLUME, keys=KEYS, public_key=KEY_SET.public_keys().pruner
        )
    with pytest.raises(FormatError):
        open_document(data, DocumentKind.LEASE, volume=VOLUME, keys=KEYS, public_key=PUBLIC)
    with pytest.raises(MirrorfsError):
        open_document(data, DocumentKind.HEAD, volume=VOLUME, keys=KEYS, public_key=PUBLIC[1:])


def forged(encoded: bytes) -> bytes:
    """A document with any body, signed and authenticated as the format says."""
    template = sealed()
    unsigned = template[:12] + struct.pack("<I", len(encoded)) + encoded
    key = Ed25519PrivateKey.from_private_bytes(KEY_SET.writer)
    signed = unsigned + key.sign(b"mirrorfs v1 document" + VOLUME + unsigned)
    return signed + hmac.digest(KEYS.document_mac_key, VOLUME + signed, hashlib.sha256)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format":1}',
        b'{"format":2,"volume":"' + VOLUME.hex().encode() + b'"}',
        b'{"format":1,"volume":"' + bytes(16).hex().encode() + b'"}',
        b'{"format":1,"volume":"' + VOLUME.hex().upper().encode() + b'"}',
        b'{"format":1,"volume":"' + b"zz" * 16 + b'"}',
        b'{"format":1,"volume":"00"}',
        b'{"format":1,"volume":5}',
        b'{"volume":"' + VOLUME.hex().encode() + b'","format":1}',
    ],
)
def test_an_authentic_body_must_still_be_well_formed(encoded: bytes) -> None:
    with pytest.raises(FormatError):
        opened(forged(encoded))


def test_the_forger_of_these_tests_can_make_a_valid_document() -> None:
    assert opened(forged(canonical_json({"format": 1, "volume": VOLUME.hex(), "x": 1}))) == {"x": 1}


def test_what_cannot_be_sealed() -> None:
    def seal(body: dict[str, object], *, volume: bytes = VOLUME, seed: bytes = KEY_SET.writer) -> bytes:
        return seal_document(DocumentKind.HEAD, body, volume=volume, keys=KEYS, seed=seed)

    with pytest.raises(FormatError):
        seal({"format": 1})
    with pytest.raises(FormatError):
        seal({"volume": "x"})
    with pytest.raises(LimitError):
        seal({"x": "y" * BODY_SIZE_MAX})
    with pytest.raises(LimitError):
        seal({}, volume=b"short")
    with pytest.raises(LimitError, match="role"):
        seal({}, seed=bytes(32))
