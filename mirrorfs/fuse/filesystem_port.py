"""What fuse/ needs of the engine: mirrorfs.engine's FileSystem, and whatever a test puts in its place.

Plain methods run on the trio loop without a checkpoint, so that two requests never interleave inside
one; they raise FilesystemError (or another MirrorfsError, which the caller sees as EIO). Names are
bytes. Sizes and allocated bytes are the live values, unsealed dirty data included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Inode(Protocol):
    """The part of format.rows.InodeRow that the kernel sees; the same words, units and signs."""

    @property
    def inode(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def allocated(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def atime_ns(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...
    @property
    def parent(self) -> int: ...


class Dentry(Protocol):
    """The part of format.rows.DentryRow that the kernel sees. Cookies are at least 16."""

    @property
    def cookie(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def inode(self) -> int: ...


class Space(Protocol):
    """What statfs tells; blocks are block_size bytes."""

    @property
    def block_size(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def blocks_free(self) -> int: ...
    @property
    def blocks_available(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def files_free(self) -> int: ...
    @property
    def name_max(self) -> int: ...


class FileSystemPort(Protocol):
    """One mounted volume. Inode 1 is its root."""

    @property
    def read_only(self) -> bool: ...

    def is_working(self) -> bool:
        """Whether threads are at work for the volume; cheap, asked per request."""

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode under a name; '.' and '..' too. Raises NoEntry."""

    def getattr(self, inode: int) -> Inode:
        """Raises NoEntry when the inode is unknown."""

    def create(
        self,
        parent: int,
        name: bytes,
        *,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        umask: int = 0,
    ) -> Inode:
        """A new inode of any type; mode holds type and permissions. Raises EntryExists.

        The umask counts where the directory has no default access list.
        """

    def link(self, inode: int, parent: int, name: bytes) -> Inode: ...
    def unlink(self, parent: int, name: bytes) -> Inode: ...
    def rmdir(self, parent: int, name: bytes) -> Inode: ...

    def rename(
        self,
        parent: int,
        name: bytes,
        *,
        new_parent: int,
        new_name: bytes,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None: ...

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
    ) -> Inode:
        """Change what is not None; mode is permission bits only (the type never changes)."""

    def accessed(self, inode: int) -> None:
        """The contents were read: the access time follows as relatime has it. Cheap; never fails."""

    def readlink(self, inode: int) -> bytes: ...

    def readdir(self, inode: int, *, after_cookie: int, limit: int) -> Sequence[Dentry]:
        """Entries in cookie order, strictly after a cookie; without '.' and '..'."""

    def getxattr(self, inode: int, name: bytes) -> bytes:
        """Raises NoAttribute."""

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
        """With an access list the permission bits follow; drop_setgid takes the setgid bit as well."""

    def listxattr(self, inode: int) -> Sequence[bytes]: ...
    def removexattr(self, inode: int, name: bytes) -> None: ...

    def has_xattrs(self) -> bool:
        """False only while no inode of the volume has an attribute; cheap, asked per request."""

    def statfs(self) -> Space: ...

    def opened(self, inode: int, *, writable: bool) -> None:
        """A handle comes to be. Raises NoSpaceLeft or ReadOnlyVolume; then there is none."""

    def released(self, inode: int, *, writable: bool) -> None:
        """The last reference to a handle went away: the close trigger."""

    def forgotten(self, inode: int) -> None:
        """The kernel neither knows nor holds open this inode: an orphan goes now."""

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """Up to size bytes, fewer only at the end of the file; holes read as zeros."""

    async def write(self, inode: int, offset: int, data: bytes) -> int:
        """Accept all of data; may wait for back-pressure."""

    async def fsync(self, inode: int) -> None:
        """This file's data and all namespace records so far are durable on return."""
