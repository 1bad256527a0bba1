"""Whether bytes are the relocated segment that a key names: by what the index says, or by themselves."""

from __future__ import annotations

import hashlib

import pytest

from mirrorfs.core.genuine import check_object, is_another_state
from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import Stream, segment_object_key
from mirrorfs.format.rows import RelocatedRow
from tests.support.segment_bytes import SegmentBytes
from tests.support.volumes import KEY_SET, KEYS

PUBLIC_KEY = KEY_SET.public_keys().writer


def made(payload: bytes, *, stream: Stream = Stream.RELOCATED) -> tuple[str, bytes]:
    segment = SegmentBytes(3, stream=stream)
    segment.add_data(payload, birth=(1, 1))
    return segment_object_key(stream, segment.header.segment), segment.seal()


def row_of(data: bytes) -> RelocatedRow:
    segment = SegmentBytes(3, stream=Stream.RELOCATED).header.segment
    return RelocatedRow(*segment, len(data), hashlib.sha256(data).digest())


def check(key: str, data: bytes, row: RelocatedRow | None) -> None:
    check_object(key, data, keys=KEYS, public_key=PUBLIC_KEY, row=row)


def test_the_bytes_that_were_written_are_the_object() -> None:
    key, data = made(b"moved")
    check(key, data, row_of(data))
    check(key, data, None)


def test_all_else_is_not() -> None:
    key, data = made(b"moved")
    for row in (row_of(data), None):
        for wrong in (data[:-1], data + b"\0", data[:300] + b"?" + data[301:], b""):
            with pytest.raises(DamagedError):
                check(key, wrong, row)
        with pytest.raises(DamagedError):
            check(key, made(b"moved", stream=Stream.MAIN)[1], row)


def test_another_one_of_that_name_is_no_damage() -> None:
    """Only a clone of the writer can have written it."""
    key, data = made(b"moved")
    other = made(b"other")[1]
    check(key, other, None)
    with pytest.raises(DamagedError):
        check(key, other, row_of(data))

    def another(found: bytes) -> bool:
        return is_another_state(key, found, keys=KEYS, public_key=PUBLIC_KEY, row=row_of(data))

    assert another(other)
    assert not another(other[:-1]) and not another(made(b"moved", stream=Stream.MAIN)[1])
