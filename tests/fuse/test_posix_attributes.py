"""What programs may expect of attributes and the whole filesystem; first proven on the kernel's own."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.fuse.checks import MIB, NOBODY, as_nobody, make, pattern, refused
from tests.fuse.conftest import needs_root

ENTRIES = 10_000


def test_chmod(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    (mountpoint / "directory").mkdir()
    for mode in (0o000, 0o777, 0o644):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_ISREG(path.stat().st_mode)
    (mountpoint / "directory").chmod(0o1777)
    assert (mountpoint / "directory").stat().st_mode == stat.S_IFDIR | 0o1777


@needs_root("only root gives files away")
def test_chown(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    os.chown(path, 1234, 5678)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
    os.chown(path, -1, 9)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 9)
    os.chown(path, 0xFFFFFFFE, -1)
    assert path.stat().st_uid == 0xFFFFFFFE
    (mountpoint / "link").symlink_to("file")
    os.lchown(mountpoint / "link", 77, 88)
    assert (mountpoint / "link").lstat().st_uid == 77


@needs_root("needs two users")
def test_setuid_is_lost_when_another_writes_or_owns_it(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"x")
    path.chmod(0o6777)
    assert as_nobody("open(path, 'ab', buffering=0).write(b'y')", path) == 0
    assert path.stat().st_mode & 0o6000 == 0
    path.chmod(0o6777)
    assert as_nobody("os.truncate(path, 0)", path) == 0
    assert path.stat().st_mode & 0o6000 == 0
    path.chmod(0o6777)
    os.chown(path, 1, 1)
    assert path.stat().st_mode & 0o6000 == 0


@needs_root("needs two users")
def test_permissions(mountpoint: Path) -> None:
    mountpoint.chmod(0o755)
    secret = mountpoint / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    assert as_nobody("open(path)", secret) == errno.EACCES
    assert as_nobody("os.unlink(path)", secret) == errno.EACCES
    assert as_nobody("os.mkdir(path)", mountpoint / "new") == errno.EACCES
    assert as_nobody("os.chmod(path, 0o777)", secret) == errno.EPERM
    secret.chmod(0o644)
    assert as_nobody("open(path).read()", secret) == 0
    shared = mountpoint / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "mine").touch()
    assert as_nobody("os.unlink(path)", shared / "mine") == errno.EPERM
    assert as_nobody("open(path, 'w')", shared / "theirs") == 0
    assert (shared / "theirs").stat().st_uid == NOBODY


@needs_root("needs two groups")
def test_a_setgid_directory_hands_its_group_on(mountpoint: Path) -> None:
    directory = mountpoint / "directory"
    directory.mkdir()
    os.chown(directory, -1, 4321)
    directory.chmod(0o2775)
    (directory / "file").touch()
    (directory / "inner").mkdir()
    assert (directory / "file").stat().st_gid == 4321
    assert (directory / "inner").stat().st_gid == 4321
    assert (directory / "inner").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize(
    ("atime_ns", "mtime_ns"),
    [
        (0, 0),
        (1, 999_999_999),
        (1_700_000_000_123_456_789, 1_700_000_000_987_654_321),
        (-1, -1),
        (-1_500_000_000, -2_000_000_000),
        (2**32 * 10**9 + 5, 2**33 * 10**9 + 7),
    ],
)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_times_to_the_nanosecond(mountpoint: Path, kind: str, atime_ns: int, mtime_ns: int) -> None:
    path = mountpoint / kind
    make(path, kind)
    before = path.lstat().st_ctime_ns
    os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    status = path.lstat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (atime_ns, mtime_ns)
    assert before <= status.st_ctime_ns <= time.time_ns()


def test_times_set_on_a_file_just_written_stay(mountpoint: Path) -> None:
    path = mountpoint / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"x" * 10_000)
        os.utime(file.fileno(), ns=(5, 7))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (7, 10_000)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    assert path.stat().st_mtime_ns == 7


def test_writing_sets_mtime_and_chmod_sets_ctime(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    os.utime(path, ns=(1, 1))
    with open(path, "ab") as file:
        file.write(b"x")
    assert path.stat().st_mtime_ns > 1
    before = path.stat()
    time.sleep(0.02)
    path.chmod(0o600)
    after = path.stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_extended_attributes(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    assert [name for name in os.listxattr(path) if name.startswith("user.")] == []
    os.setxattr(path, "user.a", b"value \0 with zero")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.large", b"v" * 2000)
    assert os.getxattr(path, "user.a") == b"value \0 with zero"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.large") == b"v" * 2000
    assert sorted(os.listxattr(path)) == ["user.a", "user.empty", "user.large"]
    refused(errno.EEXIST, lambda: os.setxattr(path, "user.a", b"", os.XATTR_CREATE))
    refused(errno.ENODATA, lambda: os.setxattr(path, "user.absent", b"", os.XATTR_REPLACE))
    os.setxattr(path, "user.a", b"new", os.XATTR_REPLACE)
    os.setxattr(path, "user.b", b"created", os.XATTR_CREATE)
    assert (os.getxattr(path, "user.a"), os.getxattr(path, "user.b")) == (b"new", b"created")
    os.removexattr(path, "user.a")
    refused(errno.ENODATA, lambda: os.getxattr(path, "user.a"))
    refused(errno.ENODATA, lambda: os.removexattr(path, "user.a"))
    assert sorted(os.listxattr(path)) == ["user.b", "user.empty", "user.large"]


def test_extended_attributes_of_directories_and_names_of_them(mountpoint: Path) -> None:
    os.setxattr(mountpoint, "user.on-directory", b"x")
    assert os.getxattr(mountpoint, "user.on-directory") == b"x"
    longest = "user." + "n" * 250
    os.setxattr(mountpoint, longest, b"x")
    assert longest in os.listxattr(mountpoint)
    refused(errno.ERANGE, lambda: os.setxattr(mountpoint, longest + "n", b"x"))
    refused(errno.E2BIG, lambda: os.setxattr(mountpoint, "user.x", b"v" * 65537))
    refused(errno.EOPNOTSUPP, lambda: os.setxattr(mountpoint, "nonsense.x", b"x"))


@needs_root("trusted.* is root's")
def test_privileged_namespaces(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    mountpoint.chmod(0o755)
    path.chmod(0o666)
    os.setxattr(path, "trusted.t", b"x")
    os.setxattr(path, "user.u", b"y")
    assert os.getxattr(path, "trusted.t") == b"x"
    assert {"trusted.t", "user.u"} <= set(os.listxattr(path))
    assert as_nobody("sys.exit(0 if os.listxattr(path) == ['user.u'] else 1)", path) == 0
    assert as_nobody("os.setxattr(path, 'trusted.x', b'x')", path) == errno.EPERM


def test_statvfs(mountpoint: Path) -> None:
    space = os.statvfs(mountpoint)
    assert space.f_namemax == 255
    assert 512 <= space.f_frsize <= MIB
    assert space.f_blocks >= space.f_bfree >= space.f_bavail > 0
    assert space.f_files >= space.f_ffree > 0


def test_syncfs(mountpoint: Path) -> None:
    (mountpoint / "file").write_bytes(b"x")
    descriptor = os.open(mountpoint, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syncfs(descriptor) == 0
    os.close(descriptor)


def test_concurrent_writers_of_one_file(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    block = 10_007

    def write(number: int) -> None:
        with open(path, "r+b", buffering=0) as file:
            for index in range(number, 80, 4):
                os.pwrite(file.fileno(), bytes([index]) * block, index * block)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == b"".join(bytes([index]) * block for index in range(80))


def test_a_tree_copied_and_removed(mountpoint: Path) -> None:
    source = mountpoint / "source"
    for number in range(50):
        directory = source / f"{number % 7}" / f"{number}"
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(pattern(number * 997)[: number * 997])
        (directory / "link").symlink_to("file")
    subprocess.run(["cp", "-a", str(source), str(mountpoint / "copy")], check=True)
    subprocess.run(["diff", "-r", str(source), str(mountpoint / "copy")], check=True)
    subprocess.run(["rm", "-r", str(source)], check=True)
    assert sorted(os.listdir(mountpoint)) == ["copy"]
