"""Extended attributes: namespaces, limits, sizes; first proven on the kernel's own filesystem."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.fuse.checks import as_nobody, refused
from tests.fuse.conftest import needs_root
from tests.fuse.libc import getxattr_size, listxattr_size

LIST_MAX = VALUE_MAX = 64 * 1024


@pytest.mark.parametrize("namespace", ["user", "trusted", "security"])
@pytest.mark.parametrize("kind", ["file", "directory"])
@needs_root("trusted.* and security.* are root's")
def test_namespaces(mountpoint: Path, namespace: str, kind: str) -> None:
    path = mountpoint / kind
    path.mkdir() if kind == "directory" else path.touch()
    name = f"{namespace}.name"
    os.setxattr(path, name, b"value")
    assert os.getxattr(path, name) == b"value"
    assert name in os.listxattr(path)
    os.removexattr(path, name)
    refused(errno.ENODATA, lambda: os.getxattr(path, name))


def test_what_is_no_namespace(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    for name in ("system.other", "nonsense.name", "user", "name"):
        refused(errno.EOPNOTSUPP, lambda name=name: os.setxattr(path, name, b"x"))  # type: ignore[misc]
        refused(errno.EOPNOTSUPP, lambda name=name: os.getxattr(path, name))  # type: ignore[misc]
    refused(errno.EINVAL, lambda: os.setxattr(path, "user.", b"x"))


def test_user_attributes_are_for_files_and_directories(mountpoint: Path) -> None:
    (mountpoint / "symlink").symlink_to("x")
    os.mkfifo(mountpoint / "fifo")
    for name in ("symlink", "fifo"):
        path = mountpoint / name
        refused(errno.EPERM, lambda path=path: os.setxattr(path, "user.a", b"", follow_symlinks=False))  # type: ignore[misc]
        refused(errno.ENODATA, lambda path=path: os.getxattr(path, "user.a", follow_symlinks=False))  # type: ignore[misc]


@needs_root("trusted.* is root's")
def test_trusted_attributes_of_symlinks(mountpoint: Path) -> None:
    path = mountpoint / "symlink"
    path.symlink_to("x")
    os.setxattr(path, "trusted.a", b"x", follow_symlinks=False)
    assert "trusted.a" in os.listxattr(path, follow_symlinks=False)


@needs_root("needs two users")
def test_permissions(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    path.chmod(0o644)
    os.setxattr(path, "trusted.t", b"x")
    os.setxattr(path, "user.u", b"x")
    assert as_nobody("os.getxattr(path, 'user.u')", path) == 0
    assert as_nobody("os.getxattr(path, 'trusted.t')", path) == errno.ENODATA
    assert as_nobody("os.setxattr(path, 'user.u', b'')", path) == errno.EACCES
    assert as_nobody("os.removexattr(path, 'user.u')", path) == errno.EACCES
    assert as_nobody("os.setxattr(path, 'security.s', b'')", path) == errno.EPERM
    assert as_nobody("sys.exit(os.listxattr(path) != ['user.u'])", path) == 0


def test_create_and_replace(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    refused(errno.ENODATA, lambda: os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE))
    os.setxattr(path, "user.a", b"", os.XATTR_CREATE)
    refused(errno.EEXIST, lambda: os.setxattr(path, "user.a", b"2", os.XATTR_CREATE))
    assert os.getxattr(path, "user.a") == b""
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


def test_sizes_can_be_asked_for(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    os.setxattr(path, "user.a", b"v" * 100)
    os.setxattr(path, "user.empty", b"")
    assert [getxattr_size(path, "user.a", size) for size in (0, 100, 101)] == [100, 100, 100]
    assert [getxattr_size(path, "user.empty", size) for size in (0, 1)] == [0, 0]
    refused(errno.ERANGE, lambda: getxattr_size(path, "user.a", 99))
    length = len("user.a\0user.empty\0")
    assert [listxattr_size(path, size) for size in (0, length)] == [length, length]
    refused(errno.ERANGE, lambda: listxattr_size(path, length - 1))


def test_a_change_sets_ctime_only(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    for change in (
        lambda: os.setxattr(path, "user.a", b"x"),
        lambda: os.removexattr(path, "user.a"),
    ):
        before = path.stat()
        time.sleep(0.02)
        change()
        after = path.stat()
        assert after.st_ctime_ns > before.st_ctime_ns
        assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)


def test_names_end_before_they_cannot_be_listed(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    names: list[str] = []
    with_end = 0
    while True:
        name = f"user.{len(names):03}" + "n" * 247
        try:
            os.setxattr(path, name, b"")
        except OSError as error:
            assert error.errno == errno.ENOSPC
            break
        names.append(name)
        with_end += len(name) + 1
    assert with_end <= LIST_MAX
    assert [name for name in os.listxattr(path) if name.startswith("user.")] == names
    os.setxattr(path, names[0], b"replaced", os.XATTR_REPLACE)
    os.removexattr(path, names.pop())
    os.setxattr(path, "user.again", b"")


def test_the_largest_value(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    refused(errno.E2BIG, lambda: os.setxattr(path, "user.a", b"v" * (VALUE_MAX + 1)))
    try:
        os.setxattr(path, "user.a", b"v" * VALUE_MAX)
    except OSError as error:
        # ext4 keeps attributes in one block.
        assert error.errno == errno.ENOSPC and "ext4" in str(mountpoint)
    else:
        assert os.getxattr(path, "user.a") == b"v" * VALUE_MAX
