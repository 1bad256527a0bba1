"""How access control lists and permission bits follow each other: acl(5), POSIX 1003.1e draft 17.

The group bits of a mode are the list's mask where there is one, so that a program that knows of modes
only never grants to the named more than it meant to. The kernel checks permissions; it leaves to the
file system what changes when a list is set, a mode is set, and an inode is created.
"""

from __future__ import annotations

from mirrorfs.format.acl import GROUP_OBJ, MASK, OTHER, USER_OBJ, Acl

_RWX = 7
_CLASSES = 0o777
_MINIMAL_COUNT = 3


def is_minimal(acl: Acl) -> bool:
    """Whether the list says no more than nine permission bits can: owner, owning group, other."""
    return len(acl) == _MINIMAL_COUNT


def _group_tag(acl: Acl) -> int:
    """The entry that is the group bits of the mode."""
    return MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ


def _shifts(acl: Acl) -> dict[int, int]:
    """The entries that are bits of the mode, and where they are in it."""
    return {USER_OBJ: 6, _group_tag(acl): 3, OTHER: 0}


def permission_bits(acl: Acl) -> int:
    """The nine permission bits of an inode that has this access list."""
    shifts = _shifts(acl)
    return sum(entry.permissions << shifts[entry.tag] for entry in acl if entry.tag in shifts)


def with_mode(acl: Acl, mode: int) -> Acl:
    """The access list after chmod to the nine lowest bits of `mode`."""
    shifts = _shifts(acl)
    return tuple(
        entry._replace(permissions=mode >> shifts[entry.tag] & _RWX) if entry.tag in shifts else entry
        for entry in acl
    )


def inherited(default: Acl, mode: int) -> Acl:
    """The access list of what is created with `mode` in a directory with this default list.

    No entry grants what the mode does not. The umask has no part in it: the default list stands for it.
    """
    return with_mode(default, permission_bits(default) & mode & _CLASSES)
