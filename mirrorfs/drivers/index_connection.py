"""Connections to the encrypted index: opening, keys, failures, and what concerns its files.

Cipher: sqlite3mc's ChaCha20-Poly1305 (a fresh 16-byte nonce and a tag per page write), which is also
what protects the write-ahead log. The key is passed as `raw:<hex>`: any other spelling, `hexkey`
included, runs PBKDF2 and costs 30 ms per connection. The tag of a page does not cover its age, hence
`closed_digest` (an older version of a page would verify).

The key stands in one PRAGMA. `Connection.pragma` keeps it out of the statement cache, no trace is
installed before it, and an error there is replaced by one that does not chain to it, since frames of
apsw's tracebacks carry the SQL text.

SQLite's locks are POSIX record locks: closing any descriptor of an open index in this process would
drop them. Nothing but SQLite may open the files of an index that is open.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

import apsw

from mirrorfs.drivers.index_schema import (
    DDL,
    DDL_CONTENTS,
    DDL_RETENTION,
    DDL_SNAPSHOTS,
    SCHEMA_VERSION,
)
from mirrorfs.errors import DiskError, DiskFull, IndexDamaged, LimitError, MirrorfsError, UsageError

KEY_BYTES: Final = 32
PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 64 * 1024
SNAPSHOT_CACHE_KIB: Final = 8 * 1024
WAL_SIZE_KEPT_BYTES: Final = 64 * 1024 * 1024
"""A write-ahead log that grew beyond this is cut back to it when it restarts."""

WAL_HEADER_BYTES: Final = 32
WAL_FRAME_BYTES: Final = 24 + PAGE_BYTES

_ADDED: Final = {1: DDL_SNAPSHOTS + DDL_RETENTION, 2: DDL_RETENTION}
"""What an index of an older version has to get."""
_FILE_SUFFIXES: Final = ("", "-wal", "-shm")
_DIGEST_PIECE_BYTES: Final = 1024 * 1024
_DIGEST_PERSON: Final = b"mirrorfs closed"  # at most 16 bytes; keeps this use of the key apart


def connect(path: str, key: bytes, *, cache_kib: int) -> apsw.Connection:
    """Open a keyed connection with the settings that every connection to an index has.

    The file is created (0600, so the log and its map are too) if it does not exist.
    Raises: LimitError: not a 32-byte key. IndexDamaged: another key, or not an index. DiskError.
    """
    if len(key) != KEY_BYTES:
        raise LimitError(f"The key of an index is {KEY_BYTES} bytes.")
    _create_private(path)
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error as exc:
        raise translated(exc) from exc
    try:
        connection.pragma("cipher", "chacha20")
        _set_key(connection, key)
        # Closing must never move the log into the database: only `backfill` decides that it may.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
        connection.pragma("temp_store", "MEMORY")
        connection.pragma("mmap_size", 0)
        connection.pragma("page_size", PAGE_BYTES)
        connection.pragma("cell_size_check", 1)
        connection.pragma("secure_delete", 0)  # the pages are encrypted; zeroing them only costs
        connection.pragma("cache_size", -cache_kib)
        connection.pragma("cache_spill", 0)
        mode = connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "NORMAL")
        connection.pragma("journal_size_limit", WAL_SIZE_KEPT_BYTES)
        connection.wal_autocheckpoint(0)
    except apsw.Error as exc:
        connection.close(True)
        raise translated(exc) from exc
    if mode != "wal":
        connection.close(True)
        raise DiskError("The local index cannot use a write-ahead log on this file system; move the state.")
    return connection


def ensure_schema(connection: apsw.Connection) -> None:
    """Create the tables in an empty database, or those that an older layout lacks, atomically.

    Raises: UsageError: written by a newer program. IndexDamaged: an older layout; rebuild it.
    """
    try:
        version = connection.pragma("user_version")
        if version == SCHEMA_VERSION:
            connection.execute(DDL_CONTENTS)
            return
        is_new = version == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").get
        # Who wrote an older version could read no log that puts rows into the tables that it lacks.
        if is_new or version in _ADDED:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute((DDL if is_new else _ADDED[version]) + DDL_CONTENTS)
            connection.pragma("user_version", SCHEMA_VERSION)
            connection.execute("COMMIT")
            return
    except apsw.Error as exc:
        raise translated(exc) from exc
    if version > SCHEMA_VERSION:
        raise UsageError("The local index was written by a newer MirrorFS; mount with that version.")
    raise IndexDamaged("The local index has the layout of an older MirrorFS; it has to be rebuilt.")


def translated(exc: apsw.Error) -> MirrorfsError:
    """The error to raise for one of apsw's. Messages carry no values of rows."""
    if isinstance(exc, apsw.FullError):
        return DiskFull("The disk with the local index has no space left; free some and mount again.")
    if isinstance(exc, apsw.CorruptError | apsw.NotADBError | apsw.ConstraintError | apsw.MismatchError):
        return IndexDamaged("The local index is damaged or has another key; it has to be rebuilt.")
    if isinstance(exc, apsw.ConnectionClosedError | apsw.CursorClosedError):
        return DiskError("The local index was closed after a failure; mount the volume again.")
    return DiskError(f"The local index failed ({type(exc).__name__}); see the disk, then mount again.")


def remove_index(path: str) -> None:
    """Delete a closed index with its write-ahead log; what is not there is no error."""
    for suffix in _FILE_SUFFIXES:
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise DiskError(f"The local index cannot be removed: {exc.strerror}.") from exc


def closed_digest(path: str, key: bytes) -> bytes:
    """Keyed hash (BLAKE2b, 32 bytes) of a closed index and of the log it may have left beside it.

    It notices what page tags cannot: that the files, or single pages, are an older version.
    Only for an index that no connection of this process has open (see the module).
    Raises: DiskError: a file cannot be read.
    """
    if len(key) != KEY_BYTES:
        raise LimitError(f"The key of an index is {KEY_BYTES} bytes.")
    digest = hashlib.blake2b(key=key, person=_DIGEST_PERSON, digest_size=32)
    for suffix in ("", "-wal"):
        length = 0
        try:
            with open(path + suffix, "rb", buffering=0) as file:
                while piece := file.read(_DIGEST_PIECE_BYTES):
                    digest.update(piece)
                    length += len(piece)
        except FileNotFoundError:
            if not suffix:
                raise DiskError("There is no local index to take the hash of; rebuild it.") from None
        except OSError as exc:
            raise DiskError(f"The local index cannot be read: {exc.strerror}.") from exc
        # Lengths after the bytes: the end of one file cannot pass for the beginning of the other.
        digest.update(length.to_bytes(8, "little"))
    return digest.digest()


def _create_private(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as exc:
        raise DiskError(f"The local index cannot be created: {exc.strerror}.") from exc
    os.close(fd)


def _set_key(connection: apsw.Connection, key: bytes) -> None:
    refused = False
    try:
        connection.pragma("key", "raw:" + key.hex())
    except apsw.Error:
        refused = True
    if refused:  # outside the handler, so that nothing refers to the error and its SQL text
        connection.close(True)
        raise IndexDamaged("The key of the local index was refused; the index has to be rebuilt.")
