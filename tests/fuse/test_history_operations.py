"""The handlers of a mount with its history, without a kernel; and callers that do not want to wait."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
import trio
from pyfuse3 import ROOT_INODE, EntryAttributes, FUSEError, RequestContext
from trio.testing import MockClock

from mirrorfs.engine.history import BORDER, NAME
from mirrorfs.engine.present_rights import Caller
from mirrorfs.errors import NoEntry
from mirrorfs.fuse.history_operations import HistoryOperations
from mirrorfs.fuse.waiting_caller import is_told_to_end, unless_told_to_end
from scripts.null_filesystem import NullFileSystem

CONTEXT: Any = RequestContext()
MODE: Any = stat.S_IFREG | 0o644
PAST = BORDER | 7
EVERY_HANDLE = PAST << 2


class Past:
    """A history of one file, which notes who has it open."""

    def __init__(self) -> None:
        self._tree = NullFileSystem()
        self._file = self._tree.create(ROOT_INODE, b"letter", mode=MODE, uid=0, gid=0)
        self._file.inode = PAST
        self.open: list[int] = []

    def is_fixed(self, number: int) -> bool:
        return number == BORDER

    def is_ready(self, number: int) -> bool:
        return True

    def door(self) -> Any:
        row = self._tree.getattr(ROOT_INODE)
        row.inode = BORDER
        return row

    async def lookup(self, parent: int, name: bytes, caller: Caller) -> Any:
        if name != b"letter":
            raise NoEntry("no such entry")
        return self._file

    async def getattr(self, number: int) -> Any:
        return self._file

    async def opened(self, number: int, caller: Caller) -> None:
        self.open.append(number)

    def released(self, number: int) -> None:
        self.open.remove(number)

    async def read(self, number: int, offset: int, size: int) -> bytes:
        return b"dear"[offset : offset + size]


class Mount:
    """A live tree and a past, and the handlers over both."""

    def __init__(self) -> None:
        self.live = NullFileSystem()
        self.past: Any = Past()
        self.operations: Any = HistoryOperations(self.live, self.past)


@pytest.fixture
def mount() -> Mount:
    return Mount()


async def code_of(answer: Awaitable[object]) -> int:
    with pytest.raises(FUSEError) as caught:
        await answer
    return caught.value.errno


async def test_by_number(mount: Mount) -> None:
    ops = mount.operations
    door = await ops.lookup(ROOT_INODE, NAME, CONTEXT)
    assert door.st_ino == BORDER and door.entry_timeout == 0 and door.attr_timeout == 1
    letter = await ops.lookup(BORDER, b"letter", CONTEXT)
    assert letter.st_ino == PAST and letter.entry_timeout == 0 and letter.attr_timeout > 3600
    assert (await ops.getattr(PAST, CONTEXT)).st_ino == PAST
    info = await ops.open(PAST, os.O_RDONLY, CONTEXT)
    assert info.keep_cache and info.fh == EVERY_HANDLE and mount.past.open == [PAST]
    assert await ops.read(info.fh, 1, 10) == b"ear"
    await ops.fsync(info.fh, False)
    await ops.release(info.fh)
    handle = await ops.opendir(BORDER, CONTEXT)
    await ops.fsyncdir(handle, False)
    await ops.releasedir(handle)
    assert mount.past.open == []
    # Nothing of it is counted, and the live tree hears of nothing.
    await ops.forget([(PAST, 3), (BORDER, 1)])
    assert (ops.references.lookups, ops.references.opens, mount.live.removed) == ({}, {}, 0)
    assert await code_of(ops.lookup(BORDER, b"nobody", CONTEXT)) == errno.ENOENT

    created, entry = await ops.create(ROOT_INODE, b"new", MODE, os.O_RDWR, CONTEXT)
    assert entry.st_ino < BORDER and await ops.write(created.fh, 0, b"abc") == 3
    await ops.release(created.fh)


async def test_nothing_is_changed(mount: Mount) -> None:
    ops, live = mount.operations, mount.live
    file = live.create(ROOT_INODE, b"a", mode=MODE, uid=0, gid=0).inode
    read_only = [
        ops.create(BORDER, b"n", MODE, os.O_RDWR, CONTEXT), ops.mkdir(BORDER, b"n", MODE, CONTEXT),
        ops.mknod(BORDER, b"n", MODE, 0, CONTEXT), ops.symlink(BORDER, b"n", b"t", CONTEXT),
        ops.unlink(BORDER, b"letter", CONTEXT), ops.rmdir(BORDER, b"letter", CONTEXT),
        ops.link(file, BORDER, b"n", CONTEXT), ops.setattr(PAST, EntryAttributes(), None, None, CONTEXT),
        ops.setxattr(PAST, b"user.a", b"", CONTEXT), ops.removexattr(PAST, b"user.a", CONTEXT),
        ops.rename(BORDER, b"letter", ROOT_INODE, b"n", 0, CONTEXT),
        ops.rename(ROOT_INODE, b"a", BORDER, b"n", 0, CONTEXT), ops.write(EVERY_HANDLE, 0, b"data"),
        *(ops.open(PAST, flags, CONTEXT) for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC)),
    ]  # fmt: skip
    assert {await code_of(answer) for answer in read_only} == {errno.EROFS}
    assert await code_of(ops.link(PAST, ROOT_INODE, b"n", CONTEXT)) == errno.EXDEV
    assert mount.past.open == []


async def test_the_name_is_taken(mount: Mount) -> None:
    ops = mount.operations
    file = mount.live.create(ROOT_INODE, b"a", mode=MODE, uid=0, gid=0).inode
    for answer, code in (
        (ops.create(ROOT_INODE, NAME, MODE, os.O_RDWR, CONTEXT), errno.EEXIST),
        (ops.mkdir(ROOT_INODE, NAME, MODE, CONTEXT), errno.EEXIST),
        (ops.link(file, ROOT_INODE, NAME, CONTEXT), errno.EEXIST),
        (ops.rename(ROOT_INODE, b"a", ROOT_INODE, NAME, 0, CONTEXT), errno.EBUSY),
        (ops.rename(ROOT_INODE, NAME, ROOT_INODE, b"n", 0, CONTEXT), errno.EBUSY),
        (ops.rmdir(ROOT_INODE, NAME, CONTEXT), errno.EBUSY),
        (ops.unlink(ROOT_INODE, NAME, CONTEXT), errno.EISDIR),
    ):
        assert await code_of(answer) == code
    below = mount.live.create(ROOT_INODE, b"d", mode=stat.S_IFDIR | 0o755, uid=0, gid=0).inode
    assert (await ops.mkdir(below, NAME, MODE, CONTEXT)).st_ino < BORDER


async def test_an_entry_of_the_volume_itself_comes_first(mount: Mount) -> None:
    ops = mount.operations
    own = mount.live.create(ROOT_INODE, NAME, mode=MODE, uid=0, gid=0).inode
    assert (await ops.lookup(ROOT_INODE, NAME, CONTEXT)).st_ino == own
    await ops.rename(ROOT_INODE, NAME, ROOT_INODE, b"renamed", 0, CONTEXT)
    assert (await ops.lookup(ROOT_INODE, NAME, CONTEXT)).st_ino == BORDER


# --- callers that are told to end ------------------------------------------------------------


@pytest.fixture
def stopped() -> Iterator[subprocess.Popen[bytes]]:
    """A process for which signals wait."""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        yield process
        process.kill()


def test_a_signal_that_waits_is_seen(stopped: subprocess.Popen[bytes]) -> None:
    stopped.send_signal(signal.SIGUSR1)
    assert not is_told_to_end(stopped.pid)
    stopped.send_signal(signal.SIGINT)
    assert is_told_to_end(stopped.pid)
    assert not is_told_to_end(0) and not is_told_to_end(1 << 22)


async def test_who_is_told_to_end_gets_an_answer(autojump_clock: MockClock) -> None:
    async def work() -> str:
        await trio.sleep(10)
        return "done"

    async def fail() -> str:
        await trio.sleep(10)
        raise NoEntry("no such entry")

    assert await unless_told_to_end(5, work, is_told=lambda pid: False) == "done"
    with pytest.raises(NoEntry):
        await unless_told_to_end(5, fail, is_told=lambda pid: False)
    begun_s = trio.current_time()
    with pytest.raises(FUSEError) as caught:
        await unless_told_to_end(5, work, is_told=lambda pid: pid == 5)
    assert caught.value.errno == errno.EINTR and trio.current_time() - begun_s < 1
