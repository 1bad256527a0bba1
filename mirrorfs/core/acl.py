"""How access control lists and permission bits follow each other: acl(5), POSIX 1003.1e draft 17.

The group bits of a mode are the list's mask where there is one, so that a program that knows of modes
only never grants to the named more than it meant to. The kernel checks permissions; it leaves to the
file system what changes when a list is set, a mode is set, and an inode is created. Only of what it does not
see, the present state behind a path of the past, permissions are checked here (`permits`).
"""

from __future__ import annotations

from collections.abc import Callable

from mirrorfs.format.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl

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


def permits(
    wanted: int, *, user: int, is_in: Callable[[int], bool], mode: int, uid: int, gid: int, acl: Acl | None
) -> bool:
    """Whether an inode grants a user all that is wanted (r 4, w 2, x 1), as acl(5) has it.

    `is_in`: whether a group is one of the user's; asked only where it matters. Root gets everything.
    """
    if user == 0:
        return True
    if user == uid:
        return not wanted & ~(mode >> 6)
    if acl is None:
        return not wanted & ~(mode >> 3 if is_in(gid) else mode)
    mask = next((entry.permissions for entry in acl if entry.tag == MASK), _RWX)
    for entry in acl:
        if entry.tag == USER and entry.qualifier == user:
            return not wanted & ~(entry.permissions & mask)
    theirs = [
        entry.permissions & mask
        for entry in acl
        if (entry.tag == GROUP_OBJ and is_in(gid)) or (entry.tag == GROUP and is_in(entry.qualifier))
    ]
    if theirs:
        return any(not wanted & ~granted for granted in theirs)
    return not wanted & ~mode
