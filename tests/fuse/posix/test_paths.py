"""Resolving a path: every call that takes one, with every fault that a path can have."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.fuse import libc
from tests.fuse.checks import refused
from tests.fuse.posix.objects import KINDS, exists, make
from tests.fuse.posix.users import ANNA

NAME_MAX, PATH_MAX = 255, 4096


@dataclass(frozen=True)
class Call:
    """One system call on one path; `needs` is what must be there for it to succeed."""

    needs: str
    run: Callable[[str], object]
    follows: bool = False


def _opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


def _listed(path: str) -> None:
    os.scandir(path).close()


CALLS = {
    "access": Call("file", partial(libc.access, mode=os.F_OK), follows=True),
    "chmod": Call("file", partial(os.chmod, mode=0o600), follows=True),
    "chown": Call("file", partial(os.chown, uid=0, gid=0), follows=True),
    "lchown": Call("file", partial(os.lchown, uid=0, gid=0)),
    "creat": Call("absent", partial(_opened, flags=os.O_CREAT | os.O_WRONLY | os.O_TRUNC)),
    "exclusive": Call("absent", partial(_opened, flags=os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "open": Call("file", partial(_opened, flags=os.O_RDONLY), follows=True),
    "open-path": Call("file", partial(_opened, flags=os.O_PATH), follows=True),
    "open-directory": Call("directory", partial(_opened, flags=os.O_DIRECTORY), follows=True),
    "opendir": Call("directory", _listed, follows=True),
    "link-from": Call("file", lambda path: os.link(path, "free")),
    "link-to": Call("absent", lambda path: os.link("plain", path)),
    "stat": Call("file", os.stat, follows=True),
    "lstat": Call("file", os.lstat),
    "statvfs": Call("file", os.statvfs, follows=True),
    "mkdir": Call("absent", os.mkdir),
    "mkfifo": Call("absent", os.mkfifo),
    "mknod": Call("absent", partial(os.mknod, mode=stat.S_IFREG | 0o644)),
    "readlink": Call("symlink", os.readlink),
    "rename-from": Call("file", lambda path: os.rename(path, "free")),
    "rename-to": Call("absent", lambda path: os.rename("plain", path)),
    "noreplace-to": Call("absent", lambda path: libc.renameat2("plain", path, libc.RENAME_NOREPLACE)),
    "exchange": Call("file", lambda path: libc.renameat2(path, "plain", libc.RENAME_EXCHANGE)),
    "rmdir": Call("directory", os.rmdir),
    "symlink": Call("absent", partial(os.symlink, "target")),
    "truncate": Call("file", partial(os.truncate, length=3), follows=True),
    "unlink": Call("file", os.unlink),
    "utime": Call("file", partial(os.utime, ns=(1, 1)), follows=True),
}
FAULTS = {
    "empty": ("", errno.ENOENT),
    "name-too-long": ("n" * (NAME_MAX + 1), errno.ENAMETOOLONG),
    "directory-name-too-long": ("n" * (NAME_MAX + 1) + "/name", errno.ENAMETOOLONG),
    "path-too-long": ("./" * (PATH_MAX // 2 - 2) + "name", errno.ENAMETOOLONG),
    "below-a-file": ("plain/name", errno.ENOTDIR),
    "below-nothing": ("absent/name", errno.ENOENT),
    "below-a-dangling-link": ("dangling/name", errno.ENOENT),
    "below-a-link-to-a-file": ("to-plain/name", errno.ENOTDIR),
    "below-a-loop": ("loop-a/name", errno.ELOOP),
}


@pytest.fixture
def scene(here: Path) -> Path:
    """What the faulty paths speak of."""
    make("plain", "file")
    os.symlink("plain", "to-plain")
    os.symlink("nowhere", "dangling")
    os.symlink("loop-b", "loop-a")
    os.symlink("loop-a", "loop-b")
    return here


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_faulty_path(scene: Path, name: str, fault: str) -> None:
    path, number = FAULTS[fault]
    before = sorted(os.listdir())
    refused(number, lambda: CALLS[name].run(path))
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", CALLS)
def test_directory_without_search_permission(scene: Path, name: str) -> None:
    call = CALLS[name]
    os.mkdir("closed")
    if call.needs != "absent":
        make("closed/name", call.needs)
    os.chmod("closed", 0o666)
    refused(errno.EACCES, lambda: ANNA.does(lambda: call.run("closed/name")))


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.needs != "absent"])
def test_absent(scene: Path, name: str) -> None:
    refused(errno.ENOENT, lambda: CALLS[name].run("absent"))


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.follows])
def test_last_component_is_a_loop(scene: Path, name: str) -> None:
    refused(errno.ELOOP, lambda: CALLS[name].run("loop-a"))


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.follows])
def test_last_component_is_a_dangling_link(scene: Path, name: str) -> None:
    refused(errno.ENOENT, lambda: CALLS[name].run("dangling"))


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.needs == "file"])
def test_slash_after_a_file(scene: Path, name: str) -> None:
    refused(errno.ENOTDIR, lambda: CALLS[name].run("plain/"))


SLASH_AFTER_A_NEW_NAME = {
    "creat": errno.EISDIR,
    "exclusive": errno.EISDIR,
    "link-to": errno.ENOENT,
    "mkdir": 0,
    "mkfifo": errno.ENOENT,
    "mknod": errno.ENOENT,
    "rename-to": errno.ENOTDIR,
    "symlink": errno.ENOENT,
}


@pytest.mark.parametrize("name", SLASH_AFTER_A_NEW_NAME)
def test_slash_after_a_new_name(scene: Path, name: str) -> None:
    number = SLASH_AFTER_A_NEW_NAME[name]
    if number:
        refused(number, lambda: CALLS[name].run("new/"))
    else:
        CALLS[name].run("new/")
    assert exists("new") == (number == 0)


@pytest.mark.parametrize("name", CALLS)
def test_longest_name(scene: Path, name: str) -> None:
    call, longest = CALLS[name], "n" * NAME_MAX
    if call.needs != "absent":
        make(longest, call.needs)
    call.run(longest)


@pytest.mark.parametrize("name", CALLS)
def test_longest_path(scene: Path, name: str) -> None:
    call = CALLS[name]
    if call.needs != "absent":
        make("name", call.needs)
    before = PATH_MAX - 1 - len("name")
    path = "./" * (before // 2) + "/" * (before % 2) + "name"
    assert len(path) == PATH_MAX - 1
    call.run(path)


@pytest.mark.parametrize("count", [40, 41])
def test_chain_of_links(here: Path, count: int) -> None:
    make("link-0", "file")
    for number in range(1, count + 1):
        os.symlink(f"link-{number - 1}", f"link-{number}")
    if count <= 40:
        assert os.stat(f"link-{count}").st_size == len(b"contents")
    else:
        refused(errno.ELOOP, lambda: os.stat(f"link-{count}"))


@pytest.mark.parametrize("name", ["exclusive", "mkdir", "mkfifo", "mknod", "symlink", "link-to"])
@pytest.mark.parametrize("kind", KINDS)
def test_name_that_is_taken(scene: Path, name: str, kind: str) -> None:
    make("taken", kind)
    refused(errno.EEXIST, lambda: CALLS[name].run("taken"))


@pytest.mark.parametrize("name", ["mkdir", "mkfifo", "symlink", "link-to", "rename-to", "creat", "mknod"])
def test_new_name_in_a_directory_that_may_not_be_written(scene: Path, name: str) -> None:
    os.mkdir("closed", 0o755)
    os.chown("plain", ANNA.uid, ANNA.gid)
    refused(errno.EACCES, lambda: ANNA.does(lambda: CALLS[name].run("closed/new")))
    assert os.listdir("closed") == []


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
@pytest.mark.parametrize("call", ["remove", "rename-away", "rename-over", "exchange"])
def test_old_name_in_a_directory_that_may_not_be_written(here: Path, call: str, kind: str) -> None:
    os.mkdir("closed", 0o755)
    make("closed/old", kind)
    make("mine", kind)
    for path in ("closed/old", "mine"):
        os.chown(path, ANNA.uid, ANNA.gid, follow_symlinks=False)
    calls: dict[str, Callable[[], object]] = {
        "remove": lambda: (os.rmdir if kind == "directory" else os.unlink)("closed/old"),
        "rename-away": lambda: os.rename("closed/old", "new"),
        "rename-over": lambda: os.rename("mine", "closed/old"),
        "exchange": lambda: libc.renameat2("mine", "closed/old", libc.RENAME_EXCHANGE),
    }
    refused(errno.EACCES, lambda: ANNA.does(calls[call]))
    assert exists("closed/old") and exists("mine") and not exists("new")
