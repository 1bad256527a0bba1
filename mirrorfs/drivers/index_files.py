"""The files of one index on the local disk: open, mend, start over, and tell whether they were changed."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from mirrorfs.drivers.index_connection import CACHE_KIB, closed_digest, remove_index
from mirrorfs.drivers.index_sqlite import SqliteIndex
from mirrorfs.drivers.local_disk import fsync_directory
from mirrorfs.errors import DiskError, IndexDamaged


class SqliteIndexFiles:
    """ports.IndexFiles over SqliteIndex.

    The cipher notices a flipped page, but takes an older version of the same page for good. So a clean
    unmount leaves a keyed hash of the closed file beside it; the next opening compares and removes it.
    """

    def __init__(self, path: str, key: bytes, *, digest_key: bytes, cache_kib: int = CACHE_KIB) -> None:
        """`digest_key` is a key of its own, not the one that encrypts. `cache_kib`: of pages in memory."""
        self._path = path
        self._key = key
        self._cache_kib = cache_kib
        self._digest_key = digest_key
        self._digest_path = Path(path + ".clean")
        self._doubt_path = Path(path + ".doubted")

    def open(self) -> SqliteIndex:
        """Open the index, or make an empty one. Raises IndexDamaged when it is not what was closed."""
        try:
            expected = self._digest_path.read_bytes()
        except FileNotFoundError:
            expected = None
        except OSError as exc:
            raise DiskError("The state directory cannot be read; check the local disk.") from exc
        if expected is not None:
            # Removed before anything is written: after a crash its absence says that the file moved on.
            self._remove(self._digest_path)
            if not Path(self._path).exists():
                raise IndexDamaged("The index was removed while it was closed.")
            if not hmac.compare_digest(expected, closed_digest(self._path, self._digest_key)):
                raise IndexDamaged("The index was changed while it was closed.")
        return SqliteIndex.open(self._path, self._key, cache_kib=self._cache_kib)

    def seal(self) -> None:
        """After a clean close: leave the keyed hash. Raises DiskError.

        It need not be durable: one that a power cut left half written only has the index rebuilt.
        """
        digest = closed_digest(self._path, self._digest_key)
        try:
            descriptor = os.open(
                self._digest_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            try:
                os.write(descriptor, digest)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise DiskError("The state directory cannot be written; check the local disk.") from exc

    def drop_wal(self) -> None:
        """Back to what was last moved into the database, durably: no power cut brings the log back."""
        self._remove(Path(self._path + "-wal"), Path(self._path + "-shm"))

    def remove(self) -> None:
        """Remove the index and all that belongs to it, for good."""
        remove_index(self._path)
        self._remove(self._digest_path)

    def doubt(self) -> None:
        try:
            self._doubt_path.touch(mode=0o600)
            fsync_directory(self._doubt_path.parent)
        except OSError as exc:
            raise DiskError("The state directory cannot be written; check the local disk.") from exc

    def trust(self) -> None:
        if self.is_doubted():
            self._remove(self._doubt_path)

    def is_doubted(self) -> bool:
        return self._doubt_path.exists()

    def _remove(self, *paths: Path) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
            fsync_directory(self._digest_path.parent)
        except OSError as exc:
            raise DiskError("The state directory cannot be written; check the local disk.") from exc
