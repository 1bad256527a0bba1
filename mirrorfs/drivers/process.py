"""What this process asks of the kernel so that secrets stay in memory, and what it can find out.

Core dumps and ptrace are refused always; locking memory and the I/O-flusher mode need privileges and
are taken where they are to be had. `keep_freed_memory` is for speed, `unencrypted_swap` and
`hibernation_possible` are for warnings.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirrorfs.errors import MirrorfsError

# <linux/prctl.h>, <bits/mman-linux.h>, <linux/capability.h>
_PR_SET_DUMPABLE: Final = 4
_PR_SET_IO_FLUSHER: Final = 57
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_CAP_IPC_LOCK: Final = 14
# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

HEAP_BUFFER_MAX: Final = 4 * 1024 * 1024
"""Larger buffers are mapped by themselves and given back at once."""
HEAP_KEPT: Final = 16 * 1024 * 1024
"""Free memory at the end of an arena that is kept."""
ARENAS_MAX: Final = 4

UMASK: Final = 0o077
_CRYPT_UUID: Final = "CRYPT-"
_DEPTH_MAX: Final = 16  # device-mapper layers below one swap area


@dataclass(frozen=True, slots=True)
class Hardening:
    """What `harden_process` got of what needs privileges."""

    memory_locked: bool
    """No page of this process goes to swap."""
    io_flusher: bool
    """Allocations of this process do not wait for filesystems, this one included."""


def harden_process() -> Hardening:
    """Make this process keep its memory to itself: call before threads and secrets.

    No core dumps, no ptrace by others, umask 077; locked memory and I/O-flusher mode if allowed. Not
    inherited through exec (but for the umask and the core limit): each helper calls it for itself.
    Raises: MirrorfsError: core dumps cannot be refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(UMASK)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as exc:
        raise MirrorfsError("The system does not let core dumps be turned off; secrets would leak.") from exc
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MirrorfsError(f"The system does not let core dumps be turned off: {reason}.")
    return Hardening(
        memory_locked=_lock_memory(libc),
        io_flusher=libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0,
    )


def keep_freed_memory() -> bool:
    """Have the C library keep freed buffers of some MiB instead of giving each back to the kernel.

    A buffer of 1 MiB that is mapped anew costs 256 page faults: ten times what it takes to encrypt it.
    Call before threads. False where the C library is not glibc: slower, nothing else.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, HEAP_BUFFER_MAX),
        (_M_TRIM_THRESHOLD, HEAP_KEPT),
        (_M_ARENA_MAX, ARENAS_MAX),
    )
    return all([mallopt(name, value) == 1 for name, value in settings])


def memory_lock_limit() -> int | None:
    """How many bytes this user may lock in memory; None where there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY or _has_capability(_CAP_IPC_LOCK) else limit


def _lock_memory(libc: ctypes.CDLL) -> bool:
    # All memory or none: the interpreter, OpenSSL and SQLite copy keys (11 copies of five keys in a mounted
    # process), so that locking the page of one object would promise what it does not keep. Under a limit,
    # MCL_FUTURE would make later allocations fail, and with them the mount. It costs nothing that was
    # measured: 64 MiB resident after a mount with and without it.
    if memory_lock_limit() is not None:
        return False
    # ONFAULT: reserved but untouched memory (thread stacks, arenas) is not made resident.
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)


def _has_capability(number: int) -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False  # without /proc nothing is known; not locking is the safe guess
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> number & 1)


# --- the machine ---------------------------------------------------------------------------------


def boot_id(proc: Path = Path("/proc")) -> str:
    """Another text after each boot of the machine; where it cannot be told, another one each time."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip() or secrets.token_hex()
    except OSError:
        return secrets.token_hex()


# --- swap and hibernation ------------------------------------------------------------------------


def unencrypted_swap(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> bool | None:
    """Whether memory may reach a disk in the clear: some swap area is not on dm-crypt.

    False also when there is no swap. None when it cannot be told (no /proc, a swap file on a
    filesystem that hides its device). Compressed memory (zram) counts as encrypted unless it has a
    backing device.
    """
    try:
        lines = (proc / "swaps").read_text().splitlines()[1:]
    except OSError:
        return None
    answers = [_area_encrypted(_unescape(line.split()[0]), sys) for line in lines if line.strip()]
    if False in answers:
        return True
    return None if None in answers else False


def hibernation_possible(sys: Path = Path("/sys")) -> bool | None:
    """Whether this machine can write its memory to disk (suspend to disk); None if it cannot be told."""
    try:
        states = (sys / "power" / "state").read_text().split()
        modes = (sys / "power" / "disk").read_text() if "disk" in states else ""
    except OSError:
        return None
    return "disk" in states and "[disabled]" not in modes


def _unescape(path: str) -> str:
    # The kernel writes blank, tab, newline and backslash as three octal digits.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _area_encrypted(path: str, sys: Path) -> bool | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    on_device = status.st_rdev or status.st_dev  # a swap file lies on the device of its filesystem
    device = sys / "dev" / "block" / f"{os.major(on_device)}:{os.minor(on_device)}"
    return _device_encrypted(device, _DEPTH_MAX) if device.exists() else None


def _device_encrypted(device: Path, depth: int) -> bool | None:
    """Whether all that is written to a block device passes a dm-crypt layer at it or below it."""
    if not depth:
        return None
    try:
        if (device / "dm" / "uuid").is_file() and (device / "dm" / "uuid").read_text().startswith(
            _CRYPT_UUID
        ):
            return True
        if (device / "backing_dev").is_file():  # zram
            return (device / "backing_dev").read_text().strip() in ("", "none")
        # A partition has no slaves of its own; a volume of LVM or a RAID has those it is made of.
        below = sorted((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    except OSError:
        return None
    answers = [_device_encrypted(slave, depth - 1) for slave in below]
    if not answers or False in answers:
        return False
    return None if None in answers else True


def write_back_here(mountpoint: str) -> None:
    """syncfs(2) of what is mounted there. Blocks; of our own mount never on the thread that serves it."""
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # unmounted meanwhile: the kernel handed over everything then
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)
