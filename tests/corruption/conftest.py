"""The volume that all tests here harm copies of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirrorfs.engine import reserve
from tests.corruption.original import Original, make_original
from tests.corruption.place import Place, memory_folder

RESERVE_BYTES = 4096
"""Writing, and copying, the real reserve takes a fifth of the time of a test."""


@pytest.fixture(scope="session")
def original() -> Iterator[Original]:
    with memory_folder() as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reserve, "RESERVE_BYTES", RESERVE_BYTES)
            made = make_original(folder)
        yield made


@pytest.fixture
def place(original: Original, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(reserve, "RESERVE_BYTES", RESERVE_BYTES)
    with memory_folder() as folder:
        yield Place(original, folder)
