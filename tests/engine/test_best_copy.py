"""Several copies of one segment: the best one counts, whichever is met first; a head vouches for its end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.heads import seal_head
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.replay import ReplayEnd, Replayer
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.errors import DamagedError
from mirrorfs.format.control import Head
from mirrorfs.format.ids import Previous, SegmentId, Stream, segment_object_key
from mirrorfs.ports import Index, Store
from tests.golden.make_golden import OneCopy
from tests.sim.world import InlineOffload
from tests.support.segment_bytes import PUBLIC, SegmentBytes
from tests.support.store_memory import MemoryStore
from tests.support.volumes import HEAD, HEADER, KEY_SET, KEYS

PUBLIC_KEY = HEADER.public_keys.writer


class Copies:
    """A source of segments with several copies each, in the order given."""

    def __init__(self, *segments: list[bytes]) -> None:
        """The segments of sequence 0, 1, ..., of the one writer there is."""
        self._copies = segments

    async def candidates(self, sequence: int) -> list[SegmentId]:
        known = sequence < len(self._copies)
        return [SegmentBytes(sequence).header.segment] if known else []

    def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        return OneCopy(*self._copies[segment.sequence])

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        return self.copies(segment)


class TwoSegments:
    """One that a crash ended, with two commits and no trailer; and the next, sealed, which attests it."""

    def __init__(self) -> None:
        first = SegmentBytes(0)
        first.add_journal()
        self.boundary = len(first.data)
        """The end of its first frame."""
        first.add_journal()
        self.first = bytes(first.data)
        second = SegmentBytes(
            1, previous=first.previous(), journal_sequence=first.journal_sequence,
            journal_hash=first.journal_hash,
        )  # fmt: skip
        self.in_second = len(second.data) + 20
        """Behind its header, inside its first frame."""
        second.add_journal()
        second.add_journal()
        self.second = second.seal()
        self.journal_sequence = second.journal_sequence


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = SqliteIndexFiles(str(tmp_path / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key).open()
    yield index
    index.close()


async def replayed(index: Index, *segments: list[bytes], vouched: Previous | None = None) -> ReplayEnd:
    replayer = Replayer(index, Copies(*segments), KEYS, PUBLIC, vouched=() if vouched is None else [vouched])
    return await replayer.run(keep_tail=False)


async def test_a_copy_that_was_cut_between_frames(index: Index) -> None:
    """It looks whole: without a trailer nothing in it says that there was more."""
    made = TwoSegments()
    end = await replayed(index, [made.first[: made.boundary], made.first], [made.second])
    assert (end.journal_sequence, end.damage) == (made.journal_sequence, None)


@pytest.mark.expects_warnings("object segments/")
async def test_the_next_segment_is_taken_from_its_best_copy(index: Index) -> None:
    """The header of a cut copy is authentic and attests what it has to; its commits are in another copy."""
    made = TwoSegments()
    end = await replayed(index, [made.first], [made.second[: made.in_second], made.second])
    assert (end.journal_sequence, end.damage) == (made.journal_sequence, None)
    assert end.last == Previous(
        SegmentBytes(1).header.segment, len(made.second), hashlib.sha256(made.second).digest()
    )


@pytest.mark.expects_warnings("object segments/")
async def test_both_at_once(index: Index) -> None:
    made = TwoSegments()
    end = await replayed(
        index,
        [made.first[: made.boundary], made.first[: made.boundary + 9], made.first],
        [made.second[: made.in_second], made.second],
    )
    assert (end.journal_sequence, end.damage) == (made.journal_sequence, None)


@pytest.mark.parametrize("is_vouched", [False, True])
async def test_the_cut_last_segment_counts_where_a_head_names_it(index: Index, is_vouched: bool) -> None:
    made = TwoSegments()
    named = Previous(SegmentBytes(0).header.segment, len(made.first), hashlib.sha256(made.first).digest())
    end = await replayed(index, [made.first], vouched=named if is_vouched else None)
    assert end.journal_sequence == (2 if is_vouched else 0)
    assert end.last == (named if is_vouched else None)


async def test_a_head_that_names_other_bytes_vouches_for_nothing(index: Index) -> None:
    made = TwoSegments()
    named = Previous(SegmentBytes(0).header.segment, len(made.first), bytes(32))
    end = await replayed(index, [made.first], vouched=named)
    assert end.journal_sequence == 0


# --- in a restore ----------------------------------------------------------------------------


async def planned(root: Path, *stores: Store) -> RestorePlan:
    files = SqliteIndexFiles(str(root / "plan.db"), KEYS.index_key, digest_key=KEYS.dedup_key)
    index, plan = await Planner(stores, files, InlineOffload(random.Random(1)), KEYS, PUBLIC_KEY).run(NEWEST)
    index.close()
    return plan


def head_of(segment: SegmentBytes) -> Head:
    """As a writer publishes it that went on after a crash, before it wrote anything."""
    key = segment_object_key(Stream.MAIN, segment.header.segment)
    sequence = segment.header.segment.sequence
    return replace(
        HEAD, sequence=sequence, segment_key=key, segment_size=len(segment.data),
        segment_digest=hashlib.sha256(segment.data).digest(), position=sequence << 20 | len(segment.entries),
        journal_sequence=segment.journal_sequence, checkpoint="", checkpoint_digest=b"",
    )  # fmt: skip


@pytest.mark.parametrize("has_head", [False, True])
async def test_a_restore_goes_to_where_the_newest_head_names_the_end(
    autojump_clock: MockClock, tmp_path: Path, has_head: bool
) -> None:
    """The log ends with a segment that a crash cut: with nothing behind it, only a head can attest it."""
    first = SegmentBytes(0)
    first.add_journal()
    sealed = first.seal()
    last = SegmentBytes(
        1, previous=first.previous(), journal_sequence=first.journal_sequence, journal_hash=first.journal_hash
    )
    last.add_journal()
    last.add_journal()
    store = MemoryStore("home", {
        segment_object_key(Stream.MAIN, first.header.segment): sealed,
        segment_object_key(Stream.MAIN, last.header.segment): bytes(last.data),
    })  # fmt: skip
    if has_head:
        head = seal_head(head_of(last), keys=KEYS, seed=KEY_SET.writer)
        store.objects[head.key] = head.data
    plan = await planned(tmp_path, store)
    assert plan.journal_sequence == (3 if has_head else 1)
    assert plan.damage is None


@pytest.mark.expects_warnings("object segments/")
@pytest.mark.parametrize(("more", "said"), [(0, "newest head"), (9, "damaged in every store")])
async def test_a_restore_that_does_not_reach_what_the_head_names(
    autojump_clock: MockClock, tmp_path: Path, more: int, said: str
) -> None:
    """The only copy was cut once more, between two frames or inside one: that is no end of the log."""
    last = SegmentBytes(0)
    last.add_journal()
    boundary = len(last.data)
    last.add_journal()
    head = seal_head(head_of(last), keys=KEYS, seed=KEY_SET.writer)
    key = segment_object_key(Stream.MAIN, last.header.segment)
    whole = MemoryStore("home", {key: bytes(last.data), head.key: head.data})
    cut = MemoryStore("s3", {key: bytes(last.data[: boundary + more]), head.key: head.data})
    assert (await planned(tmp_path, cut, whole)).journal_sequence == 2
    with pytest.raises(DamagedError, match=said):
        await planned(tmp_path, cut)
