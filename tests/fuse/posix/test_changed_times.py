"""Which time stamps every call changes: of the object, of its directory, and of neither when it fails."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuse import libc
from tests.fuse.checks import refused
from tests.fuse.posix.objects import exists, let_time_pass, make, remove, write
from tests.fuse.posix.users import ANNA

OBJECTS = ("d", "e", "d/file", "d/second", "d/link", "d/inner", "d/full", "e/other", "e/target")
"""What the scene holds, in directories `d` and `e`; link and e/target are further names."""


def descriptor_call(call: Callable[[int], object], flags: int = os.O_RDWR) -> Callable[[], None]:
    """A call on the open d/file."""

    def act() -> None:
        descriptor = os.open("d/file", flags)
        try:
            call(descriptor)
        finally:
            os.close(descriptor)

    return act


def opened(path: str, flags: int) -> Callable[[], None]:
    """open and close."""
    return lambda: os.close(os.open(path, flags, 0o644))


def mapped(descriptor: int) -> None:
    """Change a byte through a shared mapping, and have it written."""
    with mmap.mmap(descriptor, 0) as memory:
        memory[0] = 1
        memory.flush()


def copied(descriptor: int) -> None:
    """copy_file_range from d/second."""
    source = os.open("d/second", os.O_RDONLY)
    try:
        assert os.copy_file_range(source, descriptor, 4) == 4
    finally:
        os.close(source)


def sent(descriptor: int) -> None:
    """sendfile from d/second."""
    source = os.open("d/second", os.O_RDONLY)
    try:
        assert os.sendfile(descriptor, source, 0, 4) == 4
    finally:
        os.close(source)


@dataclass(frozen=True)
class Changes:
    """A call, and the stamps of which objects it changes; all others stay."""

    call: Callable[[], object]
    both: Sequence[str] = ()
    """mtime and ctime."""
    ctime: Sequence[str] = ()
    """ctime alone."""


CHANGES = {
    # Making.
    "creat": Changes(opened("d/new", os.O_CREAT | os.O_WRONLY), both=["d"]),
    "mknod": Changes(lambda: os.mknod("d/new", stat.S_IFREG | 0o644), both=["d"]),
    "mkfifo": Changes(lambda: os.mkfifo("d/new"), both=["d"]),
    "mksocket": Changes(lambda: make("d/new", "socket"), both=["d"]),
    "mkdir": Changes(lambda: os.mkdir("d/new"), both=["d"]),
    "symlink": Changes(lambda: os.symlink("x", "d/new"), both=["d"]),
    "link": Changes(lambda: os.link("d/second", "d/new"), both=["d"], ctime=["d/second"]),
    "link-across": Changes(lambda: os.link("d/second", "e/new"), both=["e"], ctime=["d/second"]),
    "link-symlink": Changes(
        lambda: os.link("d/link", "e/new", follow_symlinks=False), both=["e"], ctime=["d/link"]
    ),
    # Removing.
    "unlink": Changes(lambda: os.unlink("d/second"), both=["d"]),
    "unlink-one-of-two-names": Changes(
        lambda: os.unlink("d/file"), both=["d"], ctime=["d/file", "e/target"]
    ),
    "unlink-symlink": Changes(lambda: os.unlink("d/link"), both=["d"]),
    "rmdir": Changes(lambda: os.rmdir("d/inner"), both=["d"]),
    # Renaming.
    "rename-within": Changes(lambda: os.rename("d/second", "d/new"), both=["d"]),
    "rename-across": Changes(lambda: os.rename("d/second", "e/new"), both=["d", "e"]),
    "rename-directory-within": Changes(lambda: os.rename("d/full", "d/new"), both=["d"]),
    "rename-directory-across": Changes(lambda: os.rename("d/full", "e/new"), both=["d", "e"]),
    "rename-over": Changes(lambda: os.rename("d/second", "e/other"), both=["d", "e"], ctime=["e/other"]),
    "rename-over-one-of-two-names": Changes(
        lambda: os.rename("d/second", "d/file"), both=["d"], ctime=["d/file", "e/target"]
    ),
    "rename-directory-over": Changes(lambda: os.rename("d/full", "d/inner"), both=["d"], ctime=["d/inner"]),
    "exchange": Changes(
        lambda: libc.renameat2("d/second", "e/other", libc.RENAME_EXCHANGE),
        both=["d", "e"], ctime=["d/second", "e/other"],
    ),
    "rename-to-the-same": Changes(lambda: os.rename("d/second", "d/second")),
    "rename-to-another-name-of-it": Changes(lambda: os.rename("d/file", "e/target")),
    # Attributes.
    "chmod": Changes(lambda: os.chmod("d/file", 0o600), ctime=["d/file", "e/target"]),
    "chmod-to-the-same": Changes(lambda: os.chmod("d/second", 0o644), ctime=["d/second"]),
    "chmod-directory": Changes(lambda: os.chmod("d/inner", 0o700), ctime=["d/inner"]),
    "chmod-through-link": Changes(lambda: os.chmod("d/link", 0o600), ctime=["d/second"]),
    "fchmod": Changes(descriptor_call(lambda d: os.fchmod(d, 0o600)), ctime=["d/file", "e/target"]),
    "chown": Changes(lambda: os.chown("d/second", 1, 2), ctime=["d/second"]),
    "chown-to-the-same": Changes(lambda: os.chown("d/second", 0, 0), ctime=["d/second"]),
    "lchown": Changes(lambda: os.lchown("d/link", 1, 2), ctime=["d/link"]),
    "utime": Changes(lambda: os.utime("d/second"), both=["d/second"]),
    # Contents.
    "write": Changes(descriptor_call(lambda d: os.write(d, b"x")), both=["d/file", "e/target"]),
    "pwrite": Changes(descriptor_call(lambda d: os.pwrite(d, b"x", 9)), both=["d/file", "e/target"]),
    "writev": Changes(descriptor_call(lambda d: os.writev(d, [b"x", b"y"])), both=["d/file", "e/target"]),
    "write-nothing": Changes(descriptor_call(lambda d: os.write(d, b""))),
    "append": Changes(
        descriptor_call(lambda d: os.write(d, b"x"), os.O_WRONLY | os.O_APPEND), both=["d/file", "e/target"]
    ),
    "write-and-fsync": Changes(
        descriptor_call(lambda d: (os.write(d, b"x"), os.fsync(d))), both=["d/file", "e/target"]
    ),
    "shared-mapping": Changes(descriptor_call(mapped), both=["d/file", "e/target"]),
    "copy_file_range": Changes(descriptor_call(copied), both=["d/file", "e/target"]),
    "sendfile": Changes(descriptor_call(sent), both=["d/file", "e/target"]),
    "truncate-shorter": Changes(lambda: os.truncate("d/second", 1), both=["d/second"]),
    "truncate-longer": Changes(lambda: os.truncate("d/second", 99), both=["d/second"]),
    "ftruncate-shorter": Changes(descriptor_call(lambda d: os.ftruncate(d, 1)), both=["d/file", "e/target"]),
    "ftruncate-longer": Changes(descriptor_call(lambda d: os.ftruncate(d, 99)), both=["d/file", "e/target"]),
    "ftruncate-to-the-same": Changes(
        descriptor_call(lambda d: os.ftruncate(d, 8)), both=["d/file", "e/target"]
    ),
    "open-truncate": Changes(opened("d/second", os.O_WRONLY | os.O_TRUNC), both=["d/second"]),
    "open-truncate-what-is-empty": Changes(opened("e/other", os.O_WRONLY | os.O_TRUNC), both=["e/other"]),
    # What changes nothing.
    "open-for-reading": Changes(opened("d/second", os.O_RDONLY)),
    "open-for-writing": Changes(opened("d/second", os.O_WRONLY)),
    "open-or-create": Changes(opened("d/second", os.O_WRONLY | os.O_CREAT)),
    "stat": Changes(lambda: os.stat("d/second")),
    "access": Changes(lambda: libc.access("d/second", os.R_OK)),
    "chdir-and-list": Changes(lambda: os.listdir("d")),
    "readlink": Changes(lambda: os.readlink("d/link")),
    "seek": Changes(descriptor_call(lambda d: os.lseek(d, 5, os.SEEK_END))),
    "fsync": Changes(descriptor_call(os.fsync)),
    "read": Changes(descriptor_call(lambda d: os.read(d, 100))),
    "lock": Changes(descriptor_call(lambda d: os.lockf(d, os.F_LOCK, 1))),
    "omit-both": Changes(
        lambda: libc.utimensat("d/second", (0, libc.UTIME_OMIT), (0, libc.UTIME_OMIT))
    ),
}  # fmt: skip

FAILURES: dict[str, tuple[int, Callable[[], object]]] = {
    "creat": (errno.EEXIST, opened("d/second", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "mkdir": (errno.EEXIST, lambda: os.mkdir("d/inner")),
    "mkfifo": (errno.EEXIST, lambda: os.mkfifo("d/second")),
    "symlink": (errno.EEXIST, lambda: os.symlink("x", "d/second")),
    "link": (errno.EEXIST, lambda: os.link("d/second", "d/file")),
    "link-directory": (errno.EPERM, lambda: os.link("d/inner", "d/new")),
    "unlink-directory": (errno.EISDIR, lambda: os.unlink("d/inner")),
    "rmdir-full": (errno.ENOTEMPTY, lambda: os.rmdir("d/full")),
    "rmdir-file": (errno.ENOTDIR, lambda: os.rmdir("d/second")),
    "rename-over-full": (errno.ENOTEMPTY, lambda: os.rename("d/inner", "d/full")),
    "rename-over-directory": (errno.EISDIR, lambda: os.rename("d/second", "d/inner")),
    "rename-over-file": (errno.ENOTDIR, lambda: os.rename("d/inner", "d/second")),
    "rename-below-itself": (errno.EINVAL, lambda: os.rename("d/full", "d/full/x/y")),
    "rename-noreplace": (
        errno.EEXIST, lambda: libc.renameat2("d/second", "e/other", libc.RENAME_NOREPLACE)
    ),
    "exchange-with-nothing": (
        errno.ENOENT, lambda: libc.renameat2("d/second", "d/new", libc.RENAME_EXCHANGE)
    ),
    "truncate-negative": (errno.EINVAL, lambda: os.truncate("d/second", -1)),
    "truncate-directory": (errno.EISDIR, lambda: os.truncate("d/inner", 0)),
    "open-truncate-not-allowed": (
        errno.EACCES, lambda: ANNA.does(opened("d/second", os.O_WRONLY | os.O_TRUNC))
    ),
    "write-to-a-reader": (errno.EBADF, descriptor_call(lambda d: os.write(d, b"x"), os.O_RDONLY)),
    "truncate-a-reader": (errno.EINVAL, descriptor_call(lambda d: os.ftruncate(d, 0), os.O_RDONLY)),
    "creat-not-allowed": (errno.EACCES, lambda: ANNA.does(opened("d/new", os.O_CREAT | os.O_WRONLY))),
    "mkdir-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.mkdir("d/new"))),
    "symlink-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.symlink("x", "d/new"))),
    "unlink-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.unlink("d/second"))),
    "rmdir-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.rmdir("d/inner"))),
    "rename-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.rename("d/second", "d/new"))),
    "chmod-not-allowed": (errno.EPERM, lambda: ANNA.does(lambda: os.chmod("d/second", 0o777))),
    "chown-not-allowed": (errno.EPERM, lambda: ANNA.does(lambda: os.chown("d/second", ANNA.uid, -1))),
    "utime-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.utime("d/second"))),
    "truncate-not-allowed": (errno.EACCES, lambda: ANNA.does(lambda: os.truncate("d/second", 0))),
}  # fmt: skip


@pytest.fixture
def scene(here: Path) -> Path:
    """Two directories with one object of each sort that the calls need."""
    for directory in ("d", "e", "d/inner", "d/full", "d/full/x"):
        os.mkdir(directory)
    for file in ("d/file", "d/second"):
        write(file, b"contents")
    os.symlink("second", "d/link")
    os.link("d/file", "e/target")
    write("e/other", b"")
    let_time_pass(*OBJECTS)
    return here


Stamps = dict[int, tuple[int, int]]


def stamps() -> Stamps:
    """mtime and ctime of all there is, by inode: objects move about."""
    found = {}
    for directory in ("d", "e"):
        for name in (directory, *(f"{directory}/{entry}" for entry in os.listdir(directory))):
            status = os.lstat(name)
            found[status.st_ino] = (status.st_mtime_ns, status.st_ctime_ns)
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_changes(scene: Path, name: str) -> None:
    changes = CHANGES[name]
    inodes = {path: os.lstat(path).st_ino for path in OBJECTS}
    moved = [os.lstat(f"d/{entry}").st_ino for entry in ("second", "full")] if "rename" in name else []
    before = stamps()
    changes.call()
    after = stamps()
    for path, inode in inodes.items():
        if inode not in after:
            assert name.startswith(("unlink", "rmdir", "rename")), f"{path} is gone"
            continue
        new, old = after[inode], before[inode]
        if path in changes.both:
            assert new[0] > old[0] and new[1] > old[1], path
        elif path in changes.ctime:
            assert new[0] == old[0] and new[1] > old[1], path
        elif inode in moved:
            # POSIX leaves the ctime of what is renamed to the file system; the mtime is the contents'.
            assert new[0] == old[0], path
        else:
            assert new == old, path


@pytest.mark.parametrize("name", FAILURES)
def test_failures_change_nothing(scene: Path, name: str) -> None:
    number, call = FAILURES[name]
    before = stamps()
    refused(number, call)
    assert stamps() == before


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo", "socket"])
def test_rename_sets_the_ctime_of_what_it_moves(here: Path, kind: str) -> None:
    """Not asked for by POSIX, but ext4 does so, and backup programs go by it."""
    make("object", kind)
    let_time_pass("object")
    before = os.lstat("object")
    os.rename("object", "moved")
    after = os.lstat("moved")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo", "socket"])
def test_a_new_object_and_its_directory_have_the_time_of_now(here: Path, kind: str) -> None:
    os.mkdir("d")
    let_time_pass("d")
    before = os.stat("d").st_mtime_ns
    make("d/new", kind)
    status, directory = os.lstat("d/new"), os.stat("d")
    for stamp in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns, directory.st_mtime_ns):
        assert stamp > before
    assert directory.st_mtime_ns == directory.st_ctime_ns


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_the_removed_but_open(here: Path, kind: str) -> None:
    make("object", kind)
    descriptor = os.open("object", os.O_PATH | os.O_NOFOLLOW)
    let_time_pass("object")
    before = os.fstat(descriptor).st_ctime_ns
    remove("object", kind)
    assert not exists("object")
    assert os.fstat(descriptor).st_ctime_ns > before
    os.close(descriptor)


@pytest.mark.parametrize("through", ["write", "mapping"])
def test_mtime_set_by_utime_after_writing_stays(here: Path, through: str) -> None:
    write("file", bytes(10_000))
    descriptor = os.open("file", os.O_RDWR)
    if through == "write":
        os.pwrite(descriptor, b"x" * 5000, 3000)
    else:
        mapped(descriptor)
    os.utime(descriptor, ns=(5, 7))
    assert os.fstat(descriptor).st_mtime_ns == 7
    os.fsync(descriptor)
    os.close(descriptor)
    assert os.stat("file").st_mtime_ns == 7
