"""The history of a volume as a directory that no listing shows: `.mirrorfs` at its root, read-only.

    .mirrorfs/snapshots/NAME/...        the tree as it was when the snapshot was made
    .mirrorfs/at/WHEN/...               the same at any moment, as `parse` reads it

A moment is opened when something in it is asked for (past_views.py), so that to list the snapshots costs
nothing. Inode numbers: BORDER, above all of the volume's own; the number of the moment in this session;
the inode's number in the volume. Moment 0 stands for the directories above. Who asks twice for one moment
gets the same numbers, also after its view was closed in between.

The root of a moment shows the permissions of today's root; those that it had then are checked here.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past_views import PastView, PastViews
from mirrorfs.engine.present_rights import READ, SEARCH, Caller, PresentRights, grants
from mirrorfs.errors import AccessDenied, NoAttribute, NoEntry, NotADirectory, UsageError, ViewsBusy
from mirrorfs.format.acl import ACL_NAMES
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import DentryRow, InodeRow

NAME: Final = b".mirrorfs"
BORDER: Final = 1 << 61
"""The first inode number of the history: a file handle, which is four times as large, fits into 64 bits."""
_INODE_BITS: Final = 44
_INODE_MASK: Final = (1 << _INODE_BITS) - 1
MOMENTS_MAX: Final = 1 << 16
"""Moments of one session, open or not."""
FIRST_COOKIE: Final = 16

_FIXED: Final = 0
_DOOR, _SNAPSHOTS, _AT = (BORDER | number for number in (1, 2, 3))
_NAMES: Final = {b"snapshots": _SNAPSHOTS, b"at": _AT}
_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o555

Entry = tuple[DentryRow, InodeRow]


@dataclass(frozen=True, slots=True)
class _Known:
    """A moment that was named in this session."""

    number: int
    moment: Moment
    time_ns: int
    above: int
    """Inode number of the directory that it is in."""
    rights: PresentRights


class History:
    """What is below `.mirrorfs`. Methods that await may have to open a moment, and raise as PastViews."""

    root = _DOOR

    def __init__(
        self,
        views: PastViews,
        *,
        parse: Callable[[bytes], Moment],
    ) -> None:
        """`parse`: the moment that a name in `at` means, always the same for one name. Raises: UsageError."""
        self._present = views.present
        self._views = views
        self._parse = parse
        self._known: list[_Known] = []
        self._numbers: dict[tuple[int, Moment], int] = {}

    def is_fixed(self, number: int) -> bool:
        """Whether an inode shows the permissions of today, and not what it had then."""
        return number & _INODE_MASK == ROOT_INODE or self._moment(number) is None

    def is_ready(self, number: int) -> bool:
        """Whether a request for an inode is answered without opening a moment."""
        known = self._moment(number)
        return known is None or self._views.is_open(known.number)

    # --- numbers -----------------------------------------------------------------------------

    def _moment(self, number: int) -> _Known | None:
        """Of an inode; None for the directories above the moments. Raises: NoEntry."""
        which = (number ^ BORDER) >> _INODE_BITS
        if which == _FIXED:
            return None
        if which > len(self._known):
            raise NoEntry("a moment of an earlier mount")
        return self._known[which - 1]

    def _number(self, above: int, moment: Moment, time_ns: int) -> int:
        """The inode number of a moment's root."""
        number = self._numbers.get((above, moment))
        if number is None:
            if len(self._known) >= MOMENTS_MAX:
                raise ViewsBusy("too many moments were looked at since the volume was mounted")
            number = self._numbers[above, moment] = len(self._known) + 1
            self._known.append(_Known(number, moment, time_ns, above, PresentRights(self._present)))
        return _joined(number, ROOT_INODE)

    def _fixed(self, number: int, time_ns: int | None = None) -> InodeRow:
        """A directory above the moments, or the root of one: it is as accessible as the root is today."""
        row = self._present.get_inode(ROOT_INODE)
        if row is None or number & _INODE_MASK > _AT & _INODE_MASK:
            raise NoEntry("no such inode")
        mode = row.mode & ~0o222 & _DIRECTORY_MODE if time_ns is None else row.mode
        time_ns = row.mtime_ns if time_ns is None else time_ns
        return row._replace(
            inode=number, mode=mode, nlink=1, size=0, allocated=0, generation=1,
            atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns, parent=self._parent(number),
        )  # fmt: skip

    def _parent(self, number: int) -> int:
        if number == _DOOR:
            return ROOT_INODE
        known = self._moment(number)
        return _DOOR if known is None else known.above

    def _row(self, known: _Known, row: InodeRow) -> InodeRow:
        """A row of the past as it is shown."""
        if row.inode == ROOT_INODE:
            return self._fixed(_joined(known.number, ROOT_INODE), known.time_ns)
        parent = _joined(known.number, row.parent) if row.parent else 0
        return row._replace(inode=_joined(known.number, row.inode), parent=parent)

    async def _view(self, known: _Known) -> PastView:
        return await self._views.get(known.number, known.moment)

    # --- names -------------------------------------------------------------------------------

    def door(self) -> InodeRow:
        """The row of `.mirrorfs` itself."""
        return self._fixed(_DOOR)

    async def lookup(self, parent: int, name: bytes, caller: Caller) -> InodeRow:
        """What is under a name. Raises: NoEntry, AccessDenied: the present forbids it."""
        known = self._moment(parent)
        if name == b".":
            return await self.getattr(parent)
        if known is None:
            return self._lookup_fixed(parent, name)
        inode = parent & _INODE_MASK
        view = await self._view(known)
        if name == b".." and inode == ROOT_INODE:
            return self._fixed(known.above)
        self._check_root(known, view, inode, caller, SEARCH)
        known.rights.check_search(inode, caller)
        row = view.tree.lookup(inode, name)
        if name != b"..":
            known.rights.check_name(inode, name, row, caller)
        return self._row(known, row)

    def _lookup_fixed(self, parent: int, name: bytes) -> InodeRow:
        if name == b"..":
            number = self._parent(parent)
            row = self._present.get_inode(ROOT_INODE) if number == ROOT_INODE else self._fixed(number)
            assert row is not None
            return row
        if parent == _DOOR and name in _NAMES:
            return self._fixed(_NAMES[name])
        if parent == _SNAPSHOTS:
            snapshot = self._present.get_snapshot(name)
            if snapshot is not None and snapshot.position:
                return self._root_of(_SNAPSHOTS, Moment(position=snapshot.position), snapshot.time_ns)
        if parent == _AT:
            try:
                moment = self._parse(name)
            except UsageError as exc:
                raise NoEntry("no moment") from exc
            return self._root_of(_AT, moment, moment.time_ns or 0)
        raise NoEntry("no such entry")

    def _root_of(self, above: int, moment: Moment, time_ns: int) -> InodeRow:
        return self._fixed(self._number(above, moment, time_ns), time_ns)

    def _check_root(self, known: _Known, view: PastView, inode: int, caller: Caller, wanted: int) -> None:
        """What the kernel has checked of any other directory: the permissions of then."""
        if inode == ROOT_INODE:
            index = view.index
            row = index.get_inode(ROOT_INODE) if index is not None else None
            if index is None or row is None or not grants(index, row, caller, wanted):
                raise AccessDenied("the root was not to be entered then")

    async def getattr(self, number: int) -> InodeRow:
        """The row of an inode. Raises: NoEntry."""
        known = self._moment(number)
        if known is None:
            return self._fixed(number)
        if number & _INODE_MASK == ROOT_INODE:
            return self._fixed(number, known.time_ns)
        view = await self._view(known)
        return self._row(known, view.tree.getattr(number & _INODE_MASK))

    async def readdir(self, number: int, *, after_cookie: int, limit: int) -> list[Entry]:
        """Entries with their inodes, in cookie order, strictly after a cookie; without '.' and '..'."""
        known = self._moment(number)
        if known is None:
            return [entry for entry in self._list_fixed(number) if entry[0].cookie > after_cookie][:limit]
        view = await self._view(known)
        names = view.tree.readdir(number & _INODE_MASK, after_cookie=after_cookie, limit=limit)
        return [
            (name._replace(parent=number), self._row(known, view.tree.getattr(name.inode))) for name in names
        ]

    def _list_fixed(self, number: int) -> list[Entry]:
        rows: list[tuple[bytes, InodeRow]] = []
        if number == _DOOR:
            rows = [(name, self._fixed(inode)) for name, inode in _NAMES.items()]
        elif number == _SNAPSHOTS:
            rows = [
                (one.name, self._root_of(_SNAPSHOTS, Moment(position=one.position), one.time_ns))
                for one in self._present.list_snapshots()
                if one.position
            ]
        # In the order in which numbers were given: that of a listing under way stays as it is.
        entries = [
            (DentryRow(FIRST_COOKIE + (row.inode ^ BORDER), number, name, row.inode), row)
            for name, row in rows
        ]
        return sorted(entries, key=lambda entry: entry[0].cookie)

    async def readlink(self, number: int) -> bytes:
        """The target of a symbolic link."""
        view = await self._view(self._needed(number))
        return view.tree.readlink(number & _INODE_MASK)

    # --- extended attributes -----------------------------------------------------------------

    async def getxattr(self, number: int, name: bytes, caller: Caller) -> bytes:
        """Raises: NoAttribute, AccessDenied."""
        known = self._moment(number)
        inode = number & _INODE_MASK
        if known is None or inode == ROOT_INODE:
            # Like its mode, its access list is that of today's root.
            value = self._present.get_xattr(ROOT_INODE, name) if name in ACL_NAMES else None
            if value is None:
                raise NoAttribute("no such attribute")
            return value
        view = await self._view(known)
        if name not in ACL_NAMES:  # for those the kernel itself asks
            known.rights.check_read(inode, caller)
        return view.tree.getxattr(inode, name)

    async def listxattr(self, number: int) -> list[bytes]:
        """Names in order."""
        known = self._moment(number)
        inode = number & _INODE_MASK
        if known is None or inode == ROOT_INODE:
            return []
        return (await self._view(known)).tree.listxattr(inode)

    # --- contents ----------------------------------------------------------------------------

    async def opened(self, number: int, caller: Caller) -> None:
        """A file or directory is opened to be read. Raises: AccessDenied: the present forbids it."""
        known = self._moment(number)
        if known is None:
            return
        inode = number & _INODE_MASK
        view = await self._view(known)
        self._check_root(known, view, inode, caller, READ)
        known.rights.check_read(inode, caller)
        self._views.opened(known.number)

    def released(self, number: int) -> None:
        """It was closed."""
        known = self._moment(number)
        if known is not None:
            self._views.released(known.number)

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of an open file, short at its end."""
        view = await self._view(self._needed(number))
        return await view.reader.read(number & _INODE_MASK, offset, size)

    def _needed(self, number: int) -> _Known:
        known = self._moment(number)
        if known is None:
            raise NotADirectory("there are directories only")
        return known


def _joined(number: int, inode: int) -> int:
    if inode > _INODE_MASK:
        raise NoEntry("the inode's number is too large")
    return BORDER | number << _INODE_BITS | inode
