"""`mirrorfs lock`: take volumes away at once, open files or not, and end the processes that have their keys.

Nothing waits for a store: what was written is in the local log, and what stores lack is sent with the next
mount. A volume's name means all its mounts, read-only views too, for each of them has its keys.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumePaths, configured_volumes, volume_paths
from mirrorfs.cli.control_protocol import ControlClient, NoAnswer, NotMounted
from mirrorfs.cli.failures import report
from mirrorfs.cli.lock_note import LockEvent
from mirrorfs.cli.resolve import mounts_of, resolve
from mirrorfs.cli.views import remove_dead_views
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.fuse.mount_table import clean_stale, detach

EXIT_WAIT_S: Final = 10.0
FORCE_AFTER_S: Final = 40.0
"""Longer than a session takes that ends itself by force."""
FORCE_AFTER_MAX_S: Final = 3600.0


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
    parser.add_argument(
        "--force-after",
        type=_seconds,
        default=FORCE_AFTER_S,
        metavar="SECONDS",
        help="kill a process that has not locked its volume by then (default: %(default)g)",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= FORCE_AFTER_MAX_S:
        raise ValueError
    return value


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
                print(_outcome(one, arguments.force_after))
        except MirrorfsError as error:
            codes.append(report(error, debug=arguments.debug))
    return next(filter(None, codes), 0)


def _outcome(asked: _Asked, silence_s: float) -> str:
    """What to say of it. Raises: MirrorfsError: it is not as it should be."""
    paths = asked.paths
    name = f"A read-only view of volume {paths.name}" if paths.view else f"Volume {paths.name}"
    asked.client.be_impatient(silence_s)
    try:
        done = list(asked.client.answers())[-1]
    except NoAnswer as exc:
        os.kill(asked.client.pid, signal.SIGKILL)
        has_ended = volume_lock.wait_released(paths, timeout_s=EXIT_WAIT_S)
        for record in mounts_of(paths.name, paths.view):
            detach(record.mountpoint)
        if not has_ended:
            raise MirrorfsError(
                f"{name} is unmounted, but the process that served it was killed and does not end, for a disk"
                " hangs: its keys are in memory until it does. Unplug the disk, or restart the PC."
            ) from exc
        raise MirrorfsError(
            f"{name} is locked, but the process that served it did not answer and was killed: what was"
            " written last may be lost."
        ) from exc
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
