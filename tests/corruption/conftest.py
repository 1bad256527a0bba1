"""The volume that all tests here harm copies of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.corruption.place import Original, Place, make_original, memory_folder


@pytest.fixture(scope="session")
def original() -> Iterator[Original]:
    with memory_folder() as folder:
        yield make_original(folder)


@pytest.fixture
def place(original: Original) -> Iterator[Place]:
    with memory_folder() as folder:
        yield Place(original, folder)
