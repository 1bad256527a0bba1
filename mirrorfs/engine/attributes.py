"""Attributes of inodes, the extended ones too: checked, then recorded in one synchronous step."""

from __future__ import annotations

import stat

from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import (
    AttributeTooBig,
    EntryExists,
    FileTooLarge,
    InvalidCall,
    IsADirectory,
    NoAttribute,
    NoEntry,
    NoSpaceLeft,
)
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
        """Change what is not None. A size change sets mtime and ctime unless they are given; others ctime."""
        state = self._state
        state.check_writable()
        row = self.row(inode)
        now = state.clock.now_ns()
        if size is not None:
            self._truncate(row, size)
            mtime_ns = now if mtime_ns is None else mtime_ns
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
        self, inode: int, name: bytes, value: bytes, *, create_only: bool = False, replace_only: bool = False
    ) -> None:
        """Raises EntryExists, NoAttribute for the two flags; AttributeTooBig."""
        self._check_growth()
        if len(name) > XATTR_NAME_MAX or len(value) > XATTR_VALUE_MAX:
            raise AttributeTooBig("extended attribute is too big")
        known = self._state.index.get_xattr(inode, name) is not None
        if known and create_only:
            raise EntryExists("attribute exists")
        if not known and replace_only:
            raise NoAttribute("no such attribute")
        self.row(inode)
        self._state.record(Setxattr(inode, self._state.clock.now_ns(), name, value))

    def removexattr(self, inode: int, name: bytes) -> None:
        """Raises NoAttribute."""
        self._state.check_writable()
        self.getxattr(inode, name)
        self._state.record(Removexattr(inode, self._state.clock.now_ns(), name))


def _clamp(time_ns: int | None) -> int:
    return 0 if time_ns is None else max(_TIME_MIN, min(_TIME_MAX, time_ns))
