"""`mirrorfs flush`: return when every store holds everything that was written before."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from mirrorfs.cli.control_protocol import STALL_S, ControlClient
from mirrorfs.cli.resolve import resolve
from mirrorfs.cli.waiting_client import Waiting, held_by, must_write_back


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `flush`."""
    parser.add_argument("target", metavar="VOLUME|MOUNTPOINT")
    add_stall_argument(parser)


def add_stall_argument(parser: argparse.ArgumentParser) -> None:
    """The option that flush and umount share."""
    parser.add_argument(
        "--stall",
        type=float,
        default=STALL_S,
        metavar="SECONDS",
        help="give up on a store that reports an error and takes nothing for so long (default: %(default)g)",
    )


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `flush`. Raises: MirrorfsError."""
    paths = resolve(arguments.target, environment)
    with ControlClient(paths.socket, volume=paths.name) as client:
        client.send("status")
        mountpoint = str(Waiting().follow(client)["mountpoint"])
    must_write_back(mountpoint)
    with ControlClient(paths.socket, volume=paths.name) as client:
        client.send("flush", stall_s=arguments.stall)
        done = Waiting().follow(client)
    sentence = f"{held_by(done)} everything written to volume {paths.name} so far."
    print(sentence[:1].upper() + sentence[1:])
    return 0
