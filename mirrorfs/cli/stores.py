"""The stores of a volume: making them from the configuration, and checking that they are the right ones.

A store is recognised by its `instance` document, written once at init. One that lacks it, or shows
another, is a replaced or foreign place: nothing is sent there and nothing is read from it.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import trio

from mirrorfs.cli.config import StoreConfig, VolumeConfig
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.s3_line import PARALLEL
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.drivers.store_url import parse_store_url
from mirrorfs.engine.limits import Limits, patient
from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.errors import (
    DamagedError,
    LimitError,
    MirrorfsError,
    ObjectNotFound,
    StoreError,
    StoreMismatch,
    StoreTooNew,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.format.control import INSTANCE_KEY, Instance, open_instance
from mirrorfs.format.document import (
    BODY_SIZE_MAX,
    DOCUMENT_SIZE_MAX,
    DocumentKind,
    parse_document_unauthenticated,
)
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import FORMAT_VERSION
from mirrorfs.ports import ObjectKey, Store, Throttle

if TYPE_CHECKING:
    from mirrorfs.drivers.store_s3 import S3Store

LOOK_DEADLINE_S: Final = 15.0
"""How long a command waits for a store that does not answer before it goes on without it."""
ONCE: Final = RetryPolicy(attempts_max=1)
"""For the engine, which repeats by itself, and for looks at which somebody waits."""

ROTTEN_BYTES_MAX: Final = 2
"""The ids of two volumes, 16 random bytes each, differ in more."""
_DOCUMENT_NAME: Final = b"MFSDOC"
_DOCUMENT_PREFIX: Final = struct.Struct("<6scxB3sI")


def system_random() -> Callable[[], float]:
    """Uniform numbers in [0, 1) from the system's generator, for back-off."""
    return secrets.SystemRandom().random


def open_store(
    name: str,
    url: str,
    *,
    policy: RetryPolicy | None = None,
    parallel: int = PARALLEL,
    throttle: Throttle | None = None,
) -> RetryingStore:
    """The store of a URL, with deadlines and, unless `policy` says otherwise, retries; touches nothing.

    Args: parallel, throttle: see parse_store_url.
    Raises: UsageError: the URL is malformed.
    """
    store = parse_store_url(name, url, parallel=parallel, throttle=throttle)
    return RetryingStore(store, random=system_random(), policy=policy)


def limits_of(config: VolumeConfig, *, is_shared: bool = False) -> Limits | None:
    """What all stores of a volume keep to, by its [limits]; None where no rate is limited.

    Args: is_shared: see Limits.
    """
    limits = config.limits
    if not limits.is_limited:
        return None
    return Limits(limits.timetable, SystemClock(), is_shared=is_shared)


def open_limited_store(
    store: StoreConfig, config: VolumeConfig, limits: Limits | None, *, policy: RetryPolicy
) -> RetryingStore:
    """A store that keeps to the [limits] of its volume, with deadlines that leave time for that.

    Args: limits: of `limits_of`, one for all stores.
    Raises: as of open_store.
    """
    parallel = config.limits.parallel
    # Twice, for a drill beside the mount has as many.
    transfers = 2 * 2 * parallel * len(config.stores)
    policy = patient(policy, config.limits.timetable, transfers=transfers)
    return open_store(store.name, store.url, policy=policy, parallel=parallel, throttle=limits)


def bare_store(name: str, url: str) -> DirectoryStore | S3Store:
    """The store of a URL itself, for `init`. Raises: UsageError."""
    return parse_store_url(name, url)


def directory_of(url: str) -> Path | None:
    """The directory of a file:// URL that `parse_store_url` accepts; None for other stores."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


# --- identity --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreLook:
    """What one look at a store gave: the bytes of its instance document, or why there is no answer."""

    store: StoreConfig
    instance: bytes | None
    unreachable: str | None
    """One sentence; None when the store answered."""
    earlier: tuple[bytes, ...] = ()
    """Versions beneath it, if any: what shows may have been put there by anybody."""
    is_missing: bool = False
    """It answered, and is not a store."""


async def look_at_stores(stores: Sequence[StoreConfig]) -> list[StoreLook]:
    """Fetch the instance document of every store, all at once.

    A store that cannot be reached is said to be so; it is not an error here. Nor is one that refuses while
    another one answers: nothing goes there (GuardedStore), and one bad store is to stop nobody.
    Raises: StoreMismatch: all stores are reachable, and none has such a document. StoreTooNew. StoreDenied:
        no store shows a document, and one refuses.
    """
    looks: dict[str, StoreLook] = {}
    errors: dict[str, StoreError] = {}

    async def look(config: StoreConfig) -> None:
        store = open_store(config.name, config.url, policy=ONCE)
        try:
            with trio.move_on_after(LOOK_DEADLINE_S) as scope:
                looks[config.name] = await _look(store, config)
            if scope.cancelled_caught:
                looks[config.name] = StoreLook(
                    config, None, f"Store {config.name} does not answer: check the network or its disk."
                )
        except StoreError as exc:
            errors[config.name] = exc
        finally:
            with trio.move_on_after(1.0, shield=True):
                await store.aclose()

    async with trio.open_nursery() as nursery:
        for config in stores:
            nursery.start_soon(look, config)
    answered = any(look.instance is not None for look in looks.values())
    for config in stores:
        error = errors.get(config.name)
        # Something else may be in the place of a rotating store meanwhile; the mount uses that no more.
        is_fatal = isinstance(error, StoreTooNew) and not config.rotating
        if error is not None and (is_fatal or not answered):
            raise error
        if error is not None:
            looks[config.name] = StoreLook(config, None, str(error))
    found = [looks[config.name] for config in stores]
    if all(look.is_missing for look in found):
        # One destroyed store must not stop a practice; that all are gone is a wrong configuration.
        raise StoreMismatch(found[0].unreachable)
    return found


async def _look(store: RetryingStore, config: StoreConfig) -> StoreLook:
    try:
        data, *earlier = await instance_documents(store)
    except ObjectNotFound:
        return StoreLook(
            config,
            None,
            f"Store {config.name} holds no MirrorFS volume: it is empty or another place than before;"
            " check its URL and that its disk is mounted. If only its file `instance` is gone, run"
            " `mirrorfs repair`; if all is gone for good, `mirrorfs store replace`.",
            is_missing=True,
        )
    except LimitError as exc:
        raise _foreign(config.name) from exc
    except (StoreUnavailable, UnknownOutcome) as exc:
        return StoreLook(config, None, str(exc))
    return StoreLook(config, data, None, earlier=tuple(earlier))


async def instance_documents(store: Store) -> list[bytes]:
    """What a store shows as its instance document, and the versions beneath it; nothing is authenticated.

    Raises: ObjectNotFound, LimitError: there is none at all. StoreTooNew: all are. StoreError.
    """
    found: list[bytes] = []
    failures: list[MirrorfsError] = []
    for version in (None, *await store.versions(ObjectKey(INSTANCE_KEY))):
        try:
            data = await store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX, version=version)
            check_version(data, store=store.name)
        except (ObjectNotFound, LimitError, StoreTooNew) as exc:
            failures.append(exc)
        else:
            found.append(data)
    if not found:
        raise failures[0]
    return found


def check_version(document: bytes, *, store: str) -> None:
    """Refuse a store that a newer program wrote, before its documents are taken for damaged ones.

    Nothing here is authenticated: a lie makes this store unusable, which it can be anyway.
    Raises: StoreTooNew.
    """
    if len(document) < _DOCUMENT_PREFIX.size or not document.startswith(_DOCUMENT_NAME):
        return
    _, envelope, _, _, body_size_bytes = _DOCUMENT_PREFIX.unpack_from(document)
    newer = envelope.isdigit() and envelope > b"1"
    if not newer and body_size_bytes <= BODY_SIZE_MAX:
        start = _DOCUMENT_PREFIX.size
        try:
            body = json.loads(document[start : start + body_size_bytes])
        except (ValueError, RecursionError):
            return
        version = body.get("format") if isinstance(body, dict) else None
        newer = isinstance(version, int) and version > FORMAT_VERSION
    if newer:
        raise StoreTooNew(f"Store {store} was written by a newer MirrorFS; use that version.")


def check_instances(looks: Sequence[StoreLook], *, keys: VolumeKeys, writer: bytes) -> list[str]:
    """Check that every store that answered is the one that the configuration means.

    Args:
        writer: the volume's public key for documents that a writer signs.
    Returns: sentences about stores whose document rotted: they get nothing (GuardedStore), and stop nobody
        while another store is the right one.
    Raises: StoreMismatch: of another volume, or another instance; or none of those that answered is good.
    """
    notes: list[str] = []
    good = 0
    for look in looks:
        # In the place of a rotating store there may be anything: GuardedStore looks each time.
        if look.instance is None or look.store.rotating:
            continue
        name = look.store.name
        try:
            found = first_good((look.instance, *look.earlier), keys, writer)
        except (DamagedError, LimitError) as exc:
            if _is_of_another(look.instance, keys.volume):
                raise StoreMismatch(
                    f"Store {name} does not belong to this volume: check its URL; nothing was written to it."
                ) from exc
            notes.append(str(_foreign(name)))
            continue
        if found.instance != look.store.instance or found.store != name:
            raise StoreMismatch(
                f"Store {name} is another store of this volume than the configuration says: check its URL."
            )
        good += 1
    if notes and not good:
        raise StoreMismatch(notes[0])
    return notes


def first_good(documents: Sequence[bytes], keys: VolumeKeys, writer: bytes) -> Instance:
    """The first instance document that verifies. If several do, they are the same: a store gets one.

    Raises: DamagedError, LimitError: what is wrong with the first, where none verifies.
    """
    for data in documents:
        with suppress(DamagedError, LimitError):
            return open_instance(data, keys=keys, public_key=writer)
    return open_instance(documents[0], keys=keys, public_key=writer)


def _is_of_another(document: bytes, volume: bytes) -> bool:
    """Whether a document that does not verify names another volume, not this one with some bits rotten."""
    try:
        named, _ = parse_document_unauthenticated(document, DocumentKind.INSTANCE)
    except (DamagedError, LimitError):
        return False
    return sum(a != b for a, b in zip(named, volume, strict=True)) > ROTTEN_BYTES_MAX


def _foreign(name: str) -> StoreMismatch:
    return StoreMismatch(
        f"Store {name} does not show that it belongs to this volume: nothing is written to it."
        " Check its URL; if that is right, run `mirrorfs repair`."
    )
