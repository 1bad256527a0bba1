"""Reads a volume by docs/FORMAT.md alone: nothing of mirrorfs is imported here.

Slow and simple on purpose. It opens a volume from its objects, the password and the token's secret,
replays the log from genesis or from the newest checkpoint, and yields the tree. Whatever is not as the
specification says raises `Wrong`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
import struct
from collections.abc import Iterator
from typing import Any

import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DATA, JOURNAL, CHECKPOINT, TRAILER, ROOT = 1, 2, 3, 4, 5
CHUNK = 1 << 20


class Wrong(Exception):
    """The bytes are not a valid volume."""


def _check(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


def _hkdf(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(ikm)


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _verify(public: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise Wrong("signature") from None


def _decrypt(key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, data, aad)
    except InvalidTag:
        raise Wrong("tag") from None


class Reader:
    """An opened volume."""

    def __init__(self, objects: dict[str, bytes], password: str, secret: bytes) -> None:
        self.objects = objects
        key = max(name for name in objects if name.startswith("header/"))
        data = objects[key]
        _check(key[16:] == hashlib.sha256(data).hexdigest()[:32], "header's name")
        body = self._body(data, 1)
        self.volume = bytes.fromhex(body["volume"])
        _check(body["format"] == 1 and body["key_generation"] == 1, "version")
        keys = self._unlock(body, password.encode(), secret)
        self.root = keys[:32]
        public = Ed25519PrivateKey.from_private_bytes(keys[32:64]).public_key().public_bytes_raw()
        self.writer = bytes.fromhex(body["public_keys"]["writer"])
        _check(public == self.writer, "writer's key")
        _check(self._derived(b"fingerprint")[:16].hex() == body["fingerprint"], "fingerprint")
        self.document(key, 1)
        self.header = data

    def _derived(self, label: bytes) -> bytes:
        return _hkdf(self.root, self.volume, b"mirrorfs v1 " + label)

    def _unlock(self, body: dict[str, Any], password: bytes, secret: bytes) -> bytes:
        (slot,) = body["slots"]
        kdf = slot["kdf"]
        _check(2 <= kdf["t"] <= 16 and 65536 <= kdf["m_kib"] <= 2097152 and 1 <= kdf["p"] <= 8, "kdf")
        salt = bytes.fromhex(kdf["salt"])
        found = _hkdf(secret, salt, b"mirrorfs v1 token check")[:8]
        _check(found.hex() == slot["token_check"], "token")
        stretched = Argon2id(
            salt=salt, length=32, iterations=kdf["t"], lanes=kdf["p"], memory_cost=kdf["m_kib"]
        ).derive(password)
        kek = _hkdf(stretched + secret, salt, b"mirrorfs v1 kek")
        _check(_hkdf(kek, salt, b"mirrorfs v1 kek commitment").hex() == slot["commitment"], "password")
        rest = {name: value for name, value in slot.items() if name != "wrapped"}
        generation = struct.pack("<I", body["key_generation"])
        aad = b"mirrorfs v1 slot" + self.volume + generation + _canonical(rest)
        return _decrypt(kek, bytes.fromhex(slot["wrap_nonce"]), bytes.fromhex(slot["wrapped"]), aad)

    # --- documents ---------------------------------------------------------------------------

    def _body(self, data: bytes, kind: int) -> dict[str, Any]:
        _check(data[:12] == b"MFSDOC1\n" + bytes((kind, 0, 0, 0)), "document's prefix")
        (size,) = struct.unpack_from("<I", data, 12)
        _check(len(data) == 16 + size + 96, "document's length")
        body: dict[str, Any] = json.loads(data[16 : 16 + size])
        _check(_canonical(body) == data[16 : 16 + size], "canonical form")
        return body

    def document(self, key: str, kind: int) -> dict[str, Any]:
        """Authenticate a document signed by the writer; its body."""
        data = self.objects[key]
        mac = hmac.digest(self._derived(b"document-mac"), self.volume + data[:-32], "sha256")
        _check(mac == data[-32:], "document's MAC")
        _verify(self.writer, data[-96:-32], b"mirrorfs v1 document" + self.volume + data[:-96])
        body = self._body(data, kind)
        _check(body["format"] == 1 and body["volume"] == self.volume.hex(), "document's volume")
        return body

    def lease_holder(self) -> dict[str, Any]:
        """Who holds the lease."""
        box = bytes.fromhex(self.document("lease", 3)["box"])
        aad = b"mirrorfs v1 lease box" + self.volume
        holder: dict[str, Any] = json.loads(_decrypt(self._derived(b"lease-box"), box[:12], box[12:], aad))
        return holder

    # --- segments ----------------------------------------------------------------------------

    def segment(self, key: str) -> Segment:
        """Authenticate the header of a segment."""
        return Segment(self, key, self.objects[key])

    def follow(self, start: int) -> Iterator[Segment]:
        """The segments of the main stream from a sequence number on, as the chain says."""
        names = sorted((name for name in self.objects if name.startswith("segments/")), reverse=True)

        def at(sequence: int) -> list[Segment]:
            prefix = f"segments/{sequence:016x}-"
            return [self.segment(name) for name in names if name.startswith(prefix)]

        current: list[Segment] = at(start)
        while current:
            (segment,) = current
            following = []
            for later in at(segment.sequence + 1):
                cut = later.previous_size
                if later.previous == (segment.epoch, segment.sequence, segment.writer) and (
                    _sha(segment.data[:cut]) == later.previous_digest
                ):
                    _check(not segment.sealed or cut == len(segment.data), "cut of a sealed segment")
                    segment.end = cut
                    following.append(later)
            if not following and not segment.sealed:
                return
            yield segment
            current = following

    def tree(self, *, from_checkpoint: bool) -> dict[str, dict[str, Any]]:
        """Path -> what is there."""
        state = State(self)
        if from_checkpoint:
            state.load(max(name for name in self.objects if name.startswith("checkpoints/")))
        pending: list[tuple[int, bytes]] = []
        for segment in self.follow(state.position >> 20):
            if not segment.previous_size and segment.sequence:
                raise Wrong("first segment")
            for frame in segment.frames():
                if frame.kind == DATA:
                    state.place(frame, segment)
                elif frame.kind == JOURNAL:
                    state.journal(frame, pending)
        _check(not pending, "unfinished commit")
        return state.tree()


class Frame:
    """An authenticated frame."""

    def __init__(self, segment: Segment, offset: int, ordinal: int | None) -> None:
        data = segment.data
        size, self.ordinal, nonce, birth, birth_ordinal = struct.unpack_from("<II12sQI", data, offset)
        _check(ordinal is None or self.ordinal == ordinal, "ordinal")
        self.offset, self.end = offset, offset + 32 + size
        _check(28 <= size <= 1 << 24 and self.end <= len(data), "frame's size")
        header = data[offset : offset + 32]
        aad = b"mirrorfs v1 frame\x01" + segment.identity + struct.pack("<Q", offset) + header
        envelope = _decrypt(segment.key, nonce, data[offset + 32 : self.end], aad)
        self.kind, codec, reserved, packed, length = struct.unpack_from("<BBHII", envelope)
        body = envelope[12 : 12 + packed]
        _check(reserved == 0 and len(body) == packed and codec < 2, "envelope")
        if codec:
            _check(zstandard.get_frame_parameters(body).content_size == length, "content size")
            body = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompress(body)
        _check(len(body) == length, "plaintext's length")
        self.plain = body
        self.name = birth << 20 | birth_ordinal
        self.birth = birth


class Segment:
    """A segment with an authentic header."""

    def __init__(self, reader: Reader, key: str, data: bytes) -> None:
        self.data = data
        self.end = len(data)
        _check(data[:8] == b"MFSSEG1\n", "magic")
        mac = hmac.digest(reader._derived(b"segment-header-mac"), data[:284], "sha256")
        _check(mac == data[284:316], "header's MAC")
        _verify(reader.writer, data[220:284], b"mirrorfs v1 segment header" + data[:220])
        version, size, self.stream, r1, volume, generation, _, self.sequence, self.epoch, self.writer = (
            struct.unpack_from("<HHB3s16sIIQI8s", data, 8)
        )
        salt, commitment, present, r2, epoch, sequence, writer, self.previous_size, self.previous_digest, r3 = (
            struct.unpack_from("<32s32sB3sIQ8sQ32s32s", data, 60)
        )
        _check((version, size, generation, volume) == (1, 316, 1, reader.volume), "header")
        _check(not any(r1 + r2 + r3) and present < 2, "reserved")
        self.previous = (epoch, sequence, writer) if present else None
        name = f"{self.sequence:016x}-{self.epoch:08x}-{self.writer.hex()}"
        _check(key == {1: "segments/", 2: "checkpoints/"}[self.stream] + name, "key of a segment")
        self.key = _hkdf(reader.root, salt, b"mirrorfs v1 segment key" + reader.volume)
        expected = _hkdf(reader.root, salt, b"mirrorfs v1 segment commitment" + reader.volume)
        _check(expected == commitment, "commitment")
        self.identity = data[16:32] + data[32:36] + data[12:13] + data[40:48] + data[48:52] + data[52:60]
        self.sealed = data[-4:] == b"MFSE"
        self.rows: list[tuple[int, int]] = []
        self.copy = b""
        if self.sealed:
            self._trailer(reader)

    def _trailer(self, reader: Reader) -> None:
        (offset,) = struct.unpack_from("<I", self.data, len(self.data) - 8)
        frame = Frame(self, offset, None)
        count, *_, size, digest = struct.unpack_from("<IQQqqI32s", frame.plain)
        rows = frame.plain[136:]
        _check(frame.kind == TRAILER and frame.ordinal == count and size == offset, "trailer")
        _check(len(rows) == 5 * count and digest == _sha(self.data[:offset]), "trailer's digest")
        signed = b"mirrorfs v1 trailer" + self.identity + frame.plain[:72] + rows
        _verify(reader.writer, frame.plain[72:136], signed)
        self.rows = list(struct.iter_unpack("<IB", rows))
        self.copy = self.data[frame.end : -8]
        _check(not self.copy or self.stream == 2, "bytes behind the trailer")

    def frames(self) -> Iterator[Frame]:
        """All frames before the trailer or the cut."""
        offset, ordinal = 316, 0
        end = struct.unpack_from("<I", self.data, len(self.data) - 8)[0] if self.sealed else self.end
        while offset < end:
            frame = Frame(self, offset, ordinal)
            _check(frame.end <= end, "frame over the cut")
            if self.sealed:
                _check(self.rows[ordinal] == (offset, frame.kind), "row of the trailer")
            yield frame
            offset, ordinal = frame.end, ordinal + 1


# --- the tree ----------------------------------------------------------------------------------

_RECORDS: dict[int, tuple[str, int]] = {
    1: ("<Iq", 1), 2: ("<QQQQIIIQq", 2), 3: ("<QQQq", 1), 4: ("<Qq", 1), 5: ("<QQQqB", 2),
    6: ("<QBIIIqqq", 0), 7: ("<QQ", 0), 8: ("<QQ", 1), 9: ("<Qq", 2), 10: ("<Qq", 1), 11: ("<Q", 0),
}  # fmt: skip
_TABLES: dict[int, tuple[str, int]] = {
    1: ("<QQIIIIQQQqqqQ", 1), 2: ("<QQQ", 1), 3: ("<Q", 2), 4: ("<QQ", 1), 5: ("<QIIIIQ", 0),
    6: ("<QBQIII", 0), 7: ("<QIQBqq", 2),
}  # fmt: skip


def _fields(data: bytes, at: int, shape: tuple[str, int]) -> tuple[list[Any], int]:
    fields: list[Any] = list(struct.unpack_from(shape[0], data, at))
    at += struct.calcsize(shape[0])
    for _ in range(shape[1]):
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        _check(at <= len(data), "byte string")
        fields.append(data[at - length : at])
    return fields, at


class State:
    """Inodes, names and extents while records are applied."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.inodes: dict[int, dict[str, Any]] = {}
        self.names: dict[tuple[int, bytes], int] = {}
        self.bytes_at: dict[int, tuple[Segment, int, int]] = {}
        self.position = 0
        self.sequence = 0
        self.hash = bytes(32)

    def place(self, frame: Frame, segment: Segment) -> None:
        """Remember where a data frame lies."""
        self.bytes_at[frame.name] = (segment, frame.offset, frame.ordinal)

    def journal(self, frame: Frame, pending: list[tuple[int, bytes]]) -> None:
        """Check a journal frame against the one before, and apply its commit when it ends here."""
        sequence, _, _, flags, r1, r2, count, previous = struct.unpack_from("<QqQBBHI32s", frame.plain)
        _check(flags < 2 and not r1 and not r2, "journal's reserved")
        if sequence <= self.sequence:
            _check(sequence < self.sequence or _sha(frame.plain) == self.hash, "another history")
            return
        _check(sequence == self.sequence + 1 and previous == self.hash, "journal's chain")
        self.sequence, self.hash = sequence, _sha(frame.plain)
        pending.append((count, frame.plain[64:]))
        if not flags:
            for number, records in pending:
                _check(sum(1 for _ in map(self._apply, _split(records))) == number, "records")
            pending.clear()
            self.position = frame.name

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
        _check(0 < mask < 64, "mask")
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
        _check(self.inodes.pop(inode)["nlink"] == 0, "forgotten inode has names")

    # --- checkpoint --------------------------------------------------------------------------

    def load(self, key: str) -> None:
        """Start from the checkpoint whose root is in a segment."""
        reader = self.reader
        segment = reader.segment(key)
        _check(segment.copy == reader.header, "copy of the header")
        root = b"".join(frame.plain for frame in segment.frames() if frame.kind == ROOT)
        self.position, self.sequence, self.hash, _, _, _, _, _, count = struct.unpack_from("<QQ32sqQQQII", root)
        at = 88
        for _ in range(count):
            (table, _, r, _, _, epoch, writer, ordinal, offset, _, digest, rows, sequence, length) = (
                struct.unpack_from("<BB2sQQI8sIII32sIQH", root, at)
            )
            at += 90 + length
            _check(not any(r), "reserved")
            holder = reader.segment(f"checkpoints/{sequence:016x}-{epoch:08x}-{writer.hex()}")
            chunk = Frame(holder, offset, ordinal)
            _check(chunk.kind == CHECKPOINT and _sha(chunk.plain) == digest, "chunk")
            self._load_chunk(table, rows, chunk.plain)
        _check(at == len(root), "end of the root")

    def _load_chunk(self, table: int, count: int, plain: bytes) -> None:
        _check(struct.unpack_from("<B3sI", plain) == (table, bytes(3), count), "chunk's header")
        at = 8
        for _ in range(count):
            row, at = _fields(plain, at, _TABLES[table])
            getattr(self, f"_row_{table}")(*row)
        _check(at == len(plain), "end of a chunk")

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
        _check(stream == 1, "stream of a relocation")
        self._frame_at(frame, sequence, offset, ordinal)

    def _frame_at(self, frame: int, sequence: int, offset: int, ordinal: int) -> None:
        prefix = f"segments/{sequence:016x}-"
        (key,) = [name for name in self.reader.objects if name.startswith(prefix)]
        self.bytes_at[frame] = (self.reader.segment(key), offset, ordinal)

    def _row_7(self, sequence: int, epoch: int, size: int, sealed: int, _f: int, _l: int, writer: bytes,
               digest: bytes) -> None:  # fmt: skip
        data = self.reader.objects[f"segments/{sequence:016x}-{epoch:08x}-{writer.hex()}"]
        _check(_sha(data[:size]) == digest and sealed == (data[-4:] == b"MFSE"), "row of a segment")

    # --- result ------------------------------------------------------------------------------

    def _content(self, row: dict[str, Any]) -> bytes:
        plain: dict[int, bytes] = {}
        content = bytearray(row["size"])
        for at, (frame, inner) in row["extents"].items():
            if frame not in plain:
                segment, offset, ordinal = self.bytes_at[frame]
                opened = Frame(segment, offset, ordinal)
                _check(opened.name == frame and opened.kind == DATA, "frame's name")
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
            entry["sha256"] = _sha(self._content(row)).hex() if regular else ""
            found[path or "/"] = entry
            if stat.S_ISDIR(row["mode"]):
                for (parent, name), child in self.names.items():
                    if parent == inode:
                        walk(child, f"{path}/{name.decode()}")

        walk(1, "")
        return found


def _split(records: bytes) -> Iterator[tuple[int, list[Any]]]:
    at = 0
    while at < len(records):
        code, size = struct.unpack_from("<BI", records, at)
        _check(code in _RECORDS, "record type")
        fields, end = _fields(records[: at + 5 + size], at + 5, _RECORDS[code])
        _check(end == at + 5 + size, "record's size")
        yield code, fields
        at = end
