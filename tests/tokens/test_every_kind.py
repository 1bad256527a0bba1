"""Each kind of token through a volume's whole life: enrolled, mounted with, pulled, wrong, absent, locked.

Everything is done by the real command line at a terminal, where a person would sit, and what is shown there
is held against the table of docs/tokens.md. How long pulling a token takes to lock is printed (`pytest -s`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mirrorfs.errors import UsageError
from mirrorfs.fuse.mount_table import find_mount
from mirrorfs.keys.recovery_code import CODE_SIZE_BYTES, format_code
from tests.cli.test_key import code_on
from tests.cli.test_lock import GONE_ERRORS, lookers
from tests.support import piv_card, softhsm
from tests.support.mounted import CHEAP, PASSWORD, Mounted, mounted_volume
from tests.support.pcsc import Card, SmartCardRoom, own_copy
from tests.support.piv_card import KEY_MANAGEMENT
from tests.support.soft_authenticator import SoftAuthenticator
from tests.support.swtpm import swtpm
from tests.support.terminal import Terminal
from tests.support.token_table import Shown, table
from tests.support.usb_socket import plugged_into

OPENSC = "/usr/lib/*/opensc-pkcs11.so"
NOTICED_S = 30.0
"""Far more than two looks, 1.5 s apart, take on a busy machine."""
KEY_PIN = "246810"
WRONG_PIN = "135790"
WRONG_PASSWORD = "not the right password"
PIN_ASKED = "PIN of token [^:]*: "
PASSWORD_ASKED = "Password of volume [^:]*: "
FIRST_LINE, SECOND_LINE = "line 1 of 2: ", "line 2 of 2: "

Answers = Sequence[tuple[str, str]]

SOFTHSM = ("enrol", "mount", "wrong PIN", "wrong password", "wrong token", "absent")
PIV = (
    "enrol", "mount", "wrong PIN", "last try", "PIN locked", "wrong token", "absent",
    "removed while mounted",
)  # fmt: skip
KEY = (*PIV, "wrong password")
TPM = (
    "enrol", "mount", "wrong password", "last try", "PIN locked", "wrong token", "absent",
    "removed while mounted",
)  # fmt: skip
PAPER = ("enrol", "mount", "wrong PIN", "wrong password", "wrong token", "absent")
BACK = ("back in time",)
"""Shown by tests/cli/test_lock.py."""


def test_nothing_in_the_table_is_left_unshown() -> None:
    kinds = {
        "PKCS#11": {*SOFTHSM, *PIV, *BACK},
        "security key": {*KEY},
        "TPM 2.0": {*TPM},
        "recovery code": {*PAPER},
    }
    assert {(event, kind) for kind, events in kinds.items() for event in events} == table().keys()


@contextmanager
def shown(kind: str, events: Sequence[str]) -> Iterator[Shown]:
    """What the block shows of a kind of token; the block shows it all."""
    told = Shown(kind, *events)
    yield told
    told.check_complete()


class Seat:
    """A person before the terminal, with one token and the password."""

    def __init__(self, volume: Mounted, pin: str = "") -> None:
        self.volume = volume
        self._right = [(PIN_ASKED, pin)] if pin else []

    def run(self, *arguments: str, answers: Answers = (), code: int = 0) -> str:
        """A command, the prompts that it has in that order, and what is seen in the end."""
        terminal = Terminal(self.volume, *arguments)
        for prompt, text in answers:
            terminal.answer(prompt, text)
        assert terminal.end() == code, terminal.shown
        for secret in (PASSWORD, WRONG_PASSWORD, *(pin for _, pin in self._right)):
            assert secret not in terminal.shown
        return terminal.shown

    def init(self, uri: str, *options: str) -> str:
        answers = [(PASSWORD_ASKED, PASSWORD), ("Again: ", PASSWORD), *self._right]
        return self.run(*self.volume.init_arguments, "--token", uri, *options, answers=answers)

    def mount(self, *options: str) -> str:
        return self.run(*self._mount(options), answers=[*self._right, (PASSWORD_ASKED, PASSWORD)])

    def refused(self, *options: str, pin: str = "", password: str = "") -> str:
        """A mount that comes to nothing, after a PIN, after PIN and password, or before either."""
        answers = self._right if password else [(PIN_ASKED, pin)] if pin else []
        if password:
            answers = [*answers, (PASSWORD_ASKED, password)]
        seen = self.run(*self._mount(options), answers=answers, code=3)
        assert find_mount(self.volume.mountpoint) is None
        return seen

    def _mount(self, options: Sequence[str]) -> tuple[str, ...]:
        return "mount", self.volume.name, str(self.volume.mountpoint), *options


@contextmanager
def seat(folder: Path, pin: str = "", **environment: str) -> Iterator[Seat]:
    """A machine on which the volume is still to be made."""
    folder.mkdir(exist_ok=True)
    with mounted_volume(folder, make=False) as volume:
        volume.env.update(environment)
        yield Seat(volume, pin)


def write_and_read(volume: Mounted, text: str) -> Path:
    """A file, as a program has it."""
    letter = volume.mountpoint / "letter"
    letter.write_text(text)
    assert letter.read_text() == text
    return letter


def set_lock(volume: Mounted, line: str) -> None:
    """The [lock] table from the next mount on."""
    before, _, _ = volume.config.read_text().partition("\n[lock]\n")
    volume.config.write_text(f"{before}\n[lock]\n{line}\n")


def pulled(seat: Seat, told: Shown, pull: Callable[[], None]) -> None:
    """The token goes while a program has a file open: the drive locks, and the program gets errors."""
    volume = seat.volume
    letter = write_and_read(volume, "dear colleague")
    volume.wait_until(lambda: volume.status()["lock"]["presence"] == "present", within_s=NOTICED_S)
    opened = os.open(letter, os.O_RDONLY)
    try:
        began_s = time.monotonic()
        pull()
        volume.wait_until(lambda: find_mount(volume.mountpoint) is None, within_s=NOTICED_S)
        volume.wait_gone()
        print(f"{told.kind}: pulled to locked, without a grace: {time.monotonic() - began_s:.1f} s")
        with pytest.raises(OSError) as gone:
            os.fstat(opened)
        assert gone.value.errno in GONE_ERRORS
    finally:
        os.close(opened)
    assert list(volume.mountpoint.iterdir()) == []
    said = volume.log_text() + volume.must("status", volume.name)
    told.check("removed while mounted", said)
    assert volume.status()["locked"]["event"] == "token-removed"


def test_pkcs11_token(tmp_path: Path) -> None:
    with shown("PKCS#11", SOFTHSM) as told, seat(tmp_path / "volume", softhsm.PIN) as person:
        volume, token = person.volume, person.volume.token
        told.check("enrol", person.init(token.uri(), "--create-key"), NAME="practice")
        told.check("mount", person.mount(), NAME="practice", VOLUME=volume.name, PATH=str(volume.mountpoint))
        write_and_read(volume, "dear colleague")
        volume.umount()

        told.check("wrong PIN", person.refused(pin=WRONG_PIN), is_last=True, NAME="practice")
        told.check("wrong password", person.refused(password=WRONG_PASSWORD), is_last=True)
        stranger = volume.hsm.add_token("stranger")
        stranger.add_ec_key(label="ec", key_id=b"\1")
        told.check("wrong token", person.refused("--token", stranger.uri()), is_last=True, NAME="stranger")
        uri = f"pkcs11:token=practice;serial={token.serial}"
        with token.removed():
            told.check("absent", person.refused(), is_last=True, URI=uri)


def test_piv_card(tmp_path: Path) -> None:
    (tmp_path / "pcsc").mkdir()
    with (
        shown("PKCS#11", PIV) as told,
        SmartCardRoom(tmp_path / "pcsc") as room,
        closing(Card(room, {KEY_MANAGEMENT: "ec"}, serial=12345678)) as card,
        closing(Card(room, {KEY_MANAGEMENT: "ec"}, serial=87654321)) as stranger,
        # pcscd's socket is in the room; everything else of the volume is out here.
        seat(
            tmp_path / "volume",
            piv_card.PIN,
            PCSCLITE_CSOCK_NAME=f"/proc/{room.pid}/root/run/pcscd/pcscd.comm",
        ) as person,
    ):
        volume = person.volume
        room.start_pcscd(with_readers=True)
        card.insert()
        enrolled = person.init(f"pkcs11:id=%03?module-path={own_copy(OPENSC, tmp_path)}")
        name = enrolled.partition("PIN of token ")[2].partition(" (not")[0]
        told.check("enrol", enrolled, NAME=name)
        set_lock(volume, "grace_s = 0")
        told.check("mount", person.mount(), NAME=name, VOLUME=volume.name, PATH=str(volume.mountpoint))
        asked = card.pins_received
        pulled(person, told, card.remove)
        assert card.pins_received == asked, "looking sends no PIN"

        told.check("absent", person.refused(), is_last=True, URI="pkcs11:id=%03")
        stranger.insert()
        told.check("wrong token", person.refused(), is_last=True, NAME=name)
        assert stranger.pins_received == 0
        stranger.remove()
        card.insert()
        person.mount()
        assert (volume.mountpoint / "letter").read_text() == "dear colleague"
        volume.umount()

        told.check("wrong PIN", person.refused(pin=WRONG_PIN), is_last=True, NAME=name)
        last_but_one, last = person.refused(pin=WRONG_PIN), person.refused(pin=WRONG_PIN)
        told.check("last try", last_but_one + last, NAME=name)
        told.check("PIN locked", last, is_last=True, NAME=name)
        assert card.tries_left == 0


def test_security_key(tmp_path: Path) -> None:
    name, other_name = "YubiKey 5", "Nitrokey 3"
    key, other = SoftAuthenticator(pin=KEY_PIN, name=name), SoftAuthenticator(pin=KEY_PIN, name=other_name)
    other.unplug()
    with (
        shown("security key", KEY) as told,
        plugged_into([key, other]) as usb,
        seat(tmp_path / "volume", KEY_PIN) as person,
    ):
        volume = person.volume
        volume.env["PYTHONPATH"] = f"{usb}:{volume.env['PYTHONPATH']}"
        told.check("enrol", person.init("fido2:"), NAME=name)
        set_lock(volume, "grace_s = 0")
        told.check("mount", person.mount(), NAME=name, VOLUME=volume.name, PATH=str(volume.mountpoint))
        touches, pins = key.blinks, key.pins_seen
        pulled(person, told, key.unplug)
        assert (key.blinks, key.pins_seen) == (touches, pins), "looking wants no touch and no PIN"

        told.check("absent", person.refused(), is_last=True)
        other.plug_in()
        told.check("wrong token", person.refused(), is_last=True, NAME=other_name)
        key.plug_in()
        person.mount()
        assert (volume.mountpoint / "letter").read_text() == "dear colleague"
        volume.umount()
        assert (other.blinks, other.pins_seen) == (0, 0)

        told.check("wrong password", person.refused(password=WRONG_PASSWORD), is_last=True)
        key.set_tries_left(7, wrong_in_a_row=2)
        replug = person.refused(pin=WRONG_PIN)
        key.plug_in()
        key.set_tries_left(3)
        told.check("wrong PIN", person.refused(pin=WRONG_PIN), is_last=True, NAME=name)
        last_but_one, last = person.refused(pin=WRONG_PIN), person.refused(pin=WRONG_PIN)
        told.check("last try", last_but_one + last, NAME=name)
        told.check("PIN locked", replug + last, is_last=True, NAME=name)


def test_tpm(tmp_path: Path) -> None:
    with (
        shown("TPM 2.0", TPM) as told,
        swtpm() as tpm,
        swtpm() as other,
        seat(tmp_path / "volume") as person,
    ):
        volume, path = person.volume, str(tpm.socket)
        told.check("enrol", person.init(tpm.uri), NAME="IBM SW TPM")
        told.check("mount", person.mount(), VOLUME=volume.name, PATH=str(volume.mountpoint))
        tpm.kill()
        # Not because it was not noticed yet: nobody looks.
        assert lookers(volume) == [] and volume.status()["lock"]["presence"] is None
        told.check("removed while mounted", volume.must("status", volume.name))
        write_and_read(volume, "dear colleague")
        volume.umount()

        told.check("absent", person.refused(), is_last=True, PATH=path)
        tpm.start()
        tpm.forgive(tries_max=3, interval_s=1200)
        there = str(other.socket)
        told.check("wrong token", person.refused("--token", other.uri), is_last=True, PATH=there)
        told.check("wrong password", person.refused(password=WRONG_PASSWORD), is_last=True, PATH=path)
        tpm.forgive(tries_max=1, interval_s=1200)
        last = person.refused(password=WRONG_PASSWORD)
        told.check("last try", last, is_last=True, VOLUME=volume.name, PATH=path)
        told.check("PIN locked", person.refused(), is_last=True, PATH=path)
        tpm.forgive()
        # Where it is wanted, a TPM that goes locks the volume like any other token.
        set_lock(volume, 'on_removal = "unmount"\ngrace_s = 0')
        person.mount()
        assert (volume.mountpoint / "letter").read_text() == "dear colleague"
        volume.wait_until(lambda: volume.status()["lock"]["presence"] == "present", within_s=NOTICED_S)
        tpm.kill()
        volume.wait_until(lambda: find_mount(volume.mountpoint) is None, within_s=NOTICED_S)


def test_recovery_code(tmp_path: Path) -> None:
    with (
        shown("recovery code", PAPER) as told,
        mounted_volume(tmp_path, mount=False) as volume,
    ):
        person = Seat(volume, softhsm.PIN)
        check = ("key", "check", volume.name, "--token", "recovery:")
        told.check("absent", person.run(*check, code=3), is_last=True)
        seen, code = enrol_code(person)
        told.check("enrol", seen)

        def typed(first: str, second: str, *rest: tuple[str, str], exit_code: int = 3) -> str:
            answers = [(FIRST_LINE, first), (SECOND_LINE, second), *rest]
            return person.run(*check, answers=answers, code=exit_code)

        another = format_code(os.urandom(CODE_SIZE_BYTES)).split()
        told.check("wrong token", typed(*another), is_last=True)
        slip = ("1" if code[0][0] != "1" else "2") + code[0][1:]
        told.check("wrong PIN", typed(slip, code[1], exit_code=UsageError.exit_code), is_last=True)
        wrong = (PASSWORD_ASKED, WRONG_PASSWORD)
        told.check("wrong password", typed(*code, wrong), is_last=True)
        mount = ("mount", volume.name, str(volume.mountpoint), "--token", "recovery:")
        seen = person.run(*mount, code=UsageError.exit_code)
        told.check("mount", seen, is_last=True, VOLUME=volume.name, URI="URI")


def enrol_code(person: Seat) -> tuple[str, tuple[str, str]]:
    """A new sheet, whose code is typed back. Returns: what was seen, and the code's two lines."""
    terminal = Terminal(person.volume, "key", "recovery", person.volume.name, CHEAP)
    terminal.answer(PIN_ASKED, softhsm.PIN)
    terminal.answer(PASSWORD_ASKED, PASSWORD)
    terminal.wait_for(FIRST_LINE)
    first, second = code_on(terminal.shown).split()
    terminal.answer(FIRST_LINE, first)
    terminal.answer(SECOND_LINE, second)
    assert terminal.end() == 0, terminal.shown
    return terminal.shown, (first, second)
