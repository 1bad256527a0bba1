"""What every `Store` promises, on fakes and real ones alike, so that the fakes may stand for the real."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from mirrorfs.drivers.object_keys import KEY_LENGTH_MAX, MUTABLE_SIZE_MAX
from mirrorfs.errors import LimitError, ObjectExists, ObjectNotFound, UnknownOutcome
from mirrorfs.ports import LIST_PAGE_MAX, OBJECT_SIZE_MAX, ObjectInfo, ObjectKey, Sealed, Store, Version
from tests.contract.conftest import Place

KEY = ObjectKey("segments/0000000000000001-00000001-0123456789abcdef")
ABSENT = ObjectKey("segments/absent")
LEASE = ObjectKey("lease")
LISTED = [
    "a-b/c", "a/b", "a/b-c", "a/c/d", "a/c/d-e", "a/c-d", "ab", "b", "heads/0000000000000001",
    "heads/0000000000000002", "heads-old/1", "lease",
]  # fmt: skip


# --- objects -----------------------------------------------------------------------------------


async def test_put_then_get(store: Store, place: Place) -> None:
    other = place.open()
    for size_bytes in (0, 1, 4097, 1024 * 1024 + 1):
        key = ObjectKey(f"segments/{size_bytes}")
        data = (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]
        await store.put(key, Sealed(data))
        assert await store.get(key) == data
        assert await store.head(key) == ObjectInfo(key, size_bytes)
        assert await other.get(key) == data


async def test_put_of_equal_bytes_is_success(store: Store, place: Place) -> None:
    await store.put(KEY, Sealed(b"bytes"))
    await store.put(KEY, Sealed(b"bytes"))
    await place.open().put(KEY, Sealed(b"bytes"))
    assert await store.get(KEY) == b"bytes"


async def test_put_never_replaces(store: Store, place: Place) -> None:
    await store.put(KEY, Sealed(b"bytes"))
    for writer in (store, place.open()):
        for other in (b"", b"bytEs", b"bytes and more"):
            with pytest.raises(ObjectExists):
                await writer.put(KEY, Sealed(other))
    assert await store.get(KEY) == b"bytes"


async def put_at_once(writer: Store, place: Place, data: bytes) -> None:
    """`put`, tried again as the mirror does: some servers fail when one object is written twice at once."""
    for _ in range(20):
        try:
            return await writer.put(KEY, Sealed(data))
        except UnknownOutcome:
            if place.conditional_put:
                raise
            await trio.sleep(0.05)
    raise AssertionError("the server answers nothing but failures")


async def test_put_at_once(store: Store, place: Place) -> None:
    assert (await store.probe()).conditional_put is place.conditional_put
    outcomes: list[bytes] = []

    async def put(writer: Store, data: bytes) -> None:
        # Without conditional writes the last one wins: then all may claim success, or see another's.
        try:
            await put_at_once(writer, place, data)
        except ObjectExists:
            return
        outcomes.append(data)

    writers = [place.open() for _ in range(4)]
    for writer in writers:
        await writer.probe()
    async with trio.open_nursery() as nursery:
        for number, writer in enumerate(writers):
            nursery.start_soon(put, writer, b"%d" % number * 10_000)
    found = await store.get(KEY)
    assert found in outcomes
    if place.conditional_put:
        assert outcomes == [found]


async def test_put_of_equal_bytes_at_once(store: Store, place: Place) -> None:
    async with trio.open_nursery() as nursery:
        for writer in (store, place.open(), place.open()):
            nursery.start_soon(put_at_once, writer, place, b"bytes" * 1000)
    assert await store.get(KEY) == b"bytes" * 1000


async def test_put_beyond_the_limit(store: Store) -> None:
    with pytest.raises(LimitError):
        await store.put(KEY, Sealed(bytes(OBJECT_SIZE_MAX + 1)))
    with pytest.raises(ObjectNotFound):
        await store.head(KEY)


async def test_what_is_absent(store: Store) -> None:
    await store.put(KEY, Sealed(b"bytes"))
    for read in (
        store.get(ABSENT),
        store.get(ObjectKey("segments")),
        store.get_range(ABSENT, offset=0, size_bytes=1),
        store.get_range(ABSENT, offset=0, size_bytes=0),
        store.head(ABSENT),
        store.head(ObjectKey("no/such/place")),
        store.read_mutable(ABSENT),
    ):
        with pytest.raises(ObjectNotFound):
            await read


async def test_get_stops_at_size_max(store: Store) -> None:
    await store.put(KEY, Sealed(b"bytes"))
    assert await store.get(KEY, size_max=5) == b"bytes"
    with pytest.raises(LimitError):
        await store.get(KEY, size_max=4)


async def test_get_range(store: Store) -> None:
    data = b"0123456789"
    await store.put(KEY, Sealed(data))
    for offset in (0, 3, 9, 10, 11, 1000):
        for size_bytes in (0, 1, 4, 10, 100):
            found = await store.get_range(KEY, offset=offset, size_bytes=size_bytes)
            assert found == data[offset : offset + size_bytes], (offset, size_bytes)


async def test_get_range_of_an_empty_object(store: Store) -> None:
    await store.put(KEY, Sealed(b""))
    assert await store.get_range(KEY, offset=0, size_bytes=5) == b""


async def test_delete(store: Store) -> None:
    await store.put(KEY, Sealed(b"bytes"))
    await store.delete(KEY)
    with pytest.raises(ObjectNotFound):
        await store.get(KEY)
    assert list(await store.list("segments/")) == []
    await store.delete(KEY)
    await store.delete(ObjectKey("never/was/here"))
    await store.put(KEY, Sealed(b"other bytes"))
    assert await store.get(KEY) == b"other bytes"


# --- listing -----------------------------------------------------------------------------------


async def test_list_in_key_order(store: Store, place: Place) -> None:
    place.fill(LISTED)
    for prefix in ("", "a", "a/", "a-", "a/c", "a/c/", "a/b-", "heads", "heads/", LISTED[-3], "z", "z/y/x"):
        found = [info.key for info in await store.list(prefix)]
        assert found == sorted(key for key in LISTED if key.startswith(prefix)), prefix


async def test_list_start_after(store: Store, place: Place) -> None:
    place.fill(LISTED)
    for prefix in ("", "a/"):
        for start_after in ("a", "a-", "a-b/c", "a/b", "a/c", "a/c/", "a/c/d", "b", "heads/", "lease", "zzz"):
            found = [info.key for info in await store.list(prefix, start_after=start_after)]
            expected = sorted(key for key in LISTED if key.startswith(prefix) and key > start_after)
            assert found == expected, (prefix, start_after)


async def test_list_tells_sizes(store: Store) -> None:
    await store.put(ObjectKey("heads/1"), Sealed(b""))
    await store.put(ObjectKey("heads/2"), Sealed(b"12345"))
    assert list(await store.list("heads/")) == [
        ObjectInfo(ObjectKey("heads/1"), 0),
        ObjectInfo(ObjectKey("heads/2"), 5),
    ]


async def test_list_in_pages(store: Store, place: Place) -> None:
    keys = [f"segments/{number:06x}" for number in range(LIST_PAGE_MAX + 3)]
    place.fill([*keys, "lease", "zzz/1"])
    first = [info.key for info in await store.list("segments/")]
    assert first == keys[:LIST_PAGE_MAX]
    second = [info.key for info in await store.list("segments/", start_after=first[-1])]
    assert second == keys[LIST_PAGE_MAX:]
    assert list(await store.list("segments/", start_after=second[-1])) == []


async def test_list_of_an_empty_place(store: Store) -> None:
    assert list(await store.list("")) == []
    assert list(await store.list("segments/")) == []


@pytest.mark.parametrize("place_kind", ["directory", "moto", "rclone"], indirect=True)
async def test_list_passes_over_foreign_names(store: Store, place: Place) -> None:
    place.fill(
        ["README.TXT", "Heads/1", ".hidden", "a/b.tmp", "heads/1", "heads/2 (copy)", ".tmp/unfinished"]
    )
    assert [info.key for info in await store.list("")] == ["heads/1"]
    assert [info.key for info in await store.list("heads/")] == ["heads/1"]


@pytest.mark.parametrize("place_kind", ["directory", "rclone"], indirect=True)
async def test_a_page_of_foreign_names_is_not_the_end(store: Store, place: Place) -> None:
    place.fill([f"heads/A{number:06x}" for number in range(LIST_PAGE_MAX + 1)] + ["heads/b"])
    assert [info.key for info in await store.list("heads/")] == ["heads/b"]


# --- mutable objects -----------------------------------------------------------------------------


async def test_swap(store: Store, place: Place) -> None:
    first = await store.compare_and_swap(LEASE, Sealed(b"1"), expected=None)
    assert await place.open().read_mutable(LEASE) == (b"1", first)
    second = await store.compare_and_swap(LEASE, Sealed(b"2"), expected=first)
    assert second != first
    assert await store.read_mutable(LEASE) == (b"2", second)
    assert await store.get(LEASE) == b"2"
    third = await place.open().compare_and_swap(LEASE, Sealed(b"3"), expected=second)
    assert await store.read_mutable(LEASE) == (b"3", third)


async def test_swap_refuses_another_version(store: Store, place: Place) -> None:
    first = await store.compare_and_swap(LEASE, Sealed(b"1"), expected=None)
    second = await store.compare_and_swap(LEASE, Sealed(b"2"), expected=first)
    for swapper in (store, place.open()):
        for expected in (first, None):
            with pytest.raises(ObjectExists):
                await swapper.compare_and_swap(LEASE, Sealed(b"3"), expected=expected)
    assert await store.read_mutable(LEASE) == (b"2", second)


async def test_swap_of_what_is_gone(store: Store, place: Place) -> None:
    version = await store.compare_and_swap(LEASE, Sealed(b"1"), expected=None)
    await store.delete(LEASE)
    for swapper in (store, place.open()):
        with pytest.raises(ObjectExists):
            await swapper.compare_and_swap(LEASE, Sealed(b"2"), expected=version)
    with pytest.raises(ObjectNotFound):
        await store.read_mutable(LEASE)
    await store.compare_and_swap(LEASE, Sealed(b"3"), expected=None)
    assert (await store.read_mutable(LEASE))[0] == b"3"


async def test_mutable_size(store: Store, place: Place) -> None:
    await store.compare_and_swap(LEASE, Sealed(bytes(MUTABLE_SIZE_MAX)), expected=None)
    assert len((await store.read_mutable(LEASE))[0]) == MUTABLE_SIZE_MAX
    with pytest.raises(LimitError):
        await store.compare_and_swap(ABSENT, Sealed(bytes(MUTABLE_SIZE_MAX + 1)), expected=None)
    await store.put(KEY, Sealed(bytes(MUTABLE_SIZE_MAX + 1)))
    with pytest.raises(LimitError):
        await store.read_mutable(KEY)


@pytest.mark.parametrize(
    "place_kind", ["memory", "simulated", "retrying", "directory", "moto"], indirect=True
)
async def test_swaps_at_once_lose_nothing(store: Store, place: Place) -> None:
    await store.compare_and_swap(LEASE, Sealed(b"0"), expected=None)

    async def count(swapper: Store) -> None:
        await swapper.probe()
        for _ in range(5):
            while True:
                data, version = await swapper.read_mutable(LEASE)
                try:
                    await swapper.compare_and_swap(LEASE, Sealed(b"%d" % (int(data) + 1)), expected=version)
                except ObjectExists:
                    continue
                break

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(count, place.open())
    assert (await store.read_mutable(LEASE))[0] == b"15"


# --- all methods -------------------------------------------------------------------------------

Call = Callable[[Store, ObjectKey], Awaitable[object]]
CALLS: list[Call] = [
    lambda store, key: store.put(key, Sealed(b"")),
    lambda store, key: store.get(key),
    lambda store, key: store.get_range(key, offset=0, size_bytes=1),
    lambda store, key: store.head(key),
    lambda store, key: store.delete(key),
    lambda store, key: store.read_mutable(key),
    lambda store, key: store.compare_and_swap(key, Sealed(b""), expected=Version("x:y")),
]
BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", ".", ".tmp/a", "a.b", "A", "a b", "a\n", "a\0", "ä",
    "a\\b", "a?b", "a%2fb", "a" * (KEY_LENGTH_MAX + 1),
]  # fmt: skip


async def test_malformed_keys_are_refused(store: Store) -> None:
    for call in CALLS:
        for key in BAD_KEYS:
            with pytest.raises(LimitError):
                await call(store, ObjectKey(key))
    assert list(await store.list("")) == []


async def test_longest_key(store: Store) -> None:
    key = ObjectKey("a" * (KEY_LENGTH_MAX // 2 - 1) + "/" + "b" * (KEY_LENGTH_MAX // 2))
    await store.put(key, Sealed(b"bytes"))
    assert [info.key for info in await store.list("")] == [key]


async def test_malformed_prefixes_are_refused(store: Store) -> None:
    for prefix in ("/", "..", "a//", "A", "a.b", "a" * (KEY_LENGTH_MAX + 1)):
        with pytest.raises(LimitError):
            await store.list(prefix)
        with pytest.raises(LimitError):
            await store.list("", start_after=prefix)


async def test_every_method_is_a_checkpoint(store: Store) -> None:
    calls: list[Call] = [
        *CALLS,
        lambda store, _: store.list(""),
        lambda store, _: store.probe(),
        lambda store, _: store.aclose(),
    ]
    for call in calls:
        with trio.CancelScope() as scope:
            scope.cancel()
            await call(store, ABSENT)
        assert scope.cancelled_caught


async def test_probe_leaves_nothing(store: Store, place: Place) -> None:
    assert (await store.probe()).conditional_put is place.conditional_put
    assert list(await store.list("")) == []


async def test_close_twice(store: Store) -> None:
    await store.put(KEY, Sealed(b"bytes"))
    await store.aclose()
    await store.aclose()
