"""The past below `.mirrorfs`, through the engine: what is found there, who may see it, and what it costs."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mirrorfs.cli.session_history import moment_named
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine import history as history_module
from mirrorfs.engine import past_views
from mirrorfs.engine.history import BORDER, History
from mirrorfs.engine.past_views import IDLE_S, LOOK_S, VIEWS_MAX, PastViews
from mirrorfs.engine.present_rights import Caller
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import (
    AccessDenied,
    MirrorfsError,
    NoAttribute,
    NoEntry,
    NoSpaceLeft,
    ReadFailed,
    UsageError,
    ViewsBusy,
)
from mirrorfs.format.acl import ACL_ACCESS, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, encode_acl
from mirrorfs.format.ids import format_position
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from tests.engine.test_snapshots import let_go
from tests.support.practice import Pc, Practice
from tests.support.volumes import HEADER

ROOT, OWNER, STRANGER = (Caller(uid, uid) for uid in (0, 1000, 2000))
DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644


class Scene:
    """A mounted volume of OWNER's, and the past below it."""

    def __init__(self, pc: Pc, volume: MountedVolume, indexes: Path) -> None:
        self.pc = pc
        self.volume = volume
        self.fs = volume.filesystem
        self.indexes = indexes
        self.made = 0
        self.views: PastViews = volume.past_views(self._files, HEADER.public_keys.writer)
        self.history = History(self.views, parse=moment_named)

    def _files(self, number: int) -> SqliteIndexFiles:
        self.made += 1
        return SqliteIndexFiles(
            str(self.indexes / f"{number}.db"), os.urandom(32), digest_key=os.urandom(32), cache_kib=1024
        )

    def directory(self, name: bytes, parent: int = ROOT_INODE, *, mode: int = DIRECTORY) -> int:
        return self.fs.create(parent, name, mode=mode, uid=1000, gid=1000).inode

    async def file(self, name: bytes, data: bytes, parent: int = ROOT_INODE, *, mode: int = FILE) -> int:
        inode = self.fs.create(parent, name, mode=mode, uid=1000, gid=1000).inode
        await self.fs.write(inode, 0, data)
        return inode

    async def snapshot(self, name: bytes) -> None:
        await self.volume.snapshots.create(name, held=False)

    async def find(self, path: bytes, caller: Caller = ROOT, *, above: bytes = b"snapshots") -> InodeRow:
        """What is under a path below a directory of moments."""
        row = self.history.door()
        for name in (above, *path.split(b"/")):
            row = await self.history.lookup(row.inode, name, caller)
        return row

    async def content(self, path: bytes, caller: Caller = ROOT, *, above: bytes = b"snapshots") -> bytes:
        row = await self.find(path, caller, above=above)
        await self.history.opened(row.inode, caller)
        try:
            return await self.history.read(row.inode, 0, 1 << 20)
        finally:
            self.history.released(row.inode)

    async def names(self, number: int) -> list[bytes]:
        return [name.name for name, _ in await self.history.readdir(number, after_cookie=0, limit=100)]

    async def denied(self, work: Awaitable[object]) -> None:
        with pytest.raises(AccessDenied):
            await work


@asynccontextmanager
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    (tmp_path / "indexes").mkdir()
    pc = Practice(tmp_path).pc("one")
    async with pc.mounted() as volume, trio.open_nursery() as nursery:
        it = Scene(pc, volume, tmp_path / "indexes")
        await nursery.start(it.views.run)
        yield it
        await it.views.close()
        # Nothing is left of any index, and nothing is opened any more.
        assert not list(it.indexes.iterdir())


async def test_trees_of_then(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        letters = it.directory(b"letters")
        letter = await it.file(b"letter", b"dear", letters)
        it.fs.setxattr(letter, b"user.kind", b"draft")
        it.fs.create(letters, b"link", mode=stat.S_IFLNK | 0o777, uid=0, gid=0, target=b"letter")
        await it.snapshot(b"first")
        await it.fs.write(letter, 4, b" sir")
        it.fs.removexattr(letter, b"user.kind")
        await it.snapshot("zweite Fassung ü".encode())
        it.fs.unlink(letters, b"letter")
        it.fs.forgotten(letter)
        it.fs.rename(ROOT_INODE, b"letters", new_parent=ROOT_INODE, new_name=b"post")

        door = it.history.door()
        assert door.inode == it.history.root >= BORDER and door.mode == stat.S_IFDIR | 0o555
        assert await it.names(door.inode) == [b"snapshots", b"at"]
        snapshots = await it.history.lookup(door.inode, b"snapshots", ROOT)
        listed = await it.history.readdir(snapshots.inode, after_cookie=0, limit=100)
        assert [name.name for name, _ in listed] == [b"first", "zweite Fassung ü".encode()]
        assert len(await it.history.readdir(snapshots.inode, after_cookie=listed[0][0].cookie, limit=9)) == 1
        first = await it.find(b"first")
        assert first == listed[0][1] and it.history.is_fixed(first.inode)
        assert await it.history.getattr(first.inode) == first
        # All this opens nothing.
        assert it.made == 0 and not it.history.is_ready(first.inode)

        assert await it.content(b"first/letters/letter") == b"dear"
        assert it.made == 1 and it.history.is_ready(first.inode)
        assert await it.content("zweite Fassung ü/letters/letter".encode()) == b"dear sir"
        old = await it.find(b"first/letters/letter")
        assert (old.size, old.uid, old.mode) == (4, 1000, FILE) and not it.history.is_fixed(old.inode)
        assert await it.history.getattr(old.inode) == old
        newer = await it.find("zweite Fassung ü/letters/letter".encode())
        assert len({old.inode, newer.inode, letter}) == 3 and old.inode << 2 < 1 << 64
        assert await it.history.listxattr(old.inode) == [b"user.kind"]
        assert await it.history.getxattr(old.inode, b"user.kind", ROOT) == b"draft"
        assert await it.history.listxattr(newer.inode) == []
        directory = await it.find(b"first/letters")
        assert sorted(await it.names(directory.inode)) == [b"letter", b"link"]
        assert await it.history.readlink((await it.find(b"first/letters/link")).inode) == b"letter"
        assert [name.name for name in it.fs.readdir(ROOT_INODE, after_cookie=0, limit=9)] == [b"post"]

        for number, up in (
            (directory.inode, first.inode), (first.inode, snapshots.inode), (snapshots.inode, door.inode),
            (door.inode, ROOT_INODE),
        ):  # fmt: skip
            assert (await it.history.lookup(number, b"..", ROOT)).inode == up
            assert (await it.history.getattr(number)).parent == up
            assert (await it.history.lookup(number, b".", ROOT)).inode == number
        for nowhere in (b"third", b"first/nobody", b"first/letters/letters"):
            with pytest.raises(NoEntry):
                await it.find(nowhere)
        for number in (BORDER | 9, BORDER | 500 << 44 | 1):
            with pytest.raises(NoEntry):
                await it.history.getattr(number)
        with pytest.raises(NoAttribute):
            await it.history.getxattr(first.inode, ACL_ACCESS, ROOT)
        await let_go(it.volume._local, b"first")
        with pytest.raises(NoEntry):
            await it.find(b"first/letters")


async def test_any_moment(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.file(b"letter", b"dear")
        await it.fs.sync()
        position = format_position(it.volume.status().position).encode()
        it.fs.unlink(ROOT_INODE, b"letter")
        await it.fs.sync()
        assert await it.content(position + b"/letter", above=b"at") == b"dear"
        at = await it.history.lookup(it.history.root, b"at", ROOT)
        assert await it.names(at.inode) == []
        before = await it.find(b"2001-01-01T12:00", above=b"at")
        with pytest.raises(NoEntry):  # the volume was not there yet
            await it.history.lookup(before.inode, b"letter", ROOT)
        for other in (b"2h", b"yesterday", b"18:00", b".hidden", b"2999-01-01", b"\xff"):
            with pytest.raises(NoEntry):
                await it.find(other, above=b"at")


def test_only_what_means_the_same_tomorrow() -> None:
    assert moment_named(b"2026-03-01 14:05") == moment_named(b"2026-03-01T14:05:00")
    assert moment_named(b"17.203").position is not None
    for name in (b"2026", b"17:20", b"3d", b"now", b"2026-03-01T", b"2026-13-01"):
        with pytest.raises(UsageError):
            moment_named(name)


# --- who may see it --------------------------------------------------------------------------


def entry(tag: int, permissions: int, who: int = 0xFFFF_FFFF) -> AclEntry:
    return AclEntry(tag, permissions, who)


def _chmod(it: Scene, letters: int, letter: int) -> None:
    it.fs.setattr(letter, mode=0o600)


def _no_list(it: Scene, letters: int, letter: int) -> None:
    """The stranger is named, and may not."""
    names = [entry(USER_OBJ, 6), entry(USER, 0, 2000), entry(GROUP_OBJ, 4), entry(MASK, 4), entry(OTHER, 4)]
    it.fs.setxattr(letter, ACL_ACCESS, encode_acl(names))


def _directory(it: Scene, letters: int, letter: int) -> None:
    it.fs.setattr(letters, mode=0o700)


def _above(it: Scene, letters: int, letter: int) -> None:
    """The directory was moved below another that is closed."""
    closed = it.directory(b"closed", mode=stat.S_IFDIR | 0o700)
    it.fs.rename(ROOT_INODE, b"letters", new_parent=closed, new_name=b"letters")


def _moved(it: Scene, letters: int, letter: int) -> None:
    """Somewhere: from its inode alone it cannot be told where."""
    it.fs.rename(letters, b"letter", new_parent=it.directory(b"open"), new_name=b"letter")


def _replaced(it: Scene, letters: int, letter: int) -> None:
    it.fs.create(letters, b"new", mode=stat.S_IFREG | 0o600, uid=1000, gid=1000)
    it.fs.rename(letters, b"new", new_parent=letters, new_name=b"letter")


def _replaced_above(it: Scene, letters: int, letter: int) -> None:
    """The directory's path belongs to another, with such a name that is closed."""
    it.fs.rename(ROOT_INODE, b"letters", new_parent=ROOT_INODE, new_name=b"old")
    again = it.directory(b"letters")
    it.fs.create(again, b"letter", mode=stat.S_IFREG | 0o600, uid=1000, gid=1000)


def _replaced_by_closed(it: Scene, letters: int, letter: int) -> None:
    it.fs.rename(ROOT_INODE, b"letters", new_parent=ROOT_INODE, new_name=b"old")
    it.directory(b"letters", mode=stat.S_IFDIR | 0o700)


def _root(it: Scene, letters: int, letter: int) -> None:
    it.fs.setattr(ROOT_INODE, mode=0o700)


@pytest.mark.parametrize(
    "change",
    [_chmod, _no_list, _directory, _above, _moved, _replaced, _replaced_above, _replaced_by_closed, _root],
)
async def test_what_may_not_be_read_today(
    autojump_clock: MockClock, tmp_path: Path, change: Callable[[Scene, int, int], None]
) -> None:
    async with scene(tmp_path) as it:
        it.fs.setattr(ROOT_INODE, uid=1000, gid=1000, mode=0o755)
        letters = it.directory(b"letters")
        letter = await it.file(b"letter", b"dear", letters)
        await it.snapshot(b"then")
        assert await it.content(b"then/letters/letter", STRANGER) == b"dear"
        change(it, letters, letter)
        for _ in range(2):
            await it.denied(it.content(b"then/letters/letter", STRANGER))
            # What others look up grants nothing.
            for caller in (ROOT, OWNER):
                assert await it.content(b"then/letters/letter", caller) == b"dear"


async def test_what_may(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Gone, renamed in its directory, or named by an access list: what was to be read then still is."""
    async with scene(tmp_path) as it:
        letters, gone = it.directory(b"letters"), it.directory(b"gone")
        for name in (b"deleted", b"renamed", b"listed", b"linked"):
            await it.file(name, name, letters)
        lost = await it.file(b"lost", b"lost", gone)
        await it.snapshot(b"then")
        row = it.fs.unlink(letters, b"deleted")
        it.fs.forgotten(row.inode)
        it.fs.rename(letters, b"renamed", new_parent=letters, new_name=b"kept")
        linked = it.fs.lookup(letters, b"linked").inode
        it.fs.link(linked, ROOT_INODE, b"second")
        names = [
            entry(USER_OBJ, 6),
            entry(USER, 4, 2000),
            entry(GROUP_OBJ, 0),
            entry(MASK, 4),
            entry(OTHER, 0),
        ]
        it.fs.setxattr(it.fs.lookup(letters, b"listed").inode, ACL_ACCESS, encode_acl(names))
        it.fs.unlink(gone, b"lost")
        it.fs.forgotten(lost)
        it.fs.rmdir(ROOT_INODE, b"gone")
        it.fs.forgotten(gone)
        for name in (b"deleted", b"renamed", b"listed", b"linked"):
            assert await it.content(b"then/letters/" + name, STRANGER) == name
        assert await it.content(b"then/gone/lost", STRANGER) == b"lost"
        listed = await it.find(b"then/letters", STRANGER)
        await it.history.opened(listed.inode, STRANGER)
        it.history.released(listed.inode)
        it.fs.setattr(letters, mode=0o711)
        assert await it.content(b"then/letters/linked", STRANGER) == b"linked"
        await it.denied(it.history.opened(listed.inode, STRANGER))


async def test_what_was_closed_then(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The root's own permissions of then: of all else the kernel sees them."""
    async with scene(tmp_path) as it:
        it.fs.setattr(ROOT_INODE, uid=1000, gid=1000, mode=0o700)
        await it.file(b"letter", b"dear")
        await it.snapshot(b"then")
        it.fs.setattr(ROOT_INODE, mode=0o755)
        await it.denied(it.find(b"then/letter", STRANGER))
        await it.denied(it.history.opened((await it.find(b"then")).inode, STRANGER))
        assert await it.content(b"then/letter", OWNER) == b"dear"


# --- what it costs ---------------------------------------------------------------------------


async def test_few_are_open_at_a_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.file(b"letter", b"dear")
        count = VIEWS_MAX + 1
        for number in range(count):
            await it.snapshot(b"s%d" % number)
        held = [await it.find(b"s%d/letter" % number) for number in range(VIEWS_MAX)]
        assert it.made == VIEWS_MAX
        for row in held[1:]:
            await it.history.opened(row.inode, ROOT)
        # The only one that nobody uses goes; what the kernel knows of it is still good.
        assert await it.content(b"s%d/letter" % VIEWS_MAX) == b"dear"
        assert await it.history.getattr(held[0].inode) == held[0]
        assert it.made == VIEWS_MAX + 2
        await it.history.opened(held[0].inode, ROOT)
        with pytest.raises(ViewsBusy):
            await it.find(b"s%d/letter" % VIEWS_MAX)
        assert await it.history.read(held[1].inode, 0, 9) == b"dear"
        it.history.released(held[1].inode)
        assert await it.content(b"s%d/letter" % VIEWS_MAX) == b"dear"
        # Time passes, and those that nobody uses are closed.
        await trio.sleep(IDLE_S + 2 * LOOK_S)
        await wait_all_tasks_blocked()
        assert not it.history.is_ready(held[1].inode) and it.history.is_ready(held[2].inode)
        assert await it.history.read(held[2].inode, 0, 9) == b"dear"
        assert len(list(it.indexes.glob("*.db"))) == VIEWS_MAX - 1


async def test_who_asks_together_waits_together(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        await it.file(b"letter", b"dear")
        await it.snapshot(b"s")
        root = (await it.find(b"s")).inode
        may_open = trio.Event()
        opened = past_views.index_at

        async def wait_first(*arguments: object) -> object:
            await may_open.wait()
            return await opened(*arguments)  # type: ignore[arg-type]  # passed on as they come

        monkeypatch.setattr(past_views, "index_at", wait_first)
        monkeypatch.setattr(past_views, "WAITING_MAX", 3)
        found: list[InodeRow] = []

        async def look() -> None:
            found.append(await it.history.lookup(root, b"letter", ROOT))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(look)
            await wait_all_tasks_blocked()
            with pytest.raises(ViewsBusy):
                await look()
            with trio.move_on_after(1) as impatient:
                monkeypatch.setattr(past_views, "WAITING_MAX", 4)
                await look()
            assert impatient.cancelled_caught
            # Meanwhile the volume works, and so does what is above the moments.
            await it.file(b"other", b"other")
            assert (
                len(await it.names((await it.history.lookup(it.history.root, b"snapshots", ROOT)).inode)) == 1
            )
            may_open.set()
        assert len(set(found)) == 1 and it.made == 1


@pytest.mark.expects_warnings("moment of the past could not be opened")
async def test_what_cannot_be_opened(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [MirrorfsError("damaged"), KeyError("secret")]

    async def fail(*arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        raise failures.pop(0)

    async with scene(tmp_path) as it:
        await it.file(b"letter", b"dear")
        await it.snapshot(b"s")
        with monkeypatch.context() as patch:
            patch.setattr(past_views, "index_at", fail)
            while failures:
                for _ in range(2):  # once more it is not tried at once
                    with pytest.raises(ReadFailed):
                        await it.content(b"s/letter")
                await trio.sleep(2 * LOOK_S)
        assert it.made == 2
        with monkeypatch.context() as patch:
            patch.setattr(it.pc.world.disk, "free_bytes", lambda: 0)
            await trio.sleep(1)
            with pytest.raises(NoSpaceLeft):
                await it.content(b"s/letter")
        await trio.sleep(1)
        assert await it.content(b"s/letter") == b"dear"
        monkeypatch.setattr(history_module, "MOMENTS_MAX", 1)
        await it.snapshot(b"t")
        with pytest.raises(ViewsBusy):
            await it.find(b"t")
