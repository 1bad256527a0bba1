"""`mirrorfs restore --repair`: what a restore met bad or missing in a store is written anew there.

The volume is opened as on a PC that was just attached, on a private state directory that goes away again: the
leases are taken as by a mount without --take-over, so that nothing is written while another writer has the
volume, or may have changes that are not in the stores. As by a mount, an object that a store lacks is sent
there; what is there and damaged is removed under the lease once a verified copy lies on the local disk
(engine/mend.py). Only with every store of the volume in reach: what another one may hold is not known.

Such a session leaves a small segment and a head in the log, as every mount does. If it is cut short, a lease
may stay whose writer has left nothing: nothing is lost, but the next mount then asks for --take-over.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli.failures import single_error
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.restore_report import say
from mirrorfs.cli.restore_stores import StoresFound, newest_published
from mirrorfs.cli.stores import ONCE, first_good, open_store, system_random
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.cli.waiting import Patience, lacking, watched
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.restore import RestorePlan
from mirrorfs.engine.scrub import DEEP, BadObject, Fault
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.engine.volume_status import VolumeStatus
from mirrorfs.errors import DamagedError, LimitError, MirrorfsError, ObjectExists, StoreMismatch
from mirrorfs.format.header import header_key
from mirrorfs.ports import LIST_PAGE_MAX

STALL_S: Final = 30.0
"""How long a store that reports an error is waited for."""
CACHE_BYTES: Final = 1 << 30
"""Bound of what lies on the local disk of segments that all stores hold."""
REASONS_SHOWN_MAX: Final = 20
_UNSURE: Final = "the restore had no use for it."


class StoreRepair:
    """Writes bad copies anew, in the stores that a restore was given."""

    def __init__(self, found: StoresFound, unlocked: Unlocked, work: Path, progress: Progress) -> None:
        """`work` is a private, empty directory, which the caller removes."""
        self._found = found
        self._unlocked = unlocked
        self._work = work
        self._progress = progress
        self._bad: dict[tuple[str, str], str | None] = {}
        """Copies that were bad indeed, and why they are still; None: they are good now."""

    async def run(self, met: Collection[tuple[str, str]], plan: RestorePlan, *, deep: bool) -> None:
        """Repair what can be, and say what became of it. What fails is said, too.

        Args:
            met: (store, object key) of copies that were bad or missing when the files were read.
            deep: whether every byte of every store is looked at.
        """
        left: str | None = None
        try:
            instances = self._instances(plan)
            with _quiet():
                left = await self._session(instances, {*met, *plan.suspects}, deep=deep)
        except MirrorfsError as exc:
            self._progress.end()
            say(f"The stores were not repaired: {exc}")
            return
        self._progress.end()
        # Those that were missing or short the mirrors sent again when the volume was opened.
        for where in met:
            if where[0] in instances:
                self._bad.setdefault(where)
        for store in instances:
            bad = [why for (place, _), why in self._bad.items() if place == store]
            print(f"Store {store}: {bad.count(None)} of {len(bad)} bad copies are written anew.")
        reasons = [(place, key, why) for (place, key), why in sorted(self._bad.items()) if why is not None]
        for place, key, why in reasons[:REASONS_SHOWN_MAX]:
            say(f"Store {place}: {key} is not mended: {why}")
        if left is not None:
            say(f"Not everything was sent: {left}. Run it again, or `mirrorfs repair` on a PC of the volume.")
        elif not reasons:
            print("No store lacks anything now.")

    def _instances(self, plan: RestorePlan) -> dict[str, bytes]:
        """The instances of all the volume's stores, by the names used here. Raises StoreMismatch."""
        header, keys = self._unlocked.header, self._unlocked.keys
        wanted = {entry.instance: entry.name for entry in header.stores}
        instances: dict[str, bytes] = {}
        for one in self._found.found:
            try:
                if not one.instances:
                    continue
                document = first_good(one.instances, keys, header.public_keys.writer)
            except (DamagedError, LimitError):
                continue
            silent = one.store.name in (*plan.silent, *plan.unreached)
            if not silent and wanted.pop(document.instance, None) is not None:
                instances[one.store.name] = document.instance
        if wanted:
            names = " and store ".join(sorted(wanted.values()))
            raise StoreMismatch(
                f"store {names} of the volume was not given, did not answer or cannot prove which one it is."
                " They are repaired only together."
            )
        return instances

    # --- the session -------------------------------------------------------------------------

    async def _session(
        self, instances: dict[str, bytes], suspects: set[tuple[str, str]], *, deep: bool
    ) -> str | None:
        """Open the volume, repair, close. Returns what was not sent. Raises: MirrorfsError."""
        await self._prepare()
        stores = [
            GuardedStore(
                open_store(one.store.name, one.store.url, policy=ONCE),
                instance=instances[one.store.name],
                keys=self._unlocked.keys,
                public_key=self._unlocked.header.public_keys.writer,
                clock=SystemClock(),
            )
            for one in self._found.found
            if one.store.name in instances
        ]
        error: BaseException
        try:
            try:
                return await self._with_volume(stores, instances, suspects, deep=deep)
            finally:
                with trio.move_on_after(2.0, shield=True):
                    for store in stores:
                        await store.aclose()
        except BaseExceptionGroup as group:
            error = single_error(group)
            if not isinstance(error, MirrorfsError):
                raise
        # Outside the handler: the group must not become the context of what it holds.
        raise error

    async def _prepare(self) -> None:
        """What `attach` writes: the header, and the newest head, behind which nobody may go back."""
        unlocked, disk = self._unlocked, LocalDisk(self._work)
        disk.write_whole(f"objects/{header_key(unlocked.header.generation, unlocked.data)}", unlocked.data)
        head = await newest_published(self._found.found, unlocked)
        if head is not None:
            disk.write_whole(f"objects/{head.key}", head.data)

    async def _with_volume(
        self,
        stores: list[GuardedStore],
        instances: dict[str, bytes],
        suspects: set[tuple[str, str]],
        *,
        deep: bool,
    ) -> str | None:
        unlocked = self._unlocked
        # The key of the index is never stored: what a crash leaves of it nobody can read.
        files = SqliteIndexFiles(
            str(self._work / "index.db"), secrets.token_bytes(32), digest_key=secrets.token_bytes(32)
        )
        self._show("waiting for the leases")
        async with trio.open_nursery() as nursery:
            volume = await MountedVolume.open(
                nursery=nursery,
                world=World(LocalDisk(self._work), SystemClock(), secrets.token_bytes, ThreadOffload()),
                files=files,
                key_set=unlocked.key_set,
                keys=unlocked.keys,
                header=unlocked.header,
                stores=stores,
                settings=VolumeSettings(
                    instances={name: instance.hex() for name, instance in instances.items()},
                    header_bytes=unlocked.data,
                    host=socket.gethostname()[:255],
                    owner=(os.getuid(), os.getgid()),
                    cache_bytes=CACHE_BYTES,
                ),
                random=system_random(),
            )
            try:
                left = await self._repair(volume, suspects, stores, deep=deep)
            finally:
                with trio.CancelScope(shield=True):
                    await volume.close(wait_for_stores=False)
            nursery.cancel_scope.cancel()
        return left

    async def _repair(
        self,
        volume: MountedVolume,
        suspects: set[tuple[str, str]],
        stores: list[GuardedStore],
        *,
        deep: bool,
    ) -> str | None:
        # First the mirrors learn what is there: one that lists an object just before it is removed would
        # count it as held. What is missing or too short they send, and have it mended, by themselves.
        await self._sent(volume)
        bad = [
            BadObject(place, key, Fault.DAMAGED, _UNSURE)
            for place, key in sorted(suspects)
            if place in volume.instances
        ]
        if deep:
            bad += await self._looked_at(volume, stores)
        for number, one in enumerate(dict.fromkeys(bad), start=1):
            self._show(f"looking again at copy {number} of {len(bad)}")
            await self._mend(volume, one)
        left = await self._sent(volume)
        for (place, key), why in self._bad.items():
            if why is None and (found := await volume.scrubber.examine(place, key)) is not None:
                self._bad[place, key] = f"it is {found.fault}: {found.detail}"
        return left

    async def _mend(self, volume: MountedVolume, one: BadObject) -> None:
        where = one.place, one.key
        try:
            # Copies that the restore met when they were missing or short were sent again by now.
            if one.detail == _UNSURE and await volume.scrubber.examine(*where) is None:
                return
        except MirrorfsError as exc:
            self._bad[where] = str(exc)
            return
        self._bad[where] = (await volume.mender.mend([one]))[one]

    async def _looked_at(self, volume: MountedVolume, stores: list[GuardedStore]) -> list[BadObject]:
        """All that is bad in the stores, and all heads and checkpoints that may be: none lies on the disk."""

        def show(place: str, done: int, total: int) -> None:
            self._show(f"{done} of {total} objects of {place}")

        report = await volume.scrubber.run(DEEP, places=list(volume.instances), on_progress=show)
        bad = list(report.bad)
        for prefix in ("heads/", "checkpoints/"):
            keys: set[str] = set()
            for store in stores:
                after = ""
                while page := await store.list(prefix, start_after=after):
                    keys.update(info.key for info in page)
                    after = page[-1].key
                    if len(page) < LIST_PAGE_MAX:
                        break
            bad += [
                BadObject(store.name, key, Fault.DAMAGED, _UNSURE) for key in sorted(keys) for store in stores
            ]
        return bad

    async def _sent(self, volume: MountedVolume) -> str | None:
        """Wait until the stores hold everything. Returns what one lacks that does not take it."""
        try:
            return await watched(volume.flush, patience=Patience(stall_s=STALL_S), publish=self._show_lag)
        except ObjectExists as exc:
            return str(exc).rstrip(".")

    def _show_lag(self, status: VolumeStatus) -> None:
        count = sum(store.pending_count for store in lacking(status.stores))
        self._show(f"{count} objects to be sent or looked at")

    def _show(self, note: str) -> None:
        self._progress.show([ProgressItem("repair", 0, 0, note=note)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of copies are left out: what became of each is said in the end."""
    logger = logging.getLogger("mirrorfs")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
