"""A restore that makes nothing: it looks at DEST, and says what is in the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from mirrorfs.drivers.restore_existing import InTheWay, Overwrite, Verdict, look
from mirrorfs.drivers.restore_making import REFUSED_MAX
from mirrorfs.drivers.restore_open import DIRECTORY_FLAGS, Descriptor, Directories
from mirrorfs.drivers.restore_place import check_destination
from mirrorfs.errors import DiskError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow


class RehearsedTree:
    """A `NameTree` (engine/restore_tree.py) for `Restore.rehearse`."""

    def __init__(self, path: str | None, overwrite: Overwrite) -> None:
        """`path`: of DEST, which need not be there; None: of a stream.

        Raises: UsageError: as `check_destination`. DiskError: it cannot be opened.
        """
        self._overwrite = overwrite
        self._directories: Directories | None = None
        self._existing: set[int] = set()
        self.refused: list[tuple[str, str]] = []
        self.refused_count = 0
        self.kept_count = 0
        self.replaced_count = 0
        """How many names would be replaced."""
        self.holds_anything = False
        """Whether DEST is there and not empty."""
        if path is None:
            return
        check_destination(path, may_hold=True)
        try:
            self._directories = Directories(Descriptor(os.open(path, DIRECTORY_FLAGS)))
            self._existing.add(ROOT_INODE)
            self.holds_anything = bool(os.listdir(self._directories.root.fd))
        except FileNotFoundError:
            return
        except OSError as exc:
            raise DiskError(f"DEST cannot be opened: {os.strerror(exc.errno or 0)}.") from exc

    def make(self, names: Sequence[tuple[int, bytes, InodeRow, bool]]) -> list[int]:
        """See NameTree: looks, and makes nothing."""
        kept = []
        for parent, name, row, _ in names:
            if parent not in self._existing:
                continue
            assert self._directories is not None
            try:
                verdict = look(self._overwrite, self._directories.open(parent).fd, name, row)
            except (InTheWay, OSError) as exc:
                self.refused_count += 1
                if len(self.refused) < REFUSED_MAX:
                    why = str(exc) if isinstance(exc, InTheWay) else os.strerror(exc.errno or 0)
                    self.refused.append((self._directories.path(parent, name), why))
                kept.append(row.inode)
                continue
            self.replaced_count += verdict is Verdict.REPLACE
            if verdict in (Verdict.KEEP, Verdict.SAME):
                self.kept_count += 1
                kept.append(row.inode)
            elif verdict is Verdict.ENTER and stat.S_ISDIR(row.mode):
                self._directories.add(row.inode, parent=parent, name=name)
                self._existing.add(row.inode)
        return kept

    def made(self) -> None:
        """See NameTree."""
