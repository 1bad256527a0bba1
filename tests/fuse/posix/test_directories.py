"""Listing directories, also while they change, and the names that entries may have."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.libc import open_listing
from tests.fuse.posix.objects import KINDS, TYPE, exists, make, read, type_of, write

DOTS = {b".", b".."}
COUNTS = [0, 1, 2, 31, 32, 33, 232, 233, 1000]
"""Around the sizes in which entries are asked for."""


def fill(count: int) -> set[bytes]:
    """A directory `d` of so many entries; their names."""
    os.mkdir("d")
    names = {b"entry-%04d" % number for number in range(count)}
    for name in names:
        os.mknod(b"d/" + name, stat.S_IFREG | 0o644)
    return names


# --- names -----------------------------------------------------------------------------------

NAMES = {
    "one-byte": b"x",
    "255-bytes": b"n" * 255,
    "255-bytes-of-umlauts": "ä".encode() * 127 + b"x",
    "space": b" ",
    "spaces-around": b" a ",
    "dash": b"-rf",
    "three-dots": b"...",
    "hidden": b".hidden",
    "tilde": b"~",
    "newline": b"a\nb",
    "tab-and-return": b"\t\r",
    "escape": b"\x1b[2J",
    "delete": b"\x7f",
    "backslash": b"a\\b",
    "colon": b"C:",
    "star": b"*?[]",
    "quotes": b"\"'`$(x)",
    "device-of-windows": b"NUL.txt",
    "dot-at-the-end": b"name.",
    "utf8": "Käthe Müller, Röntgen.dcm".encode(),
    "emoji": "🦷".encode(),
    "latin1": b"K\xe4the",
    "not-utf8": b"\xff\xfe\x80",
    "cut-utf8": b"\xf0\x9f\xa6",
    "overlong-utf8": b"\xc0\xaf",
    "surrogate": b"\xed\xa0\x80",
    "percent": b"%s%n%00",
    "like-a-fuse-file": b".fuse_hidden0001",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_name(here: Path, kind: str, name: bytes) -> None:
    path = os.fsdecode(name)
    make(path, kind)
    assert os.listdir(b".") == [name]
    assert type_of(path) == TYPE[kind]
    os.rename(name, b"plain")
    assert not exists(path)
    os.rename(b"plain", name)
    if kind == "file":
        os.link(name, b"second")
        assert read(path) == b"contents"
        os.unlink(b"second")
    (os.rmdir if kind == "directory" else os.unlink)(name)
    assert os.listdir() == []


def test_every_byte_in_a_name(here: Path) -> None:
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    for name in names:
        with open(name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(b".")) == names
    for name in names:
        with open(name, "rb") as file:
            assert file.read() == name


TWINS = {
    "case": (b"Report", b"report"),
    "composed": ("\u00e9".encode(), "e\u0301".encode()),
    "width": ("\uff46\uff49".encode(), b"fi"),
    "ligature": ("\ufb01".encode(), b"fi"),
    "space-at-the-end": (b"name", b"name "),
    "dot-at-the-end": (b"name", b"name."),
    "turkish": ("\u0131".encode(), b"i"),
    "sharp-s": ("ß".encode(), b"ss"),
}


@pytest.mark.parametrize("case", TWINS)
def test_names_that_only_look_alike(here: Path, case: str) -> None:
    one, two = TWINS[case]
    assert one != two
    write(os.fsdecode(one), b"one")
    refused(errno.ENOENT, lambda: os.stat(two))
    write(os.fsdecode(two), b"two")
    assert read(os.fsdecode(one)) == b"one"
    assert sorted(os.listdir(b".")) == sorted([one, two])


# --- listing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
def test_everything_is_listed_once(here: Path, count: int) -> None:
    names = fill(count)
    with open_listing(Path("d")) as listing:
        found = listing.rest()
    assert len(found) == count + 2
    assert set(found) == names | DOTS


@pytest.mark.parametrize("kind", KINDS)
def test_number_and_type_in_a_listing(here: Path, kind: str) -> None:
    os.mkdir("d")
    make("d/object", kind)
    with open_listing(Path("d")) as listing:
        entries = {}
        while entry := listing.next():
            entries[entry[0]] = entry[1:]
    assert entries[b"object"] == (os.lstat("d/object").st_ino, TYPE[kind] >> 12)
    assert entries[b"."] == (os.stat("d").st_ino, stat.S_IFDIR >> 12)
    assert entries[b".."] == (os.stat(".").st_ino, stat.S_IFDIR >> 12)


CHANGES: dict[str, Callable[[bytes], object]] = {
    "unlink": os.unlink,
    "rename-away": lambda path: os.rename(path, b"away-" + path[2:]),
    "rename-within": lambda path: os.rename(path, path + b"-renamed"),
    "create": lambda path: os.mknod(path + b"-new", stat.S_IFREG | 0o644),
    "link": lambda path: os.link(path, path + b"-link"),
    "replace": lambda path: (os.mknod(b"t", stat.S_IFREG | 0o644), os.rename(b"t", path)),
    "chmod": lambda path: os.chmod(path, 0o600),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("count", [33, 500])
def test_what_stays_is_listed_once_whatever_changes(here: Path, count: int, change: str) -> None:
    names = fill(count)
    touched = set(sorted(names)[::3])
    waiting = sorted(touched)
    found: list[bytes] = []
    with open_listing(Path("d")) as listing:
        while entry := listing.next():
            found.append(entry[0])
            if waiting:
                CHANGES[change](b"d/" + waiting.pop())
    kept = names - touched
    assert sorted(name for name in found if name in kept) == sorted(kept)
    assert len(found) == len(set(found)) or change == "rename-within"
    new = [name for name in found if name not in names | DOTS]
    assert len(new) == len(set(new))


@pytest.mark.parametrize("count", [3, 40, 400])
def test_positions(here: Path, count: int) -> None:
    fill(count)
    with open_listing(Path("d")) as listing:
        positions, order = [listing.tell()], []
        while entry := listing.next():
            order.append(entry[0])
            positions.append(listing.tell())
        assert len(set(positions)) == len(positions)
        for index in (len(order), 0, len(order) // 2, 1, len(order) - 1, 2):
            listing.seek(positions[index])
            assert listing.rest() == order[index:]


@pytest.mark.parametrize("remove", ["the-next", "the-last-returned", "all"])
def test_position_of_what_was_removed(here: Path, remove: str) -> None:
    fill(100)
    with open_listing(Path("d")) as listing:
        positions, order = [listing.tell()], []
        while entry := listing.next():
            order.append(entry[0])
            positions.append(listing.tell())
        doomed = {"the-next": [order[50]], "the-last-returned": [order[49]], "all": order}[remove]
        for name in doomed:
            if name not in DOTS:
                os.unlink(b"d/" + name)
        listing.seek(positions[50])
        assert listing.rest() == [name for name in order[50:] if name not in doomed or name in DOTS]


def test_two_listings_do_not_disturb_one_another(here: Path) -> None:
    names = fill(300)
    with open_listing(Path("d")) as one, open_listing(Path("d")) as two:
        first = [entry[0] for entry in (one.next() for _ in range(100)) if entry]
        assert set(two.rest()) == names | DOTS
        assert set(first) | set(one.rest()) == names | DOTS


def test_removing_as_listed(here: Path) -> None:
    fill(500)
    with os.scandir("d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    os.rmdir("d")


def test_a_new_entry_is_in_the_next_listing(here: Path) -> None:
    fill(40)
    descriptor = os.open("d", os.O_RDONLY)
    assert len(os.listdir(descriptor)) == 40
    write("d/new", b"")
    assert "new" in os.listdir(descriptor)
    os.unlink("d/new")
    assert "new" not in os.listdir(descriptor)
    os.close(descriptor)


def test_deep_trees(here: Path) -> None:
    depth = 200
    top = at = os.open(".", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        if at != top:
            os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)
    path = "deeper/" * depth + "file"
    assert os.stat(path).st_size == 0
    os.close(top)
