"""Two PCs change keys and stores of a volume at the same time: neither undoes the other's work in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_attach import second_pc, urls
from tests.cli.test_key import headers
from tests.support.mounted import CHEAP, Mounted, mounted_volume

RACING = """
import json, subprocess, sys
name, other = sys.argv.pop(1), json.loads(sys.argv.pop(1))
from mirrorfs.cli import header_change
original = getattr(header_change, name)
def after_the_other(*arguments):
    setattr(header_change, name, original)
    subprocess.run(other["argv"], env=other["env"], check=True, stdin=subprocess.DEVNULL)
    return original(*arguments)
setattr(header_change, name, after_the_other)
from mirrorfs.__main__ import main
sys.exit(main())
"""
"""Runs a command, and another PC's just before the first call of a function."""


@pytest.fixture
def pcs(tmp_path: Path) -> Iterator[tuple[Mounted, Mounted]]:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one", mount=False) as first:
        second = second_pc(first, tmp_path / "two")
        second.must("attach", second.name, *urls(first), "--yes", "--token", "pkcs11:token=practice")
        try:
            yield first, second
        finally:
            second.remove()


def new_token(volume: Mounted, label: str) -> list[str]:
    token = volume.hsm.add_token(label)
    pin = volume.env["MIRRORFS_PIN_FILE"]
    return [
        "key", "add", volume.name, "--new-token", token.uri(), "--create-key", "--new-pin-file", pin, CHEAP,
    ]  # fmt: skip


def race(volume: Mounted, at: str, command: list[str], other: Mounted, others: list[str]) -> tuple[int, str]:
    argv = [sys.executable, "-m", "mirrorfs", *others]
    done = subprocess.run(
        [sys.executable, "-c", RACING, at, json.dumps({"argv": argv, "env": other.env}), *command],
        env=volume.env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def slots(volume: Mounted) -> list[str]:
    listed = json.loads(volume.must("key", "list", volume.name, "--json"))
    return [slot["name"] for slot in listed["slots"]]


def test_the_other_pc_was_first(pcs: tuple[Mounted, Mounted], tmp_path: Path) -> None:
    first, second = pcs
    usb = tmp_path / "usb"
    usb.mkdir()
    command = ["store", "add", second.name, f"usb=file://{usb}"]
    code, said = race(second, "check_unrivalled", command, first, new_token(first, "spare"))
    assert code == 6, said
    assert "Another PC changed the keys or stores of this volume meanwhile (slot spare added)" in said
    assert "usb" not in second.config.read_text()
    second.must(*command)
    newest = headers(first.stores["a"])[-1]
    assert [slot.name for slot in newest.slots] == ["first", "spare"]
    assert [store.name for store in newest.stores] == ["a", "b", "usb"]


def test_both_at_once(pcs: tuple[Mounted, Mounted], tmp_path: Path) -> None:
    first, second = pcs
    code, said = race(second, "keep_header", new_token(second, "two"), first, new_token(first, "one"))
    assert code == 6, said
    assert "there, other than here: slot one added, slot two removed. Only one of the two lasts" in said
    assert slots(first) == ["first", "one"] and slots(second) == ["first", "two"]
    event = second.status()["keys"]["events"][-1]
    assert (event["command"], event["changes"]) == ("key add", [{"change": "slot-added", "name": "two"}])

    # The first goes on without having seen it: it is told before anything is undone, once.
    passwd = ("key", "passwd", first.name, CHEAP, "--no-rotate", "--new-password-file",
              first.env["MIRRORFS_PASSWORD_FILE"])  # fmt: skip
    refused = first.run(*passwd)
    assert refused.returncode == 6, refused.stdout
    assert "there, other than here: slot two added, slot one removed. Nothing was changed now" in (
        refused.stdout
    )
    first.must(*passwd)
    # The second finds what was undone, and both have the same again.
    second.mount()
    found = second.status()["keys"]["events"][-1]
    assert found["command"] == "found"
    assert {"change": "slot-removed", "name": "two"} in found["changes"]
    assert slots(second) == slots(first) == ["first", "one"]


def test_a_rotation_is_left_when_another_pc_made_a_change(pcs: tuple[Mounted, Mounted]) -> None:
    first, second = pcs
    second.must(*new_token(second, "gone"))
    code, said = race(
        second, "keep_header", ["key", "remove", second.name, "gone"], first, new_token(first, "one")
    )
    assert code == 6, said
    assert "key generation 2" not in said and "run `mirrorfs key rotate" in said
    assert "slot gone added, slot one added" in said
