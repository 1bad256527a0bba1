"""What of extended attributes only the side that talks to the kernel knows: namespaces and callers."""

from __future__ import annotations

import errno
from typing import Final

import pyfuse3
from pyfuse3 import FUSEError, RequestContext

from mirrorfs.fuse.filesystem_port import Inode

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_NAMES: Final = (ACL_ACCESS, b"system.posix_acl_default")
"""All there is of "system."."""
XATTR_NAMESPACES: Final = (b"user.", b"security.", b"trusted.")
XATTR_NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 64 * 1024
S_ISGID: Final = 0o2000


def check_namespace(name: bytes) -> None:
    """Raises FUSEError: EOPNOTSUPP, there is no such namespace; EINVAL, a namespace without a name."""
    if not name.startswith(XATTR_NAMESPACES) and name not in ACL_NAMES:
        raise FUSEError(errno.EOPNOTSUPP)
    if name in XATTR_NAMESPACES:
        raise FUSEError(errno.EINVAL)


def is_stranger(row: Inode, ctx: RequestContext) -> bool:
    """Whether the caller is outside the group of a setgid inode: chmod would take that bit away.

    When an access list is set the kernel leaves this to us, and tells us only in a version of the
    protocol that libfuse does not ask for.
    """
    if not row.mode & S_ISGID or ctx.uid == 0 or ctx.gid == row.gid:
        return False
    try:
        return row.gid not in pyfuse3.get_sup_groups(ctx.pid)
    except (OSError, RuntimeError):  # the process is gone, or not visible from here
        return True
