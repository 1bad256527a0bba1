"""What a bucket does with conditional writes, and what its credentials may: tried on a scratch object.

It is never locked. Where the credentials may not delete, it stays: a rule of the bucket can expire it.
All of it runs in worker threads.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence

from botocore.exceptions import ClientError

from mirrorfs.drivers.object_keys import SCRATCH_PREFIX
from mirrorfs.drivers.s3_bucket import S3Bucket
from mirrorfs.drivers.s3_errors import condition_failed, condition_unsupported
from mirrorfs.errors import ObjectNotFound, StoreDenied
from mirrorfs.ports import ObjectKey, ObjectVersion, StoreTraits


def probe(bucket: S3Bucket) -> StoreTraits:
    """See Store.probe."""
    key = ObjectKey(SCRATCH_PREFIX + secrets.token_hex(16))
    scratch = _Scratch(bucket, key)
    with bucket.translated(key, writes=True):
        try:
            tag = scratch.write(b"probe")
            refused = scratch.refuses(IfNoneMatch="*") and scratch.refuses(IfMatch=f'"{"0" * 32}"')
            conditional = refused and not scratch.refuses(IfMatch=tag)
        finally:
            can_delete = scratch.remove()
        return StoreTraits(conditional, can_delete)


class _Scratch:
    def __init__(self, bucket: S3Bucket, key: ObjectKey) -> None:
        self._bucket = bucket
        self._key = key
        self._versions: list[ObjectVersion] = []

    def write(self, data: bytes, **condition: str) -> str:
        tag, version = self._bucket.write(self._key, data, **condition)
        if version is not None:
            self._versions.append(version)
        return tag

    def refuses(self, **condition: str) -> bool:
        try:
            self.write(b"conditional", **condition)
        except ClientError as exc:
            if condition_failed(exc):
                return True
            if not condition_unsupported(exc):
                raise
        return False

    def remove(self) -> bool:
        """Returns whether these credentials may remove it for good."""
        every: Sequence[ObjectVersion | None] = self._versions or [None]
        try:
            for version in every:
                self._delete(version)
        except StoreDenied:
            if self._versions:
                with contextlib.suppress(StoreDenied):
                    self._delete(None)  # so that it does not show, at least
            return False
        return True

    def _delete(self, version: ObjectVersion | None) -> None:
        with contextlib.suppress(ObjectNotFound), self._bucket.translated(self._key, writes=True):
            self._bucket.client().delete_object(**self._bucket.place(self._key, version))
