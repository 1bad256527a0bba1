"""mmap: shared and private, beyond the end, and beside read and write."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.checks import MIB, pattern, refused
from tests.fuse.posix.objects import read, write

PAGE = mmap.PAGESIZE
SIZE = 3 * PAGE + 100
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE


@pytest.fixture
def file(here: Path) -> Iterator[int]:
    """A descriptor of a file of SIZE bytes."""
    write("file", pattern(SIZE)[:SIZE])
    descriptor = os.open("file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("offset", [0, PAGE, 3 * PAGE])
@pytest.mark.parametrize("flags", [SHARED, PRIVATE], ids=["shared", "private"])
def test_reading(file: int, flags: int, offset: int) -> None:
    with mmap.mmap(file, SIZE - offset, flags, READ, offset=offset) as memory:
        assert memory[:] == pattern(SIZE)[offset:SIZE]


@pytest.mark.parametrize("flush", ["msync", "fsync", "unmap"])
@pytest.mark.parametrize("position", [0, PAGE - 1, PAGE, SIZE - 1])
def test_shared_writing(file: int, position: int, flush: str) -> None:
    with mmap.mmap(file, SIZE, SHARED, READ | WRITE) as memory:
        memory[position] = 0xEE
        assert os.pread(file, 1, position) == b"\xee"
        if flush == "msync":
            memory.flush()
        elif flush == "fsync":
            os.fsync(file)
    expected = bytearray(pattern(SIZE)[:SIZE])
    expected[position] = 0xEE
    assert read("file") == expected


def test_private_writing_is_nobody_elses(file: int) -> None:
    with mmap.mmap(file, SIZE, PRIVATE, READ | WRITE) as memory:
        memory[:5] = b"mine!"
        assert memory[:5] == b"mine!"
        memory.flush()
    assert read("file") == pattern(SIZE)[:SIZE]


def test_write_and_mapping_see_one_another(file: int) -> None:
    other = os.open("file", os.O_WRONLY)
    with mmap.mmap(file, SIZE, SHARED, READ | WRITE) as memory, mmap.mmap(file, SIZE, SHARED, READ) as second:
        os.pwrite(other, b"written", PAGE - 3)
        assert memory[PAGE - 3 : PAGE + 4] == b"written"
        memory[0:6] = b"mapped"
        assert second[0:6] == b"mapped"
        assert os.pread(file, 6, 0) == b"mapped"
    os.close(other)


def test_two_processes(file: int) -> None:
    program = (
        "import mmap, os\nd = os.open('file', os.O_RDWR)\nm = mmap.mmap(d, 0)\n"
        "assert m[:4] == b'ours'\nm[4:10] = b'theirs'"
    )
    with mmap.mmap(file, SIZE, SHARED, READ | WRITE) as memory:
        memory[:4] = b"ours"
        subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
        assert memory[:10] == b"ourstheirs"
    assert read("file")[:10] == b"ourstheirs"


def test_the_rest_of_the_last_page_is_zero_and_stays_outside(file: int) -> None:
    with mmap.mmap(file, 0, SHARED, READ | WRITE) as memory:
        os.ftruncate(file, SIZE + 50)
        assert os.pread(file, 50, SIZE) == bytes(50)
        memory[SIZE - 1] = 1
    program = (
        "import ctypes, mmap, os\nd = os.open('file', os.O_RDWR)\nsize = os.fstat(d).st_size\n"
        "m = mmap.mmap(d, size)\nview = (ctypes.c_char * size).from_buffer(m)\n"
        "address = ctypes.addressof(view) + size\n"
        "assert ctypes.string_at(address, 10) == bytes(10)\nctypes.memset(address, 65, 10)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
    os.ftruncate(file, SIZE + 200)
    assert os.pread(file, 150, SIZE + 50) == bytes(150)


@pytest.mark.parametrize("how", ["beyond-the-end", "after-truncation"])
@pytest.mark.parametrize("act", ["read", "write"])
def test_beyond_the_last_page(file: int, act: str, how: str) -> None:
    """SIGBUS, not data and not a hang."""
    program = (
        "import ctypes, mmap, os, sys\nd = os.open('file', os.O_RDWR)\n"
        "libc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        f"address = libc.mmap(None, {8 * PAGE}, {READ | WRITE}, {SHARED}, d, 0)\n"
        f"if sys.argv[2] == 'beyond-the-end': address += {5 * PAGE}\n"
        "else: ctypes.memset(address, 1, 1); os.ftruncate(d, 0)\n"
        "ctypes.string_at(address, 1) if sys.argv[1] == 'read' else ctypes.memset(address, 65, 1)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, act, how]
    assert subprocess.run(command, check=False).returncode == -signal.SIGBUS
    assert os.fstat(file).st_size == (0 if how == "after-truncation" else SIZE)


def test_a_mapping_follows_growth(file: int) -> None:
    with mmap.mmap(file, SIZE, SHARED, READ | WRITE) as memory:
        os.ftruncate(file, 10)
        os.ftruncate(file, SIZE)
        assert memory[:] == pattern(SIZE)[:10] + bytes(SIZE - 10)
        memory[SIZE - 1] = 9
    assert read("file")[-2:] == b"\0\x09"


def test_a_hole_written_through_a_mapping(here: Path) -> None:
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.ftruncate(descriptor, 16 * MIB)
    with mmap.mmap(descriptor, 0, SHARED, READ | WRITE) as memory:
        for position in range(0, 16 * MIB, MIB):
            memory[position + 5] = 1 + position // MIB
        memory.flush()
    data = read("file")
    assert [data[position + 5] for position in range(0, 16 * MIB, MIB)] == list(range(1, 17))
    assert sum(data) == sum(range(1, 17))
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_blocks * 512 < MIB
    os.close(descriptor)


@pytest.mark.parametrize(
    ("opened", "flags", "protection", "number"),
    [
        (os.O_RDONLY, SHARED, READ | WRITE, errno.EACCES),
        (os.O_RDONLY, PRIVATE, READ | WRITE, 0),
        (os.O_RDONLY, SHARED, READ, 0),
        (os.O_WRONLY, SHARED, READ, errno.EACCES),
        (os.O_WRONLY, SHARED, WRITE, errno.EACCES),
        (os.O_WRONLY, PRIVATE, READ, errno.EACCES),
        (os.O_RDWR, SHARED, READ | WRITE, 0),
    ],
)
def test_protection(here: Path, opened: int, flags: int, protection: int, number: int) -> None:
    write("file", b"contents")
    descriptor = os.open("file", opened)
    if number:
        refused(number, lambda: mmap.mmap(descriptor, 8, flags, protection))
    else:
        mmap.mmap(descriptor, 8, flags, protection).close()
    os.close(descriptor)


def test_a_directory_cannot_be_mapped(here: Path) -> None:
    descriptor = os.open(".", os.O_RDONLY)
    refused(errno.ENODEV, lambda: mmap.mmap(descriptor, 8, PRIVATE, READ))
    os.close(descriptor)
