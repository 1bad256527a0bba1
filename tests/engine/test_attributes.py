"""Access lists, limits of attributes and access times in the engine, without a kernel; and that all of it
is in the log: after a remount, and from the log alone. test_restore_acl.py restores it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.core.acl import permission_bits
from mirrorfs.engine.attributes import ATIME_AGE_MAX_NS, XATTR_LIST_MAX
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.local import LocalVolume
from mirrorfs.errors import InvalidCall, NoAttribute, NoEntry, NoSpaceLeft, NotADirectory, NotPermitted
from mirrorfs.format.acl import ACL_ACCESS, ACL_DEFAULT, decode_acl, encode_acl
from tests.support.built_volume import BuiltVolume
from tests.unit.test_acl import acl

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
HOUR_NS = 3600 * 1_000_000_000
TEAM = encode_acl(acl("u7 u1000:7 g5 m7 o0"))
"""A list that no mode can say."""


def make(fs: FileSystem, name: bytes, mode: int = FILE, *, parent: int = 1, umask: int = 0) -> int:
    return fs.create(parent, name, mode=mode, uid=0, gid=0, umask=umask).inode


def mode_of(fs: FileSystem, inode: int) -> int:
    return stat.S_IMODE(fs.getattr(inode).mode)


async def test_lists_and_modes_follow_each_other(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        inode = make(fs, b"file")
        fs.setxattr(inode, ACL_ACCESS, TEAM)
        assert mode_of(fs, inode) == 0o770
        fs.setattr(inode, mode=0o4640)
        assert mode_of(fs, inode) == 0o4640
        assert decode_acl(fs.getxattr(inode, ACL_ACCESS)) == acl("u6 u1000:7 g5 m4 o0")
        fs.setxattr(inode, ACL_ACCESS, encode_acl(acl("u6 g4 o4")))
        assert mode_of(fs, inode) == 0o4644
        assert fs.listxattr(inode) == []
        fs.removexattr(inode, ACL_ACCESS)  # there is none, and that is no error
        with pytest.raises(NoAttribute):
            fs.removexattr(inode, b"user.none")


async def test_setgid_goes_only_when_told(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        inode = make(fs, b"file", stat.S_IFREG | 0o2770)
        fs.setxattr(inode, ACL_ACCESS, TEAM)
        assert mode_of(fs, inode) == 0o2770
        fs.setxattr(inode, ACL_ACCESS, TEAM, drop_setgid=True)
        assert mode_of(fs, inode) == 0o770


async def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        inode = make(fs, b"file")
        link = fs.create(1, b"link", mode=stat.S_IFLNK | 0o777, uid=0, gid=0, target=b"x").inode
        pending = len(volume.state.pending)
        with pytest.raises(InvalidCall):
            fs.setxattr(inode, ACL_ACCESS, TEAM[:-1])
        with pytest.raises(NotPermitted):
            fs.setxattr(inode, ACL_DEFAULT, TEAM)
        with pytest.raises(NotPermitted):
            fs.setxattr(link, ACL_ACCESS, TEAM)
        assert len(volume.state.pending) == pending


async def test_the_umask_counts_where_no_default_list_is(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        assert mode_of(fs, make(fs, b"plain", stat.S_IFREG | 0o666, umask=0o027)) == 0o640
        directory = make(fs, b"shared", DIRECTORY)
        fs.setxattr(directory, ACL_DEFAULT, TEAM)
        file = make(fs, b"file", stat.S_IFREG | 0o666, parent=directory, umask=0o077)
        assert decode_acl(fs.getxattr(file, ACL_ACCESS)) == acl("u6 u1000:7 g5 m6 o0")
        assert mode_of(fs, file) == 0o660
        below = make(fs, b"below", DIRECTORY, parent=directory, umask=0o077)
        assert fs.getxattr(below, ACL_DEFAULT) == TEAM
        private = make(fs, b"private", stat.S_IFREG | 0o600, parent=directory)
        assert mode_of(fs, private) == 0o600
        link = fs.create(
            directory, b"link", mode=stat.S_IFLNK | 0o777, uid=0, gid=0, target=b"x", umask=0o077
        )
        assert stat.S_IMODE(link.mode) == 0o777
        assert fs.listxattr(link.inode) == []


async def test_names_that_could_not_be_listed_are_refused(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        inode = make(fs, b"file")
        whole, rest = divmod(XATTR_LIST_MAX, 256)
        assert not rest
        names = [b"user.%03d" % number + b"n" * 247 for number in range(whole)]
        for name in names:
            fs.setxattr(inode, name, b"")
        with pytest.raises(NoSpaceLeft):
            fs.setxattr(inode, b"u", b"")
        fs.setxattr(inode, names[0], b"replaced")
        fs.removexattr(inode, names[1])
        fs.setxattr(inode, names[1], b"")
        assert fs.listxattr(inode) == names


async def test_a_dot_answers_for_every_inode(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        file, directory = make(fs, b"file"), make(fs, b"directory", DIRECTORY)
        assert [fs.lookup(inode, b".").inode for inode in (1, file, directory)] == [1, file, directory]
        assert fs.lookup(directory, b"..").inode == 1
        with pytest.raises(NotADirectory):
            fs.lookup(file, b"..")
        with pytest.raises(NoEntry):
            fs.lookup(999, b".")


# --- access times ----------------------------------------------------------------------------


@dataclass
class Clock:
    """The clock of a volume, set by hand."""

    now: int

    def now_ns(self) -> int:
        return self.now

    def boottime_ns(self) -> int:
        return self.now


@contextmanager
def clock(volume: LocalVolume) -> Iterator[Clock]:
    before = volume.state.clock
    set_by_hand = Clock(before.now_ns())
    volume.state.clock = set_by_hand  # type: ignore[assignment]  # two of its methods are enough here
    try:
        yield set_by_hand
    finally:
        volume.state.clock = before


async def test_relatime(tmp_path: Path) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        with clock(volume) as now:
            inode = make(fs, b"file")
            created = fs.getattr(inode)

            def read() -> int:
                fs.accessed(inode)
                row = fs.getattr(inode)
                assert (row.mtime_ns, row.ctime_ns) == (created.mtime_ns, created.ctime_ns)
                return row.atime_ns

            now.now += HOUR_NS
            first = read()
            assert first == now.now
            pending = len(volume.state.pending)
            for step_ns in (HOUR_NS, 22 * HOUR_NS, HOUR_NS - 1):
                now.now += step_ns
                assert read() == first
            assert len(volume.state.pending) == pending
            now.now += 1
            assert now.now - first == ATIME_AGE_MAX_NS
            assert read() == now.now
            fs.setattr(inode, mtime_ns=now.now + HOUR_NS, ctime_ns=created.ctime_ns)
            now.now += 1
            fs.accessed(inode)
            assert fs.getattr(inode).atime_ns == now.now
            fs.accessed(12345)  # removed meanwhile


@pytest.mark.parametrize("why", ["read_only", "fatal", "stalled", "soft"])
async def test_reading_goes_on_where_nothing_may_be_written(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with BuiltVolume(tmp_path).session() as volume:
        fs, state = volume.filesystem, volume.state
        inode = make(fs, b"file")
        before, pending = fs.getattr(inode), len(state.pending)
        with monkeypatch.context() as patch:
            if why == "soft":
                patch.setattr(fs._space, "soft", lambda: True)
            else:
                patch.setattr(state, why, "stopped" if why == "fatal" else True)
            fs.accessed(inode)
        assert fs.getattr(inode) == before
        assert len(state.pending) == pending
        fs.accessed(inode)
        assert fs.getattr(inode) != before


# --- in the log ------------------------------------------------------------------------------

Seen = dict[str, tuple[int, int, dict[bytes, bytes]]]


def look(fs: FileSystem, directory: int = 1, path: str = "") -> Seen:
    """Path -> (mode, atime, attributes) of everything."""
    seen: Seen = {}
    for entry in fs.readdir(directory, after_cookie=0, limit=1000):
        row = fs.getattr(entry.inode)
        name = f"{path}{entry.name.decode()}"
        attributes = {key: fs.getxattr(row.inode, key) for key in fs.listxattr(row.inode)}
        seen[name] = row.mode, row.atime_ns, attributes
        if stat.S_ISDIR(row.mode):
            seen |= look(fs, row.inode, name + "/")
    return seen


def fill(fs: FileSystem) -> None:
    shared = make(fs, b"shared", DIRECTORY)
    fs.setxattr(shared, ACL_DEFAULT, TEAM)
    fs.setxattr(shared, ACL_ACCESS, TEAM)
    below = make(fs, b"below", DIRECTORY, parent=shared)
    read = make(fs, b"read", parent=below)
    fs.setattr(read, atime_ns=5, mtime_ns=7)
    fs.accessed(read)
    changed = make(fs, b"changed", parent=below)
    fs.setattr(changed, mode=0o600)
    plain = make(fs, b"plain", parent=shared)
    fs.setxattr(plain, ACL_ACCESS, encode_acl(acl("u6 g4 o4")))
    fs.setxattr(plain, b"user.name", b"value")
    fs.setxattr(plain, b"user.empty", b"")


async def test_all_of_it_is_in_the_log(tmp_path: Path) -> None:
    built = BuiltVolume(tmp_path)
    async with built.session() as volume:
        fill(volume.filesystem)
        written = look(volume.filesystem)
    assert sum(ACL_ACCESS in attributes for _, _, attributes in written.values()) == 4
    for _, (mode, _, attributes) in written.items():
        if ACL_ACCESS in attributes:
            assert permission_bits(decode_acl(attributes[ACL_ACCESS])) == mode & 0o777
    async with built.session() as volume:
        assert look(volume.filesystem) == written
        assert volume.filesystem.has_xattrs()
    built.files.remove()
    async with built.session() as volume:
        assert look(volume.filesystem) == written


async def test_a_size_that_stays_changes_no_times(tmp_path: Path) -> None:
    """truncate(2): the kernel keeps the times that it has, and would see others once it asks."""
    async with BuiltVolume(tmp_path).session() as volume:
        fs = volume.filesystem
        inode = make(fs, b"file")
        before = fs.getattr(inode)
        assert fs.setattr(inode, size=0) == before
        longer = fs.setattr(inode, size=4096)
        assert longer.mtime_ns > before.mtime_ns
        assert longer.ctime_ns > before.ctime_ns
        assert fs.setattr(inode, size=4096) == longer
        # With O_TRUNC and ftruncate(2) the kernel says which times it wants.
        assert fs.setattr(inode, size=4096, mtime_ns=7).mtime_ns == 7
