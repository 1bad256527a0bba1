"""chmod, chown, and the set-id bits that a change of owner, group or contents takes away."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.posix.objects import KINDS, NOT_LINKS, TYPE, let_time_pass, make, mode_of, type_of, write
from tests.fuse.posix.users import ANNA, BERT, MEMBER, ROOT, TEAM, User, give

MODES = (0o000, 0o111, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o7777)


# --- chmod -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=[f"{mode:04o}" for mode in MODES])
@pytest.mark.parametrize("kind", NOT_LINKS)
def test_chmod(here: Path, kind: str, mode: int) -> None:
    make("object", kind)
    before = os.lstat("object")
    let_time_pass("object")
    os.chmod("object", mode)
    after = os.lstat("object")
    assert after.st_mode == TYPE[kind] | mode
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("mode", MODES, ids=[f"{mode:04o}" for mode in MODES])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_fchmod(here: Path, kind: str, mode: int) -> None:
    make("object", kind)
    descriptor = os.open("object", os.O_RDONLY)
    os.fchmod(descriptor, mode)
    assert os.fstat(descriptor).st_mode == TYPE[kind] | mode
    os.close(descriptor)
    assert mode_of("object") == mode


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_chmod_follows_links(here: Path, kind: str) -> None:
    make("object", kind)
    os.symlink("object", "link")
    os.chmod("link", 0o640)
    assert (mode_of("object"), mode_of("link")) == (0o640, 0o777)


@pytest.mark.parametrize("kind", NOT_LINKS)
@pytest.mark.parametrize("caller", [BERT, ANNA, MEMBER, ROOT], ids=["owner", "stranger", "group", "root"])
def test_who_may_chmod(here: Path, caller: User, kind: str) -> None:
    make("object", kind)
    give("object", BERT, 0o666, TEAM)
    before = os.lstat("object").st_ctime_ns
    if caller in (BERT, ROOT):
        caller.does(lambda: os.chmod("object", 0o600))
        assert mode_of("object") == 0o600
    else:
        refused(errno.EPERM, lambda: caller.does(lambda: os.chmod("object", 0o600)))
        assert (mode_of("object"), os.lstat("object").st_ctime_ns) == (0o666, before)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
@pytest.mark.parametrize("caller", [ANNA, MEMBER, ROOT], ids=["outside-the-group", "in-the-group", "root"])
def test_setgid_needs_the_group(here: Path, caller: User, kind: str) -> None:
    make("object", kind)
    give("object", caller, 0o755, TEAM)
    caller.does(lambda: os.chmod("object", 0o2755))
    assert mode_of("object") == (0o755 if caller is ANNA else 0o2755)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_sticky_bit_by_its_owner(here: Path, kind: str) -> None:
    make("object", kind)
    give("object", ANNA, 0o644)
    ANNA.does(lambda: os.chmod("object", 0o1644))
    assert mode_of("object") == 0o1644


# --- chown -----------------------------------------------------------------------------------

CHOWNS: dict[str, tuple[User, int, int, bool]] = {
    # Who calls (the object is MEMBER's), the new owner and group, whether that is allowed.
    "root-both": (ROOT, 1234, 5678, True),
    "root-owner": (ROOT, 1234, -1, True),
    "root-group": (ROOT, -1, 5678, True),
    "root-highest-numbers": (ROOT, 0xFFFFFFFE, 0xFFFFFFFE, True),
    "owner-to-a-group-of-his": (MEMBER, -1, TEAM, True),
    "owner-to-a-group-of-his-naming-himself": (MEMBER, MEMBER.uid, TEAM, True),
    "owner-to-the-same": (MEMBER, MEMBER.uid, MEMBER.gid, True),
    "owner-to-nothing": (MEMBER, -1, -1, True),
    "owner-to-another-owner": (MEMBER, ANNA.uid, -1, False),
    "owner-to-a-foreign-group": (MEMBER, -1, ANNA.gid, False),
    "owner-both-one-foreign": (MEMBER, ANNA.uid, TEAM, False),
    "stranger-to-himself": (ANNA, ANNA.uid, -1, False),
    "stranger-to-his-group": (ANNA, -1, ANNA.gid, False),
    "stranger-to-the-same": (ANNA, MEMBER.uid, MEMBER.gid, False),
}


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
@pytest.mark.parametrize("case", CHOWNS)
def test_who_may_chown(here: Path, case: str, kind: str) -> None:
    caller, uid, gid, allowed = CHOWNS[case]
    make("object", kind)
    give("object", MEMBER)
    before = os.lstat("object")
    let_time_pass("object")
    if not allowed:
        refused(errno.EPERM, lambda: caller.does(lambda: os.lchown("object", uid, gid)))
        assert os.lstat("object") == before
        return
    caller.does(lambda: os.lchown("object", uid, gid))
    after = os.lstat("object")
    assert after.st_uid == (before.st_uid if uid == -1 else uid)
    assert after.st_gid == (before.st_gid if gid == -1 else gid)
    assert after.st_mtime_ns == before.st_mtime_ns
    if (uid, gid) != (-1, -1):
        assert after.st_ctime_ns > before.st_ctime_ns


@pytest.mark.parametrize("kind", KINDS)
def test_chown_of_every_kind(here: Path, kind: str) -> None:
    make("object", kind)
    os.lchown("object", 11, 22)
    status = os.lstat("object")
    assert (status.st_uid, status.st_gid, type_of("object")) == (11, 22, TYPE[kind])


def test_chown_follows_links_and_lchown_does_not(here: Path) -> None:
    make("file", "file")
    os.symlink("file", "link")
    os.chown("link", 11, 22)
    os.lchown("link", 33, 44)
    assert (os.stat("file").st_uid, os.lstat("link").st_uid) == (11, 33)


def test_fchown(here: Path) -> None:
    with open("file", "wb") as file:
        os.fchown(file.fileno(), 11, 22)
        assert (os.fstat(file.fileno()).st_uid, os.fstat(file.fileno()).st_gid) == (11, 22)


# --- set-id bits -----------------------------------------------------------------------------

BITS = (0o4755, 0o2755, 0o6755, 0o2745, 0o6777, 0o1755)


@pytest.mark.parametrize("mode", BITS, ids=[f"{mode:04o}" for mode in BITS])
@pytest.mark.parametrize("case", ["owner-to-a-group-of-his", "owner-to-the-same", "root-both", "root-group"])
def test_chown_takes_set_id_bits_from_files(here: Path, case: str, mode: int) -> None:
    caller, uid, gid, _ = CHOWNS[case]
    make("file", "file")
    give("file", MEMBER, mode)
    caller.does(lambda: os.chown("file", uid, gid))
    # Setgid without execution by the group is no privilege; who is in the group, or root, keeps it.
    assert mode_of("file") == mode & ~(0o6000 if mode & 0o010 else 0o4000)


@pytest.mark.parametrize("case", ["owner-to-a-group-of-his", "owner-to-the-same", "root-both", "root-group"])
def test_chown_leaves_the_bits_of_directories(here: Path, case: str) -> None:
    caller, uid, gid, _ = CHOWNS[case]
    make("directory", "directory")
    give("directory", MEMBER, 0o6755)
    caller.does(lambda: os.chown("directory", uid, gid))
    assert mode_of("directory") == 0o6755


CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda descriptor: os.write(descriptor, b"x"),
    "pwrite": lambda descriptor: os.pwrite(descriptor, b"x", 100),
    "ftruncate-shorter": lambda descriptor: os.ftruncate(descriptor, 3),
    "ftruncate-longer": lambda descriptor: os.ftruncate(descriptor, 300),
    "truncate": lambda descriptor: os.truncate("file", 3),
    "open-truncate": lambda descriptor: os.close(os.open("file", os.O_WRONLY | os.O_TRUNC)),
}


def by_descriptor(change: str) -> Callable[[], None]:
    """The change through a handle of its own, as programs make it."""

    def act() -> None:
        descriptor = os.open("file", os.O_WRONLY)
        try:
            CHANGES[change](descriptor)
        finally:
            os.close(descriptor)

    return act


@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o1777], ids=["4777", "2777", "6777", "1777"])
@pytest.mark.parametrize("caller", [ANNA, BERT, MEMBER], ids=["stranger", "owner", "group"])
@pytest.mark.parametrize("change", CHANGES)
def test_changing_contents_takes_set_id_bits(here: Path, change: str, caller: User, mode: int) -> None:
    write("file", b"contents")
    give("file", BERT, mode, TEAM)
    caller.does(by_descriptor(change))
    assert mode_of("file") == mode & ~0o6000


@pytest.mark.parametrize("change", CHANGES)
def test_setgid_that_is_no_privilege(here: Path, differs: Callable[[str], bool], change: str) -> None:
    write("file", b"contents")
    give("file", BERT, 0o2766, TEAM)
    ANNA.does(by_descriptor(change))
    kept = differs("setgid-without-group-execution") and change != "open-truncate"
    assert mode_of("file") == (0o2766 if kept else 0o766)


@pytest.mark.parametrize("change", CHANGES)
def test_root_changes_contents_and_set_id_bits_stay(here: Path, change: str) -> None:
    write("file", b"contents")
    give("file", BERT, 0o6755)
    by_descriptor(change)()
    assert mode_of("file") == 0o6755


def test_reading_and_failing_take_no_bits(here: Path) -> None:
    write("file", b"contents")
    give("file", BERT, 0o6755)
    ANNA.does(lambda: os.close(os.open("file", os.O_RDONLY)))
    refused(errno.EACCES, lambda: ANNA.does(lambda: os.truncate("file", 0)))
    refused(errno.EACCES, lambda: ANNA.does(lambda: os.open("file", os.O_WRONLY | os.O_TRUNC)))
    assert mode_of("file") == 0o6755
    assert stat.S_ISREG(os.stat("file").st_mode)
