"""`mount --user`: root starts it and the daemon has nothing of root; everything works all the same."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.cli.mount_user import become_user
from mirrorfs.errors import UsageError
from tests.cli.machine import wait_ended
from tests.fuse.conftest import needs_root
from tests.support.mounted import REPOSITORY, Mounted, mounted_volume
from tests.support.own_mounts import OwnMounts, own_mounts

USER = "nobody"
ENTRY = pwd.getpwnam(USER)
NOBODY = (ENTRY.pw_uid, ENTRY.pw_gid)

pytestmark = needs_root("only root can become another user")


class Practice:
    """A volume of that user, all of it, in a namespace where that user can run Python."""

    def __init__(self, volume: Mounted, own: OwnMounts) -> None:
        self.volume = volume
        self.own = own

    def mirrorfs(
        self, *arguments: str, user: tuple[int, int] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root by default; stdout and stderr in one text."""
        return subprocess.run(
            self.own.command(sys.executable, "-m", "mirrorfs", *arguments, user=user),
            env=self.volume.env | environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def must(self, *arguments: str, user: tuple[int, int] | None = None) -> str:
        """Run one that has to succeed."""
        done = self.mirrorfs(*arguments, user=user)
        assert done.returncode == 0, (done.stdout, self.volume.log_text())
        return done.stdout

    def mount(self, *options: str) -> str:
        """Mount it as root for the user."""
        mountpoint = str(self.volume.mountpoint)
        return self.must("mount", self.volume.name, mountpoint, "--user", USER, *options)

    def daemon(self) -> int:
        """The process that serves it."""
        (pid,) = self.volume.daemon_pids()
        return pid

    def mounts(self) -> int:
        """How many mounts are on the mountpoint there."""
        text = Path(f"/proc/{self.own.holder}/mountinfo").read_text()
        return text.count(f" {self.volume.mountpoint} ")


@pytest.fixture(scope="module")
def practice() -> Iterator[Practice]:
    # Not below pytest's directories, which nobody else may enter.
    scratch = Path(tempfile.mkdtemp(prefix="mirrorfs-user-", dir="/tmp"))
    scratch.chmod(0o711)
    folder, kept = scratch / "practice", scratch / "kept"
    folder.mkdir()
    kept.mkdir()
    try:
        with (
            mounted_volume(folder, mount=False) as volume,
            own_mounts(kept, shown=[REPOSITORY]) as own,
        ):
            give(folder)
            made = Practice(volume, own)
            yield made
            for pid in volume.daemon_pids():
                os.kill(pid, signal.SIGKILL)
            volume.wait_gone()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def give(folder: Path) -> None:
    """Make everything there the user's."""
    for place in (folder, *folder.rglob("*")):
        os.chown(place, *NOBODY, follow_symlinks=False)


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processes_of(practice: Practice, module: str) -> list[int]:
    """Processes that run one of our modules in the namespace of the test."""
    namespace = Path(f"/proc/{practice.own.holder}/ns/mnt").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and module.encode() in (entry / "cmdline").read_bytes():
                found += [int(entry.name)] if (entry / "ns/mnt").readlink() == namespace else []
        except OSError:
            continue  # It ended meanwhile.
    return found


def assert_powerless(pid: int) -> None:
    status = status_of(pid)
    assert status["Uid"].split() == [str(NOBODY[0])] * 4
    assert status["Gid"].split() == [str(NOBODY[1])] * 4
    assert set(status["Groups"].split()) <= {str(gid) for gid in os.getgrouplist(USER, NOBODY[1])}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"


def test_the_daemon_has_nothing_of_root_and_serves(practice: Practice) -> None:
    volume = practice.volume
    practice.mount()
    daemon = practice.daemon()
    assert_powerless(daemon)
    (helper_pid,) = processes_of(practice, "mirrorfs.cli.mounter")
    helper = status_of(helper_pid)
    assert int(helper["CapEff"], 16) == int(helper["CapBnd"], 16) == 1 << 21 | 1 << 2
    assert helper["NoNewPrivs"] == "1"
    for path in (volume.state, *volume.state.rglob("*")):
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == NOBODY, path
        assert stat.S_IMODE(found.st_mode) & 0o077 == 0, path
    file = str(volume.mountpoint / "letter")
    practice.own.run("sh", "-c", f"echo dear > {file} && sync {file} && cat {file}", user=NOBODY)
    practice.must("flush", volume.name, user=NOBODY)
    assert practice.mirrorfs("status", volume.name, user=NOBODY).returncode == 0
    # Without --allow-other the mount is the user's alone, even before root.
    refused = practice.own.command("cat", file)
    assert subprocess.run(refused, capture_output=True, check=False).returncode == 1
    practice.must("umount", volume.name, user=NOBODY)
    wait_ended(daemon)
    assert practice.mounts() == 0
    practice.mount("--read-only")
    assert practice.own.run("cat", file, user=NOBODY) == "dear\n"
    (view,) = processes_of(practice, "mirrorfs.cli.daemon")
    assert_powerless(view)
    os.kill(view, signal.SIGTERM)
    wait_ended(view)
    assert practice.mounts() == 0
    assert volume.warnings() == []


def test_a_killed_daemon_leaves_no_dead_mount(practice: Practice) -> None:
    volume = practice.volume
    practice.mount("--allow-other")
    daemon = practice.daemon()
    (helper,) = processes_of(practice, "mirrorfs.cli.mounter")
    practice.own.run("sh", "-c", f"echo all > {volume.mountpoint}/shared", user=NOBODY)
    assert practice.own.run("cat", f"{volume.mountpoint}/shared") == "all\n"
    os.kill(helper, signal.SIGTERM)  # as a service manager does that stops a whole group
    os.kill(daemon, signal.SIGKILL)
    wait_ended(daemon)
    wait_ended(helper)
    assert practice.mounts() == 0


def as_the_unit_bounds() -> list[str]:
    """The argv that gives a command no more of root than the unit for systemd does."""
    unit = (REPOSITORY / "scripts/systemd/mirrorfs@.service").read_text()
    (kept,) = re.findall(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    assert "NoNewPrivileges=yes" in unit
    known = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True).stdout
    dropped = {name.lower() for name in known.split()} - {
        name.removeprefix("CAP_").lower() for name in kept.split()
    }
    return ["setpriv", "--no-new-privs", "--bounding-set=" + ",".join(f"-{name}" for name in sorted(dropped))]


def test_in_the_foreground(practice: Practice) -> None:
    volume = practice.volume
    mountpoint = str(volume.mountpoint)
    command = ("mount", volume.name, mountpoint, "--user", USER, "--foreground")
    with subprocess.Popen(
        practice.own.command(*as_the_unit_bounds(), sys.executable, "-m", "mirrorfs", *command),
        env=volume.env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "is mounted" in line:
                break
        assert_powerless(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stderr.read()
    assert practice.mounts() == 0


def test_what_belongs_to_somebody_else_is_refused(practice: Practice) -> None:
    volume = practice.volume
    mount = ("mount", volume.name, str(volume.mountpoint), "--user")
    places = {
        volume.mountpoint: "mountpoint does not belong to the user",
        volume.config: "configuration of volume",
        volume.state: "state directory",
    }
    for place, words in places.items():
        before = place.stat()
        os.chown(place, 1, 1)
        try:
            done = practice.mirrorfs(*mount, USER)
        finally:
            os.chown(place, before.st_uid, before.st_gid)
        assert done.returncode in (1, 2) and words in done.stdout, (place, done.stdout)
        assert practice.mounts() == 0


def test_whom_it_cannot_become(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (("root", "leave out --user"), ("nobody-of-that-name", "There is no user")):
        with pytest.raises(UsageError, match=words):
            become_user(name, mountpoint="/nowhere", allow_other=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="Only root"):
        become_user(USER, mountpoint="/nowhere", allow_other=False)


def test_an_installation_that_the_user_cannot_read_is_refused(practice: Practice) -> None:
    volume = practice.volume
    done = practice.mirrorfs(
        "mount",
        volume.name,
        str(volume.mountpoint),
        "--user",
        USER,
        PYTHONPATH=str(unreadable_copy(practice)),
    )
    assert done.returncode == 2 and "cannot run this installation" in done.stdout
    for helper in processes_of(practice, "mirrorfs.cli.mounter"):
        wait_ended(helper)


def unreadable_copy(practice: Practice) -> Path:
    copy = practice.volume.config.parents[2] / "copy"
    shutil.copytree(REPOSITORY / "mirrorfs", copy / "mirrorfs", ignore=shutil.ignore_patterns("__pycache__"))
    copy.chmod(0o700)
    return copy
