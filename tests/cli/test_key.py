"""`mirrorfs key` by the real command line: tokens, passwords and a recovery code, mounted and not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirrorfs.cli.config import TokenConfig
from mirrorfs.cli.tokens import SecretSources, make_tokens
from mirrorfs.cli.unlock import Unlocked, unlock_header
from mirrorfs.format.header import VolumeHeader, header_key, parse_header, seal_header
from mirrorfs.format.kdf import VolumeKeys, format_fingerprint
from mirrorfs.format.slot import KeySet
from mirrorfs.format.slot_token import Pkcs11Fields
from tests.support.mounted import CHEAP, PASSWORD, Mounted, mounted_volume
from tests.support.softhsm import MODULE, PIN, SoftToken
from tests.support.terminal import Terminal

NEW_PASSWORD = "another horse, another battery"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    with mounted_volume(tmp_path, mount=False) as volume:
        yield volume


@pytest.fixture
def spare(volume: Mounted) -> SoftToken:
    """A second token with a slot of its own."""
    return add_spare(volume)


def add_spare(
    volume: Mounted, *options: str, label: str = "spare", cost: tuple[str, ...] = (CHEAP,)
) -> SoftToken:
    token = volume.hsm.add_token(label)
    volume.must(
        "key", "add", volume.name, "--new-token", token.uri(), "--create-key",
        "--new-pin-file", volume.env["MIRRORFS_PIN_FILE"], *cost, *options,
    )  # fmt: skip
    return token


def secret(path: Path, text: str) -> str:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(text + "\n")
    return str(path)


def headers(folder: Path) -> list[VolumeHeader]:
    """All that lie in a store or the local objects, oldest first."""
    return [parse_header(path.read_bytes()) for path in every_header((folder,))]


def refused(volume: Mounted, *arguments: str, code: int) -> str:
    outcome = volume.run(*arguments)
    assert outcome.returncode == code, outcome.stdout
    return outcome.stdout


def test_one_token_more(volume: Mounted) -> None:
    add_spare(volume, cost=())
    listed = volume.must("key", "list", volume.name)
    assert re.search(r"^first +pkcs11 practice +read, write, prune +20\d\d-", listed, re.MULTILINE)
    assert re.search(r"^spare +pkcs11 spare +read, write, prune +20\d\d-", listed, re.MULTILINE)
    shown = json.loads(volume.must("key", "list", volume.name, "--json"))
    assert [slot["name"] for slot in shown["slots"]] == ["first", "spare"]
    assert (shown["schema"], shown["header_generation"], shown["key_generation"]) == (1, 2, 1)

    # The first is lost: a mount takes the other by itself, from any of three places.
    with next(token for token in tokens(volume) if token.label == "practice").removed():
        assert "Slot spare opens" in volume.must("key", "check", volume.name)
        volume.mount()
        (volume.mountpoint / "letter").write_text("dear colleague")
        volume.umount()
    for place in (volume.state / "objects", *volume.stores.values()):
        assert [len(header.slots) for header in headers(place)] == [1, 2]
    assert "Slot first opens" in volume.must("key", "check", volume.name)


def tokens(volume: Mounted) -> list[SoftToken]:
    directories = (volume.hsm.configuration.parent / "tokens").iterdir()
    uri = re.search(r"serial=([0-9a-f]+)", volume.config.read_text())
    assert uri is not None
    return [
        SoftToken("practice" if serial == uri[1] else "spare", serial, directory)
        for directory in directories
        for serial in [directory.name.replace("-", "")[-16:]]
    ]


def test_what_is_refused_and_in_which_words(volume: Mounted, spare: SoftToken, tmp_path: Path) -> None:
    wrong = secret(tmp_path / "wrong", "not the right password")
    said = refused(volume, "key", "check", volume.name, "--password-file", wrong, code=3)
    assert "The token is right but the volume password is not" in said
    said = refused(volume, "key", "check", volume.name, "--pin-file", wrong, code=3)
    assert "refused the PIN" in said
    stranger = volume.hsm.add_token("stranger")
    stranger.add_ec_key(label="ec", key_id=b"\1")
    said = refused(volume, "key", "check", volume.name, "--token", stranger.uri(), code=3)
    assert "No slot that was asked for names a key of the token 'stranger'" in said
    pin = volume.env["MIRRORFS_PIN_FILE"]
    said = refused(
        volume, "key", "add", volume.name, "--new-token", spare.uri(), "--new-pin-file", pin, code=2
    )
    assert "That token has slot spare already" in said
    said = refused(
        volume, "key", "add", volume.name, "--new-token", stranger.uri(), "--new-pin-file", pin,
        "--name", "spare", code=2,
    )  # fmt: skip
    assert "has a slot spare already" in said
    # The PIN that was named for the token that unlocks is not tried on another.
    said = refused(volume, "key", "add", volume.name, "--new-token", stranger.uri(), code=2)
    assert "No terminal can be asked for the PIN" in said
    said = refused(volume, "key", "remove", volume.name, "nobody", code=2)
    assert "it has: first, spare" in said
    said = refused(volume, "mount", volume.name, str(volume.mountpoint), "--token", "recovery:", code=2)
    assert "The recovery code restores and enrols a new token, no more" in said
    said = refused(volume, "key", "recovery", volume.name, code=2)
    assert "No terminal" in said and "CODE DE SECOURS" not in said
    assert [len(header.slots) for header in headers(volume.stores["a"])] == [1, 2]


def test_a_token_is_removed_and_the_last_is_not(volume: Mounted, spare: SoftToken) -> None:
    said = volume.must("key", "remove", volume.name, "first")
    assert "Slot first opens" in said and "no more" in said and "key generation 2" in said
    assert "Slot spare opens" in volume.must("key", "check", volume.name)
    said = refused(volume, "key", "remove", volume.name, "spare", code=2)
    assert "last that mounts and writes" in said
    first = next(token for token in tokens(volume) if token.label == "practice")
    said = refused(volume, "key", "check", volume.name, "--token", first.uri(), code=3)
    assert "No slot that was asked for" in said


def test_a_new_password_for_the_token_at_hand(volume: Mounted, spare: SoftToken, tmp_path: Path) -> None:
    new = secret(tmp_path / "new", NEW_PASSWORD)
    weak = secret(tmp_path / "weak", "aaaaaaaaaaaa")
    assert "too easy" in refused(volume, "key", "passwd", volume.name, "--new-password-file", weak, code=2)
    said = volume.must("key", "passwd", volume.name, CHEAP, "--new-password-file", new)
    assert "Slot first has the new password." in said
    assert "Slot spare keeps the old password" in said
    assert "Slot first opens" in volume.must("key", "check", volume.name, "--password-file", new)
    refused(volume, "key", "check", volume.name, code=3)
    assert "Slot spare opens" in volume.must("key", "check", volume.name, "--token", spare.uri())
    said = refused(
        volume, "key", "check", volume.name, "--token", spare.uri(), "--password-file", new, code=3
    )
    assert "volume password is not" in said


def test_both_tokens_at_hand_at_a_terminal(volume: Mounted, spare: SoftToken) -> None:
    terminal = Terminal(volume, "key", "passwd", volume.name)
    terminal.answer(r"PIN of token practice \(not the volume password\): ", PIN)
    terminal.answer(f"Password of volume {volume.name}: ", PASSWORD)
    terminal.answer(f"NEW password of volume {volume.name}: ", NEW_PASSWORD)
    terminal.answer("Again: ", NEW_PASSWORD)
    terminal.answer(r"PIN of token spare \(not the volume password\): ", PIN)
    assert terminal.end() == 0, terminal.shown
    assert "Slot first has the new password." in terminal.shown
    assert "Slot spare has the new password." in terminal.shown
    for shown in (PASSWORD, NEW_PASSWORD, PIN):
        assert shown not in terminal.shown


def test_a_mounted_volume_takes_the_change_over(volume: Mounted) -> None:
    volume.mount()
    add_spare(volume)
    (volume.mountpoint / "letter").write_text("dear colleague")
    volume.flush()
    assert "changes from the next mount on" not in volume.log_text()
    volume.umount()
    # What it wrote afterwards names the new header.
    for store in volume.stores.values():
        newest = max((store / "heads").iterdir()).read_bytes()
        assert b'"header_generation":2' in newest
    assert volume.warnings() == []


def test_a_slot_that_may_only_read(volume: Mounted) -> None:
    volume.mount()
    volume.umount()
    reader = add_spare(volume, "--role", "reader", "--name", "seat")
    assert re.search(r"^seat +pkcs11 spare +read +20", volume.must("key", "list", volume.name), re.MULTILINE)
    said = refused(volume, "key", "remove", volume.name, "seat", "--token", reader.uri(), code=2)
    assert "may read and no more" in said
    said = refused(volume, "mount", volume.name, str(volume.mountpoint), "--token", reader.uri(), code=2)
    assert "--read-only" in said
    volume.must("mount", volume.name, str(volume.mountpoint), "--token", reader.uri(), "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (volume.mountpoint / "letter").write_text("x")
    volume.must("umount", str(volume.mountpoint))


def code_on(sheet: str) -> str:
    line = "((?:[0-9A-Z]{4}-){6}[0-9A-Z]{4})"
    found = re.search(rf"^ {{4}}{line}\s+{line}", sheet, re.MULTILINE)
    assert found is not None, sheet
    return f"{found[1]} {found[2]}"


def print_sheet(volume: Mounted, *options: str, label: str = "practice") -> tuple[str, str]:
    """A new recovery code, typed back, the second time right; and all that was shown."""
    terminal = Terminal(volume, "key", "recovery", volume.name, CHEAP, *options)
    terminal.answer(f"PIN of token {label} [^:]*: ", PIN)
    terminal.answer("Password of volume [^:]*: ", PASSWORD)
    terminal.answer("line 1 of 2: ", "0000-0000")
    code = code_on(terminal.shown)
    terminal.answer("line 2 of 2: ", "")
    first, second = code.split()
    terminal.answer("line 1 of 2: ", first.lower().replace("-", " "))
    terminal.answer("line 2 of 2: ", second.replace("0", "O").replace("1", "l"))
    assert terminal.end() == 0, terminal.shown
    assert "8 were entered" in terminal.shown and "Slot recovery is made" in terminal.shown
    return code, terminal.shown


def test_a_new_sheet_without_new_keys(volume: Mounted) -> None:
    print_sheet(volume)
    _, shown = print_sheet(volume, "--no-rotate")
    assert "until `mirrorfs key rotate" in shown
    assert [header.key_generation for header in headers(volume.stores["a"])] == [1, 1, 1]


def test_a_sheet_is_printed_before_it_is_typed_back(volume: Mounted) -> None:
    """`key recovery VOLUME | lp`: a printer's program waits for the end of what it gets."""
    reading, writing = os.pipe()
    terminal = Terminal(volume, "key", "recovery", volume.name, CHEAP, output=writing)
    os.close(writing)
    terminal.answer("PIN of token practice [^:]*: ", PIN)
    terminal.answer("Password of volume [^:]*: ", PASSWORD)
    terminal.wait_for("Type the code back")
    with open(reading, encoding="utf-8") as printer:
        printed = printer.read()
    first, second = code_on(printed).split()
    assert first not in terminal.shown
    terminal.answer("line 1 of 2: ", first)
    terminal.answer("line 2 of 2: ", second)
    assert terminal.end() == 0, terminal.shown


def test_a_sheet_that_is_not_typed_back(volume: Mounted) -> None:
    print_sheet(volume)
    terminal = Terminal(volume, "key", "recovery", volume.name)
    terminal.answer("PIN of token practice [^:]*: ", PIN)
    terminal.answer("Password of volume [^:]*: ", PASSWORD)
    for _ in range(3):
        terminal.answer("line 1 of 2: ", "0000-0000")
        terminal.answer("line 2 of 2: ", "")
    assert terminal.end() == 2, terminal.shown
    assert "the one before it is void, too: run this again" in terminal.shown
    assert [slot.name for slot in headers(volume.stores["a"])[-1].slots] == ["first"]
    assert "Only first opens this volume" in volume.must("status", volume.name)
    assert "Slot first opens" in volume.must("key", "check", volume.name)


def test_the_recovery_code_stands_for_a_lost_token(volume: Mounted, tmp_path: Path) -> None:
    volume.mount()
    (volume.mountpoint / "letter").write_text("dear colleague")
    volume.umount()
    old = secret(tmp_path / "old-code", print_sheet(volume)[0])
    replaced = max(every_header((volume.stores["b"],))).read_bytes()
    typed, shown = print_sheet(volume)
    code = secret(tmp_path / "code", typed)
    # An old sheet, with a copy of the header of then, opens nothing that is written from now on.
    assert "key generation 2" in shown and parse_header(replaced).key_generation == 1
    newest = headers(volume.stores["a"])[-1]
    assert newest.key_generation == 2
    sheet = shown[shown.index("RECOVERY CODE") :]
    assert format_fingerprint(newest.fingerprint) in sheet, "the sheet shows that of the new keys"
    assert [slot.name for slot in headers(volume.stores["a"])[-1].slots] == ["first", "recovery"]

    next(token for token in tokens(volume) if token.label == "practice").remove()
    restored = tmp_path / "restored"
    command = ("restore", "--store", f"file://{volume.stores['b']}", "--token", "recovery:", "--yes")
    said = refused(volume, *command, "--code-file", old, str(restored), code=3)
    assert "not the one of the volume's newest sheet" in said
    wrong = secret(tmp_path / "wrong", "not the right password")
    said = refused(volume, *command, "--code-file", code, "--password-file", wrong, str(restored), code=3)
    assert "password is not" in said
    volume.must(*command, "--code-file", code, str(restored))
    assert (restored / "letter").read_text() == "dear colleague"
    store = f"--store=file://{volume.stores['b']}"
    assert "letter" in volume.must("ls", store, "--token", "recovery:", "--code-file", code, "/")
    keys = volume.status()["keys"]
    assert [one["command"] for one in keys["events"]] == ["key recovery", "key recovery", "restore", "ls"]
    assert keys["events"][-1]["recovery_code"] and keys["sheet_due_since"] == keys["events"][-1]["at"]
    assert "RECOVERY CODE USED at" in volume.must("status", volume.name)

    new = volume.hsm.add_token("new")
    said = volume.must(
        "key", "add", volume.name, "--token", "recovery:", "--code-file", code, CHEAP,
        "--new-token", new.uri(), "--create-key", "--new-pin-file", volume.env["MIRRORFS_PIN_FILE"],
    )  # fmt: skip
    assert "key recovery" in said, "the code was used: a new sheet is due"
    assert [slot.name for slot in headers(volume.stores["a"])[-1].slots] == ["first", "new"]
    keys = volume.status()["keys"]
    assert keys["sheet_due_since"] == keys["events"][-1]["at"], "the sheet is used up, and there is no other"
    assert keys["events"][-1]["changes"][-1] == {"change": "keys-rotated", "name": None}
    volume.mount()
    assert (volume.mountpoint / "letter").read_text() == "dear colleague"
    volume.umount()
    print_sheet(volume, label="new")
    assert volume.status()["keys"]["sheet_due_since"] is None


KILLING = """
import os, signal, sys
left, names = int(sys.argv.pop(1)), sys.argv.pop(1)
def armed(call):
    def stand_in(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return stand_in
for name in names.split():
    setattr(os, name, armed(getattr(os, name)))
from mirrorfs.cli import key_change
key_change.confirm_on_paper = lambda *arguments, **options: None
key_change.check_paper_askable = lambda environment: None
from mirrorfs.__main__ import main
sys.exit(main())
"""
"""Runs a command that is killed just before its n-th call, of some, that changes something on a disk.

A recovery sheet counts as typed back.
"""
NAMING = "replace rename link"
"""Calls after which a file is there, whole."""
ALL_CALLS = f"{NAMING} fsync fdatasync mkdir unlink pwrite"


def test_killed_anywhere_it_leaves_a_header_that_opens(volume: Mounted, tmp_path: Path) -> None:
    """Before each call that changes something; the others write in the same order."""
    new = secret(tmp_path / "new", NEW_PASSWORD)
    command = ("key", "passwd", volume.name, CHEAP, "--no-rotate", "--new-password-file", new)
    check_killed(volume, command, ALL_CALLS, new_password=new)


@pytest.mark.parametrize("change", ["add", "remove", "recovery"])
def test_killed_between_the_places_it_leaves_a_header_that_opens(volume: Mounted, change: str) -> None:
    spare = add_spare(volume)
    commands = {
        "add": (
            "key", "add", volume.name, "--new-token", volume.hsm.add_token("third").uri(), "--create-key",
            "--new-pin-file", volume.env["MIRRORFS_PIN_FILE"], CHEAP,
        ),
        "remove": ("key", "remove", volume.name, spare.label, "--no-rotate"),
        "recovery": ("key", "recovery", volume.name, CHEAP),
    }  # fmt: skip
    check_killed(volume, commands[change], NAMING, new_password=volume.env["MIRRORFS_PASSWORD_FILE"])


def check_killed(volume: Mounted, command: tuple[str, ...], calls: str, *, new_password: str) -> None:
    """Wherever it is killed, each place's newest header opens, and what was there before is untouched."""
    places = (volume.state / "objects", *volume.stores.values())
    before = {path: path.read_bytes() for path in every_header(places)}
    reached: set[int] = set()
    opened: set[tuple[bytes, str]] = set()
    for point in range(1, 200):
        outcome = subprocess.run(
            [sys.executable, "-c", KILLING, str(point), calls, *command],
            env=volume.env, cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert outcome.returncode in (0, -9), outcome.stderr
        after = every_header(places)
        assert all(path.read_bytes() == data for path, data in before.items()), "headers are immutable"
        newest = [max(every_header((place,))) for place in places]
        for path in newest:
            # Wherever it was killed: what counts here, and what each store shows, opens.
            password = volume.env["MIRRORFS_PASSWORD_FILE"] if path in before else new_password
            # The same bytes, in another place or as they were before, are not tried again.
            if (path.read_bytes(), password) not in opened:
                assert unlock(volume, path.read_bytes(), password).slot.name == "first", f"killed at {point}"
                opened.add((path.read_bytes(), password))
        reached.add(len(set(newest) - set(before)))
        if outcome.returncode == 0:
            break
        for path in set(after) - set(before):
            path.unlink()
    assert reached == {0, 1, 2, 3}, "it was killed before, between and after the places it writes to"


def unlock(volume: Mounted, data: bytes, password_file: str) -> Unlocked:
    sources = SecretSources(password_file, volume.env["MIRRORFS_PIN_FILE"], {})
    tokens = make_tokens([TokenConfig("pkcs11:token=practice", MODULE)], sources)
    return unlock_header(data, name=volume.name, tokens=tokens, sources=sources)


def every_header(places: tuple[Path, ...]) -> list[Path]:
    """Headers, not what a write that was cut short leaves beside them."""
    found = [path for place in places for path in sorted((place / "header").iterdir())]
    return [path for path in found if re.fullmatch("[0-9a-f]{8}-[0-9a-f]{32}", path.name)]


def test_restore_asks_once_although_a_store_shows_a_planted_header(volume: Mounted, tmp_path: Path) -> None:
    """Its slot wants something else of the same token, which then does not fit: the other store's opens."""
    volume.mount()
    (volume.mountpoint / "letter").write_text("dear colleague")
    volume.umount()
    plant(volume.stores["a"])
    for name in ("MIRRORFS_PIN_FILE", "MIRRORFS_PASSWORD_FILE"):
        del volume.env[name]
    stores = [f"--store=file://{place}" for place in volume.stores.values()]
    restored = tmp_path / "restored"
    terminal = Terminal(
        volume, "restore", *stores, "--token", "pkcs11:token=practice", "--yes", str(restored)
    )
    terminal.answer("PIN of token practice [^:]*: ", PIN)
    terminal.answer("Password of volume [^:]*: ", PASSWORD)
    assert terminal.end() == 0, terminal.shown
    assert f"A header of store {volume.stores['a']} opens nothing" in terminal.shown
    assert terminal.shown.count("PIN of token") == terminal.shown.count("Password of volume") == 1
    assert (restored / "letter").read_text() == "dear colleague"


def plant(place: Path) -> None:
    """Put a newer header than all others into a store, by somebody without the volume's keys."""
    good = headers(place)[-1]
    own = KeySet(*(bytes([number]) * 32 for number in range(4)))
    keys = VolumeKeys.derive(own.root, volume=good.volume, generation=1)
    (slot,) = good.slots
    assert isinstance(slot.token, Pkcs11Fields)
    point = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
        Encoding.X962, PublicFormat.UncompressedPoint
    )  # fmt: skip
    made = replace(
        good, generation=good.generation + 7, previous=b"\x01" * 32, fingerprint=keys.fingerprint,
        public_keys=own.public_keys(), slots=(replace(slot, token=replace(slot.token, challenge=point)),),
    )  # fmt: skip
    data = seal_header(made, keys=keys, seed=own.writer)
    (place / header_key(made.generation, data)).write_bytes(data)
