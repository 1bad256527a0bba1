"""Where a restore drill restores to: nowhere. What comes is digested and forgotten, never kept in the clear.

The parts of a file come in any order, from several threads. Each is digested with its place, under a key of
this drill alone, and the digests of a file are added up: two restores of the same parts give the same sum.
Without the key nobody can look for other parts of the same sum (Clarke et al., "Incremental multiset hash
functions", 2003: MSet-Add-Hash).
"""

from __future__ import annotations

import hashlib
import stat
import struct
import threading
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from mirrorfs.format.rows import InodeRow

DIGEST_SIZE_BYTES: Final = 32
KEY_SIZE_BYTES: Final = 32
_MODULUS: Final = 1 << (8 * DIGEST_SIZE_BYTES)
_PLACE: Final = struct.Struct("<QQ")


class DrillTree:
    """A `RestoreTree` (engine/restore_tree.py) that keeps a digest for each file, 40 bytes, and no more."""

    refused: Sequence[tuple[str, str]] = ()
    refused_count = 0
    kept_count = 0
    left_out: Mapping[str, int] = {}

    def __init__(self, key: bytes) -> None:
        """`key`: KEY_SIZE_BYTES random bytes; trees that are to be compared have the same."""
        self._key = key
        self._lock = threading.Lock()
        self._regular = array("q")
        self._inodes = array("q")
        self._sums = bytearray()
        self.finished = 0
        """Inodes of which all was told."""

    def make(self, names: Sequence[tuple[int, bytes, InodeRow, bool]]) -> list[int]:
        """See RestoreTree."""
        with self._lock:
            self._regular.extend(row.inode for _, _, row, _ in names if stat.S_ISREG(row.mode))
        return []

    def made(self) -> None:
        """See RestoreTree."""
        self._regular = array("q", sorted(set(self._regular)))

    def regular(self) -> array[int]:
        """Inodes of all regular files, sorted."""
        return self._regular

    def expect(self, inodes: array[int]) -> None:
        """These files, sorted, and no others are written from now on."""
        self._inodes = inodes
        self._sums = bytearray(DIGEST_SIZE_BYTES * len(inodes))

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """See RestoreTree."""
        digest = hashlib.blake2b(_PLACE.pack(inode, offset), key=self._key, digest_size=DIGEST_SIZE_BYTES)
        digest.update(data)
        part = int.from_bytes(digest.digest(), "little")
        place = self._place(inode)
        with self._lock:
            total = int.from_bytes(self._sums[place], "little") + part
            self._sums[place] = (total % _MODULUS).to_bytes(DIGEST_SIZE_BYTES, "little")

    def give_up(self, inodes: Sequence[int]) -> None:
        """See RestoreTree: nothing was here before."""

    def unfinished(self, inodes: array[int]) -> array[int]:
        """See RestoreTree."""
        return inodes

    def finish(self, inodes: Sequence[tuple[InodeRow, Sequence[tuple[bytes, bytes]]]]) -> None:
        """See RestoreTree. Attributes are compared where they come from: in the index."""
        with self._lock:
            self.finished += len(inodes)

    def digest(self, inode: int) -> bytes:
        """Of all that was written into a file."""
        return bytes(self._sums[self._place(inode)])

    def path_of(self, inode: int) -> str:
        """See RestoreTree. Names are not kept."""
        return f"inode {inode}"

    def sync(self) -> None:
        """See RestoreTree: there is nothing to make durable."""

    def _place(self, inode: int) -> slice:
        at = bisect_left(self._inodes, inode)
        assert self._inodes[at] == inode
        return slice(at * DIGEST_SIZE_BYTES, (at + 1) * DIGEST_SIZE_BYTES)
