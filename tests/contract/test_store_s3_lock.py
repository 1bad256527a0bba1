"""Object Lock on a bucket that keeps versions: what PUTs carry, what is found beneath, what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from mirrorfs.core.retention import Policy, PolicyState
from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.engine.store_deletion import StoreDeletion, StorePruneReport
from mirrorfs.errors import ObjectExists, ObjectLocked, ObjectNotFound, StoreDenied, UsageError
from mirrorfs.format.manifest import Listed
from mirrorfs.format.object_lock import DAY_NS, LONG_LIVED_DAYS, LockMode, ObjectLock
from mirrorfs.ports import LIST_PAGE_MAX, ObjectKey, Sealed
from tests.support.s3_policy import PolicyServer, policy_server
from tests.support.s3_servers import connect, create_bucket, environment
from tests.support.volumes import HEADER, KEY_SET, KEYS

KEY = ObjectKey("segments/1")
GOOD, GARBAGE = Sealed(b"good bytes"), b"garbage of another size"
LOCK = ObjectLock(LockMode.COMPLIANCE, 30)


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with policy_server() as running:
        with contextlib.closing(connect(running)) as client:
            client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        create_bucket(running, "plain")
        yield running


@dataclass(frozen=True, slots=True)
class Place:
    server: PolicyServer
    client: Any
    bucket: str
    prefix: str
    stores: list[S3Store]

    def open(self, lock: ObjectLock | None = LOCK) -> S3Store:
        target = S3Target(endpoint=self.server.endpoint)
        store = S3Store("a", bucket=self.bucket, prefix=self.prefix, target=target, lock=lock)
        self.stores.append(store)
        return store

    def of(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}"}

    def head(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.head_object(**self.of(key))
        return found


@pytest.fixture
async def place(server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    server.policy = None
    with contextlib.closing(connect(server)) as client:
        made = Place(server, client, "locked", f"p-{secrets.token_hex(4)}", [])
        yield made
        for store in made.stores:
            await store.aclose()


def days_left(found: dict[str, Any]) -> float:
    until: datetime = found["ObjectLockRetainUntilDate"]
    return (until - datetime.now(UTC)) / timedelta(days=1)


async def test_what_is_immutable_is_locked_and_nothing_else(place: Place) -> None:
    store = place.open()
    traits = await store.probe()
    assert traits.conditional_put and traits.can_delete
    await store.put(KEY, GOOD)
    await store.put(KEY, GOOD)
    await store.put(ObjectKey("header/1"), GOOD)
    version = await store.compare_and_swap(ObjectKey("lease"), GOOD, expected=None)
    await store.compare_and_swap(ObjectKey("lease"), Sealed(b"renewed"), expected=version)

    assert place.head(KEY)["ObjectLockMode"] == "COMPLIANCE"
    assert 29.9 < days_left(place.head(KEY)) < 30.1
    assert 29.9 < days_left(place.head("header/1")) - LONG_LIVED_DAYS < 30.1
    assert "ObjectLockMode" not in place.head("lease")
    listed = place.client.list_object_versions(Bucket="locked", Prefix=f"{place.prefix}/scratch")
    assert "Versions" not in listed and "DeleteMarkers" not in listed, "the probe left something"


async def test_without_a_lock_nothing_is_locked(place: Place) -> None:
    store = place.open(lock=None)
    await store.put(KEY, GOOD)
    assert "ObjectLockMode" not in place.head(KEY)
    with pytest.raises(StoreDenied, match="without locks"):
        await store.lock_until(KEY, until_ns=1, size_bytes=None)


@pytest.mark.parametrize("lock", [LOCK, None], ids=["locked", "versioned"])
async def test_what_was_deleted_or_put_over_is_found_beneath(place: Place, lock: ObjectLock | None) -> None:
    writer = place.open(lock)
    deleted = ObjectKey("segments/2")
    for key in (KEY, deleted):
        await writer.put(key, GOOD)
    place.client.put_object(**place.of(KEY), Body=GARBAGE)
    place.client.delete_object(**place.of(deleted))
    place.client.put_object(**place.of("instance"), Body=b"instance")

    # One that knows nothing of the bucket yet, as a restore.
    reader = place.open(lock=None)
    listed = {info.key: (info.size_bytes, info.is_hidden) for info in await reader.list("segments/")}
    assert listed == {KEY: (len(GARBAGE), False), deleted: (len(GOOD), True)}
    assert await reader.get(KEY) == GARBAGE
    with pytest.raises(ObjectNotFound):
        await reader.get(deleted)
    for key in (KEY, deleted):
        (version,) = await reader.versions(key)
        assert await reader.get(key, version=version) == GOOD
        assert await reader.get_range(key, offset=2, size_bytes=4, version=version) == GOOD[2:6]
    assert await reader.versions(ObjectKey("segments/3")) == []


async def test_a_deleted_instance_tells_of_versions(place: Place) -> None:
    writer = place.open()
    for key in (ObjectKey("instance"), KEY):
        await writer.put(key, GOOD)
        place.client.delete_object(**place.of(key))
    assert [info.key for info in await place.open(lock=None).list("")] == ["instance", KEY]


async def test_of_very_many_versions_the_first_is_told(place: Place) -> None:
    store = place.open()
    await store.put(KEY, GOOD)
    await store.put(ObjectKey("segments/2"), GOOD)
    for number in range(40):
        place.client.put_object(**place.of(KEY), Body=b"%d" % number)
    versions = await store.versions(KEY)
    assert len(versions) == 16
    assert await store.get(KEY, version=versions[0]) == GOOD
    assert [info.key for info in await store.list("segments/")] == [KEY, "segments/2"]


async def test_pages_of_a_listing_with_versions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # With small pages, so that they end within the versions of a key, and right behind a delete marker.
    monkeypatch.setattr("mirrorfs.drivers.s3_listing.LIST_PAGE_MAX", 3)
    store = place.open()
    keys = [ObjectKey(f"segments/{number}") for number in range(7)]
    for number, key in enumerate(keys):
        await store.put(key, GOOD)
        for _ in range(number):
            place.client.put_object(**place.of(key), Body=GARBAGE)
        for _ in range(number % 3):
            place.client.delete_object(**place.of(key))
    found: list[tuple[str, bool]] = []
    while page := await store.list("segments/", start_after=found[-1][0] if found else ""):
        found += [(info.key, info.is_hidden) for info in page]
    assert found == [(key, number % 3 > 0) for number, key in enumerate(keys)]
    assert [info.key for info in await store.list("segments/", start_after="segments/")] == keys[:3]
    assert LIST_PAGE_MAX > 3


async def test_a_good_copy_is_put_on_top(place: Place) -> None:
    store = place.open()
    await store.put(KEY, GOOD)
    place.client.put_object(**place.of(KEY), Body=GARBAGE)
    with pytest.raises(ObjectExists):
        await store.put(KEY, GOOD)
    assert await store.put_over(KEY, GOOD)
    assert await store.get(KEY) == GOOD
    assert days_left(place.head(KEY)) > 29.9
    place.client.delete_object(**place.of(KEY))
    await store.put(KEY, GOOD)
    assert await store.get(KEY) == GOOD


async def test_locks_are_extended_and_never_shortened(place: Place) -> None:
    store = place.open()
    await store.put(KEY, GOOD)
    first = place.head(KEY)["VersionId"]
    place.client.put_object(**place.of(KEY), Body=GARBAGE)
    now_ns = int(datetime.now(UTC).timestamp() * 1e9)
    for days in (60, 10):
        await store.lock_until(KEY, until_ns=now_ns + days * DAY_NS, size_bytes=len(GOOD))
        beneath = place.client.head_object(**place.of(KEY), VersionId=first)
        assert 59.9 < days_left(beneath) < 60.1
    assert "ObjectLockMode" not in place.head(KEY), "what somebody put over it is not locked for him"
    with pytest.raises(ObjectNotFound):
        await store.lock_until(KEY, until_ns=now_ns, size_bytes=1)


async def test_what_is_deleted_is_gone_but_for_what_is_locked(place: Place) -> None:
    for lock, key in ((None, "segments/1"), (LOCK, "segments/2")):
        store = place.open(lock)
        await store.put(ObjectKey(key), GOOD)
        for _ in range(2):
            place.client.put_object(**place.of(key), Body=GARBAGE)
            place.client.delete_object(**place.of(key))
    locked = place.open()
    await locked.delete(KEY)
    await locked.delete(KEY)
    assert "Versions" not in place.client.list_object_versions(**listing(place, KEY))
    assert "DeleteMarkers" not in place.client.list_object_versions(**listing(place, KEY))
    kept = ObjectKey("segments/2")
    with pytest.raises(ObjectLocked):
        await locked.delete(kept)
    (version,) = await locked.versions(kept)
    assert await locked.get(kept, version=version) == GOOD


async def test_the_dates_of_a_listing_are_the_servers(place: Place) -> None:
    begun_ns = int(datetime.now(UTC).timestamp()) * 10**9
    await place.open().put(KEY, GOOD)
    (with_versions,) = await place.open().list("segments/")
    plain = Place(place.server, place.client, "plain", place.prefix, place.stores)
    await plain.open(lock=None).put(KEY, GOOD)
    (without,) = await plain.open(lock=None).list("segments/")
    ended_ns = int((datetime.now(UTC).timestamp() + 1) * 1e9)
    for bucket, info in (("locked", with_versions), ("plain", without)):
        modified: datetime = place.client.head_object(**{**place.of(KEY), "Bucket": bucket})["LastModified"]
        assert info.written_ns == int(modified.timestamp()) * 10**9
        assert begun_ns <= info.written_ns <= ended_ns


class AnythingGoes:
    """Judges every object to be of no use."""

    async def check(self, key: str) -> Listed:
        return Listed(key, len(GOOD), hashlib.sha256(GOOD).digest())


async def test_a_run_of_pruning_deletes_what_is_not_locked_and_the_rest_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:016x}-00000001-00112233445566ff" for number in range(3)]
    keys = [ObjectKey(f"segments/{name}") for name in names]
    await place.open(lock=None).put(keys[0], GOOD)
    await place.open().put(keys[1], GOOD)
    await place.open(lock=None).put(keys[2], GOOD)

    async def run(store: S3Store) -> StorePruneReport:
        report = StorePruneReport(PolicyState(Policy(1)), now_ns=1, position=1)
        check: Any = AnythingGoes()
        deletion = StoreDeletion(
            b"\x20" * 16, store, check, report, KEYS, public_key=HEADER.public_keys.pruner,
            seed=KEY_SET.pruner, base=1, dry_run=False,
        )  # fmt: skip
        await deletion.run(keys, (), lambda what, done, total: None)
        return report

    # The PC's credentials, which delete nothing, come to nothing.
    place.server.policy = {
        "Statement": [
            {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
            {"Effect": "Deny", "Action": "s3:Delete*", "Resource": "*"},
        ]
    }
    for name, value in environment(place.server.as_pc()).items():
        monkeypatch.setenv(name, value)
    denied = await run(place.open())
    assert (denied.denied, denied.deleted, denied.locked) == (["a"], {"a": 0}, {})

    for name, value in environment(place.server).items():
        monkeypatch.setenv(name, value)
    store = place.open()
    first = await run(store)
    assert (first.denied, first.deleted, first.locked) == ([], {"a": 2}, {"a": 1})
    assert first.finished == 2, "the manifest of the PC's run stands"
    assert [info.key for info in await store.list("segments/")] == [keys[1]]
    again = await run(store)
    assert (again.deleted, again.finished, again.locked) == ({"a": 0}, 0, {"a": 1})

    # Its time is over.
    (version,) = (
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets["locked"].keys.getlist(place.of(keys[1])["Key"])
    )
    version.lock_until = "2020-01-01T00:00:00Z"
    last = await run(store)
    assert (last.deleted, last.finished, last.locked) == ({"a": 1}, 1, {})
    assert await store.list("segments/") == []


def listing(place: Place, key: str) -> dict[str, str]:
    return {"Bucket": place.bucket, "Prefix": place.of(key)["Key"]}


async def test_credentials_that_may_not_lock_are_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.open().put(KEY, GOOD)
    place.server.policy = {
        "Statement": [
            {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
            {"Effect": "Deny", "Action": "s3:PutObjectRetention", "Resource": "*"},
        ]
    }
    for name, value in environment(place.server.as_pc()).items():
        monkeypatch.setenv(name, value)
    store = place.open()
    with pytest.raises(StoreDenied, match="s3:PutObjectRetention"):
        await store.lock_until(KEY, until_ns=4 * 10**18, size_bytes=None)
    with pytest.raises(StoreDenied, match="s3:PutObjectRetention"):
        await store.put(ObjectKey("segments/2"), GOOD)


async def test_credentials_that_may_not_delete_serve(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.server.policy = {
        "Statement": [
            {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
            {"Effect": "Deny", "Action": ["s3:Delete*", "s3:ListBucketVersions"], "Resource": "*"},
        ]
    }
    for name, value in environment(place.server.as_pc()).items():
        monkeypatch.setenv(name, value)
    store = place.open()
    traits = await store.probe()
    assert traits.conditional_put and not traits.can_delete
    await store.put(KEY, GOOD)
    # Without the right to see versions there is what shows.
    assert [info.key for info in await store.list("segments/")] == [KEY]
    assert await store.versions(KEY) == []
    with pytest.raises(StoreDenied):
        await store.delete(KEY)


async def test_a_bucket_is_checked_before_a_store_is_made_there(place: Place) -> None:
    await place.open().check_lock()
    await place.open(lock=None).check_lock()
    plain = Place(place.server, place.client, "plain", place.prefix, place.stores)
    await plain.open(lock=None).check_lock()
    with pytest.raises(UsageError, match="cannot lock"):
        await plain.open().check_lock()
    place.client.create_bucket(Bucket=place.prefix, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    place.client.put_object_lock_configuration(
        Bucket=place.prefix, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    default = Place(place.server, place.client, place.prefix, place.prefix, place.stores)
    for lock in (LOCK, None):
        with pytest.raises(UsageError, match="by default"):
            await default.open(lock).check_lock()
