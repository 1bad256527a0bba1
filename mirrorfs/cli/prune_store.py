"""`mirrorfs prune VOLUME --store NAME`: pruning stores from a machine that is not the PC, and not led by it.

The volume is attached on this machine, under a policy of its own, and is not mounted there. Which objects go
is engine/store_pruner.py. Exit code 1: a person is to look into something; what was safe was done.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import trio

from mirrorfs.cli import volume_lock
from mirrorfs.cli.alarm import start_command
from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths, make_private_directory
from mirrorfs.cli.config_retention import policy_words
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.headless import unlocked_here
from mirrorfs.cli.key_events import Recording, recorded
from mirrorfs.cli.key_record import Change, What
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.restore import work_directory
from mirrorfs.cli.restore_report import date_of
from mirrorfs.cli.shown_times import counted
from mirrorfs.cli.stores import open_store
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.cli.warning_lines import warning_lines
from mirrorfs.core.retention import POLICY_DELAY_NS, Policy
from mirrorfs.core.sizes import format_size
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.process import harden_process
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.store_deletion import StorePruneReport
from mirrorfs.engine.store_pruner import StorePruner
from mirrorfs.errors import UsageError
from mirrorfs.format.slot import Role
from mirrorfs.ports import Store

SCHEMA: Final = 1
EXIT_ALARM: Final = 1
COMMAND: Final = "prune --store --confirm"
EVENT: Final = "prune-alarm"
CLOSE_S: Final = 2.0


def run(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: VolumePaths,
    config: VolumeConfig,
    policy: Policy,
) -> int:
    """Carry out `prune --store`. Raises: MirrorfsError."""
    stores = _stores(config, arguments.store)
    if not arguments.confirm or arguments.dry_run:
        report = _run(arguments, environment, paths, stores, policy)
    else:
        with recorded(paths, config.alarm, COMMAND) as recording:
            report = _run(arguments, environment, paths, stores, policy, recording)
    if report.alarms and not arguments.dry_run:
        _tell(paths, config, report)
    if arguments.json:
        print(json.dumps(_as_json(paths.name, report, dry_run=arguments.dry_run), indent=2))
    else:
        _print(report, dry_run=arguments.dry_run)
    return EXIT_ALARM if report.alarms else 0


def _run(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: VolumePaths,
    stores: Sequence[StoreConfig],
    policy: Policy,
    recording: Recording | None = None,
) -> StorePruneReport:
    """`recording`: where it is noted what was confirmed, if anything is. Raises: MirrorfsError."""
    harden_process()
    make_private_directory(paths.state, what="state")
    with ExitStack() as stack:
        stack.callback(os.close, volume_lock.acquire(paths))
        opened: list[Unlocked] = []
        session = unlocked_here(arguments, environment, paths, view="prune", on_unlocked=opened.append)
        stack.callback(session.wipe)
        (unlocked,) = opened
        if recording is not None:
            recording.opened(unlocked.header, unlocked.slot)
        if Role.PRUNER not in unlocked.slot.roles:
            raise UsageError(
                f"Slot {unlocked.slot.name} may not prune stores; use a token that was added with"
                " `mirrorfs key add --role pruner`."
            )
        if recording is not None:
            # Also that what the PC gave up is given up here, whether the policy changes or not.
            recording.did(Change(What.POLICY_CONFIRMED, policy_words(policy)))
        progress = Progress(sys.stderr)
        stack.callback(progress.end)
        stack.enter_context(warning_lines(progress))
        work = stack.enter_context(work_directory(environment))
        return trio.run(_prune, arguments, paths, stores, policy, unlocked, work, progress)


def _tell(paths: VolumePaths, config: VolumeConfig, report: StorePruneReport) -> None:
    """Have the command of [alarm] told what a person is to look into."""
    message: dict[str, Any] = {
        "volume": paths.name, "event": EVENT, "light": None, "previous": None,
        "reason": " ".join(map(one_line, report.alarms)), "time_ns": time.time_ns(), "stores": [],
    }  # fmt: skip
    if not start_command(config.alarm, message):
        print("mirrorfs: The alarm command could not be started.", file=sys.stderr)


def _stores(config: VolumeConfig, named: Sequence[str]) -> list[StoreConfig]:
    """Those that are meant, by name or URL. Raises: UsageError."""
    found = {}
    for text in named:
        for store in config.stores:
            if text in (store.name, store.url):
                found[store.name] = store
                break
        else:
            # A URL may hold what is not to be repeated.
            raise UsageError(
                "--store takes the name, or the URL, of a store in this machine's configuration of the"
                f" volume: {', '.join(store.name for store in config.stores)}."
            )
    return list(found.values())


async def _prune(
    arguments: argparse.Namespace,
    paths: VolumePaths,
    stores: Sequence[StoreConfig],
    policy: Policy,
    unlocked: Unlocked,
    work: Path,
    progress: Progress,
) -> StorePruneReport:
    count = 0

    def scratch() -> SqliteIndexFiles:
        nonlocal count
        count += 1
        path = str(work / f"index-{count}.db")
        # Nobody keeps the key: what a crash leaves of it cannot be read.
        return SqliteIndexFiles(path, secrets.token_bytes(32), digest_key=secrets.token_bytes(32))

    def show(what: str, done: int, total: int) -> None:
        note = f"{done} of {total}"
        progress.show([ProgressItem(what, done, total, note=note, shows_bytes=False)])

    async with _opened(stores, unlocked) as opened:
        pruner = StorePruner(
            opened, LocalDisk(paths.state), scratch, ThreadOffload(), SystemClock(), unlocked.keys,
            unlocked.header.public_keys, unlocked.key_set.pruner,
        )  # fmt: skip
        return await pruner.run(
            policy, confirmed=arguments.confirm, dry_run=arguments.dry_run, on_progress=show
        )


@asynccontextmanager
async def _opened(stores: Sequence[StoreConfig], unlocked: Unlocked) -> AsyncIterator[dict[bytes, Store]]:
    made: dict[bytes, Store] = {
        one.instance: GuardedStore(
            open_store(one.name, one.url),
            instance=one.instance,
            keys=unlocked.keys,
            public_key=unlocked.header.public_keys.writer,
            clock=SystemClock(),
        )
        for one in stores
    }
    try:
        yield made
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            for store in made.values():
                await store.aclose()


def _as_json(name: str, report: StorePruneReport, *, dry_run: bool) -> dict[str, Any]:
    fields = asdict(report)
    state = fields.pop("policy")
    return {
        "schema": SCHEMA,
        "volume": name,
        "dry_run": dry_run,
        "policy": state["in_force"],
        "waits": state["wanted"],
        "waits_since_ns": state["since_ns"],
        **fields,
    }


def _print(report: StorePruneReport, *, dry_run: bool) -> None:
    state, would = report.policy, "would be " if dry_run else ""
    if state.in_force is not None:
        print(f"Policy of this machine: {policy_words(state.in_force)}.")
    if state.wanted is not None:
        until = date_of(state.since_ns + POLICY_DELAY_NS)
        print(f"From {until} on: {policy_words(state.wanted)}. Until then what it drops stays.")
    if report.base_ns:
        older = counted(report.moments, "older moment")
        print(f"Kept: every moment since {date_of(report.base_ns)}, and {older}.")
    else:
        print("Nothing is deleted yet: this machine has not watched the volume for as long as it keeps all.")
    for name, count in report.deleted.items():
        size = format_size(report.deleted_bytes[name])
        print(f"Store {name}: {counted(count, 'object')} {would}deleted ({size}).")
    if report.finished:
        print(f"Of these a run that was cut short had begun: {report.finished}.")
    if report.waiting:
        print(f"Objects of no use whose time has not come: {report.waiting}.")
    for why, count in report.kept.items():
        print(f"Condemned by the PC, but staying: {counted(count, 'object')}: {why}.")
    for name, count in report.locked.items():
        print(f"Store {name}: {counted(count, 'object')} locked there; a later run deletes what is unlocked.")
    for name in report.denied:
        print(f"Store {name} does not let these credentials delete.")
    for sentence in report.alarms:
        print(f"mirrorfs: ALARM: {one_line(sentence)}", file=sys.stderr)
