"""Attributes of inodes, the extended ones too: checked, then recorded in one synchronous step.

Invariant: an inode with an access list has the permission bits that the list says (core/acl.py). What
changes one changes the other in the same step, so in the same commit.
"""

from __future__ import annotations

import stat

from mirrorfs.core.acl import is_minimal, permission_bits, with_mode
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import (
    AttributeTooBig,
    EntryExists,
    FileTooLarge,
    FormatError,
    InvalidCall,
    IsADirectory,
    NoAttribute,
    NoEntry,
    NoSpaceLeft,
    NotPermitted,
)
from mirrorfs.format.acl import ACL_ACCESS, ACL_DEFAULT, ACL_NAMES, Acl, decode_acl, encode_acl
from mirrorfs.format.limits import FILE_SIZE_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX
from mirrorfs.format.record import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_UID,
    Removexattr,
    Setattr,
    Setxattr,
    Truncate,
)
from mirrorfs.format.rows import InodeRow

XATTR_LIST_MAX = 64 * 1024
"""Bytes of all names of one inode, each with its terminator: the kernel passes no longer list on."""
ATIME_AGE_MAX_NS = 24 * 3600 * 1_000_000_000
"""relatime: an access time older than this is renewed by any read."""
_PERMISSIONS = 0o777
_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1


class Attributes:
    """Attributes by inode number. Nothing here awaits."""

    def __init__(self, state: VolumeState, space: SpaceGuard) -> None:
        self._state = state
        self._space = space

    def row(self, inode: int) -> InodeRow:
        """The logged row of an inode. Raises NoEntry."""
        row = self._state.index.get_inode(inode)
        if row is None:
            raise NoEntry("no such inode")
        return row

    def getattr(self, inode: int) -> InodeRow:
        """The live row of an inode. Raises NoEntry."""
        return self._state.live(self.row(inode))

    def _check_growth(self) -> None:
        """For what makes the volume larger. Raises ReadOnlyVolume, WritesStopped, NoSpaceLeft."""
        self._state.check_writable()
        if self._state.stalled or self._space.soft():
            raise NoSpaceLeft("the local disk is full")

    # --- attributes --------------------------------------------------------------------------

    def setattr(
        self,
        inode: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> InodeRow:
        """Change what is not None. A change of size sets mtime and ctime unless they are given; others ctime.

        A size alone that is what it was changes nothing, times included (truncate(2)): the kernel keeps
        the times it has then, and would see others once it asks.
        """
        state = self._state
        state.check_writable()
        row = self.row(inode)
        now = state.clock.now_ns()
        if size is not None:
            changed = size != state.live_size(row)
            self._truncate(row, size)
            others = (mode, uid, gid, atime_ns, mtime_ns, ctime_ns)
            if not changed and all(value is None for value in others):
                return self.getattr(inode)
            mtime_ns = now if mtime_ns is None and changed else mtime_ns
        ctime_ns = now if ctime_ns is None else ctime_ns
        mask = 0
        for bit, value in (
            (SET_MODE, mode), (SET_UID, uid), (SET_GID, gid),
            (SET_ATIME, atime_ns), (SET_MTIME, mtime_ns), (SET_CTIME, ctime_ns),
        ):  # fmt: skip
            if value is not None:
                mask |= bit
        if mode is not None:
            mode = stat.S_IFMT(row.mode) | stat.S_IMODE(mode)
            self._chmod_acl(inode, mode, ctime_ns)
        state.record(
            Setattr(
                inode,
                mask,
                mode or 0,
                uid or 0,
                gid or 0,
                _clamp(atime_ns),
                _clamp(mtime_ns),
                _clamp(ctime_ns),
            )
        )
        return self.getattr(inode)

    def accessed(self, inode: int) -> None:
        """Its contents were read: the access time follows as relatime has it (mount(8)).

        Reading goes on where nothing may be written: the access time then stays as it is, without error.
        """
        state = self._state
        row = state.index.get_inode(inode)
        if row is None:
            return
        atime_ns = row.atime_ns
        now_ns = state.clock.now_ns()
        if atime_ns > row.mtime_ns and atime_ns > row.ctime_ns and now_ns - atime_ns < ATIME_AGE_MAX_NS:
            return
        if state.read_only or state.fatal is not None or state.stalled or self._space.soft():
            return
        state.record(Setattr(inode, SET_ATIME, 0, 0, 0, _clamp(now_ns), 0, 0))

    def _truncate(self, row: InodeRow, size: int) -> None:
        if stat.S_ISDIR(row.mode):
            raise IsADirectory("is a directory")
        if not stat.S_ISREG(row.mode):
            raise InvalidCall("not a regular file")
        if size > FILE_SIZE_MAX:
            raise FileTooLarge("file would be too large")
        state = self._state
        if size == row.size == state.live_size(row):
            return
        state.record(Truncate(row.inode, size))
        state.sense.cut(row.inode, size, state.applier.take_lost())
        if row.inode in state.writers:
            state.truncated.add(row.inode)
        file = state.dirty.get(row.inode)
        if file is not None:
            state.dirty_bytes -= file.truncate(size)
            state.drop_if_clean(file)

    # --- extended attributes -----------------------------------------------------------------

    def getxattr(self, inode: int, name: bytes) -> bytes:
        """Raises NoAttribute."""
        value = self._state.index.get_xattr(inode, name)
        if value is None:
            raise NoAttribute("no such attribute")
        return value

    def listxattr(self, inode: int) -> list[bytes]:
        """Names in order."""
        return self._state.index.list_xattrs(inode)

    def setxattr(
        self,
        inode: int,
        name: bytes,
        value: bytes,
        *,
        create_only: bool = False,
        replace_only: bool = False,
        drop_setgid: bool = False,
    ) -> None:
        """Set an attribute; an access list sets the permission bits as well.

        Args:
            drop_setgid: with an access list the set-group-ID bit goes, as chmod by a stranger to the
                group takes it away.
        Raises: EntryExists, NoAttribute: the two flags. AttributeTooBig. InvalidCall: no access list.
            NoSpaceLeft: the names would be too long to be listed.
        """
        self._check_growth()
        if len(name) > XATTR_NAME_MAX or len(value) > XATTR_VALUE_MAX:
            raise AttributeTooBig("extended attribute is too big")
        known = self._state.index.get_xattr(inode, name) is not None
        if known and create_only:
            raise EntryExists("attribute exists")
        if not known and replace_only:
            raise NoAttribute("no such attribute")
        row = self.row(inode)
        if not known:
            self._check_list(inode, name)
        if name in ACL_NAMES:
            acl = _decoded(value)
            value = encode_acl(acl)
            if name == ACL_ACCESS:
                self._set_access_acl(row, acl, stored=known, drop_setgid=drop_setgid)
                return
            if not stat.S_ISDIR(row.mode):
                raise NotPermitted("only directories have default access lists")
        self._state.record(Setxattr(inode, self._state.clock.now_ns(), name, value))

    def _check_list(self, inode: int, name: bytes) -> None:
        names = self._state.index.list_xattrs(inode)
        if len(name) + 1 + sum(map(len, names)) + len(names) > XATTR_LIST_MAX:
            raise NoSpaceLeft("extended attributes have too many names")

    def removexattr(self, inode: int, name: bytes) -> None:
        """Raises NoAttribute, but for an access list: where there is none, the mode says it all."""
        self._state.check_writable()
        if name in ACL_NAMES and self._state.index.get_xattr(inode, name) is None:
            return
        self.getxattr(inode, name)
        self._state.record(Removexattr(inode, self._state.clock.now_ns(), name))

    # --- access lists ------------------------------------------------------------------------

    def _set_access_acl(self, row: InodeRow, acl: Acl, *, stored: bool, drop_setgid: bool) -> None:
        """What a mode can say is kept as a mode only."""
        if stat.S_ISLNK(row.mode):
            raise NotPermitted("symbolic links have no access lists")
        state = self._state
        now_ns = state.clock.now_ns()
        if not is_minimal(acl):
            state.record(Setxattr(row.inode, now_ns, ACL_ACCESS, encode_acl(acl)))
        elif stored:
            state.record(Removexattr(row.inode, now_ns, ACL_ACCESS))
        mode = row.mode & ~_PERMISSIONS | permission_bits(acl)
        if drop_setgid:
            mode &= ~stat.S_ISGID
        state.record(Setattr(row.inode, SET_MODE | SET_CTIME, mode, 0, 0, 0, 0, _clamp(now_ns)))

    def _chmod_acl(self, inode: int, mode: int, ctime_ns: int) -> None:
        """The half of chmod that an access list needs."""
        value = self._state.index.get_xattr(inode, ACL_ACCESS)
        if value is None:
            return
        changed = encode_acl(with_mode(_decoded(value), mode))
        if changed != value:
            self._state.record(Setxattr(inode, _clamp(ctime_ns), ACL_ACCESS, changed))

    def _default_acl(self, directory: int) -> Acl | None:
        """What is created in a directory begins with this list; without one the umask counts."""
        value = self._state.index.get_xattr(directory, ACL_DEFAULT)
        return None if value is None else _decoded(value)


def _decoded(value: bytes) -> Acl:
    try:
        return decode_acl(value)
    except FormatError as exc:
        raise InvalidCall(str(exc)) from exc


def _clamp(time_ns: int | None) -> int:
    return 0 if time_ns is None else max(_TIME_MIN, min(_TIME_MAX, time_ns))
