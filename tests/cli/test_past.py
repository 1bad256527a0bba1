"""The commands that look back, as people run them: on a mounted volume, and on its stores alone."""

from __future__ import annotations

import json
import os
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


def test_log(past: Past) -> None:
    name = past.volume.name
    every = past.json("log", name, "--all")
    assert every["schema"] == 1 and every["volume"] == name and not every["lost_segments"]
    entries = every["entries"]
    assert entries[-1]["last"] == every["newest"]
    assert all(entry["moments"] == 1 for entry in entries)
    days = past.json("log", name, "--by=day", "--since=2001-01-01")["entries"]
    for key in ("moments", "deleted", "renamed", "written_bytes", "mounts"):
        assert sum(entry[key] for entry in entries) == sum(entry[key] for entry in days), key
    assert sum(entry["created"] for entry in days) == 4
    assert sum(entry["deleted"] for entry in days) == 1
    assert sum(entry["written_bytes"] for entry in days) in range(
        # The kernel hands whole pages over.
        (3 << 20) + 2 * len(LETTER) + 3, (3 << 20) + (1 << 16)
    )  # fmt: skip
    # From one store alone the same.
    alone = past.json("log", past.urls[1], "--all")
    assert alone["entries"] == entries and alone["newest"] == every["newest"]
    shown = past.run("log", name)
    assert b"4 created" in shown.stdout and b"3.0 MiB written" in shown.stdout
    assert b"mueller" not in shown.stdout + shown.stderr
    assert b"--since shows more" in shown.stderr
    assert past.run("log", name, "--until=2001-01-01").stdout == b""


def test_history(past: Past) -> None:
    for where in (past.volume.name, past.urls[0]):
        found = past.json("history", where, "letters/mueller.txt")
        assert [version["what"] for version in found["versions"]] == ["created", "written", "deleted"]
        assert [version["size_bytes"] for version in found["versions"]] == [
            len(LETTER), 2 * len(LETTER), None,
        ]  # fmt: skip
        kept = past.run("history", where, "/letters/kept.txt").stdout.decode()
        assert kept.count("\n") == 1 and "renamed from new.txt, 3 B" in kept
        missing = past.run("history", where, "letters/nobody.txt", exit_code=1)
        assert b"was ever in the volume" in missing.stderr and not missing.stdout
    written = found["versions"][1]["position"]
    later = past.json("history", past.volume.name, "letters/mueller.txt", "--since", written)
    assert later["there_before"] and [version["what"] for version in later["versions"]] == ["deleted"]
