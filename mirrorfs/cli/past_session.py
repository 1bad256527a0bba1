"""What the commands that look back share: unlocking, the stores, and an index of a moment, thrown away after.

A volume of this machine is looked at with its local state, mounted or not; stores alone are looked at as
`restore` does. Nothing is changed anywhere. What is asked for goes to standard output, all else to standard
error: progress on a terminal only.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from mirrorfs.cli.config import load_config, make_private_directory
from mirrorfs.cli.headless import unlocked_here
from mirrorfs.cli.key_events import note_code_used
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.restore import work_directory
from mirrorfs.cli.restore_report import EXIT_DAMAGED, EXIT_UNAVAILABLE, date_of, gap_of, say
from mirrorfs.cli.restore_stores import check_members, find_stores, name_stores
from mirrorfs.cli.restore_unlock import unlock_newest
from mirrorfs.cli.stores import ONCE, open_store
from mirrorfs.cli.tokens import ANY_TOKEN, SecretSources, chosen_tokens
from mirrorfs.cli.warning_lines import warning_lines
from mirrorfs.cli.when import parse_moment
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.process import harden_process
from mirrorfs.engine.bursts import KnownBurst, read_bursts
from mirrorfs.engine.local import World
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.past import index_at
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.engine.retry import RetryingStore
from mirrorfs.errors import FormatError, UsageError
from mirrorfs.format.header import verify_header
from mirrorfs.format.ids import format_position
from mirrorfs.format.kdf import VolumeKeys, format_fingerprint
from mirrorfs.format.rows import MomentRow
from mirrorfs.ports import Index

STORE_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The index of a volume at a moment."""

    index: Index
    plan: RestorePlan
    planner: Planner


class Past:
    """A volume that was unlocked, to be looked at."""

    def __init__(
        self, name: str, keys: VolumeKeys, writer_key: bytes, stores: Sequence[RetryingStore],
        state: Path | None, work: Path, progress: Progress,
    ) -> None:  # fmt: skip
        """
        Args:
            name: of the volume; its UUID where it has none here.
            state: directory of the local state; None: only the stores count.
            work: a private directory for indexes.
        """
        self.name = name
        self.keys = keys
        self.writer_key = writer_key
        self.stores = stores
        self._state = state
        self._work = work
        self._progress = progress
        self._count = 0

    @property
    def world(self) -> World:
        """Of a reader of files."""
        # Without a local state an empty directory stands in for it.
        root = self._work if self._state is None else self._state
        return World(LocalDisk(root), SystemClock(), secrets.token_bytes, ThreadOffload())

    @asynccontextmanager
    async def at(self, moment: Moment, *, needs_all: bool = True) -> AsyncIterator[Opened]:
        """The volume as it was. Raises: as `index_at`."""
        self._count += 1
        # The key is never stored: what a crash leaves of such an index nobody can read.
        files = SqliteIndexFiles(
            str(self._work / f"index-{self._count}.db"),
            secrets.token_bytes(32),
            digest_key=secrets.token_bytes(32),
        )
        world = self.world
        planner = Planner(
            self.stores, files, world.offload, self.keys, self.writer_key,
            on_progress=self._show_replay, on_loaded=self._show_loaded,
            disk=None if self._state is None else world.disk,
        )  # fmt: skip
        try:
            index, plan = await index_at(planner, moment, needs_all=needs_all)
            self._progress.end()
            self._say_of(plan, moment)
            try:
                yield Opened(index, plan, planner)
            finally:
                index.close()
        finally:
            self._progress.end()
            files.remove()

    def bursts(self) -> list[KnownBurst]:
        """What the ransomware sense of this machine found, the oldest first; stores do not know of it."""
        if self._state is None:
            return []
        try:
            return read_bursts(self.world.disk)
        except FormatError as exc:
            say(f"{exc} None is marked here.")
            return []

    def show(self, name: str, done: int, total: int, what: str) -> None:
        """How far something is, for a person at a terminal."""
        if sys.stderr.isatty():
            note = f"{done} of {total} {what}"
            self._progress.show([ProgressItem(name, done, total, note=note, shows_bytes=False)])

    def show_count(self, name: str, count: int) -> None:
        """The same where it is not known how much there is."""
        if sys.stderr.isatty():
            self._progress.show([ProgressItem(name, 0, 0, note=f"{count} names", shows_bytes=False)])

    def end_progress(self) -> None:
        """Leave the terminal to what is said next."""
        self._progress.end()

    def _show_replay(self, sequence: int, time_ns: int) -> None:
        if sys.stderr.isatty():
            self._progress.show([ProgressItem("log", 0, 0, note=f"segment {sequence} of {date_of(time_ns)}")])

    def _show_loaded(self, done: int, total: int) -> None:
        self.show("index", done, total, "pieces")

    def _say_of(self, plan: RestorePlan, moment: Moment) -> None:
        if (gap := gap_of(plan)) is not None:
            say(gap)
        if plan.damage is not None:
            say(f"There are newer commits that cannot be read: {plan.damage}.")
        if moment == NEWEST and self._state is None and len(self.stores) == 1:
            say("A single store cannot prove that nothing newer exists: compare the date with what you know.")


def exit_code_of(plan: RestorePlan) -> int:
    """Of a command that showed what there is, where that may not be all."""
    if plan.damage is None:
        return 0
    return EXIT_UNAVAILABLE if plan.unreached else EXIT_DAMAGED


def kept_as_json(rows: Sequence[MomentRow]) -> list[dict[str, Any]]:
    """Moments that are kept by themselves, for --json."""
    return [{"position": format_position(row.position), "time_ns": row.time_ns} for row in rows]


# --- arguments -------------------------------------------------------------------------------


def add_past_arguments(parser: argparse.ArgumentParser, operands: str) -> None:
    """The arguments that all of these commands have; `operands` is what the usage shows after VOLUME."""
    shown = f" {operands}" if operands else ""
    parser.usage = f"%(prog)s (VOLUME | --store URL ...){shown} [options]"
    parser.add_argument(
        "operands", nargs="*", metavar=f"VOLUME{shown}", help="VOLUME is left out where --store is given"
    )
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="URL",
        help="look at stores alone, as `restore` does; can be given several times",
    )
    parser.add_argument("--token", metavar="URI", help="the token; default: the configured ones, or any")
    parser.add_argument("--module", metavar="PATH", help="the PKCS#11 module to use for the token")
    parser.add_argument("--password-file", metavar="FILE", help="read the password from its first line")
    parser.add_argument("--pin-file", metavar="FILE", help="read the token's PIN from its first line")
    parser.add_argument(
        "--code-file", metavar="FILE", help="with --store: read a recovery code from its first line"
    )


WHEN_HELP: Final = (
    "2026-03-01, '2026-03-01 14:05', 'yesterday 18:00', 18:00, '3 days ago', position 17.203, or a snapshot"
)


def moment_of(text: str | None) -> Moment:
    """What an option with a WHEN means; without one the newest state. Raises: UsageError."""
    return NEWEST if text is None else parse_moment(text, now_ns=time.time_ns())


def operands_of(arguments: argparse.Namespace, *, least: int, most: int) -> list[str]:
    """What follows VOLUME. Raises: UsageError: too few or too many."""
    given: list[str] = arguments.operands
    rest = given if arguments.store else given[1:]
    if not arguments.store and not given:
        raise UsageError("Say which volume: its name, or --store URL for one that is not configured here.")
    if not least <= len(rest) <= most:
        what = "few" if len(rest) < least else "many"
        raise UsageError(f"There are too {what} arguments; see `mirrorfs {arguments.command} --help`.")
    return rest


# --- running ---------------------------------------------------------------------------------


def look_back(
    arguments: argparse.Namespace, environment: Mapping[str, str], work: Callable[[Past], Awaitable[int]]
) -> int:
    """Unlock the volume, do the work, and leave nothing behind. Returns what the work returns.

    Raises: MirrorfsError: as of `mount --read-only` or `restore`, or what the work raises.
    """
    harden_process()
    if arguments.store:
        return _from_stores(arguments, environment, work)
    return _from_state(arguments, environment, work)


def _from_stores(
    arguments: argparse.Namespace, environment: Mapping[str, str], work: Callable[[Past], Awaitable[int]]
) -> int:
    stores = name_stores(arguments.store)
    sources = SecretSources(arguments.password_file, arguments.pin_file, environment, arguments.code_file)
    found = trio.run(find_stores, stores)
    for sentence in found.unreachable:
        say(f"{sentence} Going on without it.")
    unlocked = unlock_newest(found, chosen_tokens(arguments.token, arguments.module, ANY_TOKEN), sources)
    for sentence in check_members(found.found, unlocked):
        say(sentence)
    note_code_used(unlocked.header, unlocked.slot, environment, arguments.command)
    name = unlocked.header.volume.hex()
    say(f"Volume {name}, fingerprint {format_fingerprint(unlocked.keys.fingerprint)}.")
    writer_key = unlocked.header.public_keys.writer
    opened = [open_store(one.store.name, one.store.url) for one in found.found]
    return _run(environment, name, unlocked.keys, writer_key, opened, None, work)


def _from_state(
    arguments: argparse.Namespace, environment: Mapping[str, str], work: Callable[[Past], Awaitable[int]]
) -> int:
    if arguments.code_file is not None:
        raise UsageError("A recovery code is for stores alone: name them with --store.")
    paths = resolve(arguments.operands[0], environment)
    make_private_directory(paths.state, what="state")
    # Like a read-only mount, it takes no lease and may stand beside a writable one.
    session = unlocked_here(arguments, environment, paths, view="past")
    try:
        header, keys = verify_header(session.header, session.key_set)
        opened = [open_store(store.name, store.url, policy=ONCE) for store in load_config(paths).stores]
        writer_key = header.public_keys.writer
        return _run(environment, paths.name, keys, writer_key, opened, paths.state, work)
    finally:
        session.wipe()


def _run(
    environment: Mapping[str, str],
    name: str,
    keys: VolumeKeys,
    writer_key: bytes,
    stores: Sequence[RetryingStore],
    state: Path | None,
    work: Callable[[Past], Awaitable[int]],
) -> int:
    progress = Progress(sys.stderr)

    async def run(directory: Path) -> int:
        try:
            return await work(Past(name, keys, writer_key, stores, state, directory, progress))
        finally:
            with trio.move_on_after(STORE_CLOSE_S, shield=True):
                for store in stores:
                    await store.aclose()

    with work_directory(environment) as directory, warning_lines(progress):
        return trio.run(run, directory)
