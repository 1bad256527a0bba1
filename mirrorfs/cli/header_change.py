"""Writing the next generation of a volume's header: to the local state, then to the stores.

A header is an immutable object, and every generation keeps lying where it was written. So whatever is cut
short leaves one that opens: before the local write the old one counts here, after it the new one, and a store
that did not answer has the old one until the mirror brings the new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import trio

from mirrorfs.cli.config import StoreConfig, VolumePaths
from mirrorfs.cli.new_volume import AnyStore
from mirrorfs.cli.stores import bare_store
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.errors import StoreError
from mirrorfs.format.control import INSTANCE_KEY
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import VolumeHeader, header_key, seal_header
from mirrorfs.ports import ObjectKey, Sealed

STORE_DEADLINE_S: Final = 30.0


def next_header(unlocked: Unlocked, **changes: Any) -> bytes:
    """The sealed header that comes after the one that was unlocked; its own bytes where nothing changes.

    Args:
        changes: fields of VolumeHeader.
    Raises: FormatError, LimitError: they break a rule of the format.
    """
    header = replace(unlocked.header, **changes)
    if header == unlocked.header:
        return unlocked.data
    header = replace(
        header,
        generation=unlocked.header.generation + 1,
        previous=hashlib.sha256(unlocked.data).digest(),
    )
    return seal_header(header, keys=unlocked.keys, seed=unlocked.key_set.writer)


def keep_header(paths: VolumePaths, header: VolumeHeader, data: bytes) -> None:
    """Write it to the local state, so that no mount here uses an older one. Raises: DiskError."""
    LocalDisk(paths.state).write_whole(f"objects/{header_key(header.generation, data)}", data)


async def spread_header(stores: Sequence[StoreConfig], header: VolumeHeader, data: bytes) -> dict[str, str]:
    """Write it to every store that answers, and look whether it is there.

    Returns: the stores that have not got it, by name, and why; the mirror brings it to them.
    """
    key = ObjectKey(header_key(header.generation, data))
    failures: dict[str, str] = {}
    for config in stores:
        store: AnyStore = bare_store(config.name, config.url)
        try:
            with trio.move_on_after(STORE_DEADLINE_S) as scope:
                # A directory that is there and holds nothing is no store, but the place of one.
                await store.head(ObjectKey(INSTANCE_KEY))
                await store.put(key, Sealed(data))
                if await store.get(key, size_max=DOCUMENT_SIZE_MAX) != data:
                    failures[config.name] = "it shows other bytes than it was given"
            if scope.cancelled_caught:
                failures[config.name] = "it does not answer"
        except StoreError as exc:
            failures[config.name] = str(exc)
        finally:
            with trio.move_on_after(1.0, shield=True):
                await store.aclose()
    return failures
