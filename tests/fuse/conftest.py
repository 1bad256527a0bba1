"""Where the tests of this directory run: a fresh directory on each filesystem named below."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.fuse.mount_table import detach, find_mount
from tests.support.mounted import mounted_volume

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 30


@contextmanager
def plain_directory(directory: Path) -> Iterator[Path]:
    """The filesystem that the temporary directory is on: proves the tests themselves."""
    yield directory


@contextmanager
def mounted_mirrorfs(directory: Path) -> Iterator[Path]:
    """A volume mounted by the real command line; its daemon must have nothing to complain of."""
    with mounted_volume(directory, mount_options=("--allow-other",)) as volume:
        yield volume.mountpoint
        volume.umount()
        assert volume.warnings() == []


# A context manager each: given an empty directory, it yields a directory on the filesystem to test.
FILESYSTEMS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "ext4": plain_directory,
    "mirrorfs": mounted_mirrorfs,
}


@pytest.fixture(scope="module", params=FILESYSTEMS)
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One filesystem for a whole module: mounting takes longer than most tests."""
    kind: str = request.param
    with FILESYSTEMS[kind](tmp_path_factory.mktemp(kind)) as directory:
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def mountpoint(filesystem: Path, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the test's own on the filesystem under test."""
    number = len(list(filesystem.iterdir()))
    directory = filesystem / f"test-{number}"
    directory.mkdir()
    return directory


class NullMount:
    """scripts/null_filesystem.py, mounted; in a process of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "scripts" / "null_filesystem.py"), str(path), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.report()["state"] == "ready"

    def report(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        report: dict[str, Any] = json.loads(line)
        return report

    def counts(self) -> dict[str, Any]:
        """What it holds now."""
        self.process.send_signal(signal.SIGUSR1)
        return self.report()

    def finish(self) -> tuple[dict[str, Any], str]:
        """Its last words and its standard error, once it has ended by itself."""
        stdout, stderr = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, stderr
        return json.loads(stdout.splitlines()[-1]), stderr

    def remove(self) -> None:
        """Leave no process and no mount behind, whatever happened."""
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)
        if find_mount(self.path) is not None:
            detach(self.path)


@pytest.fixture
def mount_null(tmp_path: Path) -> Iterator[Callable[..., NullMount]]:
    """Mounts the null filesystem on a fresh directory per call."""
    mounts: list[NullMount] = []

    def mount(*options: str) -> NullMount:
        path = tmp_path / f"null-{len(mounts)}"
        path.mkdir()
        mounts.append(NullMount(path, *options))
        return mounts[-1]

    yield mount
    for mount_ in mounts:
        mount_.remove()


@pytest.fixture
def null(mount_null: Callable[..., NullMount]) -> NullMount:
    """The null filesystem with the options it has by default."""
    return mount_null()


def needs_root(reason: str) -> pytest.MarkDecorator:
    """Skip for other users."""
    return pytest.mark.skipif(os.geteuid() != 0, reason=reason)
