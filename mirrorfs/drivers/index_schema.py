"""Tables of the local index and the statements on them.

The columns of a checkpointed table are the fields of its row type (format/rows.py), in that order;
the first `key_count` of them are its key, and ordering by the key is the canonical order of
checkpoints. Three tables are local knowledge and never checkpointed: `meta` (values that belong to the
position), `held` (what each store is known to hold) and `contents` (where bytes lie that files have).

All columns are NOT NULL and the tables are STRICT, so that a value of the wrong type is refused here
instead of being read back later.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from mirrorfs.format.rows import (
    CondemnedRow,
    DentryRow,
    ExtentRow,
    FrameRow,
    InodeRow,
    MomentRow,
    RelocatedRow,
    RelocationRow,
    SegmentRow,
    SnapshotRow,
    XattrRow,
)

SCHEMA_VERSION: Final = 3
"""Stored as `user_version`. 0 is a database without tables, 1 lacks the snapshots and 2 what retention
needs; any other version is rebuilt or refused."""

COUNTERS: Final = ("index.inodes", "index.allocated", "index.xattrs")
"""Names in `meta` of what the driver counts: inodes, the bytes they allocate, extended attributes."""

DDL_SNAPSHOTS: Final = """
CREATE TABLE snapshots (
    position INTEGER NOT NULL,      -- frame id of a journal frame; 0: of the commit that comes next
    name BLOB NOT NULL UNIQUE,
    time_ns INTEGER NOT NULL,       -- when it was made
    held INTEGER NOT NULL,          -- 1 or 0
    PRIMARY KEY (position, name)
) STRICT, WITHOUT ROWID;
"""
"""What version 2 has and version 1 had not."""

DDL_RETENTION: Final = """
CREATE TABLE moments (
    position INTEGER PRIMARY KEY,   -- of a checkpoint
    sequence INTEGER NOT NULL,      -- of the checkpoint segment with its root; so are epoch and writer
    epoch INTEGER NOT NULL,
    writer BLOB NOT NULL,
    digest BLOB NOT NULL,           -- SHA-256 of that segment
    time_ns INTEGER NOT NULL,
    base INTEGER NOT NULL           -- 1 or 0
) STRICT;
-- There is one base, or none.
CREATE UNIQUE INDEX moments_base ON moments (base) WHERE base = 1;

CREATE TABLE relocated (
    sequence INTEGER PRIMARY KEY,   -- in the relocated stream
    epoch INTEGER NOT NULL,
    writer BLOB NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;

CREATE TABLE condemned (
    stream INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    writer BLOB NOT NULL,
    time_ns INTEGER NOT NULL,
    PRIMARY KEY (stream, sequence)
) STRICT, WITHOUT ROWID;

-- What lies in a segment that is to be collected; of most frames there is no row.
CREATE INDEX relocations_place ON relocations (stream, sequence);
"""
"""What version 3 has and version 2 had not."""

DDL_CONTENTS: Final = """
CREATE TABLE IF NOT EXISTS contents (
    digest BLOB PRIMARY KEY,        -- keyed, of the bytes
    frame INTEGER NOT NULL,
    frame_offset INTEGER NOT NULL,  -- where in its plaintext they begin
    inode INTEGER NOT NULL,         -- a file one chunk of which began with them
    chunk INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- What a frame had goes with it.
CREATE INDEX IF NOT EXISTS contents_frame ON contents (frame);
"""
"""What deduplication looks up; made where it is missing, whatever the version: an older program that does
not know it leaves rows behind that are of no use, and does no harm."""

DDL: Final = f"""
CREATE TABLE inodes (
    inode INTEGER PRIMARY KEY,      -- number, never reused; 1 is the root
    generation INTEGER NOT NULL,
    mode INTEGER NOT NULL,          -- file type and permission bits, as st_mode
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    nlink INTEGER NOT NULL,         -- 0: an orphan, unlinked while open
    size INTEGER NOT NULL,          -- bytes
    allocated INTEGER NOT NULL,     -- bytes that extents map
    rdev INTEGER NOT NULL,          -- device number; 0 for all but devices
    atime_ns INTEGER NOT NULL,      -- signed, since the epoch; so are mtime_ns and ctime_ns
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    parent INTEGER NOT NULL,        -- directories: inode of '..'; 0 for all else
    target BLOB NOT NULL            -- symbolic links: the target; empty for all else
) STRICT;
-- Mount asks for orphans; without this it would decrypt every inode.
CREATE INDEX inodes_orphan ON inodes (inode) WHERE nlink = 0;

CREATE TABLE dentries (
    cookie INTEGER PRIMARY KEY,     -- readdir position, unique in the volume, never another name's
    parent INTEGER NOT NULL,        -- inode of the directory
    name BLOB NOT NULL,
    inode INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX dentries_name ON dentries (parent, name);
-- The rowid that ends every entry of this index is the cookie: readdir order without a sort.
CREATE INDEX dentries_parent ON dentries (parent);

CREATE TABLE xattrs (
    inode INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,            -- may be empty
    PRIMARY KEY (inode, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE extents (
    inode INTEGER NOT NULL,
    chunk INTEGER NOT NULL,         -- 0-based number of the 1 MiB of the file; no row is a hole
    packed BLOB NOT NULL,           -- format/rows.py
    PRIMARY KEY (inode, chunk)
) STRICT, WITHOUT ROWID;

CREATE TABLE frames (
    frame INTEGER PRIMARY KEY,      -- birth sequence << 20 | birth ordinal
    "offset" INTEGER NOT NULL,      -- bytes, of the frame header in its birth segment
    size INTEGER NOT NULL,          -- bytes of header and sealed body
    length INTEGER NOT NULL,        -- bytes of plaintext
    live INTEGER NOT NULL,          -- plaintext bytes that extents refer to
    death INTEGER NOT NULL          -- position at which live fell to 0; 0: alive
) STRICT;

CREATE TABLE relocations (
    frame INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    size INTEGER NOT NULL
) STRICT;

CREATE TABLE segments (
    sequence INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    writer BLOB NOT NULL,
    size INTEGER NOT NULL,          -- bytes: whole when sealed, up to the cut when not
    sealed INTEGER NOT NULL,        -- 1 or 0
    digest BLOB NOT NULL,           -- SHA-256
    first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL
) STRICT;

CREATE TABLE meta (
    key TEXT PRIMARY KEY,           -- 'index.' begins the names that the driver keeps for itself
    value ANY NOT NULL          -- INTEGER or BLOB
) STRICT, WITHOUT ROWID;

CREATE TABLE held (
    store TEXT NOT NULL,            -- instance of the store
    key TEXT NOT NULL,              -- of the object
    PRIMARY KEY (store, key)
) STRICT, WITHOUT ROWID;
{DDL_SNAPSHOTS}{DDL_RETENTION}"""


class Table(NamedTuple):
    """One checkpointed table: its columns in row order and how many of them, from the first, are the key."""

    name: str
    columns: tuple[str, ...]
    key_count: int

    def key_of(self, row: tuple[Any, ...]) -> Any:
        """The key at the start of a row (or alone): a plain value if one column, else a tuple."""
        return row[0] if self.key_count == 1 else row[: self.key_count]

    def select(self, where: str) -> str:
        """A SELECT of whole rows."""
        return f"SELECT {_listed(self.columns)} FROM {self.name} {where}"

    def select_key(self) -> str:
        """A SELECT of the row with one key."""
        matches = " AND ".join(f"{column} = ?" for column in self.columns[: self.key_count])
        return self.select(f"WHERE {matches}")

    def select_ordered(self, *, bounded: bool) -> str:
        """A SELECT of all rows in canonical order, or of those from a key on."""
        key = _listed(self.columns[: self.key_count])
        bound = f"WHERE ({key}) >= ({_parameters(self.key_count)}) " if bounded else ""
        return self.select(f"{bound}ORDER BY {key}")

    def select_newest_key(self) -> str:
        """A SELECT of the greatest key."""
        key = self.columns[: self.key_count]
        descending = ", ".join(f"{column} DESC" for column in key)
        return f"SELECT {_listed(key)} FROM {self.name} ORDER BY {descending} LIMIT 1"

    def insert(self) -> str:
        """An INSERT that fails when the key is taken."""
        return f"INSERT INTO {self.name} VALUES ({_parameters(len(self.columns))})"

    def upsert(self) -> str:
        """An INSERT that overwrites the row of that key in place.

        REPLACE deletes and inserts, which costs half as much again on `inodes` (measured).
        """
        key = _listed(self.columns[: self.key_count])
        updates = ", ".join(f"{column} = excluded.{column}" for column in self.columns[self.key_count :])
        return f"{self.insert()} ON CONFLICT ({key}) DO UPDATE SET {updates}"

    def delete(self) -> str:
        """A DELETE of the row with one key."""
        matches = " AND ".join(f"{column} = ?" for column in self.columns[: self.key_count])
        return f"DELETE FROM {self.name} WHERE {matches}"


def _listed(columns: tuple[str, ...]) -> str:
    return ", ".join(columns)


def _parameters(count: int) -> str:
    return ", ".join("?" * count)


def _table(name: str, fields: tuple[str, ...], *, key_count: int) -> Table:
    return Table(name, tuple(f'"{field}"' for field in fields), key_count)


ALLOCATED: Final = InodeRow._fields.index("allocated")
INODES: Final = _table("inodes", InodeRow._fields, key_count=1)
DENTRIES: Final = _table("dentries", DentryRow._fields, key_count=1)
XATTRS: Final = _table("xattrs", XattrRow._fields, key_count=2)
EXTENTS: Final = _table("extents", ExtentRow._fields, key_count=2)
FRAMES: Final = _table("frames", FrameRow._fields, key_count=1)
RELOCATIONS: Final = _table("relocations", RelocationRow._fields, key_count=1)
SEGMENTS: Final = _table("segments", SegmentRow._fields, key_count=1)
SNAPSHOTS: Final = _table("snapshots", SnapshotRow._fields, key_count=2)
MOMENTS: Final = _table("moments", MomentRow._fields, key_count=1)
RELOCATED: Final = _table("relocated", RelocatedRow._fields, key_count=1)
CONDEMNED: Final = _table("condemned", CondemnedRow._fields, key_count=2)

TABLES: Final = {
    table.name: table
    for table in (
        INODES,
        DENTRIES,
        XATTRS,
        EXTENTS,
        FRAMES,
        RELOCATIONS,
        SEGMENTS,
        SNAPSHOTS,
        MOMENTS,
        RELOCATED,
        CONDEMNED,
    )
}
"""The checkpointed tables by name."""
