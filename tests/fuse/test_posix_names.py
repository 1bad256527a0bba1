"""What programs may expect of names, links and directories; first proven on the kernel's own filesystem."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import KINDS, make, refused
from tests.fuse.conftest import needs_root
from tests.fuse.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, open_listing, renameat2

ENTRIES = 10_000


def test_unlink_while_open(mountpoint: Path) -> None:
    path = mountpoint / "file"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"a" * 10_000)
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"b" * 10)
        assert os.pread(file.fileno(), 20, 9995) == b"a" * 5 + b"b" * 10
        os.ftruncate(file.fileno(), 5)
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 5
        os.fchmod(file.fileno(), 0o600)
        path.write_bytes(b"another")
    assert path.read_bytes() == b"another"


def test_removing(mountpoint: Path) -> None:
    (mountpoint / "file").touch()
    (mountpoint / "directory").mkdir()
    (mountpoint / "directory" / "inner").touch()
    refused(errno.ENOTEMPTY, lambda: os.rmdir(mountpoint / "directory"))
    refused(errno.ENOTDIR, lambda: os.rmdir(mountpoint / "file"))
    refused(errno.EISDIR, lambda: os.unlink(mountpoint / "directory"))
    refused(errno.ENOENT, lambda: os.unlink(mountpoint / "absent"))
    refused(errno.EINVAL, lambda: os.rmdir(os.fsencode(mountpoint / "directory") + b"/."))
    os.unlink(mountpoint / "directory" / "inner")
    os.rmdir(mountpoint / "directory")
    os.unlink(mountpoint / "file")
    assert os.listdir(mountpoint) == []


def test_a_directory_removed_while_open(mountpoint: Path) -> None:
    (mountpoint / "directory").mkdir()
    descriptor = os.open(mountpoint / "directory", os.O_RDONLY)
    os.rmdir(mountpoint / "directory")
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    refused(errno.ENOENT, lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def look(path: Path) -> object:
    """What is there, as a value."""
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return sorted(os.listdir(path))
    return path.read_bytes() if path.exists() else None


def expected_errno(source: str, target: str, flags: int) -> int:
    """What rename(2) says, 0 for success."""
    directories = ("directory", "full")
    if source == "absent":
        return errno.ENOENT
    if flags == RENAME_EXCHANGE:
        return errno.ENOENT if target == "absent" else 0
    if target == "absent":
        return 0
    if flags == RENAME_NOREPLACE:
        return errno.EEXIST
    if source in directories:
        return {"file": errno.ENOTDIR, "symlink": errno.ENOTDIR, "full": errno.ENOTEMPTY}.get(target, 0)
    return errno.EISDIR if target in directories else 0


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
@pytest.mark.parametrize("across", [False, True], ids=["within", "across"])
@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_rename(mountpoint: Path, source_kind: str, target_kind: str, across: bool, flags: int) -> None:
    source_parent, target_parent = mountpoint / "a", mountpoint / ("b" if across else "a")
    source_parent.mkdir()
    target_parent.mkdir(exist_ok=True)
    source, target = source_parent / "source", target_parent / "target"
    make(source, source_kind)
    make(target, target_kind)
    before = look(source), look(target)
    number = expected_errno(source_kind, target_kind, flags)
    if number:
        refused(number, lambda: renameat2(source, target, flags))
        assert (look(source), look(target)) == before
    else:
        renameat2(source, target, flags)
        after = (before[1], before[0]) if flags == RENAME_EXCHANGE else (None, before[0])
        assert (look(source), look(target)) == after
    for parent in {source_parent, target_parent}:
        children = [parent / name for name in os.listdir(parent)]
        directories = sum(child.is_dir() and not child.is_symlink() for child in children)
        assert parent.stat().st_nlink == 2 + directories
        for child in children:
            if child.is_dir() and not child.is_symlink():
                assert os.stat(child / "..").st_ino == parent.stat().st_ino


def test_rename_into_oneself(mountpoint: Path) -> None:
    (mountpoint / "a" / "b").mkdir(parents=True)
    refused(errno.EINVAL, lambda: os.rename(mountpoint / "a", mountpoint / "a" / "b" / "c"))
    refused(errno.ENOTEMPTY, lambda: os.rename(mountpoint / "a" / "b", mountpoint / "a"))
    refused(errno.EINVAL, lambda: renameat2(mountpoint / "a", mountpoint / "a" / "b", RENAME_EXCHANGE))
    os.rename(mountpoint / "a", mountpoint / "a")
    assert (mountpoint / "a" / "b").is_dir()


def test_rename_to_another_name_of_the_same_file(mountpoint: Path) -> None:
    (mountpoint / "a").write_bytes(b"x")
    os.link(mountpoint / "a", mountpoint / "b")
    os.rename(mountpoint / "a", mountpoint / "b")
    assert sorted(os.listdir(mountpoint)) == ["a", "b"]


def test_save_by_rename(mountpoint: Path) -> None:
    path = mountpoint / "document"
    path.write_bytes(b"old")
    for number in range(20):
        temporary = mountpoint / ".document.tmp"
        temporary.write_bytes(b"new %d" % number)
        temporary.replace(path)
        assert path.read_bytes() == b"new %d" % number
    assert os.listdir(mountpoint) == ["document"]


def test_an_open_file_follows_its_new_name(mountpoint: Path) -> None:
    with open(mountpoint / "old", "wb", buffering=0) as file:
        file.write(b"a")
        os.rename(mountpoint / "old", mountpoint / "new")
        file.write(b"b")
    assert (mountpoint / "new").read_bytes() == b"ab"


def test_hard_links(mountpoint: Path) -> None:
    one, two = mountpoint / "one", mountpoint / "two"
    one.write_bytes(b"a")
    os.link(one, two)
    assert one.stat() == two.stat()
    assert one.stat().st_nlink == 2
    with open(two, "ab") as file:
        file.write(b"b")
    assert one.read_bytes() == b"ab"
    one.unlink()
    assert two.stat().st_nlink == 1
    assert two.read_bytes() == b"ab"
    (mountpoint / "directory").mkdir()
    refused(errno.EEXIST, lambda: os.link(two, mountpoint / "directory"))
    refused(errno.EPERM, lambda: os.link(mountpoint / "directory", mountpoint / "other"))
    (mountpoint / "symlink").symlink_to("two")
    os.link(mountpoint / "symlink", mountpoint / "symlink2", follow_symlinks=False)
    assert (mountpoint / "symlink2").lstat().st_nlink == 2


@pytest.mark.parametrize("target", ["x", "../relative/path", "/absolute", "ä" * 100, "x" * 4095])
def test_symbolic_links(mountpoint: Path, target: str) -> None:
    path = mountpoint / "link"
    path.symlink_to(target)
    assert os.readlink(path) == target
    status = path.lstat()
    assert stat.S_ISLNK(status.st_mode)
    assert status.st_size == len(os.fsencode(target))
    refused(errno.EINVAL, lambda: os.readlink(mountpoint))


def test_too_long_a_target(mountpoint: Path) -> None:
    refused(errno.ENAMETOOLONG, lambda: os.symlink("x" * 4096, mountpoint / "link"))


def test_loops_of_links(mountpoint: Path) -> None:
    (mountpoint / "a").symlink_to("b")
    (mountpoint / "b").symlink_to("a")
    refused(errno.ELOOP, lambda: os.stat(mountpoint / "a"))


def test_names(mountpoint: Path) -> None:
    names = [b"x" * 255, b"\xff\xfe", "ä ö\n\t\\".encode(), b"-", b"...", b" ", b"\x01", b"A", b"a"]
    for name in names:
        Path(os.fsdecode(os.fsencode(mountpoint) + b"/" + name)).touch()
    assert sorted(os.listdir(os.fsencode(mountpoint))) == sorted(names)
    for call in (os.mkdir, os.unlink, os.rmdir, os.stat):
        refused(errno.ENAMETOOLONG, lambda call=call: call(mountpoint / ("x" * 256)))  # type: ignore[misc]
    refused(errno.ENAMETOOLONG, lambda: os.rename(mountpoint / "a", mountpoint / ("x" * 256)))


def test_errors_on_paths(mountpoint: Path) -> None:
    (mountpoint / "file").touch()
    refused(errno.ENOTDIR, lambda: os.stat(mountpoint / "file" / "x"))
    refused(errno.ENOTDIR, lambda: os.listdir(mountpoint / "file"))
    refused(errno.ENOENT, lambda: os.mkdir(mountpoint / "absent" / "x"))
    refused(errno.EEXIST, lambda: os.mkdir(mountpoint / "file"))
    refused(errno.EISDIR, lambda: os.open(mountpoint, os.O_RDWR))


def test_link_counts_of_directories(mountpoint: Path) -> None:
    assert mountpoint.stat().st_nlink == 2
    for number in range(5):
        (mountpoint / f"{number}").mkdir()
    (mountpoint / "file").touch()
    assert mountpoint.stat().st_nlink == 7
    assert (mountpoint / "0").stat().st_nlink == 2
    (mountpoint / "0").rmdir()
    assert mountpoint.stat().st_nlink == 6
    (mountpoint / "1").rename(mountpoint / "2" / "inner")
    assert mountpoint.stat().st_nlink == 5
    assert (mountpoint / "2").stat().st_nlink == 3


def test_changes_inside_set_the_times_of_a_directory(mountpoint: Path) -> None:
    changes: list[Callable[[], object]] = [
        lambda: (mountpoint / "a").touch(),
        lambda: os.link(mountpoint / "a", mountpoint / "b"),
        lambda: os.rename(mountpoint / "b", mountpoint / "c"),
        lambda: os.unlink(mountpoint / "c"),
        lambda: os.mkdir(mountpoint / "d"),
        lambda: os.rmdir(mountpoint / "d"),
        lambda: os.symlink("x", mountpoint / "s"),
    ]
    for change in changes:
        os.utime(mountpoint, ns=(1, 1))
        change()
        assert mountpoint.stat().st_mtime_ns > 1


@needs_root("device nodes are root's to make")
def test_special_files(mountpoint: Path) -> None:
    device = os.makedev(1, 3)
    os.mknod(mountpoint / "null", stat.S_IFCHR | 0o600, device)
    os.mknod(mountpoint / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mknod(mountpoint / "regular", stat.S_IFREG | 0o600)
    status = (mountpoint / "null").stat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == device
    status = (mountpoint / "block").stat()
    assert stat.S_ISBLK(status.st_mode)
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (259, 70_000)
    assert (mountpoint / "regular").read_bytes() == b""


def test_fifo(mountpoint: Path) -> None:
    path = mountpoint / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"through the kernel")
    assert os.read(reader, 100) == b"through the kernel"
    os.close(reader)
    os.close(writer)
    assert path.stat().st_size == 0


def test_socket(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mountpoint)  # the path of a socket is limited to 107 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        assert stat.S_ISSOCK((mountpoint / "socket").stat().st_mode)
        server.listen()
        client.connect("socket")


def test_a_large_directory(mountpoint: Path) -> None:
    names = {b"entry-%05d" % number for number in range(ENTRIES)}
    root = os.fsencode(mountpoint) + b"/"
    for name in names:
        os.mknod(root + name, stat.S_IFREG | 0o600)
    with open_listing(mountpoint) as listing:
        positions: list[int] = []
        order: list[bytes] = []
        while True:
            positions.append(listing.tell())
            entry = listing.next()
            if entry is None:
                break
            order.append(entry[0])
        assert len(order) == ENTRIES + 2
        assert set(order) == names | {b".", b".."}
        for index in (0, 1, 2, 3, 100, 5000, ENTRIES + 1, ENTRIES + 2):
            listing.seek(positions[index])
            assert listing.rest() == order[index:]
        # What was there all the time is listed exactly once, whatever else comes and goes.
        removed = set(order[10::3]) - {b".", b".."}
        for name in removed:
            os.unlink(root + name)
        listing.seek(positions[5000])
        kept = [name for name in order[5000:] if name not in removed]
        assert listing.rest() == kept
    assert set(os.listdir(os.fsencode(mountpoint))) == names - removed


def test_removing_while_listing(mountpoint: Path) -> None:
    for number in range(1000):
        (mountpoint / f"{number}").touch()
    with os.scandir(mountpoint) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(mountpoint) == []
