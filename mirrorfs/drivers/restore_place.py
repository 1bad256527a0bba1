"""DEST: whether something can be restored there, and taking it."""

from __future__ import annotations

import os
import stat

from mirrorfs.drivers.restore_acl import drop_lists
from mirrorfs.drivers.restore_metadata import FULL
from mirrorfs.drivers.restore_open import DIRECTORY_FLAGS, Descriptor
from mirrorfs.errors import DiskError, DiskFull, UsageError

_NOT_EMPTY = (
    "DEST is not empty; name an empty or a new directory, or say with --overwrite what may be replaced."
)


def check_destination(path: str, *, may_hold: bool = False) -> None:
    """See whether a restore may begin there.

    Args:
        may_hold: whether the directory may hold something.
    Raises: UsageError: something is there that is not such a directory, or its parent is not there.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise UsageError("The directory above DEST does not exist; make it first.") from None
        return
    except OSError as exc:
        raise UsageError(f"DEST cannot be looked at: {os.strerror(exc.errno or 0)}.") from exc
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError("DEST is not a directory; name an empty or a new one.")
    try:
        empty = not os.listdir(path)
    except OSError as exc:
        raise UsageError(f"DEST cannot be listed: {os.strerror(exc.errno or 0)}.") from exc
    if not empty and not may_hold:
        raise UsageError(_NOT_EMPTY)


def open_place(path: str, *, may_hold: bool) -> tuple[Descriptor, bool]:
    """Open DEST, or make it. One that is empty is made private, without access lists.

    Returns: it, and whether it is empty.
    Raises: UsageError: as `check_destination`. DiskError, DiskFull.
    """
    check_destination(path, may_hold=may_hold)
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        root = Descriptor(os.open(path, DIRECTORY_FLAGS))
        if os.listdir(root.fd):
            if not may_hold:
                raise UsageError(_NOT_EMPTY)
            return root, False
        drop_lists(root.fd)
        os.fchmod(root.fd, 0o700)
        if os.listdir(root.fd):
            raise UsageError(_NOT_EMPTY)
        return root, True
    except OSError as exc:
        raise disk_error(exc, "make DEST") from exc


def disk_error(exc: OSError, verb: str) -> DiskError:
    """What to raise where DEST failed."""
    if exc.errno in FULL:
        return DiskFull("The disk of DEST is full; the restore is incomplete: free space and start over.")
    return DiskError(f"The disk of DEST failed to {verb}: {os.strerror(exc.errno or 0)}.")
