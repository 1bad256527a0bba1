"""A store in a bucket of an S3 server, through boto3.

Servers differ in what they honour, so that nothing is taken on trust:
- If-None-Match and If-Match are ignored by some. Until `probe` has seen both work, `put` looks
  before it writes and `compare_and_swap` reads, compares, writes and reads again: safe against
  retries, weak against a second writer, and `StoreTraits.conditional_put` says so.
- Checksums beyond Content-MD5 are off: some servers answer a ranged read with the checksum of the
  whole object, which botocore then finds wrong. The bytes are authenticated above this layer.
- A server may ignore a range or send too much: answers are cut at what was asked for.

What the bucket has to do with it is in s3_bucket.py, listings in s3_listing.py, locks in s3_lock.py.
boto3 blocks, so that each call runs in a thread; a cancelled one leaves its thread to end with botocore's
own timeouts, and its effect may still come. No request is repeated here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio
from botocore.exceptions import ClientError

from mirrorfs.drivers.object_keys import (
    MUTABLE_SIZE_MAX,
    check_key,
    check_listing,
    check_mutable_size,
)
from mirrorfs.drivers.s3_bucket import S3Bucket
from mirrorfs.drivers.s3_client import S3Target, body_of, size_is_whole, whole_tag
from mirrorfs.drivers.s3_errors import condition_failed, error_code, status
from mirrorfs.drivers.s3_line import S3Line
from mirrorfs.drivers.s3_listing import list_page, versions_of
from mirrorfs.drivers.s3_lock import check_bucket_lock, delete_versions, lock_fields, lock_until, may_not_lock
from mirrorfs.drivers.s3_probe import probe
from mirrorfs.errors import (
    LimitError,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.format.object_lock import ObjectLock
from mirrorfs.ports import (
    OBJECT_SIZE_MAX,
    ObjectInfo,
    ObjectKey,
    ObjectVersion,
    Sealed,
    StoreTraits,
    Version,
)

T = TypeVar("T")


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
        lock: ObjectLock | None = None,
    ) -> None:
        """Describe a store; nothing is sent, no credentials are read.

        Args:
            prefix: goes before every key, without slashes at its ends; empty for none.
            target: the server; None for Amazon's, as boto3's standard chain has it.
            line: what is under way at a time, and how fast; None: PARALLEL objects, without a limit.
            lock: how `put` locks objects; None: not at all.
        Raises: UsageError: the endpoint is not usable.
        """
        target = S3Target() if target is None else target
        target.check(store=name)
        self.name = name
        self.lock = lock
        self._line = S3Line() if line is None else line
        self._bucket = S3Bucket(name, bucket=bucket, prefix=prefix, target=target, line=self._line, lock=lock)
        self._conditional: bool | None = None

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        check_key(key)
        if len(data) > OBJECT_SIZE_MAX:
            raise LimitError(f"Object {key} of store {self.name} would exceed {OBJECT_SIZE_MAX} bytes.")
        await self._run(lambda: self._put_blocking(key, data), self._line.uploads)

    async def put_over(self, key: ObjectKey, data: Sealed) -> bool:
        """See Store.put_over."""
        check_key(key)
        return await self._run(lambda: self._put_over_blocking(key, data), self._line.uploads)

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""
        check_key(key)
        return (
            await self._run(lambda: self._get_blocking(key, size_max, version), self._line.for_get(size_max))
        )[0]

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""
        check_key(key)
        return await self._run(
            lambda: self._range_blocking(key, offset=offset, size_bytes=size_bytes, version=version),
            self._line.ranges,
        )

    async def versions(self, key: ObjectKey) -> Sequence[ObjectVersion]:
        """See Store.versions."""
        check_key(key)
        found = await self._run(lambda: versions_of(self._bucket, key))
        return [one.version for one in found if not one.is_latest and one.size_bytes is not None]

    async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
        """See Store.lock_until."""
        check_key(key)
        await self._run(lambda: lock_until(self._bucket, key, until_ns=until_ns, size_bytes=size_bytes))

    async def check_lock(self) -> None:
        """Refuse a bucket that cannot lock as it is to, or locks by itself; for who makes a store.

        Raises: UsageError. StoreError: it cannot be told.
        """
        await self._run(lambda: check_bucket_lock(self._bucket))

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        check_key(key)
        return await self._run(lambda: self._head_blocking(key))

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        check_listing(prefix, start_after)
        return await self._run(lambda: list_page(self._bucket, prefix, start_after))

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete. In a versioned bucket it needs s3:DeleteObjectVersion."""
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
        traits = await self._run(lambda: probe(self._bucket))
        self._conditional = traits.conditional_put
        return traits

    async def aclose(self) -> None:
        """See Store.aclose."""
        self._bucket.close()
        await trio.lowlevel.checkpoint()

    async def _run(self, work: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
        limiter = limiter or self._line.control
        return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)

    # --- everything below runs in worker threads -------------------------------------------------

    # --- reading ---------------------------------------------------------------------------------

    def _get_blocking(
        self, key: ObjectKey, size_max: int, version: ObjectVersion | None = None
    ) -> tuple[bytes, str]:
        """Return (bytes, entity tag)."""
        with self._bucket.translated(key):
            answer = self._bucket.client().get_object(**self._bucket.place(key, version))
            self._bucket.learn(answer)
            with contextlib.closing(answer["Body"]):
                too_large = int(answer.get("ContentLength", 0)) > size_max
                data = b"" if too_large else self._line.read(body_of(answer), limit_bytes=size_max)
            if too_large or len(data) > size_max:
                raise LimitError(f"Object {key} of store {self.name} exceeds {size_max} bytes.")
            return data, whole_tag(answer)

    def _range_blocking(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None
    ) -> bytes:
        if size_bytes == 0:
            self._head_blocking(key, version)
            return b""
        place = self._bucket.place(key, version)
        with self._bucket.translated(key):
            try:
                return self._read_range(place, key, offset=offset, size_bytes=size_bytes)
            except ClientError as exc:
                if status(exc) != 416:
                    raise
            # Offset beyond the end; or a server that wants the end of the range inside as well.
            rest_bytes = self._head_blocking(key, version).size_bytes - offset
            if rest_bytes <= 0:
                return b""
            return self._read_range(place, key, offset=offset, size_bytes=min(size_bytes, rest_bytes))

    def _read_range(self, place: dict[str, str], key: ObjectKey, *, offset: int, size_bytes: int) -> bytes:
        wanted = f"bytes={offset}-{offset + size_bytes - 1}"
        answer = self._bucket.client().get_object(**place, Range=wanted)
        self._bucket.learn(answer)
        with contextlib.closing(answer["Body"]):
            # The header decides, not the status: `rclone serve s3` sends a range with status 200.
            answered = answer.get("ContentRange")
            if answered is None and answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
                whole = self._line.read(body_of(answer), limit_bytes=OBJECT_SIZE_MAX, is_range=True)
                return whole[offset : offset + size_bytes]
            if not str(answered).startswith(f"bytes {offset}-"):
                raise StoreUnavailable(f"Store {self.name} answered with another range of {key}.")
            return self._line.read(body_of(answer), limit_bytes=size_bytes, is_range=True)[:size_bytes]

    def _head_blocking(self, key: ObjectKey, version: ObjectVersion | None = None) -> ObjectInfo:
        with self._bucket.translated(key):
            answer = self._bucket.client().head_object(**self._bucket.place(key, version))
            self._bucket.learn(answer)
        if "ContentLength" not in answer:
            raise StoreUnavailable(f"Store {self.name} does not tell the size of {key}.")
        if size_is_whole(answer):
            return ObjectInfo(key, int(answer["ContentLength"]))
        for info in list_page(self._bucket, key, ""):
            if info.key == key and not info.is_hidden:
                return info
        raise ObjectNotFound(f"Store {self.name} holds no object {key}.")

    # --- writing ---------------------------------------------------------------------------------

    def _put_over_blocking(self, key: ObjectKey, data: bytes) -> bool:
        if not self._bucket.keeps_versions():
            return False
        self._line.pace_small(len(data))
        with self._bucket.translated(key, writes=True):
            self._bucket.write(key, data, **lock_fields(self._bucket, key))
        return True

    def _put_blocking(self, key: ObjectKey, data: bytes) -> None:
        if self._conditional is not True and self._holds(key, data):
            return
        condition = {} if self._conditional is False else {"IfNoneMatch": "*"}
        self._line.pace_small(len(data))
        with self._bucket.translated(key, writes=True):
            try:
                self._bucket.write(key, data, **condition, **lock_fields(self._bucket, key))
            except ClientError as exc:
                if self.lock is not None and status(exc) == 403:
                    raise may_not_lock(self.name, key) from exc
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
        if self._bucket.keeps_versions():
            delete_versions(self._bucket, key)
            return
        with contextlib.suppress(ObjectNotFound), self._bucket.translated(key, writes=True):
            self._bucket.client().delete_object(**self._bucket.place(key))

    def _read_mutable_blocking(self, key: ObjectKey) -> tuple[bytes, Version]:
        data, tag = self._get_blocking(key, MUTABLE_SIZE_MAX)
        return data, _version(data, tag)

    def _swap_blocking(self, key: ObjectKey, data: bytes, expected: Version | None) -> Version:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": _tag(expected)}
        if self._conditional is not True:
            self._check_version(key, expected)
            if self._conditional is False:
                condition = {}
        with self._bucket.translated(key, writes=True):
            try:
                tag = self._bucket.write(key, data, **condition)[0]
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


def _version(data: bytes, tag: str) -> Version:
    """A version that serves both ways of swapping: by the server's tag, and by looking at the bytes."""
    return Version(f"{hashlib.sha256(data).hexdigest()}:{tag}")


def _digest(version: Version) -> str:
    return version.partition(":")[0]


def _tag(version: Version) -> str:
    return version.partition(":")[2]
