"""The commands that look back, as people run them: on a mounted volume, and on its stores alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounted import Mounted, mounted_volume

DEADLINE_S = 120
LETTER = b"Dear colleague, thank you for referring this patient.\n"


@dataclass(frozen=True, slots=True)
class Past:
    """A mounted volume with some history, which nothing changes any more."""

    volume: Mounted
    work: Path
    """Where indexes are made."""
    urls: tuple[str, ...]

    def run(self, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[bytes]:
        ended = subprocess.run(
            [sys.executable, "-m", "mirrorfs", *arguments],
            env=self.volume.env | {"TMPDIR": str(self.work)}, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert ended.returncode == exit_code, ended
        # Nothing is left of the index.
        assert not list(self.work.iterdir())
        return ended

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    work = tmp_path_factory.mktemp("work")
    with mounted_volume(tmp_path_factory.mktemp("past")) as volume:
        root = volume.mountpoint
        (root / "letters").mkdir()
        (root / "letters" / "mueller.txt").write_bytes(LETTER)
        (root / "film").write_bytes(os.urandom(3 << 20))
        volume.flush()
        with open(root / "letters" / "mueller.txt", "ab") as file:
            file.write(LETTER)
        (root / "letters" / "new.txt").write_bytes(b"new")
        volume.flush()
        os.rename(root / "letters" / "new.txt", root / "letters" / "kept.txt")
        (root / "letters" / "mueller.txt").unlink()
        volume.flush()
        yield Past(volume, work, tuple(f"--store=file://{place}" for place in volume.stores.values()))


@pytest.fixture(scope="module")
def versions(past: Past) -> list[dict[str, Any]]:
    """Those of the letter."""
    found: list[dict[str, Any]] = past.json("history", past.volume.name, "letters/mueller.txt")["versions"]
    return found


def test_log(past: Past) -> None:
    name = past.volume.name
    every = past.json("log", name, "--all")
    assert every["schema"] == 1 and every["volume"] == name and not every["lost_segments"]
    entries = every["entries"]
    assert entries[-1]["last"] == every["newest"]
    assert all(entry["moments"] == 1 for entry in entries)
    # From one store alone the same.
    days = past.json("log", past.urls[1], "--by=day", "--since=2001-01-01")
    assert days["newest"] == every["newest"]
    for key in ("moments", "deleted", "renamed", "written_bytes", "mounts"):
        assert sum(entry[key] for entry in entries) == sum(entry[key] for entry in days["entries"]), key
    assert sum(entry["created"] for entry in days["entries"]) == 4
    assert sum(entry["deleted"] for entry in days["entries"]) == 1
    # The kernel hands whole pages over.
    least = (3 << 20) + 2 * len(LETTER) + 3
    assert least <= sum(entry["written_bytes"] for entry in entries) < least + (1 << 16)
    shown = past.run("log", name)
    assert b"4 created" in shown.stdout and b"3.0 MiB written" in shown.stdout
    assert b"mueller" not in shown.stdout + shown.stderr
    # Older there is nothing, so nothing is said of it.
    assert shown.stderr == b""


def test_history(past: Past, versions: list[dict[str, Any]]) -> None:
    assert [version["what"] for version in versions] == ["created", "written", "deleted"]
    assert [version["size_bytes"] for version in versions] == [len(LETTER), 2 * len(LETTER), None]
    kept = past.run("history", past.urls[0], "/letters/kept.txt").stdout.decode()
    assert kept.count("\n") == 1 and "renamed from letters/new.txt, 3 B" in kept
    missing = past.run("history", past.urls[1], "letters/nobody.txt", exit_code=1)
    assert b"was ever in the volume" in missing.stderr and not missing.stdout
    written = versions[1]["position"]
    later = past.json("history", past.volume.name, "letters/mueller.txt", "--since", written)
    assert later["there_before"] and later["versions"] == versions[2:]


def test_names_and_contents_then(past: Past, versions: list[dict[str, Any]]) -> None:
    first, written, deleted = (version["position"] for version in versions)
    now = past.run("ls", past.volume.name, "letters").stdout.decode()
    assert now.startswith("-rw") and "  3 B  " in now and now.endswith("  kept.txt\n")
    assert now.count("\n") == 1
    found = past.run("find", past.urls[1], "--at", written, "--name=*.txt", "-0").stdout
    assert found == b"letters/mueller.txt\0letters/new.txt\0"
    assert past.run("cat", past.volume.name, "letters/mueller.txt", "--at", first).stdout == LETTER
    gone = past.run("cat", past.urls[1], "letters/mueller.txt", "--at", deleted, exit_code=1)
    assert b"no such path at that moment" in gone.stderr and not gone.stdout
    assert past.run("cat", past.urls[0], "/film").stdout == (past.volume.mountpoint / "film").read_bytes()
    listing = past.json("ls", past.urls[0], "--at", written)
    assert listing["moment"]["position"] == written
    assert [entry["path"] for entry in listing["entries"]] == ["film", "letters"]


def test_diff(past: Past, versions: list[dict[str, Any]]) -> None:
    first, written = (version["position"] for version in versions[:2])
    shown = past.run("diff", past.volume.name, first, written).stdout.decode().splitlines()
    assert shown[0].startswith(f"A: position {first} of ") and shown[1].startswith(
        f"B: position {written} of "
    )
    assert shown[2:] == [
        "M  letters/mueller.txt  (54 B -> 108 B)", "+  letters/new.txt  (3 B)", "1 created, 1 changed",
    ]  # fmt: skip
    alone = past.json("diff", past.urls[1], written)
    assert [(one["what"], one["path"], one["old_path"]) for one in alone["differences"]] == [
        ("renamed", "letters/kept.txt", "letters/new.txt"), ("deleted", "letters/mueller.txt", None),
    ]  # fmt: skip


def test_damage_is_said(past: Past, versions: list[dict[str, Any]], tmp_path: Path) -> None:
    """What there is is shown, and the exit code tells that it is not all."""
    place = Path(shutil.copytree(past.volume.stores["a"], tmp_path / "store"))
    film, *_, last = sorted((place / "segments").iterdir())
    last.unlink()
    data = bytearray(film.read_bytes())
    data[len(data) // 2] ^= 1
    film.chmod(0o600)
    film.write_bytes(bytes(data))
    url = f"--store=file://{place}"
    shown = past.run("log", url, "--all", exit_code=5)
    assert b"newer commits that cannot be read" in shown.stderr
    assert b" " + versions[1]["position"].encode() + b": " in shown.stdout
    broken = past.run("cat", url, "film", "--at", versions[0]["position"], exit_code=5)
    assert b"good copy" in broken.stderr and b"film" not in broken.stderr
    assert len(broken.stdout) < 3 << 20
