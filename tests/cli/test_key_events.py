"""That keys and stores were changed is recorded, shown, logged and told, whoever did it."""

from __future__ import annotations

import json
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from os import geteuid
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.format.control import LEASE_KEY
from tests.cli.test_attach import second_pc, urls
from tests.cli.test_key import add_spare, refused, secret
from tests.cli.test_key_rotation import KILLING
from tests.support.mounted import CHEAP, Mounted, mounted_volume


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one", mount=False) as volume:
        yield volume


def told(volume: Mounted, folder: Path) -> Path:
    """Have alarms written to a file, one JSON object on a line."""
    program, out = folder / "alarm", folder / "told"
    out.touch()
    program.write_text('#!/bin/sh\ntext=$(cat)\necho "$text" >> "$1"\n')
    program.chmod(0o755)
    user = pwd.getpwuid(geteuid()).pw_name
    with volume.config.open("a") as file:
        file.write(f'\n[alarm]\ncommand = ["{program}", "{out}"]\nuser = "{user}"\n')
    return out


def lines_of(volume: Mounted, out: Path, count: int) -> list[dict[str, Any]]:
    volume.wait_until(lambda: out.read_text().count("\n") >= count, within_s=60)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == count
    return lines


def events(volume: Mounted) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = volume.status()["keys"]["events"]
    return found


def change(kind: str, name: str | None) -> dict[str, str | None]:
    return {"change": kind, "name": name}


def test_what_is_done_here_is_recorded_and_told(volume: Mounted, tmp_path: Path) -> None:
    out = told(volume, tmp_path)
    assert events(volume) == []
    wrong = secret(tmp_path / "wrong", "not the right password")
    refused(volume, "key", "rotate", volume.name, "--password-file", wrong, code=3)
    volume.mount()
    add_spare(volume)
    usb = tmp_path / "usb"
    usb.mkdir()
    volume.must("store", "add", volume.name, f"usb=file://{usb}")
    first, second, third = events(volume)
    assert (first["command"], first["slot"], first["result"]) == ("key rotate", None, "refused")
    assert (second["command"], second["slot"], second["result"]) == ("key add", "first", "done")
    assert second["changes"] == [change("slot-added", "spare")]
    assert third["changes"] == [change("store-added", "usb")]
    shown = volume.must("status", volume.name)
    assert "key add: slot spare added; opened with slot first." in shown
    assert "key rotate: refused, password or token were not right." in shown
    assert "Keys and stores: key add: slot spare added" in volume.log_text()
    assert "Keys and stores: store add: store usb added" in volume.log_text()
    one, other = sorted(lines_of(volume, out, 2), key=lambda line: int(line["time_ns"]))
    assert (one["event"], other["event"]) == ("keys-changed", "stores-changed")
    assert (one["volume"], one["light"]) == (volume.name, None)
    assert "slot spare added" in one["reason"]
    # A view shows it as well, and a volume that is not mounted.
    volume.umount()
    assert [one["command"] for one in events(volume)] == ["key rotate", "key add", "store add"]
    assert volume.warnings() == []


def test_what_another_pc_did_is_found(volume: Mounted, tmp_path: Path) -> None:
    add_spare(volume)
    second = second_pc(volume, tmp_path / "two")
    try:
        second.must("attach", second.name, *urls(volume), "--yes", "--token", "pkcs11:token=practice")
        assert [one["command"] for one in events(second)] == ["attach"]
        out = told(second, tmp_path)
        volume.must("key", "remove", volume.name, "spare")
        assert events(volume)[-1]["changes"] == [
            change("slot-removed", "spare"), change("keys-rotated", None),
        ]  # fmt: skip
        for _ in range(2):
            second.mount()
            found = events(second)[-1]
            assert (found["command"], found["slot"]) == ("found", None)
            assert found["changes"] == [change("slot-removed", "spare"), change("keys-rotated", None)]
            second.umount()
        assert [one["command"] for one in events(second)] == ["attach", "found"]
        assert second.log_text().count("slot spare removed, keys rotated: on another PC") == 1
        assert [line["event"] for line in lines_of(second, out, 1)] == ["keys-changed"]
        # Beginning anew forgets nothing.
        second.must("attach", second.name, "--again", "--yes")
        assert [one["command"] for one in events(second)] == ["attach", "found", "attach"]
    finally:
        second.remove()


def test_a_command_that_was_killed_is_found(volume: Mounted, tmp_path: Path) -> None:
    new = secret(tmp_path / "new", "another horse, another battery")
    killed = subprocess.run(
        [
            sys.executable, "-c", KILLING, "mirrorfs.cli.header_change.bare_store",
            "key", "passwd", volume.name, CHEAP, "--no-rotate", "--new-password-file", new,
        ],
        env=volume.env, cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert events(volume) == []
    volume.env["MIRRORFS_PASSWORD_FILE"] = new
    volume.mount()
    (found,) = events(volume)
    assert (found["command"], found["changes"]) == ("found", [change("slot-renewed", "first")])


def test_that_a_store_went_back_is_told_once_and_stays_until_it_is_cleared(
    volume: Mounted, tmp_path: Path
) -> None:
    place = volume.stores["b"]
    early = {*place.rglob("*"), place / LEASE_KEY}
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"x" * 1000)
    volume.umount()
    for path in {path for path in place.rglob("*") if path.is_file()} - early:
        path.unlink()
    out = told(volume, tmp_path)
    volume.mount()
    first, found = (store["went_back"] for store in volume.status()["stores"])
    assert first is None and found is not None
    volume.wait_until(lambda: "\n" in out.read_text(), within_s=60)
    volume.umount()
    volume.mount()
    status = volume.status()
    assert status["light"] == "at-risk" and "alarm clear VOLUME --store b`" in status["reason"]
    assert [store["went_back"] for store in status["stores"]] == [None, found], "the next mount knows of it"
    refused(volume, "alarm", "clear", volume.name, "--store", "c", code=2)
    assert "no such alarm" in volume.must("alarm", "clear", volume.name)
    assert "is cleared; it had gone back" in volume.must("alarm", "clear", volume.name, "--store", "b")
    status = volume.status()
    assert [store["went_back"] for store in status["stores"]] == [None, None]
    assert status["light"] != "at-risk"
    volume.umount()
    (event,) = [line for line in map(json.loads, out.read_text().splitlines()) if "event" in line]
    assert (event["event"], event["light"]) == ("store-went-back", None)
    assert event["reason"].startswith("Store b went back to an earlier state")
