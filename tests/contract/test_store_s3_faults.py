"""What the S3 store makes of servers that refuse, fail, stop half-way, lie or hang."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio

from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.errors import (
    LimitError,
    MirrorfsError,
    ObjectExists,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.ports import LIST_PAGE_MAX, OBJECT_SIZE_MAX, ObjectKey, Sealed, Version
from tests.contract.conftest import Bucket
from tests.support.s3_scripted import Exchange, ScriptedServer, scripted_server
from tests.support.s3_servers import environment, free_port, moto_server

KEY = ObjectKey("segments/1")
DATA = Sealed(b"0123456789")
ETAG = '"781e5e245d69b566979b86e28d23f2c7"'

Call = Callable[[S3Store], Awaitable[object]]
READS: dict[str, Call] = {
    "get": lambda store: store.get(KEY),
    "get_range": lambda store: store.get_range(KEY, offset=2, size_bytes=3),
    "list": lambda store: store.list("segments/"),
    "read_mutable": lambda store: store.read_mutable(KEY),
}
WRITES: dict[str, Call] = {
    "put": lambda store: store.put(KEY, DATA),
    "delete": lambda store: store.delete(KEY),
    "swap": lambda store: store.compare_and_swap(KEY, DATA, expected=Version(f"x:{ETAG}")),
    "probe": lambda store: store.probe(),
}
HEAD: dict[str, Call] = {"head": lambda store: store.head(KEY)}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-someone")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
async def store(server: ScriptedServer) -> AsyncIterator[S3Store]:
    made = make_store(server.endpoint)
    # As after a probe that found conditional writes: a put is one request.
    server.script = honest_probe()
    assert (await made.probe()).conditional_put
    server.requests.clear()
    yield made
    await made.aclose()


def make_store(endpoint: str, *, profile: str | None = None, read_timeout_s: float = 60.0) -> S3Store:
    target = S3Target(endpoint=endpoint, profile=profile, read_timeout_s=read_timeout_s)
    return S3Store("cloud", bucket="bucket", target=target)


def honest_probe() -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        if exchange.method == "DELETE":
            exchange.answer(204)
        elif exchange.headers.get("If-None-Match") or exchange.headers.get("If-Match", ETAG) != ETAG:
            exchange.fail(412, "PreconditionFailed")
        else:
            exchange.answer(200, headers={"ETag": ETAG})

    return script


async def outcome(store: S3Store, call: Call) -> type[MirrorfsError]:
    with pytest.raises(MirrorfsError) as caught:
        await call(store)
    message = str(caught.value)
    assert "store cloud" in message.lower()
    assert "secret-of-someone" not in message
    return type(caught.value)


# --- refusals: status and code -------------------------------------------------------------------


REFUSALS: list[tuple[int, str, type[StoreError], type[StoreError]]] = [
    # status, code, what a read raises, what a write raises
    (403, "AccessDenied", StoreDenied, StoreDenied),
    (403, "SignatureDoesNotMatch", StoreDenied, StoreDenied),
    (403, "RequestTimeTooSkewed", StoreDenied, StoreDenied),
    (400, "ExpiredToken", StoreDenied, StoreDenied),
    (401, "Unauthorized", StoreDenied, StoreDenied),
    (400, "AuthorizationHeaderMalformed", StoreDenied, StoreDenied),
    (404, "NoSuchBucket", StoreUnavailable, StoreUnavailable),
    (503, "SlowDown", StoreUnavailable, StoreUnavailable),
    (503, "ServiceUnavailable", StoreUnavailable, StoreUnavailable),
    (429, "TooManyRequests", StoreUnavailable, StoreUnavailable),
    (400, "RequestTimeout", StoreUnavailable, StoreUnavailable),
    (500, "InternalError", StoreUnavailable, UnknownOutcome),
    (502, "BadGateway", StoreUnavailable, UnknownOutcome),
    (504, "GatewayTimeout", StoreUnavailable, UnknownOutcome),
    (507, "InsufficientStorage", StoreFull, StoreFull),
    (507, "XMinioStorageFull", StoreFull, StoreFull),
    (403, "QuotaExceeded", StoreFull, StoreFull),
    (400, "InvalidRequest", StoreUnavailable, StoreUnavailable),
]


async def test_refusals(server: ScriptedServer, store: S3Store) -> None:
    for status, code, read, written in REFUSALS:
        server.script = functools.partial(Exchange.fail, status=status, code=code)
        for call in READS.values():
            assert await outcome(store, call) is read, code
        for name in ("put", "delete", "swap"):
            assert await outcome(store, WRITES[name]) is written, code


async def test_nothing_is_repeated(server: ScriptedServer, store: S3Store) -> None:
    for script in (lambda exchange: exchange.fail(503, "SlowDown"), Exchange.close):
        server.script = script
        for name, call in (READS | WRITES | HEAD).items():
            server.requests.clear()
            await outcome(store, call)
            # probe still tries to remove its scratch object.
            assert len(server.requests) == (2 if name == "probe" else 1), name


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, StoreDenied), (404, StoreUnavailable), (503, StoreUnavailable), (500, StoreUnavailable)],
)
async def test_head_without_a_body(
    server: ScriptedServer, store: S3Store, status: int, expected: type[StoreError]
) -> None:
    # 404 to a HEAD of the object and of the bucket: it is the bucket that is missing.
    server.script = lambda exchange: exchange.answer(status)
    assert await outcome(store, HEAD["head"]) is expected


async def test_head_of_a_missing_object(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(404 if "segments" in exchange.path else 200)
    assert await outcome(store, HEAD["head"]) is ObjectNotFound
    server.script = lambda exchange: exchange.answer(404 if "segments" in exchange.path else 403)
    assert await outcome(store, HEAD["head"]) is ObjectNotFound


async def test_page_of_a_proxy_is_no_missing_object(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(404, b"<html><body>no such site</body></html>")
    for call in (*READS.values(), *HEAD.values()):
        assert await outcome(store, call) is StoreUnavailable


async def test_conditional_conflicts(server: ScriptedServer, store: S3Store) -> None:
    held = b""

    def script(exchange: Exchange) -> None:
        if exchange.method == "PUT":
            exchange.fail(409, "ConditionalRequestConflict")
        elif held:
            exchange.answer(200, held, headers={"ETag": ETAG})
        else:
            exchange.fail(404, "NoSuchKey") if exchange.method == "GET" else exchange.answer(
                404 if "segments" in exchange.path else 200
            )

    server.script = script
    assert await outcome(store, WRITES["swap"]) is ObjectExists
    # Refused because of another write that has not left anything yet.
    assert await outcome(store, WRITES["put"]) is StoreUnavailable
    held = b"other bytes"
    assert await outcome(store, WRITES["put"]) is ObjectExists
    held = DATA[::-1]
    assert await outcome(store, WRITES["put"]) is ObjectExists
    held = DATA
    await store.put(KEY, DATA)


# --- silence ---------------------------------------------------------------------------------------


async def test_closed_connection(server: ScriptedServer, store: S3Store) -> None:
    server.script = Exchange.close
    for call in (*READS.values(), *HEAD.values()):
        assert await outcome(store, call) is StoreUnavailable
    for call in WRITES.values():
        assert await outcome(store, call) is UnknownOutcome


async def test_cut_answer(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(200, b"x", claimed_bytes=9)
    for call in READS.values():
        assert await outcome(store, call) is StoreUnavailable


async def test_answer_cut_in_its_head(server: ScriptedServer, store: S3Store) -> None:
    """http.client takes the fields so far for a whole head, and an empty body for the whole body."""
    for head in (b"HTTP/1.1 200 OK\r\n", b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Le'):
        server.script = lambda exchange, head=head: exchange.send_raw(head)
        for call in (*READS.values(), *HEAD.values()):
            assert await outcome(store, call) is StoreUnavailable


async def test_size_that_may_be_cut_is_asked_for_again(server: ScriptedServer, store: S3Store) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.method == "HEAD":
            exchange.send_raw(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 1')
        else:
            exchange.answer(200, page([KEY]).replace(b"<Size>1<", b"<Size>12<"))

    server.script = script
    assert (await store.head(KEY)).size_bytes == 12


async def test_version_that_may_be_cut_is_read_again(server: ScriptedServer, store: S3Store) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.method == "PUT":
            exchange.send_raw(b'HTTP/1.1 200 OK\r\nETag: "781e5e')
        else:
            exchange.answer(200, DATA, headers={"ETag": ETAG})

    server.script = script
    version = await store.compare_and_swap(KEY, DATA, expected=None)
    assert version == (await store.read_mutable(KEY))[1]
    assert version.endswith(ETAG)


async def test_hanging_server(server: ScriptedServer) -> None:
    store = make_store(server.endpoint, read_timeout_s=1.0)
    server.script = honest_probe()
    while True:
        # A busy machine may keep an honest answer for longer than the timeout.
        with contextlib.suppress(StoreUnavailable, UnknownOutcome):
            await store.probe()
            break
    server.script = Exchange.hang

    async def check(call: Call, expected: type[StoreError]) -> None:
        assert await outcome(store, call) is expected

    async with trio.open_nursery() as nursery:
        for call in (*READS.values(), *HEAD.values()):
            nursery.start_soon(check, call, StoreUnavailable)
        for call in WRITES.values():
            nursery.start_soon(check, call, UnknownOutcome)
    await store.aclose()


async def test_nobody_listens() -> None:
    store = make_store(f"http://127.0.0.1:{free_port()}")
    for call in (READS | WRITES | HEAD).values():
        assert await outcome(store, call) is StoreUnavailable
    await store.aclose()


async def test_outage_of_a_server(monkeypatch: pytest.MonkeyPatch, moto: Bucket) -> None:
    monkeypatch.undo()
    with moto_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        target = S3Target(endpoint=server.endpoint)
        # Both servers are of one process, and so are their buckets.
        store = S3Store("cloud", bucket=moto.name, prefix=secrets.token_hex(8), target=target)
        await store.put(KEY, DATA)
        server.stop()
        with pytest.raises(StoreError) as caught:
            await store.put(ObjectKey("segments/2"), DATA)
        # The pooled connection may only break once the request is on its way.
        assert isinstance(caught.value, StoreUnavailable | UnknownOutcome)
        for call in READS.values():
            assert await outcome(store, call) is StoreUnavailable
        server.start()
        assert await store.get(KEY) == DATA
        await store.put(ObjectKey("segments/2"), DATA)
        await store.aclose()


# --- lies -------------------------------------------------------------------------------------------


async def test_more_than_asked_for_is_cut(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(
        206, b"234567890", headers={"Content-Range": "bytes 2-10/100"}
    )
    assert await store.get_range(KEY, offset=2, size_bytes=3) == b"234"


async def test_ignored_range_is_cut_here(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(200, DATA)
    assert await store.get_range(KEY, offset=2, size_bytes=3) == b"234"
    assert await store.get_range(KEY, offset=8, size_bytes=30) == b"89"


@pytest.mark.parametrize("headers", [{}, {"Content-Range": "bytes 3-5/10"}, {"Content-Range": "bytes */10"}])
async def test_another_range_is_refused(
    server: ScriptedServer, store: S3Store, headers: dict[str, str]
) -> None:
    server.script = lambda exchange: exchange.answer(206, b"345", headers=headers)
    assert await outcome(store, READS["get_range"]) is StoreUnavailable


async def test_range_that_must_end_inside(server: ScriptedServer, store: S3Store) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.method == "HEAD":
            exchange.answer(200, DATA)
        elif exchange.headers["Range"] == "bytes=8-9":
            exchange.answer(206, DATA[8:], headers={"Content-Range": "bytes 8-9/10"})
        else:
            exchange.fail(416, "InvalidRange")

    server.script = script
    assert await store.get_range(KEY, offset=8, size_bytes=100) == b"89"
    assert await store.get_range(KEY, offset=10, size_bytes=100) == b""


async def test_answers_without_end_are_limited(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(200, bytes(1000), claimed_bytes=OBJECT_SIZE_MAX + 1)
    with pytest.raises(LimitError):
        await store.get(KEY)
    with pytest.raises(LimitError):
        await store.read_mutable(KEY)


def page(keys: list[str], *, token: str | None = None) -> bytes:
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    end = "<IsTruncated>false</IsTruncated>"
    return f"<ListBucketResult>{more if token else end}{entries}</ListBucketResult>".encode()


# An empty document must not pass for an empty store.
@pytest.mark.parametrize(
    "body", [b"", b"<ListBucketResult/>", b"<", b"not xml", page(["a"])[:-20], b"<ListBucketResult/>" * 2]
)
async def test_broken_listing(server: ScriptedServer, store: S3Store, body: bytes) -> None:
    server.script = lambda exchange: exchange.answer(200, body)
    assert await outcome(store, lambda store: store.list("")) is StoreUnavailable


async def test_unordered_listing_is_refused(server: ScriptedServer, store: S3Store) -> None:
    server.script = lambda exchange: exchange.answer(200, page(["b", "a"]))
    assert await outcome(store, lambda store: store.list("")) is StoreUnavailable


async def test_listing_beyond_what_was_asked_for(server: ScriptedServer, store: S3Store) -> None:
    keys = ["../etc", "a", "a/b", "a/c", "b", *(f"c/{number:06}" for number in range(LIST_PAGE_MAX))]
    server.script = lambda exchange: exchange.answer(200, page(keys))
    assert [info.key for info in await store.list("a/", start_after="a/b")] == ["a/c"]
    assert len(await store.list("")) == LIST_PAGE_MAX


async def test_server_that_ignores_start_after(server: ScriptedServer, store: S3Store) -> None:
    def script(exchange: Exchange) -> None:
        later = "continuation-token=more" in exchange.path
        exchange.answer(200, page(["c", "d"]) if later else page(["a", "b"], token="more"))

    server.script = script
    assert [info.key for info in await store.list("", start_after="b")] == ["c", "d"]


@pytest.mark.parametrize("status", [400, 501])
async def test_probe_of_a_server_that_knows_no_conditions(server: ScriptedServer, status: int) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.headers.get("If-None-Match") or exchange.headers.get("If-Match"):
            exchange.fail(status, "NotImplemented")
        else:
            exchange.answer(204 if exchange.method == "DELETE" else 200)

    server.script = script
    store = make_store(server.endpoint)
    assert not (await store.probe()).conditional_put
    await store.aclose()


async def test_probe_without_the_right_to_delete(server: ScriptedServer) -> None:
    honest = honest_probe()
    server.script = lambda exchange: (
        exchange.fail(403, "AccessDenied") if exchange.method == "DELETE" else honest(exchange)
    )
    store = make_store(server.endpoint)
    assert (await store.probe()).conditional_put
    await store.aclose()


async def test_swap_by_looking_is_unknown_when_the_look_fails(server: ScriptedServer) -> None:
    written = False

    def script(exchange: Exchange) -> None:
        nonlocal written
        if exchange.method == "PUT":
            written = True
            exchange.answer(200)
        elif written:
            exchange.fail(503, "SlowDown")
        else:
            exchange.fail(404, "NoSuchKey")

    server.script = script
    store = make_store(server.endpoint)
    with pytest.raises(UnknownOutcome):
        await store.compare_and_swap(KEY, DATA, expected=None)
    await store.aclose()


# --- credentials ------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        yield


async def test_no_credentials(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_credentials(monkeypatch):
        assert await outcome(make_store(server.endpoint), READS["get"]) is StoreDenied
    assert await outcome(make_store(server.endpoint, profile="nobody"), READS["get"]) is StoreDenied
    assert server.requests == []


async def test_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)
    store = S3Store("cloud", bucket="bucket", target=S3Target())
    with without_credentials(monkeypatch):
        assert await outcome(store, READS["get"]) is StoreDenied
