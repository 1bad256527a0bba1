"""Limits beneath a whole engine: two S3 stores share one rate, keep their leases and get everything."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.timetable import Rates, Timetable
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.s3_line import S3Line
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.engine.fetch import HEDGE_S, Ciphers, Fetcher
from mirrorfs.engine.limits import Limits, patient
from mirrorfs.engine.read_ahead import Place
from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.format.ids import Stream
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Store
from tests.support.machine import Machine, read_file, write_file
from tests.support.s3_servers import connect, create_bucket, environment, moto_server
from tests.support.store_memory import MemoryStore
from tests.support.volumes import HEADER, KEYS

MIB = 1 << 20
RATE = 2 * MIB
SIZE = 3 * MIB


async def test_two_stores_share_one_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(5).randbytes(SIZE)
    timetable = Timetable(Rates(upload_bytes_s=RATE))
    with moto_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        create_bucket(server, "limits")
        limits = Limits(timetable, SystemClock())
        policy = patient(RetryPolicy(attempts_max=1), timetable, transfers=8)
        target = S3Target(endpoint=server.endpoint)
        stores = [
            RetryingStore(
                S3Store(
                    store.name,
                    bucket="limits",
                    prefix=store.name,
                    target=target,
                    line=S3Line(throttle=limits),
                ),
                random=random.Random(3).random,
                policy=policy,
            )
            for store in HEADER.stores
        ]
        machine = Machine(tmp_path, stores)
        machine.world = replace(machine.world, throttle=limits)
        try:
            async with machine.mounted() as volume:
                inode = await write_file(volume, b"file", data)
                began_s = time.monotonic()
                await volume.flush()
                took_s = time.monotonic() - began_s
                assert all(store.last_error is None for store in volume.status().stores)
                assert volume.status().fenced is None
                assert await read_file(volume, inode) == data
        finally:
            for store in stores:
                await store.aclose()
        with closing(connect(server)) as client:
            listed = client.list_objects_v2(Bucket="limits")["Contents"]
    sent = sum(found["Size"] for found in listed)
    assert sent > len(HEADER.stores) * SIZE
    # The first piece of each of the two directions of urgency goes at once; the upper bound is generous.
    assert len(HEADER.stores) * SIZE / RATE * 0.9 <= took_s <= sent / RATE + 15


class Slow:
    """A limit by which everything takes this long."""

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s

    def upload(self, size_bytes: int, *, urgent: bool) -> float:
        return 0.0

    def download(self, size_bytes: int, *, urgent: bool) -> float:
        return 0.0

    def download_s(self, size_bytes: int) -> float:
        return self._takes_s


class SlowFetcher(Fetcher):
    """Asks stores that need 10 s, and remembers which."""

    asked: list[str]

    async def _from_store(self, store: Store, key: str, run: Sequence[Place], size_bytes: int) -> list[bytes]:
        self.asked.append(store.name)
        await trio.sleep(10)
        return [b"frame"]


@pytest.mark.parametrize(
    ("throttle", "asked"), [(None, ["a", "b"]), (Slow(0), ["a", "b"]), (Slow(10 - HEDGE_S + 1), ["a"])]
)
async def test_what_the_limit_holds_up_is_not_asked_for_twice(
    autojump_clock: MockClock, throttle: Slow | None, asked: list[str]
) -> None:
    fetcher = SlowFetcher(
        Ciphers(KEYS, load_public_key(HEADER.public_keys.writer)),
        ThreadOffload(),
        stores=lambda: [MemoryStore("a"), MemoryStore("b")],
        ranges=None,
        on_bad_copy=lambda store, key: None,
        throttle=throttle,
    )
    fetcher.asked = []
    assert await fetcher.load("k", [Place(0, Stream.MAIN, 1, 0, 0, 100)], size_bytes=1000) == [b"frame"]
    assert fetcher.asked == asked


async def test_parallel_comes_from_the_settings(tmp_path: Path) -> None:
    stores = [MemoryStore(store.name) for store in HEADER.stores]
    machine = Machine(tmp_path, stores)
    settings = replace(machine.settings(), parallel=2)
    at_once = [0, 0]

    def counting(store: MemoryStore) -> None:
        put = store.put

        async def slow_put(key, data):  # type: ignore[no-untyped-def]
            at_once[0] += 1
            at_once[1] = max(at_once)
            await trio.sleep(0.05)
            at_once[0] -= 1
            await put(key, data)

        store.put = slow_put  # type: ignore[method-assign]

    counting(stores[0])
    machine.settings = lambda *, take_over=False: settings  # type: ignore[method-assign]
    async with machine.mounted() as volume:
        for number in range(6):
            await write_file(volume, b"%d" % number, b"x" * 1000)
            await volume._local.quiesce()
        await volume.flush()
    assert at_once == [0, 2]
