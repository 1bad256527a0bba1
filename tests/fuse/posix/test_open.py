"""open: every flag on every kind of object, descriptors and what they share."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.posix.objects import KINDS, TYPE, exists, make, read, type_of, write
from tests.fuse.posix.users import ANNA, BERT, ROOT, give

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREAT, EXCL, TRUNC, DIRECTORY, NOFOLLOW = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_DIRECTORY, os.O_NOFOLLOW
NONBLOCK = os.O_NONBLOCK

OPENS: dict[str, tuple[str, int, int]] = {
    # What is there, the flags, 0 or the errno.
    "file-r": ("file", R, 0),
    "file-w": ("file", W, 0),
    "file-rw": ("file", RW, 0),
    "file-creat": ("file", RW | CREAT, 0),
    "file-creat-excl": ("file", RW | CREAT | EXCL, errno.EEXIST),
    "file-directory": ("file", R | DIRECTORY, errno.ENOTDIR),
    "file-nofollow": ("file", R | NOFOLLOW, 0),
    "file-append": ("file", W | os.O_APPEND, 0),
    "file-sync": ("file", W | os.O_SYNC, 0),
    "file-dsync": ("file", W | os.O_DSYNC, 0),
    "file-noatime": ("file", R | os.O_NOATIME, 0),
    "file-path": ("file", os.O_PATH, 0),
    "directory-r": ("directory", R, 0),
    "directory-directory": ("directory", R | DIRECTORY, 0),
    "directory-w": ("directory", W, errno.EISDIR),
    "directory-rw": ("directory", RW, errno.EISDIR),
    "directory-trunc": ("directory", R | TRUNC, errno.EISDIR),
    "directory-creat": ("directory", R | CREAT, errno.EISDIR),
    "directory-creat-excl": ("directory", R | CREAT | EXCL, errno.EEXIST),
    "directory-path": ("directory", os.O_PATH, 0),
    "directory-append": ("directory", W | os.O_APPEND, errno.EISDIR),
    "link-r": ("link-to-file", R, 0),
    "link-nofollow": ("link-to-file", R | NOFOLLOW, errno.ELOOP),
    "link-nofollow-creat": ("link-to-file", W | CREAT | NOFOLLOW, errno.ELOOP),
    "link-creat-excl": ("link-to-file", W | CREAT | EXCL, errno.EEXIST),
    "link-path-nofollow": ("link-to-file", os.O_PATH | NOFOLLOW, 0),
    "link-directory": ("link-to-directory", R | DIRECTORY, 0),
    "link-directory-nofollow": ("link-to-directory", R | DIRECTORY | NOFOLLOW, errno.ENOTDIR),
    "link-to-directory-w": ("link-to-directory", W, errno.EISDIR),
    "dangling-r": ("symlink", R, errno.ENOENT),
    "dangling-creat": ("symlink", W | CREAT, 0),
    "dangling-creat-excl": ("symlink", W | CREAT | EXCL, errno.EEXIST),
    "dangling-nofollow": ("symlink", R | NOFOLLOW, errno.ELOOP),
    "absent-r": ("absent", R, errno.ENOENT),
    "absent-w-trunc": ("absent", W | TRUNC, errno.ENOENT),
    "absent-creat": ("absent", R | CREAT, 0),
    "absent-creat-excl": ("absent", R | CREAT | EXCL, 0),
    "absent-creat-trunc": ("absent", W | CREAT | TRUNC, 0),
    "absent-creat-nofollow": ("absent", W | CREAT | NOFOLLOW, 0),
    "absent-directory": ("absent", R | DIRECTORY, errno.ENOENT),
    "absent-path": ("absent", os.O_PATH, errno.ENOENT),
    "fifo-r-nonblocking": ("fifo", R | NONBLOCK, 0),
    "fifo-w-nonblocking": ("fifo", W | NONBLOCK, errno.ENXIO),
    "fifo-rw": ("fifo", RW, 0),
    "fifo-directory": ("fifo", R | DIRECTORY | NONBLOCK, errno.ENOTDIR),
    "fifo-creat": ("fifo", RW | CREAT, 0),
    "fifo-trunc": ("fifo", RW | TRUNC, 0),
    "socket-r": ("socket", R, errno.ENXIO),
    "socket-w": ("socket", W, errno.ENXIO),
    "socket-creat": ("socket", W | CREAT, errno.ENXIO),
    "socket-path": ("socket", os.O_PATH, 0),
    "char-path": ("char", os.O_PATH, 0),
    "char-directory": ("char", R | DIRECTORY, errno.ENOTDIR),
}


def place(kind: str) -> None:
    """Put what the case is about at `object`."""
    if kind.startswith("link-to-"):
        make("target", kind.removeprefix("link-to-"))
        os.symlink("target", "object")
    elif kind != "absent":
        make("object", kind)


@pytest.mark.parametrize("case", OPENS)
def test_open(here: Path, case: str) -> None:
    kind, flags, number = OPENS[case]
    place(kind)
    before = sorted(os.listdir())
    if number:
        refused(number, lambda: os.open("object", flags, 0o644))
        assert sorted(os.listdir()) == before
        return
    descriptor = os.open("object", flags, 0o644)
    status = os.fstat(descriptor)
    assert status.st_ino == os.stat("object", follow_symlinks=not flags & NOFOLLOW).st_ino
    os.close(descriptor)
    created = flags & CREAT and kind in ("absent", "symlink")
    assert len(os.listdir()) == len(before) + bool(created)
    if kind == "file":
        assert read("object") == b"contents"


def test_directory_cannot_be_created_by_open(here: Path) -> None:
    refused(errno.EINVAL, lambda: os.open("new", R | CREAT | DIRECTORY, 0o755))
    assert not exists("new")


@pytest.mark.parametrize("flags", [W | TRUNC, RW | TRUNC, W | CREAT | TRUNC, W | TRUNC | os.O_APPEND])
def test_truncating(here: Path, flags: int) -> None:
    write("file", b"contents")
    inode = os.stat("file").st_ino
    reader = os.open("file", R)
    descriptor = os.open("file", flags)
    assert (os.fstat(reader).st_size, os.fstat(descriptor).st_size) == (0, 0)
    assert os.read(reader, 10) == b""
    os.write(descriptor, b"new")
    assert os.read(reader, 10) == b"new"
    assert os.stat("file").st_ino == inode
    os.close(reader)
    os.close(descriptor)


@pytest.mark.parametrize("flags", [W | TRUNC, RW | TRUNC])
@pytest.mark.parametrize("mode", [0o444, 0o555, 0o000], ids=["0444", "0555", "0000"])
def test_truncating_what_may_not_be_written(here: Path, mode: int, flags: int) -> None:
    write("file", b"contents")
    os.chmod("file", mode)
    refused(errno.EACCES, lambda: ANNA.does(lambda: os.open("file", flags)))
    assert os.stat("file").st_size == 8


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o644, 0o1644, 0o6755], ids=lambda mode: f"{mode:04o}")
def test_mode_counts_for_a_new_file_only(here: Path, mode: int) -> None:
    os.close(os.open("new", W | CREAT, mode))
    assert stat.S_IMODE(os.stat("new").st_mode) == mode
    os.close(os.open("new", R | CREAT, 0o111))
    assert stat.S_IMODE(os.stat("new").st_mode) == mode


def test_noatime_is_the_owners(here: Path) -> None:
    write("file", b"x")
    give("file", BERT, 0o666)
    refused(errno.EPERM, lambda: ANNA.does(lambda: os.open("file", R | os.O_NOATIME)))
    for user in (BERT, ROOT):
        user.does(lambda: os.close(os.open("file", R | os.O_NOATIME)))


PATH_CALLS: dict[str, tuple[int, Callable[[int], object]]] = {
    "read": (errno.EBADF, lambda d: os.read(d, 1)),
    "write": (errno.EBADF, lambda d: os.write(d, b"x")),
    "fchmod": (errno.EBADF, lambda d: os.fchmod(d, 0o600)),
    "fchown": (errno.EBADF, lambda d: os.fchown(d, 1, 1)),
    "ftruncate": (errno.EBADF, lambda d: os.ftruncate(d, 0)),
    "fsync": (errno.EBADF, os.fsync),
    "lseek": (errno.EBADF, lambda d: os.lseek(d, 0, os.SEEK_SET)),
    "flock": (errno.EBADF, lambda d: fcntl.flock(d, fcntl.LOCK_SH)),
    "fstat": (0, os.fstat),
    "dup": (0, lambda d: os.close(os.dup(d))),
    "reopen": (0, lambda d: os.close(os.open(f"/proc/self/fd/{d}", R))),
}


@pytest.mark.parametrize("call", PATH_CALLS)
def test_path_descriptor(here: Path, call: str) -> None:
    write("file", b"contents")
    number, act = PATH_CALLS[call]
    descriptor = os.open("file", os.O_PATH)
    if number:
        refused(number, lambda: act(descriptor))
    else:
        act(descriptor)
    os.close(descriptor)
    assert read("file") == b"contents"


WRONG_WAY: dict[str, tuple[int, int, Callable[[int], object]]] = {
    "read-a-writer": (W, errno.EBADF, lambda d: os.read(d, 1)),
    "pread-a-writer": (W, errno.EBADF, lambda d: os.pread(d, 1, 0)),
    "write-a-reader": (R, errno.EBADF, lambda d: os.write(d, b"x")),
    "pwrite-a-reader": (R, errno.EBADF, lambda d: os.pwrite(d, b"x", 0)),
    "truncate-a-reader": (R, errno.EINVAL, lambda d: os.ftruncate(d, 0)),
    "truncate-to-below-zero": (W, errno.EINVAL, lambda d: os.ftruncate(d, -1)),
    "pread-before-the-start": (R, errno.EINVAL, lambda d: os.pread(d, 1, -1)),
    "pwrite-before-the-start": (W, errno.EINVAL, lambda d: os.pwrite(d, b"x", -1)),
    "list-a-file": (R, errno.ENOTDIR, os.listdir),
    "lock-for-writing-a-reader": (R, errno.EBADF, lambda d: fcntl.lockf(d, fcntl.LOCK_EX)),
    "lock-for-reading-a-writer": (W, errno.EBADF, lambda d: fcntl.lockf(d, fcntl.LOCK_SH)),
}


@pytest.mark.parametrize("case", WRONG_WAY)
def test_descriptor_used_the_wrong_way(here: Path, case: str) -> None:
    write("file", b"contents")
    flags, number, act = WRONG_WAY[case]
    descriptor = os.open("file", flags)
    refused(number, lambda: act(descriptor))
    os.close(descriptor)
    assert read("file") == b"contents"


DIRECTORY_CALLS: dict[str, tuple[int, Callable[[int], object]]] = {
    "read": (errno.EISDIR, lambda d: os.read(d, 1)),
    "write": (errno.EBADF, lambda d: os.write(d, b"x")),
    "ftruncate": (errno.EINVAL, lambda d: os.ftruncate(d, 0)),
    "fsync": (0, os.fsync),
    "fdatasync": (0, os.fdatasync),
    "fchmod": (0, lambda d: os.fchmod(d, 0o700)),
    "flock": (0, lambda d: fcntl.flock(d, fcntl.LOCK_EX)),
    "list": (0, os.listdir),
    "fchdir-by-name": (0, lambda d: os.stat(f"/proc/self/fd/{d}/.")),
}


@pytest.mark.parametrize("call", DIRECTORY_CALLS)
def test_directory_descriptor(here: Path, call: str) -> None:
    os.mkdir("directory")
    number, act = DIRECTORY_CALLS[call]
    descriptor = os.open("directory", R)
    if number:
        refused(number, lambda: act(descriptor))
    else:
        act(descriptor)
    os.close(descriptor)


# --- names relative to a directory descriptor ------------------------------------------------


def test_calls_relative_to_a_directory(here: Path) -> None:
    os.mkdir("d")
    at = os.open("d", R | DIRECTORY)
    os.rename("d", "renamed")  # The descriptor follows.
    os.close(os.open("file", W | CREAT, dir_fd=at))
    os.mkdir("inner", dir_fd=at)
    os.symlink("file", "link", dir_fd=at)
    os.mkfifo("fifo", dir_fd=at)
    os.link("file", "second", src_dir_fd=at, dst_dir_fd=at)
    os.rename("second", "third", src_dir_fd=at, dst_dir_fd=at)
    os.chmod("file", 0o600, dir_fd=at)
    os.chown("file", 1, 2, dir_fd=at)
    os.utime("file", ns=(1, 2), dir_fd=at)
    assert os.readlink("link", dir_fd=at) == "file"
    status = os.stat("file", dir_fd=at)
    assert (status.st_nlink, status.st_uid, status.st_mtime_ns) == (2, 1, 2)
    assert (
        sorted(os.listdir(at)) == sorted(os.listdir("renamed")) == ["fifo", "file", "inner", "link", "third"]
    )
    for name in ("fifo", "file", "link", "third"):
        os.unlink(name, dir_fd=at)
    os.rmdir("inner", dir_fd=at)
    assert os.listdir(at) == []
    os.close(at)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "directory"])
def test_relative_to_what_is_no_directory(here: Path, kind: str) -> None:
    make("object", kind)
    at = os.open("object", os.O_PATH | NOFOLLOW)
    assert stat.S_IFMT(os.fstat(at).st_mode) == TYPE[kind] == type_of("object")
    refused(errno.ENOTDIR, lambda: os.open("name", R, dir_fd=at))
    refused(errno.ENOTDIR, lambda: os.mkdir("name", dir_fd=at))
    os.close(at)


# --- what descriptors share ------------------------------------------------------------------


def test_a_duplicate_shares_the_offset(here: Path) -> None:
    write("file", b"0123456789")
    one = os.open("file", R)
    two = os.dup(one)
    assert (os.read(one, 3), os.read(two, 3)) == (b"012", b"345")
    os.lseek(two, 1, os.SEEK_SET)
    assert os.read(one, 2) == b"12"
    os.close(one)
    assert os.read(two, 2) == b"34"
    os.close(two)


def test_a_second_open_has_an_offset_of_its_own(here: Path) -> None:
    write("file", b"0123456789")
    one, two = os.open("file", R), os.open("file", R)
    assert (os.read(one, 3), os.read(two, 3)) == (b"012", b"012")
    os.close(one)
    os.close(two)


def test_a_child_shares_the_offset(here: Path) -> None:
    write("file", b"0123456789")
    descriptor = os.open("file", RW)
    program = f"import os; assert os.read({descriptor}, 4) == b'0123'; os.write({descriptor}, b'xy')"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], pass_fds=[descriptor], check=True)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 6
    assert os.read(descriptor, 10) == b"6789"
    os.close(descriptor)
    assert read("file") == b"0123xy6789"


def test_append_is_shared_and_can_be_switched(here: Path) -> None:
    write("file", b"start")
    descriptor = os.open("file", W)
    duplicate = os.dup(descriptor)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    os.lseek(duplicate, 0, os.SEEK_SET)
    os.write(duplicate, b"+end")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    os.pwrite(duplicate, b"S", 0)
    os.close(descriptor)
    os.close(duplicate)
    assert read("file") == b"Start+end"


# --- programs that run -----------------------------------------------------------------------


@pytest.mark.parametrize("flags", [W, RW, W | TRUNC])
def test_a_running_program_is_busy(here: Path, flags: int) -> None:
    with open("/bin/sleep", "rb") as source:
        write("program", source.read())
    os.chmod("program", 0o755)
    with subprocess.Popen([str(here / "program"), "60"]) as process:
        try:
            refused(errno.ETXTBSY, lambda: os.open("program", flags))
            refused(errno.ETXTBSY, lambda: os.truncate("program", 0))
        finally:
            process.kill()
    os.close(os.open("program", flags))


def test_a_program_open_for_writing_is_not_run(here: Path) -> None:
    write("program", b"#!/bin/sh\n")
    os.chmod("program", 0o755)
    with open("program", "ab"):
        refused(errno.ETXTBSY, lambda: subprocess.run([str(here / "program")], check=False))
    assert subprocess.run([str(here / "program")], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_what_cannot_be_run(here: Path, kind: str) -> None:
    make("object", kind)
    os.chmod("object", 0o755 if kind != "file" else 0o644)
    refused(errno.EACCES, lambda: subprocess.run([str(here / "object")], check=False))
