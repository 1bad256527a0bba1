"""rename and renameat2 beyond the matrix of test_posix_names.py: all kinds, links of one file, edges."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from tests.fuse.posix.objects import KINDS, TYPE, exists, make, read, type_of, write
from tests.fuse.posix.users import ANNA, BERT, ROOT, User, give

FLAGS = {"plain": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}


@pytest.mark.parametrize("across", [False, True], ids=["within", "across"])
@pytest.mark.parametrize("kind", KINDS)
def test_to_a_free_name(here: Path, kind: str, across: bool) -> None:
    os.mkdir("other")
    make("old", kind)
    before = os.lstat("old")
    new = "other/new" if across else "new"
    os.rename("old", new)
    after = os.lstat(new)
    assert not exists("old")
    assert type_of(new) == TYPE[kind]
    for field in ("st_ino", "st_dev", "st_mode", "st_uid", "st_size", "st_nlink", "st_rdev", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field)


def expected(source: str, target: str, flags: str) -> int:
    """What rename(2) says of two existing names."""
    if flags == "noreplace":
        return errno.EEXIST
    if flags == "exchange" or (source == "directory") == (target == "directory"):
        return 0
    return errno.ENOTDIR if source == "directory" else errno.EISDIR


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_to_a_name_that_is_taken(here: Path, source: str, target: str, flags: str) -> None:
    make("source", source)
    make("target", target)
    inodes = os.lstat("source").st_ino, os.lstat("target").st_ino
    number = expected(source, target, flags)
    if number:
        refused(number, lambda: renameat2("source", "target", FLAGS[flags]))
        assert (os.lstat("source").st_ino, os.lstat("target").st_ino) == inodes
        return
    renameat2("source", "target", FLAGS[flags])
    assert os.lstat("target").st_ino == inodes[0]
    if flags == "exchange":
        assert os.lstat("source").st_ino == inodes[1]
    else:
        assert not exists("source")
        assert len(os.listdir()) == 1


@pytest.mark.parametrize("kind", ["file", "symlink", "fifo"])
@pytest.mark.parametrize("flags", FLAGS)
def test_two_names_of_one_inode(here: Path, flags: str, kind: str) -> None:
    make("one", kind)
    os.link("one", "two", follow_symlinks=False)
    if flags == "noreplace":
        refused(errno.EEXIST, lambda: renameat2("one", "two", FLAGS[flags]))
    else:
        renameat2("one", "two", FLAGS[flags])
    assert sorted(os.listdir()) == ["one", "two"]
    assert os.lstat("one").st_nlink == 2


@pytest.mark.parametrize("kind", KINDS)
def test_to_itself(here: Path, kind: str) -> None:
    make("object", kind)
    os.rename("object", "object")
    os.rename("object", "./object")
    refused(errno.EEXIST, lambda: renameat2("object", "object", RENAME_NOREPLACE))
    assert os.listdir() == ["object"]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("below", ["child", "child/deeper", "child/deeper/new"])
def test_below_itself(here: Path, below: str, flags: str) -> None:
    os.makedirs("d/child/deeper")
    is_new = below.endswith("new")
    number = errno.EINVAL
    if flags == "noreplace" and not is_new:
        number = errno.EEXIST
    elif flags == "exchange" and is_new:
        number = errno.ENOENT
    refused(number, lambda: renameat2("d", f"d/{below}", FLAGS[flags]))
    assert os.listdir("d/child/deeper") == []


@pytest.mark.parametrize("source", ["d/child", "d/child/deeper"])
def test_over_a_directory_above(here: Path, source: str) -> None:
    os.makedirs("d/child/deeper")
    refused(errno.ENOTEMPTY, lambda: os.rename(source, "d"))
    refused(errno.EINVAL, lambda: renameat2(source, "d", RENAME_EXCHANGE))


DOTS: dict[str, tuple[str, str, int]] = {
    "source-dot": ("d/.", "new", errno.EBUSY),
    "source-dot-dot": ("d/..", "new", errno.EBUSY),
    "target-dot": ("d", "e/.", errno.EBUSY),
    "target-dot-dot": ("d", "e/..", errno.EBUSY),
    "source-current": (".", "../new", errno.EBUSY),
    "file-with-slash": ("file/", "new", errno.ENOTDIR),
    "file-to-slash": ("file", "new/", errno.ENOTDIR),
    "directory-with-slashes": ("d/", "new/", 0),
}


@pytest.mark.parametrize("case", DOTS)
def test_dots_and_slashes(here: Path, case: str) -> None:
    source, target, number = DOTS[case]
    os.mkdir("d")
    os.mkdir("e")
    make("file", "file")
    if number:
        refused(number, lambda: os.rename(source, target))
    else:
        os.rename(source, target)
    assert exists("new") == (number == 0)


@pytest.mark.parametrize(
    "flags",
    [RENAME_NOREPLACE | RENAME_EXCHANGE, RENAME_EXCHANGE | RENAME_WHITEOUT, 8, 1 << 31],
    ids=["noreplace-exchange", "exchange-whiteout", "unknown", "highest"],
)
def test_flags_that_exclude_one_another_or_do_not_exist(here: Path, flags: int) -> None:
    make("one", "file")
    make("two", "file")
    refused(errno.EINVAL, lambda: renameat2("one", "two", flags))


@pytest.mark.parametrize("call", [os.rename, os.link])
def test_to_another_filesystem(here: Path, call: Callable[[str, Path], None]) -> None:
    write("file", b"contents")
    # /dev/shm is another filesystem than both.
    target = Path("/dev/shm") / f"mirrorfs-{os.getpid()}"
    refused(errno.EXDEV, lambda: call("file", target))
    assert not target.exists()
    assert os.stat("file").st_nlink == 1


@pytest.mark.parametrize("across", [False, True], ids=["within", "across"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_over_what_is_open(here: Path, kind: str, across: bool) -> None:
    os.mkdir("other")
    target = "other/target" if across else "target"
    make("source", kind)
    make(target, kind)
    if kind == "file":
        write(target, b"the old one")
    descriptor = os.open(target, os.O_RDONLY)
    os.rename("source", target)
    assert os.fstat(descriptor).st_nlink == 0
    if kind == "file":
        assert os.read(descriptor, 100) == b"the old one"
        assert read(target) == b"contents"
    else:
        assert os.listdir(descriptor) == []
    os.close(descriptor)


def test_what_is_open_goes_on_under_its_new_name(here: Path) -> None:
    os.mkdir("other")
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"one ")
    for old, new in (("file", "second"), ("second", "other/third"), ("other/third", "file")):
        os.rename(old, new)
        os.write(descriptor, b"more ")
    os.close(descriptor)
    assert read("file") == b"one more more more "


def test_a_tree_moves_with_its_directory(here: Path) -> None:
    os.makedirs("a/b/c")
    write("a/b/c/file", b"x")
    os.mkdir("z")
    inode = os.stat("a/b/c/file").st_ino
    os.rename("a/b", "z/b")
    assert os.stat("z/b/c/file").st_ino == inode
    assert os.stat("z/b/..").st_ino == os.stat("z").st_ino
    assert [os.stat(name).st_nlink for name in ("a", "z", "z/b")] == [2, 3, 3]
    assert read("z/b/c/../c/file") == b"x"


@pytest.mark.parametrize("caller", [ANNA, ROOT], ids=["stranger", "root"])
@pytest.mark.parametrize("closed", ["source", "target"])
@pytest.mark.parametrize("flags", FLAGS)
def test_both_directories_must_be_writable(here: Path, flags: str, closed: str, caller: User) -> None:
    for name in ("source", "target"):
        os.mkdir(name)
        os.mkdir(f"{name}/own")
        give(f"{name}/own", ANNA)
        give(name, BERT, 0o755 if name == closed else 0o777)
    target = "target/own" if flags == "exchange" else "target/new"

    def act() -> None:
        caller.does(lambda: renameat2("source/own", target, FLAGS[flags]))

    if caller is ROOT:
        act()
    else:
        refused(errno.EACCES, act)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_others_things_in_a_directory_of_ones_own(here: Path, kind: str) -> None:
    os.mkdir("mine")
    give("mine", ANNA, 0o755)
    make("mine/theirs", kind)
    ANNA.does(lambda: os.rename("mine/theirs", "mine/renamed"))
    make("mine/second", kind)
    ANNA.does(lambda: os.rename("mine/second", "mine/renamed"))
    assert os.listdir("mine") == ["renamed"]
