"""`mirrorfs drill`: restore from one store alone to nowhere, compare, and sign a report; or show reports.

The process that serves a mounted volume has the keys, and is asked (cli/drill_requests.py). One that is not
mounted is unlocked here; like a read-only mount a drill takes no lease, and it writes nothing but its report.
Restored contents are digested in memory; the indexes of the two sides lie in a temporary directory, encrypted
under a key that nobody keeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from mirrorfs.cli.config import StoreConfig, VolumePaths, load_config, make_private_directory
from mirrorfs.cli.drill_list import list_reports
from mirrorfs.cli.drill_mounted import drill_mounted
from mirrorfs.cli.drill_record import DrillRecord
from mirrorfs.cli.drill_report import as_json, as_text
from mirrorfs.cli.drill_sample import choice
from mirrorfs.cli.drill_session import Drilled, DrillSession
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.headless import add_unlock_arguments, unlocked_here
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.restore import work_directory
from mirrorfs.cli.restore_report import EXIT_DAMAGED, EXIT_UNAVAILABLE, say
from mirrorfs.cli.warning_lines import warning_lines
from mirrorfs.drivers.process import harden_process
from mirrorfs.errors import AuthenticationError, StoreError, UsageError
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.drill import DrillReport, check_drill_report, volume_of_report
from mirrorfs.format.slot import Role

SCHEMA: Final = 1
PATHS_SHOWN_MAX: Final = 50
KEY_SIZE_BYTES: Final = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `drill`."""
    parser.usage = "%(prog)s VOLUME [options]\n       %(prog)s [VOLUME] --check FILE [--key HEX] [--json]"
    parser.usage += "\n       %(prog)s VOLUME --list [--store NAME] [--json]"
    parser.add_argument("volume", metavar="VOLUME", nargs="?")
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="NAME",
        help="only this store; can be given several times. Default: each store in turn, alone",
    )
    parser.add_argument(
        "--sample",
        metavar="N%|N",
        help="restore the contents of so many files only, others each time; names are always all compared",
    )
    parser.add_argument("--to", metavar="DIRECTORY", help="put the report, its text and its JSON there, too")
    parser.add_argument("--json", action="store_true", help="machine-readable, as docs/drill-json.md says")
    parser.add_argument(
        "--list", action="store_true", help="show the reports kept here, which needs no password or token"
    )
    parser.add_argument("--check", metavar="FILE", help="check a report, which needs no password or token")
    parser.add_argument(
        "--key", metavar="HEX", help="with --check: the drill key that it must be signed with, 64 digits"
    )
    add_unlock_arguments(parser)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `drill`.

    Returns: 0: every drill passed, or the report is genuine; 5: a store failed; 4: one could not be tried.
    Raises: MirrorfsError: nothing could be tried; AuthenticationError: the report is not genuine.
    """
    if arguments.list and arguments.check is not None:
        raise UsageError("--list shows all reports and --check one file: give one of them.")
    if arguments.check is not None:
        return _check(arguments, environment)
    if arguments.volume is None:
        raise UsageError("Say which volume: its name or mountpoint; or --check FILE for a report.")
    if arguments.key is not None:
        raise UsageError("--key belongs to --check.")
    paths = resolve(arguments.volume, environment)
    if paths.view:
        raise UsageError("A drill is on a volume, not on a read-only view of it; name the volume itself.")
    if arguments.list:
        return list_reports(paths, arguments.store, is_json=arguments.json)
    choose = choice(arguments.sample)
    target = _directory(arguments.to)
    stores = _stores(paths, arguments.store)
    harden_process()
    account = _Account(paths, target, arguments)
    if drill_mounted(paths, stores, arguments.sample, account.take):
        return account.end()
    make_private_directory(paths.state, what="state")
    unlocked = unlocked_here(arguments, environment, paths, view="drill")
    try:
        if Role.DRILL not in unlocked.key_set.roles():
            raise UsageError("The slot of this token may sign no drill report; use a token that may write.")
        progress = Progress(sys.stderr)

        def show(item: ProgressItem) -> None:
            if sys.stderr.isatty():
                progress.show([item])

        session = DrillSession(
            unlocked, paths, load_config(paths), choose, on_progress=show, on_end=progress.end
        )
        with warning_lines(progress):
            for store in stores:
                with work_directory(environment) as work:
                    account.take(store, partial(trio.run, session.drill, store, work))
        return account.end()
    finally:
        unlocked.wipe()


def _stores(paths: VolumePaths, names: list[str]) -> list[StoreConfig]:
    config = load_config(paths)
    known = {store.name: store for store in config.stores}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"Volume {paths.name} has no store of that name; there are: {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(names)] or list(config.stores)


def _directory(text: str | None) -> Path | None:
    if text is not None and not Path(text).is_dir():
        raise UsageError("The directory of --to is not there; make it, or name another one.")
    return None if text is None else Path(text)


class _Account:
    """What came of the drills, shown as they end."""

    def __init__(self, paths: VolumePaths, target: Path | None, arguments: argparse.Namespace) -> None:
        self._name = paths.name
        self._volume = load_config(paths).volume
        self._target = target
        self._json = arguments.json
        self._is_named = bool(arguments.store)
        self._drills: list[dict[str, Any]] = []
        self._failed = False
        self._untried = False

    def take(self, store: StoreConfig, drill: Callable[[], Drilled]) -> None:
        """Have one drill carried out; a store that cannot be tried does not stop the others."""
        try:
            drilled = drill()
        except StoreError as exc:
            # A disk that rotates is expected to be away, unless it was asked for.
            if self._is_named or not store.rotating:
                self._untried = True
            self._drills.append({"store": store.name, "error": str(exc), "report": None, "file": None})
            say(f"Store {store.name} was not tried: {exc}")
            return
        report, volume, key = drilled.report, self._volume, drilled.key
        self._failed = self._failed or not report.passed
        fields = as_json(report, volume=volume, key=key)
        self._drills.append({"store": store.name, "error": None, "report": fields, "file": str(drilled.file)})
        text = as_text(report, volume=volume, name=self._name, key=key)
        if self._target is not None:
            _write(self._target, self._name, drilled, text, fields)
        if drilled.damage is not None:
            say(f"Store {store.name}: {drilled.damage}")
        if not self._json:
            print(text)
            print(f"The signed report: {drilled.file}", flush=True)
        # Names of files go to a person at a terminal and nowhere else: in a unit this is the journal.
        if drilled.paths and sys.stderr.isatty():
            print("What is wrong with it, shown here only:", file=sys.stderr)
            for path in drilled.paths[:PATHS_SHOWN_MAX]:
                print(f"  {one_line(path)}", file=sys.stderr)

    def end(self) -> int:
        """Show what is to be shown at the end, and return the exit code."""
        if self._json:
            shown = {"schema": SCHEMA, "volume": self._name, "drills": self._drills}
            print(json.dumps(shown, indent=2))
        if self._failed:
            return EXIT_DAMAGED
        return EXIT_UNAVAILABLE if self._untried else 0


def _write(target: Path, name: str, drilled: Drilled, text: str, fields: dict[str, Any]) -> None:
    stem = f"drill-{name}-{drilled.report.store}-{drilled.stamp}"
    document = json.dumps({"schema": SCHEMA, **fields}, indent=2)
    contents = {"report": drilled.data, "txt": text.encode(), "json": document.encode()}
    try:
        for ending, data in contents.items():
            with open(target / f"{stem}.{ending}", "xb") as file:
                file.write(data)
    except OSError as exc:
        raise UsageError(
            f"The report was kept, but cannot be written to the directory of --to: {exc.strerror}."
        ) from exc


# --- checking a report -----------------------------------------------------------------------


def _check(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    try:
        with open(arguments.check, "rb") as file:
            data = file.read(DOCUMENT_SIZE_MAX + 1)
    except OSError as exc:
        raise UsageError(f"The report cannot be read: {exc.strerror}.") from exc
    keys, volume, name = [_key(arguments.key)] if arguments.key is not None else [], None, ""
    if arguments.volume is not None:
        paths = resolve(arguments.volume, environment)
        name, volume = paths.name, load_config(paths).volume
        keys = keys or DrillRecord(paths, volume=volume).drill_keys()
    if not keys:
        raise UsageError(
            "Say with which key the report must be signed: --key, or the name of a volume that is used here."
        )
    report, key = _verified(data, volume or volume_of_report(data), keys)
    volume = volume or volume_of_report(data)
    if arguments.json:
        fields = as_json(report, volume=volume, key=key)
        print(json.dumps({"schema": SCHEMA, "genuine": True, **fields}, indent=2))
    else:
        print(as_text(report, volume=volume, name=name, key=key))
        print("The report is genuine: the drill key that is shown above signed it.")
        if key != keys[0]:
            say("It was signed before the volume's keys were rotated: who had the old ones could sign it.")
    return 0


def _verified(data: bytes, volume: bytes, keys: list[bytes]) -> tuple[DrillReport, bytes]:
    for key in keys:
        try:
            return check_drill_report(data, volume=volume, public_key=key), key
        except AuthenticationError:
            continue
    raise AuthenticationError(
        "The report is not genuine: it was changed, or signed with another key than this volume's; believe"
        " nothing in it."
    )


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE_BYTES:
        raise UsageError("--key takes the 64 hexadecimal digits of a drill key, as reports show it.")
    return key
