"""Names of segments, frames and positions, both ways."""

from __future__ import annotations

import pytest

from mirrorfs.errors import FormatError, LimitError
from mirrorfs.format.ids import (
    SegmentId,
    Stream,
    format_position,
    frame_id,
    parse_position,
    parse_segment_object_key,
    segment_object_key,
    split_frame_id,
)
from mirrorfs.format.limits import ORDINAL_MAX, SEQUENCE_MAX

WRITER = bytes.fromhex("0123456789abcdef")


@pytest.mark.parametrize(
    ("stream", "segment", "key"),
    [
        (Stream.MAIN, SegmentId(0, 1, WRITER), "segments/0000000000000000-00000001-0123456789abcdef"),
        (
            Stream.CHECKPOINT,
            SegmentId(255, 16, WRITER),
            "checkpoints/00000000000000ff-00000010-0123456789abcdef",
        ),
        (
            Stream.RELOCATED,
            SegmentId(SEQUENCE_MAX, 2**32 - 1, WRITER),
            "relocated/000007ffffffffff-ffffffff-0123456789abcdef",
        ),
    ],
)
def test_segment_keys(stream: Stream, segment: SegmentId, key: str) -> None:
    assert segment_object_key(stream, segment) == key
    assert parse_segment_object_key(key) == (stream, segment)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "segments/",
        "segments/0000000000000000-00000001-0123456789abcde",
        "segments/0000000000000000-00000001-0123456789ABCDEF",
        "segments/0000080000000000-00000001-0123456789abcdef",
        "other/0000000000000000-00000001-0123456789abcdef",
        "segments/0000000000000000-00000001-0123456789abcdef\n",
        "segments/x/0000000000000000-00000001-0123456789abcdef",
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(FormatError):
        parse_segment_object_key(key)


@pytest.mark.parametrize("pair", [(0, 0), (1, 2), (SEQUENCE_MAX, ORDINAL_MAX)])
def test_frame_ids(pair: tuple[int, int]) -> None:
    assert split_frame_id(frame_id(*pair)) == pair
    assert 0 <= frame_id(*pair) < 2**63
    assert parse_position(format_position(frame_id(*pair))) == frame_id(*pair)


@pytest.mark.parametrize("pair", [(-1, 0), (0, -1), (SEQUENCE_MAX + 1, 0), (0, ORDINAL_MAX + 1)])
def test_frame_ids_have_limits(pair: tuple[int, int]) -> None:
    with pytest.raises(LimitError):
        frame_id(*pair)


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "1.2.3", "a.b", "-1.0", "1.1048576", "9999999999999.0", "1.2\n", "\u0661.0"]
)
def test_what_is_no_position(text: str) -> None:
    assert parse_position(text) is None
