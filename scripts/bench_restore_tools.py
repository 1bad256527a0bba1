"""What restores in scripts/bench-restore: MirrorFS, and the programs that a person would compare it with.

Each keeps what it saved in directories of this machine, encrypted, with its own defaults.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from scripts.bench_filesystems import PASSWORD, BenchError
from scripts.bench_peers import first_line
from tests.support.mounted import REPOSITORY, Mounted, mounted_volume


def call(argv: list[str], environment: dict[str, str], *, cwd: Path | None = None) -> str:
    """Run a command to its end, however long that takes. Raises: BenchError: its exit code is not 0."""
    done = subprocess.run(
        argv, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{argv[0]} failed: {done.stdout[-2000:]}")
    return done.stdout


class Tool:
    """One program that saves a tree and restores it."""

    name = ""
    program = ""
    """The command that must be on PATH."""

    def __init__(self, folder: Path) -> None:
        """`folder`: an empty directory of its own."""
        self.folder = folder

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can be measured here."""
        return shutil.which(cls.program) is not None

    @classmethod
    def version(cls) -> str:
        """Name and version."""
        return first_line(cls.program, "--version")

    def save(self, tree: Path) -> None:
        """Save a tree, once."""
        raise NotImplementedError

    def restore(self, dest: Path) -> Path:
        """Restore it below a new directory. Returns where the tree then is."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing behind."""


class MirrorFs(Tool):
    """A volume with two directories as stores; restored from both, with nothing of the PC that wrote it."""

    name = "mirrorfs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stack = ExitStack()
        self._volume: Mounted | None = None
        self.moment = ""
        """Local time at which the tree stood; something was changed after it."""

    @classmethod
    def is_installed(cls) -> bool:
        return True

    @classmethod
    def version(cls) -> str:
        return first_line(sys.executable, "-m", "mirrorfs", "--version")

    @property
    def volume(self) -> Mounted:
        """The volume, once a tree is saved."""
        if self._volume is None:
            raise BenchError("nothing is saved yet")
        return self._volume

    def urls(self) -> list[str]:
        """Of its stores, as options."""
        return [f"--store=file://{place}" for place in self.volume.stores.values()]

    def save(self, tree: Path) -> None:
        self._volume = volume = self._stack.enter_context(mounted_volume(self.folder))
        call(["cp", "-a", f"{tree}/.", str(volume.mountpoint)], dict(volume.env))
        volume.flush()
        time.sleep(1.1)  # moments are named by the second
        self.moment = time.strftime("%Y-%m-%dT%H:%M:%S")
        time.sleep(1.1)
        (volume.mountpoint / "later").mkdir()
        (volume.mountpoint / "later").rmdir()
        volume.umount()

    def restore(self, dest: Path) -> Path:
        self.command("restore", *self.urls(), "--yes", str(dest))
        return dest

    def command(self, *arguments: str, state: Path | None = None) -> str:
        """Run a command as on another PC, which has never seen the volume."""
        home = self.folder / "nothing" if state is None else state
        environment = dict(self.volume.env) | {
            "HOME": str(home),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(REPOSITORY),
            "MIRRORFS_CONFIG_HOME": str(home / "config"),
            "MIRRORFS_STATE_HOME": str(home / "state"),
        }
        return call([sys.executable, "-m", "mirrorfs", *arguments], environment)

    def close(self) -> None:
        self._stack.close()


class Restic(Tool):
    """restic, with its cache as a new PC has it: empty."""

    name = program = "restic"

    @classmethod
    def version(cls) -> str:
        return " ".join(first_line("restic", "version").split()[:2])

    def _run(self, *arguments: str) -> None:
        environment = dict(os.environ) | {"RESTIC_PASSWORD": PASSWORD}
        call(["restic", "--repo", str(self.folder / "repo"), "--no-cache", "-q", *arguments], environment)

    def save(self, tree: Path) -> None:
        self._tree = tree
        self._run("init")
        self._run("backup", str(tree))

    def restore(self, dest: Path) -> Path:
        self._run("restore", "latest", "--target", str(dest))
        return dest / self._tree.relative_to("/")


class Borg(Tool):
    """borg, with its cache as a new PC has it: empty."""

    name = program = "borg"

    def _run(self, *arguments: str, cwd: Path) -> None:
        environment = dict(os.environ) | {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": str(self.folder / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        call(["borg", *arguments], environment, cwd=cwd)

    def save(self, tree: Path) -> None:
        self._run("init", "--encryption=repokey-blake2", str(self.folder / "repo"), cwd=self.folder)
        self._run("create", f"{self.folder / 'repo'}::all", ".", cwd=tree)

    def restore(self, dest: Path) -> Path:
        shutil.rmtree(self.folder / "base" / ".cache", ignore_errors=True)
        dest.mkdir()
        self._run("extract", f"{self.folder / 'repo'}::all", cwd=dest)
        return dest


TOOLS: tuple[type[Tool], ...] = (MirrorFs, Restic, Borg)
