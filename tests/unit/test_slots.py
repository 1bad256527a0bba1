"""Slots: a password and a token's secret together, and nothing less.

Argon2id runs at the floor of the format (64 MiB, t=2), which no test may go below.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mirrorfs.errors import (
    AuthenticationError,
    FormatError,
    LimitError,
    UsageError,
    WrongPassword,
    WrongToken,
)
from mirrorfs.format.document import canonical_json
from mirrorfs.format.slot import KdfParameters, KeySet, Role, Slot
from mirrorfs.keys import slots
from mirrorfs.keys.token import Enrolment
from tests.support.volumes import KEY_SET, SLOT, VOLUME

PASSWORD = "un mot de passe à moi".encode()
SECRET = bytes(range(100, 132))
FLOOR = KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=b"\x11" * 16)
ENROLMENT = Enrolment(fields=SLOT.token, secret=SECRET)


def counting_entropy() -> Callable[[int], bytes]:
    """Distinct, repeatable bytes."""
    calls = iter(range(1, 100))
    return lambda size_bytes: bytes([next(calls)]) * size_bytes


def make(
    *,
    key_set: KeySet = KEY_SET,
    roles: tuple[Role, ...] = tuple(Role),
    password: bytes = PASSWORD,
    enrolment: Enrolment = ENROLMENT,
    name: str = "card",
) -> Slot:
    return slots.make_slot(
        key_set,
        volume=VOLUME,
        key_generation=1,
        name=name,
        roles=roles,
        stretched=slots.stretch_password(password, FLOOR),
        enrolment=enrolment,
        kdf=FLOOR,
        created_ns=5,
        entropy=counting_entropy(),
    )


def opened(
    slot: Slot,
    *,
    volume: bytes = VOLUME,
    key_generation: int = 1,
    password: bytes = PASSWORD,
    secret: bytes = SECRET,
) -> KeySet:
    return slots.open_slot(
        slot,
        volume=volume,
        key_generation=key_generation,
        stretched=slots.stretch_password(password, slot.kdf),
        token_secret=secret,
    )


@pytest.fixture(scope="module")
def slot() -> Slot:
    return make()


def independent_hkdf(ikm: bytes, info: bytes) -> bytes:
    return hmac.digest(hmac.digest(FLOOR.salt, ikm, hashlib.sha256), info + b"\x01", hashlib.sha256)


def test_password_and_token_open_the_slot(slot: Slot) -> None:
    assert opened(slot).encode() == KEY_SET.encode()
    assert Slot.from_body(slot.to_body()) == slot


def test_the_slot_is_made_as_the_specification_says(slot: Slot) -> None:
    stretched = Argon2id(salt=FLOOR.salt, length=32, iterations=2, lanes=1, memory_cost=65536).derive(
        PASSWORD
    )
    kek = independent_hkdf(stretched + SECRET, b"mirrorfs v1 kek")
    assert slot.token_check == independent_hkdf(SECRET, b"mirrorfs v1 token check")[:8]
    assert slot.commitment == independent_hkdf(kek, b"mirrorfs v1 kek commitment")
    body = slot.to_body()
    del body["wrapped"]
    del body["boxed"]
    aad = b"mirrorfs v1 slot" + VOLUME + b"\1\0\0\0" + canonical_json(body)
    assert AESGCM(kek).decrypt(slot.wrap_nonce, slot.wrapped, aad) == KEY_SET.encode()


def test_a_wrong_password_is_told_from_a_wrong_token(slot: Slot) -> None:
    with pytest.raises(WrongPassword, match="token is right"):
        opened(slot, password=PASSWORD + b"!")
    for secret in (bytes(32), SECRET[:-1], SECRET + b"\0", b""):
        with pytest.raises(WrongToken):
            opened(slot, secret=secret)
        with pytest.raises(WrongToken):
            slots.check_token_secret(slot, secret)
    slots.check_token_secret(slot, SECRET)


def test_the_password_alone_verifies_nothing(slot: Slot) -> None:
    # All that a slot stores of the password goes through the KEK, which needs the token's secret.
    other = make(password=b"another password entirely")
    assert other.token_check == slot.token_check
    assert other.commitment != slot.commitment


def test_a_commitment_that_matches_nothing_is_compared_before_unwrapping(slot: Slot) -> None:
    with pytest.raises(WrongPassword):
        opened(replace(slot, commitment=bytes(32)))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"created_ns": 6},
        {"slot_id": bytes(16)},
        {"roles": (Role.WRITER,)},
        {"wrapped": bytes(144)},
        {"wrap_nonce": bytes(12)},
        {"token": replace(SLOT.token, label="evil")},
        {"token": replace(SLOT.token, serial="666")},
        {"box_key": bytes(range(32))},
    ],
)
def test_every_field_is_bound(slot: Slot, change: dict[str, object]) -> None:
    with pytest.raises(AuthenticationError):
        opened(replace(slot, **change))  # type: ignore[arg-type]  # any one field of the table


def test_the_volume_and_the_key_generation_are_bound(slot: Slot) -> None:
    with pytest.raises(AuthenticationError):
        opened(slot, volume=bytes(16))
    with pytest.raises(AuthenticationError):
        opened(slot, key_generation=2)
    for generation in (0, 2**32):
        with pytest.raises(LimitError):
            opened(replace(slot, key_generation=generation))


def test_a_slot_grants_its_roles_only() -> None:
    reader = make(roles=())
    assert opened(reader).roles() == ()
    assert opened(reader).root == KEY_SET.root
    pruner = make(roles=(Role.PRUNER,))
    assert opened(pruner).roles() == (Role.PRUNER,)
    assert len(pruner.wrapped) == len(reader.wrapped)
    with pytest.raises(LimitError):
        make(key_set=KEY_SET.restricted(()), roles=(Role.WRITER,))


def test_no_two_slots_share_nonce_or_id() -> None:
    made = make()
    assert made.wrap_nonce != made.slot_id[:12]
    assert (made.slot_id, made.wrap_nonce) == (b"\1" * 16, b"\2" * 12)


def test_names_that_the_format_forbids() -> None:
    for name in ("", "x" * 65, "a\x1b[0m"):
        with pytest.raises((LimitError, FormatError)):
            make(name=name)


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(LimitError):
        make(enrolment=Enrolment(fields=SLOT.token, secret=b"short"))


@pytest.mark.parametrize(
    "password",
    [
        b"",
        b"short",
        b"123456789",
        b"1234567890",
        b"0123456789",
        b"9876543210",
        b"abcdefghijkl",
        b"aaaaaaaaaaaaaa",
        b"abababababab",
        b"\xff" * 12,
        "e\u0301e\u0301 decomposed".encode(),
        b"long and varied " * 100,
    ],
)
def test_weak_passwords_are_refused(password: bytes) -> None:
    with pytest.raises(UsageError):
        slots.check_new_password(password)


@pytest.mark.parametrize("password", ["correct horse", "é à ù ç î ô", "x9!kfmw2pq"])
def test_fair_passwords_are_accepted(password: str) -> None:
    slots.check_new_password(password.encode())


@pytest.mark.parametrize(
    ("available_mib", "memory_mib"), [(8192, 256), (512, 256), (511, 128), (256, 128), (255, 64), (0, 64)]
)
def test_new_slots_take_what_memory_allows(available_mib: int, memory_mib: int) -> None:
    parameters = slots.new_kdf_parameters(available_bytes=available_mib * 1024 * 1024, salt=bytes(16))
    assert parameters == KdfParameters(iterations=3, memory_kib=memory_mib * 1024, lanes=4, salt=bytes(16))


def test_available_memory_is_measured() -> None:
    assert slots.available_memory_bytes() > 64 * 1024 * 1024


# --- later keys for a slot whose token is not here ---------------------------------------------

LATER = KeySet(root=b"\x51" * 32, writer=b"\x52" * 32, pruner=b"\x53" * 32, drill=b"\x54" * 32)


def boxed(slot: Slot, *, key_generation: int = 2, slot_root: bytes = KEY_SET.root) -> Slot:
    entropy = iter((b"\x61" * 32, b"\x62" * 12))
    return slots.box_key_set(
        slot,
        LATER,
        volume=VOLUME,
        key_generation=key_generation,
        slot_root=slot_root,
        entropy=lambda size_bytes: next(entropy),
    )


def test_a_slot_yields_the_keys_put_into_it_without_its_token(slot: Slot) -> None:
    later = boxed(slot)
    assert opened(later, key_generation=2).encode() == LATER.encode()
    assert Slot.from_body(later.to_body()) == later
    assert opened(boxed(later, key_generation=3), key_generation=3).encode() == LATER.encode()


def test_the_box_is_made_as_the_specification_says(slot: Slot) -> None:
    later = boxed(slot)
    stretched = slots.stretch_password(PASSWORD, FLOOR)
    kek = independent_hkdf(stretched + SECRET, b"mirrorfs v1 kek")
    private = X25519PrivateKey.from_private_bytes(independent_hkdf(kek, b"mirrorfs v1 slot box"))
    assert private.public_key().public_bytes_raw() == slot.box_key
    ephemeral, nonce, sealed = later.boxed[:32], later.boxed[32:44], later.boxed[44:]
    shared = private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    info = b"mirrorfs v1 slot boxed" + ephemeral + slot.box_key
    key = HKDF(hashes.SHA256(), 32, VOLUME, info).derive(shared + KEY_SET.root)
    aad = b"mirrorfs v1 slot boxed" + VOLUME + b"\2\0\0\0" + slot.slot_id
    assert AESGCM(key).decrypt(nonce, sealed, aad) == LATER.encode()


def test_a_box_is_bound_to_its_slot_generation_and_volume(slot: Slot) -> None:
    later = boxed(slot)
    for altered in (
        replace(later, boxed=bytes(32) + later.boxed[32:]),  # a point of low order
        replace(later, boxed=b"\x09" + later.boxed[1:]),
        replace(later, boxed=later.boxed[:-1] + bytes((later.boxed[-1] ^ 1,))),
        replace(slot, boxed=boxed(make(), slot_root=LATER.root).boxed),
        replace(slot, boxed=boxed(replace(slot, slot_id=b"\x70" * 16)).boxed),
    ):
        with pytest.raises(AuthenticationError):
            opened(altered, key_generation=2)
    with pytest.raises(AuthenticationError):
        opened(later, key_generation=3)


def test_a_slot_with_fewer_roles_gets_no_more_of_them_by_rotation() -> None:
    reader = boxed(make(roles=()))
    assert opened(reader, key_generation=2).roles() == ()
    assert opened(reader, key_generation=2).root == LATER.root


def test_a_slot_of_version_1_takes_no_later_keys(slot: Slot) -> None:
    first = replace(slot, box_key=b"")
    assert first.version == 1
    assert Slot.from_body(first.to_body()) == first
    for refused in (lambda: boxed(first), lambda: boxed(slot, key_generation=1)):
        with pytest.raises(LimitError):
            refused()
