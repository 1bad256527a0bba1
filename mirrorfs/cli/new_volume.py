"""Making the first header of a volume, and writing it so that a failed init can be repeated.

Order of writing: the local header, the header on every store, the `instance` document on every store,
the configuration. A store without `instance` holds no volume; what a failed init wrote is removed again.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import trio

from mirrorfs.cli.config import StoreConfig, TokenConfig, VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.stores import bare_store
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.object_keys import SCRATCH_PREFIX
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.engine.own_writers import CREATED_PATH
from mirrorfs.errors import LimitError, ObjectNotFound, StoreError, UsageError
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import (
    INSTANCE_SIZE_BYTES,
    KeyGeneration,
    StoreEntry,
    VolumeHeader,
    header_key,
    seal_header,
)
from mirrorfs.format.ids import STREAM_PREFIX
from mirrorfs.format.kdf import ROOT_SIZE_BYTES, VolumeKeys
from mirrorfs.format.slot import KdfParameters, KeySet, Role
from mirrorfs.keys.slots import make_slot
from mirrorfs.keys.token import Enrolment
from mirrorfs.ports import ObjectInfo, ObjectKey, Sealed

if TYPE_CHECKING:
    from mirrorfs.drivers.store_s3 import S3Store

CLEAN_UP_DEADLINE_S = 30.0
FIRST_SLOT_NAME = "first"

AnyStore: TypeAlias = "DirectoryStore | S3Store"


@dataclass(frozen=True, slots=True)
class PlannedStore:
    """A store as the command line names it."""

    name: str
    url: str


@dataclass(frozen=True, slots=True, repr=False)
class NewVolume:
    """Everything that init writes."""

    config: VolumeConfig
    header: bytes
    instances: dict[str, bytes]
    """The sealed instance document of each store."""


def make_volume(
    volume: bytes,
    planned: Sequence[PlannedStore],
    *,
    token: TokenConfig,
    stretched: bytes,
    enrolment: Enrolment,
    kdf: KdfParameters,
) -> NewVolume:
    """Make keys, the first slot with all roles, and the documents.

    Args:
        volume: the new UUID, 16 bytes, for which the token was enrolled.
        stretched: of the password, with `kdf`.
    """
    entropy = secrets.token_bytes
    now_ns = time.time_ns()
    key_set = KeySet(root=entropy(ROOT_SIZE_BYTES), writer=entropy(32), pruner=entropy(32), drill=entropy(32))
    keys = VolumeKeys.derive(key_set.root, volume=volume, generation=1)
    slot = make_slot(
        key_set,
        volume=volume,
        key_generation=1,
        name=FIRST_SLOT_NAME,
        roles=tuple(Role),
        stretched=stretched,
        enrolment=enrolment,
        kdf=kdf,
        created_ns=now_ns,
        entropy=entropy,
    )
    stores = tuple(
        StoreConfig(name=plan.name, url=plan.url, instance=entropy(INSTANCE_SIZE_BYTES)) for plan in planned
    )
    header = VolumeHeader(
        volume=volume,
        generation=1,
        previous=b"",
        fingerprint=keys.fingerprint,
        created_ns=now_ns,
        key_generation=1,
        generations=(KeyGeneration(generation=1, from_sequence=0, wrapped=b""),),
        public_keys=key_set.public_keys(),
        stores=tuple(StoreEntry(name=store.name, instance=store.instance) for store in stores),
        pad_data=True,
        slots=(slot,),
    )
    instances = {
        store.name: seal_control(
            Instance(store=store.name, instance=store.instance), keys=keys, seed=key_set.writer
        )
        for store in stores
    }
    return NewVolume(
        config=VolumeConfig(volume=volume, fingerprint=keys.fingerprint, stores=stores, tokens=(token,)),
        header=seal_header(header, keys=keys, seed=key_set.writer),
        instances=instances,
    )


async def write_volume(paths: VolumePaths, new: NewVolume, *, create_stores: bool) -> None:
    """Write a new volume everywhere, or, on an error, leave nothing of it behind.

    Raises: UsageError: the local state came to be meanwhile. StoreError, DiskError, ConfigError.
    """
    key = ObjectKey(header_key(1, new.header))
    try:
        # Exclusive: of two that make one volume at a time, one stops here.
        paths.state.mkdir(mode=0o700)
    except FileExistsError as exc:
        raise UsageError(f"Another init of volume {paths.name} is under way; wait for it.") from exc
    done = False
    try:
        LocalDisk(paths.state).write_whole(f"objects/{key}", new.header)
        LocalDisk(paths.state).write_whole(CREATED_PATH, b"")
        async with _opened(new.config.stores) as stores:
            try:
                await _write_stores(stores, new, key, create=create_stores)
                write_config(paths, new.config)
                done = True
            finally:
                if not done:
                    await _clean_stores(stores, new, key)
    finally:
        if not done:
            shutil.rmtree(paths.state, ignore_errors=True)


@asynccontextmanager
async def _opened(configs: Sequence[StoreConfig]) -> AsyncIterator[list[AnyStore]]:
    stores = [bare_store(config.name, config.url) for config in configs]
    try:
        yield stores
    finally:
        with trio.move_on_after(CLEAN_UP_DEADLINE_S, shield=True):
            for store in stores:
                await store.aclose()


async def _write_stores(stores: Sequence[AnyStore], new: NewVolume, key: ObjectKey, *, create: bool) -> None:
    for store in stores:
        if isinstance(store, DirectoryStore) and create:
            await store.create_root()
        for residue in await store.list("header/"):
            # Of an init that was cut short: the checks saw that there is neither instance nor data.
            if not residue.is_hidden:
                await store.delete(residue.key)
        await store.put(key, Sealed(new.header))
    for store in stores:
        await store.put(ObjectKey(INSTANCE_KEY), Sealed(new.instances[store.name]))


def is_in_the_way(info: ObjectInfo) -> bool:
    """Whether an object of a place without an instance document forbids to make a store there.

    A header without data is what an init left that was cut short, and a scratch object what a probe left that
    may not delete. In a place that keeps versions the same is left beneath what shows; a log there was
    deleted, and can be restored.
    """
    if info.is_hidden:
        return info.key.startswith(("heads/", *STREAM_PREFIX.values()))
    return not info.key.startswith(("header/", SCRATCH_PREFIX))


async def _clean_stores(stores: Sequence[AnyStore], new: NewVolume, key: ObjectKey) -> None:
    """Remove what was written, as far as the stores still answer: the instance first (see the module)."""
    with trio.move_on_after(CLEAN_UP_DEADLINE_S, shield=True):
        for store in stores:
            try:
                await _remove_own_instance(store, new.instances[store.name])
                await store.delete(key)
            except StoreError as exc:
                print(
                    f"mirrorfs: store {store.name} was not cleaned up; empty it before trying again. {exc}",
                    file=sys.stderr,
                )


async def _remove_own_instance(store: AnyStore, own: bytes) -> None:
    # Somebody else's init may have been faster: what it wrote stays.
    key = ObjectKey(INSTANCE_KEY)
    try:
        found = await store.get(key, size_max=DOCUMENT_SIZE_MAX)
    except (ObjectNotFound, LimitError):
        return
    if found == own:
        await store.delete(key)
