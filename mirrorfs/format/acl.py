"""POSIX access control lists as the kernel hands them over: the values of two extended attributes.

The form is Linux's version 2 (linux/posix_acl_xattr.h), little-endian: u32 version, then per entry u16
tag, u16 permissions, u32 qualifier. The log and every backup of attributes hold these bytes as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from mirrorfs.errors import FormatError

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
ACL_NAMES: Final = frozenset({ACL_ACCESS, ACL_DEFAULT})

USER_OBJ: Final = 0x01
"""The owner."""
USER: Final = 0x02
"""The user named by the qualifier."""
GROUP_OBJ: Final = 0x04
"""The owning group."""
GROUP: Final = 0x08
"""The group named by the qualifier."""
MASK: Final = 0x10
"""The most that USER, GROUP_OBJ and GROUP entries may grant."""
OTHER: Final = 0x20
UNQUALIFIED: Final = 0xFFFF_FFFF
"""The qualifier of entries that name nobody; as a number of a user or group it is invalid."""

_VERSION = struct.Struct("<I")
_VERSION_2: Final = 2
_ENTRY = struct.Struct("<HHI")
_RWX: Final = 7
_NAMED: Final = frozenset({USER, GROUP})
_ORDER: Final = (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)
_ONCE: Final = (USER_OBJ, GROUP_OBJ, OTHER)


class AclEntry(NamedTuple):
    tag: int
    permissions: int
    """r 4, w 2, x 1."""
    qualifier: int
    """User or group number of USER and GROUP entries; UNQUALIFIED of all others."""


Acl = tuple[AclEntry, ...]
"""A valid list: entries in the order of their tags; owner, owning group and other exactly once each; a
mask at most once, and always when somebody is named."""


def encode_acl(acl: Iterable[AclEntry]) -> bytes:
    """The attribute's value."""
    return _VERSION.pack(_VERSION_2) + b"".join([_ENTRY.pack(*entry) for entry in acl])


def decode_acl(data: bytes) -> Acl:
    """The inverse, as strict as the kernel (posix_acl_valid), which accepts one name twice.

    Raises: FormatError: another version, cut short, empty, or no valid list.
    """
    if len(data) < _VERSION.size or _VERSION.unpack_from(data)[0] != _VERSION_2:
        raise FormatError("access control list has an unknown version.")
    if (len(data) - _VERSION.size) % _ENTRY.size:
        raise FormatError("access control list has an entry cut short.")
    entries = []
    places = []
    for tag, permissions, qualifier in _ENTRY.iter_unpack(data[_VERSION.size :]):
        if tag not in _ORDER or permissions > _RWX:
            raise FormatError("access control list has reserved values.")
        if tag in _NAMED and qualifier == UNQUALIFIED:
            raise FormatError("access control list names nobody.")
        entries.append(AclEntry(tag, permissions, qualifier if tag in _NAMED else UNQUALIFIED))
        places.append(tag)
    if places != sorted(places):
        raise FormatError("access control list is out of order.")
    if any(places.count(tag) != 1 for tag in _ONCE) or places.count(MASK) > 1:
        raise FormatError("access control list lacks an entry, or has one twice.")
    if MASK not in places and not _NAMED.isdisjoint(places):
        raise FormatError("access control list names somebody and has no mask.")
    return tuple(entries)
