"""Access control lists where a volume is restored to."""

from __future__ import annotations

import errno
import os

from mirrorfs.errors import FormatError
from mirrorfs.format.acl import ACL_ACCESS, ACL_NAMES, GROUP_OBJ, MASK, decode_acl

_ABSENT = frozenset({errno.ENODATA, errno.EOPNOTSUPP})
_RWX = 7


def drop_lists(directory: int) -> None:
    """Take the lists off a directory, by descriptor: what is made in it is to inherit none.

    A default list of the place would give the restored files readers that they do not have in the
    volume. Raises OSError.
    """
    for name in sorted(ACL_NAMES):
        try:
            os.removexattr(directory, name)
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise


def without_list(mode: int, name: bytes, value: bytes) -> int:
    """The permissions of a file whose attribute could not be set.

    Without its access list the group bits of the mode, which were the list's mask, would be the owning
    group's: it keeps what it had, and nobody gains.
    """
    if name != ACL_ACCESS:
        return mode
    try:
        granted = {entry.tag: entry.permissions for entry in decode_acl(value)}
    except FormatError:
        return mode & ~(_RWX << 3)
    group = granted[GROUP_OBJ] & granted.get(MASK, _RWX)
    return mode & ~(_RWX << 3) | mode & group << 3
