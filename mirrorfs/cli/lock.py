"""`mirrorfs lock`: take volumes away at once, open files or not, and end the processes that have their keys.

Nothing waits for a store: what was written is in the local log, and what stores lack is sent with the next
mount. A volume's name means all its mounts, read-only views too, for each of them has its keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumePaths, configured_volumes, volume_paths
from mirrorfs.cli.control_protocol import ControlClient, Message, NotMounted
from mirrorfs.cli.failures import report
from mirrorfs.cli.lock_note import LockEvent
from mirrorfs.cli.resolve import mounts_of, resolve
from mirrorfs.cli.views import remove_dead_views
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.fuse.mount_table import clean_stale

EXIT_WAIT_S: Final = 40.0
"""Longer than a session takes that ends itself by force."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lock`."""
    parser.add_argument("target", metavar="VOLUME|MOUNTPOINT", nargs="?")
    parser.add_argument("--all", action="store_true", help="every volume that is mounted")
    parser.add_argument(
        "--for",
        dest="event",
        choices=[LockEvent.COMMAND.value, LockEvent.SUSPEND.value, LockEvent.LOGOUT.value],
        default=LockEvent.COMMAND.value,
        help="what happens: leaves volumes alone that [lock] of their configuration exempts then",
    )


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `lock`. Raises: MirrorfsError."""
    if arguments.all == (arguments.target is not None):
        raise UsageError("Name the volume to lock, or say --all.")
    if arguments.all:
        mounts = [
            mount
            for name in configured_volumes(environment)
            for mount in _mounts_of_volume(volume_paths(name, environment))
        ]
        return _lock(mounts, arguments)
    paths = resolve(arguments.target, environment)
    mounts = [paths] if "/" in arguments.target or paths.view else _mounts_of_volume(paths)
    served = [mount for mount in mounts if volume_lock.is_held(mount)]
    if served:
        return _lock(served, arguments)
    if any(
        [clean_stale(record.mountpoint) for mount in mounts for record in mounts_of(mount.name, mount.view)]
    ):
        print(f"The dead mount of volume {paths.name} was removed; no process has its keys.")
        return 0
    raise NotMounted(f"Volume {paths.name} is not mounted; no process of this machine has its keys.")


def _mounts_of_volume(paths: VolumePaths) -> list[VolumePaths]:
    views = sorted(place.name for place in paths.views.iterdir()) if paths.views.is_dir() else []
    return [paths, *(replace(paths, view=view) for view in views)]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A session that was told to lock."""

    paths: VolumePaths
    client: ControlClient


def _lock(mounts: Sequence[VolumePaths], arguments: argparse.Namespace) -> int:
    """Have them all lock at the same time, then wait for each; the exit code is the first failure's."""
    codes = []
    asked = []
    for paths in mounts:
        try:
            client = ControlClient(paths.socket, volume=paths.name)
            client.send("lock", event=arguments.event)
            asked.append(_Asked(paths, client))
        except NotMounted:
            continue
        except MirrorfsError as error:
            codes.append(report(error, debug=arguments.debug))
    if not asked and not codes:
        print("No volume is mounted.")
    for one in asked:
        try:
            with one.client:
                print(_outcome(one.paths, list(one.client.answers())[-1]))
        except MirrorfsError as error:
            codes.append(report(error, debug=arguments.debug))
    return next(filter(None, codes), 0)


def _outcome(paths: VolumePaths, done: Message) -> str:
    """What to say of it. Raises: MirrorfsError: it is not as it should be."""
    name = f"A read-only view of volume {paths.name}" if paths.view else f"Volume {paths.name}"
    if not done.get("locked"):
        return f"{name} stays mounted, as its configuration has it."
    if not volume_lock.wait_released(paths, timeout_s=EXIT_WAIT_S):
        raise MirrorfsError(f"{name} is gone, but the process that served it does not end; see its log.")
    if paths.view:
        remove_dead_views(paths)
        return f"{name} is locked."
    if not done.get("complete"):
        raise MirrorfsError(
            f"{name} is locked, but what was written last did not get to the local log; see its log."
        )
    return f"{name} is locked; what its stores lack is sent with the next mount."
