"""Writing the next generation of a volume's header: to the local state, then to the stores.

A header is an immutable object, and every generation keeps lying where it was written. So whatever is cut
short leaves one that opens: before the local write the old one counts here, after it the new one, and a store
that did not answer has the old one until the mirror brings the new.

Two PCs may do this at once, for headers need no lease. Each looks at the stores before it writes and again
afterwards: so at least one of them sees the other's header, and says so. The next change, whoever makes it,
is made to what that PC has; what only the other had is undone by it, as the other then finds and says.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import trio

from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths
from mirrorfs.cli.headers import age, headers_of, local_headers, verify_relative
from mirrorfs.cli.key_record import differences, read_record, update_record
from mirrorfs.cli.new_volume import AnyStore
from mirrorfs.cli.stores import bare_store
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.errors import DamagedError, InUseError, LimitError, StoreError
from mirrorfs.format.control import INSTANCE_KEY
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import VolumeHeader, header_key, parse_header, seal_header
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


def publish_header(
    paths: VolumePaths, unlocked: Unlocked, *, before: VolumeConfig, after: VolumeConfig, **changes: Any
) -> tuple[Unlocked, InUseError | None]:
    """Make the next generation, keep it here and spread it.

    Args:
        before, after: the configurations; they differ where stores are changed.
        changes: fields of VolumeHeader.
    Returns: what is in force now; and what to raise in the end, where another PC made one at the same time.
    Raises: InUseError: another PC was first; nothing has changed. DiskError. FormatError, LimitError.
    """
    data = next_header(unlocked, **changes)
    header = parse_header(data)
    trio.run(check_unrivalled, paths, before, unlocked)
    keep_header(paths, header, data)
    for name, why in trio.run(spread_header, after.stores, header, data).items():
        print(f"mirrorfs: Store {name} learns of the change when it is mirrored to: {why}", file=sys.stderr)
    conflict = trio.run(find_conflict, paths, after, unlocked.header, data)
    return replace(unlocked, data=data, header=header), conflict


async def check_unrivalled(paths: VolumePaths, config: VolumeConfig, unlocked: Unlocked) -> None:
    """Return if no store shows that another PC has changed the header that is to be changed.

    A header as old as that one, which is no base for a change here either, is told of once: run again, the
    command goes on from what is here. One that the volume's writers did not make stops nobody.
    Raises: InUseError.
    """
    ours = unlocked.header
    rivals = await _rivals(paths, config, ours)
    if not rivals:
        return
    theirs = max(rivals.values(), key=age)
    if age(theirs) > age(ours):
        raise InUseError(
            "Another PC changed the keys or stores of this volume meanwhile"
            f" ({_differences(ours, theirs)}); nothing was changed here: run it again."
        )
    update_record(paths, lambda record: record.with_rivals(list(rivals)))
    raise InUseError(
        "Another PC and this one changed keys or stores at the same time; there, other than here:"
        f" {_differences(ours, theirs)}. Nothing was changed now. Run it again to go on from what is here,"
        " and repeat afterwards what is missing."
    )


async def find_conflict(
    paths: VolumePaths, config: VolumeConfig, base: VolumeHeader, data: bytes
) -> InUseError | None:
    """What to raise in the end where another PC has changed the same header as this one has.

    Args:
        base: what was changed.
        data: what it was changed to; kept and spread.
    """
    rivals = await _rivals(paths, config, base, but_after=data)
    if not rivals:
        return None
    update_record(paths, lambda record: record.with_rivals(list(rivals)))
    found = _differences(parse_header(data), max(rivals.values(), key=age))
    return InUseError(
        "The change was made, but another PC changed keys or stores at the same time; there, other than here:"
        f" {found}. Only one of the two lasts: compare `mirrorfs key list` and `mirrorfs store list` on both"
        " PCs, and repeat what is missing."
    )


async def _rivals(
    paths: VolumePaths, config: VolumeConfig, base: VolumeHeader, *, but_after: bytes | None = None
) -> dict[str, VolumeHeader]:
    """Headers on the stores, by key, that are not here, as new as `base` or newer, by writers of the volume.

    Those of which people were told are left out, and those that continue the one with the bytes `but_after`.
    """
    known = {header_key(one.generation, data) for _, one, data in local_headers(paths) if one is not None}
    told = read_record(paths).rivals
    found: list[tuple[bytes, VolumeHeader]] = []
    for data in await headers_of(config.stores, above=base.key_generation - 1, known=known):
        try:
            header = verify_relative(data, known=base)
        except (DamagedError, LimitError):
            continue  # a store can hold, or show, anything
        if age(header) >= age(base):
            found.append((data, header))
    after_ours = set() if but_after is None else {hashlib.sha256(but_after).digest()}
    rivals: dict[str, VolumeHeader] = {}
    for data, header in sorted(found, key=lambda one: one[1].generation):
        if header.previous in after_ours:
            after_ours.add(hashlib.sha256(data).digest())
        elif (key := header_key(header.generation, data)) not in told:
            rivals[key] = header
    return rivals


def _differences(ours: VolumeHeader, theirs: VolumeHeader) -> str:
    return ", ".join(map(str, differences(ours, theirs))) or "nothing that shows"


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
