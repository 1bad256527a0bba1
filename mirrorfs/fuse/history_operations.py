"""Requests on a mount with its history below `.mirrorfs`: MirrorOperations, and the same for the past.

Which of the two a request is for shows in the number of the inode, or of the handle; that one comparison is
all that it costs the live tree. An entry `.mirrorfs` that the volume has itself stays what is found there.

The kernel keeps no name of the past, so that each caller's own lookup comes here (engine/present_rights.py);
attributes and contents it may keep for as long as it likes. It holds no reference that matters: a number
means the same for as long as the mount exists.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import pyfuse3
from pyfuse3 import (
    ROOT_INODE,
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    XAttrNameT,
)

from mirrorfs.engine.history import BORDER, NAME, History
from mirrorfs.engine.present_rights import Caller
from mirrorfs.errors import NoEntry
from mirrorfs.fuse.attributes import TIMEOUT_S, dot_attributes, entry_attributes
from mirrorfs.fuse.errno_table import async_handler
from mirrorfs.fuse.filesystem_port import FileSystemPort, Inode
from mirrorfs.fuse.operations import BATCH, DOT, DOT_DOT, MirrorOperations
from mirrorfs.fuse.waiting_caller import unless_told_to_end
from mirrorfs.fuse.xattrs import check_namespace, shown_xattrs, supplementary_groups

HANDLE_BORDER: Final = BORDER << 2
FIXED_TIMEOUT_S: Final = 1
"""How long attributes are kept that are those of today's root."""

R = TypeVar("R")
Handler = Callable[..., Coroutine[Any, Any, Any]]


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, lambda: supplementary_groups(ctx))


async def _refused(code: int) -> Any:
    raise FUSEError(code)


def _routed(live: Handler, past: Handler, *, more: int, border: int = BORDER) -> Handler:
    """The handler of both for an inode, or a handle, and so many arguments more.

    One for each number of arguments: to pass them on as they come would cost several times the comparison.
    """

    def alone(self: HistoryOperations, number: int) -> Coroutine[Any, Any, Any]:
        return live(self, number) if number < border else past(self, number)

    def with_one(self: HistoryOperations, number: int, one: Any) -> Coroutine[Any, Any, Any]:
        return live(self, number, one) if number < border else past(self, number, one)

    def with_two(self: HistoryOperations, number: int, one: Any, two: Any) -> Coroutine[Any, Any, Any]:
        return live(self, number, one, two) if number < border else past(self, number, one, two)

    return (alone, with_one, with_two)[more]


def _changing(live: Handler) -> Handler:
    """A change of an inode."""

    def handler(self: HistoryOperations, inode: int, *arguments: Any) -> Coroutine[Any, Any, Any]:
        return live(self, inode, *arguments) if inode < BORDER else _refused(errno.EROFS)

    return handler


def _naming(live: Handler, taken: int) -> Handler:
    """A change of a name in a directory; `taken`: the answer where the name is that of the history."""

    def handler(
        self: HistoryOperations, parent: int, name: bytes, *arguments: Any
    ) -> Coroutine[Any, Any, Any]:
        if parent >= BORDER:
            return _refused(errno.EROFS)
        if parent == ROOT_INODE and name == NAME and self.is_door():
            return _refused(taken)
        return live(self, parent, name, *arguments)

    return handler


class HistoryOperations(MirrorOperations):
    """All request handlers of one mount."""

    def __init__(
        self,
        filesystem: FileSystemPort,
        history: History,
        *,
        on_unexpected: Callable[[Exception], None] | None = None,
        follows: bool = False,
    ) -> None:
        """The arguments are those of MirrorOperations; `history`: of the same volume."""
        super().__init__(filesystem, on_unexpected=on_unexpected, follows=follows)
        self._history = history

    def is_door(self) -> bool:
        """Whether `.mirrorfs` leads to the history; else the volume has such an entry itself."""
        try:
            self._fs.lookup(ROOT_INODE, NAME)
        except NoEntry:
            return True
        return False

    def _entry(self, row: Inode) -> EntryAttributes:
        """The kernel's view of an inode of the past: no name is kept."""
        timeout_s = FIXED_TIMEOUT_S if self._history.is_fixed(row.inode) else TIMEOUT_S
        entry = entry_attributes(row, timeout_s=timeout_s)
        entry.entry_timeout = 0
        return entry

    async def _ask(self, inode: int, ctx: RequestContext, work: Callable[[], Awaitable[R]]) -> R:
        """What the history answers; it may have to open a moment first."""
        if self._history.is_ready(inode):
            return await work()
        return await unless_told_to_end(ctx.pid, work)

    # --- names -------------------------------------------------------------------------------

    def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> Coroutine[Any, Any, EntryAttributes]:
        """The door is found where the volume has no such entry."""
        if parent_inode >= BORDER:
            return self._lookup_past(parent_inode, name, ctx)
        if parent_inode == ROOT_INODE and name == NAME:
            return self._lookup_door(parent_inode, name, ctx)
        return MirrorOperations.lookup(self, parent_inode, name, ctx)

    @async_handler
    async def _lookup_door(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if self.is_door():
            return self._entry(self._history.door())
        return await MirrorOperations.lookup(self, parent, name, ctx)

    @async_handler
    async def _lookup_past(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        caller = _caller(ctx)
        row = await self._ask(parent, ctx, lambda: self._history.lookup(parent, name, caller))
        return self._entry(row)

    def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> Coroutine[Any, Any, EntryAttributes]:
        """No link leads across."""
        if new_parent_inode >= BORDER:
            return _refused(errno.EROFS)
        if inode >= BORDER:
            return _refused(errno.EXDEV)
        if new_parent_inode == ROOT_INODE and new_name == NAME and self.is_door():
            return _refused(errno.EEXIST)
        return MirrorOperations.link(self, inode, new_parent_inode, new_name, ctx)

    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> Coroutine[Any, Any, None]:
        """Nothing is moved across, nor the door."""
        if parent_inode_old >= BORDER or parent_inode_new >= BORDER:
            return _refused(errno.EROFS)
        for parent, name in ((parent_inode_old, name_old), (parent_inode_new, name_new)):
            if parent == ROOT_INODE and name == NAME and self.is_door():
                return _refused(errno.EBUSY)
        return MirrorOperations.rename(
            self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx
        )

    def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> Coroutine[Any, Any, tuple[FileInfo, EntryAttributes]]:
        """As `_naming` has it, without its cost: most programs live by this request."""
        if parent_inode >= BORDER:
            return _refused(errno.EROFS)
        if parent_inode == ROOT_INODE and name == NAME and self.is_door():
            return _refused(errno.EEXIST)
        return MirrorOperations.create(self, parent_inode, name, mode, flags, ctx)

    mknod = _naming(MirrorOperations.mknod, errno.EEXIST)
    mkdir = _naming(MirrorOperations.mkdir, errno.EEXIST)
    symlink = _naming(MirrorOperations.symlink, errno.EEXIST)
    unlink = _naming(MirrorOperations.unlink, errno.EISDIR)
    rmdir = _naming(MirrorOperations.rmdir, errno.EBUSY)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Of the past nothing is counted."""
        await MirrorOperations.forget(self, [one for one in inode_list if one[0] < BORDER])

    # --- attributes --------------------------------------------------------------------------

    @async_handler
    async def _getattr_past(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        row = await self._ask(inode, ctx, lambda: self._history.getattr(inode))
        return self._entry(row)

    @async_handler
    async def _readlink_past(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(await self._ask(inode, ctx, lambda: self._history.readlink(inode)))

    @async_handler
    async def _getxattr_past(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        check_namespace(name)
        caller = _caller(ctx)
        return await self._ask(inode, ctx, lambda: self._history.getxattr(inode, name, caller))

    @async_handler
    async def _listxattr_past(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = await self._ask(inode, ctx, lambda: self._history.listxattr(inode))
        return shown_xattrs(names, ctx)

    getattr = _routed(MirrorOperations.getattr, _getattr_past, more=1)
    readlink = _routed(MirrorOperations.readlink, _readlink_past, more=1)
    getxattr = _routed(MirrorOperations.getxattr, _getxattr_past, more=2)
    listxattr = _routed(MirrorOperations.listxattr, _listxattr_past, more=1)
    setattr = _changing(MirrorOperations.setattr)
    setxattr = _changing(MirrorOperations.setxattr)
    removexattr = _changing(MirrorOperations.removexattr)

    # --- files and directories ---------------------------------------------------------------

    @async_handler
    async def _open_past(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FUSEError(errno.EROFS)
        return FileInfo(fh=FileHandleT(await self._opened(inode, ctx) << 2), keep_cache=True)

    async def _opened(self, inode: int, ctx: RequestContext) -> int:
        caller = _caller(ctx)
        await self._ask(inode, ctx, lambda: self._history.opened(inode, caller))
        return inode

    @async_handler
    async def _read_past(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return await self._history.read(fh >> 2, off, size)

    @async_handler
    async def _write_past(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        raise FUSEError(errno.EROFS)  # there is no handle for it

    @async_handler
    async def _release_past(self, fh: FileHandleT) -> None:
        self._history.released(fh >> 2)

    @async_handler
    async def _fsync_past(self, fh: FileHandleT, datasync: bool) -> None:
        return

    @async_handler
    async def _opendir_past(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(await self._opened(inode, ctx))

    @async_handler
    async def _readdir_past(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        history, reply = self._history, pyfuse3.readdir_reply
        if start_id < DOT and not reply(token, FileNameT(b"."), dot_attributes(fh), DOT):
            return
        if start_id < DOT_DOT:
            parent = (await history.getattr(fh)).parent
            if not reply(token, FileNameT(b".."), dot_attributes(parent), DOT_DOT):
                return
        after = max(start_id, DOT_DOT)
        while batch := await history.readdir(fh, after_cookie=after, limit=BATCH):
            for name, row in batch:
                if not reply(token, FileNameT(name.name), self._entry(row), name.cookie):
                    return
            after = batch[-1][0].cookie

    @async_handler
    async def _releasedir_past(self, fh: FileHandleT) -> None:
        self._history.released(fh)

    open = _routed(MirrorOperations.open, _open_past, more=2)
    read = _routed(MirrorOperations.read, _read_past, more=2, border=HANDLE_BORDER)
    write = _routed(MirrorOperations.write, _write_past, more=2, border=HANDLE_BORDER)
    release = _routed(MirrorOperations.release, _release_past, more=0, border=HANDLE_BORDER)
    fsync = _routed(MirrorOperations.fsync, _fsync_past, more=1, border=HANDLE_BORDER)
    opendir = _routed(MirrorOperations.opendir, _opendir_past, more=1)
    readdir = _routed(MirrorOperations.readdir, _readdir_past, more=2)
    releasedir = _routed(MirrorOperations.releasedir, _releasedir_past, more=0)
    fsyncdir = _routed(MirrorOperations.fsyncdir, _fsync_past, more=1)
