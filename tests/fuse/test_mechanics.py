"""Mounting, unmounting and serving, with a filesystem that keeps no bytes (scripts/null_filesystem.py)."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.errors import InUseError
from mirrorfs.fuse import mount_table
from mirrorfs.fuse.mount import MAX_RATIO_PERCENT, READ_AHEAD_KIB
from mirrorfs.fuse.mount_table import clean_stale, detach, find_mount, is_stale, unmount
from tests.fuse.checks import as_nobody
from tests.fuse.conftest import DEADLINE_S, NullMount, needs_root
from tests.fuse.libc import RENAME_WHITEOUT, open_listing, renameat2

pytestmark = needs_root("the null filesystem mounts with allow_other, and sysfs is root's")

ENTRIES = 10_000


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for something that comes on its own."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- mounting --------------------------------------------------------------------------------


def test_the_mount_is_tuned_and_named(null: NullMount) -> None:
    record = find_mount(null.path)
    assert record is not None
    assert (record.fstype, record.source) == ("fuse.mirrorfs", "mirrorfs:null")
    bdi = Path("/sys/class/bdi") / record.device
    assert int((bdi / "read_ahead_kb").read_text()) == READ_AHEAD_KIB
    assert int((bdi / "max_ratio").read_text()) == MAX_RATIO_PERCENT


def test_unmount_ends_the_daemon_normally(null: NullMount) -> None:
    (null.path / "file").write_bytes(b"x" * 100_000)
    wait_until(lambda: null.counts()["opens"] == 0)  # close() does not wait for the kernel's RELEASE
    unmount(null.path)
    assert find_mount(null.path) is None
    last, stderr = null.finish()
    assert (last["state"], last["written_bytes"], last["opens"]) == ("ended", 100_000, 0)
    assert stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(null: NullMount, number: signal.Signals) -> None:
    (null.path / "file").write_bytes(b"x")
    null.process.send_signal(number)
    last, stderr = null.finish()
    assert last["state"] == "ended"
    assert stderr == ""
    assert find_mount(null.path) is None


def test_a_signal_writes_back_and_detaches_a_mount_in_use(null: NullMount) -> None:
    descriptor = os.open(null.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x" * 70_000)
    null.process.send_signal(signal.SIGTERM)
    last, _ = null.finish()
    assert last["written_bytes"] >= 70_000
    assert find_mount(null.path) is None
    for call in (os.fsync, os.close):
        with pytest.raises(OSError) as caught:
            call(descriptor)
        assert caught.value.errno == errno.ENOTCONN


def test_a_mount_in_use_is_not_unmounted(null: NullMount) -> None:
    with open(null.path / "file", "wb"), pytest.raises(InUseError, match="still in use"):
        unmount(null.path)
    assert (null.path / "file").exists()
    unmount(null.path)
    null.finish()


def test_a_lazy_unmount_ends_the_daemon_with_the_last_handle(null: NullMount) -> None:
    with open(null.path / "file", "wb") as file:
        detach(null.path)
        assert find_mount(null.path) is None
        file.write(b"x")
        file.flush()
        assert null.process.poll() is None
    assert null.finish()[0]["state"] == "ended"


def test_two_mounts_one_after_another(mount_null: Callable[..., NullMount]) -> None:
    for _ in range(2):
        mount = mount_null()
        (mount.path / "a").mkdir()
        unmount(mount.path)
        mount.finish()


def test_a_killed_daemon_leaves_a_stale_mount_that_can_be_removed(null: NullMount) -> None:
    assert not is_stale(null.path)
    assert not clean_stale(null.path)
    null.process.kill()
    null.process.wait()
    assert find_mount(null.path) is not None
    assert is_stale(null.path)
    assert clean_stale(null.path)
    assert find_mount(null.path) is None
    assert not clean_stale(null.path)
    assert list(null.path.iterdir()) == []


def test_a_daemon_that_hangs_is_not_taken_for_dead(null: NullMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_table, "PROBE_TIMEOUT_S", 0.3)
    null.process.send_signal(signal.SIGSTOP)
    assert not is_stale(null.path)
    null.process.send_signal(signal.SIGCONT)
    assert not is_stale(null.path)
    unmount(null.path)
    null.finish()


# --- requests --------------------------------------------------------------------------------


def test_an_unforeseen_exception_is_one_eio_and_one_log_line(mount_null: Callable[..., NullMount]) -> None:
    null = mount_null("--fault-name", "private.txt")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            (null.path / "private.txt").touch()
        assert caught.value.errno == errno.EIO
    (null.path / "other").touch()
    assert [path.name for path in null.path.iterdir()] == ["other"]
    unmount(null.path)
    _, stderr = null.finish()
    lines = stderr.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "ZeroDivisionError in " in line
        assert "private" not in line and "secret" not in line


def test_errors_reach_the_caller(null: NullMount) -> None:
    directory, file = null.path / "directory", null.path / "file"
    directory.mkdir()
    file.touch()
    (directory / "inner").touch()
    cases: list[tuple[int, Callable[[], object]]] = [
        (errno.ENOENT, lambda: os.stat(null.path / "absent")),
        (errno.EEXIST, lambda: os.mkdir(file)),
        (errno.ENOTDIR, lambda: os.stat(file / "x")),
        (errno.ENOTEMPTY, lambda: os.rmdir(directory)),
        (errno.EISDIR, lambda: os.unlink(directory)),
        (errno.ENAMETOOLONG, lambda: os.stat(null.path / ("x" * 256))),
        (errno.ENODATA, lambda: os.getxattr(file, "user.absent")),
        (errno.EOPNOTSUPP, lambda: os.setxattr(file, "system.nonsense", b"x")),
        (errno.EINVAL, lambda: renameat2(file, null.path / "new", RENAME_WHITEOUT)),
    ]
    for number, call in cases:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == number


def test_absent_names_are_remembered_and_still_appear(null: NullMount) -> None:
    path = null.path / "name"
    assert not path.exists()
    assert not path.exists()
    path.touch()
    assert path.exists()
    path.unlink()
    assert not path.exists()
    path.symlink_to("x")
    assert path.is_symlink()


def test_a_large_directory_can_be_listed_told_and_sought(null: NullMount) -> None:
    directory = null.path / "large"
    directory.mkdir()
    expected = [b"entry-%05d" % number for number in range(ENTRIES)]
    for name in expected:
        os.mkdir(os.fsencode(directory) + b"/" + name)
    with open_listing(directory) as listing:
        first, second = listing.next(), listing.next()
        assert first is not None and first[0] == b"."
        assert second is not None and second[0] == b".."
        assert (first[1], second[1]) == (directory.stat().st_ino, null.path.stat().st_ino)
        positions, names = [], []
        while True:
            positions.append(listing.tell())
            entry = listing.next()
            if entry is None:
                break
            names.append(entry[0])
            assert stat.S_ISDIR(entry[2] << 12)
        assert names == expected
        assert len(set(positions)) == ENTRIES + 1
        for index in (0, 1, 31, 32, 33, 199, 5000, ENTRIES - 1, ENTRIES):
            listing.seek(positions[index])
            assert listing.rest() == expected[index:]
        # Positions stay good while the directory changes before and behind them.
        os.rmdir(directory / "entry-00000")
        os.rmdir(directory / "entry-07000")
        os.mkdir(directory / "later")
        listing.seek(positions[6999])
        assert listing.rest() == [expected[6999], *expected[7001:], b"later"]


def test_the_kernel_gives_back_all_that_it_looked_up(null: NullMount) -> None:
    for number in range(300):
        (null.path / f"directory-{number}").mkdir()
        (null.path / f"file-{number}").write_bytes(b"x")
        os.link(null.path / f"file-{number}", null.path / f"link-{number}")
        (null.path / f"symlink-{number}").symlink_to("x")
        os.mkfifo(null.path / f"fifo-{number}")
    assert len([entry.stat(follow_symlinks=False) for entry in os.scandir(null.path)]) == 1500
    assert null.counts()["lookups"] > 0

    def is_empty() -> bool:
        # Dentries first: they hold the inodes.
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
        counts = null.counts()
        return (counts["lookups"], counts["opens"]) == (0, 0)

    wait_until(is_empty)
    assert null.counts()["inodes"] == 1201
    assert len(os.listdir(null.path)) == 1500


def test_access_lists_cost_creates_no_request_and_look_ups_one(null: NullMount) -> None:
    # Not in the root: for that directory alone the kernel keeps no list, nor that there is none.
    directory = null.path / "directory"
    directory.mkdir()
    directory.chmod(0o777)
    for number in range(100):
        (directory / f"{number}").touch()
    assert null.counts()["attribute_requests"] == 0
    stats = "[os.stat(f'{number}') for number in range(100)]"
    for _ in range(2):
        assert as_nobody(f"os.chdir(path); {stats}", directory) == 0
    assert 0 < null.counts()["attribute_requests"] < 10


@pytest.mark.parametrize("allowed", [True, False])
def test_other_users(mount_null: Callable[..., NullMount], allowed: bool) -> None:
    null = mount_null(*([] if allowed else ["--not-others"]))
    (null.path / "public").touch()
    (null.path / "public").chmod(0o644)  # whatever the umask is
    (null.path / "private").touch()
    (null.path / "private").chmod(0o600)
    # From outside: without allow_other not even the mountpoint can be entered.
    null.path.parent.chmod(0o755)
    at = null.path
    read = "open(path + '/{}').read()"
    assert as_nobody(read.format("public"), at) == (0 if allowed else errno.EACCES)
    assert as_nobody(read.format("private"), at) == errno.EACCES
    assert as_nobody("os.listdir(path)", at) == (0 if allowed else errno.EACCES)
    assert as_nobody("os.mkdir(path + '/new')", at) == errno.EACCES
    assert sorted(os.listdir(at)) == ["private", "public"]


def test_an_unlinked_file_lives_as_long_as_it_is_open(null: NullMount) -> None:
    path = null.path / "file"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"x" * 5000)
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        os.ftruncate(file.fileno(), 3000)
        file.write(b"y")
        os.fsync(file.fileno())
        counts = null.counts()
        assert (counts["inodes"], counts["opens"], counts["removed"]) == (2, 1, 0)
    wait_until(lambda: null.counts()["removed"] == 1)
    counts = null.counts()
    assert (counts["inodes"], counts["lookups"], counts["opens"]) == (1, 0, 0)


def test_a_name_replaced_by_rename_frees_its_inode(null: NullMount) -> None:
    (null.path / "old").write_bytes(b"x")
    (null.path / "new").write_bytes(b"x")
    (null.path / "new").rename(null.path / "old")
    wait_until(lambda: null.counts()["removed"] == 1)


def test_many_clients_at_once(null: NullMount) -> None:
    def work(number: int) -> None:
        for index in range(100):
            path = null.path / f"{number}-{index}"
            path.write_bytes(b"x" * 10_000)
            assert path.stat().st_size == 10_000
            assert len(path.read_bytes()) == 10_000
            if index % 2:
                path.unlink()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(os.listdir(null.path)) == 400


@pytest.mark.parametrize("options", [(), ("--no-busy-poll",)], ids=["spinning", "sleeping"])
def test_requests_that_wait_hold_up_no_others(
    mount_null: Callable[..., NullMount], options: tuple[str, ...]
) -> None:
    null = mount_null("--hold-reads", *options)
    readers = 10
    for number in range(readers):
        (null.path / f"held-{number}").write_bytes(b"x" * 100)
    read: list[int] = []

    def hold(number: int) -> None:
        read.append(len((null.path / f"held-{number}").read_bytes()))

    # The pages just written would be read from the kernel's cache.
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    threads = [threading.Thread(target=hold, args=(number,)) for number in range(readers)]
    for thread in threads:
        thread.start()
    wait_until(lambda: null.counts()["waiting_reads"] == readers)
    for number in range(200):
        (null.path / f"{number}").write_bytes(b"x")
    assert read == []
    null.process.send_signal(signal.SIGUSR2)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert read == [100] * readers


def test_requests_that_never_end_do_not_keep_the_daemon(mount_null: Callable[..., NullMount]) -> None:
    null = mount_null("--hold-reads")
    (null.path / "held").write_bytes(b"x")
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    failed: list[int | None] = []

    def hold() -> None:
        try:
            (null.path / "held").read_bytes()
        except OSError as error:
            failed.append(error.errno)

    thread = threading.Thread(target=hold)
    thread.start()
    wait_until(lambda: null.counts()["waiting_reads"] == 1)
    null.process.send_signal(signal.SIGTERM)
    null.finish()
    thread.join(DEADLINE_S)
    assert len(failed) == 1
    assert find_mount(null.path) is None


def test_a_read_only_mount(mount_null: Callable[..., NullMount]) -> None:
    null = mount_null("--read-only")
    with pytest.raises(OSError) as caught:
        (null.path / "file").touch()
    assert caught.value.errno == errno.EROFS
    assert os.listdir(null.path) == []


def test_busy_polling_changes_no_answer(mount_null: Callable[..., NullMount]) -> None:
    def results(*options: str) -> list[object]:
        null = mount_null(*options)
        seen: list[object] = []
        for number in range(200):
            path = null.path / f"{number:03}"
            path.write_bytes(b"x" * (number * 37))
            if number % 3 == 0:
                path.rename(null.path / f"moved-{number}")
            if number % 5 == 0:
                os.mkdir(null.path / f"directory-{number}", 0o750)
            if number % 50 == 0:
                time.sleep(0.01)  # let it fall asleep in between
        for entry in os.scandir(null.path):
            status = entry.stat()
            seen.append((entry.name, status.st_mode, status.st_size, status.st_nlink, status.st_ino))
        seen.append(null.path.stat().st_nlink)
        unmount(null.path)
        last, stderr = null.finish()
        return [*seen, last["inodes"], last["removed"], stderr]

    spinning, sleeping, alone = results(), results("--no-busy-poll"), results("--workers", "1")
    assert spinning == sleeping == alone
    assert len(spinning) == 200 + 40 + 4
