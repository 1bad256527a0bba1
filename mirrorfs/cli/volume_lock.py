"""One process per volume and machine: an flock on the state directory's lock file.

The lock belongs to the open file, so that it passes to the background process by inheritance and is
released by the kernel when the last process that has it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

from mirrorfs.cli.config import VolumePaths
from mirrorfs.errors import ConfigError, InUseError

POLL_S: Final = 0.02


def acquire(paths: VolumePaths) -> int:
    """Take the lock of a volume and return the descriptor that holds it.

    Raises: InUseError: the volume is mounted, or being mounted. ConfigError: no state directory.
    """
    try:
        fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ConfigError(f"The local state of volume {paths.name} cannot be used; check it.") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise InUseError(
            f"Volume {paths.name} is mounted already, or just being mounted or unmounted;"
            f" see `mirrorfs status {paths.name}`."
        ) from exc
    return fd


def wait_released(paths: VolumePaths, *, timeout_s: float) -> bool:
    """Wait until no process has the volume; whether that came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while is_held(paths):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def is_held(paths: VolumePaths) -> bool:
    """Whether some process has the volume; for `status`."""
    try:
        fd = os.open(paths.lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
