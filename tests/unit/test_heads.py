"""engine/heads.py: finding the newest head that verifies, and how it stands to the local one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio

from mirrorfs.engine.heads import (
    HEADS_TRIED_MAX,
    HeadRelation,
    SealedHead,
    newest_head,
    relate_heads,
    seal_head,
)
from mirrorfs.errors import AuthenticationError, FormatError, LimitError, StoreUnavailable
from mirrorfs.format.control import Head, head_key, open_head
from mirrorfs.format.limits import INTEGER_MAX
from mirrorfs.ports import LIST_PAGE_MAX, ObjectInfo, ObjectKey
from tests.support.store_memory import MemoryStore
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEAD, KEY_SET, KEYS, WRITER

PUBLIC_KEY = KEY_SET.public_keys().writer
PASSED_OVER = "is passed over"


def sealed(counter: int, **changes: object) -> SealedHead:
    return seal_head(make(counter, **changes), keys=KEYS, seed=KEY_SET.writer)


def make(counter: int, **changes: object) -> Head:
    previous = b"" if counter == 1 else b"\x01" * 32
    return replace(HEAD, **{"counter": counter, "previous": previous, **changes})  # type: ignore[arg-type]


class CountingStore(MemoryStore):
    """Lists fast enough for a hundred thousand heads, and counts the listings."""

    def __init__(self) -> None:
        super().__init__("home")
        self.page_count = 0
        self.sorted_keys: list[str] = []

    def fill(self, counters: Sequence[int]) -> None:
        """Put objects that look like heads from their keys; they need not be any."""
        for counter in counters:
            self.objects[head_key(counter=counter, epoch=3, writer=WRITER)] = b"no head"

    def add(self, head: SealedHead) -> str:
        self.objects[head.key] = head.data
        return head.key

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        self.page_count += 1
        if len(self.sorted_keys) != len(self.objects):
            self.sorted_keys = sorted(self.objects)
        await trio.lowlevel.checkpoint()
        page = [key for key in self.sorted_keys if key > start_after and key.startswith(prefix)]
        return [ObjectInfo(ObjectKey(key), len(self.objects[key])) for key in page[:LIST_PAGE_MAX]]


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


# --- sealing ---------------------------------------------------------------------------------


def test_sealed_head_opens_under_its_key() -> None:
    head = make(9)
    made = seal_head(head, keys=KEYS, seed=KEY_SET.writer)
    assert made.key == f"heads/0000000000000009-00000003-{WRITER.hex()}"
    assert open_head(made.data, key=made.key, keys=KEYS, public_key=PUBLIC_KEY) == head
    with pytest.raises((FormatError, LimitError)):
        seal_head(replace(head, counter=1), keys=KEYS, seed=KEY_SET.writer)
    with pytest.raises(LimitError):
        seal_head(head, keys=KEYS, seed=bytes(32))


# --- finding ---------------------------------------------------------------------------------


async def test_no_heads(store: CountingStore) -> None:
    store.objects["segments/whatever"] = b""
    store.objects["heads/not-one"] = b""
    assert await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY) is None


async def test_newest_of_few(store: CountingStore) -> None:
    for counter in (1, 2, 16, 255):
        store.add(sealed(counter))
    found = await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)
    assert found is not None
    assert (found.head.counter, found.rejected) == (255, ())
    assert found.digest == sealed(255).digest
    assert found.key == sealed(255).key
    assert store.page_count == 1


@pytest.mark.parametrize("count", [999, 1000, 1001, 1999, 2000, 2001, 5003, 20_000])
async def test_newest_of_many(store: CountingStore, count: int) -> None:
    store.fill(range(1, count))
    store.add(sealed(count))
    found = await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)
    assert found is not None and found.head.counter == count
    assert store.page_count <= 2 + 2 * (count // LIST_PAGE_MAX).bit_length()


@pytest.mark.parametrize("seed", range(20))
async def test_newest_where_counters_have_gaps(store: CountingStore, seed: int) -> None:
    draw = random.Random(seed)
    counters, last = [], 0
    for _ in range(draw.randrange(1, 5000)):
        last += draw.choice([1, 1, 1, 2, draw.randrange(1, 4000)])
        counters.append(last)
    last += draw.choice([1, 700, 1000, 1001, 1 << 20, 1 << 50])
    store.fill(counters)
    store.add(sealed(last))
    found = await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)
    assert found is not None and found.head.counter == last
    assert store.page_count < 140


@pytest.mark.expects_warnings(PASSED_OVER)
async def test_falls_back_to_the_newest_that_verifies(store: CountingStore) -> None:
    for counter in range(1, 8):
        store.add(sealed(counter))
    other_key = seal_head(make(8), keys=KEYS, seed=b"\x09" * 32)
    cut = sealed(9)
    moved = sealed(3)
    store.objects[other_key.key] = other_key.data
    store.objects[cut.key] = cut.data[:-1]
    moved_key = head_key(counter=10, epoch=3, writer=WRITER)
    store.objects[moved_key] = moved.data
    store.objects["heads/zzz"] = b"foreign"
    found = await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)
    assert found is not None and found.head.counter == 7
    assert found.rejected == (moved_key, cut.key, other_key.key)


@pytest.mark.expects_warnings(PASSED_OVER)
async def test_invented_heads_at_the_very_end(store: CountingStore) -> None:
    store.fill(range(1, 4000))
    store.add(sealed(4000))
    store.fill([INTEGER_MAX, INTEGER_MAX - 5, 1 << 40])
    found = await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)
    assert found is not None and found.head.counter == 4000
    assert len(found.rejected) == 3
    assert store.page_count < 400


@pytest.mark.expects_warnings(PASSED_OVER)
@pytest.mark.parametrize("count", [1, HEADS_TRIED_MAX, 1500])
async def test_none_verifies(store: CountingStore, count: int) -> None:
    store.fill(range(1, count + 1))
    with pytest.raises(AuthenticationError, match="home"):
        await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)


async def test_listing_of_nonsense_ends(store: CountingStore) -> None:
    for number in range(2500):
        store.objects[f"heads/{number:020d}"] = b""
    with pytest.raises(FormatError):
        await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)


async def test_listing_without_an_end_ends() -> None:
    class Endless(CountingStore):
        async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
            await trio.lowlevel.checkpoint()
            counter = int(start_after[6:22], 16) if start_after else 0
            counters = [min(counter + n, INTEGER_MAX) for n in range(1, LIST_PAGE_MAX + 1)]
            return [ObjectInfo(ObjectKey(head_key(counter=n, epoch=1, writer=WRITER)), 1) for n in counters]

    with pytest.raises(StoreUnavailable):
        await newest_head(Endless(), keys=KEYS, public_key=PUBLIC_KEY)


async def test_outage_passes_through() -> None:
    store = SimulatedStore("home", seed=1)
    store.objects[sealed(1).key] = sealed(1).data
    store.outage = True
    with pytest.raises(StoreUnavailable):
        await newest_head(store, keys=KEYS, public_key=PUBLIC_KEY)


# --- comparing -------------------------------------------------------------------------------

OTHER = b"another1"
DIGEST = b"\x01" * 32  # what make() names as previous


@pytest.mark.parametrize(
    ("local", "store", "relation"),
    [
        (None, None, HeadRelation.EQUAL),
        (None, make(5), HeadRelation.AHEAD),
        (make(5), None, HeadRelation.BEHIND),
        (make(5), make(5), HeadRelation.EQUAL),
        (make(5), make(6), HeadRelation.AHEAD),
        (make(6), make(5), HeadRelation.BEHIND),
        (make(5), make(9), HeadRelation.AHEAD),
        (make(9), make(5), HeadRelation.BEHIND),
        (make(5), make(9, epoch=4, writer=OTHER), HeadRelation.AHEAD),
        (make(9, epoch=4, writer=OTHER), make(5), HeadRelation.BEHIND),
        (make(5), make(9, writer=OTHER), HeadRelation.FORK),
        (make(9), make(5, writer=OTHER), HeadRelation.FORK),
        (make(5, epoch=4, writer=OTHER), make(9), HeadRelation.FORK),
        (make(9), make(5, epoch=4, writer=OTHER), HeadRelation.FORK),
        (make(5, position=HEAD.position + 1), make(9), HeadRelation.FORK),
        (make(5), make(6, previous=b"\x02" * 32), HeadRelation.FORK),
        (make(6, previous=b"\x02" * 32), make(5), HeadRelation.FORK),
    ],
)
def test_relation(local: Head | None, store: Head | None, relation: HeadRelation) -> None:
    found = relate_heads(local=local, local_digest=DIGEST, store=store, store_digest=DIGEST)
    assert found is relation


def test_two_heads_of_one_counter_are_a_fork() -> None:
    one, other = sealed(5), sealed(5, epoch=4, writer=OTHER)
    relation = relate_heads(
        local=make(5),
        local_digest=one.digest,
        store=make(5, epoch=4, writer=OTHER),
        store_digest=other.digest,
    )
    assert relation is HeadRelation.FORK
