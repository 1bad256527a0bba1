"""Running a volume's engine without a mount, for a command that needs it: keys, leases and mirrors."""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable, Mapping

import trio

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumePaths, make_private_directory
from mirrorfs.cli.control import Handler
from mirrorfs.cli.key_pipe import UnlockedSession
from mirrorfs.cli.mount import CLOSING_WAIT_S, unlocked_session
from mirrorfs.cli.session import Opened, Session
from mirrorfs.cli.session_control import SessionControl
from mirrorfs.cli.unlock import Unlocked
from mirrorfs.drivers.process import harden_process
from mirrorfs.engine.volume import MountedVolume

Work = Callable[[MountedVolume], Awaitable[None]]


def add_unlock_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of commands that unlock a volume that is not mounted."""
    parser.add_argument("--token", metavar="URI", help="another token than the configured one")
    parser.add_argument("--module", metavar="PATH", help="another PKCS#11 module than the configured one")
    parser.add_argument("--password-file", metavar="FILE", help="read the password from its first line")
    parser.add_argument("--pin-file", metavar="FILE", help="read the token's PIN from its first line")


def run_headless(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: VolumePaths,
    work: Work,
    *,
    on_unlocked: Callable[[Unlocked], None] = lambda unlocked: None,
) -> None:
    """Unlock, recover the local log, take the leases, do the work, and close.

    Args:
        arguments: with those of `add_unlock_arguments`.
        on_unlocked: see `unlocked_session`.
    Raises: MirrorfsError: as of a mount, or what `work` raises.
    """
    harden_process()
    make_private_directory(paths.state, what="state")
    volume_lock.wait_released(paths, timeout_s=CLOSING_WAIT_S)
    change = volume_lock.ChangeLock(paths)
    lock_fd = -1
    try:
        lock_fd = volume_lock.acquire(paths)
        unlocked = unlocked_here(arguments, environment, paths, view="", on_unlocked=on_unlocked)
        run_session(unlocked, paths, work)
    finally:
        change.release()
        if lock_fd >= 0:
            os.close(lock_fd)


def unlocked_here(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: VolumePaths,
    *,
    view: str,
    on_unlocked: Callable[[Unlocked], None] = lambda unlocked: None,
) -> UnlockedSession:
    """Check the stores and ask for the secrets, as a mount does (cli/mount.py), which nothing follows.

    Args:
        arguments: with those of `add_unlock_arguments`.
        view: what is not empty takes no lease and may stand beside a writable mount.
        on_unlocked: see `unlocked_session`.
    Raises: MirrorfsError.
    """
    needed = argparse.Namespace(
        volume=paths.name, mountpoint=str(paths.state), allow_other=False, take_over=False, at=None,
        token=arguments.token, module=arguments.module,
        password_file=arguments.password_file, pin_file=arguments.pin_file,
    )  # fmt: skip
    return unlocked_session(needed, environment, view=view, on_unlocked=on_unlocked)


def run_session(unlocked: UnlockedSession, paths: VolumePaths, work: Work) -> None:
    """The same for who has the locks and the keys. Raises: MirrorfsError."""
    trio.run(_HeadlessSession(unlocked, paths, work).run)


class _HeadlessControl(SessionControl):
    """The socket is there, so that nobody takes the volume for an abandoned one; it answers nothing."""

    def handlers(self) -> dict[str, Handler]:
        return {}


class _HeadlessSession(Session):
    def __init__(self, unlocked: UnlockedSession, paths: VolumePaths, work: Work) -> None:
        super().__init__(unlocked, paths, on_ready=lambda: None)
        self._work = work

    def _make_control(self) -> SessionControl:
        return _HeadlessControl(self._request)

    async def _serve(self, opened: Opened) -> None:
        self._serving = trio.CancelScope()
        if self._stopping:
            self._serving.cancel()
        try:
            with self._serving:
                await self._work(self._control.volume())
        finally:
            self._control.unmounted()
            self._stop()
            with trio.CancelScope(shield=True):
                await opened.close()
