"""Reads a volume by docs/FORMAT.md alone: nothing of mirrorfs is imported here or in independent_log.py.

Slow and simple on purpose. `Reader` opens a volume from its objects, the password and the token's secret;
`read_tree` replays the log from genesis or from the newest checkpoint and returns the tree. Whatever is not
as the specification says raises `Wrong`.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Any

from tests.golden.independent_log import (
    CHECKPOINT,
    DATA,
    JOURNAL,
    ROOT,
    Frame,
    Reader,
    Segment,
    Wrong,
    check,
    sha,
)

CHUNK = 1 << 20


def read_tree(reader: Reader, *, from_checkpoint: bool) -> dict[str, dict[str, Any]]:
    """Path -> what is there."""
    return _read(reader, from_checkpoint=from_checkpoint).tree()


def read_snapshots(reader: Reader, *, from_checkpoint: bool) -> dict[str, tuple[int, int, int]]:
    """Name -> (position, time, held)."""
    state = _read(reader, from_checkpoint=from_checkpoint)
    return {name.decode(): row for name, row in sorted(state.snapshots.items())}


def _read(reader: Reader, *, from_checkpoint: bool) -> State:
    state = State(reader)
    if from_checkpoint:
        state.load(max(name for name in reader.objects if name.startswith("checkpoints/")))
    pending: list[tuple[int, bytes]] = []
    for segment in reader.follow(state.position >> 20):
        if not segment.previous_size and segment.sequence:
            raise Wrong("first segment")
        for frame in segment.frames():
            if frame.kind == DATA:
                state.place(frame, segment)
            elif frame.kind == JOURNAL:
                state.journal(frame, pending)
    check(not pending, "unfinished commit")
    return state


# --- the tree ----------------------------------------------------------------------------------

_RECORDS: dict[int, tuple[str, int]] = {
    1: ("<Iq", 1), 2: ("<QQQQIIIQq", 2), 3: ("<QQQq", 1), 4: ("<Qq", 1), 5: ("<QQQqB", 2),
    6: ("<QBIIIqqq", 0), 7: ("<QQ", 0), 8: ("<QQ", 1), 9: ("<Qq", 2), 10: ("<Qq", 1), 11: ("<Q", 0),
    12: ("<qB", 1), 13: ("<q", 1), 14: ("<QqQI", 2), 15: ("<Q", 1), 16: ("<QIQ", 3), 17: ("<Bq", 1),
    18: ("<B", 1),
}  # fmt: skip
_TABLES: dict[int, tuple[str, int]] = {
    1: ("<QQIIIIQQQqqqQ", 1), 2: ("<QQQ", 1), 3: ("<Q", 2), 4: ("<QQ", 1), 5: ("<QIIIIQ", 0),
    6: ("<QBQIII", 0), 7: ("<QIQBqq", 2), 8: ("<QqB", 1), 9: ("<QQIqB", 2), 10: ("<QIQ", 2),
    11: ("<QQIq", 1),
}  # fmt: skip


def _fields(data: bytes, at: int, shape: tuple[str, int]) -> tuple[list[Any], int]:
    fields: list[Any] = list(struct.unpack_from(shape[0], data, at))
    at += struct.calcsize(shape[0])
    for _ in range(shape[1]):
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        check(at <= len(data), "byte string")
        fields.append(data[at - length : at])
    return fields, at


class State:
    """Inodes, names and extents while records are applied."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.inodes: dict[int, dict[str, Any]] = {}
        self.names: dict[tuple[int, bytes], int] = {}
        self.bytes_at: dict[int, tuple[Segment, int, int]] = {}
        self.snapshots: dict[bytes, tuple[int, int, int]] = {}
        self.position = 0
        self.sequence = 0
        self.hash = bytes(32)

    def place(self, frame: Frame, segment: Segment) -> None:
        """Remember where a data frame lies."""
        self.bytes_at[frame.name] = (segment, frame.offset, frame.ordinal)

    def at(self, name: int) -> tuple[Segment, int, int]:
        """Where a frame lies: segment, offset, ordinal."""
        return self.bytes_at[name]

    def journal(self, frame: Frame, pending: list[tuple[int, bytes]]) -> None:
        """Check a journal frame against the one before, and apply its commit when it ends here."""
        sequence, _, _, flags, r1, r2, count, previous = struct.unpack_from("<QqQBBHI32s", frame.plain)
        check(flags < 2 and not r1 and not r2, "journal's reserved")
        if sequence <= self.sequence:
            check(sequence < self.sequence or sha(frame.plain) == self.hash, "another history")
            return
        check(sequence == self.sequence + 1 and previous == self.hash, "journal's chain")
        self.sequence, self.hash = sequence, sha(frame.plain)
        pending.append((count, frame.plain[64:]))
        if not flags:
            self.position = frame.name
            for number, records in pending:
                check(sum(1 for _ in map(self._apply, _split(records))) == number, "records")
            pending.clear()

    def _apply(self, record: tuple[int, list[Any]]) -> None:
        code, f = record
        getattr(self, f"_do_{code}")(*f)

    def _touch(self, directory: int, time: int, links: int = 0) -> None:
        row = self.inodes[directory]
        row["mtime_ns"] = row["ctime_ns"] = time
        row["nlink"] += links

    def _is_directory(self, inode: int) -> bool:
        return stat.S_ISDIR(self.inodes[inode]["mode"])

    def _do_1(self, epoch: int, time: int, writer: bytes) -> None:
        pass

    def _do_2(self, parent: int, inode: int, _g: int, _c: int, mode: int, uid: int, gid: int, rdev: int,
              time: int, name: bytes, target: bytes) -> None:  # fmt: skip
        directory = stat.S_ISDIR(mode)
        self.inodes[inode] = {
            "mode": mode, "uid": uid, "gid": gid, "nlink": 2 if directory else 1, "rdev": rdev,
            "size": len(target) if stat.S_ISLNK(mode) else 0, "target": target, "extents": {}, "xattrs": {},
            "atime_ns": time, "mtime_ns": time, "ctime_ns": time,
        }  # fmt: skip
        if inode != 1:
            self.names[parent, name] = inode
            self._touch(parent, time, int(directory))

    def _do_3(self, inode: int, parent: int, _cookie: int, time: int, name: bytes) -> None:
        self.inodes[inode]["nlink"] += 1
        self.inodes[inode]["ctime_ns"] = time
        self.names[parent, name] = inode
        self._touch(parent, time)

    def _do_4(self, parent: int, time: int, name: bytes) -> None:
        inode = self.names.pop((parent, name))
        directory = self._is_directory(inode)
        self.inodes[inode]["nlink"] = 0 if directory else self.inodes[inode]["nlink"] - 1
        self.inodes[inode]["ctime_ns"] = time
        self._touch(parent, time, -int(directory))

    def _do_5(self, parent: int, new_parent: int, _cookie: int, time: int, exchange: int, name: bytes,
              new_name: bytes) -> None:  # fmt: skip
        if not exchange and (new_parent, new_name) in self.names:
            self._do_4(new_parent, time, new_name)
        moved = self.names.pop((parent, name))
        shift = int(self._is_directory(moved))
        if exchange:
            other = self.names[new_parent, new_name]
            self.names[parent, name] = other
            self.inodes[other]["ctime_ns"] = time
            shift -= int(self._is_directory(other))
        self.names[new_parent, new_name] = moved
        self.inodes[moved]["ctime_ns"] = time
        if parent == new_parent:
            shift = 0
        self._touch(parent, time, -shift)
        self._touch(new_parent, time, shift)

    def _do_6(self, inode: int, mask: int, *values: int) -> None:
        check(0 < mask < 64, "mask")
        for bit, name in enumerate(("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns")):
            if mask >> bit & 1:
                self.inodes[inode][name] = values[bit]

    def _do_7(self, inode: int, size: int) -> None:
        row = self.inodes[inode]
        row["size"] = size
        row["extents"] = {at: source for at, source in row["extents"].items() if at < size}

    def _do_8(self, inode: int, size: int, pieces: bytes) -> None:
        row = self.inodes[inode]
        for offset, length, frame, inner in struct.iter_unpack("<QIQI", pieces):
            # One entry per byte: a model, not an implementation.
            row["extents"].update((offset + n, (frame, inner + n)) for n in range(length))
        row["size"] = max(row["size"], size)

    def _do_9(self, inode: int, time: int, name: bytes, value: bytes) -> None:
        self.inodes[inode]["xattrs"][name] = value
        self.inodes[inode]["ctime_ns"] = time

    def _do_10(self, inode: int, time: int, name: bytes) -> None:
        self.inodes[inode]["xattrs"].pop(name)
        self.inodes[inode]["ctime_ns"] = time

    def _do_11(self, inode: int) -> None:
        check(self.inodes.pop(inode)["nlink"] == 0, "forgotten inode has names")

    def _do_12(self, time: int, held: int, name: bytes) -> None:
        _check_name_of_snapshot(name)
        check(held < 2, "hold of a snapshot")
        # The position is that of the commit's last journal frame.
        position, made, _ = self.snapshots.get(name, (self.position, time, 0))
        self.snapshots[name] = (position, made, held)
        check(len(self.snapshots) <= 4096, "number of snapshots")

    def _do_13(self, _time: int, name: bytes) -> None:
        _check_name_of_snapshot(name)
        _, _, held = self.snapshots.pop(name)
        check(not held, "a snapshot that is held is deleted")

    # --- checkpoint --------------------------------------------------------------------------

    def load(self, key: str) -> None:
        """Start from the checkpoint whose root is in a segment."""
        reader = self.reader
        segment = reader.segment(key)
        if segment.is_past:
            check(sha(segment.data).hex() == reader.ends[2][segment.sequence]["digest"], "old checkpoint")
        else:
            check(segment.copy == reader.header, "copy of the header")
        root = b"".join(frame.plain for frame in segment.frames() if frame.kind == ROOT)
        self.position, self.sequence, self.hash, _, _, _, _, _, count = struct.unpack_from(
            "<QQ32sqQQQII", root
        )
        at = 88
        for _ in range(count):
            (table, _, r, _, _, epoch, writer, ordinal, offset, _, digest, rows, sequence, length) = (
                struct.unpack_from("<BB2sQQI8sIII32sIQH", root, at)
            )
            at += 90 + length
            check(not any(r), "reserved")
            holder = reader.segment(f"checkpoints/{sequence:016x}-{epoch:08x}-{writer.hex()}")
            chunk = Frame(holder, offset, ordinal)
            check(chunk.kind == CHECKPOINT and sha(chunk.plain) == digest, "chunk")
            self._load_chunk(table, rows, chunk.plain)
        check(at == len(root), "end of the root")

    def _load_chunk(self, table: int, count: int, plain: bytes) -> None:
        check(struct.unpack_from("<B3sI", plain) == (table, bytes(3), count), "chunk's header")
        at = 8
        for _ in range(count):
            row, at = _fields(plain, at, _TABLES[table])
            getattr(self, f"_row_{table}")(*row)
        check(at == len(plain), "end of a chunk")

    def _row_1(self, inode: int, _g: int, mode: int, uid: int, gid: int, nlink: int, size: int, _a: int,
               rdev: int, atime: int, mtime: int, ctime: int, _p: int, target: bytes) -> None:  # fmt: skip
        self.inodes[inode] = {
            "mode": mode, "uid": uid, "gid": gid, "nlink": nlink, "rdev": rdev, "size": size,
            "target": target, "extents": {}, "xattrs": {},
            "atime_ns": atime, "mtime_ns": mtime, "ctime_ns": ctime,
        }  # fmt: skip

    def _row_2(self, _cookie: int, parent: int, inode: int, name: bytes) -> None:
        self.names[parent, name] = inode

    def _row_3(self, inode: int, name: bytes, value: bytes) -> None:
        self.inodes[inode]["xattrs"][name] = value

    def _row_4(self, inode: int, chunk: int, packed: bytes) -> None:
        for start, length, frame, inner in struct.iter_unpack("<IIQI", packed):
            base = chunk * CHUNK + start
            self.inodes[inode]["extents"].update((base + n, (frame, inner + n)) for n in range(length))

    def _row_5(self, frame: int, offset: int, _size: int, _length: int, _live: int, _death: int) -> None:
        self._frame_at(frame, frame >> 20, offset, frame & 0xFFFFF)

    def _row_6(self, frame: int, stream: int, sequence: int, ordinal: int, offset: int, _size: int) -> None:
        check(stream == 1, "stream of a relocation")
        self._frame_at(frame, sequence, offset, ordinal)

    def _frame_at(self, frame: int, sequence: int, offset: int, ordinal: int) -> None:
        prefix = f"segments/{sequence:016x}-"
        (key,) = [name for name in self.reader.objects if name.startswith(prefix)]
        self.bytes_at[frame] = (self.reader.segment(key), offset, ordinal)

    def _row_7(self, sequence: int, epoch: int, size: int, sealed: int, _f: int, _l: int, writer: bytes,
               digest: bytes) -> None:  # fmt: skip
        data = self.reader.objects[f"segments/{sequence:016x}-{epoch:08x}-{writer.hex()}"]
        check(sha(data[:size]) == digest and sealed == (data[-4:] == b"MFSE"), "row of a segment")

    def _row_8(self, position: int, time: int, held: int, name: bytes) -> None:
        _check_name_of_snapshot(name)
        check(0 < position <= self.position and held < 2 and name not in self.snapshots, "row of a snapshot")
        self.snapshots[name] = (position, time, held)

    # --- result ------------------------------------------------------------------------------

    def _content(self, row: dict[str, Any]) -> bytes:
        plain: dict[int, bytes] = {}
        content = bytearray(row["size"])
        for at, (frame, inner) in row["extents"].items():
            if frame not in plain:
                segment, offset, ordinal = self.at(frame)
                opened = Frame(segment, offset, ordinal)
                check(opened.name == frame and opened.kind == DATA, "frame's name")
                plain[frame] = opened.plain
            content[at] = plain[frame][inner]
        return bytes(content)

    def tree(self) -> dict[str, dict[str, Any]]:
        """Path -> mode, owner, times, links, attributes and the SHA-256 of the bytes."""
        found: dict[str, dict[str, Any]] = {}

        def walk(inode: int, path: str) -> None:
            row = self.inodes[inode]
            kept = ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns", "nlink", "size", "rdev")
            entry = {name: row[name] for name in kept}
            entry["target"] = row["target"].decode()
            entry["xattrs"] = {name.decode(): value.hex() for name, value in row["xattrs"].items()}
            regular = stat.S_ISREG(row["mode"])
            entry["sha256"] = sha(self._content(row)).hex() if regular else ""
            found[path or "/"] = entry
            if stat.S_ISDIR(row["mode"]):
                for (parent, name), child in self.names.items():
                    if parent == inode:
                        walk(child, f"{path}/{name.decode()}")

        walk(1, "")
        return found


def _check_name_of_snapshot(name: bytes) -> None:
    text = name.decode()
    check(0 < len(name) <= 64 and text.isprintable() and "/" not in text, "name of a snapshot")
    check(text[0] not in "- " and text[-1] != " ", "ends of a snapshot's name")


def _split(records: bytes) -> Iterator[tuple[int, list[Any]]]:
    at = 0
    while at < len(records):
        code, size = struct.unpack_from("<BI", records, at)
        check(code in _RECORDS, "record type")
        fields, end = _fields(records[: at + 5 + size], at + 5, _RECORDS[code])
        check(end == at + 5 + size, "record's size")
        yield code, fields
        at = end
