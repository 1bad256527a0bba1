"""The demo as a new user runs it, and that its checks can fail."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import demo_leaks, demo_manifest

SCRIPTS = Path(__file__).parents[2] / "scripts"
DEADLINE_S = 240
"""Far beyond what it takes: a hang ends, a slow machine does not fail."""


@pytest.mark.parametrize("options", [[], ["--s3"]], ids=["directories", "s3"])
def test_demo(options: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPTS / "demo_run.py"), "--quick", *options],
        env=dict(os.environ) | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    last = result.stdout.splitlines()[-1]
    match = re.fullmatch(
        r"DEMO PASSED: ([0-9,]+) files came back identical from store A alone and from store B alone\.", last
    )
    assert match is not None, last
    assert int(match[1].replace(",", "")) > 500
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


# --- the search for plaintext ------------------------------------------------------------------------


def test_search_finds_a_run_at_any_offset(tmp_path: Path) -> None:
    numbers = random.Random(5)
    secret, noise = numbers.randbytes(32 * 8), numbers.randbytes(5000)
    needles = demo_leaks.Needles()
    needles.add_file(b"diagnosis.txt", secret, seed=1)
    assert demo_leaks.proves_itself(needles, noise)
    for offset in range(1000, 1017):
        (tmp_path / "object").write_bytes(noise[:offset] + secret[64:96] + noise[offset:])
        search = demo_leaks.Search(needles)
        search.tree(tmp_path, label="store")
        assert [find.where for find in search.result.finds] == ["store, object"]


@pytest.mark.parametrize("name", ["diagnosis.txt", "Ärztlicher Befund.txt", "new\nline.txt"])
def test_search_finds_names_in_contents_and_paths(tmp_path: Path, name: str) -> None:
    needles = demo_leaks.Needles()
    needles.add_name(name.encode())
    noise = random.Random(6).randbytes(3000)
    (tmp_path / "object").write_bytes(noise + b"x" + name.encode() + b"y" + noise)
    (tmp_path / name).write_bytes(noise)
    search = demo_leaks.Search(needles)
    search.tree(tmp_path, label="store")
    assert len(search.result.finds) == 2


def test_search_finds_what_lies_across_two_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_leaks, "_CHUNK_BYTES", 1000)
    secret = random.Random(7).randbytes(32)
    needles = demo_leaks.Needles()
    needles.add_run(secret)
    (tmp_path / "object").write_bytes(bytes(990) + secret + bytes(990))
    search = demo_leaks.Search(needles)
    search.tree(tmp_path, label="store")
    assert len(search.result.finds) == 1


def test_search_says_nothing_of_noise(tmp_path: Path) -> None:
    numbers = random.Random(8)
    needles = demo_leaks.Needles()
    needles.add_file(b"diagnosis.txt", numbers.randbytes(100_000), seed=1)
    (tmp_path / "object").write_bytes(numbers.randbytes(1_000_000) + bytes(100_000))
    search = demo_leaks.Search(needles)
    search.tree(tmp_path, label="store")
    assert search.result.finds == []
    assert search.result.size_bytes == 1_100_000


# --- the comparison ------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    (root / "file").write_bytes(b"one")
    (root / "other").write_bytes(b"one")
    os.link(root / "file", root / "folder" / "link")
    os.symlink("file", root / "symlink")
    os.setxattr(root / "file", "user.kind", b"letter")
    return root


def _relink(root: Path) -> None:
    (root / "folder" / "link").unlink()
    os.link(root / "other", root / "folder" / "link")


def _retarget(root: Path) -> None:
    (root / "symlink").unlink()
    os.symlink("elsewhere", root / "symlink")


CHANGES = {
    "content": lambda root: (root / "file").write_bytes(b"two"),
    "mode": lambda root: (root / "file").chmod(0o600),
    "time of a file": lambda root: os.utime(root / "file", ns=(0, 1)),
    "time of a directory": lambda root: os.utime(root / "folder", ns=(0, 1)),
    "attribute": lambda root: os.setxattr(root / "file", "user.kind", b"image"),
    "hard link": _relink,
    "symbolic link": _retarget,
    "missing": lambda root: (root / "other").unlink(),
    "new": lambda root: (root / "new").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_comparison_sees(tree: Path, change: str) -> None:
    before = demo_manifest.take(tree)
    assert demo_manifest.differences(before, demo_manifest.take(tree)) == []
    CHANGES[change](tree)
    assert demo_manifest.differences(before, demo_manifest.take(tree)) != []
