"""What the tests of POSIX behaviour share."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NOBODY = 65534
KIB, MIB = 1024, 1024 * 1024


def refused(number: int, call: Callable[[], object]) -> None:
    """Assert that the call fails with exactly that errno."""
    with pytest.raises(OSError) as caught:
        call()
    actual, expected = errno.errorcode[caught.value.errno or 0], errno.errorcode[number]
    assert actual == expected, f"{actual} instead of {expected}"


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that differ at every offset of interest."""
    return bytes((seed * 31 + index // 251 + index) % 256 for index in range(min(size, 64 * KIB))) * (
        size // (64 * KIB) + 1
    )


def as_nobody(program: str, path: Path) -> int:
    """Run one Python statement, in which `path` is a name, as an unprivileged user; 0 or an errno.

    It starts in the directory of path: the directories above are pytest's, and closed to others.
    """
    lines = (
        "import os, sys",
        "path = sys.argv[1]",
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})",
        f"try: {program}",
        "except OSError as error: sys.exit(error.errno)",
    )
    command = [sys.executable, "-I", "-S", "-c", "\n".join(lines), path.name]
    return subprocess.run(command, cwd=path.parent, check=False).returncode


KINDS = ("absent", "file", "directory", "full", "symlink")


def make(path: Path, kind: str) -> None:
    """Put an object of that kind there."""
    if kind == "file":
        path.write_bytes(b"contents of " + path.name.encode())
    elif kind in ("directory", "full"):
        path.mkdir()
        if kind == "full":
            (path / f"in-{path.name}").touch()
    elif kind == "symlink":
        path.symlink_to(f"to-{path.name}")
