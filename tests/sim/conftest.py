"""Where simulated volumes keep their real index files: memory, where there is a tmpfs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.place import memory_directory


@pytest.fixture
def fast_directory() -> Iterator[Path]:
    """An empty directory, on a tmpfs where there is one."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-sim-", dir=memory_directory()) as directory:
        yield Path(directory)
