"""Locking by the real command line: by hand, by the token that is pulled, with files open and stores away."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.fuse.mount_table import find_mount
from tests.support.mounted import REPOSITORY, Mounted, mounted_volume
from tests.support.token_table import Shown

GONE_ERRORS = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
NOTICED_S = 30.0
"""Far more than two looks, each 1.5 s after the one before, take on a busy machine."""


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    with mounted_volume(tmp_path, mount=False, mirror_delay_s=0.5) as volume:
        yield volume


def lock_table(volume: Mounted, text: str) -> None:
    volume.config.write_text(volume.config.read_text() + f"\n[lock]\n{text}\n")


def wait_gone(volume: Mounted, *, within_s: float) -> float:
    """Return after how many seconds the mount was gone."""
    began_s = time.monotonic()
    while find_mount(volume.mountpoint) is not None:
        assert time.monotonic() - began_s < within_s, "the mount does not go away"
        time.sleep(0.01)
    return time.monotonic() - began_s


def lookers(volume: Mounted) -> list[int]:
    """Processes that look for the token on behalf of the volume's daemon."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"mirrorfs.cli.token_look" in (entry / "cmdline").read_bytes():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in volume.daemon_pids():
                    found.append(int(entry.name))
        except OSError:
            continue  # It ended meanwhile.
    return found


WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
number = 0
try:
    while True:
        os.write(file, b"%015d\\n" % number)
        number += 1
        if number % 16 == 0:
            os.fsync(file)
            print(number, flush=True)
except OSError as error:
    print(-error.errno, flush=True)
"""


def start_writer(volume: Mounted) -> subprocess.Popen[str]:
    """A program that appends numbered lines and says, after each fsync, how many are safe."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(volume.mountpoint / "journal")],
        stdout=subprocess.PIPE, cwd="/", text=True,
    )  # fmt: skip
    assert writer.stdout is not None and int(writer.stdout.readline()) > 0
    return writer


def check_writer(volume: Mounted, writer: subprocess.Popen[str]) -> None:
    """It got an error soon, and the next mount has all it had fsynced, in its order."""
    output, _ = writer.communicate(timeout=30)
    said = [int(line) for line in output.split()]
    assert -said.pop() in GONE_ERRORS
    volume.wait_gone()
    assert list(volume.mountpoint.iterdir()) == []
    volume.mount()
    lines = (volume.mountpoint / "journal").read_bytes().splitlines()
    assert len(lines) >= max(said, default=16)
    assert lines == [b"%015d" % number for number in range(len(lines))]


def test_lock_with_open_files_and_a_writer(volume: Mounted) -> None:
    volume.mount()
    (volume.mountpoint / "unsynced").write_text("not fsynced, but written before the lock")
    reader = os.open(volume.mountpoint / "unsynced", os.O_RDONLY)
    writer = start_writer(volume)
    try:
        said = volume.must("lock", str(volume.mountpoint))
        assert "is locked; what its stores lack is sent with the next mount" in said
        assert find_mount(volume.mountpoint) is None and volume.daemon_pids() == []
        with pytest.raises(OSError) as refused:
            os.fstat(reader)
        assert refused.value.errno in GONE_ERRORS
    finally:
        os.close(reader)
    shown = volume.must("status", volume.name)
    assert re.search(r"is not mounted\.\n  It was locked at [0-9:]+: `mirrorfs lock` was run\.", shown)
    locked = volume.status()["locked"]
    assert (locked["event"], locked["complete"]) == ("command", True)
    check_writer(volume, writer)
    assert (volume.mountpoint / "unsynced").read_text() == "not fsynced, but written before the lock"
    assert volume.status()["locked"] is None
    assert "its token is removed" in volume.must("status", volume.name)
    volume.umount()
    assert volume.status()["locked"] is None
    outcome = volume.run("lock", volume.name)
    assert (outcome.returncode, "is not mounted" in outcome.stdout) == (1, True)
    assert "No volume is mounted" in volume.must("lock", "--all")
    assert volume.run("lock", volume.name, "--all").returncode == 2


def test_pulled_token_locks_after_the_grace(volume: Mounted) -> None:
    lock_table(volume, "grace_s = 2")
    volume.mount()
    (volume.mountpoint / "unsynced").write_text("kept")
    writer = start_writer(volume)
    volume.wait_until(lambda: volume.status()["lock"]["presence"] == "present", within_s=NOTICED_S)
    token = volume.token
    with token.removed():
        began_s = time.monotonic()
        wait_gone(volume, within_s=NOTICED_S)
        volume.wait_gone()
        print(f"removed to gone, with a grace of 2 s: {time.monotonic() - began_s:.1f} s")
        assert "its token was removed" in volume.must("status", volume.name)
        assert volume.run("mount", volume.name, str(volume.mountpoint)).returncode == 3
    assert volume.status()["locked"]["event"] == "token-removed"
    assert lookers(volume) == []
    check_writer(volume, writer)
    assert (volume.mountpoint / "unsynced").read_text() == "kept"
    log = volume.log_text()
    assert "The token is gone: the volume locks in 2 s." in log
    assert "The volume is locked: its token was removed." in log


def test_token_that_comes_back_in_time_and_one_that_is_of_no_interest(volume: Mounted) -> None:
    lock_table(volume, "grace_s = 60")
    volume.mount()
    # Whoever looks is killed: another takes its place, and nothing is locked.
    volume.wait_until(lambda: len(lookers(volume)) == 1, within_s=NOTICED_S)
    (first,) = lookers(volume)
    os.kill(first, signal.SIGKILL)
    volume.wait_until(lambda: lookers(volume) not in ([], [first]), within_s=NOTICED_S)
    with volume.token.removed():
        volume.wait_until(lambda: volume.status()["lock"]["presence"] == "removed", within_s=NOTICED_S)
        # Here, where the grace is long: a short one may be over before `status` has answered.
        assert 0 < volume.status()["lock"]["locks_in_s"] <= 60
        shown = volume.must("status", volume.name)
    volume.wait_until(lambda: volume.status()["lock"]["presence"] == "present", within_s=NOTICED_S)
    assert volume.status()["lock"]["locks_in_s"] is None
    log = volume.log_text()
    Shown("PKCS#11").check("back in time", shown + log)
    assert "the process that looks for the token is silent or gone: another is started" in log
    (volume.mountpoint / "file").write_text("still here")
    volume.umount()

    volume.config.write_text(volume.config.read_text().replace("grace_s = 60", 'on_removal = "no"'))
    volume.mount()
    assert "pulling the token does not lock it" in volume.must("status", volume.name)
    assert lookers(volume) == []


def test_read_only_once_the_token_is_gone(volume: Mounted) -> None:
    lock_table(volume, 'on_removal = "read-only"\ngrace_s = 0')
    volume.mount()
    (volume.mountpoint / "read").write_text("kept")
    opened = os.open(volume.mountpoint / "written", os.O_WRONLY | os.O_CREAT)
    with volume.token.removed():
        volume.wait_until(lambda: volume.status()["lock"]["read_only"], within_s=NOTICED_S)
        with pytest.raises(OSError) as refused:
            (volume.mountpoint / "after").write_text("refused")
        assert refused.value.errno == errno.EROFS
        with pytest.raises(OSError) as refused:
            os.write(opened, b"refused")  # which the kernel may keep to itself
            os.fsync(opened)
        assert refused.value.errno in (errno.EROFS, errno.EIO)
        assert (volume.mountpoint / "read").read_text() == "kept"
        assert "READ-ONLY: its token was removed" in volume.must("status", volume.name)
        assert "Every store holds everything" in volume.flush()
    with contextlib.suppress(OSError):
        os.close(opened)
    volume.umount()
    volume.mount()
    assert (volume.mountpoint / "written").read_bytes() == b""
    (volume.mountpoint / "after").write_text("allowed again")


def test_lock_does_not_wait_for_stores(volume: Mounted) -> None:
    volume.mount()
    volume.must("flush", volume.name)
    (volume.mountpoint / "late").write_bytes(os.urandom(1 << 20))
    for place in volume.stores.values():
        place.rename(place.with_name(f"away-{place.name}"))
    began_s = time.monotonic()
    volume.must("lock", volume.name)
    print(f"lock with every store away: {time.monotonic() - began_s:.1f} s")
    assert time.monotonic() - began_s < 15
    for place in volume.stores.values():
        place.with_name(f"away-{place.name}").rename(place)
    volume.mount()
    assert (volume.mountpoint / "late").stat().st_size == 1 << 20
    assert "every store holds all of it" in volume.umount()


@pytest.fixture
def both(volume: Mounted, tmp_path: Path) -> Iterator[tuple[Mounted, str, Path]]:
    """The volume, and another one of the same user, with its mountpoint; both mounted."""
    name, place = f"{volume.name}-2", tmp_path / "mnt-2"
    stores = [tmp_path / f"store-{letter}" for letter in "cd"]
    for folder in (place, *stores):
        folder.mkdir()
    volume.must(
        "init", name, *(f"--store={folder.name}=file://{folder}" for folder in stores),
        "--token", volume.token.uri(), "--create-key", "--kdf-memory-mib", "64",
    )  # fmt: skip
    config = volume.config.with_name(f"{name}.toml")
    config.write_text(config.read_text() + "\n[lock]\non_suspend = false\n")
    volume.mount()
    volume.must("mount", name, str(place))
    try:
        yield volume, name, place
    finally:
        volume.run("lock", name)


def test_all_volumes_and_what_is_exempt(both: tuple[Mounted, str, Path], tmp_path: Path) -> None:
    volume, second, place = both
    view = tmp_path / "view"
    view.mkdir()
    (volume.mountpoint / "file").write_text("1")
    volume.must("flush", volume.name)
    volume.must("mount", volume.name, str(view), "--read-only")
    assert (view / "file").read_text() == "1"
    said = volume.must("lock", "--all", "--for", "suspend")
    assert f"A read-only view of volume {volume.name} is locked" in said
    assert f"Volume {volume.name} is locked" in said
    assert f"Volume {second} stays mounted, as its configuration has it" in said
    assert [find_mount(mount) is None for mount in (volume.mountpoint, view, place)] == [True, True, False]
    assert "the machine went to sleep" in volume.must("status", volume.name)
    assert f"Volume {second} is locked" in volume.must("lock", "--all", "--for", "logout")
    assert find_mount(place) is None and list(place.iterdir()) == []
    assert not list((volume.state / "views").iterdir())


def test_lock_ends_the_waiting_of_umount(volume: Mounted) -> None:
    volume.mount()
    volume.must("flush", volume.name)
    (volume.mountpoint / "late").write_bytes(os.urandom(1 << 20))
    for place in volume.stores.values():
        place.rename(place.with_name(f"away-{place.name}"))
    with volume.start("umount", volume.name) as umount:
        wait_gone(volume, within_s=30)
        assert volume.daemon_pids()
        volume.must("lock", volume.name)
        output, _ = umount.communicate(timeout=30)
    assert (umount.returncode, volume.daemon_pids()) == (1, [])
    assert "was locked meanwhile; what the stores lack is sent with the next mount" in output


def test_script_for_sleep(volume: Mounted, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "the tests run as root"
    program = tmp_path / "program"
    # It locks where it is told to look, and nothing of whoever runs the tests.
    program.write_text(
        f'#!/bin/sh\n[ -n "${{MIRRORFS_CONFIG_HOME:-}}" ] || exit 0\n'
        f'PYTHONPATH={REPOSITORY} exec {sys.executable} -m mirrorfs "$@"\n'
    )
    program.chmod(0o755)
    volume.mount()
    done = subprocess.run(
        [REPOSITORY / "scripts/systemd/mirrorfs-lock-all", "suspend"],
        env=volume.env | {"MIRRORFS": str(program)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Volume {volume.name} is locked" in done.stdout
    assert find_mount(volume.mountpoint) is None and volume.daemon_pids() == []
    assert volume.status()["locked"]["event"] == "suspend"


def test_process_that_does_not_answer_is_killed(volume: Mounted) -> None:
    volume.mount()
    # Nothing stays open here: every child would wait for the stopped process when it closes what it inherits.
    with open(volume.mountpoint / "file", "wb") as file:
        file.write(b"safe")
        file.flush()
        os.fsync(file)
    (pid,) = volume.daemon_pids()
    os.kill(pid, signal.SIGSTOP)
    outcome = volume.run("lock", volume.name, "--force-after", "1")
    assert (outcome.returncode, volume.daemon_pids()) == (1, [])
    assert "is locked, but the process that served it did not answer and was killed" in outcome.stdout
    assert find_mount(volume.mountpoint) is None
    assert volume.run("lock", volume.name, "--force-after", "0").returncode == 2
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"safe"
