"""flock, fcntl locks of processes and of open files (OFD): conflicts, ranges, and when they end."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.checks import refused
from tests.fuse.posix.objects import write

FLOCK = "hhqqi4x"
"""struct flock: type, whence, start, length, pid."""
GETLK, SETLK = fcntl.F_GETLK, fcntl.F_SETLK
F_OFD_GETLK, F_OFD_SETLK = 36, 37
TYPES = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "unlock": fcntl.F_UNLCK}

OTHER = """
import fcntl, os, struct, sys
descriptor = os.open("file", os.O_RDWR)
print("ready", flush=True)
for line in sys.stdin:
    command, *numbers = line.split()
    try:
        if command == "flock":
            fcntl.flock(descriptor, int(numbers[0]))
        else:
            kind, start, length = map(int, numbers)
            fcntl.fcntl(descriptor, int(command), struct.pack("hhqqi4x", kind, 0, start, length, 0))
    except OSError as error:
        print(error.errno, flush=True)
    else:
        print(0, flush=True)
"""


class Other:
    """Another process that has the file open and does as it is told."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", OTHER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def _ask(self, *words: object) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def lock(self, kind: str, start: int = 0, length: int = 0, *, command: int = SETLK) -> int:
        """0 or an errno."""
        return self._ask(command, TYPES[kind], start, length)

    def flock(self, operation: int) -> int:
        """0 or an errno; never waits."""
        return self._ask("flock", operation | fcntl.LOCK_NB)

    def end(self) -> None:
        """End the process, whatever it holds."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def another() -> Iterator[Other]:
    """Another process."""
    other = Other()
    try:
        yield other
    finally:
        other.end()


@pytest.fixture
def other(here: Path) -> Iterator[Other]:
    write("file", b"contents" * 100)
    with another() as process:
        yield process


@pytest.fixture
def file(other: Other) -> Iterator[int]:
    descriptor = os.open("file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def lock(descriptor: int, kind: str, start: int = 0, length: int = 0, *, command: int = SETLK) -> None:
    """Lock or unlock a range without waiting. Raises OSError."""
    fcntl.fcntl(descriptor, command, struct.pack(FLOCK, TYPES[kind], 0, start, length, 0))


def holder(
    descriptor: int, kind: str, start: int, length: int, command: int = fcntl.F_GETLK
) -> tuple[int, ...]:
    """What F_GETLK tells: type, whence, start, length, pid of the lock that is in the way."""
    asked = struct.pack(FLOCK, TYPES[kind], 0, start, length, 0)
    return struct.unpack(FLOCK, fcntl.fcntl(descriptor, command, asked))


RANGES = {
    "same": ((0, 10), (0, 10), True),
    "overlapping": ((0, 10), (9, 10), True),
    "inside": ((0, 100), (50, 1), True),
    "adjacent": ((0, 10), (10, 10), False),
    "far": ((0, 10), (1 << 40, 10), False),
    "to-the-end": ((100, 0), (1 << 40, 1), True),
    "before-the-end": ((100, 0), (0, 100), False),
}
COMMANDS = {"process": SETLK, "open-file": F_OFD_SETLK}


@pytest.mark.parametrize("case", RANGES)
@pytest.mark.parametrize("wanted", ["read", "write"])
@pytest.mark.parametrize("held", ["read", "write"])
@pytest.mark.parametrize("theirs", COMMANDS)
@pytest.mark.parametrize("ours", COMMANDS)
def test_conflict(file: int, other: Other, ours: str, theirs: str, held: str, wanted: str, case: str) -> None:
    (start, length), (their_start, their_length), overlap = RANGES[case]
    lock(file, held, start, length, command=COMMANDS[ours])
    conflict = overlap and "write" in (held, wanted)
    outcome = other.lock(wanted, their_start, their_length, command=COMMANDS[theirs])
    assert outcome in ((errno.EAGAIN, errno.EACCES) if conflict else (0,))
    lock(file, "unlock", start, length, command=COMMANDS[ours])
    assert other.lock(wanted, their_start, their_length, command=COMMANDS[theirs]) == 0


def test_get_lock(file: int, other: Other) -> None:
    assert other.lock("write", 10, 20) == 0
    assert holder(file, "write", 0, 100) == (fcntl.F_WRLCK, 0, 10, 20, other.process.pid)
    assert holder(file, "read", 29, 1)[0] == fcntl.F_WRLCK
    assert holder(file, "write", 30, 0)[0] == fcntl.F_UNLCK
    assert other.lock("read", 10, 20) == 0
    assert holder(file, "read", 0, 0)[0] == fcntl.F_UNLCK
    assert holder(file, "write", 0, 0)[0] == fcntl.F_RDLCK


def test_get_lock_of_an_open_file(file: int, other: Other) -> None:
    assert other.lock("write", 10, 20, command=F_OFD_SETLK) == 0
    assert holder(file, "write", 0, 100)[:4] == (fcntl.F_WRLCK, 0, 10, 20)
    assert holder(file, "write", 0, 100, F_OFD_GETLK) == (fcntl.F_WRLCK, 0, 10, 20, -1)


def test_ranges_split_and_join(file: int, other: Other) -> None:
    lock(file, "write", 0, 30)
    lock(file, "unlock", 10, 10)
    assert other.lock("write", 10, 10) == 0
    assert other.lock("write", 9, 1) != 0
    assert other.lock("write", 20, 1) != 0
    assert other.lock("unlock", 0, 0) == 0
    lock(file, "write", 10, 10)
    lock(file, "read", 0, 5)
    assert other.lock("read", 0, 5) == 0
    assert other.lock("read", 5, 1) != 0


def test_locks_of_a_process_end_with_any_close(file: int, other: Other) -> None:
    lock(file, "write")
    assert other.lock("write") != 0
    os.close(os.open("file", os.O_RDONLY))
    assert other.lock("write") == 0


def test_locks_of_an_open_file_end_with_its_last_descriptor(file: int, other: Other) -> None:
    mine = os.open("file", os.O_RDWR)
    lock(mine, "write", command=F_OFD_SETLK)
    duplicate = os.dup(mine)
    os.close(os.open("file", os.O_RDONLY))
    os.close(mine)
    assert other.lock("write", command=F_OFD_SETLK) != 0
    refused(errno.EAGAIN, lambda: lock(file, "write", command=F_OFD_SETLK))
    os.close(duplicate)
    assert other.lock("write", command=F_OFD_SETLK) == 0


def test_locks_end_with_the_process(file: int, other: Other) -> None:
    with another() as third:
        assert third.lock("write", 0, 10) == 0
        assert third.lock("write", 50, 10, command=F_OFD_SETLK) == 0
        assert third.flock(fcntl.LOCK_EX) == 0
        assert other.lock("write") != 0
        third.end()
        lock(file, "write")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


FLOCKS = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}


@pytest.mark.parametrize("same_process", [True, False], ids=["same-process", "other-process"])
@pytest.mark.parametrize("wanted", FLOCKS)
@pytest.mark.parametrize("held", FLOCKS)
def test_flock(file: int, other: Other, held: str, wanted: str, same_process: bool) -> None:
    fcntl.flock(file, FLOCKS[held])
    number = errno.EWOULDBLOCK if "exclusive" in (held, wanted) else 0
    if not same_process:
        assert other.flock(FLOCKS[wanted]) == number
        fcntl.flock(file, fcntl.LOCK_UN)
        assert other.flock(FLOCKS[wanted]) == 0
        return
    second = os.open("file", os.O_RDONLY)
    if number:
        refused(number, lambda: fcntl.flock(second, FLOCKS[wanted] | fcntl.LOCK_NB))
    fcntl.flock(file, fcntl.LOCK_UN)
    fcntl.flock(second, FLOCKS[wanted] | fcntl.LOCK_NB)
    os.close(second)


def test_flock_is_the_open_files(file: int, other: Other) -> None:
    mine = os.open("file", os.O_RDONLY)
    fcntl.flock(mine, fcntl.LOCK_EX)
    duplicate = os.dup(mine)
    os.close(mine)
    assert other.flock(fcntl.LOCK_SH) == errno.EWOULDBLOCK
    fcntl.flock(duplicate, fcntl.LOCK_SH)  # Changed in place.
    assert other.flock(fcntl.LOCK_SH) == 0
    assert other.flock(fcntl.LOCK_EX) == errno.EWOULDBLOCK
    os.close(duplicate)
    assert other.flock(fcntl.LOCK_EX) == 0


def test_flock_and_fcntl_do_not_know_of_one_another(file: int, other: Other) -> None:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert other.lock("write") == 0
    refused(errno.EAGAIN, lambda: lock(file, "write"))


def test_waiting_for_a_lock(file: int, other: Other) -> None:
    """A lock that is waited for comes with the unlock."""
    lock(file, "write")
    program = (
        "import fcntl, os\nd = os.open('file', os.O_RDWR)\n"
        "print('begin', flush=True)\nfcntl.lockf(d, fcntl.LOCK_EX)\nos.write(d, b'locked')"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"begin\n"
        assert os.pread(file, 6, 0) == b"conten"
        lock(file, "unlock")
    assert waiter.returncode == 0
    assert os.pread(file, 6, 0) == b"locked"


def test_locks_survive_rename_and_unlink(file: int, other: Other) -> None:
    lock(file, "write")
    fcntl.flock(file, fcntl.LOCK_EX)
    os.rename("file", "moved")
    assert other.lock("write") != 0
    os.unlink("moved")
    assert other.lock("write") != 0
    assert other.flock(fcntl.LOCK_EX) == errno.EWOULDBLOCK
