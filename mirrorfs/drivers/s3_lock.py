"""Object Lock: what keeps the objects of a bucket from being removed, whoever asks for it.

Retention goes with each PUT of an immutable object. A default of the bucket is refused: it would lock every
renewal of a lease. A lock is on a version, so what is put on top, or a delete marker, takes nothing away.
Requests that lock need Content-MD5 or a checksum: PUTs carry the former, and boto3 adds the latter to the
others by itself, as these require one ("when_required").

All of it runs in worker threads.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from mirrorfs.drivers.s3_bucket import S3Bucket
from mirrorfs.drivers.s3_errors import FOREIGN_ERRORS, error_code, status, translate
from mirrorfs.drivers.s3_listing import FoundVersion, every_version, versions_of
from mirrorfs.errors import ObjectLocked, ObjectNotFound, StoreDenied, UsageError
from mirrorfs.ports import ObjectKey

LOCKED_VERSIONS_MAX: Final = 4
"""So many versions of one object are locked, where there are several of its size."""


def lock_fields(bucket: S3Bucket, key: ObjectKey) -> dict[str, Any]:
    """What a PUT carries for the object to be locked from now on; nothing in a store without locks."""
    if bucket.lock is None:
        return {}
    now_ns = int(datetime.now(UTC).timestamp() * 1e9)
    return {
        "ObjectLockMode": bucket.lock.mode.upper(),
        "ObjectLockRetainUntilDate": _date(bucket.lock.until_ns(key, now_ns=now_ns)),
    }


def lock_until(bucket: S3Bucket, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
    """See Store.lock_until."""
    if bucket.lock is None:
        raise StoreDenied(f"Store {bucket.store} is set up without locks: add lock= to its URL.")
    fitting = [
        found
        for found in versions_of(bucket, key)
        if found.size_bytes is not None and size_bytes in (None, found.size_bytes)
    ]
    if not fitting:
        raise ObjectNotFound(f"Store {bucket.store} holds no object {key} to be locked.")
    for found in fitting[:LOCKED_VERSIONS_MAX]:
        _lock_version(bucket, bucket.lock.mode.upper(), key, found, _date(until_ns))


def _lock_version(bucket: S3Bucket, mode: str, key: ObjectKey, found: FoundVersion, until: datetime) -> None:
    place = bucket.place(key, found.version)
    with bucket.translated(key, writes=True):
        try:
            bucket.client().put_object_retention(**place, Retention={"Mode": mode, "RetainUntilDate": until})
        except ClientError as exc:
            if status(exc) != 403:
                raise
            # To shorten a lock is refused as well: then there is nothing to be done.
            if _is_locked(bucket, place, until):
                return
            raise may_not_lock(bucket.store, key) from exc


def delete_versions(bucket: S3Bucket, key: ObjectKey) -> None:
    """Remove an object for good, with its delete markers in the end: of a locked one these stay, too.

    Raises: ObjectLocked: a version of it is. StoreError.
    """
    for found in sorted(every_version(bucket, key), key=lambda one: one.size_bytes is None):
        place = bucket.place(key, found.version)
        with contextlib.suppress(ObjectNotFound), bucket.translated(key, writes=True):
            try:
                bucket.client().delete_object(**place)
            except ClientError as exc:
                if status(exc) == 403 and _is_locked(bucket, place, datetime.now(UTC)):
                    raise ObjectLocked(f"Object {key} of store {bucket.store} is still locked.") from exc
                raise


def may_not_lock(store: str, key: ObjectKey) -> StoreDenied:
    """The error for credentials that are refused what locks an object."""
    return StoreDenied(
        f"Store {store} does not let these credentials write and lock object {key}: allow them"
        " s3:PutObject and s3:PutObjectRetention."
    )


def _is_locked(bucket: S3Bucket, place: dict[str, str], until: datetime) -> bool:
    try:
        answer = bucket.client().head_object(**place)
    except ClientError:
        return False
    # Shown to credentials with s3:GetObjectRetention.
    found = answer.get("ObjectLockRetainUntilDate")
    return isinstance(found, datetime) and found >= until


def check_bucket_lock(bucket: S3Bucket) -> None:
    """Refuse a bucket that cannot lock as the store's URL wants it, or that locks by itself.

    Raises: UsageError. StoreError: it cannot be told.
    """
    try:
        answer = bucket.client().get_object_lock_configuration(Bucket=bucket.name)
    except ClientError as exc:
        if bucket.lock is None:
            return  # a server without locks may say anything
        if status(exc) == 403:
            raise StoreDenied(
                f"Store {bucket.store} does not say whether its bucket locks objects: allow these credentials"
                " s3:GetBucketObjectLockConfiguration."
            ) from exc
        if status(exc) == 404 and error_code(exc) != "NoSuchBucket":
            raise _without_lock(bucket) from exc
        raise translate(exc, store=bucket.store, subject="bucket", writes=False) from exc
    except FOREIGN_ERRORS as exc:
        raise translate(exc, store=bucket.store, subject="bucket", writes=False) from exc
    found = answer.get("ObjectLockConfiguration", {})
    if "DefaultRetention" in found.get("Rule", {}):
        raise UsageError(
            f"The bucket of store {bucket.store} locks all objects by default, leases too: remove its default"
            " retention, and add lock= and lock_days= to the URL instead."
        )
    if bucket.lock is not None and found.get("ObjectLockEnabled") != "Enabled":
        raise _without_lock(bucket)


def _without_lock(bucket: S3Bucket) -> UsageError:
    return UsageError(
        f"The bucket of store {bucket.store} cannot lock objects: make one with Object Lock, or leave out"
        " lock= in the URL."
    )


def _date(at_ns: int) -> datetime:
    # Whole seconds, upwards: some servers cut the rest off.
    return datetime.fromtimestamp(-(-at_ns // 10**9), UTC)
