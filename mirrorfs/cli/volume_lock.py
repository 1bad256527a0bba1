"""One process per volume and machine: an flock on the state directory's lock file.

The lock belongs to the open file, so that it passes to the background process by inheritance and is
released by the kernel when the last process that has it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from mirrorfs.cli.config import VolumePaths
from mirrorfs.errors import ConfigError, InUseError

POLL_S: Final = 0.02
CHANGE_WAIT_S: Final = 2.0


def acquire(paths: VolumePaths) -> int:
    """Take the lock of a volume and return the descriptor that holds it.

    Raises: InUseError: the volume is mounted, or being mounted. ConfigError: no state directory.
    """
    fd = _lock(paths, paths.lock)
    if fd is None:
        raise InUseError(
            f"Volume {paths.name} is mounted already, or just being mounted or unmounted;"
            f" see `mirrorfs status {paths.name}`."
        )
    return fd


class ChangeLock:
    """The right to change which stores a volume has, or to begin with those it has; until `release`.

    It is another file than the mount's: stores are changed under a mount. Whoever takes both takes this one
    first, and no daemon inherits it.
    """

    def __init__(self, paths: VolumePaths) -> None:
        """Raises: InUseError: another command has it. ConfigError: no state directory."""
        deadline_s = time.monotonic() + CHANGE_WAIT_S
        while (fd := _lock(paths, paths.change_lock)) is None:
            if time.monotonic() >= deadline_s:
                raise InUseError(
                    f"Another command changes the stores of volume {paths.name}, or mounts it; try again when"
                    " it is done."
                )
            time.sleep(POLL_S)
        self._fd = fd

    def release(self) -> None:
        """Let others have it; once more does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(paths: VolumePaths, path: Path) -> int | None:
    """The descriptor that holds a lock; None when another process has it. Raises: ConfigError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ConfigError(f"The local state of volume {paths.name} cannot be used; check it.") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
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
