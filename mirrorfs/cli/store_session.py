"""The process that serves a volume while its stores are changed: telling it, and waiting for it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Protocol

from mirrorfs.cli import volume_lock
from mirrorfs.cli.config import VolumeConfig, VolumePaths
from mirrorfs.cli.control_protocol import ControlClient, NotMounted
from mirrorfs.cli.failures import RemoteError
from mirrorfs.cli.waiting_client import Waiting
from mirrorfs.errors import InUseError, MirrorfsError


class Serving(Protocol):
    """Who serves the volume, if anybody does."""

    is_mounted: bool
    instances: dict[str, str]
    """Of the stores that the session has, by their names."""

    def lags_behind(self, config: VolumeConfig) -> bool:
        """Whether the session has other stores than the configuration names."""

    def tell(self) -> None:
        """Have the session take what the configuration names."""

    def note(self) -> None:
        """Have the session log what is new in the record of keys and stores."""

    def wait_filled(self, store: str, *, stall_s: float) -> None:
        """Return when a store holds everything. Raises: MirrorfsError."""

    def close(self) -> None:
        """Let go of what was held for the change."""


class Nobody:
    """The volume is not mounted: its lock is ours until `close`."""

    is_mounted = False

    def __init__(self, lock_fd: int) -> None:
        self._lock_fd = lock_fd
        self.instances: dict[str, str] = {}

    def lags_behind(self, config: VolumeConfig) -> bool:
        """See Serving."""
        return False

    def tell(self) -> None:
        """See Serving."""

    def note(self) -> None:
        """See Serving."""

    def wait_filled(self, store: str, *, stall_s: float) -> None:
        """See Serving; the command refused it before."""
        raise AssertionError

    def close(self) -> None:
        """See Serving."""
        os.close(self._lock_fd)


class MountedSession:
    """A process serves the volume."""

    is_mounted = True

    def __init__(self, paths: VolumePaths, status: dict[str, Any]) -> None:
        self._paths = paths
        self.instances: dict[str, str] = dict(status["instances"])

    def lags_behind(self, config: VolumeConfig) -> bool:
        """See Serving."""
        return self.instances != {store.name: store.instance.hex() for store in config.stores}

    def tell(self) -> None:
        """See Serving. What the mounted volume cannot take over now, the next mount does: that is said."""
        try:
            with ControlClient(self._paths.socket, volume=self._paths.name) as client:
                client.send("stores")
                for _ in client.answers():
                    pass
        except MirrorfsError as exc:
            print(f"mirrorfs: The change counts from the next mount on: {exc}", file=sys.stderr)

    def note(self) -> None:
        """See Serving."""
        note_events(self._paths)

    def wait_filled(self, store: str, *, stall_s: float) -> None:
        """See Serving."""
        with ControlClient(self._paths.socket, volume=self._paths.name) as client:
            client.send("fill", store=store, stall_s=stall_s)
            done = Waiting().follow(client)
        if done.get("away"):
            print(f"Store {store} is away; it is filled when it is back.")
        else:
            print(f"Store {store} holds everything.")

    def close(self) -> None:
        """See Serving."""


def note_events(paths: VolumePaths) -> None:
    """Have a process that serves the volume, if there is one, log what is new in the record.

    It is in the record in any case, whether the session hears of it or not.
    """
    with suppress(MirrorfsError), ControlClient(paths.socket, volume=paths.name) as client:
        client.send("events")
        for _ in client.answers():
            pass


def find_session(paths: VolumePaths) -> Serving:
    """Who serves a volume; its change lock is ours, so that no mount begins.

    Raises: InUseError: it is just being unmounted, or another command has it.
    """
    try:
        return Nobody(volume_lock.acquire(paths))
    except InUseError as exc:
        try:
            with ControlClient(paths.socket, volume=paths.name) as client:
                client.send("status")
                status = next(iter(client.answers()))
        except (NotMounted, RemoteError):
            raise exc from None
        return MountedSession(paths, status)
