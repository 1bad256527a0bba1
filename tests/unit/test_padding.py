"""Sizes that a store sees."""

from __future__ import annotations

import pytest

from mirrorfs.format.frame import TAG_SIZE, Body, Codec, Kind, frame_size, padded_size
from mirrorfs.format.padding import bucket, padme


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (1, 1),
        (2, 2),
        (9, 10),
        (16, 16),
        (17, 18),
        (100, 104),
        (1000, 1024),
        (65537, 67584),
        (1 << 20, 1 << 20),
    ],
)
def test_padme(size: int, expected: int) -> None:
    assert padme(size) == expected


def test_padme_grows_little_and_never_shrinks() -> None:
    last = 0
    for size in range(1, 70_000):
        padded = padme(size)
        assert size <= padded <= size * 1.12
        assert padded >= last
        last = padded


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 256), (256, 256), (257, 512), (1025, 2048), (4096, 4096), (4097, 8192), (8192, 8192), (8193, 12288)],
)
def test_bucket(size: int, expected: int) -> None:
    assert bucket(size) == expected


@pytest.mark.parametrize(
    ("kind", "pad_data", "expected"),
    [
        (Kind.JOURNAL, False, 512),
        (Kind.DATA, True, 304),
        (Kind.DATA, False, 300),
        (Kind.CHECKPOINT, False, 304),
        (Kind.TRAILER, False, 304),
    ],
)
def test_kinds(kind: Kind, pad_data: bool, expected: int) -> None:
    assert padded_size(kind, 300, pad_data=pad_data) == expected
    assert frame_size(Body(kind, Codec.RAW, bytes(288), 288), pad_data=pad_data) == 32 + expected + TAG_SIZE
