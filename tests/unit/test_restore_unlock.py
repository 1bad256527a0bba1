"""cli/restore_unlock.py: what a hostile store plants among the headers, who is asked what, how often."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from mirrorfs.cli.restore_stores import NamedStore, StoreFound, StoresFound
from mirrorfs.cli.restore_unlock import TRIES_MAX, unlock_newest
from mirrorfs.cli.tokens import SecretSources
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.errors import ChainError, MirrorfsError, WrongPassword, WrongPin, WrongToken
from mirrorfs.format.header import VolumeHeader, parse_header, seal_header
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import KdfParameters, KeySet, Role, Slot
from mirrorfs.format.slot_token import Pkcs11Fields, SlotKind, TokenFields
from mirrorfs.keys import slots
from mirrorfs.keys.rotation import rotate_keys
from mirrorfs.keys.token import Authorise, Enrolment
from tests.support.volumes import HEADER, KEY_SET, KEYS, SLOT, VOLUME, ended

PASSWORD = "correct horse 42"
KDF = KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=b"\x11" * 16)
SECRET = b"\x2a" * 32


class Card:
    """A token that counts how often it is used."""

    kind: ClassVar[SlotKind] = SlotKind.PKCS11

    def __init__(self) -> None:
        self.used = 0
        self.refuses: MirrorfsError | None = None

    def describe(self) -> str:
        return "the card"

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        for fields in candidates:
            if isinstance(fields, Pkcs11Fields) and fields.spki_sha256 == SLOT.token.spki_sha256:  # type: ignore[union-attr]
                return fields
        raise WrongToken("No slot that was asked for names a key of the card.")

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        self.used += 1
        if self.refuses is not None:
            raise self.refuses
        return SECRET if fields == SLOT.token else hashlib.sha256(repr(fields).encode()).digest()

    def enrol(self, **_: object) -> Enrolment:
        raise AssertionError

    def is_present(self, fields: TokenFields) -> bool:
        raise AssertionError


def slot_for(key_set: KeySet, password: str = PASSWORD) -> Slot:
    stretched = slots.stretch_password(password.encode(), KDF)
    return slots.make_slot(
        key_set, volume=VOLUME, key_generation=1, name="card", roles=tuple(Role), stretched=stretched,
        enrolment=Enrolment(SLOT.token, SECRET), kdf=KDF, created_ns=1, entropy=os.urandom,
    )  # fmt: skip


MINE = slot_for(KEY_SET)


def header(generation: int, *, slot: Slot = MINE, seed: bytes = KEY_SET.writer) -> bytes:
    previous = b"" if generation == 1 else b"\x01" * 32
    made = replace(HEADER, generation=generation, previous=previous, slots=(slot,))
    return seal_header(made, keys=KEYS, seed=seed)


def planted(generation: int, **fields: object) -> bytes:
    """Somebody without the keys turned something of the slot; the rest is as it was."""
    return header(generation, slot=replace(MINE, **fields), seed=b"\x66" * 32)  # type: ignore[arg-type]


def rotated(base: bytes, *, with_slot: bool = True) -> bytes:
    old = parse_header(base)
    kept = old.slots if with_slot else (slot_for(KEY_SET, "another horse 42"),)
    data, _ = rotate_keys(
        replace(old, slots=kept),
        base,
        KEYS,
        KEY_SET,
        slots=kept,
        log_end=ended(7),
        checkpoint=None,
        entropy=os.urandom,
    )
    return data


class Practice:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.card = Card()
        self.stretched = 0
        self.password = folder / "password"
        self.password.touch(mode=0o600)
        self.password.write_text(PASSWORD + "\n")
        monkeypatch.setattr("mirrorfs.cli.restore_unlock.make_tokens", lambda *_: [self.card])
        stretch = slots.stretch_password

        def counted(password: bytes, kdf: KdfParameters) -> bytes:
            self.stretched += 1
            return stretch(password, kdf)

        monkeypatch.setattr("mirrorfs.cli.unlock.stretch_password", counted)

    def unlock(self, **stores: list[bytes]) -> Unlocked:
        found = tuple(
            StoreFound(NamedStore(name, f"file:///{name}"), tuple(headers), None)
            for name, headers in stores.items()
        )
        return unlock_newest(StoresFound(found, ()), [], SecretSources(str(self.password), None, {}))


@pytest.fixture
def it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Practice:
    return Practice(tmp_path, monkeypatch)


@pytest.mark.parametrize("number", [1, 4])
def test_two_rotations_of_the_same_keys(it: Practice, number: int) -> None:
    """Both open, and somebody with the old keys may have made the one that looks newer."""
    ours, theirs = rotated(header(1)), rotated(header(number))
    with pytest.raises(ChainError, match="two headers"):
        it.unlock(home=[ours, theirs], s3=[ours, theirs])


OTHER_TOKEN = replace(SLOT.token, challenge=b"\x04" + b"\x33" * 64)


@pytest.mark.parametrize(
    ("fields", "used", "stretched"),
    [
        ({"commitment": b"\x99" * 32}, 1, 1),
        ({"wrapped": b"\x99" * 144}, 1, 1),
        ({"token_check": b"\x99" * 8}, 1, 1),
        ({"token": OTHER_TOKEN}, 2, 1),
        ({"token": replace(SLOT.token, spki_sha256=b"\x99" * 32)}, 1, 1),  # type: ignore[arg-type]
        ({"kdf": replace(KDF, salt=b"\x99" * 16)}, 1, 1),
    ],
)
def test_a_planted_header_is_passed_over_and_named(
    it: Practice, fields: dict[str, object], used: int, stretched: int, capsys: pytest.CaptureFixture[str]
) -> None:
    good = header(2)
    unlocked = it.unlock(a=[planted(9, **fields), good, header(1)], b=[good, header(1)])
    assert unlocked.data == good
    assert (it.card.used, it.stretched) == (used, stretched)
    said = capsys.readouterr().err
    assert said.count("A header of store a opens nothing, and no writer of the volume made it") == 1


def test_a_wrong_password_is_stretched_once_and_said_once(
    it: Practice, capsys: pytest.CaptureFixture[str]
) -> None:
    it.password.write_text("not the right password\n")
    good, first = header(2), header(1)
    with pytest.raises(WrongPassword):
        it.unlock(a=[good, first], b=[good, first])
    assert (it.card.used, it.stretched) == (1, 1)
    assert capsys.readouterr().err == ""


def test_the_error_is_that_of_the_header_that_most_stores_show(
    it: Practice, capsys: pytest.CaptureFixture[str]
) -> None:
    it.password.write_text("not the right password\n")
    good = header(2)
    with pytest.raises(WrongPassword):
        it.unlock(a=[planted(9, token_check=b"\x99" * 8), good], b=[good])
    said = capsys.readouterr().err
    assert "Header generation 9 of store a does not open: The token does not hold the key" in said


def test_what_a_token_refused_is_sent_once(it: Practice) -> None:
    it.card.refuses = WrongPin("The token refused the PIN.")
    with pytest.raises(WrongPin):
        it.unlock(a=[planted(9, token=OTHER_TOKEN), header(2)], b=[header(2)])
    assert it.card.used == 1


def test_a_store_full_of_planted_headers(it: Practice) -> None:
    many = [
        planted(100 - number, token=replace(SLOT.token, challenge=bytes([4, *[number] * 64])))  # type: ignore[arg-type]
        for number in range(20)
    ]
    good = header(2)
    assert it.unlock(a=[*many, good], b=[good]).data == good
    assert it.card.used == TRIES_MAX + 1
    with pytest.raises(WrongToken):
        it.unlock(a=[*many, good])


def test_a_genuine_newer_header_is_not_passed_over(it: Practice) -> None:
    """Another store has an older one that would open: the slot was removed since, or the password changed."""
    old = header(2)
    stranger = header(3, slot=replace(MINE, token=replace(SLOT.token, spki_sha256=b"\x99" * 32)))  # type: ignore[arg-type]
    changed = header(3, slot=slot_for(KEY_SET, "another horse 42"))
    for newer, error in (
        (stranger, WrongToken),
        (changed, WrongPassword),
        (rotated(old, with_slot=False), WrongPassword),
    ):
        for stores in ({"a": [newer, old], "b": [old]}, {"a": [old], "b": [newer]}):
            with pytest.raises(error):
                it.unlock(**stores)
    newest = rotated(old)
    assert it.unlock(a=[old], b=[newest]).data == newest


def test_a_genuine_newer_header_behind_planted_ones(it: Practice) -> None:
    """One store alone has it, and shows so many others that it would not be reached."""
    many = [planted(9 + number, commitment=bytes([number]) * 32) for number in range(TRIES_MAX)]
    newer, old = header(3), header(2)
    assert it.unlock(a=[*reversed(many), newer, old], b=[old]).data == newer


def test_of_two_as_new_the_one_that_more_stores_show(it: Practice) -> None:
    one, other = header(2), header(2, slot=slot_for(KEY_SET))
    for first, second in ((one, other), (other, one)):
        assert it.unlock(a=[first], b=[second], c=[first]).data == first


def test_a_header_around_a_planted_key_does_not_open_without_the_token(it: Practice) -> None:
    """Its maker knows the password, not what the token yields."""
    own = KeySet(root=b"\x55" * 32, writer=b"\x56" * 32, pruner=b"\x57" * 32, drill=b"\x58" * 32)
    keys = VolumeKeys.derive(own.root, volume=VOLUME, generation=1)
    made: VolumeHeader = replace(
        HEADER,
        generation=9,
        previous=b"\x01" * 32,
        fingerprint=keys.fingerprint,
        public_keys=own.public_keys(),
        slots=(replace(slot_for(own), token=OTHER_TOKEN),),
    )
    good = header(2)
    assert it.unlock(a=[seal_header(made, keys=keys, seed=own.writer), good], b=[good]).data == good
