"""`mirrorfs alarm clear`: a person looked at a burst of files that look encrypted."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.shown_times import local_time
from mirrorfs.cli.waiting_client import Waiting
from mirrorfs.format.ids import format_position


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `alarm`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    clear = commands.add_parser(
        "clear", help="end the alarm of files that look encrypted; history is not pinned any more"
    )
    clear.add_argument("target", metavar="VOLUME|MOUNTPOINT")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `alarm`. Raises: MirrorfsError."""
    paths = resolve(arguments.target, environment)
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
