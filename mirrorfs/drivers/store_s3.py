"""A store in a bucket of an S3 server, through boto3.

Servers differ in what they honour, so that nothing is taken on trust:
- If-None-Match and If-Match are ignored by some. Until `probe` has seen both work, `put` looks
  before it writes and `compare_and_swap` reads, compares, writes and reads again: safe against
  retries, weak against a second writer, and `StoreTraits.conditional_put` says so.
- Checksums beyond Content-MD5 are off: some servers answer a ranged read with the checksum of the
  whole object, which botocore then finds wrong. The bytes are authenticated above this layer.
- A server may ignore a range or send too much: answers are cut at what was asked for.

boto3 blocks, so that each call runs in a thread; a cancelled one leaves its thread to end with botocore's
own timeouts, and its effect may still come. No request is repeated here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import trio
from botocore.exceptions import ClientError

from mirrorfs.drivers.object_keys import (
    MUTABLE_SIZE_MAX,
    check_key,
    check_listing,
    check_mutable_size,
    is_key,
)
from mirrorfs.drivers.s3_client import S3Target, body_of, make_client, size_is_whole, whole_tag
from mirrorfs.drivers.s3_errors import (
    FOREIGN_ERRORS,
    bucket_missing,
    condition_failed,
    condition_unsupported,
    error_code,
    status,
    translate,
)
from mirrorfs.drivers.s3_line import S3Line
from mirrorfs.errors import (
    LimitError,
    ObjectExists,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.ports import (
    LIST_PAGE_MAX,
    OBJECT_SIZE_MAX,
    ObjectInfo,
    ObjectKey,
    Sealed,
    StoreTraits,
    Version,
)

T = TypeVar("T")

LIST_REQUESTS_MAX = 1000
"""Answers without one key of ours that a listing goes through for one page."""

_PROBE_PREFIX = "scratch"


class S3Store:
    """`Store` in a bucket; see `mirrorfs.ports.Store` for the contract of each method."""

    def __init__(
        self,
        name: str,
        *,
        bucket: str,
        prefix: str = "",
        target: S3Target | None = None,
        line: S3Line | None = None,
    ) -> None:
        """Describe a store; nothing is sent, no credentials are read.

        Args:
            prefix: goes before every key, without slashes at its ends; empty for none.
            target: the server; None for Amazon's, as boto3's standard chain has it.
            line: what is under way at a time, and how fast; None: PARALLEL objects, without a limit.
        Raises: UsageError: the endpoint is not usable.
        """
        self.name = name
        self._target = S3Target() if target is None else target
        self._target.check(store=name)
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self._line = S3Line() if line is None else line
        self._client_lock = threading.Lock()
        self._made_client: Any = None
        self._conditional: bool | None = None

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        check_key(key)
        if len(data) > OBJECT_SIZE_MAX:
            raise LimitError(f"Object {key} of store {self.name} would exceed {OBJECT_SIZE_MAX} bytes.")
        await self._run(lambda: self._put_blocking(key, data), self._line.uploads)

    async def get(self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX) -> bytes:
        """See Store.get."""
        check_key(key)
        return (await self._run(lambda: self._get_blocking(key, size_max), self._line.for_get(size_max)))[0]

    async def get_range(self, key: ObjectKey, *, offset: int, size_bytes: int) -> bytes:
        """See Store.get_range."""
        check_key(key)
        return await self._run(
            lambda: self._range_blocking(key, offset=offset, size_bytes=size_bytes), self._line.ranges
        )

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        check_key(key)
        return await self._run(lambda: self._head_blocking(key))

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        check_listing(prefix, start_after)
        return await self._run(lambda: self._list_blocking(prefix, start_after))

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete. In a versioned bucket older versions stay."""
        check_key(key)
        await self._run(lambda: self._delete_blocking(key))

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""
        check_key(key)
        return await self._run(lambda: self._read_mutable_blocking(key))

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap."""
        check_key(key)
        check_mutable_size(data, key=key, store=self.name)
        return await self._run(lambda: self._swap_blocking(key, data, expected))

    async def probe(self) -> StoreTraits:
        """See Store.probe. A scratch object stays where the credentials may not delete."""
        self._conditional = await self._run(self._probe_blocking)
        return StoreTraits(conditional_put=self._conditional)

    async def aclose(self) -> None:
        """See Store.aclose."""
        with self._client_lock:
            client, self._made_client = self._made_client, None
        if client is not None:
            client.close()
        await trio.lowlevel.checkpoint()

    async def _run(self, work: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
        limiter = limiter or self._line.control
        return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)

    # --- everything below runs in worker threads -------------------------------------------------

    def _client(self) -> Any:
        with self._client_lock:
            if self._made_client is None:
                self._made_client = make_client(self._target, connections_max=self._line.connections_max)
                self._line.shape(self._made_client)
            return self._made_client

    @contextlib.contextmanager
    def _translated(self, key: ObjectKey | None, *, writes: bool = False) -> Iterator[None]:
        """Turn what boto3 raises in the body into a StoreError."""
        subject = "listing" if key is None else f"object {key}"
        try:
            yield
        except FOREIGN_ERRORS as exc:
            if isinstance(exc, ClientError) and status(exc) == 404 and error_code(exc) != "NoSuchKey":
                # The answer to a HEAD does not say whether the bucket is there.
                self._check_bucket()
            raise translate(exc, store=self.name, subject=subject, writes=writes) from exc

    def _check_bucket(self) -> None:
        """Raises StoreUnavailable: the bucket does not exist. Silent where the look is not allowed."""
        try:
            self._client().head_bucket(Bucket=self._bucket)
        except ClientError as exc:
            if status(exc) == 404:
                raise bucket_missing(self.name) from exc
        except FOREIGN_ERRORS as exc:
            raise translate(exc, store=self.name, subject="bucket", writes=False) from exc

    def _place(self, key: ObjectKey) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._base + key}

    # --- reading ---------------------------------------------------------------------------------

    def _get_blocking(self, key: ObjectKey, size_max: int) -> tuple[bytes, str]:
        """Return (bytes, entity tag)."""
        with self._translated(key):
            answer = self._client().get_object(**self._place(key))
            with contextlib.closing(answer["Body"]):
                too_large = int(answer.get("ContentLength", 0)) > size_max
                data = b"" if too_large else self._line.read(body_of(answer), limit_bytes=size_max)
            if too_large or len(data) > size_max:
                raise LimitError(f"Object {key} of store {self.name} exceeds {size_max} bytes.")
            return data, whole_tag(answer)

    def _range_blocking(self, key: ObjectKey, *, offset: int, size_bytes: int) -> bytes:
        if size_bytes == 0:
            self._head_blocking(key)
            return b""
        with self._translated(key):
            try:
                return self._read_range(key, offset=offset, size_bytes=size_bytes)
            except ClientError as exc:
                if status(exc) != 416:
                    raise
            # Offset beyond the end; or a server that wants the end of the range inside as well.
            rest_bytes = self._head_blocking(key).size_bytes - offset
            if rest_bytes <= 0:
                return b""
            return self._read_range(key, offset=offset, size_bytes=min(size_bytes, rest_bytes))

    def _read_range(self, key: ObjectKey, *, offset: int, size_bytes: int) -> bytes:
        wanted = f"bytes={offset}-{offset + size_bytes - 1}"
        answer = self._client().get_object(**self._place(key), Range=wanted)
        with contextlib.closing(answer["Body"]):
            # The header decides, not the status: `rclone serve s3` sends a range with status 200.
            answered = answer.get("ContentRange")
            if answered is None and answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
                whole = self._line.read(body_of(answer), limit_bytes=OBJECT_SIZE_MAX, is_range=True)
                return whole[offset : offset + size_bytes]
            if not str(answered).startswith(f"bytes {offset}-"):
                raise StoreUnavailable(f"Store {self.name} answered with another range of {key}.")
            return self._line.read(body_of(answer), limit_bytes=size_bytes, is_range=True)[:size_bytes]

    def _head_blocking(self, key: ObjectKey) -> ObjectInfo:
        with self._translated(key):
            answer = self._client().head_object(**self._place(key))
        if "ContentLength" not in answer:
            raise StoreUnavailable(f"Store {self.name} does not tell the size of {key}.")
        if size_is_whole(answer):
            return ObjectInfo(key, int(answer["ContentLength"]))
        for info in self._list_blocking(key, ""):
            if info.key == key:
                return info
        raise ObjectNotFound(f"Store {self.name} holds no object {key}.")

    def _list_blocking(self, prefix: str, start_after: str) -> Sequence[ObjectInfo]:
        request: dict[str, object] = {
            "Bucket": self._bucket,
            "Prefix": self._base + prefix,
            "MaxKeys": LIST_PAGE_MAX,
        }
        if start_after:
            request["StartAfter"] = self._base + start_after
        for _ in range(LIST_REQUESTS_MAX):
            with self._translated(None):
                answer = self._client().list_objects_v2(**request)
            if "IsTruncated" not in answer:
                raise StoreUnavailable(f"Store {self.name} answered with something that is no listing.")
            page = self._page(answer.get("Contents", []), prefix=prefix, start_after=start_after)
            token = answer.get("NextContinuationToken")
            if page or not answer.get("IsTruncated") or not token:
                return page
            # Nothing but foreign names, or StartAfter is ignored: an empty page would mean the end.
            request["ContinuationToken"] = token
        raise StoreUnavailable(f"Store {self.name} holds too many foreign objects under its prefix.")

    def _page(
        self, contents: Sequence[Mapping[str, Any]], *, prefix: str, start_after: str
    ) -> Sequence[ObjectInfo]:
        page: list[ObjectInfo] = []
        for entry in contents:
            full = str(entry.get("Key", ""))
            key = full.removeprefix(self._base)
            if full.startswith(self._base + prefix) and is_key(key) and key > start_after:
                if page and key <= page[-1].key:
                    raise StoreUnavailable(f"Store {self.name} does not list in key order.")
                page.append(ObjectInfo(ObjectKey(key), int(entry.get("Size", 0))))
        return page[:LIST_PAGE_MAX]

    # --- writing ---------------------------------------------------------------------------------

    def _write(self, key: ObjectKey, data: bytes, **condition: str) -> str:
        """PUT, and return the entity tag. Raises foreign errors."""
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        answer = self._client().put_object(
            **self._place(key), Body=data, ContentMD5=base64.b64encode(digest).decode(), **condition
        )
        return whole_tag(answer)

    def _put_blocking(self, key: ObjectKey, data: bytes) -> None:
        if self._conditional is not True and self._holds(key, data):
            return
        condition = {} if self._conditional is False else {"IfNoneMatch": "*"}
        self._line.pace_small(len(data))
        with self._translated(key, writes=True):
            try:
                self._write(key, data, **condition)
            except ClientError as exc:
                if not condition_failed(exc):
                    raise
                if not self._holds(key, data):
                    raise StoreUnavailable(f"Object {key} of store {self.name} is being changed.") from exc

    def _holds(self, key: ObjectKey, data: bytes) -> bool:
        """Whether the object is there with these bytes. Raises ObjectExists: with others."""
        try:
            same = self._head_blocking(key).size_bytes == len(data)
            if same and self._get_blocking(key, OBJECT_SIZE_MAX)[0] == data:
                return True
        except ObjectNotFound:
            return False
        raise ObjectExists(f"Store {self.name} holds other bytes under {key}.")

    def _delete_blocking(self, key: ObjectKey) -> None:
        with contextlib.suppress(ObjectNotFound), self._translated(key, writes=True):
            self._client().delete_object(**self._place(key))

    def _read_mutable_blocking(self, key: ObjectKey) -> tuple[bytes, Version]:
        data, tag = self._get_blocking(key, MUTABLE_SIZE_MAX)
        return data, _version(data, tag)

    def _swap_blocking(self, key: ObjectKey, data: bytes, expected: Version | None) -> Version:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": _tag(expected)}
        if self._conditional is not True:
            self._check_version(key, expected)
            if self._conditional is False:
                condition = {}
        with self._translated(key, writes=True):
            try:
                tag = self._write(key, data, **condition)
            except ClientError as exc:
                if condition_failed(exc) or error_code(exc) == "NoSuchKey":
                    raise self._other_version(key) from exc
                raise
        if self._conditional is True and tag:
            return _version(data, tag)
        return self._read_back(key, data)

    def _check_version(self, key: ObjectKey, expected: Version | None) -> None:
        try:
            found = _digest(self._read_mutable_blocking(key)[1])
        except ObjectNotFound:
            found = ""
        if found != ("" if expected is None else _digest(expected)):
            raise self._other_version(key)

    def _other_version(self, key: ObjectKey) -> ObjectExists:
        return ObjectExists(f"Object {key} of store {self.name} has another version than expected.")

    def _read_back(self, key: ObjectKey, data: bytes) -> Version:
        try:
            found, version = self._read_mutable_blocking(key)
        except StoreError as exc:
            raise UnknownOutcome(f"Store {self.name} did not confirm a change of object {key}.") from exc
        if found != data:
            raise self._other_version(key)
        return version

    # --- probing ---------------------------------------------------------------------------------

    def _probe_blocking(self) -> bool:
        key = ObjectKey(f"{_PROBE_PREFIX}/{secrets.token_hex(16)}")
        with self._translated(key, writes=True):
            try:
                tag = self._write(key, b"probe")
                refused = self._refuses(key, IfNoneMatch="*") and self._refuses(key, IfMatch=f'"{"0" * 32}"')
                return refused and not self._refuses(key, IfMatch=tag)
            finally:
                with contextlib.suppress(StoreDenied):
                    self._delete_blocking(key)

    def _refuses(self, key: ObjectKey, **condition: str) -> bool:
        try:
            self._write(key, b"conditional", **condition)
        except ClientError as exc:
            if condition_failed(exc):
                return True
            if not condition_unsupported(exc):
                raise
        return False


def _version(data: bytes, tag: str) -> Version:
    """A version that serves both ways of swapping: by the server's tag, and by looking at the bytes."""
    return Version(f"{hashlib.sha256(data).hexdigest()}:{tag}")


def _digest(version: Version) -> str:
    return version.partition(":")[0]


def _tag(version: Version) -> str:
    return version.partition(":")[2]
