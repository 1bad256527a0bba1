"""Real S3 servers, one with conditional writes, one without, each behind a proxy that can be made faulty."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.store_s3 import S3Store
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.s3_servers import S3Server, create_bucket, environment, moto_server, rclone_server

BUCKET = "fault-tests"
SERVERS = ("moto", "rclone")


@dataclass(frozen=True, slots=True)
class Place:
    """An empty place on a real server, and the faulty way to it."""

    server: S3Server
    proxy: FaultyProxy
    prefix: str
    conditional_put: bool

    def near(self) -> S3Store:
        """A store at the server itself: what is really there."""
        return S3Store(
            "near", bucket=BUCKET, prefix=self.prefix, target=S3Target(endpoint=self.server.endpoint)
        )

    def far(self, *, read_timeout_s: float) -> S3Store:
        """A store behind the proxy."""
        target = S3Target(
            endpoint=self.proxy.endpoint, connect_timeout_s=read_timeout_s, read_timeout_s=read_timeout_s
        )
        return S3Store("far", bucket=BUCKET, prefix=self.prefix, target=target)


@contextmanager
def _with_bucket(server: S3Server) -> Iterator[S3Server]:
    create_bucket(server, BUCKET)
    yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server, _with_bucket(server):
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server, _with_bucket(server):
        yield server


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    server: S3Server = request.getfixturevalue(request.param)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    with faulty_proxy(server.endpoint) as proxy:
        yield Place(server, proxy, f"some/{secrets.token_hex(8)}", request.param == "moto")
