"""utimensat: who may, what is set, and the range that times have."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.libc import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, utimensat
from tests.fuse.posix.objects import KINDS, NOT_LINKS, let_time_pass, make
from tests.fuse.posix.users import ANNA, BERT, MEMBER, ROOT, TEAM, give

NOW, OMIT, GIVEN = (0, UTIME_NOW), (0, UTIME_OMIT), (1_000_000_000, 123_456_789)
TIMES = {"now": NOW, "omit": OMIT, "given": GIVEN}
GIVEN_NS = GIVEN[0] * 10**9 + GIVEN[1]
START = (500_000_000, 5)
START_NS = START[0] * 10**9 + START[1]
BILLION = 10**9


def check(actual_ns: int, wanted: str, before_ns: int) -> None:
    """One time stamp after the call."""
    if wanted == "now":
        assert before_ns <= actual_ns <= time.time_ns()
    else:
        assert actual_ns == {"omit": START_NS, "given": GIVEN_NS}[wanted]


@pytest.mark.parametrize("mtime", TIMES)
@pytest.mark.parametrize("atime", TIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_set(here: Path, kind: str, atime: str, mtime: str) -> None:
    make("object", kind)
    utimensat("object", START, START, AT_SYMLINK_NOFOLLOW)
    let_time_pass("object")
    before_ns = time.clock_gettime_ns(5)
    old = os.lstat("object")
    utimensat("object", TIMES[atime], TIMES[mtime], AT_SYMLINK_NOFOLLOW)
    new = os.lstat("object")
    check(new.st_atime_ns, atime, before_ns)
    check(new.st_mtime_ns, mtime, before_ns)
    if (atime, mtime) == ("omit", "omit"):
        assert new.st_ctime_ns == old.st_ctime_ns
    else:
        assert new.st_ctime_ns > old.st_ctime_ns


CALLERS = {
    # Who calls on an object of BERT with mode 0664 and group TEAM.
    "owner": BERT,
    "may-write": MEMBER,
    "may-not-write": ANNA,
    "root": ROOT,
}


@pytest.mark.parametrize("mtime", TIMES)
@pytest.mark.parametrize("atime", TIMES)
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_who_may_set(here: Path, kind: str, caller: str, atime: str, mtime: str) -> None:
    make("object", kind)
    give("object", BERT, 0o664, TEAM)
    utimensat("object", START, START)

    def act() -> None:
        CALLERS[caller].does(lambda: utimensat("object", TIMES[atime], TIMES[mtime]))

    if caller in ("owner", "root") or (atime, mtime) == ("omit", "omit"):
        act()
    elif (atime, mtime) == ("now", "now"):
        if caller == "may-write":
            act()
        else:
            refused(errno.EACCES, act)
    else:
        refused(errno.EPERM, act)
        status = os.stat("object")
        assert (status.st_atime_ns, status.st_mtime_ns) == (START_NS, START_NS)


def test_an_owner_needs_no_permission(here: Path) -> None:
    make("file", "file")
    give("file", ANNA, 0)
    ANNA.does(lambda: utimensat("file", GIVEN, GIVEN))
    ANNA.does(lambda: os.utime("file"))
    assert os.stat("file").st_mtime_ns > GIVEN_NS


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_links_are_followed_unless_asked_not_to(here: Path, kind: str) -> None:
    make("object", kind)
    os.symlink("object", "link")
    utimensat("link", START, START)
    utimensat("link", GIVEN, GIVEN, AT_SYMLINK_NOFOLLOW)
    assert (os.stat("object").st_mtime_ns, os.lstat("link").st_mtime_ns) == (START_NS, GIVEN_NS)


@pytest.mark.parametrize("nanoseconds", [-1, BILLION, (1 << 30) - 3, 1 << 40])
@pytest.mark.parametrize("which", ["atime", "mtime"])
def test_nanoseconds_out_of_range(here: Path, which: str, nanoseconds: int) -> None:
    make("file", "file")
    bad = (1, nanoseconds)
    times = (bad, GIVEN) if which == "atime" else (GIVEN, bad)
    refused(errno.EINVAL, lambda: utimensat("file", *times))


def test_times_of_an_open_file(here: Path) -> None:
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.utime(descriptor, ns=(1, 2))
    status = os.fstat(descriptor)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1, 2)
    os.unlink("file")
    os.utime(descriptor, ns=(3, 4))
    status = os.fstat(descriptor)
    assert (status.st_atime_ns, status.st_mtime_ns) == (3, 4)
    os.close(descriptor)


# --- the range -------------------------------------------------------------------------------

SECONDS = {
    "1901-12-13": -(1 << 31) + 1,
    "1969": -1,
    "1970": 0,
    "2001": BILLION,
    "2038-before": (1 << 31) - 1,
    "2038-after": 1 << 31,
    "2106-before": (1 << 32) - 1,
    "2106-after": 1 << 32,
    "2200": 7_258_118_400,
    "2262": 9_214_646_400,
}


@pytest.mark.parametrize("nanoseconds", [0, 1, 999_999_999])
@pytest.mark.parametrize("date", SECONDS)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_dates(here: Path, kind: str, date: str, nanoseconds: int) -> None:
    make("object", kind)
    times = (SECONDS[date], nanoseconds)
    utimensat("object", times, times, AT_SYMLINK_NOFOLLOW)
    status = os.lstat("object")
    wanted = SECONDS[date] * BILLION + nanoseconds
    assert (status.st_atime_ns, status.st_mtime_ns) == (wanted, wanted)


EXT4_LAST, EXT4_FIRST = (1 << 34) - (1 << 31) - 1, -(1 << 31)
OUR_LAST, OUR_FIRST = (1 << 63) - 1, -(1 << 63)


@pytest.mark.parametrize(
    ("seconds", "on_ext4_ns", "on_mount_ns"),
    [
        (12_000_000_000, 12_000_000_000 * BILLION, OUR_LAST),
        (1 << 40, EXT4_LAST * BILLION, OUR_LAST),
        (-5_000_000_000, EXT4_FIRST * BILLION, -5_000_000_000 * BILLION),
        (-(1 << 40), EXT4_FIRST * BILLION, OUR_FIRST),
    ],
    ids=["2350", "far-future", "1811", "far-past"],
)
def test_dates_out_of_range(
    here: Path, differs: Callable[[str], bool], seconds: int, on_ext4_ns: int, on_mount_ns: int
) -> None:
    make("file", "file")
    utimensat("file", (seconds, 0), (seconds, 0))
    status = os.stat("file")
    if differs("range-of-times"):
        # The kernel answers with its own mtime for as long as it knows the inode.
        assert (status.st_atime_ns, status.st_mtime_ns) == (on_mount_ns, seconds * BILLION)
    else:
        assert (status.st_atime_ns, status.st_mtime_ns) == (on_ext4_ns, on_ext4_ns)
