"""`mirrorfs mount`: check everything, unlock, and serve, in the background or in this process.

In the background: this process takes the lock, starts the daemon (which then waits), asks for the secrets
and sends the keys. In the foreground: a child asks for them, and this process serves.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

import trio

from mirrorfs.cli import volume_lock
from mirrorfs.cli.alarm import check_command
from mirrorfs.cli.config import (
    VolumeConfig,
    VolumePaths,
    load_config,
    make_private_directory,
    volume_paths,
)
from mirrorfs.cli.failures import RemoteError
from mirrorfs.cli.headers import find_header
from mirrorfs.cli.key_pipe import SessionRequest, UnlockedSession, read_session, write_session
from mirrorfs.cli.key_record import read_record
from mirrorfs.cli.launch import start_daemon, start_unlock_child
from mirrorfs.cli.mount_user import RemoteMounter, become_user
from mirrorfs.cli.progress import LINE_INTERVAL_S
from mirrorfs.cli.resolve import mounts_of
from mirrorfs.cli.stores import StoreLook, check_instances, directory_of, look_at_stores
from mirrorfs.cli.systemd import notify
from mirrorfs.cli.tokens import SecretSources, chosen_tokens, refuse_recovery
from mirrorfs.cli.unlock import Unlocked, unlock_configured
from mirrorfs.cli.views import new_view, remove_dead_views
from mirrorfs.cli.watched_token import WatchedToken
from mirrorfs.cli.when import parse_moment
from mirrorfs.drivers.process import harden_process, unencrypted_swap
from mirrorfs.engine.moment import Moment
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.format.slot import Role
from mirrorfs.fuse.mount_table import absolute, check_mountpoint, clean_stale, is_stale

STOP_WAIT_S: Final = 30.0
CLOSING_WAIT_S: Final = 40.0
"""How long a mount waits for the process of an earlier one; longer than that waits for stores by itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mount`."""
    parser.add_argument("volume", metavar="VOLUME", help="name of the volume")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument("--foreground", action="store_true", help="serve in this process until unmounted")
    parser.add_argument("--read-only", action="store_true", help="show the volume without changing it")
    parser.add_argument(
        "--at", metavar="WHEN", help="show it as it was then (2026-03-01, '2h ago', a snapshot), read-only"
    )
    parser.add_argument("--allow-other", action="store_true", help="let other users in, as permissions say")
    parser.add_argument(
        "--user", metavar="NAME", help="as root: mount for that user, and give up root before anything else"
    )
    parser.add_argument("--token", metavar="URI", help="another token than the configured one")
    parser.add_argument("--module", metavar="PATH", help="another PKCS#11 module than the configured one")
    parser.add_argument("--password-file", metavar="FILE", help="read the password from its first line")
    parser.add_argument("--pin-file", metavar="FILE", help="read the token's PIN from its first line")
    parser.add_argument(
        "--take-over", action="store_true", help="take the volume from a machine that is gone for good"
    )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `mount` alone, for the process that unlocks."""
    parser = argparse.ArgumentParser(prog="mirrorfs mount")
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, environment: Mapping[str, str], argv: Sequence[str]) -> int:
    """Carry out `mount`.

    Args:
        argv: the arguments as they were typed, for the process that unlocks.
    Raises: MirrorfsError.
    """
    harden_process()
    mounter = None
    if arguments.user is not None:
        mounter = become_user(
            arguments.user, mountpoint=arguments.mountpoint, allow_other=arguments.allow_other
        )
        harden_process()  # To become another user undid some of it.
        environment = os.environ
    try:
        return _run_prepared(arguments, environment, argv, mounter)
    finally:
        if mounter is not None:
            mounter.close()


def _run_prepared(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    argv: Sequence[str],
    mounter: RemoteMounter | None,
) -> int:
    paths = volume_paths(arguments.volume, environment)
    check_command(load_config(paths).alarm)
    _check_options(arguments)
    make_private_directory(paths.state, what="state")
    if arguments.read_only or arguments.at is not None:
        paths = new_view(paths)
    elif not mounts_of(paths.name):
        # Of a mount that is gone the process may still be closing: that is soon over.
        volume_lock.wait_released(paths, timeout_s=CLOSING_WAIT_S)
    # From here on the stores are those of the configuration, until the mount can be told of others.
    change = None if paths.view else volume_lock.ChangeLock(paths)
    try:
        return _run_locked(arguments, paths, environment, argv, change, mounter)
    finally:
        if change is not None:
            change.release()


def _run_locked(
    arguments: argparse.Namespace,
    paths: VolumePaths,
    environment: Mapping[str, str],
    argv: Sequence[str],
    change: volume_lock.ChangeLock | None,
    mounter: RemoteMounter | None,
) -> int:
    lock_fd = volume_lock.acquire(paths)
    try:
        _check_mountpoint(arguments.mountpoint, paths, load_config(paths), mounter)
        if arguments.take_over:
            _say("Taking over takes about a minute: a machine that still writes has to notice first.")
        if unencrypted_swap():
            _say("Note: swap is not encrypted, so that memory may reach the disk in the clear; see doctor.")
        if arguments.foreground:
            return _foreground(arguments, paths, environment, argv, change, mounter)
        return _background(arguments, paths, environment, lock_fd, mounter)
    finally:
        os.close(lock_fd)
        if paths.view:
            remove_dead_views(paths)


def _say(sentence: str) -> None:
    print(f"mirrorfs: {sentence}", file=sys.stderr)


def _say_watching(seconds: float) -> None:
    _say(
        "The volume was not unmounted properly, or another PC has it: waiting"
        f" {seconds:.0f} s, to see whether it is still written to."
    )


def _check_options(arguments: argparse.Namespace) -> None:
    _moment(arguments)
    if arguments.take_over and (arguments.read_only or arguments.at is not None):
        raise UsageError("A read-only mount takes nothing over; leave out --take-over.")


def _moment(arguments: argparse.Namespace) -> Moment:
    return Moment() if arguments.at is None else parse_moment(arguments.at, now_ns=time.time_ns())


def _check_mountpoint(
    mountpoint: str, paths: VolumePaths, config: VolumeConfig, mounter: RemoteMounter | None
) -> str:
    """The absolute path of a mountpoint that is fit. Raises: UsageError."""
    # The lock is ours, so that nobody serves this mount: what is still mounted of it is dead.
    dead = {record.mountpoint for record in mounts_of(paths.name, paths.view)}
    for mounted in dead | {absolute(mountpoint)}:
        if _clean_stale(mounted, None if mounted != absolute(mountpoint) else mounter):
            _say("A dead mount of an earlier run was removed.")
    stores = [place for store in config.stores if (place := directory_of(store.url)) is not None]
    places = [paths.state, paths.config.parent, *stores]
    found = check_mountpoint(mountpoint, forbidden=places)
    for place in places:
        if Path(found).is_relative_to(os.path.realpath(place)):
            raise UsageError(
                "The mountpoint lies in the volume's state, its configuration or one of its stores;"
                " choose another mountpoint."
            )
    return found


def _clean_stale(mountpoint: str, mounter: RemoteMounter | None) -> bool:
    if mounter is None:
        return clean_stale(mountpoint)
    if not is_stale(mountpoint):
        return False
    mounter.detach()
    return True


# --- unlocking -------------------------------------------------------------------------------


def unlocked_session(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    *,
    view: str,
    on_unlocked: Callable[[Unlocked], None] = lambda unlocked: None,
) -> UnlockedSession:
    """Check the stores, ask for the secrets, and return all that is needed to serve.

    The stores are asked before the secrets, so that the same requests are made whatever is typed.
    Args:
        view: identifies a read-only mount; empty for the writable one.
        on_unlocked: hears of what was opened, before anything else is done with it.
    Raises: MirrorfsError: see the parts.
    """
    paths = volume_paths(arguments.volume, environment)
    config = load_config(paths)
    events_seen = read_record(paths).count
    looks, data = trio.run(_look, paths, config)
    for look in looks:
        if look.unreachable is not None and look.store.rotating:
            _say(f"Store {look.store.name} is away; it gets what it lacks when it is back.")
        elif look.unreachable is not None:
            _say(f"{look.unreachable} What it lacks is sent when it is back.")
    sources = SecretSources(arguments.password_file, arguments.pin_file, environment)
    chosen = chosen_tokens(arguments.token, arguments.module, config.tokens)
    refuse_recovery(chosen, volume=paths.name)
    unlocked, config = unlock_configured(paths, config, chosen, sources, data=data)
    on_unlocked(unlocked)
    if not view and Role.WRITER not in unlocked.slot.roles:
        raise UsageError(f"Slot {unlocked.slot.name} may read and no more; mount with --read-only.")
    for sentence in check_instances(looks, keys=unlocked.keys, writer=unlocked.header.public_keys.writer):
        _say(sentence)
    moment = _moment(arguments)
    request = SessionRequest(
        name=paths.name,
        config=config.to_toml(),
        mountpoint=absolute(arguments.mountpoint),
        allow_other=arguments.allow_other,
        read_only=bool(view),
        take_over=arguments.take_over,
        view=view,
        at_ns=moment.time_ns,
        at_position=moment.position,
        at_snapshot=(moment.snapshot or b"").decode(),
        watched=WatchedToken.of(unlocked.slot, chosen).to_text(),
        events_seen=events_seen,
    )
    key_set = unlocked.key_set.restricted(tuple(set(unlocked.slot.roles) - {Role.PRUNER}))
    return UnlockedSession(request, key_set, unlocked.data)


async def _look(paths: VolumePaths, config: VolumeConfig) -> tuple[list[StoreLook], bytes]:
    looks = await look_at_stores(config.stores)
    # A store that has just not answered is not waited for again.
    answered = tuple(look.store for look in looks if look.unreachable is None or look.is_missing)
    return looks, await find_header(paths, replace(config, stores=answered))


# --- in the background -----------------------------------------------------------------------


def _background(
    arguments: argparse.Namespace,
    paths: VolumePaths,
    environment: Mapping[str, str],
    lock_fd: int,
    mounter: RemoteMounter | None,
) -> int:
    reading, writing = os.pipe()
    try:
        descriptor = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(descriptor, "ab") as errors:
            daemon = start_daemon(
                environment,
                status_fd=writing,
                lock_fd=lock_fd,
                errors=errors,
                mounter_fd=None if mounter is None else mounter.fileno(),
            )
    finally:
        os.close(writing)
    if mounter is not None:
        # The helper is to see the daemon's end, not ours.
        mounter.close()
    assert daemon.stdin is not None
    with open(reading, "rb") as status:
        try:
            session = unlocked_session(arguments, environment, view=paths.view)
            write_session(os.dup(daemon.stdin.fileno()), session)
            session.wipe()
            daemon.stdin.close()
            _await_ready(status, paths)
        except BaseException:
            _stop(daemon)
            raise
    print(f"Volume {paths.name} is mounted on {session.request.mountpoint}.")
    # The process goes on without us: nobody is to wait for it.
    daemon.returncode = 0
    return 0


def _await_ready(status: IO[bytes], paths: VolumePaths) -> None:
    """Return when the mount answers. Raises: MirrorfsError: it will not, with the daemon's words."""
    said_s = time.monotonic()
    for line in status:
        message = json.loads(line)
        if message.get("ready"):
            return
        if "error" in message:
            raise RemoteError(str(message["error"]), exit_code=message.get("exit_code"))
        if "watching_s" in message:
            _say_watching(message["watching_s"])
        elif time.monotonic() - said_s >= LINE_INTERVAL_S:
            said_s = time.monotonic()
            if "loaded" in message:
                _say(f"Fetching the volume's index: {message['loaded']}% ...")
            else:
                _say(f"Reading the log: segment {message.get('replay')} ...")
    raise MirrorfsError(f"The background process ended unexpectedly; its log is {paths.log}.")


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    """End a background process that got no keys, or has no mount yet."""
    assert daemon.stdin is not None
    daemon.stdin.close()
    daemon.terminate()
    try:
        daemon.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


# --- in the foreground -----------------------------------------------------------------------


def _foreground(
    arguments: argparse.Namespace,
    paths: VolumePaths,
    environment: Mapping[str, str],
    argv: Sequence[str],
    change: volume_lock.ChangeLock | None,
    mounter: RemoteMounter | None,
) -> int:
    # Imported here: the engine and the kernel's side of it are of no use to the other commands.
    from mirrorfs.cli.view_session import session_kind

    _log_to_terminal(debug=arguments.debug)
    reading, writing = os.pipe()
    child = start_unlock_child(environment, argv, view=paths.view, keys_fd=writing)
    os.close(writing)
    unlocked = read_session(reading)
    exit_code = child.wait()
    if unlocked is None or exit_code:
        # It said why.
        return exit_code or 1
    os.chdir("/")
    place = unlocked.request.mountpoint

    def ready() -> None:
        if change is not None:
            change.release()
        _say(f"Volume {paths.name} is mounted on {place}.")
        notify(f"READY=1\nSTATUS=Mounted on {place}", environment)

    session = session_kind(paths.view)(
        unlocked,
        paths,
        on_ready=ready,
        on_watch=_say_watching,
        on_stopping=lambda: notify("STOPPING=1\nSTATUS=Unmounting", environment),
        mounter=mounter,
    )
    del unlocked
    try:
        trio.run(session.run)
    finally:
        session.wipe_keys()
    _say(f"Volume {paths.name} is unmounted.")
    return 0


def _log_to_terminal(*, debug: bool) -> None:
    logger = logging.getLogger("mirrorfs")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("mirrorfs: %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if debug else logging.WARNING)
