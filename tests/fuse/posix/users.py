"""Calls made as somebody else, in this process.

To Linux user, groups, working directory and umask belong to a thread; it is glibc that makes all threads
follow. A thread that makes the system calls itself is an unprivileged user without a process of its own:
no start-up, and exceptions arrive whole.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

CLONE_FS = 0x200
SETGROUPS, SETRESGID, SETRESUID = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}[platform.machine()]

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise RuntimeError(f"cannot become another user: {os.strerror(number)}")


@dataclass(frozen=True)
class User:
    """Who makes a call."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def does(self, call: Callable[[], T], *, umask: int = 0o022) -> T:
        """Make the call as this user, in the working directory of now; what it returns or raises."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                self._become(umask)
                outcome.append(call())
            except BaseException as error:  # noqa: BLE001 (handed to the caller, whatever it is)
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def _become(self, umask: int) -> None:
        _must(_libc.unshare(CLONE_FS))
        os.umask(umask)
        if self.uid == 0 and not self.groups:
            return
        groups = (ctypes.c_uint32 * len(self.groups))(*self.groups)
        _must(_libc.syscall(SETGROUPS, len(self.groups), groups))
        _must(_libc.syscall(SETRESGID, self.gid, self.gid, self.gid))
        _must(_libc.syscall(SETRESUID, self.uid, self.uid, self.uid))


ROOT = User(0, 0)
ANNA = User(70_001, 70_001)
BERT = User(70_002, 70_002)
TEAM = 70_100
"""A group."""
MEMBER = User(70_003, 70_003, (70_099, TEAM))
"""Somebody with TEAM as a supplementary group."""


def give(name: str, owner: User, mode: int | None = None, group: int | None = None) -> None:
    """Root hands an object over; a mode is set after that, for chown clears bits of it."""
    os.chown(name, owner.uid, owner.gid if group is None else group, follow_symlinks=False)
    if mode is not None:
        os.chmod(name, mode)
