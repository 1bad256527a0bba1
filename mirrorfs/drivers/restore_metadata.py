"""Owners, permissions, attributes and times of what is restored, as far as this user may set them."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Final

from mirrorfs.drivers.restore_acl import without_list
from mirrorfs.format.rows import InodeRow

OWNERS: Final = "owners (run as root to restore them)"
SET_ID: Final = "set-user-ID, set-group-ID bits and file capabilities (--preserve-special as root)"
DEVICES: Final = "device nodes (--preserve-special as root)"
ATTRIBUTES: Final = "extended attributes that the system refused"
ROOT_ATTRIBUTES: Final = "security and trusted attributes (run as root to restore them)"
METADATA: Final = "permissions or times that the system refused"

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
FATAL: Final = frozenset({errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID


class Metadata:
    """Sets what may be set, and counts what not. Thread-safe.

    The order matters: a change of owner takes set-ID bits and capabilities away, permissions may forbid to
    set attributes, and times come last because some systems count the rest as a change.
    """

    def __init__(self, *, preserve_special: bool) -> None:
        """`preserve_special`: set-ID bits and capabilities too, if this is root."""
        self._is_root = os.geteuid() == 0
        self._own = os.geteuid(), os.getegid()
        self.special = preserve_special and self._is_root
        self.left_out: Counter[str] = Counter()
        """What was not restored, in words, and how many of each."""
        self._lock = threading.Lock()

    def leave_out(self, what: str) -> None:
        """Count something that is not restored."""
        with self._lock:
            self.left_out[what] += 1

    def set_plain(self, fd: int, *, mode: int, uid: int, gid: int, times_ns: tuple[int, int]) -> None:
        """Of a new file of this user's without attributes, for which every system call counts.

        Raises OSError.
        """
        if self._sets_owner(uid, gid):
            os.fchown(fd, uid, gid)
        os.fchmod(fd, self._permissions(mode))
        self._set_times(fd, times_ns)

    def set(self, target: int | str, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> None:
        """Of anything but a symbolic link. Raises OSError."""
        if self._sets_owner(row.uid, row.gid):
            os.chown(target, row.uid, row.gid)
        permissions = self._permissions(row.mode)
        for name, value in self._allowed(attributes):
            if not self._set_attribute(target, name, value):
                permissions = without_list(permissions, name, value)
        os.chmod(target, permissions)
        self._set_times(target, (row.atime_ns, row.mtime_ns))

    def set_link(
        self, directory: int, name: bytes, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Of a symbolic link in a directory. Raises OSError."""
        if self._sets_owner(row.uid, row.gid):
            os.chown(name, row.uid, row.gid, dir_fd=directory, follow_symlinks=False)
        for attribute, value in self._allowed(attributes):
            self._set_attribute(os.fsencode(f"/proc/self/fd/{directory}/") + name, attribute, value)
        try:
            os.utime(name, ns=(row.atime_ns, row.mtime_ns), dir_fd=directory, follow_symlinks=False)
        except OverflowError:
            self.leave_out(METADATA)

    def _set_times(self, target: int | str, times_ns: tuple[int, int]) -> None:
        try:
            os.utime(target, ns=times_ns)
        except OverflowError:
            self.leave_out(METADATA)

    def _sets_owner(self, uid: int, gid: int) -> bool:
        """Whether the owner is to be set; only root can give files away."""
        if not self._is_root and (uid, gid) != self._own:
            self.leave_out(OWNERS)
        # By root always: a directory with the set-group-ID bit gives what is made in it another group.
        return self._is_root

    def _permissions(self, mode: int) -> int:
        permissions = stat.S_IMODE(mode)
        if permissions & _SPECIAL_BITS and not self.special:
            self.leave_out(SET_ID)
            permissions &= ~_SPECIAL_BITS
        return permissions

    def _allowed(self, attributes: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Those that may be set here; the others are counted."""
        allowed = []
        for name, value in attributes:
            if name == b"security.capability" and not self.special:
                self.leave_out(SET_ID)
            elif name.startswith((b"security.", b"trusted.")) and not self._is_root:
                self.leave_out(ROOT_ATTRIBUTES)
            else:
                allowed.append((name, value))
        return allowed

    def _set_attribute(self, target: int | str | bytes, name: bytes, value: bytes) -> bool:
        try:
            if isinstance(target, bytes):
                os.setxattr(target, name, value, follow_symlinks=False)
            else:
                os.setxattr(target, name, value)
        except OSError as exc:
            if exc.errno in FATAL:
                raise
            self.leave_out(ATTRIBUTES)
            return False
        return True
