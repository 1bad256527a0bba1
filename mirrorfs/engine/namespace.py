"""The tree: every operation on names, checked, then recorded in one synchronous step.

Permission checks are the kernel's (default_permissions), but for what only the file system knows.
"""

from __future__ import annotations

import stat

from mirrorfs.core.acl import inherited, is_minimal, permission_bits
from mirrorfs.engine.attributes import Attributes
from mirrorfs.errors import (
    DirectoryNotEmpty,
    EntryExists,
    InvalidCall,
    IsADirectory,
    NameTooLong,
    NoEntry,
    NotADirectory,
    NotPermitted,
    TooManyLinks,
)
from mirrorfs.format.acl import ACL_ACCESS, ACL_DEFAULT, Acl, encode_acl
from mirrorfs.format.limits import (
    LINKS_MAX,
    NAME_MAX,
    ROOT_INODE,
    TARGET_MAX,
)
from mirrorfs.format.record import (
    Create,
    Forget,
    Link,
    Rename,
    Setxattr,
    Truncate,
    Unlink,
)
from mirrorfs.format.rows import DentryRow, InodeRow

FORGET_CHUNKS_INLINE = 64
PARENT_HINTS_MAX = 20_000


class Namespace(Attributes):
    """Names and attributes of one volume. Nothing here awaits."""

    # --- looking -----------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> InodeRow:
        """Raises NoEntry, NotADirectory, NameTooLong."""
        if len(name) > NAME_MAX:
            raise NameTooLong("name is too long")
        entry = self._state.index.get_dentry(parent, name)
        if entry is not None:
            return self.getattr(entry.inode)
        if name == b".":
            # Of a file too: so the kernel asks for an inode of which it has the number only, from a
            # file handle (NFS, open_by_handle_at).
            return self.getattr(parent)
        directory = self._directory(parent)
        if name == b"..":
            return self.getattr(directory.parent)
        raise NoEntry("no such entry")

    def readdir(self, inode: int, *, after_cookie: int, limit: int) -> list[DentryRow]:
        """Entries after a cookie, in cookie order."""
        return self._state.index.list_dentries(inode, after_cookie=after_cookie, limit=limit)

    def readlink(self, inode: int) -> bytes:
        """Raises InvalidCall when it is no symbolic link."""
        row = self.row(inode)
        if not stat.S_ISLNK(row.mode):
            raise InvalidCall("not a symbolic link")
        return row.target

    # --- names -------------------------------------------------------------------------------

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
    ) -> InodeRow:
        """A new file, directory, symbolic link, device node, FIFO or socket.

        The mode loses the bits of the umask, or, in a directory with a default access list, what that
        list does not grant; symbolic links keep their mode.
        """
        state = self._state
        self._check_growth()
        self._check_name(name)
        if len(target) > TARGET_MAX:
            raise NameTooLong("link target is too long")
        directory = self._directory(parent)
        if not directory.nlink:
            raise NoEntry("directory was removed")
        if state.index.get_dentry(parent, name) is not None:
            raise EntryExists("entry exists")
        is_directory = stat.S_ISDIR(mode)
        if is_directory and directory.nlink >= LINKS_MAX:
            raise TooManyLinks("too many subdirectories")
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_directory:
                mode |= stat.S_ISGID
        acls: tuple[Setxattr, ...] = ()
        applier = state.applier
        inode = applier.next_inode
        now_ns = state.clock.now_ns()
        if not stat.S_ISLNK(mode):
            default = self._default_acl(parent)
            if default is None:
                mode &= ~umask
            else:
                mode, acls = _inherit(default, inode, mode, now_ns)
        state.record(
            Create(
                parent,
                inode,
                applier.next_generation,
                applier.next_cookie,
                mode,
                uid,
                gid,
                rdev,
                now_ns,
                name,
                target,
            )
        )
        for acl in acls:
            state.record(acl)
        if stat.S_ISREG(mode):
            if len(state.parent_of) >= PARENT_HINTS_MAX:
                state.parent_of.clear()
            state.parent_of[inode] = parent
            state.sense.created(inode, parent, name)
        return self.row(inode)

    def link(self, inode: int, parent: int, name: bytes) -> InodeRow:
        """A further name for an inode that is not a directory."""
        state = self._state
        self._check_growth()
        self._check_name(name)
        row = self.row(inode)
        if stat.S_ISDIR(row.mode):
            raise NotPermitted("directories have one name")
        if not row.nlink:
            raise NoEntry("file was removed")
        if row.nlink >= LINKS_MAX:
            raise TooManyLinks("too many links")
        if not self._directory(parent).nlink:
            raise NoEntry("directory was removed")
        if state.index.get_dentry(parent, name) is not None:
            raise EntryExists("entry exists")
        state.record(Link(inode, parent, state.applier.next_cookie, state.clock.now_ns(), name))
        self._data_first(inode)
        return self.getattr(inode)

    def unlink(self, parent: int, name: bytes) -> InodeRow:
        """Remove a name that is not a directory's."""
        row = self._entry(parent, name)
        if stat.S_ISDIR(row.mode):
            raise IsADirectory("is a directory")
        return self._remove(parent, name, row)

    def rmdir(self, parent: int, name: bytes) -> InodeRow:
        """Remove an empty directory."""
        if name in (b".", b".."):
            raise InvalidCall("dot entries cannot be removed")
        row = self._entry(parent, name)
        if not stat.S_ISDIR(row.mode):
            raise NotADirectory("not a directory")
        if self._state.index.has_dentries(row.inode):
            raise DirectoryNotEmpty("directory is not empty")
        return self._remove(parent, name, row)

    def _remove(self, parent: int, name: bytes, row: InodeRow) -> InodeRow:
        self._state.check_writable()
        self._state.record(Unlink(parent, self._state.clock.now_ns(), name))
        self._state.sense.removed(row.inode, parent, name)
        return self.getattr(row.inode)

    def rename(
        self,
        parent: int,
        name: bytes,
        *,
        new_parent: int,
        new_name: bytes,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None:
        """Move a name; with exchange both names must exist and swap."""
        state = self._state
        state.check_writable()
        self._check_name(new_name)
        if no_replace and exchange:
            raise InvalidCall("flags exclude one another")
        source = self._entry(parent, name)
        target_directory = self._directory(new_parent)
        if not target_directory.nlink:
            raise NoEntry("directory was removed")
        entry = state.index.get_dentry(new_parent, new_name)
        if entry is None and exchange:
            raise NoEntry("no such entry")
        if entry is not None and no_replace:
            raise EntryExists("entry exists")
        if stat.S_ISDIR(source.mode):
            self._check_not_below(source.inode, new_parent)
        target = self.row(entry.inode) if entry is not None else None
        if target is not None and exchange and stat.S_ISDIR(target.mode):
            self._check_not_below(target.inode, parent)
        if target is not None and target.inode == source.inode:
            return  # Two names of one inode: POSIX says do nothing.
        if target is not None and not exchange:
            self._check_replaceable(source, target)
        if (
            stat.S_ISDIR(source.mode)
            and parent != new_parent
            and target is None
            and target_directory.nlink >= LINKS_MAX
        ):
            raise TooManyLinks("too many subdirectories")
        state.record(
            Rename(
                parent,
                new_parent,
                # A replaced name keeps its place, or a listing under way would show it twice.
                state.applier.next_cookie if entry is None else entry.cookie,
                state.clock.now_ns(),
                int(exchange),
                name,
                new_name,
            )
        )
        self._data_first(source.inode)
        if stat.S_ISREG(source.mode):
            state.sense.renamed(source.inode, name, new_parent, new_name)
        if target is not None and exchange:
            self._data_first(target.inode)
        elif target is not None:
            state.sense.replaced(target.inode, by=source.inode)

    def _check_replaceable(self, source: InodeRow, target: InodeRow) -> None:
        if stat.S_ISDIR(target.mode):
            if not stat.S_ISDIR(source.mode):
                raise IsADirectory("is a directory")
            if self._state.index.has_dentries(target.inode):
                raise DirectoryNotEmpty("directory is not empty")
        elif stat.S_ISDIR(source.mode):
            raise NotADirectory("not a directory")

    def _check_not_below(self, inode: int, directory: int) -> None:
        """A directory cannot move below itself: walk up from where it would go."""
        while True:
            if directory == inode:
                raise InvalidCall("a directory cannot move below itself")
            if directory == ROOT_INODE:
                return
            directory = self.row(directory).parent

    def _data_first(self, inode: int) -> None:
        """This inode got a name: its dirty data goes into the log before the next journal frame."""
        if inode in self._state.dirty:
            self._state.named.add(inode)

    # --- orphans -----------------------------------------------------------------------------

    def forget(self, inode: int) -> None:
        """Nothing refers to the inode any more but perhaps names: without names it is removed."""
        state = self._state
        if state.read_only or state.fatal is not None:
            return
        row = state.index.get_inode(inode)
        if row is None or row.nlink:
            return
        file = state.dirty.pop(inode, None)
        if file is not None:
            state.dirty_bytes -= file.waiting_bytes
            state.named.discard(inode)
        self._shrink(row)
        state.record(Forget(inode))
        state.sense.gone(inode, state.applier.take_lost())

    def _shrink(self, row: InodeRow) -> None:
        """Cut a long file from its end in steps, so that one record never frees a hundred thousand rows."""
        step = FORGET_CHUNKS_INLINE * 1024 * 1024
        size = row.size if row.allocated > step else 0
        while size > step:
            size -= step
            self._state.record(Truncate(row.inode, size))

    # --- checks ------------------------------------------------------------------------------

    def _directory(self, inode: int) -> InodeRow:
        row = self.row(inode)
        if not stat.S_ISDIR(row.mode):
            raise NotADirectory("not a directory")
        return row

    def _entry(self, parent: int, name: bytes) -> InodeRow:
        if len(name) > NAME_MAX:
            raise NameTooLong("name is too long")
        entry = self._state.index.get_dentry(parent, name)
        if entry is None:
            self._directory(parent)
            raise NoEntry("no such entry")
        return self.row(entry.inode)

    def _check_name(self, name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise NameTooLong("name is too long")
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise InvalidCall("not a name")


def _inherit(default: Acl, inode: int, mode: int, time_ns: int) -> tuple[int, tuple[Setxattr, ...]]:
    """(mode, records after the Create) of a new inode in a directory with a default access list."""
    acl = inherited(default, mode)
    records = []
    if not is_minimal(acl):
        records.append(Setxattr(inode, time_ns, ACL_ACCESS, encode_acl(acl)))
    if stat.S_ISDIR(mode):
        records.append(Setxattr(inode, time_ns, ACL_DEFAULT, encode_acl(default)))
    return mode & ~0o777 | permission_bits(acl), tuple(records)
