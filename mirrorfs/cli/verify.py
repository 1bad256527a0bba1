"""`mirrorfs verify` and `mirrorfs repair`: what is bad in which place, and mending it.

A mounted volume is asked over its control socket; of one that is not mounted the engine runs here, without a
mount, which needs the secrets. Report: docs/verify-json.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final

import trio

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.control_protocol import ControlClient, Message, NotMounted
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.headless import add_unlock_arguments, run_headless
from mirrorfs.cli.progress import Progress, ProgressItem
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.scrubbing import scrub
from mirrorfs.engine.scrub import LOCAL
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import UsageError

SCHEMA: Final = 1
EXIT_UNAVAILABLE: Final = 4
EXIT_DAMAGED: Final = 5


def add_arguments(parser: argparse.ArgumentParser, *, mends: bool) -> None:
    """The options of `verify`, or those of `repair`."""
    parser.add_argument("target", metavar="VOLUME|MOUNTPOINT")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--deep", action="store_true", help="read and authenticate every byte")
    if not mends:
        depth.add_argument(
            "--sample", metavar="PERCENT", help="read so much of all objects, other ones each time (5%%)"
        )
    parser.add_argument(
        "--store", action="append", metavar="NAME", help="only this store; can be given several times"
    )
    parser.add_argument("--restart", action="store_true", help="do not go on with one that was broken off")
    parser.add_argument("--json", action="store_true", help="machine-readable, as docs/verify-json.md says")
    add_unlock_arguments(parser)
    parser.set_defaults(mends=mends, sample=None)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `verify` or `repair`.

    Returns: 0; 5: there is damage, or some that could not be mended; 4: a store could not be looked at, or
        has not taken yet what is sent to it again.
    Raises: MirrorfsError.
    """
    paths = resolve(arguments.target, environment)
    if paths.view:
        raise UsageError("A read-only view cannot be verified; name the volume itself.")
    request: Message = {
        "share": 1.0 if arguments.deep else _share(arguments.sample),
        "mend": arguments.mends,
        "restart": arguments.restart,
        "places": arguments.store,
    }
    account = _Account(paths, arguments)
    try:
        client = ControlClient(paths.socket, volume=paths.name)
    except NotMounted:
        _run_here(arguments, environment, paths, request, account)
    else:
        with client:
            client.send("scrub", **request)
            for message in client.answers():
                account.take(message)
    return account.end()


def _share(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise UsageError("--sample takes a percentage, such as 5%.")
    # All of it as a sample is still no deep scrub, which remembers where it was.
    return min(percent / 100, 0.999999)


def _run_here(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: VolumePaths,
    request: Message,
    account: _Account,
) -> None:
    # What goes wrong with copies is what the account says.
    logging.getLogger("mirrorfs").setLevel(logging.CRITICAL)

    async def say(message: Message) -> None:
        account.take(message)
        await trio.lowlevel.checkpoint()

    async def work(volume: MountedVolume) -> None:
        account.take({**await scrub(volume, request, say), "type": "done"})

    run_headless(arguments, environment, paths, work)


class _Account:
    """What came in so far, shown as it comes."""

    def __init__(self, paths: VolumePaths, arguments: argparse.Namespace) -> None:
        self._name = paths.name
        self._arguments = arguments
        self._progress = Progress(sys.stderr)
        self._bad: dict[tuple[str, str], dict[str, Any]] = {}
        self._places: list[dict[str, Any]] = []
        self._resumed = False
        self._ended = False

    def take(self, message: Message) -> None:
        """Take one message of a scrub (cli/scrubbing.py)."""
        kind = message.get("type")
        if kind == "progress":
            self._show(message)
        elif kind == "bad":
            key = str(message["place"]), str(message["key"])
            self._bad[key] = {**message, "mended": None, "why": None, "on_its_way": False}
            self._say(f"{_place(key[0])}: {key[1]} is {message['fault']}: {message['detail']}")
        elif kind == "mended":
            entry = self._bad[str(message["place"]), str(message["key"])]
            # A mount of an earlier version does not say whether it is on its way.
            on_its_way = message.get("on_its_way") is True
            entry |= {"mended": message["why"] is None, "why": message["why"], "on_its_way": on_its_way}
            if message["why"] is not None:
                how = "on its way" if on_its_way else "not mended"
                self._say(f"{_place(entry['place'])}: {entry['key']} is {how}: {message['why']}")
        elif kind == "done":
            places = message["places"]
            assert isinstance(places, list)
            self._places, self._resumed, self._ended = places, message["resumed"] is True, True

    def _show(self, message: Message) -> None:
        done, total = message["done"], message["total"]
        assert isinstance(done, int) and isinstance(total, int)
        name = "all places" if message["place"] is None else str(message["place"])
        note = f"{done} of {total} objects" if total else f"{done} objects"
        note += f" {message.get('phase', 'looked at')}"
        item = ProgressItem(name, done, total, note=note, shows_bytes=False, has_total=total > 0)
        self._progress.show([item])

    def _say(self, sentence: str) -> None:
        self._progress.end()
        if not self._arguments.json:
            print(one_line(sentence))

    def end(self) -> int:
        """Show the report and return the exit code."""
        self._progress.end()
        assert self._ended
        if self._arguments.json:
            print(json.dumps(self._as_json(), indent=2))
        else:
            self._print()
        if any(not bad["mended"] and not bad["on_its_way"] for bad in self._bad.values()):
            return EXIT_DAMAGED
        is_left = any(bad["on_its_way"] for bad in self._bad.values())
        return EXIT_UNAVAILABLE if is_left or any(place["unreachable"] for place in self._places) else 0

    def _as_json(self) -> dict[str, Any]:
        names = ("place", "key", "fault", "detail", "mended", "why", "on_its_way")
        return {
            "schema": SCHEMA,
            "volume": self._name,
            "deep": self._arguments.deep,
            "resumed": self._resumed,
            "places": self._places,
            "bad": [{name: bad[name] for name in names} for bad in self._bad.values()],
        }

    def _print(self) -> None:
        for place in self._places:
            bad = sum(1 for where, _ in self._bad if where == place["place"])
            parts = [f"{place['listed']} objects", f"{place['read']} read in full"]
            if place["pending"]:
                parts.append(f"{place['pending']} still to be sent")
            if place["pruned"]:
                parts.append(f"{place['pruned']} deleted by the machine that prunes")
            parts.append(f"{bad} bad" if bad else "all good")
            if place["unreachable"]:
                parts[-1] = f"not to the end: {place['unreachable']}"
            print(one_line(f"{_place(place['place'])}: {', '.join(parts)}"))
        if self._arguments.mends:
            mended = sum(1 for bad in self._bad.values() if bad["mended"])
            on_way = sum(1 for bad in self._bad.values() if bad["on_its_way"])
            way = f", {on_way} on its way; `mirrorfs status` shows when the store has it" if on_way else ""
            print(f"{mended} of {len(self._bad)} bad copies mended{way}.")
        elif self._bad:
            print(f"`mirrorfs repair {self._name}` mends what has a good copy elsewhere.")


def _place(name: str) -> str:
    return "The local disk" if name == LOCAL else f"Store {name}"
