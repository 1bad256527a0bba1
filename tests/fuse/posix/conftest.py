"""Every case of this directory runs on ext4 first, then on one mount that all of them share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.fuse.conftest import FILESYSTEMS
from tests.fuse.posix.differences import DIFFERENCES

_numbers = count()


@pytest.fixture(scope="package", params=FILESYSTEMS)
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One filesystem for all modules: mounting takes longer than hundreds of cases."""
    if os.geteuid() != 0:
        pytest.skip("the cases of other users need root's rights")
    kind: str = request.param
    directory = tmp_path_factory.mktemp(kind)
    assert find_type(directory) == "ext4", "the cases are proven on ext4: choose a --basetemp there"
    with FILESYSTEMS[kind](directory) as tested:
        tested.chmod(0o755)
        yield tested


def find_type(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def here(filesystem: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that anybody may write to, root's, and the working directory of the test.

    Names in the tests are relative to it: the directories above are pytest's and closed to others.
    """
    directory = filesystem / f"case-{next(_numbers)}"
    directory.mkdir()
    directory.chmod(0o777)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """Modes in the tests are what the cases say."""
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture
def differs(filesystem: Path, request: pytest.FixtureRequest) -> Callable[[str], bool]:
    """Whether this is the mount, for a difference that differences.py names."""
    kind: str = request.node.callspec.params["filesystem"]

    def asked(name: str) -> bool:
        assert name in DIFFERENCES
        return kind == "mirrorfs"

    return asked
