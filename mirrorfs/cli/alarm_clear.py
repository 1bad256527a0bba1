"""`mirrorfs alarm clear`: a person looked at files that look encrypted, or at a store that went back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.shown_times import local_time
from mirrorfs.cli.waiting_client import Waiting
from mirrorfs.format.ids import format_position


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `alarm`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    clear = commands.add_parser(
        "clear",
        help="end the alarm of files that look encrypted (history is not pinned any more), or of a store",
    )
    clear.add_argument("target", metavar="VOLUME|MOUNTPOINT")
    clear.add_argument("--store", metavar="NAME", help="that this store went back, and no other alarm")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `alarm`. Raises: MirrorfsError."""
    paths = resolve(arguments.target, environment)
    if arguments.store is not None:
        return _clear_store(paths, arguments.store)
    with ControlClient(paths.socket, volume=paths.name) as client:
        client.send("clear_alarm")
        burst = Waiting().follow(client)["burst"]
    if not isinstance(burst, dict):
        print(f"Volume {paths.name} has no such alarm; nothing was changed.")
        return 0
    position = format_position(burst["clean_position"])
    clean = local_time(burst["clean_ns"], now_ns=time.time_ns())
    print(
        f"The alarm of volume {paths.name} is cleared. {burst['files']} files had been replaced; the last"
        f" clean moment, {position} of {clean}, is not pinned any more."
    )
    return 0


def _clear_store(paths: VolumePaths, store: str) -> int:
    # A request of its own: a mount of an earlier version would clear the other alarm.
    with ControlClient(paths.socket, volume=paths.name) as client:
        client.send("clear_went_back", store=store)
        found_ns = Waiting().follow(client)["went_back_ns"]
    if not isinstance(found_ns, int):
        print(f"Store {store} of volume {paths.name} has no such alarm; nothing was changed.")
        return 0
    found = local_time(found_ns, now_ns=time.time_ns())
    print(
        f"The alarm of store {store} is cleared; it had gone back, as was found at {found}."
        f" `mirrorfs verify {paths.name} --deep --store {store}` tells whether all is there now."
    )
    return 0
