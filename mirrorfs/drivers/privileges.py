"""Giving up root for good, before there is anything to lose.

A process that runs as an ordinary user, without capabilities and with no_new_privs, cannot get them back: no
setuid program gives it any. So it cannot use fusermount3 either; what still needs root is done by a process
of its own that holds no keys (mirrorfs/cli/mounter.py).
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from mirrorfs.errors import MirrorfsError

# <linux/prctl.h>, <linux/capability.h>
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES_MAX: Final = 64
CAP_DAC_READ_SEARCH: Final = 2
CAP_SYS_ADMIN: Final = 21


@dataclass(frozen=True, slots=True)
class User:
    """Whom to become."""

    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    home: str


def become(user: User) -> None:
    """Give up root and every capability. All threads change; call before there are secrets.

    What root may still grant is taken along: no limit of locked memory. Afterwards call `harden_process`
    again: the kernel lets a process that changes its user dump core, and memory is unlocked here.
    Raises: MirrorfsError: the kernel refused, or something of root is left.
    """
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass  # Without that right memory is not locked, and a note says so.
    # Where that limit stayed, locking all memory to come would make every allocation fail from now on.
    ctypes.CDLL(None).munlockall()
    _drop_from_bounding_set(())
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as exc:
        raise MirrorfsError(f"This process may not become user {user.name}; start it as root.") from exc
    keep_capabilities(())
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise MirrorfsError(f"Not all of root was given up for user {user.name}; nothing was mounted.")


def keep_capabilities(numbers: Collection[int]) -> None:
    """Keep these capabilities only, in this process and in what it runs, and gain no more.

    Raises: MirrorfsError: the kernel refused.
    """
    _drop_from_bounding_set(numbers)
    libc = ctypes.CDLL(None, use_errno=True)
    kept = sum(1 << number for number in numbers)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    if libc.capset(header, struct.pack("<6I", low, low, 0, high, high, 0)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MirrorfsError(f"The capabilities of root could not be given up: {reason}.")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MirrorfsError(f"Gaining new privileges could not be forbidden: {reason}.")


def _drop_from_bounding_set(kept: Collection[int]) -> None:
    libc = ctypes.CDLL(None)
    for number in range(_CAPABILITIES_MAX):
        if number not in kept:
            # Refused without CAP_SETPCAP, as under a service manager; no_new_privs then does the same.
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
