"""`mirrorfs store`: which stores a volume is mirrored to, and changing that.

The volume is not mounted meanwhile, and password and token are asked for: whoever holds the PC alone cannot
move the copies of a practice. The next mount fills a new store from the local disk and the other stores.

Order, each step of which may be the last before a crash; the same command run again goes on:
1. the new place gets its instance document, signed; a place that holds that of this volume under this name,
   from a run that was cut short, is taken as it is;
2. the next generation of the volume's header, which lists the stores, is written to the local state, so that
   no mount here uses an older one;
3. and to every store that answers (the others get it from the mirror);
4. the configuration. Until then a mount uses the stores it used before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import (
    STORES_MAX,
    StoreConfig,
    VolumeConfig,
    VolumePaths,
    check_configured_store_name,
    load_config,
    volume_paths,
    write_config,
)
from mirrorfs.cli.headless import add_unlock_arguments
from mirrorfs.cli.init import check_distinct_places
from mirrorfs.cli.new_volume import AnyStore, PlannedStore
from mirrorfs.cli.stores import bare_store, check_version, directory_of
from mirrorfs.cli.tokens import SecretSources, make_token
from mirrorfs.cli.unlock import Unlocked, check_pinned, find_header, newest_local_generation, unlock_header
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.process import harden_process
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.errors import (
    DamagedError,
    LimitError,
    ObjectNotFound,
    StoreError,
    StoreMismatch,
    UsageError,
)
from mirrorfs.format.control import INSTANCE_KEY, Instance, open_instance, seal_control
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import INSTANCE_SIZE_BYTES, StoreEntry, header_key, seal_header
from mirrorfs.ports import ObjectKey, Sealed

STORE_DEADLINE_S: Final = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `store`."""
    commands = parser.add_subparsers(dest="change", required=True, metavar="list|add|remove|replace")
    for name, text in (
        ("list", "show the stores"),
        ("add", "mirror the volume to one more store"),
        ("remove", "stop mirroring to a store; what it holds stays there"),
        ("replace", "take a new, empty place for a store that is gone"),
    ):
        sub = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        sub.add_argument("volume", metavar="VOLUME")
        if name == "add":
            sub.add_argument("store", metavar="NAME=URL")
        elif name in ("remove", "replace"):
            sub.add_argument("store", metavar="NAME")
        if name == "replace":
            sub.add_argument("url", metavar="URL")
        if name == "remove":
            sub.add_argument("--yes", action="store_true", help="even if only one store is left")
        if name in ("add", "replace"):
            sub.add_argument("--create-store", action="store_true", help="make the directory of a file URL")
        if name != "list":
            add_unlock_arguments(sub)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `store`. Raises: MirrorfsError."""
    harden_process()
    paths = volume_paths(arguments.volume, environment)
    config = load_config(paths)
    if arguments.change == "list":
        for store in config.stores:
            print(f"{store.name}  {store.url.partition('?')[0]}")
        return 0
    lock_fd = volume_lock.acquire(paths)
    try:
        return _CHANGES[arguments.change](arguments, environment, paths, config)
    finally:
        os.close(lock_fd)


def _unlock(
    arguments: argparse.Namespace, environment: Mapping[str, str], paths: VolumePaths, config: VolumeConfig
) -> Unlocked:
    data = trio.run(find_header, paths, config)
    sources = SecretSources(arguments.password_file, arguments.pin_file, environment)
    token = config.token
    if arguments.token is not None or arguments.module is not None:
        token = replace(token, uri=arguments.token or token.uri, module_path=arguments.module)
    unlocked = unlock_header(data, name=paths.name, token=make_token(token, sources), sources=sources)
    check_pinned(unlocked, config, generation_min=newest_local_generation(paths))
    return unlocked


# --- the changes -----------------------------------------------------------------------------


def _add(
    arguments: argparse.Namespace, environment: Mapping[str, str], paths: VolumePaths, config: VolumeConfig
) -> int:
    name, equals, url = arguments.store.partition("=")
    if not equals or not url:
        raise UsageError("A store is given as NAME=URL, for example usb=file:///media/usb/practice.")
    check_configured_store_name(name)
    if any(store.name == name for store in config.stores):
        raise UsageError(
            f"The volume has a store {name} already; `mirrorfs store replace` gives it a new place."
        )
    if len(config.stores) >= STORES_MAX:
        raise UsageError(f"A volume has at most {STORES_MAX} stores; remove one first.")
    _check_place(name, url, config.stores, paths)
    unlocked = _unlock(arguments, environment, paths, config)
    new = trio.run(_claim, name, url, unlocked, arguments.create_store)
    _carry_out(paths, replace(config, stores=(*config.stores, new)), unlocked)
    print(f"Volume {paths.name} has a store {name}; it is filled while the volume is mounted.")
    return 0


def _remove(
    arguments: argparse.Namespace, environment: Mapping[str, str], paths: VolumePaths, config: VolumeConfig
) -> int:
    _known(arguments.store, config)
    left = tuple(store for store in config.stores if store.name != arguments.store)
    if not left:
        raise UsageError("A volume needs a store; `mirrorfs store replace` gives this one a new place.")
    if len(left) == 1 and not arguments.yes:
        raise UsageError(
            f"Only store {left[0].name} would be left: one fire would then take the only copy."
            " Add another store first, or give --yes."
        )
    unlocked = _unlock(arguments, environment, paths, config)
    _carry_out(paths, replace(config, stores=left), unlocked)
    print(
        f"Volume {paths.name} is not mirrored to {arguments.store} any more; what it holds can be restored."
    )
    return 0


def _replace(
    arguments: argparse.Namespace, environment: Mapping[str, str], paths: VolumePaths, config: VolumeConfig
) -> int:
    name = arguments.store
    old = _known(name, config)
    others = tuple(store for store in config.stores if store.name != name)
    _check_place(name, arguments.url, others, paths)
    unlocked = _unlock(arguments, environment, paths, config)
    new = trio.run(_claim, name, arguments.url, unlocked, arguments.create_store)
    if new.instance == old.instance:
        raise UsageError(f"That place is store {name} as it is; there is nothing to replace.")
    stores = tuple(new if store.name == name else store for store in config.stores)
    _carry_out(paths, replace(config, stores=stores), unlocked)
    print(f"Store {name} of volume {paths.name} has a new place; it is filled while the volume is mounted.")
    return 0


_CHANGES: Final[
    Mapping[str, Callable[[argparse.Namespace, Mapping[str, str], VolumePaths, VolumeConfig], int]]
] = {"add": _add, "remove": _remove, "replace": _replace}


def _known(name: str, config: VolumeConfig) -> StoreConfig:
    for store in config.stores:
        if store.name == name:
            return store
    known = ", ".join(store.name for store in config.stores)
    raise UsageError(f"The volume has no store of that name; it has: {known}.")


def _check_place(name: str, url: str, others: Sequence[StoreConfig], paths: VolumePaths) -> None:
    bare_store(name, url)
    check_distinct_places(
        [*(PlannedStore(store.name, store.url) for store in others), PlannedStore(name, url)]
    )
    place = directory_of(url)
    if place is not None:
        real, state = Path(os.path.realpath(place)), Path(os.path.realpath(paths.state))
        if state.is_relative_to(real) or real.is_relative_to(state):
            raise UsageError(f"Store {name} and the local state overlap; choose another place.")


# --- the steps -------------------------------------------------------------------------------


async def _claim(name: str, url: str, unlocked: Unlocked, create: bool) -> StoreConfig:
    """Step 1. Raises: StoreMismatch: the place is not empty. StoreError."""
    store = bare_store(name, url)
    try:
        if create and isinstance(store, DirectoryStore):
            await store.create_root()
        try:
            document = await store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX)
        except ObjectNotFound:
            if await store.list(""):
                raise StoreMismatch(f"The place of store {name} is not empty; choose an empty one.") from None
            await store.probe()
            instance = secrets.token_bytes(INSTANCE_SIZE_BYTES)
            sealed = seal_control(
                Instance(store=name, instance=instance), keys=unlocked.keys, seed=unlocked.key_set.writer
            )
            await store.put(ObjectKey(INSTANCE_KEY), Sealed(sealed))
            return StoreConfig(name, url, instance)
        check_version(document, store=name)
        return StoreConfig(name, url, _own_instance(document, name, unlocked))
    finally:
        await store.aclose()


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


def _carry_out(paths: VolumePaths, config: VolumeConfig, unlocked: Unlocked) -> None:
    """Steps 2 to 4."""
    entries = tuple(StoreEntry(name=store.name, instance=store.instance) for store in config.stores)
    header, data = unlocked.header, unlocked.data
    if header.stores != entries:
        header = replace(
            header,
            generation=header.generation + 1,
            previous=hashlib.sha256(unlocked.data).digest(),
            stores=entries,
        )
        data = seal_header(header, keys=unlocked.keys, seed=unlocked.key_set.writer)
    key = header_key(header.generation, data)
    LocalDisk(paths.state).write_whole(f"objects/{key}", data)
    trio.run(_spread, config.stores, ObjectKey(key), data)
    write_config(paths, config)


async def _spread(stores: Sequence[StoreConfig], key: ObjectKey, data: bytes) -> None:
    for config in stores:
        store: AnyStore = bare_store(config.name, config.url)
        try:
            with trio.move_on_after(STORE_DEADLINE_S) as scope:
                await store.head(ObjectKey(INSTANCE_KEY))
                await store.put(key, Sealed(data))
            failure = "it does not answer" if scope.cancelled_caught else ""
        except StoreError as exc:
            failure = str(exc)
        finally:
            with trio.move_on_after(1.0, shield=True):
                await store.aclose()
        if failure:
            print(
                f"mirrorfs: Store {config.name} learns of the change with the next mount: {failure}",
                file=sys.stderr,
            )
