"""Bytes: offsets, vectors, appending, truncating, holes, and every way to copy."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.checks import KIB, MIB, pattern, refused
from tests.fuse.libc import sync_file_range, syncfs
from tests.fuse.posix.objects import read, write
from tests.fuse.posix.users import ANNA

SIZE = 10_000


@pytest.fixture
def file(here: Path) -> Iterator[int]:
    """A descriptor of a file of SIZE bytes."""
    write("file", pattern(SIZE)[:SIZE])
    descriptor = os.open("file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


# --- lseek -----------------------------------------------------------------------------------

SEEKS = {
    "set-start": (0, os.SEEK_SET, 0),
    "set-within": (1234, os.SEEK_SET, 1234),
    "set-beyond": (SIZE + 99, os.SEEK_SET, SIZE + 99),
    "set-negative": (-1, os.SEEK_SET, -errno.EINVAL),
    "cur-forward": (10, os.SEEK_CUR, 510),
    "cur-backward": (-10, os.SEEK_CUR, 490),
    "cur-nowhere": (0, os.SEEK_CUR, 500),
    "cur-before-the-start": (-501, os.SEEK_CUR, -errno.EINVAL),
    "end": (0, os.SEEK_END, SIZE),
    "end-backward": (-100, os.SEEK_END, SIZE - 100),
    "end-forward": (100, os.SEEK_END, SIZE + 100),
    "end-before-the-start": (-SIZE - 1, os.SEEK_END, -errno.EINVAL),
    "no-such-way": (0, 99, -errno.EINVAL),
}


@pytest.mark.parametrize("case", SEEKS)
def test_seek(file: int, case: str) -> None:
    offset, whence, expected = SEEKS[case]
    os.lseek(file, 500, os.SEEK_SET)
    if expected < 0:
        refused(-expected, lambda: os.lseek(file, offset, whence))
        expected = 500
    else:
        assert os.lseek(file, offset, whence) == expected
    assert os.lseek(file, 0, os.SEEK_CUR) == expected
    assert os.read(file, 5) == pattern(SIZE)[:SIZE][expected : expected + 5]
    assert os.fstat(file).st_size == SIZE


def test_seek_after_another_made_it_longer(file: int) -> None:
    other = os.open("file", os.O_WRONLY | os.O_APPEND)
    os.write(other, b"x" * 77)
    os.close(other)
    assert os.lseek(file, 0, os.SEEK_END) == SIZE + 77


# --- read and write --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (0, SIZE), (0, SIZE + 1), (4095, 2), (SIZE - 1, 5), (SIZE, 5), (SIZE * 9, 5)]
)
def test_pread(file: int, offset: int, size: int) -> None:
    assert os.pread(file, size, offset) == pattern(SIZE)[:SIZE][offset : offset + size]
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, SIZE - 1, SIZE, SIZE + 1, SIZE + 5000, 3 * MIB - 1])
@pytest.mark.parametrize("size", [1, 4096, 70_000])
def test_pwrite(file: int, offset: int, size: int) -> None:
    model = bytearray(pattern(SIZE)[:SIZE])
    data = pattern(size, seed=7)[:size]
    assert os.pwrite(file, data, offset) == size
    model.extend(bytes(max(0, offset - len(model))))
    model[offset : offset + size] = data
    assert os.lseek(file, 0, os.SEEK_CUR) == 0
    assert read("file") == model
    os.fsync(file)
    assert os.fstat(file).st_size == len(model)


def test_vectors(file: int) -> None:
    assert os.writev(file, [b"one", b"", b"two" * 2000, b"3"]) == 6004
    buffers = [bytearray(3), bytearray(6000), bytearray(1)]
    os.lseek(file, 0, os.SEEK_SET)
    assert os.readv(file, buffers) == 6004
    assert (buffers[0], buffers[1], buffers[2]) == (b"one", b"two" * 2000, b"3")
    assert os.pwritev(file, [b"A", b"B"], 3) == 2
    assert os.preadv(file, [buffers[0]], 2) == 3
    assert buffers[0] == b"eAB"
    assert os.lseek(file, 0, os.SEEK_CUR) == 6004
    short = [bytearray(5), bytearray(5)]
    assert os.preadv(file, short, SIZE - 7) == 7


def test_writing_nothing_beyond_the_end(file: int) -> None:
    assert os.pwrite(file, b"", SIZE * 2) == 0
    assert os.fstat(file).st_size == SIZE


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, 0], ids=["sync", "dsync", "plain"])
@pytest.mark.parametrize("wait", [os.fsync, os.fdatasync, syncfs, os.fstat], ids=lambda wait: wait.__name__)
def test_synchronous_writing(here: Path, wait: Callable[[int], object], flags: int) -> None:
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR | flags)
    for number in range(3):
        os.write(descriptor, bytes([number]) * 5000)
        wait(descriptor)
    os.close(descriptor)
    assert read("file") == b"".join(bytes([number]) * 5000 for number in range(3))


@pytest.mark.parametrize("flags", [0, 1, 2, 4, 7])
def test_sync_file_range(file: int, flags: int) -> None:
    os.pwrite(file, b"new", 0)
    sync_file_range(file, 0, 4096, flags)
    assert os.pread(file, 3, 0) == b"new"


@pytest.mark.parametrize(
    "advice",
    ["NORMAL", "SEQUENTIAL", "RANDOM", "NOREUSE", "WILLNEED", "DONTNEED"],
)
def test_advice_changes_nothing(file: int, advice: str) -> None:
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, getattr(os, f"POSIX_FADV_{advice}"))
    assert os.pread(file, SIZE, 0) == pattern(SIZE)[:SIZE]


# --- appending -------------------------------------------------------------------------------


def test_append_always_goes_to_the_end(here: Path) -> None:
    write("file", b"0123")
    appender, writer = os.open("file", os.O_RDWR | os.O_APPEND), os.open("file", os.O_WRONLY)
    assert os.read(appender, 2) == b"01"
    os.write(appender, b"a")
    assert os.lseek(appender, 0, os.SEEK_CUR) == 5
    os.pwrite(writer, b"far", 10)
    os.lseek(appender, 0, os.SEEK_SET)
    os.write(appender, b"b")
    os.ftruncate(writer, 2)
    os.write(appender, b"c")
    os.pwrite(appender, b"d", 0)  # To Linux O_APPEND beats the offset of pwrite (BUGS in its manual page).
    os.close(appender)
    os.close(writer)
    assert read("file") == b"01cd"


def test_appends_of_processes_do_not_mix(here: Path) -> None:
    program = (
        "import os, sys; d = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644);"
        "[os.write(d, sys.argv[1].encode() * (index % 50 + 1) + b'\\n') for index in range(200)]"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    writers = [subprocess.Popen([*command, letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    lines = read("log").split(b"\n")[:-1]
    assert sorted(lines) == sorted(letter * (i % 50 + 1) for letter in (b"a", b"b") for i in range(200))


# --- truncating ------------------------------------------------------------------------------

LENGTHS = [0, 1, 4095, 4096, 4097, SIZE - 1, SIZE, SIZE + 1, 12_288, MIB, MIB + 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("how", ["truncate", "ftruncate"])
def test_truncate(file: int, how: str, length: int) -> None:
    if how == "truncate":
        os.truncate("file", length)
    else:
        os.ftruncate(file, length)
    assert os.fstat(file).st_size == length
    assert read("file") == pattern(SIZE)[: min(SIZE, length)] + bytes(max(0, length - SIZE))
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 5000, 8192])
def test_what_was_cut_off_does_not_come_back(file: int, length: int) -> None:
    os.ftruncate(file, length)
    os.ftruncate(file, SIZE)
    assert os.pread(file, SIZE, 0) == pattern(SIZE)[:length] + bytes(SIZE - length)
    os.ftruncate(file, length)
    os.pwrite(file, b"end", SIZE - 3)
    assert os.pread(file, SIZE, 0) == pattern(SIZE)[:length] + bytes(SIZE - 3 - length) + b"end"


@pytest.mark.parametrize("length", [-1, -(1 << 62)])
def test_truncate_to_less_than_nothing(file: int, length: int) -> None:
    refused(errno.EINVAL, lambda: os.truncate("file", length))
    refused(errno.EINVAL, lambda: os.ftruncate(file, length))
    assert os.fstat(file).st_size == SIZE


@pytest.mark.parametrize(
    ("kind", "number"),
    [(stat.S_IFIFO, errno.EINVAL), (stat.S_IFSOCK, errno.EINVAL), (stat.S_IFDIR, errno.EISDIR)],
    ids=["fifo", "socket", "directory"],
)
def test_truncate_of_what_has_no_length(here: Path, kind: int, number: int) -> None:
    if kind == stat.S_IFDIR:
        os.mkdir("object")
    else:
        os.mknod("object", kind | 0o666)
    refused(number, lambda: os.truncate("object", 0))


@pytest.mark.parametrize("how", ["write", "truncate"])
def test_limit_on_the_size_of_files(here: Path, how: str) -> None:
    """RLIMIT_FSIZE: EFBIG, and SIGXFSZ where it is not ignored."""
    program = (
        "import os, resource, signal, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "if sys.argv[2] == 'ignore': signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "else: signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "d = os.open('file', os.O_CREAT | os.O_RDWR)\n"
        "assert os.write(d, b'x' * 6000) == 5000\n"
        "try: os.write(d, b'x') if sys.argv[1] == 'write' else os.ftruncate(d, 5001)\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, how]
    assert subprocess.run([*command, "ignore"], check=False).returncode == errno.EFBIG
    no_core = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))}
    assert subprocess.run([*command, "die"], check=False, **no_core).returncode == -signal.SIGXFSZ
    assert os.stat("file").st_size == 5000


# --- holes -----------------------------------------------------------------------------------


def test_a_hole_reads_as_zeros_and_takes_no_space(here: Path) -> None:
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.pwrite(descriptor, b"end", 100 * MIB)
    os.fsync(descriptor)
    status = os.fstat(descriptor)
    assert (status.st_size, status.st_blocks * 512 < MIB) == (100 * MIB + 3, True)
    assert os.pread(descriptor, 64 * KIB, 50 * MIB) == bytes(64 * KIB)
    assert os.pread(descriptor, 10, 100 * MIB - 4) == bytes(4) + b"end"
    os.pwrite(descriptor, b"middle", 50 * MIB)
    assert os.pread(descriptor, 10, 50 * MIB - 2) == b"\0\0middle\0\0"
    os.close(descriptor)


def test_blocks_of_a_file(here: Path) -> None:
    write("file", b"x" * MIB)
    descriptor = os.open("file", os.O_RDWR)
    os.fsync(descriptor)
    full = os.fstat(descriptor).st_blocks
    os.ftruncate(descriptor, MIB // 2)
    os.fsync(descriptor)
    half = os.fstat(descriptor).st_blocks
    os.ftruncate(descriptor, 0)
    os.close(descriptor)
    assert MIB <= full * 512 < 2 * MIB
    assert MIB // 2 <= half * 512 < MIB
    assert os.stat("file").st_blocks == 0


# --- copying ---------------------------------------------------------------------------------


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory on another file system than both."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def by_copy_file_range(source: int, target: int, size: int) -> None:
    while size:
        size -= os.copy_file_range(source, target, size)


def by_sendfile(source: int, target: int, size: int) -> None:
    while size:
        size -= os.sendfile(target, source, None, size)


def by_splice(source: int, target: int, size: int) -> None:
    reader, writer = os.pipe()
    while size:
        moved = os.splice(source, writer, min(size, 64 * KIB))
        size -= moved
        while moved:
            moved -= os.splice(reader, target, moved)
    os.close(reader)
    os.close(writer)


def by_program(source: int, target: int, size: int) -> None:
    subprocess.run(
        ["cp", f"/proc/self/fd/{source}", f"/proc/self/fd/{target}"], check=True, pass_fds=(source, target)
    )


def by_dd(source: int, target: int, size: int) -> None:
    command = ["dd", "bs=100k", "conv=sparse,notrunc", "status=none"]
    subprocess.run(command, check=True, stdin=source, stdout=target)
    os.ftruncate(target, size)


COPIES = [by_copy_file_range, by_sendfile, by_splice, by_program, by_dd]


@pytest.mark.parametrize("size", [1, 4096, 70_001, 3 * MIB + 5])
@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.__name__)
@pytest.mark.parametrize("direction", ["within", "from-outside", "to-outside"])
def test_copy(
    here: Path, outside: Path, direction: str, copy: Callable[[int, int, int], None], size: int
) -> None:
    data = pattern(size, seed=3)[:size]
    source = outside / "source" if direction == "from-outside" else here / "source"
    target = outside / "target" if direction == "to-outside" else here / "target"
    source.write_bytes(data)
    with open(source, "rb") as reader, open(target, "w+b") as writer:
        if copy is by_copy_file_range and direction != "within":
            refused(errno.EXDEV, lambda: copy(reader.fileno(), writer.fileno(), size))
            return
        copy(reader.fileno(), writer.fileno(), size)
    assert target.read_bytes() == data


def test_copy_within_one_file(file: int) -> None:
    data = pattern(SIZE)[:SIZE]
    assert os.copy_file_range(file, file, 100, 0, SIZE) == 100
    assert os.pread(file, 200, SIZE) == data[:100]
    refused(errno.EINVAL, lambda: os.copy_file_range(file, file, 100, 0, 50))
    assert os.copy_file_range(file, file, 100, SIZE * 5, 0) == 0


def test_copy_from_what_is_still_unwritten(here: Path) -> None:
    """Dirty pages count as contents."""
    source, target = (os.open(name, os.O_CREAT | os.O_RDWR) for name in ("source", "target"))
    os.write(source, b"x" * 5000)
    assert os.copy_file_range(source, target, 5000, 0, 0) == 5000
    os.pwrite(source, b"y" * 10, 0)
    assert os.copy_file_range(source, target, 10, 0, 0) == 10
    os.close(source)
    os.close(target)
    assert read("target") == b"y" * 10 + b"x" * 4990


def test_an_unprivileged_user_reads_what_root_wrote(here: Path) -> None:
    write("file", b"x" * 5000)
    assert ANNA.does(lambda: read("file")) == b"x" * 5000
