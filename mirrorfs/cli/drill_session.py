"""One drill of an unlocked volume, from opening the stores to the signed report in the local state."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import trio

from mirrorfs import __version__
from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.drill_record import DrillRecord
from mirrorfs.cli.headers import store_headers
from mirrorfs.cli.key_pipe import UnlockedSession
from mirrorfs.cli.progress import ProgressItem
from mirrorfs.cli.restore_report import date_of
from mirrorfs.cli.restore_state import STATE_NAME
from mirrorfs.cli.restore_stores import LOOK_DEADLINE_S
from mirrorfs.cli.stores import (
    ONCE,
    first_good,
    instance_documents,
    limits_of,
    open_limited_store,
    open_store,
)
from mirrorfs.drivers.drill_tree import KEY_SIZE_BYTES as DIGEST_KEY_SIZE_BYTES
from mirrorfs.drivers.drill_tree import DrillTree
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.drill import Drill, DrillProgress, DrillResult, Reference
from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.errors import DamagedError, LimitError, ObjectNotFound, StoreMismatch, StoreUnavailable
from mirrorfs.format.drill import HOST_SIZE_MAX_BYTES, OBJECTS_MAX, DrillFault, DrillReport, seal_drill_report
from mirrorfs.format.header import verify_header
from mirrorfs.ports import Store

STORE_CLOSE_S: Final = 2.0
_NS_PER_S: Final = 1_000_000_000
_S_PER_DAY: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Drilled:
    """What came of a drill."""

    report: DrillReport
    key: bytes
    """The public key that it is checked with, 32 bytes."""
    data: bytes
    """The signed document."""
    file: Path
    """Where it is kept."""
    damage: str | None
    """What is wrong with the store's log, in a sentence."""
    paths: tuple[str, ...]
    """What differs, for the person's eyes only."""

    @property
    def stamp(self) -> str:
        """When it began, for names of files."""
        moment = datetime.fromtimestamp(self.report.started_ns // _NS_PER_S, UTC)
        return moment.strftime("%Y%m%d-%H%M%S")


class DrillSession:
    """An unlocked volume on whose stores drills are carried out."""

    def __init__(
        self,
        unlocked: UnlockedSession,
        paths: VolumePaths,
        config: VolumeConfig,
        choose: Callable[[array[int]], array[int]],
        *,
        on_progress: Callable[[ProgressItem], None],
        on_end: Callable[[], None] = lambda: None,
        beside_mount: bool = False,
    ) -> None:
        """
        Args:
            unlocked: with the drill role; the caller wipes it.
            config: its [limits] hold for these drills.
            choose: see engine.drill.Drill.
            on_progress: hears how far it is, often.
            on_end: called when nothing follows.
            beside_mount: a mount with the same [limits] leaves half of them to these drills.
        """
        self._unlocked = unlocked
        self._header, self._keys = verify_header(unlocked.header, unlocked.key_set)
        self._paths = paths
        self._config = config
        self._choose = choose
        self._on_progress = on_progress
        self._on_end = on_end
        self._beside_mount = beside_mount
        self._record = DrillRecord(paths, volume=config.volume)

    async def drill(self, store: StoreConfig, work: Path) -> Drilled:
        """Carry one out, and keep its report.

        Args:
            work: a private directory for indexes.
        Raises: StoreUnavailable: the store does not answer. StoreMismatch: another store is there.
            MirrorfsError: there is nothing to compare with.
        """
        started_ns = time.time_ns()
        async with self._opened(store) as (tried, others, local):
            lacks_header = await self._look(tried, store)
            try:
                found = await self._run(tried, others, local, work)
            finally:
                self._on_end()
        faults = self._judge(store, found, lacks_header=lacks_header, now_ns=started_ns)
        report = self._report(store, found, faults, started_ns)
        data = seal_drill_report(report, keys=self._keys, seed=self._unlocked.key_set.drill)
        file = self._record.add(report, data)
        paths = tuple(os.fsdecode(path) for path in found.paths)
        return Drilled(report, self._header.public_keys.drill, data, file, found.damage, paths)

    @asynccontextmanager
    async def _opened(
        self, store: StoreConfig
    ) -> AsyncIterator[tuple[RetryingStore, list[RetryingStore], RetryingStore]]:
        config = self._config
        # Anew for each drill: it may have a loop of its own, and loops do not share a clock.
        limits = limits_of(config, is_shared=self._beside_mount)
        tried = open_limited_store(store, config, limits, policy=RetryPolicy())
        rest = [one for one in config.stores if one.name != store.name]
        others = [open_limited_store(one, config, limits, policy=ONCE) for one in rest]
        local = open_store(STATE_NAME, (self._paths.state / "objects").as_uri(), policy=ONCE)
        try:
            yield tried, others, local
        finally:
            with trio.move_on_after(STORE_CLOSE_S, shield=True):
                for one in (tried, *others, local):
                    await one.aclose()

    async def _look(self, tried: Store, store: StoreConfig) -> bool:
        """Whether the store lacks the newest header; it must answer, and be the one that is meant."""
        with trio.move_on_after(LOOK_DEADLINE_S):
            try:
                documents = await instance_documents(tried)
                found = first_good(documents, self._keys, self._header.public_keys.writer).instance
            except (ObjectNotFound, DamagedError, LimitError) as exc:
                if store.rotating and isinstance(exc, ObjectNotFound):
                    raise StoreUnavailable(f"Store {store.name} is away; plug it in.") from exc
                found = store.instance  # `verify` is for that; what it holds is checked piece by piece
            if found != store.instance:
                raise StoreMismatch(f"Another store is in the place of store {store.name}; check its URL.")
            return self._unlocked.header not in await store_headers(tried)
        raise StoreUnavailable(f"Store {store.name} does not answer: check the network or its disk.")

    async def _run(self, tried: Store, others: Sequence[Store], local: Store, work: Path) -> DrillResult:
        # These keys are never stored: what a crash leaves of the indexes nobody can read.
        first, second = (
            SqliteIndexFiles(str(work / name), secrets.token_bytes(32), digest_key=secrets.token_bytes(32))
            for name in ("index-1.db", "index-2.db")
        )
        digest_key = secrets.token_bytes(DIGEST_KEY_SIZE_BYTES)
        drill = Drill(
            tried,
            Reference(LocalDisk(self._paths.state), others, [local, *others]),
            (first, second),
            ThreadOffload(),
            self._keys,
            self._header.public_keys.writer,
            make_tree=lambda: DrillTree(digest_key),
            choose=self._choose,
            on_progress=self._show,
            on_replayed=self._show_replay,
        )
        try:
            return await drill.run()
        finally:
            first.remove()
            second.remove()

    def _judge(
        self, store: StoreConfig, found: DrillResult, *, lacks_header: bool, now_ns: int
    ) -> frozenset[DrillFault]:
        """What is found, and what this PC knows and the engine does not."""
        last = self._record.last(self._config.stores)[store.name]
        allowed_s = _allowed_s(store, self._config.alarm)
        missing_s = (now_ns - found.missing_since_ns) / _NS_PER_S if found.missing_since_ns else 0.0
        more = {
            DrillFault.HEADER: lacks_header,
            DrillFault.BEHIND: 0 < allowed_s < missing_s,
            DrillFault.WENT_BACK: bool(found.position) and found.position < last.position,
        }
        return found.faults | {fault for fault, is_there in more.items() if is_there}

    def _report(
        self, store: StoreConfig, found: DrillResult, faults: frozenset[DrillFault], started_ns: int
    ) -> DrillReport:
        return DrillReport(
            store=store.name,
            instance=store.instance,
            host=_host(),
            program=__version__,
            started_ns=started_ns,
            ended_ns=max(started_ns, time.time_ns()),
            previous=self._record.newest_digest(),
            header_generation=self._header.generation,
            header_hash=hashlib.sha256(self._unlocked.header).digest(),
            position=found.position,
            time_ns=found.time_ns,
            journal_sequence=found.journal_sequence,
            journal_hash=found.journal_hash,
            missing_since_ns=found.missing_since_ns,
            names=found.names,
            files=found.files,
            size_bytes=found.size_bytes,
            drilled_files=found.drilled_files,
            drilled_bytes=found.drilled_bytes,
            compared_files=found.compared_files,
            differing_names=found.differing_names,
            damaged_files=found.damaged_files,
            differing_files=found.differing_files,
            object_count=len(found.objects),
            objects=found.objects[:OBJECTS_MAX],
            faults=tuple(fault for fault in DrillFault if fault in faults),
        )

    def _show(self, state: DrillProgress) -> None:
        name = "compare" if state.reference else "restore"
        note = f"{state.names} names"
        self._on_progress(ProgressItem(name, state.done_bytes, state.total_bytes, note=note))

    def _show_replay(self, sequence: int, time_ns: int) -> None:
        self._on_progress(ProgressItem("log", 0, 0, note=f"segment {sequence} of {date_of(time_ns)}"))


def _allowed_s(store: StoreConfig, alarm: AlarmConfig) -> int:
    """How long a change may be missing from the store; 0 for ever."""
    return alarm.max_absent_days * _S_PER_DAY if store.rotating else alarm.max_lag_s


def _host() -> str:
    name = "".join(character for character in socket.gethostname() if character.isprintable())
    return name if len(name.encode()) <= HOST_SIZE_MAX_BYTES else ""
