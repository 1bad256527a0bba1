"""The handlers without a kernel: reference counts, fast paths, and what no system call can provoke."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest
from pyfuse3 import ROOT_INODE, FUSEError, RequestContext

from mirrorfs.errors import DiskError, NoSpaceLeft
from mirrorfs.fuse.operations import MirrorOperations
from scripts.null_filesystem import NullFileSystem

CONTEXT: Any = RequestContext()
FILE_MODE: Any = stat.S_IFREG | 0o644


class Engine(NullFileSystem):
    """The null filesystem, which notes what it is told and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[int] = []
        self.fails: dict[str, Exception] = {}
        self.asked_for_xattr = 0

    def _maybe_fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def forgotten(self, inode: int) -> None:
        self.gone.append(inode)
        self._maybe_fail("forgotten")

    def opened(self, inode: int, *, writable: bool) -> None:
        self._maybe_fail("opened")

    def released(self, inode: int, *, writable: bool) -> None:
        self._maybe_fail("released")

    def getxattr(self, inode: int, name: bytes) -> bytes:
        self.asked_for_xattr += 1
        return super().getxattr(inode, name)


class Mount:
    """An engine and the handlers over it."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.unexpected: list[Exception] = []
        self.operations: Any = MirrorOperations(self.engine, on_unexpected=self.unexpected.append)

    async def create(self, name: bytes, flags: int = os.O_RDWR) -> tuple[int, int]:
        """(handle, inode)"""
        info, entry = await self.operations.create(ROOT_INODE, name, FILE_MODE, flags, CONTEXT)
        return info.fh, entry.st_ino


@pytest.fixture
def mount() -> Mount:
    return Mount()


async def test_release_then_forget(mount: Mount) -> None:
    handle, inode = await mount.create(b"a")
    await mount.operations.release(handle)
    assert mount.engine.gone == []
    await mount.operations.forget([(inode, 1)])
    assert mount.engine.gone == [inode]


async def test_forget_then_release(mount: Mount) -> None:
    handle, inode = await mount.create(b"a")
    await mount.operations.forget([(inode, 1)])
    assert mount.engine.gone == []
    await mount.operations.release(handle)
    assert mount.engine.gone == [inode]


async def test_every_entry_sent_counts_and_the_last_forget_ends_it(mount: Mount) -> None:
    handle, inode = await mount.create(b"a")
    await mount.operations.lookup(ROOT_INODE, b"a", CONTEXT)
    await mount.operations.link(inode, ROOT_INODE, b"b", CONTEXT)
    await mount.operations.release(handle)
    second = await mount.operations.open(inode, os.O_RDONLY, CONTEXT)
    await mount.operations.getattr(inode, CONTEXT)  # carries no entry
    await mount.operations.forget([(inode, 2)])
    await mount.operations.forget([(inode, 1)])
    assert mount.engine.gone == []
    await mount.operations.release(second.fh)
    assert mount.engine.gone == [inode]
    assert (mount.operations.references.lookups, mount.operations.references.opens) == ({}, {})


async def test_the_root_is_never_gone(mount: Mount) -> None:
    await mount.operations.lookup(ROOT_INODE, b".", CONTEXT)
    await mount.operations.forget([(ROOT_INODE, 1)])
    assert mount.engine.gone == []


async def test_what_was_removed_is_not_found_by_its_number_before_its_forget(mount: Mount) -> None:
    # The kernel had dropped the inode, was then asked for a file handle of it, and sent this LOOKUP first.
    handle, inode = await mount.create(b"a")
    await mount.operations.release(handle)
    assert (await mount.operations.lookup(inode, b".", CONTEXT)).st_ino == inode
    await mount.operations.unlink(ROOT_INODE, b"a", CONTEXT)
    assert (await mount.operations.lookup(inode, b".", CONTEXT)).st_ino == 0
    await mount.operations.forget([(inode, 2)])
    assert mount.engine.gone == [inode]
    assert mount.unexpected == []


async def test_an_absent_name_counts_nothing(mount: Mount) -> None:
    entry = await mount.operations.lookup(ROOT_INODE, b"absent", CONTEXT)
    assert entry.st_ino == 0
    assert entry.entry_timeout > 3600
    assert mount.operations.references.lookups == {}


async def test_a_handle_that_is_refused_counts_nothing(mount: Mount) -> None:
    handle, inode = await mount.create(b"a")
    await mount.operations.release(handle)
    before = dict(mount.operations.references.lookups)
    mount.engine.fails["opened"] = NoSpaceLeft("text")
    for attempt in (mount.create(b"b"), mount.operations.open(inode, os.O_WRONLY, CONTEXT)):
        with pytest.raises(FUSEError) as caught:
            await attempt
        assert caught.value.errno == errno.ENOSPC
    assert mount.operations.references.opens == {}
    assert mount.operations.references.lookups == before


async def test_a_failed_truncating_open_gives_the_handle_back(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, inode = await mount.create(b"a")
    await mount.operations.release(handle)

    def refuse(*_: object, **__: object) -> None:
        raise DiskError("text")

    monkeypatch.setattr(mount.engine, "setattr", refuse)
    with pytest.raises(FUSEError) as caught:
        await mount.operations.open(inode, os.O_WRONLY | os.O_TRUNC, CONTEXT)
    assert caught.value.errno == errno.EIO
    assert mount.operations.references.opens == {}


@pytest.mark.expects_warnings("inode that is no longer in use was kept", "unforeseen way: KeyError")
async def test_no_error_leaves_forget_or_is_in_the_way_of_others(mount: Mount) -> None:
    inodes = []
    for name in (b"a", b"b"):
        handle, inode = await mount.create(name)
        await mount.operations.release(handle)
        inodes.append(inode)
    mount.engine.fails["forgotten"] = KeyError("secret")
    await mount.operations.forget([(inode, 1) for inode in inodes])
    assert mount.engine.gone == inodes
    assert [type(error) for error in mount.unexpected] == [KeyError, KeyError]


@pytest.mark.expects_warnings("unforeseen way: KeyError")
async def test_a_release_that_fails_still_ends_the_handle(mount: Mount) -> None:
    handle, inode = await mount.create(b"a")
    await mount.operations.forget([(inode, 1)])
    mount.engine.fails["released"] = KeyError("secret")
    with pytest.raises(FUSEError):
        await mount.operations.release(handle)
    assert mount.engine.gone == [inode]


async def test_handles_tell_whether_they_write(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    _, inode = await mount.create(b"a")
    seen: list[tuple[int, bool]] = []
    monkeypatch.setattr(mount.engine, "released", lambda inode, writable: seen.append((inode, writable)))
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_APPEND):
        info = await mount.operations.open(inode, flags, CONTEXT)
        assert info.keep_cache and not info.direct_io
        await mount.operations.release(info.fh)
    assert seen == [(inode, False), (inode, True), (inode, True), (inode, False)]


async def test_without_attributes_the_engine_is_not_asked(mount: Mount) -> None:
    async def number(name: bytes) -> int:
        with pytest.raises(FUSEError) as caught:
            await mount.operations.getxattr(ROOT_INODE, name, CONTEXT)
        return caught.value.errno

    assert await number(b"security.capability") == errno.ENODATA
    assert await number(b"system.posix_acl_access") == errno.ENODATA
    assert await number(b"system.nonsense") == errno.EOPNOTSUPP
    assert await number(b"nonsense") == errno.EOPNOTSUPP
    assert mount.engine.asked_for_xattr == 0
    await mount.operations.setxattr(ROOT_INODE, b"user.a", b"x", CONTEXT)
    assert await number(b"security.capability") == errno.ENODATA
    assert await mount.operations.getxattr(ROOT_INODE, b"user.a", CONTEXT) == b"x"
    assert mount.engine.asked_for_xattr == 2


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        (b"user." + b"n" * 250, b"v" * 65536, 0),
        (b"user." + b"n" * 251, b"", errno.E2BIG),
        (b"user.n", b"v" * 65537, errno.E2BIG),
        (b"system.n", b"", errno.EOPNOTSUPP),
        (b"user", b"", errno.EOPNOTSUPP),
    ],
)
async def test_limits_of_attributes(mount: Mount, name: bytes, value: bytes, number: int) -> None:
    if number == 0:
        await mount.operations.setxattr(ROOT_INODE, name, value, CONTEXT)
        assert await mount.operations.listxattr(ROOT_INODE, CONTEXT) == [name]
        return
    with pytest.raises(FUSEError) as caught:
        await mount.operations.setxattr(ROOT_INODE, name, value, CONTEXT)
    assert caught.value.errno == number


async def test_flush_is_asked_once_per_mount(mount: Mount) -> None:
    with pytest.raises(FUSEError) as caught:
        await mount.operations.flush(2)
    assert caught.value.errno == errno.ENOSYS


async def test_unknown_rename_flags(mount: Mount) -> None:
    await mount.create(b"a")
    with pytest.raises(FUSEError) as caught:
        await mount.operations.rename(ROOT_INODE, b"a", ROOT_INODE, b"b", 1 << 5, CONTEXT)
    assert caught.value.errno == errno.EINVAL
