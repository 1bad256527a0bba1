"""The steps of changing a volume's stores on the disk and at the stores (cli/store.py has their order)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.header_change import publish_header
from mirrorfs.cli.new_volume import is_in_the_way
from mirrorfs.cli.stores import bare_store, check_version
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.object_keys import SCRATCH_PREFIX
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.errors import DamagedError, InUseError, LimitError, ObjectNotFound, StoreMismatch
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, Instance, open_instance, seal_control
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import INSTANCE_SIZE_BYTES, StoreEntry
from mirrorfs.format.ids import STREAM_PREFIX
from mirrorfs.ports import ObjectInfo, ObjectKey, Sealed

_HEADER: Final = "header/"
_OURS: Final = (_HEADER, "heads/", *STREAM_PREFIX.values())


async def claim_place(name: str, url: str, unlocked: Unlocked, create: bool, rotating: bool) -> StoreConfig:
    """Step 1. Raises: StoreMismatch: the place is not empty. StoreError."""
    store = bare_store(name, url)
    try:
        if create and isinstance(store, DirectoryStore):
            await store.create_root()
        try:
            document = await store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX)
        except ObjectNotFound:
            found = [info.key for info in await store.list("") if not _is_residue(info)]
            if found:
                raise StoreMismatch(_not_empty(name, found)) from None
            if not isinstance(store, DirectoryStore):
                await store.check_lock()
            await store.probe()
            instance = secrets.token_bytes(INSTANCE_SIZE_BYTES)
            sealed = seal_control(
                Instance(store=name, instance=instance), keys=unlocked.keys, seed=unlocked.key_set.writer
            )
            await store.put(ObjectKey(INSTANCE_KEY), Sealed(sealed))
            return StoreConfig(name, url, instance, rotating)
        check_version(document, store=name)
        return StoreConfig(name, url, _own_instance(document, name, unlocked), rotating)
    finally:
        await store.aclose()


def _is_residue(info: ObjectInfo) -> bool:
    """What an earlier try left that may not delete, or in a place that keeps versions."""
    return info.key.startswith(SCRATCH_PREFIX) or (info.is_hidden and not is_in_the_way(info))


def _not_empty(name: str, keys: Sequence[str]) -> str:
    """Why a place without an instance document is not claimed, and the way out; `keys` begin its listing.

    What lies there is never taken over as a new store, whosever it is: it may be all that is left of one.
    """
    ours = [key for key in keys if key == LEASE_KEY or key.startswith(_OURS)]
    if len(ours) < len(keys):
        return f"The place of store {name} is not empty; choose an empty one."
    if any(key.startswith(_HEADER) for key in keys):
        return (
            f"The place of store {name} holds a volume without its file `instance`: if it is this store, run"
            " `mirrorfs repair`; else choose an empty place."
        )
    return (
        f"The place of store {name} is not empty: a store was emptied there, or this is what is left of one."
        " Move what lies there aside until the new store is filled, or choose an empty place."
    )


def _own_instance(document: bytes, name: str, unlocked: Unlocked) -> bytes:
    try:
        found = open_instance(document, keys=unlocked.keys, public_key=unlocked.header.public_keys.writer)
    except (DamagedError, LimitError) as exc:
        raise StoreMismatch(f"The place of store {name} holds another volume; choose an empty one.") from exc
    if found.store != name:
        raise StoreMismatch(
            f"That place is store {found.store} of this volume; name it so, or choose another."
        )
    return found.instance


def carry_out(
    paths: VolumePaths, unlocked: Unlocked, *, before: VolumeConfig, after: VolumeConfig
) -> InUseError | None:
    """Steps 2 to 4.

    Returns: what to raise in the end, where another PC changed the header at the same time.
    Raises: InUseError: another PC was first; the header is as it was. DiskError, ConfigError.
    """
    entries = tuple(StoreEntry(name=store.name, instance=store.instance) for store in after.stores)
    _, conflict = publish_header(paths, unlocked, before=before, after=after, stores=entries)
    write_config(paths, after)
    return conflict
