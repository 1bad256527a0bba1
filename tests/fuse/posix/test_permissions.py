"""Who may do what: classes of users, search permission, sticky directories, the umask."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse import libc
from tests.fuse.checks import refused
from tests.fuse.posix.objects import KINDS, exists, make, mode_of, remove, write
from tests.fuse.posix.users import ANNA, BERT, MEMBER, ROOT, TEAM, User, give

CLASSES: dict[str, tuple[int, User, User, int]] = {
    # The shift of the class's bits, who calls, the owner, the group of the object.
    "owner": (6, ANNA, ANNA, ANNA.gid),
    "owner-in-the-group-too": (6, MEMBER, MEMBER, TEAM),
    "group": (3, User(1234, ANNA.gid), BERT, ANNA.gid),
    "supplementary-group": (3, MEMBER, BERT, TEAM),
    "others": (0, ANNA, BERT, TEAM),
}


def only(shift: int, bits: int) -> int:
    """A mode that gives one class these bits, and the other classes all that it lacks."""
    others = 7 ^ bits
    return sum((bits if place == shift else others) << place for place in (6, 3, 0))


def expect(user: User, allowed: bool, call: Callable[[], object]) -> None:
    """The call succeeds, or EACCES."""
    if allowed:
        user.does(call)
    else:
        refused(errno.EACCES, lambda: user.does(call))


def opened(path: str, flags: int) -> Callable[[], None]:
    """open and close."""
    return lambda: os.close(os.open(path, flags))


@pytest.mark.parametrize("bits", range(8), ids=["---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx"])
@pytest.mark.parametrize("name", CLASSES)
def test_file(here: Path, name: str, bits: int) -> None:
    shift, caller, owner, group = CLASSES[name]
    write("file", b"contents")
    give("file", owner, only(shift, bits), group)
    may_read, may_write, may_run = bits & 4, bits & 2, bits & 1
    expect(caller, bool(may_read), opened("file", os.O_RDONLY))
    expect(caller, bool(may_write), opened("file", os.O_WRONLY))
    expect(caller, bool(may_read and may_write), opened("file", os.O_RDWR))
    expect(caller, bool(may_write), opened("file", os.O_WRONLY | os.O_TRUNC))
    expect(caller, bool(may_write), lambda: os.truncate("file", 3))
    for mode, allowed in ((os.R_OK, may_read), (os.W_OK, may_write), (os.X_OK, may_run)):
        expect(caller, bool(allowed), lambda mode=mode: libc.access("file", mode))
        expect(caller, bool(allowed), lambda mode=mode: libc.access("file", mode, libc.AT_EACCESS))
    expect(caller, bits == 7, lambda: libc.access("file", os.R_OK | os.W_OK | os.X_OK))
    caller.does(lambda: os.stat("file"))


@pytest.mark.parametrize("bits", range(8), ids=["---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx"])
@pytest.mark.parametrize("name", CLASSES)
def test_directory(here: Path, name: str, bits: int) -> None:
    shift, caller, owner, group = CLASSES[name]
    os.mkdir("directory")
    make("directory/old", "file")
    os.mkdir("directory/inner")
    give("directory", owner, only(shift, bits), group)
    may_read, may_change, may_search = bits & 4, bits & 2 and bits & 1, bits & 1
    expect(caller, bool(may_read), lambda: os.listdir("directory"))
    expect(caller, bool(may_search), lambda: os.stat("directory/old"))
    expect(caller, bool(may_search), opened("directory/old", os.O_RDONLY))
    expect(caller, bool(may_search), lambda: os.stat("directory/inner/.."))
    expect(caller, bool(may_change), lambda: os.mkdir("directory/new"))
    expect(caller, bool(may_change), opened("directory/file", os.O_CREAT | os.O_WRONLY))
    expect(caller, bool(may_change), lambda: os.rename("directory/old", "directory/moved"))
    os.mkdir("directory/empty")
    expect(caller, bool(may_change), lambda: os.rmdir("directory/empty"))
    expect(caller, bool(may_change), lambda: os.unlink("directory/moved" if may_change else "directory/old"))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_root_may_do_all_but_run_what_nobody_may(here: Path, kind: str) -> None:
    make("object", kind)
    os.chmod("object", 0)
    libc.access("object", os.R_OK | os.W_OK)
    if kind == "directory":
        make("object/inner", "file")
        assert os.listdir("object") == ["inner"]
        libc.access("object", os.X_OK)
        return
    write("object", b"new")
    refused(errno.EACCES, lambda: libc.access("object", os.X_OK))
    os.chmod("object", 0o001)
    libc.access("object", os.X_OK)


def test_permission_is_asked_for_when_a_file_is_opened_only(here: Path) -> None:
    write("file", b"contents")
    os.chmod("file", 0o666)
    descriptor = ANNA.does(lambda: os.open("file", os.O_RDWR))
    os.chmod("file", 0)
    assert ANNA.does(lambda: os.pread(descriptor, 100, 0)) == b"contents"
    assert ANNA.does(lambda: os.pwrite(descriptor, b"more", 0)) == 4
    os.close(descriptor)
    refused(errno.EACCES, lambda: ANNA.does(lambda: os.open("file", os.O_RDONLY)))


def test_a_group_that_is_left_no_longer_counts(here: Path) -> None:
    write("file", b"x")
    give("file", BERT, 0o040, TEAM)
    MEMBER.does(opened("file", os.O_RDONLY))
    refused(errno.EACCES, lambda: User(MEMBER.uid, MEMBER.gid).does(opened("file", os.O_RDONLY)))
    os.chown("file", -1, BERT.gid)
    refused(errno.EACCES, lambda: MEMBER.does(opened("file", os.O_RDONLY)))


# --- sticky directories ----------------------------------------------------------------------

STICKY_CALLS = ("remove", "rename-away", "rename-within", "rename-over", "exchange")


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo", "socket"])
@pytest.mark.parametrize("call", STICKY_CALLS)
@pytest.mark.parametrize("entry_owner", [ANNA, BERT, ROOT], ids=["mine", "other's", "root's"])
@pytest.mark.parametrize("directory_owner", [ANNA, BERT], ids=["in-mine", "in-other's"])
def test_sticky(here: Path, directory_owner: User, entry_owner: User, call: str, kind: str) -> None:
    os.mkdir("shared")
    give("shared", directory_owner, 0o1777)
    make("shared/entry", kind)
    give("shared/entry", entry_owner)
    make("own", kind)
    give("own", ANNA)
    calls: dict[str, Callable[[], object]] = {
        "remove": lambda: remove("shared/entry", kind),
        "rename-away": lambda: os.rename("shared/entry", "away"),
        "rename-within": lambda: os.rename("shared/entry", "shared/new"),
        "rename-over": lambda: os.rename("own", "shared/entry"),
        "exchange": lambda: libc.renameat2("own", "shared/entry", libc.RENAME_EXCHANGE),
    }
    before = os.lstat("shared/entry").st_ino
    # Moving a directory to another parent changes its "..": that takes write permission on it.
    needs_ownership = kind == "directory" and call in ("rename-away", "exchange") and entry_owner != ANNA
    if ANNA not in (directory_owner, entry_owner):
        refused(errno.EPERM, lambda: ANNA.does(calls[call]))
    elif needs_ownership:
        refused(errno.EACCES, lambda: ANNA.does(calls[call]))
    else:
        ANNA.does(calls[call])
        assert not exists("shared/entry") or os.lstat("shared/entry").st_ino != before
        return
    assert os.lstat("shared/entry").st_ino == before
    ROOT.does(calls[call])


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_sticky_does_not_keep_one_from_making_and_linking(here: Path, kind: str) -> None:
    os.mkdir("shared")
    give("shared", BERT, 0o1777)
    ANNA.does(lambda: make("shared/new", kind))
    if kind == "file":
        ANNA.does(lambda: os.link("shared/new", "shared/link"))
        assert os.stat("shared/link").st_nlink == 2


@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["plain", "sticky"])
def test_directory_moved_by_one_who_may_not_write_it(here: Path, mode: int) -> None:
    for name in ("one", "two"):
        os.mkdir(name)
        give(name, ANNA, mode)
    os.mkdir("one/child")
    give("one/child", BERT, 0o755)
    refused(errno.EACCES, lambda: ANNA.does(lambda: os.rename("one/child", "two/child")))
    ANNA.does(lambda: os.rename("one/child", "one/renamed"))


# --- the umask, and what new objects inherit -------------------------------------------------

MAKERS: dict[str, Callable[[int], object]] = {
    "file": lambda mode: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, mode)),
    "mknod": lambda mode: os.mknod("new", stat.S_IFREG | mode),
    "directory": lambda mode: os.mkdir("new", mode),
    "fifo": lambda mode: os.mkfifo("new", mode),
}


@pytest.mark.parametrize("umask", [0, 0o022, 0o027, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o777, 0o666, 0o600, 0o000, 0o1755])
@pytest.mark.parametrize("maker", MAKERS)
def test_umask(here: Path, maker: str, mode: int, umask: int) -> None:
    ANNA.does(lambda: MAKERS[maker](mode), umask=umask)
    assert mode_of("new") == mode & ~umask
    status = os.lstat("new")
    assert (status.st_uid, status.st_gid) == (ANNA.uid, ANNA.gid)


def test_symbolic_links_have_all_permissions_whatever_the_umask(here: Path) -> None:
    ANNA.does(lambda: os.symlink("x", "link"), umask=0o777)
    assert mode_of("link") == 0o777
    assert os.lstat("link").st_uid == ANNA.uid


def test_a_new_file_without_permissions_is_open_to_its_maker(here: Path) -> None:
    descriptor = ANNA.does(lambda: os.open("new", os.O_CREAT | os.O_RDWR, 0))
    assert os.write(descriptor, b"x") == 1
    os.close(descriptor)
    refused(errno.EACCES, lambda: ANNA.does(lambda: os.open("new", os.O_RDONLY)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caller", [ROOT, ANNA, MEMBER], ids=["root", "stranger", "member"])
def test_group_of_a_setgid_directory(here: Path, caller: User, kind: str) -> None:
    if kind in ("char", "block"):
        caller = ROOT
    os.mkdir("shared")
    give("shared", BERT, 0o2777, TEAM)
    caller.does(lambda: make("shared/new", kind))
    status = os.lstat("shared/new")
    assert (status.st_uid, status.st_gid) == (caller.uid, TEAM)
    assert bool(status.st_mode & stat.S_ISGID) == (kind == "directory")


@pytest.mark.parametrize("caller", [ROOT, ANNA, MEMBER], ids=["root", "stranger", "member"])
def test_setgid_of_a_file_made_in_a_setgid_directory(here: Path, caller: User) -> None:
    os.mkdir("shared")
    give("shared", BERT, 0o2777, TEAM)
    caller.does(lambda: os.close(os.open("shared/new", os.O_CREAT | os.O_WRONLY, 0o2755)))
    assert mode_of("shared/new") == (0o755 if caller is ANNA else 0o2755)


@pytest.mark.parametrize("kind", ["char", "block"])
def test_device_nodes_are_roots_to_make(here: Path, kind: str) -> None:
    refused(errno.EPERM, lambda: ANNA.does(lambda: make("node", kind)))
    make("node", kind)
    assert os.lstat("node").st_rdev == os.makedev(1, 3)
