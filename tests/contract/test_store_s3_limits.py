"""Limits at work on S3 servers: what a store sends and reads keeps to its rate, control waits for nothing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from secrets import token_hex

import pytest
import trio

from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.s3_line import PARALLEL, S3Line
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.errors import StoreUnavailable
from mirrorfs.ports import THROTTLE_PIECE, ObjectKey, Sealed, Throttle
from tests.contract.conftest import Bucket
from tests.support.s3_scripted import Exchange, ScriptedServer, scripted_server
from tests.support.s3_servers import environment, free_port

SIZE = 10 * THROTTLE_PIECE + 1000
DATA = Sealed(bytes(range(250)) * (SIZE // 250) + b"x" * (SIZE % 250))
KEY = ObjectKey("segments/1")
ETAG = '"781e5e245d69b566979b86e28d23f2c7"'


class CountingThrottle:
    """Lets what is urgent go at once and all else after `wait_s`, and remembers what was reserved."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        self.up: list[tuple[int, bool]] = []
        self.down: list[tuple[int, bool]] = []
        self.on_call: Callable[[], object] = lambda: None

    def upload(self, size_bytes: int, *, urgent: bool) -> float:
        trio.lowlevel.current_task()  # it is called on the loop
        self.up.append((size_bytes, urgent))
        self.on_call()
        return 0.0 if urgent else self.wait_s

    def download(self, size_bytes: int, *, urgent: bool) -> float:
        trio.lowlevel.current_task()
        self.down.append((size_bytes, urgent))
        self.on_call()
        return 0.0 if urgent else self.wait_s

    def download_s(self, size_bytes: int) -> float:
        return 0.0


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, moto: Bucket) -> None:
    for name, value in environment(moto.server).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@asynccontextmanager
async def limited(
    endpoint: str, throttle: Throttle | None, *, bucket: str = "bucket", parallel: int = 4
) -> AsyncIterator[S3Store]:
    line = S3Line(parallel=parallel, throttle=throttle)
    store = S3Store(
        "cloud", bucket=bucket, prefix=token_hex(8), target=S3Target(endpoint=endpoint), line=line
    )
    try:
        yield store
    finally:
        await store.aclose()


async def test_every_byte_is_reserved_in_pieces(moto: Bucket) -> None:
    throttle = CountingThrottle()
    async with limited(moto.server.endpoint, throttle, bucket=moto.name) as store:
        assert (await store.probe()).conditional_put
        assert (throttle.up, throttle.down) == ([], [])
        await store.put(KEY, DATA)
        assert throttle.up == [(THROTTLE_PIECE, False)] * 10 + [(1000, False)]
        assert await store.get(KEY) == DATA
        assert sum(size for size, _ in throttle.down) == SIZE
        assert all(size <= THROTTLE_PIECE and not urgent for size, urgent in throttle.down)
        throttle.down.clear()
        assert await store.get_range(KEY, offset=7, size_bytes=100_000) == DATA[7:100_007]
        assert sum(size for size, _ in throttle.down) == 100_000
        assert all(urgent for _, urgent in throttle.down)


async def test_small_objects_are_urgent_and_control_reserves_nothing(moto: Bucket) -> None:
    throttle = CountingThrottle()
    async with limited(moto.server.endpoint, throttle, bucket=moto.name) as store:
        await store.probe()
        await store.put(KEY, Sealed(DATA[:1000]))
        assert throttle.up == [(1000, True)]
        throttle.up.clear()
        lease = ObjectKey("lease")
        version = await store.compare_and_swap(lease, Sealed(b"1"), expected=None)
        version = await store.compare_and_swap(lease, Sealed(b"2" * 60_000), expected=version)
        assert (await store.read_mutable(lease))[1] == version
        assert await store.get(KEY, size_max=65_648) == DATA[:1000]
        await store.head(KEY)
        await store.list("")
        await store.delete(KEY)
        assert (throttle.up, throttle.down) == ([], [])


async def test_the_body_itself_keeps_to_the_rate(scripted: ScriptedServer) -> None:
    """Each of ten pieces waits, within one request; the server sees them come one by one."""
    throttle = CountingThrottle(wait_s=0.05)
    seen: list[tuple[bytes, dict[str, str]]] = []

    def script(exchange: Exchange) -> None:
        seen.append((exchange.body, dict(exchange.headers)))
        exchange.answer(200, headers={"ETag": ETAG})

    scripted.script = script
    async with limited(scripted.endpoint, throttle) as store:
        store._conditional = True
        began_s = time.monotonic()
        await store.put(KEY, DATA)
        assert time.monotonic() - began_s >= 11 * 0.05
    ((body, headers),) = seen
    assert body == DATA
    assert headers["Content-Length"] == str(SIZE)
    assert "Content-MD5" in headers and "Transfer-Encoding" not in headers


async def test_reading_keeps_to_the_rate(scripted: ScriptedServer) -> None:
    scripted.script = lambda exchange: exchange.answer(200, DATA, headers={"ETag": ETAG})
    async with limited(scripted.endpoint, CountingThrottle(wait_s=0.05)) as store:
        began_s = time.monotonic()
        assert await store.get(KEY) == DATA
        assert time.monotonic() - began_s >= 11 * 0.05


async def test_a_scrub_takes_no_thread_from_a_reader(scripted: ScriptedServer) -> None:
    throttle = CountingThrottle(wait_s=3600)
    all_wait = trio.Event()
    throttle.on_call = lambda: all_wait.set() if len(throttle.down) == 2 else None

    def script(exchange: Exchange) -> None:
        if "Range" in exchange.headers:
            exchange.answer(206, b"range", headers={"ETag": ETAG, "Content-Range": "bytes 0-4/100"})
        else:
            exchange.answer(200, DATA, headers={"ETag": ETAG})

    scripted.script = script
    async with limited(scripted.endpoint, throttle, parallel=2) as store, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(store.get, ObjectKey(f"segments/{number}"))
        with trio.fail_after(20):
            await all_wait.wait()
            assert await store.get_range(KEY, offset=0, size_bytes=5) == b"range"
        assert throttle.down[2:] == [(5, True)]
        nursery.cancel_scope.cancel()


async def test_control_goes_while_everything_else_waits(scripted: ScriptedServer) -> None:
    """All uploads and downloads stand still; a lease is renewed and a head is looked at nevertheless."""
    throttle = CountingThrottle(wait_s=3600)
    all_wait = trio.Event()
    throttle.on_call = lambda: all_wait.set() if min(len(throttle.up), len(throttle.down)) == 2 else None

    def script(exchange: Exchange) -> None:
        if exchange.method == "GET":
            exchange.answer(200, DATA if "segments" in exchange.path else b"lease", headers={"ETag": ETAG})
        else:
            exchange.answer(200, headers={"ETag": ETAG})

    scripted.script = script
    async with limited(scripted.endpoint, throttle, parallel=2) as store, trio.open_nursery() as nursery:
        store._conditional = True
        for number in range(5):
            nursery.start_soon(store.put, ObjectKey(f"segments/{number}"), DATA)
            nursery.start_soon(store.get, ObjectKey(f"segments/{number}"))
        with trio.fail_after(20):
            await all_wait.wait()
            _, version = await store.read_mutable(ObjectKey("lease"))
            await store.compare_and_swap(ObjectKey("lease"), Sealed(b"mine"), expected=version)
            await store.head(ObjectKey("segments/9"))
            assert await store.get(ObjectKey("instance"), size_max=1000) == b"lease"
        # No more than two of each kind got a thread.
        assert (len(throttle.up), len(throttle.down)) == (2, 2)
        nursery.cancel_scope.cancel()


async def test_who_is_cancelled_takes_no_more_of_the_line(scripted: ScriptedServer) -> None:
    throttle = CountingThrottle(wait_s=0.1)
    under_way = trio.Event()
    throttle.on_call = lambda: under_way.set() if len(throttle.up) == 2 else None
    arrived: list[int] = []

    def script(exchange: Exchange) -> None:
        arrived.append(len(exchange.body))
        exchange.close()

    scripted.script = script
    async with limited(scripted.endpoint, throttle) as store:
        store._conditional = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put, KEY, DATA)
            with trio.fail_after(20):
                await under_way.wait()
            nursery.cancel_scope.cancel()
        count = len(throttle.up)
        # As long as all of it would have taken.
        await trio.sleep(1.5)
        assert len(throttle.up) <= count + 1
    assert all(size_bytes < SIZE for size_bytes in arrived)


async def test_a_store_that_is_away_takes_nothing_of_the_line() -> None:
    throttle = CountingThrottle()
    async with limited(f"http://127.0.0.1:{free_port()}", throttle) as store:
        store._conditional = True
        with pytest.raises(StoreUnavailable):
            await store.put(KEY, DATA)
    assert throttle.up == []


async def test_without_a_limit_the_body_goes_as_it_is(scripted: ScriptedServer) -> None:
    sizes: list[object] = []
    scripted.script = lambda exchange: exchange.answer(200, headers={"ETag": ETAG})
    async with limited(scripted.endpoint, None, parallel=PARALLEL) as store:
        store._conditional = True
        store._bucket.client().meta.events.register_last(
            "before-send.s3.PutObject", lambda request, **_: sizes.append(type(request.body))
        )
        await store.put(KEY, DATA)
    assert sizes == [BytesIO]
