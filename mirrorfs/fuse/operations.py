"""pyfuse3's requests, carried out by the engine.

What the kernel does here by itself, so that no request is made or needed for it:
- It owns size and mtime of a file with dirty pages and merges what we answer; ctime and mtime updates
  arrive as setattr. It places O_APPEND writes; it reads through write-only handles to fill pages.
- Permissions (default_permissions, access lists with them), POSIX and flock locks, the limits on
  paths, the clearing of setuid bits. The umask is ours (kernel_mount.py).
- Names, absent names too, and attributes stay valid for a day: this mount is the only writer, and all
  its changes pass through this kernel.

A file handle is `inode << 2 | unnoticed << 1 | writable`, a directory's is its inode: there is no table
of handles. Reads through an unnoticed one leave the access time alone: it was opened with O_NOATIME, or
for writing only, and then the kernel reads to fill the page that a write changes in part.

Lookup counts grow with every entry a reply carries, and only once nothing can fail any more: an error
reply carries none.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import (
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
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from mirrorfs.errors import NoEntry
from mirrorfs.fuse.attributes import Answers, dot_attributes
from mirrorfs.fuse.errno_table import async_handler, handler, log_unexpected
from mirrorfs.fuse.filesystem_port import FileSystemPort, Inode
from mirrorfs.fuse.references import References
from mirrorfs.fuse.xattrs import ACL_ACCESS, check_namespace, check_sizes, is_stranger, shown_xattrs

log = logging.getLogger(__name__)

FIRST_BATCH: Final = 32
BATCH: Final = 200
"""Entries per call to the engine. Older kernels ask for a page of entries (about 25), newer ones for as
much as getdents did (about 200 in glibc's 32 KiB)."""
DOT: Final = 1
DOT_DOT: Final = 2

WRITABLE: Final = 1
UNNOTICED: Final = 2

S_IFLNK: Final = 0o120000
PERMISSIONS: Final = 0o7777
SET_ID: Final = 0o6000


def _is_writable(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY


def _handle(inode: int, flags: int) -> FileHandleT:
    unnoticed = bool(flags & os.O_NOATIME) or flags & os.O_ACCMODE == os.O_WRONLY
    return FileHandleT(inode << 2 | unnoticed << 1 | _is_writable(flags))


class MirrorOperations(pyfuse3.Operations):
    """All request handlers of one mount.

    Args:
        filesystem: the engine.
        on_unexpected: told of every exception that no handler foresaw, to stop writing; must not raise.
        follows: changes are made elsewhere.
    """

    supports_dot_lookup = True
    enable_acl = True

    def __init__(
        self,
        filesystem: FileSystemPort,
        *,
        on_unexpected: Callable[[Exception], None] | None = None,
        follows: bool = False,
    ) -> None:
        super().__init__()
        self._answers = Answers(follows=follows)
        self.enable_writeback_cache = not follows  # with it the kernel trusts its own sizes and times
        self._fs = filesystem
        self._on_unexpected = on_unexpected
        self.references = References()
        self.initialised = trio.Event()
        """Set while the kernel's first request is answered; requests follow."""

    def unexpected(self, error: Exception) -> None:
        log_unexpected(error)
        if self._on_unexpected is not None:
            self._on_unexpected(error)

    def is_working(self) -> bool:
        """Whether threads of the engine are at work."""
        return self._fs.is_working()

    def init(self) -> None:
        self.initialised.set()

    def _known(self, row: Inode) -> EntryAttributes:
        """The entry of a row that the reply gives to the kernel for keeping."""
        entry = self._answers.entry(row)
        self.references.looked_up(row.inode)
        return entry

    # --- names -------------------------------------------------------------------------------

    @handler
    def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        try:
            row = self._fs.lookup(parent_inode, name)
        except NoEntry:
            return self._answers.absent
        if not row.nlink:
            # Removed, and asked for by its number, from a file handle, by a kernel that has let go of it: its
            # FORGET may come after this. Whoever got an entry would open what nobody has any more.
            return self._answers.absent
        return self._known(row)

    @handler
    def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        row = self._fs.create(
            parent_inode, name, mode=mode, uid=ctx.uid, gid=ctx.gid, rdev=rdev, umask=ctx.umask
        )
        return self._known(row)

    @handler
    def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        row = self._fs.create(parent_inode, name, mode=mode, uid=ctx.uid, gid=ctx.gid, umask=ctx.umask)
        return self._known(row)

    @handler
    def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        row = self._fs.create(
            parent_inode, name, mode=S_IFLNK | 0o777, uid=ctx.uid, gid=ctx.gid, target=target
        )
        return self._known(row)

    @handler
    def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        row = self._fs.create(parent_inode, name, mode=mode, uid=ctx.uid, gid=ctx.gid, umask=ctx.umask)
        info = self._open(row.inode, flags)
        return info, self._known(row)

    @handler
    def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._known(self._fs.link(inode, new_parent_inode, new_name))

    @handler
    def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._fs.unlink(parent_inode, name)

    @handler
    def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._fs.rmdir(parent_inode, name)

    @handler
    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        self._fs.rename(
            parent_inode_old,
            name_old,
            new_parent=parent_inode_new,
            new_name=name_new,
            no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=bool(flags & pyfuse3.RENAME_EXCHANGE),
        )

    @handler
    def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        target = self._fs.readlink(inode)
        self._fs.accessed(inode)
        return FileNameT(target)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        # FORGET has no reply, so no error may leave: one inode that fails must not keep the others.
        for inode, count in inode_list:
            if self.references.forget(inode, count):
                await self._forgotten(inode)

    async def _forgotten(self, inode: int) -> None:
        if inode == pyfuse3.ROOT_INODE:
            return
        try:
            await self._tell_forgotten(inode)
        except FUSEError as error:
            # Nothing is lost: what stays is an orphan, and the next writable mount removes it.
            log.warning("an inode that is no longer in use was kept: errno %d", error.errno)

    @handler
    def _tell_forgotten(self, inode: int) -> None:
        self._fs.forgotten(inode)

    # --- attributes --------------------------------------------------------------------------

    @handler
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._answers.entry(self._fs.getattr(inode))

    @handler
    def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        row = self._fs.setattr(
            inode,
            mode=attr.st_mode & PERMISSIONS if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._answers.entry(row)

    @handler
    def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        # The kernel asks for security.capability before the first write to every file. ENOSYS would
        # silence it for the mount's lifetime, and would be wrong from the first setxattr on.
        check_namespace(name)
        if not self._fs.has_xattrs():
            raise FUSEError(errno.ENODATA)
        return self._fs.getxattr(inode, name)

    @handler
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        # pyfuse3 has carried out XATTR_CREATE and XATTR_REPLACE through getxattr; the kernel holds the
        # inode's lock meanwhile.
        check_namespace(name)
        check_sizes(name, value)
        if name == ACL_ACCESS:
            self._fs.setxattr(inode, name, value, drop_setgid=is_stranger(self._fs.getattr(inode), ctx))
        else:
            self._fs.setxattr(inode, name, value)

    @handler
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        if not self._fs.has_xattrs():
            return []
        return shown_xattrs(self._fs.listxattr(inode), ctx)

    @handler
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        check_namespace(name)
        self._fs.removexattr(inode, name)

    @handler
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = self._fs.statfs()
        stats = StatvfsData()
        stats.f_bsize = stats.f_frsize = space.block_size
        stats.f_blocks = space.blocks
        stats.f_bfree = space.blocks_free
        stats.f_bavail = space.blocks_available
        stats.f_files = space.files
        stats.f_ffree = stats.f_favail = space.files_free
        stats.f_namemax = space.name_max
        return stats

    # --- files -------------------------------------------------------------------------------

    def _open(self, inode: int, flags: int) -> FileInfo:
        self._fs.opened(inode, writable=_is_writable(flags))
        self.references.opened(inode)
        # O_DIRECT needs no flag of ours: the kernel bypasses its cache for such a handle by itself.
        return FileInfo(fh=_handle(inode, flags), keep_cache=self._answers.keeps_contents)

    @async_handler
    async def _close(self, inode: int, writable: bool) -> None:
        gone = self.references.released(inode)
        try:
            self._fs.released(inode, writable=writable)
        finally:
            if gone:
                await self._forgotten(inode)

    @async_handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        info = self._open(inode, flags)
        if flags & os.O_TRUNC:  # libfuse asks for atomic O_TRUNC: the kernel sends no setattr of its own
            try:
                self._truncate(inode, by=ctx.uid)
            except BaseException:
                await self._close(inode, _is_writable(flags))
                raise
        return info

    def _truncate(self, inode: InodeT, *, by: int) -> None:
        """What an open with O_TRUNC does, the loss of set-id bits included: nobody but us can do that."""
        mode = self._fs.getattr(inode).mode
        if by == 0 or not mode & SET_ID:
            self._fs.setattr(inode, size=0)
            return
        self._fs.setattr(inode, size=0, mode=mode & PERMISSIONS & ~SET_ID)

    @async_handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        inode = fh >> 2
        if not fh & UNNOTICED:
            self._fs.accessed(inode)
        return await self._fs.read(inode, off, size)

    @async_handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.write(fh >> 2, off, buf)

    async def flush(self, fh: FileHandleT) -> None:
        # close() has written the dirty pages back before it asks, and does so too after this answer,
        # which stops the asking for the mount's lifetime. RELEASE is the close trigger.
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        await self._close(fh >> 2, bool(fh & WRITABLE))

    @async_handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.fsync(fh >> 2)

    # --- directories -------------------------------------------------------------------------

    @handler
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    @handler
    def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        fs, reply = self._fs, pyfuse3.readdir_reply
        if start_id < DOT:
            fs.accessed(fh)
        if start_id < DOT and not reply(token, FileNameT(b"."), dot_attributes(fh), DOT):
            return
        if start_id < DOT_DOT:
            parent = fs.getattr(InodeT(fh)).parent or fh
            if not reply(token, FileNameT(b".."), dot_attributes(parent), DOT_DOT):
                return
        sent: list[int] = []
        after, limit = max(start_id, DOT_DOT), FIRST_BATCH
        while batch := fs.readdir(InodeT(fh), after_cookie=after, limit=limit):
            for name in batch:
                entry = self._answers.entry(fs.getattr(InodeT(name.inode)))
                if not reply(token, FileNameT(name.name), entry, name.cookie):
                    break
                sent.append(name.inode)
            else:
                if len(batch) == limit:
                    after, limit = batch[-1].cookie, BATCH
                    continue
            break
        for inode in sent:
            self.references.looked_up(inode)

    async def releasedir(self, fh: FileHandleT) -> None:
        return

    @async_handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        # All names so far, and the data that must not come after them; not every file's.
        await self._fs.fsync(fh)
