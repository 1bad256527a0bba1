"""What programs may expect of files and their bytes; first proven on the kernel's own filesystem."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fuse.checks import KIB, MIB, pattern, refused

ENTRIES = 10_000


def test_create(mountpoint: Path) -> None:
    before = time.time_ns() - 1_000_000_000
    path = mountpoint / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o640)
    status = os.fstat(descriptor)
    os.close(descriptor)
    assert stat.S_ISREG(status.st_mode)
    assert (status.st_size, status.st_nlink, status.st_blocks) == (0, 1, 0)
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    for time_ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns):
        assert before <= time_ns <= time.time_ns()
    assert path.stat() == status


def test_the_umask_applies(mountpoint: Path) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(mountpoint / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(mountpoint / "directory", 0o777)
        os.mkfifo(mountpoint / "fifo", 0o666)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((mountpoint / name).stat().st_mode) for name in ("file", "directory", "fifo")]
    assert modes == [0o640, 0o750, 0o640]


def test_exclusive_creation(mountpoint: Path) -> None:
    path = mountpoint / "file"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(path, flags))
    refused(errno.EEXIST, lambda: os.open(path, flags))
    (mountpoint / "dangling").symlink_to("nowhere")
    refused(errno.EEXIST, lambda: os.open(mountpoint / "dangling", flags))


def test_creation_through_a_dangling_link(mountpoint: Path) -> None:
    (mountpoint / "link").symlink_to("target")
    (mountpoint / "link").write_bytes(b"x")
    assert (mountpoint / "target").read_bytes() == b"x"


def test_one_of_many_creators_wins(mountpoint: Path) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        for index in range(20):
            try:
                os.close(os.open(mountpoint / f"{index}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            won.append(index)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_truncating_open(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(1, 1))
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    status = path.stat()
    assert (status.st_size, status.st_blocks) == (0, 0)
    assert status.st_mtime_ns > 1
    assert path.read_bytes() == b""
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_open_flags_for_directories_and_links(mountpoint: Path) -> None:
    (mountpoint / "file").touch()
    (mountpoint / "directory").mkdir()
    (mountpoint / "link").symlink_to("file")
    refused(errno.ENOTDIR, lambda: os.open(mountpoint / "file", os.O_RDONLY | os.O_DIRECTORY))
    refused(errno.EISDIR, lambda: os.open(mountpoint / "directory", os.O_WRONLY))
    refused(errno.ELOOP, lambda: os.open(mountpoint / "link", os.O_RDONLY | os.O_NOFOLLOW))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 128 * KIB, MIB, 3 * MIB + 17])
def test_what_is_written_is_read(mountpoint: Path, size: int) -> None:
    path = mountpoint / "file"
    data = pattern(size)[:size]
    path.write_bytes(data)
    assert path.stat().st_size == size
    assert path.read_bytes() == data


def test_reading_and_writing_at_offsets(mountpoint: Path) -> None:
    descriptor = os.open(mountpoint / "file", os.O_CREAT | os.O_RDWR)
    model = bytearray()
    for offset, size in (
        (0, 10_000),
        (5_000, 4096),
        (9_999, 2),
        (3 * MIB, 100),
        (MIB - 1, 2),
        (7, 0),
        (0, 1),
    ):
        data = pattern(size, seed=offset % 97)[:size]
        assert os.pwrite(descriptor, data, offset) == size
        if size:
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + size] = data
    assert os.fstat(descriptor).st_size == len(model)
    for offset, size in ((0, len(model)), (4_999, 10), (MIB - 2, 5), (len(model) - 1, 10), (len(model), 10)):
        assert os.pread(descriptor, size, offset) == model[offset : offset + size]
    os.close(descriptor)
    assert (mountpoint / "file").read_bytes() == model


def test_a_write_only_handle_over_existing_bytes(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"a" * 10_000)
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"b", 5000)  # the rest of the page comes from the file
    refused(errno.EBADF, lambda: os.read(descriptor, 1))
    os.close(descriptor)
    assert path.read_bytes() == b"a" * 5000 + b"b" + b"a" * 4999


def test_sparse_file(mountpoint: Path) -> None:
    path = mountpoint / "file"
    with open(path, "wb") as file:
        file.seek(512 * MIB)
        file.write(b"end")
    assert path.stat().st_size == 512 * MIB + 3
    assert path.stat().st_blocks * 512 < MIB
    with open(path, "rb") as file:
        assert file.read(100_000) == bytes(100_000)
        file.seek(512 * MIB - 5)
        assert file.read() == bytes(5) + b"end"


def test_truncate_both_ways(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"a" * 10_000)
    os.truncate(path, 3)
    assert path.read_bytes() == b"aaa"
    os.truncate(path, 9000)
    assert path.read_bytes() == b"aaa" + bytes(8997)
    with open(path, "r+b") as file:
        file.truncate(5000)
        assert os.fstat(file.fileno()).st_size == 5000
        os.pwrite(file.fileno(), b"z", 7000)
        file.truncate(6000)
        file.truncate(8000)
    assert path.read_bytes() == b"aaa" + bytes(7997)
    refused(errno.EISDIR, lambda: os.truncate(mountpoint, 0))
    refused(errno.EINVAL, lambda: os.truncate(path, -1))


def test_truncating_sets_the_times(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"abc")
    os.utime(path, ns=(1, 1))
    before = path.stat().st_ctime_ns
    os.truncate(path, 1)
    assert path.stat().st_mtime_ns > 1
    assert path.stat().st_ctime_ns >= before


def test_append(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"first ")
    one = os.open(path, os.O_WRONLY | os.O_APPEND)
    two = os.open(path, os.O_WRONLY | os.O_APPEND)
    for descriptor, data in ((one, b"a"), (two, b"b"), (one, b"c")):
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, data)
    os.close(one)
    os.close(two)
    assert path.read_bytes() == b"first abc"


def test_appends_of_several_processes_do_not_mix(mountpoint: Path) -> None:
    path = mountpoint / "log"
    program = (
        "import os, sys; d = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT);"
        "[os.write(d, sys.argv[2].encode() * 99 + b'\\n') for _ in range(200)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == [letter * 99 for letter in (b"a", b"b", b"c") for _ in range(200)]


def test_direct_io(mountpoint: Path) -> None:
    path = mountpoint / "file"
    with mmap.mmap(-1, 2 * MIB) as memory:  # page-aligned
        memory[:] = pattern(2 * MIB)[: 2 * MIB]
        expected = bytes(memory)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        assert os.pwritev(descriptor, [memory], 0) == 2 * MIB
        memory[:] = bytes(2 * MIB)
        assert os.preadv(descriptor, [memory], 0) == 2 * MIB
        assert memory[:] == expected
        os.close(descriptor)
    assert path.stat().st_size == 2 * MIB
    assert path.read_bytes() == expected


def test_direct_and_cached_handles_see_one_file(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"a" * 8192)
    cached = os.open(path, os.O_RDWR)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as memory:
        os.pwrite(cached, b"b" * 4096, 0)
        assert os.preadv(direct, [memory], 0) == 4096
        assert memory[:] == b"b" * 4096
        memory[:] = b"c" * 4096
        assert os.pwritev(direct, [memory], 4096) == 4096
        assert os.pread(cached, 4096, 4096) == b"c" * 4096
    os.close(cached)
    os.close(direct)


def test_shared_mapping(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(bytes(3 * 4096))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[4090:4100] = b"0123456789"
        assert os.pread(file.fileno(), 10, 4090) == b"0123456789"
        memory.flush()
        os.pwrite(file.fileno(), b"X", 8192)
        assert memory[8192] == ord("X")
        memory[0:3] = b"abc"
    data = path.read_bytes()
    assert (data[:3], data[4090:4100], data[8192:8193], len(data)) == (b"abc", b"0123456789", b"X", 12288)


def test_private_mapping(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"a" * 5000)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        memory[0:1] = b"b"
        assert memory[:2] == b"ba"
    assert path.read_bytes() == b"a" * 5000


def test_a_program_can_be_run_from_it(mountpoint: Path) -> None:
    path = mountpoint / "program"
    path.write_text("#!/bin/sh\nexit 7\n")
    path.chmod(0o755)
    assert subprocess.run([str(path)], check=False).returncode == 7


def test_fsync_of_file_and_directory(mountpoint: Path) -> None:
    descriptor = os.open(mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x")
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)
    directory = os.open(mountpoint, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_blocks_follow_what_is_stored(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"x" * 100_000)
    descriptor = os.open(path, os.O_WRONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    assert 100_000 <= path.stat().st_blocks * 512 <= 200_000


def test_locks(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.touch()
    with open(path, "r+b") as one, open(path, "r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        refused(errno.EWOULDBLOCK, lambda: fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.lockf(one, fcntl.LOCK_EX, 10, 0)
        program = (
            "import fcntl, sys\n"
            "try: fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 5)\n"
            "except OSError: sys.exit(3)"
        )
        assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 3
