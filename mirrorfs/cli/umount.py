"""`mirrorfs umount`: unmount, and wait until the stores hold everything, unless --no-wait.

The mount goes first: were it in use, that is known at once, and nothing is added while the stores are
waited for. Interrupted while it waits, the volume stays unmounted, and the rest is sent with the next mount.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.control_protocol import ControlClient, NotMounted
from mirrorfs.cli.flush import add_stall_argument
from mirrorfs.cli.resolve import mounts_of, resolve
from mirrorfs.cli.views import remove_dead_views
from mirrorfs.cli.waiting_client import Waiting, held_by, must_write_back
from mirrorfs.errors import InUseError, MirrorfsError
from mirrorfs.fuse.mount_table import clean_stale, find_mount, unmount

EXIT_WAIT_S: Final = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `umount`."""
    parser.add_argument("target", metavar="VOLUME|MOUNTPOINT")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the stores")
    add_stall_argument(parser)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `umount`. Raises: MirrorfsError."""
    paths = resolve(arguments.target, environment)
    try:
        client = ControlClient(paths.socket, volume=paths.name)
    except NotMounted:
        if _clean_dead(paths):
            print(f"The dead mount of volume {paths.name} was removed; mount it again to send what is left.")
            return 0
        raise
    waiting = Waiting()
    with client:
        pid = client.pid
        client.send("umount", wait=not arguments.no_wait, stall_s=arguments.stall)
        mountpoint = str(waiting.follow(client, until="prepared")["mountpoint"])
        if find_mount(mountpoint) is not None:
            must_write_back(mountpoint)
            try:
                unmount(mountpoint)
            except InUseError as exc:
                raise InUseError(
                    f"Volume {paths.name} is in use; close the programs that use {mountpoint} and try again."
                ) from exc
        try:
            done = waiting.follow(client)
        except KeyboardInterrupt:
            print(
                f"mirrorfs: Volume {paths.name} is unmounted; what stores lack is sent with the next mount.",
                file=sys.stderr,
            )
            raise
    # Whoever mounts it right after must not meet the last breath of the process that served it.
    is_free = volume_lock.wait_released(paths, timeout_s=EXIT_WAIT_S)
    if not is_free and Path(f"/proc/{pid}").exists():
        raise MirrorfsError(
            f"Volume {paths.name} is unmounted, but the process that served it does not end, and has its keys"
            f" until then: a disk may hang. See {paths.log}."
        )
    remove_dead_views(paths)
    waited = not arguments.no_wait and not paths.view
    held = f", and {held_by(done)} all of it" if waited else ""
    print(f"Volume {paths.name} is unmounted{held}.")
    return 0


def _clean_dead(paths: VolumePaths) -> bool:
    return any([clean_stale(record.mountpoint) for record in mounts_of(paths.name, paths.view)])
