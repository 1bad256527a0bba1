"""What of extended attributes only the side that talks to the kernel knows: namespaces and callers."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable
from typing import Final

import pyfuse3
from pyfuse3 import FUSEError, RequestContext, XAttrNameT

from mirrorfs.errors import AttributeTooBig
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


def check_sizes(name: bytes, value: bytes) -> None:
    """Raises AttributeTooBig."""
    if len(name) > XATTR_NAME_MAX or len(value) > XATTR_VALUE_MAX:
        raise AttributeTooBig("An extended attribute is too long; store the value in a file.")


def is_stranger(row: Inode, ctx: RequestContext) -> bool:
    """Whether the caller is outside the group of a setgid inode: chmod would take that bit away.

    When an access list is set the kernel leaves this to us, and tells us only in a version of the
    protocol that libfuse does not ask for.
    """
    if not row.mode & S_ISGID or ctx.uid == 0 or ctx.gid == row.gid:
        return False
    return row.gid not in supplementary_groups(ctx)


def supplementary_groups(ctx: RequestContext) -> Collection[int]:
    """Of the caller; none where they cannot be seen."""
    try:
        return pyfuse3.get_sup_groups(ctx.pid)
    except (OSError, RuntimeError):  # the process is gone, or not visible from here
        return ()


def shown_xattrs(names: Iterable[bytes], ctx: RequestContext) -> list[XAttrNameT]:
    """Names of attributes for a caller: trusted.* does not exist for the unprivileged, as on ext4."""
    return [XAttrNameT(name) for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]
