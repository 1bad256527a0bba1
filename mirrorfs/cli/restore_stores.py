"""The stores that `restore` was given by URL: looking at them, and finding out that they are of one volume.

Nothing is known here but what was typed: no configuration, no pin. What a store says of itself is
authenticated only once its header was unlocked; until then it is used to tell people what they named.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli.headers import store_headers
from mirrorfs.cli.restore_report import say
from mirrorfs.cli.stores import bare_store, directory_of, first_good, instance_documents, open_store
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.object_keys import is_key
from mirrorfs.engine.heads import FoundHead, newest_head
from mirrorfs.engine.retry import RetryingStore
from mirrorfs.errors import (
    DamagedError,
    LimitError,
    ObjectNotFound,
    StoreError,
    StoreMismatch,
    StoreTooNew,
    StoreUnavailable,
    UnknownOutcome,
    UsageError,
)
from mirrorfs.format.header import parse_header, verify_header

LOOK_DEADLINE_S: Final = 30.0
"""How long a store may take to show what it is, retries included."""
STORES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class NamedStore:
    """A store as it was typed, and as it is called in messages."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class StoreFound:
    """What one store showed of itself; nothing of it is authenticated."""

    store: NamedStore
    headers: tuple[bytes, ...]
    """Newest generation first."""
    instances: tuple[bytes, ...]
    """What it shows as its instance document, and the versions beneath that."""


@dataclass(frozen=True, slots=True)
class StoresFound:
    """The stores that answered, and the sentences of those that did not."""

    found: tuple[StoreFound, ...]
    unreachable: tuple[str, ...]


def name_stores(urls: Sequence[str], *, destination: str | None = None) -> list[NamedStore]:
    """Check the URLs, and name each store by its place.

    Raises: UsageError: malformed, none, too many, one twice, or DEST lies in one of them.
    """
    if not urls:
        raise UsageError("Say where to restore from: --store file:///PATH or --store s3://BUCKET/PREFIX.")
    if len(urls) > STORES_MAX:
        raise UsageError(f"A volume has at most {STORES_MAX} stores; name fewer.")
    stores: list[NamedStore] = []
    for number, url in enumerate(urls, start=1):
        # Checked under a number first: a URL that is refused may hold credentials, and is not repeated.
        bare_store(str(number), url)
        place = directory_of(url)
        name = str(place) if place is not None else url.partition("?")[0].rstrip("/")
        if any(known.url == url or known.name == name for known in stores):
            raise UsageError(f"Store {name} is given twice; name each store once.")
        if place is not None and destination is not None:
            _check_outside(destination, place)
        stores.append(NamedStore(name, url))
    return stores


def _check_outside(destination: str, place: Path) -> None:
    if Path(destination).resolve().is_relative_to(place.resolve()):
        raise UsageError("DEST lies in a store; choose a directory outside of it.")


@asynccontextmanager
async def opened(stores: Sequence[NamedStore]) -> AsyncIterator[list[RetryingStore]]:
    """The stores themselves, closed in the end."""
    made = [open_store(store.name, store.url) for store in stores]
    try:
        yield made
    finally:
        with trio.move_on_after(2.0, shield=True):
            for store in made:
                await store.aclose()


async def find_stores(stores: Sequence[NamedStore]) -> StoresFound:
    """Look at all stores at once.

    Raises: StoreUnavailable: none answers. StoreMismatch: one holds no volume, or not all hold the same.
        StoreTooNew. StoreDenied.
    """
    looks: list[StoreFound | StoreError | None] = [None] * len(stores)

    async def look(at: int, store: RetryingStore) -> None:
        try:
            with trio.move_on_after(LOOK_DEADLINE_S) as scope:
                looks[at] = await _look(stores[at], store)
            if scope.cancelled_caught:
                looks[at] = StoreUnavailable(
                    f"Store {store.name} does not answer: check the network or its disk."
                )
        except StoreError as exc:
            looks[at] = exc

    async with opened(stores) as made, trio.open_nursery() as nursery:
        for at, store in enumerate(made):
            nursery.start_soon(look, at, store)
    for one in looks:
        if isinstance(one, StoreError) and not isinstance(one, StoreUnavailable | UnknownOutcome):
            raise one
    found = tuple(one for one in looks if isinstance(one, StoreFound))
    failed = [one for one in looks if isinstance(one, StoreError)]
    if not found:
        raise failed[0]
    _check_one_volume(found)
    return StoresFound(found, tuple(str(one) for one in failed))


async def _look(named: NamedStore, store: RetryingStore) -> StoreFound:
    try:
        instances = tuple(await instance_documents(store))
    except (ObjectNotFound, LimitError):
        instances = ()
    headers = await store_headers(store)
    if headers or instances:
        return StoreFound(named, tuple(headers), instances)
    if any(is_key(info.key) for info in await store.list("")):
        raise StoreMismatch(
            f"Store {named.name} holds other things, but no header of a MirrorFS volume: check its URL."
        )
    raise StoreMismatch(f"Store {named.name} is empty: check its URL, and that its disk is mounted.")


def _check_one_volume(found: Sequence[StoreFound]) -> None:
    volumes = {one.store.name: parse_header(one.headers[0]).volume for one in found if one.headers}
    if not volumes:
        raise StoreMismatch("The volume's header is in none of these stores; name its other store as well.")
    if len(set(volumes.values())) > 1:
        first, second = list(volumes)[:2]
        other = next((name for name in volumes if volumes[name] != volumes[first]), second)
        raise StoreMismatch(
            f"Stores {first} and {other} hold different volumes; name only stores of one volume."
        )


async def newest_published(found: Sequence[StoreFound], unlocked: Unlocked) -> FoundHead | None:
    """The newest head of all these stores; those whose heads cannot be read are named and passed over."""
    heads: list[FoundHead] = []
    async with opened([one.store for one in found]) as stores:
        for store in stores:
            try:
                head = await newest_head(
                    store, keys=unlocked.keys, public_key=unlocked.header.public_keys.writer
                )
            except (StoreError, DamagedError) as exc:
                say(f"The heads of store {store.name} cannot be read: {exc}")
                continue
            if head is not None:
                heads.append(head)
    return max(heads, key=lambda one: (one.head.epoch, one.head.counter), default=None)


def check_members(found: Sequence[StoreFound], unlocked: Unlocked) -> list[str]:
    """Check, with the keys, that each store is one of the volume that was unlocked.

    A store that lost its instance document but has the volume's header is used all the same: this is the
    moment at which things are broken. Returns sentences about such stores.
    Raises: StoreMismatch.
    """
    notes = []
    for one in found:
        name = one.store.name
        try:
            if not one.instances:
                raise DamagedError("it has no instance document.")
            instance = first_good(one.instances, unlocked.keys, unlocked.header.public_keys.writer)
            known = {entry.instance for entry in unlocked.header.stores}
            if instance.instance not in known:
                notes.append(f"Store {name} is not on the volume's list of stores; it was replaced.")
        except (DamagedError, LimitError) as exc:
            if not any(_opens(data, unlocked) for data in one.headers):
                raise StoreMismatch(f"Store {name} does not belong to this volume: check its URL.") from exc
            notes.append(
                f"Store {name} cannot prove which store it is; what it holds is checked piece by piece."
            )
    return notes


def _opens(data: bytes, unlocked: Unlocked) -> bool:
    if data == unlocked.data:
        return True
    try:
        verify_header(data, unlocked.key_set)
    except (DamagedError, LimitError, StoreTooNew):
        return False
    return True
