"""link, symlink, readlink, unlink, rmdir: results, refusals, and the count of links after each."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.libc import AT_SYMLINK_FOLLOW, linkat
from tests.fuse.posix.objects import (
    KINDS,
    NOT_DIRECTORIES,
    TYPE,
    exists,
    make,
    mode_of,
    read,
    remove,
    type_of,
    write,
)
from tests.fuse.posix.users import ANNA, BERT, give

# --- link ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_link(here: Path, kind: str) -> None:
    make("one", kind)
    os.mkdir("d")
    os.link("one", "two", follow_symlinks=False)
    os.link("two", "d/three", follow_symlinks=False)
    statuses = [os.lstat(name) for name in ("one", "two", "d/three")]
    assert statuses[0] == statuses[1] == statuses[2]
    assert statuses[0].st_nlink == 3
    assert type_of("d/three") == TYPE[kind]
    os.lchown("two", 11, 22)
    assert os.lstat("d/three").st_uid == 11
    for left, name in ((2, "one"), (1, "two")):
        os.unlink(name)
        assert os.lstat("d/three").st_nlink == left
    os.unlink("d/three")
    assert os.listdir("d") == []


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("kind", ["file", "symlink", "fifo"])
def test_link_to_a_name_that_is_taken(here: Path, kind: str, target: str) -> None:
    make("one", kind)
    make("taken", target)
    refused(errno.EEXIST, lambda: os.link("one", "taken", follow_symlinks=False))
    assert (os.lstat("one").st_nlink, type_of("taken")) == (1, TYPE[target])


def test_directories_have_one_name(here: Path) -> None:
    os.mkdir("d")
    refused(errno.EPERM, lambda: os.link("d", "e"))
    assert (os.stat("d").st_nlink, os.listdir()) == (2, ["d"])


def test_link_of_a_symbolic_link_and_of_its_target(here: Path) -> None:
    make("file", "file")
    os.symlink("file", "link")
    linkat("link", "itself", 0)
    linkat("link", "target", AT_SYMLINK_FOLLOW)
    assert (type_of("itself"), type_of("target")) == (stat.S_IFLNK, stat.S_IFREG)
    assert (os.lstat("link").st_nlink, os.stat("file").st_nlink) == (2, 2)


def test_contents_and_mode_are_one(here: Path) -> None:
    write("one", b"first")
    os.link("one", "two")
    write("two", b"second")
    os.chmod("one", 0o640)
    assert (read("one"), mode_of("two")) == (b"second", 0o640)


def test_link_of_what_belongs_to_others(here: Path) -> None:
    write("readable", b"x")
    give("readable", BERT, 0o666)
    ANNA.does(lambda: os.link("readable", "second"))  # allowed by fs.protected_hardlinks too
    assert os.stat("readable").st_nlink == 2


# --- symlink, readlink -----------------------------------------------------------------------

TARGETS = {
    "relative": "a/b",
    "absolute": "/etc/hostname",
    "up": "../..",
    "dot": ".",
    "itself": "link",
    "slashes": "//a///b//",
    "one-byte": "x",
    "59-bytes": "x" * 59,
    "60-bytes": "x" * 60,
    "255-bytes": "y" * 255,
    "1000-bytes": "d/" * 500,
    "4095-bytes": "z" * 4095,
    "spaces": "  a b  ",
    "newline": "a\nb",
    "percent": "%s%n",
    "umlaut": "Käthe Müller",
    "not-utf8": os.fsdecode(b"\xff\xfe\x80"),
    "controls": "\x01\x1b[31m\x7f",
}


@pytest.mark.parametrize("case", TARGETS)
def test_symbolic_link(here: Path, case: str) -> None:
    target = TARGETS[case]
    os.symlink(target, "link")
    status = os.lstat("link")
    assert os.readlink("link") == target
    assert (status.st_size, status.st_nlink) == (len(os.fsencode(target)), 1)
    assert stat.S_ISLNK(status.st_mode)
    os.rename("link", "moved")
    assert os.readlink("moved") == target


@pytest.mark.parametrize(("target", "number"), [("", errno.ENOENT), ("x" * 4096, errno.ENAMETOOLONG)])
def test_impossible_target(here: Path, target: str, number: int) -> None:
    refused(number, lambda: os.symlink(target, "link"))
    assert not exists("link")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "symlink"])
def test_readlink_of_what_is_none(here: Path, kind: str) -> None:
    make("object", kind)
    refused(errno.EINVAL, lambda: os.readlink("object"))


def test_links_to_directories_are_passed_through(here: Path) -> None:
    os.makedirs("a/b")
    os.symlink("a", "to-a")
    os.symlink("../to-a/b", "a/to-b")
    write("to-a/to-b/file", b"x")
    assert read("a/b/file") == b"x"
    refused(errno.ENOTDIR, lambda: os.rmdir("to-a"))
    refused(errno.ENOTDIR, lambda: os.unlink("to-a/"))
    os.unlink("to-a")
    assert os.path.isdir("a/b")


# --- unlink, rmdir ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_removing(here: Path, kind: str) -> None:
    make("object", kind)
    remove("object", kind)
    assert os.listdir() == []
    refused(errno.ENOENT, lambda: remove("object", kind))
    make("object", kind)
    assert type_of("object") == TYPE[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrong_call_for_removing(here: Path, kind: str) -> None:
    make("object", kind)
    if kind == "directory":
        refused(errno.EISDIR, lambda: os.unlink("object"))
    else:
        refused(errno.ENOTDIR, lambda: os.rmdir("object"))
    assert type_of("object") == TYPE[kind]


@pytest.mark.parametrize("inner", KINDS)
def test_a_directory_that_is_not_empty(here: Path, inner: str) -> None:
    os.mkdir("d")
    make("d/inner", inner)
    refused(errno.ENOTEMPTY, lambda: os.rmdir("d"))
    remove("d/inner", inner)
    os.rmdir("d")


@pytest.mark.parametrize(
    ("path", "number"), [("d/.", errno.EINVAL), ("d/e/..", errno.ENOTEMPTY), ("..", errno.ENOTEMPTY)]
)
def test_rmdir_of_dots(here: Path, path: str, number: int) -> None:
    os.makedirs("d/e")
    refused(number, lambda: os.rmdir(path))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "directory"])
def test_a_file_without_permissions_can_be_removed(here: Path, kind: str) -> None:
    make("object", kind)
    if kind != "symlink":
        os.chmod("object", 0)
    ANNA.does(lambda: os.unlink("object"))
    assert os.listdir() == []


def test_the_mount_cannot_be_removed(filesystem: Path) -> None:
    refused(errno.ENOTEMPTY if not os.path.ismount(filesystem) else errno.EBUSY, lambda: os.rmdir(filesystem))


# --- links of directories --------------------------------------------------------------------


def test_links_of_directories(here: Path) -> None:
    def counts(*names: str) -> list[int]:
        return [os.stat(name).st_nlink for name in names]

    os.mkdir("d")
    assert counts(".", "d") == [3, 2]
    for number in range(5):
        os.mkdir(f"d/{number}")
        assert counts("d") == [3 + number]
    for kind in NOT_DIRECTORIES:
        make(f"d/{kind}", kind)
    assert counts("d") == [7]
    os.mkdir("e")
    os.rename("d/0", "e/0")
    assert counts("d", "e") == [6, 3]
    os.rename("d/1", "e/0")
    assert counts("d", "e") == [5, 3]
    os.rename("d/2", "d/renamed")
    assert counts("d") == [5]
    os.rmdir("d/renamed")
    assert counts("d") == [4]
    refused(errno.EEXIST, lambda: os.mkdir("d/3"))
    assert counts("d", "e", ".") == [4, 3, 4]


def test_numbers_of_inodes(here: Path) -> None:
    make("one", "file")
    make("two", "file")
    os.link("one", "three")
    os.mkdir("d")
    inodes = {name: os.stat(name).st_ino for name in os.listdir()}
    assert inodes["one"] == inodes["three"]
    assert len(set(inodes.values())) == 3
    assert len({os.stat(name).st_dev for name in inodes}) == 1
    with os.scandir() as entries:
        assert {entry.name: entry.inode() for entry in entries} == inodes
    os.rename("one", "d/moved")
    os.chmod("three", 0o600)
    write("three", b"more")
    assert os.stat("d/moved").st_ino == os.stat("three").st_ino == inodes["one"]
