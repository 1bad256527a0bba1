"""The SQL that index_sqlite.py runs, built once: apsw finds prepared statements by their text."""

from __future__ import annotations

from typing import Final

from mirrorfs.drivers.index_schema import (
    CONDEMNED,
    DENTRIES,
    EXTENTS,
    FRAMES,
    MOMENTS,
    RELOCATED,
    RELOCATIONS,
    SEGMENTS,
    SNAPSHOTS,
    XATTRS,
)

GET_DENTRY: Final = DENTRIES.select("WHERE parent = ? AND name = ?")
PUT_DENTRY: Final = DENTRIES.insert().replace("INSERT", "INSERT OR REPLACE", 1)
DELETE_DENTRY: Final = DENTRIES.delete()
LIST_DENTRIES: Final = DENTRIES.select("WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?")
HAS_DENTRIES: Final = "SELECT 1 FROM dentries WHERE parent = ? LIMIT 1"
GET_XATTR: Final = "SELECT value FROM xattrs WHERE inode = ? AND name = ?"
PUT_XATTR: Final = XATTRS.upsert()
DELETE_XATTR: Final = XATTRS.delete()
LIST_XATTRS: Final = "SELECT name FROM xattrs WHERE inode = ? ORDER BY name"
DELETE_XATTRS: Final = "DELETE FROM xattrs WHERE inode = ?"
LIST_EXTENTS: Final = EXTENTS.select("WHERE inode = ? AND chunk >= ? ORDER BY chunk LIMIT ?")
GET_RELOCATION: Final = RELOCATIONS.select_key()
PUT_RELOCATION: Final = RELOCATIONS.upsert()
GET_SEGMENT: Final = SEGMENTS.select_key()
PUT_SEGMENT: Final = SEGMENTS.upsert()
LAST_SEGMENT: Final = SEGMENTS.select("ORDER BY sequence DESC LIMIT 1")
LIST_SEGMENTS: Final = SEGMENTS.select("WHERE sequence >= ? ORDER BY sequence LIMIT ?")
GET_SNAPSHOT: Final = SNAPSHOTS.select("WHERE name = ?")
PUT_SNAPSHOT: Final = SNAPSHOTS.insert().replace("INSERT", "INSERT OR REPLACE", 1)
DELETE_SNAPSHOT: Final = "DELETE FROM snapshots WHERE name = ?"
LIST_SNAPSHOTS: Final = SNAPSHOTS.select_ordered(bounded=False)
COUNT_SNAPSHOTS: Final = "SELECT count(*) FROM snapshots"
GET_MOMENT: Final = MOMENTS.select_key()
BASE_MOMENT: Final = MOMENTS.select("WHERE base = 1")
COUNT_MOMENTS: Final = "SELECT count(*) FROM moments"
PUT_MOMENT: Final = MOMENTS.upsert()
DELETE_MOMENT: Final = MOMENTS.delete()
LIST_MOMENTS: Final = MOMENTS.select_ordered(bounded=False)
GET_RELOCATED: Final = RELOCATED.select_key()
PUT_RELOCATED: Final = RELOCATED.upsert()
DELETE_RELOCATED: Final = RELOCATED.delete()
LIST_RELOCATED: Final = RELOCATED.select("WHERE sequence >= ? ORDER BY sequence LIMIT ?")
LAST_RELOCATED: Final = (
    "SELECT max(coalesce((SELECT max(sequence) FROM relocated), -1),"
    " coalesce((SELECT max(sequence) FROM condemned WHERE stream = ?), -1))"
)
GET_CONDEMNED: Final = CONDEMNED.select_key()
PUT_CONDEMNED: Final = CONDEMNED.upsert()
DELETE_CONDEMNED: Final = CONDEMNED.delete()
LIST_CONDEMNED: Final = CONDEMNED.select(
    "WHERE (stream, sequence) > (?, ?) ORDER BY stream, sequence LIMIT ?"
)
DELETE_SEGMENT: Final = SEGMENTS.delete()
DELETE_RELOCATION: Final = RELOCATIONS.delete()
FRAMES_BORN: Final = (
    FRAMES.select("WHERE frame BETWEEN ? AND ?")
    + " AND NOT EXISTS (SELECT 1 FROM relocations WHERE relocations.frame = frames.frame) ORDER BY frame"
)
FRAMES_MOVED: Final = (
    FRAMES.select("WHERE frame IN (SELECT frame FROM relocations WHERE stream = ? AND sequence = ?)")
    + " ORDER BY frame"
)
ORPHANS: Final = "SELECT inode FROM inodes WHERE nlink = 0 ORDER BY inode"
GET_META: Final = "SELECT value FROM meta WHERE key = ?"
ALL_META: Final = "SELECT key, value FROM meta"
PUT_META: Final = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
HELD: Final = "SELECT key FROM held WHERE store = ? AND key > ? ORDER BY key LIMIT ?"
PUT_HELD: Final = "INSERT OR IGNORE INTO held VALUES (?, ?)"
DELETE_HELD: Final = "DELETE FROM held WHERE store = ? AND key = ?"
CLEAR_HELD: Final = "DELETE FROM held WHERE store = ?"
GET_CONTENT: Final = "SELECT * FROM contents WHERE digest = ?"
PUT_CONTENT: Final = "INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?)"
DROP_CONTENTS: Final = "DELETE FROM contents WHERE frame = ?"
