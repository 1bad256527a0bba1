"""Security keys through Yubico's libfido2: another host, written from the same specification, agrees.

So the software key is not merely what python-fido2 and MirrorFS expect, and a slot opens without either.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from mirrorfs.format.kdf import hkdf
from mirrorfs.format.slot_token import Fido2Fields
from mirrorfs.keys.fido2_token import Fido2Token
from tests.support.libfido2 import LibFido2Error, opened
from tests.support.soft_authenticator import TRIES_MAX, SoftAuthenticator, SoftDevice
from tests.support.soft_hid import SoftHid

PIN = "123456"
VOLUME = bytes(range(16))
MODELS: list[dict[str, Any]] = [{"protocols": (1,)}, {"protocols": (2,)}, {"legacy": True}]


def token_of(key: SoftAuthenticator) -> Fido2Token:
    def ask_pin(label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        return PIN

    return Fido2Token(
        "fido2:", ask_pin=ask_pin, tell=lambda sentence: None, devices=lambda: [SoftDevice(key)]
    )


def secret_of(output: bytes, fields: Fido2Fields) -> bytes:
    """FORMAT.md, "Header"."""
    return hkdf(output, salt=VOLUME, info=b"mirrorfs v1 token fido2" + fields.salt + fields.credential)


@pytest.mark.parametrize("model", MODELS, ids=["protocol 1", "protocol 2", "CTAP 2.0"])
def test_libfido2_opens_what_we_enrolled(model: dict[str, Any]) -> None:
    key = SoftAuthenticator(pin=PIN, **model)
    enrolment = token_of(key).enrol(volume=VOLUME, entropy=os.urandom, authorise=lambda: b"")
    fields = enrolment.fields
    assert isinstance(fields, Fido2Fields)
    with opened(SoftHid(key)) as other:
        output = other.hmac_secret(rp=fields.rp, pin=PIN, credential=fields.credential, salt=fields.salt)
    assert secret_of(output, fields) == enrolment.secret


@pytest.mark.parametrize("model", MODELS, ids=["protocol 1", "protocol 2", "CTAP 2.0"])
def test_we_open_what_libfido2_made(model: dict[str, Any]) -> None:
    key = SoftAuthenticator(pin=PIN, **model)
    key.touch_after_s = 0.1
    salt = os.urandom(32)
    with opened(SoftHid(key)) as other:
        credential = other.make_credential(rp="mirrorfs", pin=PIN)
        output = other.hmac_secret(rp="mirrorfs", pin=PIN, credential=credential, salt=salt)
    fields = Fido2Fields(rp="mirrorfs", credential=credential, salt=salt, aaguid=bytes(16), label="")
    assert token_of(key).secret_for(fields, volume=VOLUME, authorise=lambda: b"") == secret_of(output, fields)


def test_the_software_key_says_no_as_libfido2_understands_it() -> None:
    key = SoftAuthenticator(pin=PIN)
    with opened(SoftHid(key)) as other:
        for code in (0x31, 0x31, 0x34, 0x34):
            with pytest.raises(LibFido2Error) as caught:
                other.make_credential(rp="mirrorfs", pin="wrong pin")
            assert caught.value.code == code
        key.power_cycle()
        with pytest.raises(LibFido2Error) as caught:
            other.hmac_secret(rp="mirrorfs", pin=PIN, credential=bytes(64), salt=bytes(32))
        assert caught.value.code == 0x2E
    assert key.pins_seen == 4 <= TRIES_MAX
