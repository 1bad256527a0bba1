"""What the operating system's error numbers mean to a store in a directory."""

from __future__ import annotations

import errno

from mirrorfs.errors import (
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreUnavailable,
    UnknownOutcome,
)

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""What link() answers on file systems without hard links (FAT, exFAT, some network shares)."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FOREIGN = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR})


def translate(error: OSError, *, store: str, subject: str, deciding: bool = False) -> StoreError:
    """Turn an OSError into the StoreError to raise from it; subject says what was touched.

    deciding: the step that failed is the one that takes effect (link, rename, unlink), so that a
    passing fault, on a network file system above all, leaves the outcome unknown.
    """
    reason = error.strerror or "input/output error"
    if error.errno in _FULL:
        return StoreFull(f"Store {store} is full: make room on its disk.")
    if error.errno in _DENIED:
        return StoreDenied(f"Store {store} refuses access to {subject} ({reason}): check its permissions.")
    if error.errno in _FOREIGN:
        return StoreMismatch(f"Store {store} holds something that MirrorFS did not write at {subject}.")
    if deciding:
        return UnknownOutcome(f"Store {store} did not confirm a change of {subject} ({reason}).")
    return StoreUnavailable(f"Store {store} failed at {subject} ({reason}): check its disk or mount.")
