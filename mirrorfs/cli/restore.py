"""`mirrorfs restore`: from the stores into a directory, without mount, FUSE, configuration or local state."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import trio

from mirrorfs.cli.key_events import note_code_used
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.restore_repair import StoreRepair
from mirrorfs.cli.restore_report import EXIT_FAILED, Duration, date_of, print_plan, print_report, say
from mirrorfs.cli.restore_state import LocalState, local_state
from mirrorfs.cli.restore_stores import (
    NamedStore,
    StoresFound,
    check_members,
    find_stores,
    name_stores,
    opened,
)
from mirrorfs.cli.restore_target import STREAM, Target, add_target_arguments
from mirrorfs.cli.restore_unlock import unlock_newest
from mirrorfs.cli.tokens import ANY_TOKEN, SecretSources, chosen_tokens, make_tokens
from mirrorfs.cli.unlock import Unlocked, unlock_header
from mirrorfs.cli.warning_lines import warning_lines
from mirrorfs.cli.when import parse_moment
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.process import harden_process
from mirrorfs.engine.restore import NEWEST, Moment, Restore, RestorePlan, RestoreReport
from mirrorfs.errors import UsageError
from mirrorfs.format.kdf import format_fingerprint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `restore`."""
    add_target_arguments(parser)
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="URL",
        help="file:///PATH or s3://BUCKET/PREFIX?endpoint=...; one is enough, two help each other",
    )
    parser.add_argument(
        "--from-state",
        metavar="VOLUME|DIRECTORY",
        help="as the local state of a volume, or one that was set aside, has it: with what was never sent",
    )
    parser.add_argument("--token", metavar="URI", help="the token; default: any")
    parser.add_argument("--module", metavar="PATH", help="the PKCS#11 module to use for the token")
    parser.add_argument(
        "--at",
        metavar="WHEN",
        help="as it was at 2026-03-01T14:05, 'yesterday 18:00', 18:00, 2h, position 17.203, or a snapshot",
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="GLOB",
        help="only what matches, as in 'docs/*.txt' or 'photos'; can be given several times",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="afterwards write what was met bad or missing in a store anew, if nobody has the volume mounted",
    )
    parser.add_argument(
        "--deep", action="store_true", help="with --repair: read and authenticate every byte of every store"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before restoring")
    parser.add_argument("--password-file", metavar="FILE", help="read the password from its first line")
    parser.add_argument("--pin-file", metavar="FILE", help="read the token's PIN from its first line")
    parser.add_argument("--code-file", metavar="FILE", help="read a recovery code from its first line")


def run_restore(arguments: argparse.Namespace) -> int:
    """`run` with the environment of this process."""
    return run(arguments, os.environ)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `restore`.

    Returns: 0; 1 when names could not be made; 4 when files lack bytes, or newer commits are left out, only
        because a store did not answer; 5 when no store has a good copy of them.
    Raises: MirrorfsError.
    """
    harden_process()
    started_s = time.monotonic()
    now_ns = time.time_ns()
    moment = NEWEST if arguments.at is None else parse_moment(arguments.at, now_ns=now_ns)
    if arguments.from_state is None:
        destination = None if arguments.dest == STREAM else arguments.dest
        stores = name_stores(arguments.store, destination=destination)
    progress = Progress(sys.stderr)
    target = Target(arguments, progress)
    if not arguments.yes and not arguments.dry_run and not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on; check the volume's fingerprint and use --yes.")
    if arguments.deep and not arguments.repair:
        raise UsageError("--deep says how closely --repair looks; give both, or neither.")
    sources = SecretSources(arguments.password_file, arguments.pin_file, environment, arguments.code_file)
    if arguments.from_state is not None:
        if arguments.at is not None:
            raise UsageError("--from-state restores the newest local state; leave out --at.")
        if arguments.repair:
            raise UsageError("--from-state leaves the stores alone; leave out --repair.")
        return _from_state(arguments, environment, sources, target, progress, started_s)
    found = trio.run(find_stores, stores)
    for sentence in found.unreachable:
        say(f"{sentence} Going on without it.")
    tokens = chosen_tokens(arguments.token, arguments.module, ANY_TOKEN)
    unlocked = unlock_newest(found, tokens, sources)
    for sentence in check_members(found.found, unlocked):
        say(sentence)
    note_code_used(unlocked.header, unlocked.slot, environment, "restore")
    command = _Command(arguments, environment, unlocked, [one.store for one in found.found], target, progress)
    return trio.run(command.run, moment, started_s, found if arguments.repair else None)


def _from_state(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    sources: SecretSources,
    target: Target,
    progress: Progress,
    started_s: float,
) -> int:
    tokens = make_tokens(chosen_tokens(arguments.token, arguments.module, ANY_TOKEN), sources)
    with local_state(arguments.from_state, environment) as state:
        unlocked = unlock_header(state.header(), name=state.name, tokens=tokens, sources=sources)
        # What was written here before a rotation elsewhere was heard of is exported, too.
        unlocked = replace(unlocked, keys=unlocked.keys.for_any_place())
        note_code_used(unlocked.header, unlocked.slot, environment, "restore")
        command = _Command(arguments, environment, unlocked, state.stores(arguments.store), target, progress)
        return trio.run(command.run_from_state, state, started_s)


class _Command:
    """One restore on its way."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        unlocked: Unlocked,
        stores: list[NamedStore],
        target: Target,
        progress: Progress,
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._unlocked = unlocked
        self._stores = stores
        self._target = target
        self._progress = progress
        out = target.messages
        print(f"Volume:      {unlocked.header.volume.hex()}", file=out)
        print(f"Fingerprint: {format_fingerprint(unlocked.keys.fingerprint)}", file=out)

    async def run(self, moment: Moment, started_s: float, to_repair: StoresFound | None) -> int:
        """Plan, ask, restore, report; and repair the stores, if they are given."""
        keys = self._unlocked.keys
        with work_directory(self._environment) as work, warning_lines(self._progress) as warnings:
            # The key of the temporary index is never stored: what a crash leaves of it nobody can read.
            files = SqliteIndexFiles(
                str(work / "index.db"), secrets.token_bytes(32), digest_key=secrets.token_bytes(32)
            )
            async with opened(self._stores) as stores:
                restore = Restore(
                    stores,
                    files,
                    ThreadOffload(),
                    keys,
                    self._unlocked.header.public_keys.writer,
                    on_replayed=self._show_replay,
                )
                try:
                    plan = await restore.plan(moment)
                    self._progress.end()
                    print_plan(plan, moment, self._target.messages, has_one_store=len(self._stores) == 1)
                    if (exit_code := await self._ended(restore, plan)) is not None:
                        return exit_code
                    execute_s = time.monotonic()
                    report = await self._target.execute(restore)
                finally:
                    restore.close()
                    files.remove()
        exit_code = self._report(
            report, plan, started_s, execute_s, warnings.count, repairs=to_repair is not None
        )
        if to_repair is not None:
            with work_directory(self._environment) as work:
                repair = StoreRepair(to_repair, self._unlocked, work, self._progress)
                await repair.run(report.bad_objects, plan, deep=self._arguments.deep)
        return exit_code

    async def run_from_state(self, state: LocalState, started_s: float) -> int:
        """The same of a local state, which is first brought in order like by a mount."""
        with warning_lines(self._progress) as warnings:
            async with opened(self._stores) as stores:
                writer_key = self._unlocked.header.public_keys.writer
                files = state.index_files(self._unlocked.keys)
                restore = Restore(stores, files, ThreadOffload(), self._unlocked.keys, writer_key)
                try:
                    plan = await state.recover(restore, files, self._unlocked, stores, self._show_replay)
                    self._progress.end()
                    print_plan(plan, NEWEST, self._target.messages, has_one_store=False)
                    if (exit_code := await self._ended(restore, plan)) is not None:
                        return exit_code
                    execute_s = time.monotonic()
                    report = await self._target.execute(restore)
                finally:
                    restore.close()
        return self._report(report, plan, started_s, execute_s, warnings.count)

    async def _ended(self, restore: Restore, plan: RestorePlan) -> int | None:
        """The exit code where nothing is to be restored."""
        target = self._target
        if target.is_rehearsal:
            return await target.rehearse(restore, plan)
        if self._arguments.yes or target.confirmed("Restore this? [y/N] "):
            return None
        print("Nothing was restored.", file=target.messages)
        return EXIT_FAILED

    def _report(
        self,
        report: RestoreReport,
        plan: RestorePlan,
        started_s: float,
        execute_s: float,
        warnings: int,
        *,
        repairs: bool = False,
    ) -> int:
        now_s = time.monotonic()
        duration = Duration(now_s - started_s, now_s - execute_s)
        globs = bool(self._arguments.path)
        return print_report(
            report, plan, self._target.messages, globs=globs, duration=duration, warnings=warnings,
            repairs=repairs,
        )  # fmt: skip

    def _show_replay(self, sequence: int, time_ns: int) -> None:
        self._progress.show([ProgressItem("log", 0, 0, note=f"segment {sequence} of {date_of(time_ns)}")])


@contextmanager
def work_directory(environment: Mapping[str, str]) -> Iterator[Path]:
    """A private directory, removed in the end."""
    # Not /tmp by default: that is often memory, and the index of a large volume is large.
    base = environment.get("TMPDIR") or "/var/tmp"  # noqa: S108  # a private directory is made in it
    if not os.access(base, os.W_OK | os.X_OK):
        base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="mirrorfs-restore-", dir=base) as path:
        yield Path(path)


def confirmed(question: str) -> bool:
    """Whether a person says yes."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
