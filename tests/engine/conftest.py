"""Fixtures of several modules."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine import checkpointer
from tests.support.pruned import Pruned, prune
from tests.support.rotated import Rotated


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Rotated:
    volume = Rotated(tmp_path_factory.mktemp("rotated"))
    with pytest.MonkeyPatch.context() as patch:
        # A checkpoint of every segment.
        patch.setattr(checkpointer, "JOURNAL_MIN_BYTES", 10)
        patch.setattr(checkpointer, "SEGMENTS_MAX", 0)
        trio.run(volume.write, clock=MockClock(autojump_threshold=0))
    return volume


@pytest.fixture
def it(written: Rotated, tmp_path: Path) -> Rotated:
    volume = copy(written)
    volume.root = tmp_path
    volume.places = [dict(place) for place in written.places]
    return volume


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """Not to be changed."""
    return trio.run(prune, tmp_path_factory.mktemp("pruned") / "state")
