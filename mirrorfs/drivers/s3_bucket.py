"""One bucket as the parts of an S3 store see it: its client, its errors, and whether it keeps versions.

Whether a bucket keeps versions is told by its answers: those about an object that is there name a version if,
and only if, it does. So it costs no request and no permission, except for a listing before any such answer.

All of it runs in worker threads.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from mirrorfs.drivers.s3_client import S3Target, make_client, whole_tag
from mirrorfs.drivers.s3_errors import FOREIGN_ERRORS, bucket_missing, error_code, status, translate
from mirrorfs.drivers.s3_line import S3Line
from mirrorfs.format.control import INSTANCE_KEY
from mirrorfs.format.object_lock import ObjectLock
from mirrorfs.ports import ObjectKey, ObjectVersion

_DELETE_MARKER = "x-amz-delete-marker"


class S3Bucket:
    """Where the objects of one store lie."""

    def __init__(
        self, store: str, *, bucket: str, prefix: str, target: S3Target, line: S3Line, lock: ObjectLock | None
    ) -> None:
        self.store = store
        self.name = bucket
        self.base = f"{prefix}/" if prefix else ""
        self.line = line
        self.lock = lock
        self.target = target
        self._client_lock = threading.Lock()
        self._made_client: Any = None
        self._keeps_versions: bool | None = True if lock is not None else None

    def client(self) -> Any:
        """boto3's client, made at the first call. Raises: as make_client."""
        with self._client_lock:
            if self._made_client is None:
                self._made_client = make_client(
                    self.target, store=self.store, connections_max=self.line.connections_max
                )
                self.line.shape(self._made_client)
            return self._made_client

    def close(self) -> None:
        """Let go of the client, if there is one."""
        with self._client_lock:
            client, self._made_client = self._made_client, None
        if client is not None:
            client.close()

    def place(self, key: ObjectKey, version: ObjectVersion | None = None) -> dict[str, str]:
        """The arguments that name an object, or a version of it."""
        place = {"Bucket": self.name, "Key": self.base + key}
        return place if version is None else place | {"VersionId": version}

    def write(self, key: ObjectKey, data: bytes, **fields: Any) -> tuple[str, ObjectVersion | None]:
        """PUT. Returns (entity tag, version if the bucket keeps them). Raises foreign errors."""
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        answer = self.client().put_object(
            **self.place(key), Body=data, ContentMD5=base64.b64encode(digest).decode(), **fields
        )
        self.learn(answer)
        return whole_tag(answer), answer.get("VersionId")

    @contextlib.contextmanager
    def translated(self, key: ObjectKey | None, *, writes: bool = False) -> Iterator[None]:
        """Turn what boto3 raises in the body into a StoreError."""
        subject = "listing" if key is None else f"object {key}"
        try:
            yield
        except FOREIGN_ERRORS as exc:
            if isinstance(exc, ClientError) and status(exc) == 404 and error_code(exc) != "NoSuchKey":
                # The answer to a HEAD does not say whether the bucket is there.
                self._check_there()
            raise translate(exc, store=self.store, subject=subject, writes=writes) from exc

    def _check_there(self) -> None:
        """Raises StoreUnavailable: the bucket does not exist. Silent where the look is not allowed."""
        try:
            self.client().head_bucket(Bucket=self.name)
        except ClientError as exc:
            if status(exc) == 404:
                raise bucket_missing(self.store) from exc
        except FOREIGN_ERRORS as exc:
            raise translate(exc, store=self.store, subject="bucket", writes=False) from exc

    # --- versions --------------------------------------------------------------------------------

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Take from an answer about an object that is there whether the bucket keeps versions."""
        if self.lock is None:
            self._keeps_versions = "VersionId" in answer

    def keeps_versions(self) -> bool:
        """Whether the bucket keeps versions. Raises: StoreError: it cannot be asked."""
        if self._keeps_versions is not None:
            return self._keeps_versions
        key = ObjectKey(INSTANCE_KEY)
        try:
            self.learn(self.client().head_object(**self.place(key)))
        except FOREIGN_ERRORS as exc:
            if not isinstance(exc, ClientError) or status(exc) >= 500:
                raise translate(exc, store=self.store, subject=f"object {key}", writes=False) from exc
            # No answer about an object that is there: only a deleted one tells, and this may still change.
            fields: Mapping[str, str] = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            if _DELETE_MARKER not in fields:
                return False
            self._keeps_versions = True
        return bool(self._keeps_versions)
