"""PKCS#11 through real middleware: SoftHSM2 tokens with EC and RSA keys, and everything that goes wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute
from pkcs11 import exceptions as p11

from mirrorfs.errors import (
    ConfigError,
    FormatError,
    ModuleMissing,
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    UsageError,
    WrongPassword,
    WrongPin,
    WrongToken,
)
from mirrorfs.format.slot import KdfParameters, KeySet, Role
from mirrorfs.format.slot_token import Pkcs11Fields, TokenMechanism
from mirrorfs.keys import slots
from mirrorfs.keys.pkcs11_module import token_error
from mirrorfs.keys.pkcs11_token import Pkcs11Token
from mirrorfs.keys.pkcs11_uri import parse_pkcs11_uri
from tests.support.softhsm import MODULE, PIN, SoftHsm, SoftToken, softhsm

VOLUME = bytes(range(16))
P384_PARAMETERS = bytes.fromhex("06052b81040022")


@dataclass
class PinPad:
    """Answers with one PIN and remembers every time it was asked."""

    pin: str = PIN
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def __call__(self, label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        self.asked.append((label, final_try))
        return self.pin


def unasked() -> bytes:
    raise AssertionError("a PKCS#11 token has no need of the password")


UNLOCKING: dict[str, Any] = {"volume": VOLUME, "authorise": unasked}
ENROLLING: dict[str, Any] = {"entropy": os.urandom, **UNLOCKING}


def token_at(uri: str, pad: PinPad | None = None, *, create: bool = False) -> Pkcs11Token:
    return Pkcs11Token(parse_pkcs11_uri(uri, local=True), ask_pin=pad or PinPad(), create=create)


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with softhsm(tmp_path_factory.mktemp("softhsm")) as store:
        yield store


@pytest.fixture(scope="module")
def card(hsm: SoftHsm) -> SoftToken:
    """A token with an EC key and an RSA key."""
    card = hsm.add_token("card")
    card.add_ec_key(label="ec", key_id=b"\x01")
    card.add_rsa_key(label="rsa", key_id=b"\x02")
    return card


@pytest.fixture(scope="module")
def enrolled(card: SoftToken) -> Pkcs11Fields:
    return token_at(card.uri(attributes=";object=ec")).enrol(**ENROLLING).fields


@pytest.mark.parametrize(
    ("attributes", "mechanism", "key_id"),
    [
        (";object=ec", TokenMechanism.ECDH_P256, b"\x01"),
        (";id=%01", TokenMechanism.ECDH_P256, b"\x01"),
        (";object=rsa", TokenMechanism.RSA_PKCS1, b"\x02"),
        (";id=%02;type=private", TokenMechanism.RSA_PKCS1, b"\x02"),
    ],
)
def test_enrolled_keys_yield_the_same_secret_again(
    card: SoftToken, attributes: str, mechanism: TokenMechanism, key_id: bytes
) -> None:
    enrolment = token_at(card.uri(attributes=attributes)).enrol(**ENROLLING)
    assert enrolment.fields.mechanism is mechanism
    assert enrolment.fields.key_id == key_id
    assert (enrolment.fields.label, enrolment.fields.serial) == ("card", card.serial)
    assert len(enrolment.secret) == 32
    assert enrolment.secret.hex() not in repr(enrolment)

    pad = PinPad()
    token = token_at(f"pkcs11:?module-path={MODULE}", pad)
    assert token.choose([enrolment.fields]) == enrolment.fields
    assert pad.asked == []
    assert token.secret_for(enrolment.fields, **UNLOCKING) == enrolment.secret
    assert pad.asked == [("card", False)]


def test_two_enrolments_of_one_key_share_no_secret(card: SoftToken) -> None:
    token = token_at(card.uri(attributes=";object=ec"))
    first = token.enrol(**ENROLLING)
    second = token.enrol(**ENROLLING)
    assert first.secret != second.secret
    assert first.fields.spki_sha256 == second.fields.spki_sha256
    assert token.secret_for(first.fields, volume=bytes(16), authorise=unasked) != first.secret


def test_a_new_key_never_leaves_the_token(hsm: SoftHsm) -> None:
    blank = hsm.add_token("blank")
    enrolment = token_at(blank.uri(), create=True).enrol(**ENROLLING)
    names = [Attribute.EXTRACTABLE, Attribute.SENSITIVE, Attribute.TOKEN, Attribute.PRIVATE, Attribute.LABEL]
    found = blank.attributes(key_id=enrolment.fields.key_id, names=names)
    assert list(found.values()) == [False, True, True, True, "mirrorfs"]
    assert len(enrolment.fields.key_id) == 16
    assert token_at(blank.uri()).secret_for(enrolment.fields, **UNLOCKING) == enrolment.secret

    with pytest.raises(UsageError, match="already has a key"):
        id_of_it = "".join(f"%{byte:02x}" for byte in enrolment.fields.key_id)
        token_at(blank.uri(attributes=f";id={id_of_it}"), create=True).enrol(**ENROLLING)


def test_a_slot_opens_with_the_token_and_tells_its_failures_apart(card: SoftToken, hsm: SoftHsm) -> None:
    key_set = KeySet(root=b"\1" * 32, writer=b"\2" * 32, pruner=b"\3" * 32, drill=b"\4" * 32)
    token = token_at(card.uri(attributes=";object=rsa"))
    kdf = KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=os.urandom(16))
    slot = slots.make_slot(
        key_set,
        volume=VOLUME,
        key_generation=1,
        name="card",
        roles=tuple(Role),
        stretched=slots.stretch_password(b"correct horse battery", kdf),
        enrolment=token.enrol(**ENROLLING),
        kdf=kdf,
        created_ns=1,
        entropy=os.urandom,
    )
    secret = token.secret_for(slot.token, **UNLOCKING)
    slots.check_token_secret(slot, secret)

    def open_with(password: bytes, token_secret: bytes) -> KeySet:
        stretched = slots.stretch_password(password, kdf)
        return slots.open_slot(
            slot, volume=VOLUME, key_generation=1, stretched=stretched, token_secret=token_secret
        )

    assert open_with(b"correct horse battery", secret).encode() == key_set.encode()
    with pytest.raises(WrongPassword):
        open_with(b"correct horse staple", secret)
    # Another token's RSA key "decrypts" the challenge to an error or to nonsense, never to the secret.
    other = hsm.add_token("other")
    other.add_rsa_key(label="rsa", key_id=b"\x02")
    fields = token_at(other.uri()).enrol(**ENROLLING).fields
    planted = replace(slot.token, spki_sha256=fields.spki_sha256)
    with pytest.raises(WrongToken):
        slots.check_token_secret(slot, token_at(other.uri()).secret_for(planted, **UNLOCKING))


# --- what goes wrong -------------------------------------------------------------------------


def test_a_wrong_pin_is_sent_once_and_named(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    pad = PinPad(pin="654321")
    with pytest.raises(WrongPin, match="'card' refused the PIN") as caught:
        token_at(card.uri(), pad).secret_for(enrolled, **UNLOCKING)
    assert pad.asked == [("card", False)]
    assert "654321" not in str(caught.value)
    # The module is free again although the error, and with it the traceback, is still held.
    assert token_at(card.uri()).choose([enrolled]) == enrolled


def test_a_pin_of_impossible_length_is_a_wrong_pin(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    with pytest.raises(WrongPin):
        token_at(card.uri(), PinPad(pin="1")).secret_for(enrolled, **UNLOCKING)


def test_a_missing_token(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    pad = PinPad()
    token = token_at(card.uri(), pad)
    with card.removed():
        with pytest.raises(TokenMissing, match="token=card"):
            token.secret_for(enrolled, **UNLOCKING)
        with pytest.raises(TokenMissing, match="token=card"):
            token.choose([enrolled])
        with pytest.raises(TokenMissing, match="token=card"):
            token.enrol(**ENROLLING)
    assert pad.asked == []
    assert len(token_at(card.uri()).secret_for(enrolled, **UNLOCKING)) == 32


def test_a_token_removed_while_the_pin_is_asked_for(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    class Removing(PinPad):
        def __call__(self, label: str, *, final_try: bool, tries_left: int | None = None) -> str:
            card.remove()
            return super().__call__(label, final_try=final_try)

    try:
        with pytest.raises(UnlockError) as caught:
            token_at(card.uri(), Removing()).secret_for(enrolled, **UNLOCKING)
    finally:
        card.insert()
    assert isinstance(caught.value, TokenFailed | TokenMissing | WrongToken)
    assert "card" in str(caught.value)


def test_the_pin_never_goes_to_a_wrong_token(hsm: SoftHsm, enrolled: Pkcs11Fields) -> None:
    stranger = hsm.add_token("stranger")
    stranger.add_ec_key(label="ec", key_id=enrolled.key_id)
    pad = PinPad()
    with pytest.raises(WrongToken, match="stranger"):
        token_at(stranger.uri(), pad).secret_for(enrolled, **UNLOCKING)
    assert pad.asked == []


def test_the_key_is_found_by_its_hash_not_by_label_serial_or_id(
    card: SoftToken, enrolled: Pkcs11Fields
) -> None:
    misled = replace(enrolled, label="nothing", serial="0", key_id=b"\x77")
    token = token_at(f"pkcs11:?module-path={MODULE}")
    assert token.secret_for(misled, **UNLOCKING) == token.secret_for(
        enrolled, volume=VOLUME, authorise=unasked
    )


def test_of_several_slots_the_one_whose_token_is_present_is_chosen(
    hsm: SoftHsm, card: SoftToken, enrolled: Pkcs11Fields
) -> None:
    spare = hsm.add_token("spare")
    spare.add_ec_key(label="ec", key_id=b"\x01")
    second = token_at(spare.uri()).enrol(**ENROLLING).fields
    anywhere = token_at(f"pkcs11:?module-path={MODULE}")
    with spare.removed():
        assert anywhere.choose([second, enrolled]) == enrolled
    with card.removed():
        assert anywhere.choose([second, enrolled]) == second


def test_a_private_key_that_is_gone_is_a_wrong_token(hsm: SoftHsm) -> None:
    emptied = hsm.add_token("emptied")
    emptied.add_ec_key(label="ec", key_id=b"\x01")
    fields = token_at(emptied.uri()).enrol(**ENROLLING).fields
    emptied.destroy_private_key(key_id=b"\x01")
    with pytest.raises(WrongToken, match="'emptied'"):
        token_at(emptied.uri()).secret_for(fields, **UNLOCKING)


def test_a_token_that_hides_its_public_keys_is_known_by_both_hints(hsm: SoftHsm) -> None:
    shy = hsm.add_token("shy")
    shy.add_ec_key(label="ec", key_id=b"\x01")
    enrolment = token_at(shy.uri()).enrol(**ENROLLING)
    shy.hide_public_keys()
    assert token_at(shy.uri()).secret_for(enrolment.fields, **UNLOCKING) == enrolment.secret
    pad = PinPad()
    with pytest.raises(WrongToken):
        token_at(shy.uri(), pad).secret_for(
            replace(enrolment.fields, label="else"), volume=VOLUME, authorise=unasked
        )
    assert pad.asked == []


def test_two_tokens_with_one_label_need_a_serial(hsm: SoftHsm) -> None:
    twins = [hsm.add_token("twin") for _ in range(2)]
    for twin in twins:
        twin.add_ec_key(label="ec", key_id=b"\x01")
    pad = PinPad()
    with pytest.raises(UsageError, match="Several tokens") as caught:
        token_at(f"pkcs11:token=twin?module-path={MODULE}", pad).enrol(**ENROLLING)
    assert all(twin.serial in str(caught.value) for twin in twins)
    assert pad.asked == []
    # Unlocking needs no serial: the key decides which of the two is asked for its PIN.
    for twin in twins:
        enrolment = token_at(twin.uri()).enrol(**ENROLLING)
        anywhere = token_at(f"pkcs11:token=twin?module-path={MODULE}")
        assert anywhere.secret_for(enrolment.fields, **UNLOCKING) == enrolment.secret


def test_enrolling_needs_exactly_one_usable_key(hsm: SoftHsm, card: SoftToken) -> None:
    with pytest.raises(UsageError, match="Several keys") as caught:
        token_at(card.uri()).enrol(**ENROLLING)
    assert "id=%01" in str(caught.value)
    with pytest.raises(UsageError, match="no key"):
        token_at(card.uri(attributes=";object=absent")).enrol(**ENROLLING)

    odd = hsm.add_token("odd")
    odd.add_ec_key(label="p384", key_id=b"\x01", curve=P384_PARAMETERS)
    odd.add_rsa_key(label="small", key_id=b"\x02", bits=1024)
    odd.add_rsa_key(label="each-use", key_id=b"\x03", always_authenticate=True)
    with pytest.raises(UsageError, match="no key"):
        token_at(odd.uri()).enrol(**ENROLLING)


def test_a_point_off_the_curve_is_refused_before_the_pin(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    point = bytearray(enrolled.challenge)
    point[-1] ^= 1
    pad = PinPad()
    with pytest.raises(FormatError):
        token_at(card.uri(), pad).secret_for(replace(enrolled, challenge=bytes(point)), **UNLOCKING)
    assert pad.asked == []


def test_another_point_yields_a_secret_that_the_slot_refuses(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    point = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    )
    token = token_at(card.uri())
    right = token.secret_for(enrolled, **UNLOCKING)
    assert token.secret_for(replace(enrolled, challenge=point), **UNLOCKING) != right


def test_modules_that_are_missing_or_none(tmp_path: Path, enrolled: Pkcs11Fields) -> None:
    not_a_library = tmp_path / "text.so"
    not_a_library.write_text("no library")
    not_a_module = next(Path("/usr/lib").glob("*/libz.so.1"))
    for path in (tmp_path / "absent.so", not_a_library, not_a_module, tmp_path):
        with pytest.raises(ModuleMissing, match=r"\.$"):
            token_at(f"pkcs11:?module-path={path}").choose([enrolled])
    with pytest.raises(ModuleMissing, match="nowhere"):
        token_at("pkcs11:?module-name=nowhere").choose([enrolled])


def test_a_module_that_others_can_write_is_not_loaded(tmp_path: Path, enrolled: Pkcs11Fields) -> None:
    planted = tmp_path / "module.so"
    shutil.copy(MODULE, planted)
    planted.chmod(0o666)
    with pytest.raises(ConfigError):
        token_at(f"pkcs11:?module-path={planted}").choose([enrolled])
    planted.chmod(0o644)
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError):
        token_at(f"pkcs11:?module-path={planted}").choose([enrolled])


def test_modules_are_found_by_name_and_at_well_known_places(card: SoftToken, enrolled: Pkcs11Fields) -> None:
    by_name = token_at("pkcs11:token=card?module-name=softhsm2")
    by_place = token_at("pkcs11:token=card")
    assert by_name.choose([enrolled]) == by_place.choose([enrolled]) == enrolled


# --- the error table -------------------------------------------------------------------------
# SoftHSM2 locks no PIN and notices no removal, so the rows it cannot produce are checked on the
# exceptions themselves.

FINAL = pkcs11.TokenFlag.USER_PIN_FINAL_TRY
LOCKED = pkcs11.TokenFlag.USER_PIN_LOCKED


@pytest.mark.parametrize(
    ("raised", "using_key", "flags", "expected", "words"),
    [
        (p11.NoSuchToken, False, 0, TokenMissing, "insert it"),
        (p11.TokenNotPresent, False, 0, TokenMissing, "insert it"),
        (p11.TokenNotRecognised, False, 0, TokenMissing, "insert it"),
        (p11.NoSuchKey, False, 0, WrongToken, "does not hold"),
        (p11.EncryptedDataInvalid, True, 0, WrongToken, "does not hold"),
        (p11.FunctionFailed, True, 0, WrongToken, "does not hold"),
        (p11.GeneralError, True, 0, WrongToken, "does not hold"),
        (p11.FunctionFailed, False, 0, TokenFailed, "FunctionFailed"),
        (p11.GeneralError, False, 0, TokenFailed, "GeneralError"),
        (p11.DeviceError, True, 0, TokenFailed, "DeviceError"),
        (p11.PinIncorrect, False, 0, WrongPin, "try again"),
        (p11.PinIncorrect, False, FINAL, WrongPin, "one more wrong PIN locks it"),
        (p11.PinIncorrect, False, LOCKED, PinLocked, "unblock"),
        (p11.PinLenRange, False, 0, WrongPin, "refused the PIN"),
        (p11.PinInvalid, False, 0, WrongPin, "refused the PIN"),
        (p11.PinLocked, False, 0, PinLocked, "unblock"),
        (p11.PinExpired, False, 0, PinLocked, "first be set"),
        (p11.KeyHandleInvalid, True, 0, TokenMissing, "removed while in use"),
        (p11.SessionHandleInvalid, True, 0, TokenMissing, "removed while in use"),
        (p11.UserNotLoggedIn, True, 0, TokenMissing, "removed while in use"),
        (p11.ObjectHandleInvalid, True, 0, TokenMissing, "removed while in use"),
        (p11.DeviceRemoved, True, 0, TokenMissing, "removed while in use"),
    ],
)
def test_error_table(
    raised: type[p11.PKCS11Error], using_key: bool, flags: int, expected: type[UnlockError], words: str
) -> None:
    error = token_error(raised(), label="my card", using_key=using_key, flags=pkcs11.TokenFlag(flags))
    assert type(error) is expected
    assert "'my card'" in str(error)
    assert words in str(error)
    assert str(error).endswith(".")
