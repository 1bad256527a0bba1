"""`mirrorfs snapshot` by the real command line, mounted and not; and its names wherever a moment is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli.config import volume_paths
from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.cli.failures import RemoteError
from tests.cli.test_key import refused, secret
from tests.cli.test_key_events import change, events, lines_of, told
from tests.support.mounted import Mounted, mounted_volume

NAME = "avant la mise à jour"
LETTER = b"Dear colleague, thank you for referring this patient.\n"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one") as volume:
        yield volume


def shown_by(volume: Mounted, *arguments: str) -> str:
    """What a command writes to standard output."""
    ended = subprocess.run(
        [sys.executable, "-m", "mirrorfs", *arguments],
        env=volume.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended
    return ended.stdout


def listed(volume: Mounted, *where: str) -> list[dict[str, Any]]:
    shown = json.loads(shown_by(volume, "snapshot", "list", *(where or (volume.name,)), "--json"))
    assert shown["schema"] == 1
    found: list[dict[str, Any]] = shown["snapshots"]
    return found


def held(volume: Mounted) -> dict[str, bool]:
    return {row["name"]: row["held"] for row in listed(volume)}


def test_mounted(volume: Mounted, tmp_path: Path) -> None:
    letter, name = volume.mountpoint / "letter", volume.name
    assert "There are no snapshots" in volume.must("snapshot", "list", name)
    letter.write_bytes(LETTER)  # the kernel still has it
    assert f"Snapshot {NAME}: position 0." in volume.must("snapshot", "create", name, NAME, "--hold")
    letter.unlink()
    volume.must("snapshot", "create", name, "second")
    first, second = listed(volume)
    assert (first["name"], first["held"], second["held"]) == (NAME, True, False)
    assert f"  held  {NAME}\n" in volume.must("snapshot", "list", name)
    assert "choose another" in refused(volume, "snapshot", "create", name, "second", code=2)
    volume.flush()

    # Everywhere.
    url = f"--store=file://{volume.stores['b']}"
    assert listed(volume, url) == [first, second]
    assert shown_by(volume, "cat", name, "letter", "--at", NAME).encode() == LETTER
    assert shown_by(volume, "find", url, "--at", NAME) == "letter\n"
    assert shown_by(volume, "ls", url, "--at=second") == ""
    assert "-  letter  (54 B)\n1 deleted\n" in shown_by(volume, "diff", url, NAME, "second")
    dest = tmp_path / "restored"
    assert first["position"] in volume.must("restore", url, str(dest), "--yes", "--at", NAME)
    assert (dest / "letter").read_bytes() == LETTER
    view = tmp_path / "view"
    view.mkdir()
    try:
        volume.must("mount", name, str(view), "--at", NAME)
        assert (view / "letter").read_bytes() == LETTER
        assert "name the volume itself" in refused(volume, "snapshot", "list", str(view), code=2)
    finally:
        volume.run("umount", str(view))
    log = json.loads(shown_by(volume, "log", name, "--all", "--since", NAME, "--json"))["entries"]
    assert log[-1]["snapshots"] == ["second"] and not any(NAME in entry["snapshots"] for entry in log)
    assert f"snapshot {NAME}, snapshot second" in volume.must("log", name, "--by=day")
    assert "no snapshot of that name" in refused(volume, "cat", url, "letter", "--at", "nothing", code=2)
    assert volume.warnings() == []


def test_to_delete_one_takes_password_and_token(volume: Mounted, tmp_path: Path) -> None:
    out = told(volume, tmp_path)
    name = volume.name
    volume.must("snapshot", "create", name, NAME)
    right = volume.env["MIRRORFS_PASSWORD_FILE"]
    volume.env["MIRRORFS_PASSWORD_FILE"] = secret(tmp_path / "wrong", "not the right password")
    volume.must("snapshot", "hold", name, NAME)
    # Nobody is asked in vain.
    assert "release" in refused(volume, "snapshot", "delete", name, NAME, code=2)
    assert "no snapshot of that name" in refused(volume, "snapshot", "delete", name, "nothing", code=2)
    refused(volume, "snapshot", "release", name, NAME, code=3)
    with pytest.raises(RemoteError, match="takes password and token") as error:
        _ask(volume, change="release", name=NAME)
    assert error.value.exit_code == 3
    for signature in ("", "00" * 64, "no hexadecimal"):
        with pytest.raises(RemoteError, match="takes password and token"):
            _ask(volume, change="release", name=NAME, signature=signature)
    assert held(volume) == {NAME: True}
    volume.env["MIRRORFS_PASSWORD_FILE"] = right
    position = listed(volume)[0]["position"]
    assert "can be deleted" in volume.must("snapshot", "release", name, NAME)
    assert "is deleted" in volume.must("snapshot", "delete", name, NAME)
    (row,) = listed(volume)
    assert row["goes_ns"] is not None and "1 snapshot was deleted and goes on" in volume.must("status", name)
    assert "(deleted, goes on 20" in volume.must("snapshot", "list", name)
    assert "snapshot keep" in refused(volume, "snapshot", "create", name, NAME, code=2)
    *_, refusal, released, deleted = events(volume)
    assert (refusal["command"], refusal["result"], refusal["changes"]) == ("snapshot release", "refused", [])
    assert (released["slot"], released["changes"]) == ("first", [change("snapshot-released", position)])
    assert (deleted["command"], deleted["changes"]) == (
        "snapshot delete",
        [change("snapshot-deleted", position)],
    )
    assert f"snapshot delete: snapshot at {position} deleted; opened with slot first" in volume.log_text()
    assert "stays" in volume.must("snapshot", "keep", name, NAME)
    assert listed(volume) == [{**row, "goes_ns": None}]
    assert [line["event"] for line in lines_of(volume, out, 2)] == ["snapshots-changed"] * 2
    # A name is in the log alone, encrypted.
    in_the_clear = [
        path for path in volume.state.rglob("*") if path.is_file() and NAME.encode() in path.read_bytes()
    ]
    assert not in_the_clear and NAME not in out.read_text()


def _ask(volume: Mounted, **fields: object) -> None:
    paths = volume_paths(volume.name, volume.env)
    with ControlClient(paths.socket, volume=volume.name) as client:
        client.send("snapshot", **fields)
        list(client.answers())


def test_not_mounted(volume: Mounted) -> None:
    (volume.mountpoint / "letter").write_bytes(LETTER)
    volume.umount()
    name = volume.name
    volume.must("snapshot", "create", name, NAME)
    volume.must("snapshot", "create", name, "second")
    volume.must("snapshot", "hold", name, "second")
    assert held(volume) == {NAME: False, "second": True}
    assert listed(volume, f"--store=file://{volume.stores['a']}") == listed(volume)
    assert shown_by(volume, "cat", name, "letter", "--at", NAME).encode() == LETTER
    assert "release" in refused(volume, "snapshot", "delete", name, "second", code=2)
    volume.must("snapshot", "delete", name, NAME)
    volume.must("snapshot", "release", name, "second")
    failed, deleted, released = events(volume)
    assert failed["result"] == "failed" and not failed["changes"]
    assert [one["change"] for one in deleted["changes"]] == ["snapshot-deleted"]
    assert [one["change"] for one in released["changes"]] == ["snapshot-released"]
    assert released["slot"] == "first"
    before = listed(volume)
    assert [row["goes_ns"] is None for row in before] == [False, True]
    volume.mount()
    assert listed(volume) == before
    assert volume.warnings() == []
