"""inotify: local changes are told, as to file managers and indexers."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.posix.objects import make, write

ACCESS, MODIFY, ATTRIB, CLOSE_WRITE, CLOSE_NOWRITE, OPEN = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
IGNORED, ISDIR = 0x8000, 0x40000000
ALL = 0xFFF
HEAD = "iIII"

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def watcher() -> Iterator[int]:
    """An inotify descriptor."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0
    yield descriptor
    os.close(descriptor)


def watch(watcher: int, path: str) -> None:
    """Ask for all events of one object."""
    assert _libc.inotify_add_watch(watcher, os.fsencode(path), ALL) >= 0


def events(watcher: int) -> list[tuple[int, str]]:
    """(what, name) of all events so far; reading and opening left out: their number is nobody's promise."""
    data = os.read(watcher, 64 * 1024)
    found = []
    while data:
        _, mask, _, length = struct.unpack_from(HEAD, data)
        name = data[struct.calcsize(HEAD) :][:length].rstrip(b"\0")
        data = data[struct.calcsize(HEAD) + length :]
        if not mask & (ACCESS | OPEN | CLOSE_NOWRITE | IGNORED):
            found.append((mask, os.fsdecode(name)))
    return found


ON_A_DIRECTORY: dict[str, tuple[Callable[[], object], list[tuple[int, str]]]] = {
    "creat": (
        lambda: write("new", b"x"), [(CREATE, "new"), (MODIFY, "new"), (CLOSE_WRITE, "new")]
    ),
    "mkdir": (lambda: os.mkdir("new"), [(CREATE | ISDIR, "new")]),
    "mkfifo": (lambda: os.mkfifo("new"), [(CREATE, "new")]),
    "symlink": (lambda: os.symlink("x", "new"), [(CREATE, "new")]),
    "link": (lambda: os.link("file", "new"), [(CREATE, "new")]),
    "unlink": (lambda: os.unlink("file"), [(DELETE, "file")]),
    "rmdir": (lambda: os.rmdir("inner"), [(DELETE | ISDIR, "inner")]),
    "rename": (lambda: os.rename("file", "new"), [(MOVED_FROM, "file"), (MOVED_TO, "new")]),
    "rename-over": (lambda: os.rename("file", "second"), [(MOVED_FROM, "file"), (MOVED_TO, "second")]),
    "rename-directory": (
        lambda: os.rename("inner", "new"), [(MOVED_FROM | ISDIR, "inner"), (MOVED_TO | ISDIR, "new")]
    ),
    "rename-away": (lambda: os.rename("file", "../away"), [(MOVED_FROM, "file")]),
    "chmod": (lambda: os.chmod("file", 0o600), [(ATTRIB, "file")]),
    "chown": (lambda: os.chown("file", 1, 1), [(ATTRIB, "file")]),
    "utime": (lambda: os.utime("file", ns=(1, 1)), [(ATTRIB, "file")]),
    "truncate": (lambda: os.truncate("file", 1), [(MODIFY, "file")]),
    "write": (
        lambda: write("second", b"x"), [(MODIFY, "second"), (MODIFY, "second"), (CLOSE_WRITE, "second")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_A_DIRECTORY)
def test_directory(here: Path, watcher: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    os.mkdir("d")
    with monkeypatch.context() as inner:
        inner.chdir("d")
        make("file", "file")
        make("second", "file")
        os.mkdir("inner")
        watch(watcher, ".")
        call, expected = ON_A_DIRECTORY[name]
        call()
        # Equal events in a row are merged or not, by what was read meanwhile.
        found = events(watcher)
        assert list(dict.fromkeys(found)) == list(dict.fromkeys(expected))


ON_A_FILE: dict[str, tuple[Callable[[], object], list[int]]] = {
    "write": (lambda: open("file", "ab").close(), [CLOSE_WRITE]),
    "chmod": (lambda: os.chmod("file", 0o600), [ATTRIB]),
    "link": (lambda: os.link("file", "new"), [ATTRIB]),
    "rename": (lambda: os.rename("file", "new"), [MOVE_SELF]),
    "truncate": (lambda: os.truncate("file", 1), [MODIFY]),
    "unlink": (lambda: os.unlink("file"), [ATTRIB, DELETE_SELF]),
}


@pytest.mark.parametrize("name", ON_A_FILE)
def test_file(here: Path, watcher: int, name: str) -> None:
    make("file", "file")
    watch(watcher, "file")
    call, expected = ON_A_FILE[name]
    call()
    assert list(dict.fromkeys(mask for mask, _ in events(watcher))) == expected
