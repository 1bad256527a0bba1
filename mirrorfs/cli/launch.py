"""Starting our own helper processes: the background process of a mount, and the one that asks for secrets.

Both are new programs, never forks of this one, and get no secret by argv or environment.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import mirrorfs
from mirrorfs.cli.systemd import NOTIFY_SOCKET


def command(module: str, *arguments: str) -> list[str]:
    """The argv that runs one of our modules. -P: no directory of the caller's comes into the search path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with this very package importable, wherever it lies."""
    root = str(Path(mirrorfs.__file__).resolve().parents[1])
    result = dict(environment)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        result["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return result


def start_daemon(
    environment: Mapping[str, str],
    *,
    status_fd: int,
    lock_fd: int,
    errors: IO[bytes],
    mounter_fd: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start the background process, in a session of its own; it waits for keys on its standard input.

    Args:
        status_fd: end of a pipe to write to.
        lock_fd: holds the volume's lock.
        errors: a file for what Python itself has to say.
        mounter_fd: leads to the process that mounts for it; without it it mounts by itself.
    """
    inner = child_environment(environment)
    # The service manager hears of the command, which ends soon, not of what it leaves running.
    inner.pop(NOTIFY_SOCKET, None)
    inherited = [status_fd, lock_fd, *([] if mounter_fd is None else [mounter_fd])]
    return subprocess.Popen(
        command("mirrorfs.cli.daemon", *map(str, inherited)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=inherited,
        cwd="/",
        env=inner,
        start_new_session=True,
    )


def start_unlock_child(
    environment: Mapping[str, str], arguments: Sequence[str], *, view: str, keys_fd: int
) -> subprocess.Popen[bytes]:
    """Start the process that asks for the secrets on this terminal and writes the keys to a pipe.

    Args:
        arguments: those of `mount`; none is a secret.
        view: identifies a read-only mount, or is empty.
        keys_fd: end of a pipe to write to.
    """
    os.set_inheritable(keys_fd, True)
    return subprocess.Popen(
        command("mirrorfs.cli.unlock_child", str(keys_fd), view, *arguments),
        env=child_environment(environment),
        # A password file may be a descriptor that the shell opened (/dev/fd/N).
        close_fds=False,
    )
