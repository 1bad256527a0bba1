"""`mirrorfs attach`: making a volume usable on this PC from one of its stores or more.

Only the configuration, the volume's header and the newest head are written here. The first mount brings the
newest checkpoint and the log behind it, files come as they are read. A killed attach is run again.

`--again` is for a PC whose state the stores' log does not continue, because another one took over: the old
state is set aside, whole, and `restore --from-state` still exports it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import (
    StoreConfig,
    VolumeConfig,
    VolumePaths,
    load_config,
    make_private_directory,
    volume_paths,
    write_config,
)
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.headless import add_unlock_arguments
from mirrorfs.cli.key_events import carry_over, note_attached
from mirrorfs.cli.key_record import read_record
from mirrorfs.cli.restore import confirmed
from mirrorfs.cli.restore_stores import StoreFound, check_members, find_stores, name_stores, newest_published
from mirrorfs.cli.restore_unlock import unlock_newest
from mirrorfs.cli.stores import first_good
from mirrorfs.cli.tokens import ANY_TOKEN, SecretSources, chosen_tokens, tokens_to_keep
from mirrorfs.cli.unlock import Unlocked, is_of
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.process import harden_process
from mirrorfs.engine.heads import FoundHead
from mirrorfs.errors import DamagedError, LimitError, StoreMismatch, UsageError, WrongVolume
from mirrorfs.format.header import header_key
from mirrorfs.format.ids import format_position
from mirrorfs.format.kdf import format_fingerprint

EXIT_FAILED: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `attach`."""
    parser.add_argument("volume", metavar="VOLUME", help="the name that the volume gets on this PC")
    parser.add_argument(
        "--store", action="append", default=[], metavar="URL",
        help="file:///PATH or s3://BUCKET/PREFIX?endpoint=...; give all that there are",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true", help="set the local state aside and begin anew from the stores"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--code-file", metavar="FILE", help="read a recovery code from its first line")
    add_unlock_arguments(parser)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `attach`. Returns: 0; 1: refused by the person. Raises: MirrorfsError."""
    harden_process()
    paths = volume_paths(arguments.volume, environment)
    known = load_config(paths) if os.path.lexists(paths.config) else None
    if known is not None and not arguments.again:
        raise UsageError(
            f"A volume {paths.name} is configured already; choose another name, or give --again to begin anew"
            " from its stores."
        )
    if known is None and arguments.again:
        raise UsageError(f"No volume {paths.name} is configured here; leave out --again.")
    if not arguments.yes and not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on; check the volume's fingerprint and use --yes.")
    urls = arguments.store or [store.url for store in known.stores] if known else arguments.store
    tokens = chosen_tokens(arguments.token, arguments.module, known.tokens if known else ANY_TOKEN)
    found = trio.run(find_stores, name_stores(urls, destination=str(paths.state)))
    for sentence in found.unreachable:
        _say(f"{sentence} Going on without it.")
    sources = SecretSources(arguments.password_file, arguments.pin_file, environment, arguments.code_file)
    unlocked = unlock_newest(found, tokens, sources)
    for sentence in check_members(found.found, unlocked):
        _say(sentence)
    if known is not None and not is_of(unlocked, known):
        raise WrongVolume("The stores hold another volume than the one that is configured here.")
    head = trio.run(newest_published, found.found, unlocked)
    _describe(unlocked, head, has_one_store=len(found.found) == 1)
    if not arguments.yes and not confirmed("Attach this volume? [y/N] "):
        print("Nothing was changed.")
        return EXIT_FAILED
    config = VolumeConfig(
        volume=unlocked.header.volume,
        fingerprint=unlocked.keys.fingerprint,
        stores=_stores(found.found, unlocked, known),
        tokens=tokens_to_keep(tokens),
    )
    if known is not None:
        # Alarms, limits and all else that was set here stay as they are.
        config = replace(known, fingerprint=config.fingerprint, stores=config.stores, tokens=config.tokens)
    _write(paths, config, unlocked, head, environment=environment, again=arguments.again)
    print(f"Volume {paths.name} is attached. Next: mirrorfs mount {paths.name} MOUNTPOINT")
    return 0


def _say(sentence: str) -> None:
    print(f"mirrorfs: {one_line(sentence)}", file=sys.stderr)


def _describe(unlocked: Unlocked, head: FoundHead | None, *, has_one_store: bool) -> None:
    print(f"Volume:       {unlocked.header.volume.hex()}")
    print(f"Fingerprint:  {format_fingerprint(unlocked.keys.fingerprint)}")
    if head is None:
        print("Newest state: not known; nothing was published yet")
    else:
        moment = datetime.fromtimestamp(head.head.created_ns // 1_000_000_000).astimezone()
        print(
            f"Newest state: position {format_position(head.head.position)},"
            f" published {moment:%Y-%m-%d %H:%M:%S %z}"
        )
    if has_one_store:
        print("A single store cannot prove that nothing newer exists: compare the date with what you know.")


def _stores(
    found: Sequence[StoreFound], unlocked: Unlocked, known: VolumeConfig | None
) -> tuple[StoreConfig, ...]:
    """The stores that were looked at, under the names that the volume gives them."""
    names = {entry.instance: entry.name for entry in unlocked.header.stores}
    before = () if known is None else known.stores
    stores: dict[str, StoreConfig] = {}
    for one in found:
        try:
            if not one.instances:
                raise DamagedError("it has no instance document.")
            instance = first_good(one.instances, unlocked.keys, unlocked.header.public_keys.writer)
        except (DamagedError, LimitError):
            _say(f"Store {one.store.name} cannot prove which store it is, and is left out: replace it later.")
            continue
        if instance.instance not in names:
            _say(f"Store {one.store.name} is not on the volume's list any more, and is left out.")
            continue
        name = names[instance.instance]
        new = StoreConfig(name, one.store.url, instance.instance)
        old = next((store for store in before if store.instance == instance.instance), new)
        stores[name] = replace(old, name=name, url=new.url)
    # A store that does not answer now is still one of the volume's.
    for store in before:
        if names.get(store.instance) == store.name:
            stores.setdefault(store.name, store)
    if not stores:
        raise StoreMismatch(
            "None of these stores can be used for writing; `mirrorfs restore` still reads them."
        )
    for name in names.values():
        if name not in stores:
            _say(f"The volume has a store {name}, which was not given: it gets nothing from this PC.")
    return tuple(stores[name] for name in names.values() if name in stores)


def _write(
    paths: VolumePaths,
    config: VolumeConfig,
    unlocked: Unlocked,
    head: FoundHead | None,
    *,
    environment: Mapping[str, str],
    again: bool,
) -> None:
    """State first, configuration last: what was cut short is no volume yet."""
    make_private_directory(paths.state, what="state")
    change = volume_lock.ChangeLock(paths)
    try:
        record = read_record(paths)
        if again:
            lock_fd = volume_lock.acquire(paths)
            try:
                aside = _set_aside(paths.state)
            finally:
                os.close(lock_fd)
            print(f"The old state is kept: `mirrorfs restore --from-state {aside} DEST` exports it.")
        make_private_directory(paths.state, what="state")
        disk = LocalDisk(paths.state)
        disk.write_whole(f"objects/{header_key(unlocked.header.generation, unlocked.data)}", unlocked.data)
        if head is not None:
            disk.write_whole(f"objects/{head.key}", head.data)
        if record.count:
            carry_over(paths, record)
        note_attached(paths, config.alarm, unlocked.header, unlocked.data, unlocked.slot)
        write_config(paths, config)
    finally:
        change.release()


def _set_aside(state: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%S")
    aside = state.with_name(f"{state.name}.before-{stamp}")
    os.rename(state, aside)
    return aside
