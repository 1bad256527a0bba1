"""The way to an S3 server: through a proxy, through TLS, and where the bucket's name goes."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.drivers.store_url import parse_store_url
from mirrorfs.errors import StoreUnavailable, UsageError
from mirrorfs.ports import ObjectKey, Sealed
from tests.contract.conftest import Bucket
from tests.support.s3_roads import Authority, make_authority, tls_front, tunnel_proxy
from tests.support.s3_scripted import Exchange, ScriptedServer, scripted_server
from tests.support.s3_servers import environment, free_port

KEY = ObjectKey("segments/1")
DATA = Sealed(b"0123456789" * 20_000)
PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, moto: Bucket) -> None:
    for name, value in environment(moto.server).items():
        monkeypatch.setenv(name, value)
    for name in (*PROXY_VARIABLES, "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        server.script = lambda exchange: exchange.answer(200)
        yield server


@asynccontextmanager
async def store_at(url: str) -> AsyncIterator[S3Store]:
    store = parse_store_url("cloud", url)
    assert isinstance(store, S3Store)
    try:
        yield store
    finally:
        await store.aclose()


def place(bucket: Bucket) -> str:
    return f"s3://{bucket.name}/{secrets.token_hex(8)}"


async def put_and_get(store: S3Store) -> None:
    assert (await store.probe()).conditional_put
    await store.put(KEY, DATA)
    assert await store.get(KEY) == DATA
    assert await store.get_range(KEY, offset=5, size_bytes=7) == DATA[5:12]


# --- TLS -------------------------------------------------------------------------------------


async def test_a_bundle_vouches_for_a_server(moto: Bucket, authority: Authority) -> None:
    port = urlsplit(moto.server.endpoint).port
    assert port is not None
    with tls_front(port, authority) as front:
        url = f"{place(moto)}?endpoint=https://127.0.0.1:{front.port}"
        async with store_at(f"{url}&ca_bundle={authority.bundle}") as store:
            await put_and_get(store)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_the_environment_may_name_a_bundle(
    moto: Bucket, authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    port = urlsplit(moto.server.endpoint).port
    assert port is not None
    monkeypatch.setenv(variable, str(authority.bundle))
    with tls_front(port, authority) as front:
        async with store_at(f"{place(moto)}?endpoint=https://127.0.0.1:{front.port}") as store:
            await put_and_get(store)


async def test_without_its_authority_a_server_is_refused(
    scripted: ScriptedServer, authority: Authority, tmp_path: Path
) -> None:
    port = urlsplit(scripted.endpoint).port
    assert port is not None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = make_authority(elsewhere)
    with tls_front(port, authority) as front:
        url = f"s3://bucket?endpoint=https://127.0.0.1:{front.port}"
        for ending in ("", f"&ca_bundle={other.bundle}"):
            async with store_at(url + ending) as store:
                with pytest.raises(StoreUnavailable, match="ca_bundle"):
                    await store.put(KEY, DATA)
        assert scripted.requests == []
        async with store_at(f"{url}&ca_bundle={authority.bundle}") as store:
            await store.head(KEY)
    assert len(scripted.requests) == 1


async def test_a_certificate_for_another_host_is_refused(scripted: ScriptedServer, tmp_path: Path) -> None:
    port = urlsplit(scripted.endpoint).port
    assert port is not None
    authority = make_authority(tmp_path, host="127.0.0.2")
    with tls_front(port, authority) as front:
        url = f"s3://bucket?endpoint=https://127.0.0.1:{front.port}&ca_bundle={authority.bundle}"
        async with store_at(url) as store:
            with pytest.raises(StoreUnavailable):
                await store.get(KEY)
    assert scripted.requests == []


def change_nothing(bundle: Path) -> str:
    return str(bundle)


def make_writable(bundle: Path) -> str:
    bundle.chmod(0o666)
    return str(bundle)


def make_directory_writable(bundle: Path) -> str:
    bundle.parent.chmod(0o777)
    return str(bundle)


def remove(bundle: Path) -> str:
    bundle.unlink()
    return str(bundle)


def garble(bundle: Path) -> str:
    bundle.write_text("no certificate")
    return str(bundle)


def take_server(bundle: Path) -> str:
    """The certificate of a server vouches for nobody."""
    shutil.copyfile(bundle.with_name("server.key"), bundle)
    return str(bundle)


BAD_BUNDLES: list[tuple[Callable[[Path], str], str]] = [
    (make_writable, "ca_bundle of store cloud can be written by others"),
    (make_directory_writable, "directory of the ca_bundle of store cloud can be written"),
    (remove, "cannot be read"),
    (garble, "no certificates in PEM"),
    (take_server, "no certificate"),
    (lambda bundle: str(bundle.parent), "not a file"),
    (lambda bundle: bundle.name, "absolute path"),
    (lambda bundle: "0", "absolute path"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_BUNDLES)
async def test_bundles_that_are_refused(
    authority: Authority, spoil: Callable[[Path], str], message: str
) -> None:
    url = "s3://bucket?endpoint=https://127.0.0.1&ca_bundle="
    parse_store_url("cloud", url + change_nothing(authority.bundle))
    with pytest.raises(UsageError) as caught:
        parse_store_url("cloud", url + spoil(authority.bundle))
    assert message in str(caught.value)


# --- proxies ---------------------------------------------------------------------------------


async def test_tls_through_a_proxy(moto: Bucket, authority: Authority) -> None:
    port = urlsplit(moto.server.endpoint).port
    assert port is not None
    with tls_front(port, authority) as front, tunnel_proxy() as proxy:
        url = f"{place(moto)}?endpoint=https://127.0.0.1:{front.port}&ca_bundle={authority.bundle}"
        async with store_at(f"{url}&proxy=http://127.0.0.1:{proxy.port}") as store:
            await put_and_get(store)
        assert set(proxy.tunnels) == {f"127.0.0.1:{front.port}"}


async def test_through_a_proxy_that_itself_speaks_tls(moto: Bucket, authority: Authority) -> None:
    port = urlsplit(moto.server.endpoint).port
    assert port is not None
    with ExitStack() as stack:
        front = stack.enter_context(tls_front(port, authority))
        proxy = stack.enter_context(tunnel_proxy())
        secured = stack.enter_context(tls_front(proxy.port, authority))
        url = f"{place(moto)}?endpoint=https://127.0.0.1:{front.port}&proxy=https://127.0.0.1:{secured.port}"
        async with store_at(f"{url}&ca_bundle={authority.bundle}") as store:
            await put_and_get(store)
        assert set(proxy.tunnels) == {f"127.0.0.1:{front.port}"}


async def test_a_proxy_is_verified_even_before_an_http_server(
    scripted: ScriptedServer, authority: Authority
) -> None:
    port = urlsplit(scripted.endpoint).port
    assert port is not None
    with tls_front(port, authority) as secured:
        url = f"s3://bucket?endpoint=http://127.0.0.1:1&proxy=https://127.0.0.1:{secured.port}"
        async with store_at(url) as store:
            with pytest.raises(StoreUnavailable):
                await store.head(KEY)
        assert scripted.requests == []
        async with store_at(f"{url}&ca_bundle={authority.bundle}") as store:
            await store.head(KEY)
        assert scripted.requests == [f"HEAD http://127.0.0.1:1/bucket/{KEY}"]


async def test_a_proxy_of_the_environment_is_verified_before_an_http_server(
    scripted: ScriptedServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(scripted.endpoint).port
    assert port is not None
    with tls_front(port, authority) as secured:
        monkeypatch.setenv("HTTP_PROXY", f"https://127.0.0.1:{secured.port}")
        url = "s3://bucket?endpoint=http://192.0.2.1:1&allow_http=1"
        async with store_at(url) as store:
            with pytest.raises(StoreUnavailable):
                await store.head(KEY)
        assert scripted.requests == []
        # Whatever names the certificates, they count for the proxy, too.
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.bundle))
        async with store_at(url) as store:
            await store.head(KEY)
        monkeypatch.delenv("HTTP_PROXY")
        async with store_at(f"{url}&proxy=https://127.0.0.1:{secured.port}") as store:
            await store.head(KEY)
    assert scripted.requests == 2 * [f"HEAD http://192.0.2.1:1/bucket/{KEY}"]


async def test_a_proxy_that_is_not_there(moto: Bucket, authority: Authority) -> None:
    url = f"{place(moto)}?endpoint={moto.server.endpoint}&proxy=http://127.0.0.1:{free_port()}"
    async with store_at(url) as store:
        with pytest.raises(StoreUnavailable, match="The proxy on the way to store cloud"):
            await store.put(KEY, DATA)


async def test_http_through_a_proxy(scripted: ScriptedServer) -> None:
    async with store_at(f"s3://bucket?endpoint=http://127.0.0.1:1&proxy={scripted.endpoint}") as store:
        assert (await store.head(KEY)).size_bytes == 0
    assert scripted.requests == [f"HEAD http://127.0.0.1:1/bucket/{KEY}"]


async def test_a_proxy_of_the_environment(
    moto: Bucket, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(moto.server.endpoint).port
    assert port is not None
    with tls_front(port, authority) as front, tunnel_proxy() as proxy:
        url = f"{place(moto)}?endpoint=https://127.0.0.1:{front.port}&ca_bundle={authority.bundle}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with store_at(url) as store:
            await put_and_get(store)
        assert proxy.tunnels
        proxy.tunnels.clear()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with store_at(url) as store:
            await put_and_get(store)
        assert proxy.tunnels == []
        async with store_at(f"{url}&proxy=http://127.0.0.1:{proxy.port}") as store:
            await put_and_get(store)
        assert proxy.tunnels


async def test_the_environment_may_hold_the_credentials_of_a_proxy(
    moto: Bucket, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(moto.server.endpoint).port
    assert port is not None
    with tls_front(port, authority) as front, tunnel_proxy() as proxy:
        proxy.password = "practice:secret-of-the-proxy"
        url = f"{place(moto)}?endpoint=https://127.0.0.1:{front.port}&ca_bundle={authority.bundle}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.password}@127.0.0.1:{proxy.port}")
        async with store_at(url) as store:
            await put_and_get(store)
        monkeypatch.setenv("HTTPS_PROXY", f"http://practice:wrong-secret@127.0.0.1:{proxy.port}")
        async with store_at(url) as store:
            with pytest.raises(StoreUnavailable, match="proxy") as caught:
                await store.put(KEY, DATA)
        assert "wrong-secret" not in str(caught.value)


async def test_http_to_this_machine_takes_no_proxy_of_the_environment(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_server() as elsewhere:
        monkeypatch.setenv("HTTP_PROXY", elsewhere.endpoint)
        async with store_at(f"s3://bucket?endpoint={scripted.endpoint}") as store:
            await store.head(KEY)
        assert (len(scripted.requests), elsewhere.requests) == (1, [])


# --- addressing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addressing", "named", "path"),
    [
        ("", "localhost", "/bucket/prefix/segments/1"),
        ("&addressing=path", "localhost", "/bucket/prefix/segments/1"),
        ("&addressing=virtual", "bucket.localhost", "/prefix/segments/1"),
        ("&addressing=auto", "localhost", "/bucket/prefix/segments/1"),
    ],
)
async def test_where_the_name_of_the_bucket_goes(
    scripted: ScriptedServer, addressing: str, named: str, path: str
) -> None:
    seen: list[str] = []

    def script(exchange: Exchange) -> None:
        seen.append(exchange.headers["Host"])
        exchange.answer(200)

    scripted.script = script
    port = urlsplit(scripted.endpoint).port
    # By way of a proxy, so that nobody has to know a host of the bucket's name.
    url = f"s3://bucket/prefix?endpoint=http://localhost:{port}{addressing}&proxy={scripted.endpoint}"
    async with store_at(url) as store:
        await store.head(KEY)
    assert seen == [f"{named}:{port}"]
    assert scripted.requests == [f"HEAD http://{named}:{port}{path}"]
