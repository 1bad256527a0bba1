"""What `mirrorfs doctor` says of tokens that are here, or are not, and of who would ask for the PIN."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.cli import doctor
from mirrorfs.cli.doctor import Finding, Verdict
from mirrorfs.errors import ModuleMissing, WrongPassword
from mirrorfs.keys import ask_program, ask_terminal, askers
from mirrorfs.keys.tpm2_token import Tpm2Token
from mirrorfs.keys.tpm2_uri import Tpm2Uri
from tests.support.soft_authenticator import Command, SoftAuthenticator
from tests.support.soft_hid import SoftHid, plug_into
from tests.support.swtpm import Swtpm, swtpm


def test_security_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    key = SoftAuthenticator(pin="123456", name="YubiKey 5")
    old = SoftAuthenticator(name="Old Key", extensions=())
    plug_into(monkeypatch, [SoftHid(key), SoftHid(old)])
    assert doctor._security_keys() == Finding(Verdict.OK, "Security keys: 'YubiKey 5'")
    assert (key.blinks, key.pins_seen) == (0, 0)
    key.unplug()
    found = doctor._security_keys()
    assert (found.verdict, found.text) == (Verdict.NOTE, "Security keys that cannot be used: 'Old Key'")
    assert "hmac-secret" in found.advice
    old.leaves_at = (Command.GET_INFO, None)
    found = doctor._security_keys()
    assert (found.verdict, found.text) == (Verdict.NOTE, "A security key does not answer")
    assert found.advice == "The security key 'Old Key' was removed while in use; insert it and try again."


def test_no_security_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug_into(monkeypatch, [])
    monkeypatch.setattr(doctor, "_HID_DEVICES", str(tmp_path / "hidraw*"))
    assert doctor._security_keys().verdict is Verdict.OK
    (tmp_path / "hidraw0").touch(mode=0o600)
    assert doctor._security_keys().verdict is Verdict.OK
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found = doctor._security_keys()
    assert found.verdict is Verdict.NOTE
    assert "and 1 of" in found.text and "udev" in found.advice


def without_python_fido2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mirrorfs.keys.fido2_device", raising=False)
    monkeypatch.delattr("mirrorfs.keys.fido2_device", raising=False)
    monkeypatch.setitem(sys.modules, "fido2", None)


def test_without_python_fido2(monkeypatch: pytest.MonkeyPatch) -> None:
    without_python_fido2(monkeypatch)
    found = doctor._security_keys()
    assert found.verdict is Verdict.NOTE and "mirrorfs[fido2]" in found.advice


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Swtpm]:
    """It stands for that of the machine."""
    with swtpm() as tpm:
        monkeypatch.setattr(doctor, "Tpm2Uri", lambda: Tpm2Uri("swtpm", str(tpm.socket)))
        yield tpm


def test_tpm(tpm: Swtpm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._tpm() == Finding(Verdict.OK, "TPM 2.0: IBM SW TPM")
    tpm.forgive(tries_max=1, interval_s=1200)
    token = Tpm2Token(Tpm2Uri("swtpm", str(tpm.socket)), tell=lambda sentence: None)
    fields = token.enrol(volume=bytes(16), entropy=bytes, authorise=lambda: b"\1" * 32).fields
    with pytest.raises(WrongPassword):
        token.secret_for(fields, volume=bytes(16), authorise=lambda: b"\2" * 32)
    found = doctor._tpm()
    assert found.verdict is Verdict.NOTE and "refuses all passwords" in found.text
    assert found.advice == "It forgets one every 20 minutes, so wait that long and try again."
    tpm.kill()
    assert doctor._tpm() == Finding(Verdict.OK, "No TPM 2.0 is here, which only tokens tpm2: need")
    tpm.socket.touch()
    found = doctor._tpm()
    assert found.verdict is Verdict.NOTE and "no answer" in found.advice
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    found = doctor._tpm()
    assert found.verdict is Verdict.NOTE and "mirrorfs[tpm2]" in found.advice


def test_no_module_matters_less_where_other_tokens_can_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none_here(uri: object) -> list[str]:
        raise ModuleMissing("No PKCS#11 module is installed.")

    monkeypatch.setattr(doctor, "module_paths", none_here)
    assert doctor._modules().verdict is Verdict.NOTE
    without_python_fido2(monkeypatch)
    monkeypatch.setattr(doctor, "Tpm2Uri", lambda: Tpm2Uri(path=str(tmp_path / "tpmrm0")))
    assert doctor._modules().verdict is Verdict.MISSING
    (tmp_path / "tpmrm0").touch()
    assert doctor._modules().verdict is Verdict.NOTE


@pytest.mark.parametrize(
    ("environment", "is_terminal", "text"),
    [
        ({"DISPLAY": ":0"}, True, "Password and PIN are asked for at this terminal"),
        ({"DISPLAY": ":0"}, False, "Password and PIN are asked for by a window of pinentry"),
        ({"INVOCATION_ID": "1"}, False, "Password and PIN are asked for by systemd-ask-password"),
        ({"MIRRORFS_ASK": "systemd"}, True, "Password and PIN are asked for by systemd-ask-password"),
    ],
)
def test_who_asks(
    environment: dict[str, str], is_terminal: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (askers, ask_terminal):
        monkeypatch.setattr(module, "has_terminal", lambda: is_terminal)
    assert doctor._asking(environment) == Finding(Verdict.OK, text)


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({}, "nor is there a display or a systemd unit; use --pin-file"),
        ({"DISPLAY": ":0"}, "pinentry, needed to ask for the PIN, is not installed; use --pin-file"),
        ({"INVOCATION_ID": "1"}, "systemd-ask-password, needed to ask for the PIN, is not installed"),
        ({"MIRRORFS_ASK": "terminal"}, "No terminal can be asked for the PIN"),
        ({"MIRRORFS_ASK": "guess"}, "MIRRORFS_ASK is terminal, pinentry or systemd"),
    ],
)
def test_nobody_asks(
    environment: dict[str, str], advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (askers, ask_terminal):
        monkeypatch.setattr(module, "has_terminal", lambda: False)
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", (str(tmp_path),))
    found = doctor._asking(environment)
    assert found.verdict is Verdict.NOTE and advice in found.advice


def test_who_asks_without_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "bin"
    place.mkdir(mode=0o755)
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", (str(place),))
    found = doctor._asking_without_terminal()
    assert found.verdict is Verdict.NOTE
    assert "pinentry" in found.advice and "systemd-ask-password" in found.advice
    (place / "setpriv").touch(mode=0o755)  # it starts them
    for name, text in (
        ("systemd-ask-password", "systemd-ask-password in a unit"),
        ("pinentry", "pinentry on a display, systemd-ask-password in a unit"),
    ):
        (place / name).touch(mode=0o755)
        assert doctor._asking_without_terminal() == Finding(
            Verdict.OK, f"Without a terminal they are asked for by {text}"
        )
