"""The volume header: reading before and after unlocking, and every limit in it."""

from __future__ import annotations

import copy
import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.document import DocumentKind, seal_document
from mirrorfs.format.header import (
    KeyGeneration,
    VolumeHeader,
    header_key,
    parse_header,
    parse_header_key,
    seal_header,
    verify_header,
)
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import KdfParameters, KeySet, PublicKeys, Role, Slot
from mirrorfs.format.slot_token import TokenMechanism
from tests.support.volumes import HEADER, KEY_SET, KEYS, SLOT, VOLUME, ended

Change = Callable[[dict[str, Any]], object]


OLD = KeyGeneration(1, 0, bytes(60), bytes(16), bytes(32), ended(5), None, bytes(64))
"""A generation that is out of use."""


def sealed(header: VolumeHeader = HEADER) -> bytes:
    return seal_header(header, keys=KEYS, seed=KEY_SET.writer)


def test_a_header_reads_back_before_and_after_unlocking() -> None:
    data = sealed()
    assert parse_header(data) == HEADER
    header, keys = verify_header(data, KEY_SET)
    assert header == HEADER
    assert keys.fingerprint == HEADER.fingerprint
    assert keys.index_key == KEYS.index_key


def test_the_body_is_that_of_the_specification() -> None:
    body = HEADER.to_body()
    assert set(body) == {
        "generation",
        "previous",
        "fingerprint",
        "created_ns",
        "key_generation",
        "generations",
        "public_keys",
        "stores",
        "options",
        "slots",
    }
    assert body["previous"] == ""
    assert body["options"] == {"pad_data": 1}
    assert body["generations"] == [{"generation": 1, "from_sequence": 0, "wrapped": ""}]
    slot = SLOT.to_body()
    assert slot["kdf"] == {"algorithm": "argon2id", "t": 2, "m_kib": 65536, "p": 1, "salt": "11" * 16}
    assert slot["roles"] == ["writer", "pruner", "drill"]
    token = slot["token"]
    assert isinstance(token, dict)
    assert set(token) == {"mechanism", "spki_sha256", "key_id", "ephemeral", "label", "serial"}
    rsa = replace(SLOT.token, mechanism=TokenMechanism.RSA_PKCS1, challenge=bytes(256)).to_body()
    assert set(rsa) == {"mechanism", "spki_sha256", "key_id", "ciphertext", "label", "serial"}


def test_two_generations_and_many_slots_read_back() -> None:
    slots = tuple(replace(SLOT, slot_id=bytes([number]) * 16, boxed=bytes(188)) for number in range(32))
    header = replace(
        HEADER,
        generation=2,
        previous=hashlib.sha256(sealed()).digest(),
        key_generation=2,
        generations=(replace(OLD, checkpoint=ended(3)), KeyGeneration(2, 5, b"")),
        slots=slots,
    )
    assert VolumeHeader.from_body(VOLUME, header.to_body()) == header


# --- object keys -----------------------------------------------------------------------------


def test_the_object_key_names_generation_and_hash() -> None:
    data = sealed()
    key = header_key(1, data)
    assert key == "header/00000001-" + hashlib.sha256(data).hexdigest()[:32]
    assert parse_header_key(key) == (1, hashlib.sha256(data).hexdigest()[:32])
    assert parse_header(data, key=key) == HEADER
    with pytest.raises(FormatError):
        parse_header(data, key=header_key(2, data))
    with pytest.raises(FormatError):
        parse_header(data, key=header_key(1, data + b"x"))
    for generation in (0, 2**32):
        with pytest.raises(LimitError):
            header_key(generation, data)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "header/",
        "header/00000000-" + "0" * 32,
        "header/1-" + "0" * 32,
        "header/0000000A-" + "0" * 32,
        "header/00000001-" + "0" * 31,
        "header/00000001-" + "0" * 32 + "\n",
        "heads/00000001-" + "0" * 32,
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(FormatError):
        parse_header_key(key)


# --- after unlocking -------------------------------------------------------------------------


def test_a_header_of_another_root_is_not_authentic() -> None:
    with pytest.raises(AuthenticationError):
        verify_header(sealed(), replace(KEY_SET, root=b"\x0f" * 32))


def test_a_changed_header_is_not_authentic() -> None:
    data = bytearray(sealed())
    at = data.index(b'"name":"home"') + 8
    data[at] = ord("H")
    assert parse_header(bytes(data)).stores[0].name == "Home"
    with pytest.raises(AuthenticationError):
        verify_header(bytes(data), KEY_SET)


def test_role_keys_must_be_those_the_header_names() -> None:
    with pytest.raises(AuthenticationError, match="pruner"):
        verify_header(sealed(), replace(KEY_SET, pruner=b"\x0e" * 32))
    reader = KEY_SET.restricted(())
    assert verify_header(sealed(), reader)[0] == HEADER


def test_a_header_signed_by_another_role_is_refused() -> None:
    data = seal_header(HEADER, keys=KEYS, seed=KEY_SET.pruner)
    with pytest.raises(AuthenticationError):
        verify_header(data, KEY_SET)


def test_a_planted_fingerprint_is_refused() -> None:
    body = HEADER.to_body()
    body["fingerprint"] = "00" * 16
    data = seal_document(DocumentKind.HEADER, body, volume=VOLUME, keys=KEYS, seed=KEY_SET.writer)
    with pytest.raises(AuthenticationError, match="fingerprint"):
        verify_header(data, KEY_SET)


def test_a_header_is_sealed_with_its_own_keys_only() -> None:
    for keys in (
        VolumeKeys.derive(KEY_SET.root, volume=bytes(16), generation=1),
        VolumeKeys.derive(KEY_SET.root, volume=VOLUME, generation=2),
        VolumeKeys.derive(b"\x0f" * 32, volume=VOLUME, generation=1),
    ):
        with pytest.raises(FormatError):
            seal_header(HEADER, keys=keys, seed=KEY_SET.writer)


# --- limits ----------------------------------------------------------------------------------


def slot_of(body: dict[str, Any]) -> dict[str, Any]:
    slot = body["slots"][0]
    assert isinstance(slot, dict)
    return slot


CHANGES: dict[str, Change] = {
    "unknown field": lambda body: body.update(more=1),
    "missing field": lambda body: body.pop("stores"),
    "generation 0": lambda body: body.update(generation=0),
    "generation text": lambda body: body.update(generation="1"),
    "generation true": lambda body: body.update(generation=True),
    "generation 2 without previous": lambda body: body.update(generation=2),
    "generation 1 with previous": lambda body: body.update(previous="00" * 32),
    "short previous": lambda body: body.update(generation=2, previous="00" * 31),
    "upper-case fingerprint": lambda body: body.update(fingerprint="AB" * 16),
    "short fingerprint": lambda body: body.update(fingerprint="ab" * 15),
    "odd fingerprint": lambda body: body.update(fingerprint="a" * 31),
    "negative time": lambda body: body.update(created_ns=-1),
    "key generation without entry": lambda body: body.update(key_generation=2),
    "no key generations": lambda body: body.update(generations=[]),
    "key generation from 1": lambda body: body["generations"][0].update(from_sequence=1),
    "newest generation wrapped": lambda body: body["generations"][0].update(wrapped="00" * 60),
    "wrapped of wrong size": lambda body: body["generations"][0].update(wrapped="00"),
    "no stores": lambda body: body.update(stores=[]),
    "too many stores": lambda body: body.update(
        stores=[{"name": f"s{number}", "instance": f"{number:032x}"} for number in range(17)]
    ),
    "store twice": lambda body: body["stores"][1].update(name="home"),
    "instance twice": lambda body: body["stores"][1].update(instance="20" * 16),
    "store name with a slash": lambda body: body["stores"][0].update(name="../x"),
    "store name empty": lambda body: body["stores"][0].update(name=""),
    "store name long": lambda body: body["stores"][0].update(name="x" * 65),
    "option 2": lambda body: body["options"].update(pad_data=2),
    "option true": lambda body: body["options"].update(pad_data=True),
    "unknown option": lambda body: body["options"].update(other=0),
    "public key short": lambda body: body["public_keys"].update(writer="00" * 31),
    "no slots": lambda body: body.update(slots=[]),
    "too many slots": lambda body: body.update(
        slots=[{**slot_of(body), "id": f"{number:032x}"} for number in range(33)]
    ),
    "slot twice": lambda body: body["slots"].append(slot_of(body)),
    "slot no object": lambda body: body.update(slots=[[]]),
    "slot version": lambda body: slot_of(body).update(version=3),
    "slot kind": lambda body: slot_of(body).update(kind="fido3"),
    "slot of one kind with another's token": lambda body: slot_of(body).update(kind="fido2"),
    "slot of version 1 with later fields": lambda body: slot_of(body).update(version=1),
    "slot of a later key generation": lambda body: slot_of(body).update(key_generation=2),
    "slot with its keys twice": lambda body: slot_of(body).update(boxed="00" * 188),
    "slot without a box": lambda body: slot_of(body).update(box_key=""),
    "slot name empty": lambda body: slot_of(body).update(name=""),
    "slot name long": lambda body: slot_of(body).update(name="é" * 33),
    "slot name with an escape": lambda body: slot_of(body).update(name="\x1b[2J"),
    "slot name right to left": lambda body: slot_of(body).update(name="a\u202eb"),
    "roles out of order": lambda body: slot_of(body).update(roles=["pruner", "writer"]),
    "role twice": lambda body: slot_of(body).update(roles=["writer", "writer"]),
    "unknown role": lambda body: slot_of(body).update(roles=["admin"]),
    "role no string": lambda body: slot_of(body).update(roles=[[]]),
    "kdf algorithm": lambda body: slot_of(body)["kdf"].update(algorithm="argon2i"),
    "kdf below the floor: t": lambda body: slot_of(body)["kdf"].update(t=1),
    "kdf below the floor: m": lambda body: slot_of(body)["kdf"].update(m_kib=65535),
    "kdf below the floor: p": lambda body: slot_of(body)["kdf"].update(p=0),
    "kdf above the ceiling: t": lambda body: slot_of(body)["kdf"].update(t=17),
    "kdf above the ceiling: m": lambda body: slot_of(body)["kdf"].update(m_kib=2 * 1024 * 1024 + 1),
    "kdf above the ceiling: p": lambda body: slot_of(body)["kdf"].update(p=9),
    "kdf salt": lambda body: slot_of(body)["kdf"].update(salt="11" * 15),
    "token mechanism": lambda body: slot_of(body)["token"].update(mechanism="rsa-oaep"),
    "token mechanism list": lambda body: slot_of(body)["token"].update(mechanism=[]),
    "token with a module": lambda body: slot_of(body)["token"].update(module_path="/tmp/x.so"),
    "token point compressed": lambda body: slot_of(body)["token"].update(ephemeral="02" + "13" * 64),
    "token point short": lambda body: slot_of(body)["token"].update(ephemeral="04" + "13" * 63),
    "token of the other kind": lambda body: slot_of(body)["token"].update(mechanism="rsa-pkcs1"),
    "token key id long": lambda body: slot_of(body)["token"].update(key_id="00" * 65),
    "token label with a newline": lambda body: slot_of(body)["token"].update(label="a\nb"),
    "token serial long": lambda body: slot_of(body)["token"].update(serial="1" * 97),
    "token check": lambda body: slot_of(body).update(token_check="14" * 7),
    "commitment": lambda body: slot_of(body).update(commitment="15" * 31),
    "wrap nonce": lambda body: slot_of(body).update(wrap_nonce="16" * 13),
    "wrapped": lambda body: slot_of(body).update(wrapped="17" * 143),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_a_header_may_not_say(change: Change) -> None:
    body: dict[str, Any] = copy.deepcopy(HEADER.to_body())
    change(body)
    with pytest.raises((FormatError, LimitError)):
        VolumeHeader.from_body(VOLUME, body)


@pytest.mark.parametrize(
    "generations",
    [
        (KeyGeneration(1, 0, b""), KeyGeneration(2, 5, b"")),
        (OLD, KeyGeneration(2, 0, b"")),
        (replace(OLD, generation=2), KeyGeneration(1, 5, b"")),
        (OLD, KeyGeneration(3, 5, b"")),
        (OLD, KeyGeneration(2, 4, b"")),
        (OLD, KeyGeneration(2, 6, b"")),
        (replace(OLD, log_end=None), KeyGeneration(2, 5, b"")),
        (OLD, replace(OLD, generation=2, from_sequence=5)),
    ],
)
def test_key_generations_must_follow_one_another(generations: tuple[KeyGeneration, ...]) -> None:
    with pytest.raises(FormatError):
        replace(HEADER, key_generation=2, generations=generations).to_body()


def test_a_huge_number_of_key_generations_costs_nothing() -> None:
    body = HEADER.to_body() | {"key_generation": 10_000_000}
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            VolumeHeader.from_body(VOLUME, body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_header_that_grows_too_long_is_refused_when_sealed() -> None:
    rsa = replace(SLOT.token, mechanism=TokenMechanism.RSA_PKCS1, challenge=bytes(512))
    slots = tuple(
        replace(SLOT, slot_id=bytes([number]) * 16, token=rsa, name="\u00e9" * 32) for number in range(32)
    )
    with pytest.raises(LimitError):
        sealed(replace(HEADER, slots=slots))


@pytest.mark.parametrize(
    ("iterations", "memory_kib", "lanes", "salt"),
    [
        (1, 65536, 1, bytes(16)),
        (2, 32768, 1, bytes(16)),
        (2, 65536, 0, bytes(16)),
        (17, 65536, 1, bytes(16)),
        (2, 4194304, 1, bytes(16)),
        (2, 65536, 9, bytes(16)),
        (2, 65536, 1, bytes(15)),
    ],
)
def test_kdf_parameters_outside_the_limits_cannot_be_made(
    iterations: int, memory_kib: int, lanes: int, salt: bytes
) -> None:
    with pytest.raises(LimitError):
        KdfParameters(iterations=iterations, memory_kib=memory_kib, lanes=lanes, salt=salt)


# --- key sets --------------------------------------------------------------------------------


def test_key_sets_are_128_bytes_whatever_they_grant() -> None:
    assert KEY_SET.encode() == b"\1" * 32 + b"\2" * 32 + b"\3" * 32 + b"\4" * 32
    assert KeySet.decode(KEY_SET.encode()).encode() == KEY_SET.encode()
    reader = KEY_SET.restricted(())
    assert reader.encode() == b"\1" * 32 + bytes(96)
    assert reader.roles() == ()
    assert reader.public_keys() == PublicKeys(writer=bytes(32), pruner=bytes(32), drill=bytes(32))
    pruner = KEY_SET.restricted((Role.PRUNER,))
    assert pruner.roles() == (Role.PRUNER,)
    assert pruner.public_keys().pruner == KEY_SET.public_keys().pruner


def test_key_sets_of_another_form_are_refused() -> None:
    for data in (b"", KEY_SET.encode()[:-1], KEY_SET.encode() + b"\0", bytes(128)):
        with pytest.raises(FormatError):
            KeySet.decode(data)
    with pytest.raises(LimitError):
        KeySet(root=b"\1" * 31, writer=b"", pruner=b"", drill=b"").encode()
    with pytest.raises(LimitError):
        KEY_SET.restricted((Role.DRILL,)).restricted((Role.WRITER,))


def test_a_slot_built_wrong_does_not_encode() -> None:
    with pytest.raises(LimitError):
        replace(SLOT, wrapped=b"short").to_body()
    with pytest.raises(FormatError):
        replace(SLOT, name="a\nb").to_body()
    assert Slot.from_body(SLOT.to_body()) == SLOT
