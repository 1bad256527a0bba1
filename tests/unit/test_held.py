"""core/held.py: a set, whatever the keys look like; and it takes no memory for what comes in order."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.core.held import HeldKeys
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key

WRITER = b"writerAB"


def segment(sequence: int, writer: bytes = WRITER) -> str:
    return segment_object_key(Stream.MAIN, SegmentId(sequence, 1, writer))


numbered = st.builds(
    lambda prefix, number, rest: f"{prefix}{number:016x}{rest}",
    st.sampled_from(["segments/", "heads/", "", "a/b/"]),
    st.one_of(st.integers(0, 12), st.integers((1 << 64) - 3, (1 << 64) - 1)),
    st.sampled_from(["-00000001-0011223344556677", "", "/x"]),
)
odd = st.sampled_from(
    [
        "segments/0000_0000_00000a",
        "segments/000000000000000A",
        "segments/ 00000000000000a",
        "segments/+00000000000000a",
        "segments/00000000000000a",
        "segments/-00000000000000a",
        "header/00000001-abababababababab",
        "",
        "/",
    ]
)


@given(st.lists(st.tuples(st.booleans(), st.one_of(numbered, odd)), max_size=60))
def test_it_is_a_set(calls: list[tuple[bool, str]]) -> None:
    held, model, heard = HeldKeys(), set[str](), list[str]()
    held.on_change = heard.append
    changes = []
    for put, key in calls:
        if (key in model) is not put:
            changes.append(key)
        if put:
            held.add(key)
            model.add(key)
        else:
            held.discard(key)
            model.discard(key)
        assert len(held) == len(model)
        assert {key for _, key in calls if key in held} == model
    assert heard == changes


def test_any_order_gives_the_same() -> None:
    numbers = list(range(500))
    random.Random(1).shuffle(numbers)
    held = HeldKeys(segment(number) for number in numbers)
    assert len(held) == 500 and all(segment(number) in held for number in numbers)
    assert segment(500) not in held and segment(3, b"other wr") not in held
    random.Random(2).shuffle(numbers)
    for count, number in enumerate(numbers):
        held.discard(segment(number))
        assert segment(number) not in held and len(held) == 499 - count


def test_what_comes_in_order_takes_no_memory() -> None:
    sizes = []
    for count in (1000, 100_000):
        tracemalloc.start()
        held = HeldKeys(segment(number) for number in range(count))
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(held) == count
    assert max(sizes) < 10_000, sizes
