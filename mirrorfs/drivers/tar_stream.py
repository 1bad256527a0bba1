"""engine/restore_archive.py's `Archive` as a tar stream, in the pax form (POSIX.1-2001).

What POSIX does not name is written as GNU tar and star do: `SCHILY.xattr.*` for extended attributes, in text
`SCHILY.acl.*` for access lists, `GNU.sparse` 1.0 for files with holes. Names and values that are no UTF-8 are
written as they are, with `hdrcharset=BINARY`.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import Final

from mirrorfs.errors import DamagedError, DiskError, FormatError
from mirrorfs.format.acl import (
    ACL_ACCESS,
    ACL_DEFAULT,
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    decode_acl,
)
from mirrorfs.format.rows import InodeRow

BUFFER_BYTES: Final = 1 << 20
SOCKETS: Final = "sockets (tar knows none)"
SET_ID: Final = "set-user-ID, set-group-ID bits and file capabilities (--preserve-special)"
DEVICES: Final = "device nodes (--preserve-special)"
_NS_PER_S: Final = 1_000_000_000
_TAGS: Final = {
    USER_OBJ: "user",
    USER: "user",
    GROUP_OBJ: "group",
    GROUP: "group",
    MASK: "mask",
    OTHER: "other",
}
_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID
_KINDS: Final = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


class TarStream:
    """A tar archive that is written to a descriptor, front to back."""

    def __init__(self, fd: int, *, preserve_special: bool = False) -> None:
        """
        Args:
            fd: written to, never closed.
            preserve_special: device nodes, set-ID bits and capabilities too.
        """
        self._fd = fd
        self._special = preserve_special
        self._pending = bytearray()
        self._size = 0
        self._left = 0
        """Bytes of the file that are still to come."""
        self.left_out: Counter[str] = Counter()

    def add(self, path: str, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> bool:
        """See Archive."""
        kind = stat.S_IFMT(row.mode)
        if kind == stat.S_IFSOCK:
            self.left_out[SOCKETS] += 1
            return False
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and not self._special:
            self.left_out[DEVICES] += 1
            return False
        info = self._info(path, row, attributes)
        info.type = _KINDS[kind]
        if kind == stat.S_IFLNK:
            info.linkname = os.fsdecode(row.target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.devmajor, info.devminor = os.major(row.rdev), os.minor(row.rdev)
        self._put(_header(info))
        return True

    def add_link(self, path: str, row: InodeRow, first: str) -> None:
        """See Archive."""
        info = self._info(path, row, ())
        info.type, info.linkname = tarfile.LNKTYPE, first
        self._put(_header(info))

    def begin_file(
        self,
        path: str,
        row: InodeRow,
        attributes: Sequence[tuple[bytes, bytes]],
        regions: Sequence[tuple[int, int]] | None,
    ) -> None:
        """See Archive."""
        info = self._info(path, row, attributes)
        table = b""
        info.size = self._left = row.size
        if regions is not None:
            table = _table(regions, row.size)
            self._left = sum(length for _, length in regions)
            info.size = self._left + len(table)
            info.pax_headers = {
                **info.pax_headers,
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": path,
                "GNU.sparse.realsize": str(row.size),
            }
            folder, _, name = path.rpartition("/")
            info.name = f"{folder or '.'}/GNUSparseFile.0/{name}"
        self._size = info.size
        self._put(_header(info) + table)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See Archive."""
        self._left -= len(data)
        assert self._left >= 0
        self._put(data)

    def end_file(self) -> None:
        """See Archive."""
        assert self._left == 0
        self._put(bytes(-self._size % tarfile.BLOCKSIZE))

    def close(self) -> None:
        """See Archive."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._flush()

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) >= BUFFER_BYTES:
            self._flush()
            self._write(memoryview(data))
            return
        self._pending += data
        if len(self._pending) >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._write(memoryview(pending))

    def _write(self, view: memoryview) -> None:
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError as exc:
            raise DiskError("Whoever read the tar stream went away; it is not complete.") from exc
        except OSError as exc:
            raise DiskError(f"The tar stream cannot be written: {os.strerror(exc.errno or 0)}.") from exc

    def _info(self, path: str, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> tarfile.TarInfo:
        """Raises: DamagedError: the path holds a name that is none."""
        names = path.split("/")
        if path != "." and ("\0" in path or any(name in ("", ".", "..") for name in names)):
            raise DamagedError("The volume holds a name that is none; restore an older moment.")
        info = tarfile.TarInfo(path)
        mode = stat.S_IMODE(row.mode)
        if mode & _SPECIAL_BITS and not self._special:
            self.left_out[SET_ID] += 1
            mode &= ~_SPECIAL_BITS
        info.mode, info.uid, info.gid = mode, row.uid, row.gid
        times = {"mtime": _seconds(row.mtime_ns), "atime": _seconds(row.atime_ns)}
        info.pax_headers = times | self._records(attributes)
        return info

    def _records(self, attributes: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
        found = {}
        for name, value in attributes:
            if name == b"security.capability" and not self._special:
                self.left_out[SET_ID] += 1
                continue
            text = _acl(value) if name in (ACL_ACCESS, ACL_DEFAULT) else None
            if text is not None:
                found["SCHILY.acl.access" if name == ACL_ACCESS else "SCHILY.acl.default"] = text
            else:
                found["SCHILY.xattr." + name.decode("utf-8", "surrogateescape")] = value.decode(
                    "utf-8", "surrogateescape"
                )
        return found


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _seconds(time_ns: int) -> str:
    """Seconds with nine decimals; of times before 1970 as well."""
    sign = "-" if time_ns < 0 else ""
    seconds, rest = divmod(abs(time_ns), _NS_PER_S)
    return f"{sign}{seconds}.{rest:09d}"


def _table(regions: Sequence[tuple[int, int]], size: int) -> bytes:
    """The map that precedes the data of a sparse file, in whole blocks."""
    rows = list(regions)
    if not rows or sum(rows[-1]) < size:
        rows.append((size, 0))
    text = f"{len(rows)}\n" + "".join([f"{offset}\n{length}\n" for offset, length in rows])
    return text.encode() + bytes(-len(text) % tarfile.BLOCKSIZE)


def _acl(value: bytes) -> str | None:
    """An access list in text, with numbers for names; None: it is none, and goes as it is."""
    try:
        entries = decode_acl(value)
    except FormatError:
        return None
    parts = []
    for entry in entries:
        who = str(entry.qualifier) if entry.tag in (USER, GROUP) else ""
        rights = "".join(
            letter if entry.permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        parts.append(f"{_TAGS[entry.tag]}:{who}:{rights}")
    return ",".join(parts)
