"""`mirrorfs store`: which stores a volume is mirrored to, and changing that, mounted or not.

Password and token are asked for in any case, by this process: whoever holds the PC alone cannot move the
copies of a practice, and the control socket of a mounted volume yields no key. A new store is filled from the
local disk and the other stores while the volume is mounted.

Order, each step of which may be the last before a crash; the same command run again goes on:
1. the new place gets its instance document, signed; a place that holds that of this volume under this name,
   from a run that was cut short, is taken as it is;
2. the next generation of the volume's header, which lists the stores, is written to the local state, so that
   no mount here uses an older one;
3. and to every store that answers (the others get it from the mirror);
4. the configuration. Until then a mount uses the stores it used before;
5. a mounted volume is told. It checks all of that by itself (cli/store_adoption.py); where it is not told, or
   ends before it was, the next mount has the change.

Two such commands, or one and the beginning of a mount, exclude one another (volume_lock.ChangeLock).
"""

from __future__ import annotations

import argparse
import os
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
    make_private_directory,
    volume_paths,
)
from mirrorfs.cli.flush import add_stall_argument
from mirrorfs.cli.headless import add_unlock_arguments
from mirrorfs.cli.init import check_distinct_places
from mirrorfs.cli.key_events import Recording, recorded
from mirrorfs.cli.new_volume import PlannedStore
from mirrorfs.cli.resolve import mounts_of
from mirrorfs.cli.store_session import Serving, find_session
from mirrorfs.cli.store_steps import carry_out, claim_place
from mirrorfs.cli.stores import bare_store, directory_of
from mirrorfs.cli.tokens import SecretSources, chosen_tokens, refuse_recovery
from mirrorfs.cli.unlock import Unlocked, unlock_configured
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import InUseError, UsageError


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
            sub.add_argument("--rotating", action="store_true", help="it may be away for weeks, as a disk is")
            sub.add_argument(
                "--wait", action="store_true", help="until it holds everything; shows how far it is"
            )
            add_stall_argument(sub)
        if name != "list":
            add_unlock_arguments(sub)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `store`. Raises: MirrorfsError."""
    harden_process()
    paths = volume_paths(arguments.volume, environment)
    config = load_config(paths)
    if arguments.change == "list":
        for store in config.stores:
            rotating = "  rotating" if store.rotating else ""
            print(f"{store.name}  {store.url.partition('?')[0]}{rotating}")
        return 0
    make_private_directory(paths.state, what="state")
    lock = volume_lock.ChangeLock(paths)
    try:
        session = find_session(paths)
        try:
            command = f"store {arguments.change}"
            with recorded(paths, config.alarm, command, heard=session.note) as recording:
                _Change(arguments, environment, paths, session, recording).run()
        finally:
            session.close()
    finally:
        lock.release()
    if getattr(arguments, "wait", False):
        session.wait_filled(arguments.store.partition("=")[0], stall_s=arguments.stall)
    return 0


class _Change:
    """One command, with everything it needs."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        paths: VolumePaths,
        session: Serving,
        recording: Recording,
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._paths = paths
        self._session = session
        self._recording = recording
        self._conflict: InUseError | None = None
        # Nobody writes it while we have the lock.
        self._config = load_config(paths)

    def run(self) -> None:
        """Raises: MirrorfsError."""
        if getattr(self._arguments, "wait", False) and not self._session.is_mounted:
            raise UsageError(
                "A store is filled while the volume is mounted; mount it first, or leave out --wait."
            )
        if self._session.lags_behind(self._config) and self._is_carried_out():
            # An earlier run ended just before the mounted volume was told.
            self._unlock()
            self._session.tell()
            print(f"Volume {self._paths.name} has the change now, which an earlier run of this command made.")
            return
        changes: dict[str, Callable[[], str]] = {
            "add": self._add, "remove": self._remove, "replace": self._replace,
        }  # fmt: skip
        sentence = changes[self._arguments.change]()
        self._session.tell()
        print(sentence)
        if self._conflict is not None:
            raise self._conflict

    def _is_carried_out(self) -> bool:
        name, _, url = self._arguments.store.partition("=")
        if self._arguments.change == "remove":
            return name in self._session.instances and all(
                store.name != name for store in self._config.stores
            )
        wanted = url or getattr(self._arguments, "url", "")
        return any(store.name == name and store.url == wanted for store in self._config.stores)

    def _add(self) -> str:
        name, equals, url = self._arguments.store.partition("=")
        stores = self._config.stores
        if not equals or not url:
            raise UsageError("A store is given as NAME=URL, for example usb=file:///media/usb/practice.")
        check_configured_store_name(name)
        if any(store.name == name for store in stores):
            raise UsageError(
                f"The volume has a store {name} already; `mirrorfs store replace` gives it a new place."
            )
        if len(stores) >= STORES_MAX:
            raise UsageError(f"A volume has at most {STORES_MAX} stores; remove one first.")
        self._check_place(name, url, stores)
        unlocked = self._unlock()
        new = self._claim(name, url, unlocked, rotating=self._arguments.rotating)
        self._carry_out((*stores, new), unlocked)
        return f"Volume {self._paths.name} has a store {name}; it is filled while the volume is mounted."

    def _remove(self) -> str:
        name = self._arguments.store
        self._known(name)
        left = tuple(store for store in self._config.stores if store.name != name)
        lasting = [store for store in left if not store.rotating]
        if not lasting:
            raise UsageError(
                "A volume needs a store that is always there; `mirrorfs store replace` gives this one"
                " a new place."
            )
        if len(left) == 1 and not self._arguments.yes:
            raise UsageError(
                f"Only store {left[0].name} would be left: one fire would then take the only copy."
                " Add another store first, or give --yes."
            )
        self._carry_out(left, self._unlock())
        return f"Volume {self._paths.name} is not mirrored to {name} any more; what it holds can be restored."

    def _replace(self) -> str:
        name, url = self._arguments.store, self._arguments.url
        old = self._known(name)
        others = tuple(store for store in self._config.stores if store.name != name)
        rotating = old.rotating or self._arguments.rotating
        if rotating and all(store.rotating for store in others):
            raise UsageError("A volume needs a store that is always there; leave out --rotating.")
        self._check_place(name, url, others)
        unlocked = self._unlock()
        new = self._claim(name, url, unlocked, rotating=rotating)
        if new.instance == old.instance:
            raise UsageError(f"That place is store {name} as it is; there is nothing to replace.")
        stores = tuple(new if store.name == name else store for store in self._config.stores)
        self._carry_out(stores, unlocked)
        return f"Store {name} of volume {self._paths.name} has a new place; it is filled while it is mounted."

    # --- the parts ---------------------------------------------------------------------------

    def _known(self, name: str) -> StoreConfig:
        for store in self._config.stores:
            if store.name == name:
                return store
        known = ", ".join(store.name for store in self._config.stores)
        raise UsageError(f"The volume has no store of that name; it has: {known}.")

    def _check_place(self, name: str, url: str, others: Sequence[StoreConfig]) -> None:
        bare_store(name, url)
        place = directory_of(url)
        mounts = [Path(os.fsdecode(record.mountpoint)) for record in mounts_of(self._paths.name)]
        # Before anything is asked about the path: below the mountpoint the answer would come from the volume.
        if place is not None and any(Path(os.path.abspath(place)).is_relative_to(mount) for mount in mounts):
            raise UsageError(f"Store {name} would lie in the volume itself; choose another place.")
        check_distinct_places(
            [*(PlannedStore(store.name, store.url) for store in others), PlannedStore(name, url)]
        )
        if place is None:
            return
        real, state = Path(os.path.realpath(place)), Path(os.path.realpath(self._paths.state))
        if state.is_relative_to(real) or real.is_relative_to(state):
            raise UsageError(f"Store {name} and the local state overlap; choose another place.")
        if any(real.is_relative_to(mount) or mount.is_relative_to(real) for mount in mounts):
            raise UsageError(f"Store {name} and the mountpoint overlap; choose another place.")

    def _unlock(self) -> Unlocked:
        arguments = self._arguments
        sources = SecretSources(arguments.password_file, arguments.pin_file, self._environment)
        chosen = chosen_tokens(arguments.token, arguments.module, self._config.tokens)
        refuse_recovery(chosen, volume=self._paths.name)
        unlocked, self._config = unlock_configured(self._paths, self._config, chosen, sources)
        self._recording.opened(unlocked.header, unlocked.slot)
        return unlocked

    def _claim(self, name: str, url: str, unlocked: Unlocked, *, rotating: bool) -> StoreConfig:
        create = self._arguments.create_store
        return trio.run(claim_place, name, url, unlocked, create, rotating)

    def _carry_out(self, stores: tuple[StoreConfig, ...], unlocked: Unlocked) -> None:
        config: Final[VolumeConfig] = replace(self._config, stores=stores)
        self._conflict = carry_out(self._paths, unlocked, before=self._config, after=config)
