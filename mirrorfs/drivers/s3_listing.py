"""Listings of a bucket: what is there, and in one that keeps versions what was deleted or put over.

A bucket with versions is listed with all of them, because what was deleted would not show otherwise. That is
one request for 1000 versions, where it is one for 1000 objects else; the versions of what is written once are
as many as the objects. Of an object with very many the rest is passed over, once one was seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mirrorfs.drivers.object_keys import is_key
from mirrorfs.drivers.s3_bucket import S3Bucket
from mirrorfs.errors import StoreDenied, StoreUnavailable
from mirrorfs.ports import LIST_PAGE_MAX, ObjectInfo, ObjectKey, ObjectVersion

LIST_REQUESTS_MAX: Final = 1000
"""Answers without one key of ours that a listing goes through for one page; also those about one object."""
OLDEST_MAX: Final = 12
NEWEST_MAX: Final = 4
"""So many versions of an object are told: the first, and the last but the newest of all."""


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version of an object, or a delete marker."""

    key: str
    """With the store's prefix."""
    version: ObjectVersion
    size_bytes: int | None
    """None: a delete marker."""
    is_latest: bool
    written_ns: int = 0
    """When it was put there, by the server's clock; 0: that is not told."""


def list_page(bucket: S3Bucket, prefix: str, start_after: str) -> Sequence[ObjectInfo]:
    """See Store.list."""
    if bucket.keeps_versions():
        try:
            return _with_hidden(bucket, prefix, start_after)
        except StoreDenied:
            # Credentials without ListBucketVersions see what there is to see.
            pass
    return _visible(bucket, prefix, start_after)


def _visible(bucket: S3Bucket, prefix: str, start_after: str) -> Sequence[ObjectInfo]:
    request: dict[str, object] = {
        "Bucket": bucket.name,
        "Prefix": bucket.base + prefix,
        "MaxKeys": LIST_PAGE_MAX,
    }
    if start_after:
        request["StartAfter"] = bucket.base + start_after
    for _ in range(LIST_REQUESTS_MAX):
        with bucket.translated(None):
            answer = bucket.client().list_objects_v2(**request)
        _check_listing(bucket, answer)
        page = _page(bucket, answer.get("Contents", []), prefix=prefix, start_after=start_after)
        token = answer.get("NextContinuationToken")
        if page or not answer.get("IsTruncated") or not token:
            return page
        # Nothing but foreign names, or StartAfter is ignored: an empty page would mean the end.
        request["ContinuationToken"] = token
    raise _too_many(bucket)


def _check_listing(bucket: S3Bucket, answer: Mapping[str, Any]) -> None:
    if "IsTruncated" not in answer:
        raise StoreUnavailable(f"Store {bucket.store} answered with something that is no listing.")


def _too_many(bucket: S3Bucket) -> StoreUnavailable:
    return StoreUnavailable(f"Store {bucket.store} holds too many foreign objects under its prefix.")


def _page(
    bucket: S3Bucket, contents: Sequence[Mapping[str, Any]], *, prefix: str, start_after: str
) -> Sequence[ObjectInfo]:
    page: list[ObjectInfo] = []
    for entry in contents:
        full = str(entry.get("Key", ""))
        if key := _own_key(bucket, full, prefix=prefix, start_after=start_after):
            _check_order(bucket, page, key)
            page.append(ObjectInfo(key, int(entry.get("Size", 0)), written_ns=_written_ns(entry)))
    return page[:LIST_PAGE_MAX]


def _own_key(bucket: S3Bucket, full: str, *, prefix: str, start_after: str) -> ObjectKey | None:
    key = full.removeprefix(bucket.base)
    if full.startswith(bucket.base + prefix) and is_key(key) and key > start_after:
        return ObjectKey(key)
    return None


def _check_order(bucket: S3Bucket, page: Sequence[ObjectInfo], key: str) -> None:
    if page and key <= page[-1].key:
        raise StoreUnavailable(f"Store {bucket.store} does not list in key order.")


# --- versions ------------------------------------------------------------------------------------


def _with_hidden(bucket: S3Bucket, prefix: str, start_after: str) -> Sequence[ObjectInfo]:
    """A page of all objects that have a version."""
    page: list[ObjectInfo] = []
    hidden: set[str] = set()
    marker = bucket.base + start_after if start_after else None
    for found in _all_versions(bucket, bucket.base + prefix, after=marker, skip_seen=True):
        key = _own_key(bucket, found.key, prefix=prefix, start_after=start_after)
        if key is None or (page and page[-1].key == key):
            continue
        if found.size_bytes is None:
            if found.is_latest:
                hidden.add(key)
            continue
        _check_order(bucket, page, key)
        page.append(ObjectInfo(key, found.size_bytes, key in hidden, found.written_ns))
        if len(page) == LIST_PAGE_MAX:
            break
    return page


def versions_of(bucket: S3Bucket, key: ObjectKey) -> Sequence[FoundVersion]:
    """The versions of one object: the newest first, then the others in the order of Store.versions.

    The newest may be hidden, or a delete marker. None at all where the bucket keeps none. Raises: StoreError.
    """
    if not bucket.keeps_versions():
        return []
    latest: list[FoundVersion] = []
    newest: list[FoundVersion] = []
    oldest: deque[FoundVersion] = deque(maxlen=OLDEST_MAX)
    try:
        for found in every_version(bucket, key):
            if found.is_latest:
                latest.append(found)
            elif found.size_bytes is None:
                continue
            elif len(newest) < NEWEST_MAX:
                newest.append(found)
            else:
                oldest.append(found)
    except StoreDenied:
        # Credentials without ListBucketVersions have only what there is to see.
        return []
    return [*latest, *reversed(oldest), *reversed(newest)]


def every_version(bucket: S3Bucket, key: ObjectKey) -> Iterator[FoundVersion]:
    """All versions and delete markers of one object, however many. Raises: StoreError."""
    full = bucket.base + key
    for found in _all_versions(bucket, full, after=None, skip_seen=False):
        if found.key != full:
            return
        yield found


def _all_versions(
    bucket: S3Bucket, prefix: str, *, after: str | None, skip_seen: bool
) -> Iterator[FoundVersion]:
    """Versions and delete markers in the order of their keys, of each key the newest first.

    Args:
        after: the key behind which to begin.
        skip_seen: leave out what is behind a version of one key that fills the rest of an answer.
    """
    request: dict[str, object] = {"Bucket": bucket.name, "Prefix": prefix, "MaxKeys": LIST_PAGE_MAX}
    if after is not None:
        request["KeyMarker"] = after
    for _ in range(LIST_REQUESTS_MAX):
        with bucket.translated(None):
            answer = bucket.client().list_object_versions(**request)
        _check_listing(bucket, answer)
        found = _merged(answer)
        yield from found
        key, version = answer.get("NextKeyMarker"), answer.get("NextVersionIdMarker")
        if not answer.get("IsTruncated") or not key:
            return
        request["KeyMarker"] = key
        request.pop("VersionIdMarker", None)
        if version and not (
            skip_seen and any(one.key == key and one.size_bytes is not None for one in found)
        ):
            request["VersionIdMarker"] = version
    raise _too_many(bucket)


def _merged(answer: Mapping[str, Any]) -> list[FoundVersion]:
    """The versions and the delete markers of an answer, which come apart, in key order.

    Of one key they are in the order of the server, the newest first; only markers that are the newest
    count for anything, so that others may come behind the versions.
    """
    entries = [_found(entry, int(entry.get("Size", 0))) for entry in answer.get("Versions", [])]
    entries += [_found(entry, None) for entry in answer.get("DeleteMarkers", [])]
    return sorted(entries, key=lambda one: (one.key, not one.is_latest))


def _found(entry: Mapping[str, Any], size_bytes: int | None) -> FoundVersion:
    return FoundVersion(
        str(entry.get("Key", "")),
        ObjectVersion(str(entry.get("VersionId", ""))),
        size_bytes,
        bool(entry.get("IsLatest")),
        _written_ns(entry),
    )


def _written_ns(entry: Mapping[str, Any]) -> int:
    at = entry.get("LastModified")
    return int(at.timestamp()) * 10**9 if isinstance(at, datetime) else 0
