"""`mirrorfs prune`: do without what the retention policy does not keep, now; or say what that would be.

A mounted volume is asked over its control socket; of one that is not mounted the engine runs here, without a
mount, which needs the secrets. Report: docs/history-json.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import trio

from mirrorfs.cli import prune_store
from mirrorfs.cli.config import VolumePaths, load_config
from mirrorfs.cli.config_retention import policy_words
from mirrorfs.cli.control_protocol import STALL_S, ControlClient, Message, NotMounted
from mirrorfs.cli.headless import add_unlock_arguments, run_headless
from mirrorfs.cli.key_events import Recording, recorded
from mirrorfs.cli.key_record import Change, What
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.pruning import NO_POLICY, prune
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.restore_report import date_of
from mirrorfs.cli.shown_times import counted
from mirrorfs.cli.store_session import note_events
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.cli.waiting import Patience, watched
from mirrorfs.core.retention import POLICY_DELAY_NS, Policy
from mirrorfs.core.sizes import format_size
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, StoreUnavailable, UsageError

SCHEMA: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `prune`."""
    parser.add_argument("target", metavar="VOLUME|MOUNTPOINT")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go, and what it frees")
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="NAME|URL",
        help="delete from this store, on a machine that is not the PC; by this machine's own policy",
    )
    parser.add_argument(
        "--confirm",
        action="store_true",
        help="a policy that keeps less than before counts at once; of a volume that is not mounted",
    )
    parser.add_argument("--json", action="store_true", help="for programs: docs/history-json.md")
    add_unlock_arguments(parser)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `prune`. Raises: MirrorfsError."""
    paths = resolve(arguments.target, environment)
    if paths.view:
        raise UsageError("A read-only view cannot be pruned; name the volume itself.")
    config = load_config(paths)
    if config.retention is None:
        raise UsageError(NO_POLICY)
    if arguments.store:
        return prune_store.run(arguments, environment, paths, config, config.retention)
    shown = _Shown(paths, arguments)
    request: Message = {"dry_run": arguments.dry_run, "configured": asdict(config.retention)}
    try:
        client = ControlClient(paths.socket, volume=paths.name)
    except NotMounted:
        if not arguments.confirm or arguments.dry_run:
            _run_here(arguments, environment, paths, request, shown)
            return shown.end()
        with recorded(paths, config.alarm, "prune --confirm", heard=lambda: note_events(paths)) as recording:
            _run_here(arguments, environment, paths, request, shown, recording)
    else:
        with client:
            if arguments.confirm:
                raise UsageError("--confirm takes password and token: unmount the volume first.")
            client.send("prune", **request)
            for message in client.answers():
                shown.take(message)
    return shown.end()


def _run_here(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: VolumePaths,
    request: Message,
    shown: _Shown,
    recording: Recording | None = None,
) -> None:
    """`recording`: where it is noted that a policy was confirmed, if one is to be."""

    def opened(unlocked: Unlocked) -> None:
        if recording is not None:
            recording.opened(unlocked.header, unlocked.slot)

    async def say(message: Message) -> None:
        shown.take(message)
        await trio.lowlevel.checkpoint()

    async def work(volume: MountedVolume) -> None:
        if not arguments.dry_run:
            await _wait_for_stores(volume)
        daily = volume.daily_prune
        if recording is not None and daily.next_policy() != daily.next_policy(confirmed=True):
            confirmed = daily.policy(confirmed=True).in_force
            assert confirmed is not None
            recording.did(Change(What.POLICY_CONFIRMED, policy_words(confirmed)))
        done = await prune(volume, request, say, confirmed=arguments.confirm)
        shown.take({**done, "type": "done"})

    run_headless(arguments, environment, paths, work, on_unlocked=opened)


async def _wait_for_stores(volume: MountedVolume) -> None:
    """Nothing is deleted while a store lacks something. Raises: StoreUnavailable."""
    patience = Patience(stall_s=STALL_S)
    left = await watched(volume.flush, patience=patience, publish=lambda status: None)
    if left is not None:
        raise StoreUnavailable(f"Nothing is pruned while a store lacks something: {left}.")


class _Shown:
    """What came in so far, shown as it comes."""

    def __init__(self, paths: VolumePaths, arguments: argparse.Namespace) -> None:
        self._name = paths.name
        self._arguments = arguments
        self._progress = Progress(sys.stderr)
        self.last: dict[str, Any] = {}

    def take(self, message: Message) -> None:
        """Take one message (cli/pruning.py)."""
        if message.get("type") == "done":
            self.last = dict(message)
        elif message.get("type") == "progress":
            done, total = message["done"], message["total"]
            assert isinstance(done, int) and isinstance(total, int)
            what = str(message["what"])
            note = f"{done} of {total}"
            self._progress.show([ProgressItem(what, done, total, note=note, shows_bytes=False)])

    def end(self) -> int:
        """Show the account. Raises: MirrorfsError: it did not come to its end."""
        self._progress.end()
        if not self.last:
            raise MirrorfsError("A signal came first; what was done is kept, and the next run goes on.")
        if self._arguments.json:
            fields = {name: value for name, value in self.last.items() if name != "type"}
            print(json.dumps({"schema": SCHEMA, "volume": self._name, **fields}, indent=2))
        else:
            self._print()
        return 0

    def _print(self) -> None:
        last, report = self.last, self.last["report"]
        policy = policy_words(Policy(**last["policy"]))
        until = date_of(last["waits_since_ns"] + POLICY_DELAY_NS)
        if last["waits"] is None:
            print(f"Policy: {policy}.")
        elif last["in_force"]:
            print(f"Policy: {policy}; from {until} on: {policy_words(Policy(**last['waits']))}.")
        else:
            print(f"Policy: everything is kept until {until}, and then: {policy}. It would do this now:")
        would = "would be " if last["dry_run"] else ""
        since = f"since {date_of(report['base_ns'])}" if report["base_ns"] else "there ever was"
        print(f"Kept: every moment {since}, and {counted(len(report['moments']), 'older moment')}.")
        if report["made"]:
            print(f"Moments that {would or 'were '}given a checkpoint of their own: {report['made']}.")
        print(f"Moments that {would or 'were '}dropped: {report['dropped']}.")
        freed = report["collected_bytes"] - report["copied_bytes"]
        print(
            f"Segments that {would or 'were '}done without: {report['collected']}, which frees"
            f" {format_size(max(freed, 0))} in each store."
        )
        if report["merged_bytes"]:
            print(
                f"Files in very many pieces, written anew: {format_size(report['merged_bytes'])}, in"
                f" {counted(report['merged_extents'], 'piece')} less."
            )
        if report["condemned"]:
            print(f"Segments that wait for their deletion: {report['condemned']}.")
        if report["deleted"]:
            print(f"Objects deleted in every store: {report['deleted']}.")
        for store in report["left"]:
            print(f"Store {store} is append-only: what is not needed waits for the machine that prunes it.")
        for store in report["denied"]:
            print(f"Store {store} does not let this PC delete: what is not needed stays there.")
