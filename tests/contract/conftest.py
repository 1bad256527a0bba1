"""The places on which the suite of stores runs."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.ports import Store
from tests.support.s3_servers import (
    S3Server,
    connect,
    create_bucket,
    environment,
    moto_server,
    rclone_server,
)
from tests.support.store_memory import MemoryStore
from tests.support.store_simulated import Faults, SimulatedStore

PLACES = ("memory", "simulated", "retrying", "directory", "moto", "rclone")


@dataclass(slots=True)
class Place:
    """Somewhere that several stores may look at."""

    make: Callable[[], Store]
    fill: Callable[[Sequence[str]], None]
    """Put one byte under each name, behind the store's back."""
    conditional_put: bool
    opened: list[Store]

    def open(self) -> Store:
        """Another store on this place, as another process would have it; closed after the test."""
        store = self.make()
        self.opened.append(store)
        return store


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket on a running server, for one session; each test takes a prefix of its own."""

    server: S3Server
    name: str
    client: Any


@pytest.fixture(scope="session")
def moto() -> Iterator[Bucket]:
    with moto_server() as server, _bucket(server) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server, _bucket(server) as bucket:
        yield bucket


@contextmanager
def _bucket(server: S3Server) -> Iterator[Bucket]:
    name = "contract-tests"
    create_bucket(server, name)
    with closing(connect(server)) as client:
        yield Bucket(server, name, client)


@pytest.fixture(params=PLACES)
def place_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
async def place(
    place_kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    if place_kind in {"memory", "simulated", "retrying"}:
        made = _in_memory(place_kind)
    elif place_kind == "directory":
        made = _in_directory(tmp_path / "root")
    else:
        bucket: Bucket = request.getfixturevalue(place_kind)
        for name, value in environment(bucket.server).items():
            monkeypatch.setenv(name, value)
        made = _in_bucket(bucket, conditional_put=place_kind == "moto")
    yield made
    for store in made.opened:
        await store.aclose()


@pytest.fixture
async def store(place: Place) -> Store:
    """A store on an empty place, probed as at every mount."""
    made = place.open()
    await made.probe()
    return made


def _in_memory(kind: str) -> Place:
    objects: dict[str, bytes] = {}

    def make() -> Store:
        if kind == "memory":
            return MemoryStore("a", objects)
        if kind == "simulated":
            return SimulatedStore("a", seed=1, objects=objects)
        faulty = SimulatedStore("a", seed=1, objects=objects, faults=Faults(unavailable=0.3))
        return RetryingStore(
            faulty, random=lambda: 0.5, policy=RetryPolicy(attempts_max=50, backoff_first_s=0.0)
        )

    return Place(make, lambda keys: objects.update(dict.fromkeys(keys, b"x")), True, [])


def _in_directory(root: Path) -> Place:
    root.mkdir()
    return Place(lambda: DirectoryStore("a", root), lambda keys: _fill_directory(root, keys), True, [])


def _fill_directory(root: Path, keys: Sequence[str]) -> None:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(b"x")


def _in_bucket(bucket: Bucket, *, conditional_put: bool) -> Place:
    prefix = f"some/prefix-{secrets.token_hex(8)}"

    def fill(keys: Sequence[str]) -> None:
        with ThreadPoolExecutor(4) as pool:
            puts = [
                pool.submit(bucket.client.put_object, Bucket=bucket.name, Key=f"{prefix}/{key}", Body=b"x")
                for key in keys
            ]
        for done in puts:
            done.result()

    def make() -> Store:
        target = S3Target(endpoint=bucket.server.endpoint)
        return S3Store("a", bucket=bucket.name, prefix=prefix, target=target)

    return Place(make, fill, conditional_put, [])
