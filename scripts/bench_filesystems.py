"""The filesystems that the benchmark compares: what each one must be able to do, and the simplest of them.

Mounting is a step of its own, apart from making the filesystem, so that a remount leaves a daemon's own
caches empty. Daemons run in the foreground as children of this process: their processes are known, and
their end is the end of all that they still had to write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PASSWORD = "correct horse battery"  # of throw-away filesystems
COMMAND_DEADLINE_S = 120.0
MOUNT_DEADLINE_S = 60.0
END_DEADLINE_S = 300.0
"""How long a daemon may write after its unmount."""


class BenchError(Exception):
    """A filesystem under test did not do what the benchmark needs of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Two empty directories of one filesystem in one round."""

    local: Path
    """What lies on the PC: mountpoint, configuration, caches, and the ciphertext of local filesystems."""
    remote: Path
    """What would lie elsewhere: the stores of those that have any."""


def run(*argv: str, input_text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it said. Raises: BenchError: its exit code is not 0."""
    # Not through a pipe: a daemon that it leaves behind would keep that open for ever.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            argv,
            input=input_text,
            text=True,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            check=False,
            timeout=COMMAND_DEADLINE_S,
        )
        output.seek(0)
        said = output.read()
    if done.returncode:
        raise BenchError(f"{argv[0]} failed: {said}")
    return said


class Filesystem:
    """One filesystem of one round; the base class is the disk itself."""

    name = "disk"
    program: str | None = None
    """The command that must be on PATH; None when nothing is needed."""
    is_peer = False
    """Whether it encrypts and so is what MirrorFS is compared with."""
    honours_fsync = True
    """Whether an fsync reaches the disk before it returns, as strace shows it."""
    keeps_files = True
    """Whether files are there after a remount, with their bytes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.root = place.local / "mnt"
        """Where the workloads work."""
        self.root.mkdir()

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can be measured here."""
        return cls.program is None or shutil.which(cls.program) is not None

    @classmethod
    def version(cls) -> str:
        """Name and version for the report; empty when there is nothing to say."""
        return ""

    def make(self) -> None:
        """Make the filesystem; called once, before the first mount."""

    def mount(self) -> None:
        """Mount it; returns when it answers."""

    def umount(self) -> None:
        """Unmount it and wait until its daemon has ended; does nothing when it is not mounted."""

    def close(self) -> None:
        """Leave nothing behind; called last, whatever happened."""

    def flush(self) -> None:
        """Return when its stores hold everything: those that write through have nothing to do."""

    def pids(self) -> list[int]:
        """All processes of its daemon."""
        return []

    def stores(self) -> list[Path]:
        """The directories that hold what it stores, one per copy; of MirrorFS without the local log."""
        return []


class Served(Filesystem):
    """A FUSE filesystem whose daemon is a child in the foreground; a subclass gives its command."""

    unmount_command: tuple[str, ...] = ("fusermount3", "-u")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = place.local / "daemon.log"

    def command(self) -> Sequence[str]:
        """The argv of the daemon."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables that it needs besides ours."""
        return {}

    def password(self) -> str:
        """What it reads from standard input."""
        return PASSWORD + "\n"

    def mount(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self.password().encode())
        deadline_s = time.monotonic() + MOUNT_DEADLINE_S
        while not os.path.ismount(self.root):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise BenchError(f"{self.name} did not come up: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def umount(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if os.path.ismount(self.root):
            run(*self.unmount_command, str(self.root))
        try:
            process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            raise BenchError(f"{self.name} did not end after its unmount") from exc

    def pids(self) -> list[int]:
        return [] if self._process is None else with_children(self._process.pid)


class Null(Served):
    """Our FUSE layer over a filesystem that does nothing: the ceiling."""

    name = "null"
    honours_fsync = False
    keeps_files = False

    def command(self) -> Sequence[str]:
        return [sys.executable, str(REPOSITORY / "scripts" / "null_filesystem.py"), str(self.root)]


def with_children(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:  # grows while it is walked
        found.extend(parents.get(each, ()))
    return found
