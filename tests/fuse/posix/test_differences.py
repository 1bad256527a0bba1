"""Where the mount differs from ext4: what each answers exactly, and what programs make of it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.checks import MIB, refused
from tests.fuse.libc import RENAME_WHITEOUT, fallocate, renameat2
from tests.fuse.posix.differences import DIFFERENCES
from tests.fuse.posix.objects import mode_of, read, write
from tests.fuse.posix.users import ANNA, BERT, give

Differs = Callable[[str], bool]

REPOSITORY = Path(__file__).parents[3]
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT = 0x01, 0x02, 0x08, 0x10, 0x20
BLOCK = 4096
LINKS_MAX = 65_000


@pytest.fixture
def file(here: Path) -> Iterator[int]:
    """A descriptor of a file of two blocks."""
    write("file", b"x" * 2 * BLOCK)
    descriptor = os.open("file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


# --- fallocate -------------------------------------------------------------------------------

FALLOCATES = {
    # mode, offset, length, what ext4 makes of the contents
    "reserve": (0, 0, 3 * BLOCK, b"x" * 2 * BLOCK + bytes(BLOCK)),
    "reserve-keeping-the-size": (KEEP_SIZE, 0, 3 * BLOCK, b"x" * 2 * BLOCK),
    "punch": (PUNCH_HOLE | KEEP_SIZE, 0, BLOCK, bytes(BLOCK) + b"x" * BLOCK),
    "zero": (ZERO, 0, BLOCK, bytes(BLOCK) + b"x" * BLOCK),
    "collapse": (COLLAPSE, 0, BLOCK, b"x" * BLOCK),
    "insert": (INSERT, 0, BLOCK, bytes(BLOCK) + b"x" * 2 * BLOCK),
}


@pytest.mark.parametrize("case", FALLOCATES)
def test_fallocate(file: int, differs: Differs, case: str) -> None:
    mode, offset, length, expected = FALLOCATES[case]
    if differs("fallocate"):
        refused(errno.EOPNOTSUPP, lambda: fallocate(file, mode, offset, length))
        expected = b"x" * 2 * BLOCK
    else:
        fallocate(file, mode, offset, length)
    assert read("file") == expected


def test_posix_fallocate_falls_back_to_writing(file: int) -> None:
    os.posix_fallocate(file, 0, 3 * BLOCK)
    assert read("file") == b"x" * 2 * BLOCK + bytes(BLOCK)
    os.posix_fallocate(file, MIB, 10)
    assert os.fstat(file).st_size == MIB + 10


@pytest.mark.parametrize(
    ("offset", "length", "number"), [(0, 0, errno.EINVAL), (-1, 1, errno.EINVAL), (0, -1, errno.EINVAL)]
)
def test_fallocate_of_nothing(file: int, offset: int, length: int, number: int) -> None:
    refused(number, lambda: fallocate(file, 0, offset, length))
    refused(number, lambda: os.posix_fallocate(file, offset, length))


def test_the_program_fallocate(file: int, differs: Differs) -> None:
    outcome = subprocess.run(["fallocate", "-l", "10000", "file"], check=False, capture_output=True)
    assert (outcome.returncode != 0) == differs("fallocate")
    subprocess.run(["fallocate", "-x", "-l", "10000", "file"], check=True)
    assert os.fstat(file).st_size == 10_000


# --- holes -----------------------------------------------------------------------------------

SEEKS = {
    # whence, offset; then the answers of ext4 and of the mount, for data at 1 MiB in a file of 3 MiB
    "data-from-the-start": (os.SEEK_DATA, 0, MIB, 0),
    "data-within-data": (os.SEEK_DATA, MIB, MIB, MIB),
    "data-after-the-last": (os.SEEK_DATA, 2 * MIB, -errno.ENXIO, 2 * MIB),
    "data-at-the-end": (os.SEEK_DATA, 3 * MIB, -errno.ENXIO, -errno.ENXIO),
    "hole-from-the-start": (os.SEEK_HOLE, 0, 0, 3 * MIB),
    "hole-within-data": (os.SEEK_HOLE, MIB, MIB + BLOCK, 3 * MIB),
    "hole-within-a-hole": (os.SEEK_HOLE, 2 * MIB, 2 * MIB, 3 * MIB),
    "hole-at-the-end": (os.SEEK_HOLE, 3 * MIB, -errno.ENXIO, -errno.ENXIO),
}


@pytest.mark.parametrize("case", SEEKS)
def test_seeking_data_and_holes(here: Path, differs: Differs, case: str) -> None:
    whence, offset, on_ext4, on_mount = SEEKS[case]
    descriptor = os.open("sparse", os.O_CREAT | os.O_RDWR)
    os.pwrite(descriptor, b"x" * BLOCK, MIB)
    os.ftruncate(descriptor, 3 * MIB)
    expected = on_mount if differs("holes") else on_ext4
    if expected < 0:
        refused(-expected, lambda: os.lseek(descriptor, offset, whence))
    else:
        assert os.lseek(descriptor, offset, whence) == expected
    os.close(descriptor)


def test_a_copy_stays_sparse_when_asked_to(here: Path) -> None:
    with open("sparse", "wb") as file:
        file.truncate(20 * MIB)
        file.write(b"data")
    subprocess.run(["cp", "--sparse=always", "sparse", "copy"], check=True)
    assert read("copy") == read("sparse")
    descriptor = os.open("copy", os.O_RDONLY)
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_blocks * 512 < MIB
    os.close(descriptor)


# --- O_TMPFILE -------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_EXCL], ids=["rw", "w", "rw-excl"])
def test_nameless_file(here: Path, differs: Differs, flags: int) -> None:
    if differs("tmpfile"):
        refused(errno.EOPNOTSUPP, lambda: os.open(".", os.O_TMPFILE | flags, 0o600))
    else:
        os.close(os.open(".", os.O_TMPFILE | flags, 0o600))
    assert os.listdir() == []


def test_temporary_files_of_programs(here: Path) -> None:
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(b"x" * 10_000)
        file.seek(0)
        assert (file.read(), os.listdir()) == (b"x" * 10_000, [])
    with tempfile.NamedTemporaryFile(dir=".") as file:
        assert len(os.listdir()) == 1


# --- the others ------------------------------------------------------------------------------


def test_whiteout(here: Path, differs: Differs) -> None:
    write("old", b"x")
    if differs("whiteout"):
        refused(errno.EINVAL, lambda: renameat2("old", "new", RENAME_WHITEOUT))
        assert os.listdir() == ["old"]
    else:
        renameat2("old", "new", RENAME_WHITEOUT)
        assert stat.S_ISCHR(os.lstat("old").st_mode)
    os.mknod("whiteout", stat.S_IFCHR, os.makedev(0, 0))
    assert os.lstat("whiteout").st_rdev == 0


IOCTLS: dict[str, tuple[int, bytes, int]] = {
    "get-flags": (0x80086601, bytes(8), errno.ENOTTY),
    "get-version": (0x80087601, bytes(8), errno.ENOTTY),
    "get-extended-flags": (0x801C581F, bytes(28), errno.ENOTTY),
    "get-label": (0x81009431, bytes(256), errno.ENOTTY),
    "map-of-blocks": (0xC020660B, struct.pack("QQIIII", 0, 1 << 40, 0, 0, 0, 0), errno.EOPNOTSUPP),
}


@pytest.mark.parametrize("name", IOCTLS)
def test_ioctl(file: int, differs: Differs, name: str) -> None:
    request, argument, number = IOCTLS[name]
    if differs("ioctl"):
        refused(number, lambda: fcntl.ioctl(file, request, argument))
    else:
        fcntl.ioctl(file, request, argument)


@pytest.mark.parametrize(
    ("name", "request_", "number"),
    [("unknown", 0x1234, errno.ENOTTY), ("clone", 0x40049409, errno.EOPNOTSUPP)],
    ids=["unknown", "clone"],
)
def test_ioctl_that_neither_has(file: int, name: str, request_: int, number: int) -> None:
    source = os.open("file", os.O_RDONLY)
    refused(number, lambda: fcntl.ioctl(file, request_, source))
    os.close(source)


def test_bytes_to_read(file: int) -> None:
    os.lseek(file, 100, os.SEEK_SET)
    answer = fcntl.ioctl(file, 0x541B, bytes(4))  # FIONREAD
    assert struct.unpack("i", answer) == (2 * BLOCK - 100,)


def test_birth_time(file: int, differs: Differs) -> None:
    outcome = subprocess.run(["stat", "--format=%W", "file"], check=True, capture_output=True, text=True)
    assert (int(outcome.stdout) == 0) == differs("birth-time")


@pytest.mark.parametrize("size", [(1 << 44) - BLOCK, 1 << 44, 1 << 62, (1 << 63) - 1])
def test_sparse_giants(file: int, differs: Differs, size: int) -> None:
    if size == (1 << 63) - 1 or (size >= 1 << 44 and not differs("largest-file")):
        refused(errno.EFBIG, lambda: os.ftruncate(file, size))
        assert os.fstat(file).st_size == 2 * BLOCK
        return
    os.ftruncate(file, size)
    assert os.fstat(file).st_size == size
    os.pwrite(file, b"end", size - 3)
    os.fsync(file)
    assert os.pread(file, 10, size - 5) == b"\0\0end"
    os.ftruncate(file, 0)


def test_most_subdirectories(here: Path, differs: Differs) -> None:
    for number in range(LINKS_MAX - 2):
        os.mkdir(f"{number}")
    assert os.stat(".").st_nlink == LINKS_MAX
    if differs("most-subdirectories"):
        refused(errno.EMLINK, lambda: os.mkdir("one-too-many"))
        os.mkdir("0/elsewhere")
        refused(errno.EMLINK, lambda: os.rename("0/elsewhere", "moved"))
        os.rmdir("1")
    os.mkdir("one-too-many")


@pytest.mark.parametrize(("offset", "size"), [(0, 100), (1, BLOCK), (3, 99)])
def test_direct_writing_off_the_blocks(here: Path, differs: Differs, offset: int, size: int) -> None:
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 2 * BLOCK) as memory, memoryview(memory) as view, view[:size] as part:
        if differs("direct-io"):
            assert os.pwritev(descriptor, [part], offset) == size
            assert os.fstat(descriptor).st_size == offset + size
        else:
            refused(errno.EINVAL, lambda: os.pwritev(descriptor, [part], offset))
    os.close(descriptor)


def test_device_nodes_are_kept_but_not_opened(here: Path, differs: Differs) -> None:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert os.lstat("null").st_rdev == os.makedev(1, 3)
    if differs("devices-and-set-id"):
        refused(errno.EACCES, lambda: os.open("null", os.O_RDWR))
    else:
        os.close(os.open("null", os.O_RDWR))


def test_set_id_bits_are_kept_but_do_nothing(here: Path, differs: Differs) -> None:
    shutil.copy("/usr/bin/id", "program")
    give("program", BERT, 0o6755)
    assert mode_of("program") == 0o6755
    outcome = ANNA.does(
        lambda: subprocess.run(["./program", "-u"], check=True, capture_output=True, text=True)
    )
    options = os.statvfs(".").f_flag
    if differs("devices-and-set-id"):
        assert options & os.ST_NOSUID and options & os.ST_NODEV
        assert int(outcome.stdout) == ANNA.uid
    else:
        assert int(outcome.stdout) == BERT.uid


# --- the table -------------------------------------------------------------------------------


def test_each_difference_is_tested() -> None:
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    asked = {name for source in sources for name in re.findall(r'differs\("([a-z0-9-]+)"\)', source)}
    assert asked == set(DIFFERENCES)


def test_each_difference_is_told_to_the_user() -> None:
    text = (REPOSITORY / "docs" / "posix.md").read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE) == list(DIFFERENCES)
