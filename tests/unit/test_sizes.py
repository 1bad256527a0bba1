"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.core.sizes import format_size, parse_size
from mirrorfs.errors import FormatError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("17", 17),
        ("500kB", 500_000),
        ("2 MiB", 2 << 20),
        ("1.5GiB", 3 << 29),
        (" 50G ", 50 << 30),
        ("9007199254740993", 9007199254740993),
        ("4.096kB", 4096),
        ("1.1B", 1),
        ("1125899906842623B", (1 << 50) - 1),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "5 XB", "1 000", "0x10", "9" * 20, "1.5.2MiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(FormatError):
        parse_size(text)


@given(
    st.one_of(
        st.integers(0, 1 << 40),
        st.integers(0, (1 << 63) - 1),
        st.builds(lambda n, e: n << e, st.integers(0, 1023), st.integers(0, 40)),
    )
)
def test_what_is_written_is_read(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes
