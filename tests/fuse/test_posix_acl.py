"""Access control lists as setfacl, getfacl and programs see them; first proven on the kernel's own."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.checks import NOBODY, as_nobody, make, refused
from tests.fuse.conftest import needs_root

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TEAM = 4711
pytestmark = needs_root("needs several users")


def setfacl(*arguments: str | Path) -> None:
    subprocess.run(["setfacl", *map(str, arguments)], check=True)


def getfacl(path: Path) -> list[str]:
    """The lines of numbers: access entries, then those that begin with `default:`."""
    text = subprocess.run(
        ["getfacl", "--omit-header", "--numeric", "--no-effective", "--absolute-names", str(path)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [line for line in text.splitlines() if line]


def permissions(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def shared(mountpoint: Path) -> Path:
    """A directory that hands rwx for NOBODY and group TEAM on."""
    directory = mountpoint / "shared"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    setfacl("-d", "-m", f"u::rwx,u:{NOBODY}:rwx,g::r-x,g:{TEAM}:rw-,m::rwx,o::---", directory)
    return directory


def test_a_list_sets_the_mode_and_is_kept(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    path.chmod(0o640)
    before = path.stat()
    time.sleep(0.02)
    setfacl("-m", f"u:{NOBODY}:rw-", path)
    assert getfacl(path) == ["user::rw-", f"user:{NOBODY}:rw-", "group::r--", "mask::rw-", "other::---"]
    after = path.stat()
    assert permissions(path) == "660"
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    assert ACCESS in os.listxattr(path)


def test_a_list_that_a_mode_can_say_is_a_mode(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    setfacl("-m", f"u:{NOBODY}:rw-", path)
    setfacl("--set", "u::rwx,g::r-x,o::--x", path)
    assert permissions(path) == "751"
    refused(errno.ENODATA, lambda: os.getxattr(path, ACCESS))
    assert ACCESS not in os.listxattr(path)


def test_chmod_changes_the_mask(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    setfacl("--set", f"u::rw-,u:{NOBODY}:rwx,g::r--,m::rwx,o::---", path)
    path.chmod(0o704)
    assert getfacl(path) == ["user::rwx", f"user:{NOBODY}:rwx", "group::r--", "mask::---", "other::r--"]
    path.chmod(0o4770)
    assert getfacl(path)[1:] == [f"user:{NOBODY}:rwx", "group::r--", "mask::rwx", "other::---"]
    assert path.stat().st_mode & stat.S_ISUID


def test_removing_lists(mountpoint: Path) -> None:
    path = mountpoint / "directory"
    path.mkdir()
    setfacl("-m", f"u:{NOBODY}:rwx,d:u:{NOBODY}:rwx", path)
    assert {ACCESS, DEFAULT} <= set(os.listxattr(path))
    mode = permissions(path)
    os.removexattr(path, ACCESS)
    assert permissions(path) == mode
    setfacl("-k", path)
    assert not {ACCESS, DEFAULT} & set(os.listxattr(path))
    for name in (ACCESS, DEFAULT):
        refused(errno.ENODATA, lambda name=name: os.getxattr(path, name))  # type: ignore[misc]
    setfacl("-m", f"u:{NOBODY}:rwx", path)
    setfacl("-b", path)
    assert len(getfacl(path)) == 3


def test_default_lists_are_for_directories(mountpoint: Path) -> None:
    make(mountpoint / "file", "file")
    make(mountpoint / "directory", "directory")
    make(mountpoint / "symlink", "symlink")
    setfacl("-d", "-m", f"u:{NOBODY}:rwx", mountpoint / "directory")
    value = os.getxattr(mountpoint / "directory", DEFAULT)
    refused(errno.EACCES, lambda: os.setxattr(mountpoint / "file", DEFAULT, value))
    refused(
        errno.EOPNOTSUPP,
        lambda: os.setxattr(mountpoint / "symlink", ACCESS, value, follow_symlinks=False),
    )


def entry(tag: int, bits: int, qualifier: int = 0xFFFF_FFFF) -> bytes:
    return tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + qualifier.to_bytes(4, "little")


VERSION = b"\2\0\0\0"


@pytest.mark.parametrize(
    "value",
    [
        VERSION + entry(1, 6) + entry(4, 4) + entry(0x20, 4)[:-1],
        VERSION + entry(1, 6) + entry(4, 4),
        VERSION + entry(4, 4) + entry(1, 6) + entry(0x20, 4),
        VERSION + entry(1, 6) + entry(2, 6, 1) + entry(4, 4) + entry(0x20, 4),
        VERSION + entry(1, 6) + entry(4, 4) + entry(0x40, 4),
        VERSION + entry(1, 15) + entry(4, 4) + entry(0x20, 4),
    ],
)
def test_malformed_lists(mountpoint: Path, value: bytes) -> None:
    path = mountpoint / "file"
    path.touch()
    refused(errno.EINVAL, lambda: os.setxattr(path, ACCESS, value))
    refused(errno.EOPNOTSUPP, lambda: os.setxattr(path, ACCESS, b"\1" + value[1:]))
    assert len(getfacl(path)) == 3


def test_a_long_list(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    users = b"".join(entry(2, 6, 10_000 + number) for number in range(100))
    value = VERSION + entry(1, 6) + users + entry(4, 4) + entry(0x10, 6) + entry(0x20, 0)
    os.setxattr(path, ACCESS, value)
    assert os.getxattr(path, ACCESS) == value


def test_the_kernel_checks_lists(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"x")
    path.chmod(0o600)
    assert as_nobody("open(path)", path) == errno.EACCES
    setfacl("-m", f"u:{NOBODY}:r--", path)
    assert as_nobody("open(path).read()", path) == 0
    assert as_nobody("open(path, 'r+')", path) == errno.EACCES
    assert as_nobody("open(path).read()", path) == 0
    path.chmod(0o600)  # the mask
    assert as_nobody("open(path)", path) == errno.EACCES
    path.chmod(0o666)
    setfacl("-m", f"u:{NOBODY}:---,m::rw-", path)
    assert as_nobody("open(path)", path) == errno.EACCES
    assert as_nobody(f"os.removexattr(path, {ACCESS!r})", path) == errno.EPERM


def test_files_inherit(shared: Path) -> None:
    inherited = [
        "user::rw-", f"user:{NOBODY}:rwx", "group::r-x", f"group:{TEAM}:rw-", "mask::rw-", "other::---",
    ]  # fmt: skip
    with umask(0o077):
        (shared / "file").touch()
        os.mkfifo(shared / "fifo")
        os.mknod(shared / "node", stat.S_IFREG | 0o666)
    for name in ("file", "fifo", "node"):
        assert getfacl(shared / name) == inherited
        assert permissions(shared / name) == "660"
    assert as_nobody("open(path, 'w')", shared / "file") == 0


def test_directories_inherit_both(shared: Path) -> None:
    default = [line for line in getfacl(shared) if line.startswith("default:")]
    with umask(0o077):
        os.makedirs(shared / "one" / "two")
    for path in (shared / "one", shared / "one" / "two"):
        assert permissions(path) == "770"
        assert [line for line in getfacl(path) if line.startswith("default:")] == default
    (shared / "one" / "two" / "file").touch()
    assert f"user:{NOBODY}:rwx" in getfacl(shared / "one" / "two" / "file")


def test_a_private_file_stays_private(shared: Path) -> None:
    descriptor = os.open(shared / "secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    assert permissions(shared / "secret") == "600"
    assert "mask::---" in getfacl(shared / "secret")
    assert as_nobody("open(path)", shared / "secret") == errno.EACCES


def test_a_default_list_that_a_mode_can_say(mountpoint: Path) -> None:
    directory = mountpoint / "directory"
    directory.mkdir()
    setfacl("-d", "--set", "u::rwx,g::rwx,o::r--", directory)
    with umask(0o077):
        (directory / "file").touch()
    assert permissions(directory / "file") == "664"
    assert ACCESS not in os.listxattr(directory / "file")


def test_symlinks_and_other_names_inherit_nothing(mountpoint: Path, shared: Path) -> None:
    (shared / "symlink").symlink_to("x")
    assert (shared / "symlink").lstat().st_mode == stat.S_IFLNK | 0o777
    assert not [name for name in os.listxattr(shared / "symlink", follow_symlinks=False) if "posix" in name]
    (mountpoint / "file").touch()
    os.link(mountpoint / "file", shared / "link")
    (mountpoint / "moved").touch()
    (mountpoint / "moved").rename(shared / "moved")
    for name in ("link", "moved"):
        assert ACCESS not in os.listxattr(shared / name)


def test_the_umask_counts_elsewhere(mountpoint: Path) -> None:
    with umask(0o027):
        (mountpoint / "file").touch()
        (mountpoint / "directory").mkdir()
        os.mkfifo(mountpoint / "fifo")
        with socket.socket(socket.AF_UNIX) as server:
            at = os.open(mountpoint, os.O_PATH)
            server.bind(f"/proc/self/fd/{at}/socket")
            os.close(at)
    expected = {"file": "640", "directory": "750", "fifo": "640", "socket": "750"}
    assert {name: permissions(mountpoint / name) for name in expected} == expected
    with umask(0):
        (mountpoint / "open").touch()
    assert permissions(mountpoint / "open") == "666"


@pytest.mark.parametrize(("group", "kept"), [(NOBODY, True), (TEAM, False)])
def test_a_stranger_to_the_group_loses_setgid(mountpoint: Path, group: int, kept: bool) -> None:
    path = mountpoint / "file"
    path.touch()
    os.chown(path, NOBODY, group)
    path.chmod(0o2770)
    value = VERSION + entry(1, 7) + entry(2, 7, 1) + entry(4, 7) + entry(0x10, 7) + entry(0x20, 0)
    assert as_nobody(f"os.setxattr(path, {ACCESS!r}, {value!r})", path) == 0
    assert bool(path.stat().st_mode & stat.S_ISGID) == kept
    path.chmod(0o2770)
    setfacl("-m", "u:1:r--", path)  # root may
    assert path.stat().st_mode & stat.S_ISGID


def test_a_supplementary_group_keeps_setgid(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    os.chown(path, NOBODY, TEAM)
    path.chmod(0o2770)
    subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={TEAM}",
         "setfacl", "-m", "u:1:r--", path.name],
        cwd=mountpoint, check=True,
    )  # fmt: skip
    assert path.stat().st_mode & stat.S_ISGID


def test_copies_keep_lists(mountpoint: Path, shared: Path) -> None:
    (shared / "file").write_bytes(b"x")
    (shared / "inner").mkdir()
    subprocess.run(["cp", "-a", str(shared), str(mountpoint / "copy")], check=True)
    for name in (".", "file", "inner"):
        assert getfacl(mountpoint / "copy" / name) == getfacl(shared / name)
