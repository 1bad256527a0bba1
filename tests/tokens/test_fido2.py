"""FIDO2 security keys: python-fido2 against a key in software, and everything that goes wrong."""

from __future__ import annotations

import hmac
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fido2 import cbor
from fido2.ctap import CtapDevice
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.cli.config import TokenConfig
from mirrorfs.cli.tokens import SecretSources, check_present, make_token
from mirrorfs.errors import (
    MirrorfsError,
    ModuleMissing,
    NotTouched,
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    UsageError,
    WrongPassword,
    WrongPin,
    WrongToken,
)
from mirrorfs.format.kdf import hkdf
from mirrorfs.format.slot import KdfParameters, KeySet, Role
from mirrorfs.format.slot_token import Fido2Fields, SlotKind, token_fields
from mirrorfs.keys import fido2_device, slots
from mirrorfs.keys.fido2_device import key_error
from mirrorfs.keys.fido2_token import Fido2Token
from tests.support.soft_authenticator import (
    TRIES_MAX,
    Command,
    Pin,
    SoftAuthenticator,
    SoftDevice,
    Touch,
)
from tests.support.soft_hid import SoftHid, plug_into

PIN = "123456"
VOLUME = bytes(range(16))


@dataclass
class Person:
    """Answers with one PIN, and remembers what was asked and told."""

    pin: str = PIN
    asked: list[tuple[str, bool, int | None]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __call__(self, label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        self.asked.append((label, final_try, tries_left))
        return self.pin

    def tell(self, sentence: str) -> None:
        self.told.append(sentence)


def unasked() -> bytes:
    raise AssertionError("a security key has no need of the password")


UNLOCKING: dict[str, Any] = {"volume": VOLUME, "authorise": unasked}
ENROLLING: dict[str, Any] = {"entropy": os.urandom, **UNLOCKING}


def token_of(*keys: SoftAuthenticator, person: Person | None = None) -> Fido2Token:
    """The keys that are plugged in when a method is called."""
    person = person or Person()

    def devices() -> Iterable[CtapDevice]:
        return [SoftDevice(key) for key in keys if key.plugged_in]

    return Fido2Token("fido2:", ask_pin=person, tell=person.tell, devices=devices)


def enrolled(key: SoftAuthenticator) -> Fido2Fields:
    fields = token_of(key).enrol(**ENROLLING).fields
    assert isinstance(fields, Fido2Fields)
    key.blinks = key.pins_seen = 0
    return fields


@pytest.fixture
def key() -> SoftAuthenticator:
    return SoftAuthenticator(pin=PIN)


# --- what works ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [{}, {"protocols": (1,)}, {"protocols": (2,)}, {"legacy": True}, {"credential_size_bytes": 255}],
    ids=["both protocols", "protocol 1", "protocol 2", "CTAP 2.0", "long credentials"],
)
def test_an_enrolled_key_yields_the_same_secret_again(model: dict[str, Any]) -> None:
    key, person = SoftAuthenticator(pin=PIN, **model), Person()
    enrolment = token_of(key, person=person).enrol(**ENROLLING)
    fields = enrolment.fields
    assert isinstance(fields, Fido2Fields)
    assert (fields.rp, fields.label, fields.aaguid) == ("mirrorfs", "Soft Key", key.aaguid)
    assert token_fields(SlotKind.FIDO2, fields.to_body()) == fields
    assert len(enrolment.secret) == 32
    assert enrolment.secret.hex() not in repr(enrolment)
    assert person.asked == [("Soft Key", False, TRIES_MAX)]
    assert person.told == [
        "Touch the security key 'Soft Key' now; it blinks. It will want a second touch.",
        "Touch the security key 'Soft Key' once more; it blinks again.",
    ]
    assert key.blinks == 2

    person = Person()
    token = token_of(key, person=person)
    assert token.choose([fields]) == fields
    assert token.is_present(fields)
    assert (person.asked, person.told, key.blinks) == ([], [], 2)
    assert token.secret_for(fields, **UNLOCKING) == enrolment.secret
    assert person.asked == [("Soft Key", False, TRIES_MAX)]
    assert person.told == ["Touch the security key 'Soft Key' now; it blinks."]
    assert key.blinks == 3
    key.power_cycle()
    assert token.secret_for(fields, **UNLOCKING) == enrolment.secret


def test_a_slot_opens_with_the_key_and_tells_its_failures_apart(key: SoftAuthenticator) -> None:
    key_set = KeySet(root=b"\1" * 32, writer=b"\2" * 32, pruner=b"\3" * 32, drill=b"\4" * 32)
    kdf = KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=os.urandom(16))
    slot = slots.make_slot(
        key_set,
        volume=VOLUME,
        key_generation=1,
        name="key",
        roles=tuple(Role),
        stretched=slots.stretch_password(b"correct horse battery", kdf),
        enrolment=token_of(key).enrol(**ENROLLING),
        kdf=kdf,
        created_ns=1,
        entropy=os.urandom,
    )
    secret = token_of(key).secret_for(slot.token, **UNLOCKING)
    slots.check_token_secret(slot, secret)

    def open_with(password: bytes) -> KeySet:
        stretched = slots.stretch_password(password, kdf)
        return slots.open_slot(
            slot, volume=VOLUME, key_generation=1, stretched=stretched, token_secret=secret
        )

    assert open_with(b"correct horse battery").encode() == key_set.encode()
    with pytest.raises(WrongPassword):
        open_with(b"correct horse staple")
    # A credential that someone else put into the slot yields a secret, but not the slot's.
    assert isinstance(slot.token, Fido2Fields)
    planted = replace(slot.token, credential=enrolled(key).credential)
    with pytest.raises(WrongToken):
        slots.check_token_secret(slot, token_of(key).secret_for(planted, **UNLOCKING))


def test_secrets_differ_with_credential_salt_and_volume(key: SoftAuthenticator) -> None:
    fields, other = enrolled(key), enrolled(key)
    token = token_of(key)
    secrets = {
        token.secret_for(fields, **UNLOCKING),
        token.secret_for(other, **UNLOCKING),
        token.secret_for(replace(other, salt=fields.salt), **UNLOCKING),
        token.secret_for(replace(fields, salt=os.urandom(32)), **UNLOCKING),
        token.secret_for(fields, volume=bytes(16), authorise=unasked),
    }
    assert len(secrets) == 5


def test_the_secret_is_that_of_the_specification(key: SoftAuthenticator) -> None:
    """FORMAT.md, "Header", computed from what the key keeps and never gives."""
    enrolment = token_of(key).enrol(**ENROLLING)
    fields = enrolment.fields
    assert isinstance(fields, Fido2Fields)
    kept = key.credential(fields.credential)
    assert kept.secret_with_verification is not None
    output = hmac.digest(kept.secret_with_verification, fields.salt, "sha256")
    info = b"mirrorfs v1 token fido2" + fields.salt + fields.credential
    assert enrolment.secret == hkdf(output, salt=VOLUME, info=info)


def test_hints_do_not_matter(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    misled = replace(fields, label="nothing", aaguid=bytes(16))
    token = token_of(key)
    assert token.secret_for(misled, **UNLOCKING) == token.secret_for(fields, **UNLOCKING)


def test_a_label_is_fit_for_a_slot() -> None:
    key = SoftAuthenticator(pin=PIN, name="Schlüssel\n" + "ß" * 60)
    assert token_fields(SlotKind.FIDO2, (fields := enrolled(key)).to_body()) == fields
    assert fields.label.startswith("Schlüssel?ß")


def test_the_pin_is_sent_in_the_normal_form_that_keys_compare() -> None:
    key = SoftAuthenticator(pin="caf\u00e9-1")
    person = Person(pin="cafe\u0301-1")
    assert token_of(key, person=person).enrol(**ENROLLING).fields.kind is SlotKind.FIDO2


# --- which key -------------------------------------------------------------------------------


def test_of_several_slots_the_first_whose_key_is_plugged_in_is_chosen(key: SoftAuthenticator) -> None:
    spare = SoftAuthenticator(pin=PIN, name="Spare")
    first, second = enrolled(key), enrolled(spare)
    assert token_of(key, spare).choose([first, second]) == first
    assert token_of(spare, key).choose([first, second]) == first
    assert token_of(key, spare).choose([second, first]) == second
    assert token_of(spare).choose([first, second]) == second
    assert (key.blinks, spare.blinks, key.pins_seen, spare.pins_seen) == (0, 0, 0, 0)


def test_of_two_keys_only_the_one_that_holds_the_credential_hears_the_pin(key: SoftAuthenticator) -> None:
    stranger = SoftAuthenticator(pin="other pin", name="Stranger")
    person = Person()
    fields = enrolled(key)
    assert len(token_of(stranger, key, person=person).secret_for(fields, **UNLOCKING)) == 32
    assert person.asked == [("Soft Key", False, TRIES_MAX)]
    assert (stranger.pins_seen, stranger.blinks, key.pins_seen, key.blinks) == (0, 0, 1, 1)


def test_a_wrong_key_is_named_and_hears_no_pin(key: SoftAuthenticator) -> None:
    stranger, person = SoftAuthenticator(pin=PIN, name="Stranger"), Person()
    fields = enrolled(key)
    token = token_of(stranger, person=person)
    for call in (lambda: token.choose([fields]), lambda: token.secret_for(fields, **UNLOCKING)):
        with pytest.raises(WrongToken) as caught:
            call()
        assert str(caught.value) == (
            "No slot that was asked for names a credential of the security key 'Stranger'; insert"
            " the right one."
        )
    assert not token.is_present(fields)
    assert (person.asked, stranger.pins_seen, stranger.blinks) == ([], 0, 0)


def test_a_credential_longer_than_any_of_the_key_is_not_asked_about(key: SoftAuthenticator) -> None:
    fields = replace(enrolled(key), credential=bytes(1024))
    assert not token_of(key).is_present(fields)
    # A key of CTAP 2.0 does not say what is too long for it.
    assert not token_of(SoftAuthenticator(pin=PIN, legacy=True)).is_present(fields)


def test_a_header_cannot_reach_for_credentials_of_another_use(key: SoftAuthenticator) -> None:
    person = Person()
    planted = replace(enrolled(key), rp="bank.example")
    with pytest.raises(WrongToken):
        token_of(key, person=person).secret_for(planted, **UNLOCKING)
    assert (person.asked, key.blinks) == ([], 0)


def test_no_key_at_all(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    key.unplug()
    token = token_of(key)
    for call in (
        lambda: token.choose([fields]),
        lambda: token.secret_for(fields, **UNLOCKING),
        lambda: token.enrol(**ENROLLING),
        token.check_enrollable,
    ):
        with pytest.raises(TokenMissing, match=r"No security key is found; insert it, .*\.$"):
            call()
    assert not token.is_present(fields)
    key.plug_in()
    assert token.is_present(fields)


def test_enrolling_wants_exactly_one_key_that_can(key: SoftAuthenticator) -> None:
    spare, person = SoftAuthenticator(pin=PIN, name="Spare"), Person()
    with pytest.raises(UsageError) as caught:
        token_of(key, spare, person=person).enrol(**ENROLLING)
    assert str(caught.value) == (
        "Several security keys are plugged in: 'Soft Key', 'Spare'; leave only the one to enrol."
    )
    assert person.asked == []


def test_keys_that_cannot_be_used_are_passed_over(key: SoftAuthenticator) -> None:
    class Old(SoftDevice):
        @property
        def capabilities(self) -> int:
            return 0  # U2F only

    fields = enrolled(key)
    simple = SoftAuthenticator(name="Simple", extensions=())
    without_pin = SoftAuthenticator(name="No PIN", takes_pin=False)
    fit: list[SoftAuthenticator] = []

    def devices() -> Iterable[CtapDevice]:
        yield Old(SoftAuthenticator(name="Old"))
        yield from map(SoftDevice, [simple, without_pin, *fit])

    person = Person()
    token = Fido2Token("fido2:", ask_pin=person, tell=person.tell, devices=devices)
    with pytest.raises(UsageError) as caught:
        token.enrol(**ENROLLING)
    assert str(caught.value) == (
        "No security key that is plugged in ('Old', 'Simple', 'No PIN') can do hmac-secret with a PIN; use"
        " another one."
    )
    with pytest.raises(WrongToken, match="'Old', 'Simple', 'No PIN'"):
        token.choose([fields])
    fit.append(key)
    assert token.choose([fields]) == fields


def test_other_kinds_of_slots_are_not_ours(key: SoftAuthenticator) -> None:
    recovery = token_fields(SlotKind.RECOVERY, {})
    token = token_of(key)
    assert not token.is_present(recovery)
    with pytest.raises(WrongToken):
        token.secret_for(recovery, **UNLOCKING)
    fields = enrolled(key)
    assert token.choose([recovery, fields]) == fields


# --- the PIN ---------------------------------------------------------------------------------


def test_a_wrong_pin_is_sent_once_and_the_tries_are_told(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    person = Person(pin="wrong pin")
    with pytest.raises(WrongPin) as caught:
        token_of(key, person=person).secret_for(fields, **UNLOCKING)
    assert str(caught.value) == "The security key 'Soft Key' refused the PIN; check it, for 7 tries are left."
    assert (key.pins_seen, key.blinks, person.told) == (1, 0, [])
    with pytest.raises(WrongPin, match="for 6 tries are left"):
        token_of(key, person=person).enrol(**ENROLLING)
    assert [tries for _, _, tries in person.asked] == [8, 7]
    assert (key.pins_seen, key.blinks, person.told) == (2, 0, [])


def test_wrong_pins_until_it_is_replugged_and_until_it_is_locked(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    person = Person(pin="wrong pin")
    token = token_of(key, person=person)

    def refused() -> UnlockError:
        with pytest.raises(UnlockError) as caught:
            token.secret_for(fields, **UNLOCKING)
        return caught.value

    replug = (
        "The security key 'Soft Key' takes no PIN for now, after three wrong ones; remove it, insert it again"
        " and make sure of the PIN."
    )
    for _ in range(2):
        assert [type(refused()) for _ in range(2)] == [WrongPin, WrongPin]
        assert (str(error := refused()), type(error)) == (replug, PinLocked)
        asked = len(person.asked)
        assert (str(error := refused()), type(error)) == (replug, PinLocked)
        assert len(person.asked) == asked
        assert token.is_present(fields)
        key.plug_in()
    assert str(refused()) == (
        "The security key 'Soft Key' refused the PIN; make sure of it, for one more wrong one locks it."
    )
    locked = (
        "The security key 'Soft Key' has its PIN locked for good, and the reset that frees it destroys what"
        " it holds for this volume; use another token."
    )
    assert (str(error := refused()), type(error)) == (locked, PinLocked)
    assert person.asked[-2:] == [("Soft Key", False, 2), ("Soft Key", True, 1)]
    key.plug_in()
    person.pin = PIN
    assert (str(error := refused()), type(error)) == (locked, PinLocked)
    assert len(person.asked) == TRIES_MAX == key.pins_seen


def test_a_right_pin_gives_the_tries_back(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    with pytest.raises(WrongPin):
        token_of(key, person=Person(pin="wrong pin")).secret_for(fields, **UNLOCKING)
    person = Person()
    token = token_of(key, person=person)
    for _ in range(2):
        token.secret_for(fields, **UNLOCKING)
    assert [tries for _, _, tries in person.asked] == [7, 8]


@pytest.mark.parametrize("pin", ["123", "x" * 64, "ä" * 32])
def test_what_can_be_no_pin_costs_no_try(key: SoftAuthenticator, pin: str) -> None:
    fields = enrolled(key)
    with pytest.raises(UsageError, match="has 4 to 63 characters; this one was not sent") as caught:
        token_of(key, person=Person(pin=pin)).secret_for(fields, **UNLOCKING)
    assert pin not in str(caught.value)
    assert key.pins_seen == 0


def test_a_key_without_a_pin_wants_one_first() -> None:
    bare, person = SoftAuthenticator(), Person()
    token = token_of(bare, person=person)
    for call in (lambda: token.enrol(**ENROLLING), token.check_enrollable):
        with pytest.raises(PinLocked) as caught:
            call()
        assert str(caught.value) == (
            "The security key 'Soft Key' has no PIN; set one with its vendor's tool and try again."
        )
    assert (person.asked, bare.blinks) == ([], 0)


def test_a_key_that_wants_a_new_pin(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    key.force_pin_change = True
    person = Person()
    with pytest.raises(PinLocked, match="wants a new PIN; change it with its vendor's tool"):
        token_of(key, person=person).secret_for(fields, **UNLOCKING)
    assert (person.asked, key.pins_seen) == ([], 0)


def test_an_error_shows_neither_pin_nor_secret(
    key: SoftAuthenticator, caplog: pytest.LogCaptureFixture
) -> None:
    fields = enrolled(key)
    caplog.set_level("DEBUG")
    person = Person(pin="very secret")
    with pytest.raises(WrongPin) as caught:
        token_of(key, person=person).secret_for(fields, **UNLOCKING)
    shown: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        shown.append(repr(error))
        error = error.__cause__ or error.__context__
    secret = token_of(key).secret_for(fields, **UNLOCKING)
    assert "very secret" not in "".join(shown) + caplog.text
    assert secret.hex() not in caplog.text and PIN not in caplog.text


# --- the touch -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("touch", "sentence"),
    [
        (
            Touch.NEVER,
            "The security key 'Soft Key' was not touched in time; try again and touch it while it blinks.",
        ),
        (
            Touch.REFUSED,
            "The security key 'Soft Key' was told no; try again and touch it while it blinks.",
        ),
    ],
)
def test_no_touch(key: SoftAuthenticator, touch: Touch, sentence: str) -> None:
    fields = enrolled(key)
    key.touch = touch
    token = token_of(key)
    for call in (lambda: token.secret_for(fields, **UNLOCKING), lambda: token.enrol(**ENROLLING)):
        with pytest.raises(NotTouched) as caught:
            call()
        assert str(caught.value) == sentence
    assert token.is_present(fields)
    key.touch = Touch.GIVEN
    assert len(token.secret_for(fields, **UNLOCKING)) == 32


def test_a_late_touch_is_waited_for(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    key.touch_after_s = 0.1
    assert len(token_of(key).secret_for(fields, **UNLOCKING)) == 32


def test_a_key_that_blinks_for_ever_is_cancelled(
    key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = enrolled(key)
    key.touch_after_s = 600.0
    monkeypatch.setattr(fido2_device, "TOUCH_DEADLINE_S", 0.05)
    with pytest.raises(NotTouched) as caught:
        token_of(key).secret_for(fields, **UNLOCKING)
    assert str(caught.value) == (
        "The security key 'Soft Key' stopped waiting, for the touch was cancelled; try again and touch it"
        " while it blinks."
    )


# --- removal ---------------------------------------------------------------------------------

MOMENTS = [
    (Command.GET_INFO, None),
    (Command.CLIENT_PIN, Pin.GET_RETRIES),
    (Command.CLIENT_PIN, Pin.GET_KEY_AGREEMENT),
    (Command.CLIENT_PIN, Pin.GET_TOKEN_WITH_PERMISSIONS),
    (Command.GET_ASSERTION, None),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: (moment[1] or moment[0]).name)
def test_a_key_that_is_pulled_out_in_the_middle(
    key: SoftAuthenticator, moment: tuple[Command, Pin | None]
) -> None:
    fields = enrolled(key)
    token = token_of(key)
    for call in (lambda: token.secret_for(fields, **UNLOCKING), lambda: token.enrol(**ENROLLING)):
        key.leaves_at = moment
        with pytest.raises(TokenMissing) as caught:
            call()
        assert str(caught.value) == (
            "The security key 'Soft Key' was removed while in use; insert it and try again."
        )
        key.plug_in()
    key.leaves_at = moment
    assert token.is_present(fields) == (moment[0] is Command.CLIENT_PIN)
    key.plug_in()
    assert len(token.secret_for(fields, **UNLOCKING)) == 32


def test_a_key_that_is_pulled_out_while_it_blinks(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    key.touch_after_s = 600.0

    def pulled_out(sentence: str) -> None:
        threading.Timer(0.05, key.unplug).start()

    token = Fido2Token("fido2:", ask_pin=Person(), tell=pulled_out, devices=lambda: [SoftDevice(key)])
    with pytest.raises(TokenMissing, match="removed while in use"):
        token.secret_for(fields, **UNLOCKING)


def test_another_key_that_is_pulled_out_does_not_matter(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    leaving = SoftAuthenticator(pin=PIN, name="Leaving")
    for moment in ((Command.GET_INFO, None), (Command.GET_ASSERTION, None)):
        leaving.leaves_at = moment
        assert len(token_of(leaving, key).secret_for(fields, **UNLOCKING)) == 32
        leaving.plug_in()


def test_devices_are_closed_whatever_happens(key: SoftAuthenticator) -> None:
    fields = enrolled(key)
    stranger = SoftAuthenticator(pin=PIN, name="Stranger")
    opened: list[SoftDevice] = []

    def devices() -> Iterable[CtapDevice]:
        for plugged in (stranger, key):
            opened.append(SoftDevice(plugged))
            yield opened[-1]

    person = Person()
    token = Fido2Token("fido2:", ask_pin=person, tell=person.tell, devices=devices)
    token.secret_for(fields, **UNLOCKING)
    person.pin = "wrong pin"
    with pytest.raises(WrongPin):
        token.secret_for(fields, **UNLOCKING)
    key.leaves_at = (Command.GET_INFO, None)
    with pytest.raises(TokenMissing):
        token.choose([fields])
    assert len(opened) == 6 and all(device.closed for device in opened)


# --- answers that are not what was asked for -------------------------------------------------

Alter = Callable[[Command, dict[Any, Any]], None]


def answering(command: Command, change: Callable[[dict[Any, Any]], None]) -> Alter:
    """Change what the key answers to a command, when it comes with a touch."""

    def alter(answered: Command, answer: dict[Any, Any]) -> None:
        if answered is command and answer[2][32] & 1:
            change(answer)

    return alter


def with_output(change: Callable[[bytes], object]) -> Callable[[dict[Any, Any]], None]:
    """Put something else into an assertion in the place of its sealed output."""

    def altered(answer: dict[Any, Any]) -> None:
        extensions: Any = cbor.decode(answer[2][37:])
        changed: Any = {"hmac-secret": change(extensions["hmac-secret"])}
        answer[2] = answer[2][:37] + cbor.encode(changed)

    return altered


def with_flags(keep: int) -> Callable[[dict[Any, Any]], None]:
    def altered(answer: dict[Any, Any]) -> None:
        answer[2] = answer[2][:32] + bytes([answer[2][32] & keep]) + answer[2][33:]

    return altered


def without_output(answer: dict[Any, Any]) -> None:
    answer[2] = answer[2][:32] + bytes([answer[2][32] & 0x7F]) + answer[2][33:37]


def for_someone_else(answer: dict[Any, Any]) -> None:
    answer[2] = bytes(32) + answer[2][32:]


def of_another_credential(answer: dict[Any, Any]) -> None:
    answer[1] = {"id": bytes(64), "type": "public-key"}


ALTERED = {
    "one block less": with_output(lambda output: output[:-16]),
    "one block more": with_output(lambda output: output + bytes(16)),
    "half a block": with_output(lambda output: output[:-8]),
    "nothing in it": with_output(lambda output: b""),
    "no bytes": with_output(lambda output: "text"),
    "no output": without_output,
    "no PIN": with_flags(0xFF & ~0x04),
    "no touch": with_flags(0xFF & ~0x01),
    "neither PIN nor touch": with_flags(0xFF & ~0x05),
    "another relying party": for_someone_else,
    "another credential": of_another_credential,
    "no authenticator data": lambda answer: answer.pop(2),
    "cut authenticator data": lambda answer: answer.update({2: answer[2][:-1]}),
}


@pytest.mark.parametrize("name", ALTERED)
@pytest.mark.parametrize("protocol", [1, 2])
def test_an_assertion_that_was_tampered_with_is_refused(name: str, protocol: int) -> None:
    key = SoftAuthenticator(pin=PIN, protocols=(protocol,))
    fields = enrolled(key)
    key.alter = answering(Command.GET_ASSERTION, ALTERED[name])
    with pytest.raises(TokenFailed, match=r"^The security key 'Soft Key' .*\.$"):
        token_of(key).secret_for(fields, **UNLOCKING)
    # Enrolling asks for an assertion too, and believes it no more.
    with pytest.raises(TokenFailed, match=r"^The security key 'Soft Key' .*\.$"):
        token_of(key).enrol(**ENROLLING)


def test_a_secret_that_was_changed_on_the_way_is_not_enrolled(key: SoftAuthenticator) -> None:
    def flipped(output: bytes) -> bytes:
        return output[:-1] + bytes([output[-1] ^ 1])

    fields = enrolled(key)
    right = token_of(key).secret_for(fields, **UNLOCKING)
    key.alter = answering(Command.GET_ASSERTION, with_output(flipped))
    with pytest.raises(TokenFailed):
        token_of(key).enrol(**ENROLLING)
    # Unlocking cannot know; the slot's check of the secret does.
    assert token_of(key).secret_for(fields, **UNLOCKING) != right


def without_extension(answer: dict[Any, Any]) -> None:
    end = answer[2].rindex(b"\xa1\x6bhmac-secret")
    answer[2] = answer[2][:32] + bytes([answer[2][32] & 0x7F]) + answer[2][33:end]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_extension, "made no hmac-secret"),
        (with_flags(0xFF & ~0x04), "did not take PIN and touch"),
        (for_someone_else, "did not take PIN and touch"),
        (lambda answer: answer.update({2: answer[2][:60]}), "what is not CTAP2"),
    ],
)
def test_a_credential_that_is_no_use_is_not_enrolled(
    key: SoftAuthenticator, change: Callable[[dict[Any, Any]], None], words: str
) -> None:
    key.alter = answering(Command.MAKE_CREDENTIAL, change)
    with pytest.raises(TokenFailed, match=words):
        token_of(key).enrol(**ENROLLING)


@pytest.mark.parametrize("size_bytes", [0, 1025])
def test_a_credential_that_no_slot_can_hold_is_not_enrolled(size_bytes: int) -> None:
    with pytest.raises(TokenFailed, match="made no credential that fits"):
        token_of(SoftAuthenticator(pin=PIN, credential_size_bytes=size_bytes)).enrol(**ENROLLING)


class Babbling(SoftDevice):
    """Answers one command with bytes of its own."""

    def __init__(self, key: SoftAuthenticator, command: int, said: bytes) -> None:
        super().__init__(key)
        self._command = command
        self._said = said

    def call(self, cmd: int, data: bytes = b"", *rest: Any, **more: Any) -> bytes:
        return self._said if data[0] == self._command else super().call(cmd, data, *rest, **more)


LENIENT = SoftAuthenticator(pin=PIN)
SOME_FIELDS = enrolled(LENIENT)
VALUES = st.recursive(
    st.integers(-(2**32), 2**32) | st.booleans() | st.binary(max_size=80) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 12), inner, max_size=6),
    max_leaves=12,
)


@given(
    command=st.sampled_from(Command),
    said=st.binary(max_size=80) | VALUES.map(lambda value: b"\0" + cbor.encode(value)),
)
def test_any_answer_is_a_secret_or_an_error_of_ours(command: Command, said: bytes) -> None:
    token = Fido2Token(
        "fido2:",
        ask_pin=Person(),
        tell=lambda sentence: None,
        devices=lambda: [Babbling(LENIENT, command, said)],
    )
    for call in (lambda: token.secret_for(SOME_FIELDS, **UNLOCKING), lambda: token.enrol(**ENROLLING)):
        try:
            call()
        except MirrorfsError as error:
            assert str(error).endswith(".")


# --- over USB --------------------------------------------------------------------------------


def usb_token(person: Person | None = None) -> Fido2Token:
    person = person or Person()
    return Fido2Token("fido2:", ask_pin=person, tell=person.tell)


def test_over_usb(key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    wires = [SoftHid(key), SoftHid(SoftAuthenticator(pin="other pin", name="Stranger"))]
    plug_into(monkeypatch, wires[:1])
    person = Person()
    enrolment = usb_token(person).enrol(**ENROLLING)
    assert (enrolment.fields.label, len(person.told), key.blinks) == ("Soft Key", 2, 2)
    plug_into(monkeypatch, wires[::-1])
    key.touch_after_s = 0.1
    assert usb_token().secret_for(enrolment.fields, **UNLOCKING) == enrolment.secret
    assert wires[1].key.pins_seen == 0 and key.blinks == 3
    assert all(wire.closed for wire in wires)
    key.unplug()
    with pytest.raises(WrongToken, match="'Stranger'"):
        usb_token().choose([enrolment.fields])


def test_removal_over_usb(key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = enrolled(key)
    wire = SoftHid(key)
    plug_into(monkeypatch, [wire])
    key.touch_after_s = 600.0

    def pulled_out(sentence: str) -> None:
        threading.Timer(0.05, key.unplug).start()

    with pytest.raises(TokenMissing, match="'Soft Key' was removed while in use"):
        Fido2Token("fido2:", ask_pin=Person(), tell=pulled_out).secret_for(fields, **UNLOCKING)
    assert wire.touch_needed.is_set() and wire.closed
    with pytest.raises(TokenMissing, match="No security key is found"):
        usb_token().choose([fields])


def test_ctrl_c_stops_the_blinking(key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(SoftHid):
        def read_packet(self) -> bytes:
            packet = super().read_packet()
            if self.touch_needed.is_set() and not self.cancels:
                raise KeyboardInterrupt
            return packet

    fields = enrolled(key)
    wire = Interrupted(key)
    plug_into(monkeypatch, [wire])
    key.touch_after_s = 600.0
    with pytest.raises(KeyboardInterrupt):
        usb_token().secret_for(fields, **UNLOCKING)
    assert wire.cancels == 1 and wire.closed


def test_a_deadline_cancels_over_usb(key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = enrolled(key)
    wire = SoftHid(key)
    plug_into(monkeypatch, [wire])
    key.touch_after_s = 600.0
    monkeypatch.setattr(fido2_device, "TOUCH_DEADLINE_S", 0.1)
    with pytest.raises(NotTouched, match="the touch was cancelled"):
        usb_token().secret_for(fields, **UNLOCKING)
    assert wire.cancels >= 1


def test_a_key_that_another_program_keeps_busy(
    key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = enrolled(key)
    wire = SoftHid(key)
    plug_into(monkeypatch, [wire])
    wire.busy = True
    monkeypatch.setattr(fido2_device, "CALL_DEADLINE_S", 0.1)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own, which no program has
    with pytest.raises(TokenFailed) as caught:
        usb_token().is_present(fields)
    assert str(caught.value) == (
        "The security key 'Soft Key' is in use by another program; end what it asks there and try again."
    )
    assert capsys.readouterr().err == ""


def test_a_device_that_cannot_be_opened_is_passed_over(
    key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(SoftHid):
        def write_packet(self, data: bytes) -> None:
            raise PermissionError

    fields = enrolled(key)
    gone = Gone(SoftAuthenticator(name="Gone"))
    plug_into(monkeypatch, [gone, SoftHid(key)])
    assert usb_token().choose([fields]) == fields
    assert gone.closed


# --- the error table -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [
        (0x2E, WrongToken, "does not hold the credential of this slot; insert the right one"),
        (0x22, WrongToken, "does not hold the credential of this slot; insert the right one"),
        (0x31, WrongPin, "refused the PIN; check it"),
        (0x32, PinLocked, "locked for good"),
        (0x34, PinLocked, "remove it, insert it again"),
        (0x35, PinLocked, "has no PIN; set one with its vendor's tool"),
        (0x36, PinLocked, "wants a PIN; set one with its vendor's tool"),
        (0x37, PinLocked, "wants a new PIN; change it with its vendor's tool"),
        (0x2F, NotTouched, "not touched in time; try again"),
        (0x3A, NotTouched, "not touched in time; try again"),
        (0x3B, NotTouched, "not touched; try again"),
        (0x2D, NotTouched, "touch was cancelled; try again"),
        (0x27, NotTouched, "was told no; try again"),
        (0x06, TokenFailed, "in use by another program"),
        (0x33, TokenFailed, "failed (PIN_AUTH_INVALID, 0x33)"),
        (0x7F, TokenFailed, "failed (OTHER, 0x7f)"),
        (0xB7, TokenFailed, "failed (UNKNOWN_ERR, 0xb7)"),
    ],
)
def test_error_table(code: int, expected: type[UnlockError], words: str) -> None:
    class Failing(Babbling):
        def __init__(self) -> None:
            super().__init__(LENIENT, Command.MAKE_CREDENTIAL, bytes([code]))

    with pytest.raises(expected) as caught:
        Fido2Token("fido2:", ask_pin=Person(), tell=lambda sentence: None, devices=lambda: [Failing()]).enrol(
            **ENROLLING
        )
    assert type(caught.value) is expected
    assert words in str(caught.value)
    assert str(caught.value).startswith("The security key 'Soft Key' ") and str(caught.value).endswith(".")
    assert caught.value.exit_code == 3
    assert type(key_error(code, label="my card")) is expected


# --- URI and command line --------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["", "fido2", "fido:", "pkcs11:", "fido2:123456", "fido2:?pin-value=123456"])
def test_other_uris_are_refused_unseen(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        Fido2Token(uri, ask_pin=Person(), tell=lambda sentence: None)
    assert "123456" not in str(caught.value)


def test_the_command_line_enrols_and_opens(
    key: SoftAuthenticator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    plug_into(monkeypatch, [SoftHid(key)])
    pin_file = tmp_path / "pin"
    pin_file.write_text(f"{PIN}\n")
    pin_file.chmod(0o600)
    sources = SecretSources(None, str(pin_file), {})
    config = TokenConfig("FIDO2:")
    assert check_present(config, sources) is False
    token = make_token(config, sources)
    assert token.kind is SlotKind.FIDO2
    assert token.describe() == "a security key (fido2:)"
    enrolment = token.enrol(**ENROLLING)
    assert token.secret_for(enrolment.fields, **UNLOCKING) == enrolment.secret
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "mirrorfs: Touch the security key 'Soft Key' now; it blinks."
    with pytest.raises(UsageError, match="module"):
        make_token(TokenConfig("fido2:", "/usr/lib/module.so"), sources)


def test_a_pin_from_a_file_never_takes_the_last_try(
    key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = enrolled(key)
    plug_into(monkeypatch, [SoftHid(key)])
    pin_file = tmp_path / "pin"
    pin_file.write_text("wrong pin\n")
    pin_file.chmod(0o600)
    token = make_token(TokenConfig("fido2:"), SecretSources(None, str(pin_file), {}))
    for _ in range(TRIES_MAX - 1):
        with pytest.raises((WrongPin, PinLocked)):
            token.secret_for(fields, **UNLOCKING)
        key.power_cycle()
    with pytest.raises(UsageError, match="one PIN try left"):
        token.secret_for(fields, **UNLOCKING)
    assert key.pins_seen == TRIES_MAX - 1


def test_without_python_fido2(key: SoftAuthenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = enrolled(key)
    monkeypatch.delitem(sys.modules, "mirrorfs.keys.fido2_device")
    monkeypatch.delattr("mirrorfs.keys.fido2_device")
    monkeypatch.setitem(sys.modules, "fido2", None)
    token = token_of(key)
    for call in (lambda: token.choose([fields]), lambda: token.is_present(fields)):
        with pytest.raises(ModuleMissing) as caught:
            call()
        assert str(caught.value) == (
            "Security keys need python-fido2 from 2.0 on; install it with: pip install 'mirrorfs[fido2]'."
        )


def test_the_command_line_loads_python_fido2_only_when_a_key_is_used() -> None:
    code = "import sys, mirrorfs.cli.mount, mirrorfs.cli.init; sys.exit('fido2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
