"""Keys, documents, segments and frames by docs/FORMAT.md alone (see independent_reader.py)."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DATA, JOURNAL, CHECKPOINT, TRAILER, ROOT = 1, 2, 3, 4, 5


class Wrong(Exception):
    """The bytes are not a valid volume."""


def check(condition: object, what: str) -> None:
    """Raises Wrong."""
    if not condition:
        raise Wrong(what)


def _hkdf(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(ikm)


def sha(data: bytes) -> bytes:
    """SHA-256."""
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
        check(key[16:] == hashlib.sha256(data).hexdigest()[:32], "header's name")
        body = self._body(data, 1)
        self.volume = bytes.fromhex(body["volume"])
        check(body["format"] == 1, "version")
        keys = self._unlock(body, password.encode(), secret)
        self.root = keys[:32]
        public = Ed25519PrivateKey.from_private_bytes(keys[32:64]).public_key().public_bytes_raw()
        self.writer = bytes.fromhex(body["public_keys"]["writer"])
        check(public == self.writer, "writer's key")
        check(self._derived(b"fingerprint")[:16].hex() == body["fingerprint"], "fingerprint")
        self.ends: dict[int, dict[int, dict[str, Any]]] = {1: {}, 2: {}}
        self.generations = self._generations(body)
        self.document(key, 1)
        self.header = data

    def _derived(self, label: bytes, root: bytes | None = None) -> bytes:
        return _hkdf(root or self.root, self.volume, b"mirrorfs v1 " + label)

    def _generations(self, body: dict[str, Any]) -> dict[int, tuple[bytes, bytes, int, int]]:
        """Root key, writer's public key, first segment and the one after the last, of each generation."""
        entries = body["generations"]
        newest = entries[-1]
        check([entry["generation"] for entry in entries] == list(range(1, len(entries) + 1)), "generations")
        check(newest["generation"] == body["key_generation"] and newest["wrapped"] == "", "newest generation")
        root, writer, until = self.root, self.writer, 1 << 63
        found = {newest["generation"]: (root, writer, newest["from_sequence"], until)}
        for entry, after in reversed(list(pairwise(entries))):
            wrapped, label = bytes.fromhex(entry["wrapped"]), b"mirrorfs v1 old generation"
            place = struct.pack("<IQ", entry["generation"], entry["from_sequence"])
            key = _hkdf(root, self.volume, label)
            root = _decrypt(key, wrapped[:12], wrapped[12:], label + self.volume + place)
            fingerprint = self._derived(b"fingerprint", root)[:16].hex()
            check(fingerprint == entry["fingerprint"], "fingerprint of a generation")
            made = struct.pack("<IQ", after["generation"], after["from_sequence"])
            made += bytes.fromhex(after.get("fingerprint") or body["fingerprint"]) + writer
            writer = bytes.fromhex(entry["writer"])
            signature = bytes.fromhex(entry["endorsement"])
            for stream, name in ((1, "log_end"), (2, "checkpoint")):
                made += self._attested(stream, entry[name])
            check(after["from_sequence"] - 1 in self.ends[1], "end of a generation")
            _verify(writer, signature, b"mirrorfs v1 rotation" + self.volume + made)
            found[entry["generation"]] = (root, writer, entry["from_sequence"], after["from_sequence"])
        return found

    def epochs(self, generation: int) -> range:
        """In which epochs a generation was in use, going by the ends of the log."""
        untils = [until for *_, until in (self.generations[number] for number in sorted(self.generations))]
        ends = [int(self.ends[1][until - 1]["key"].split("-")[1], 16) for until in untils[:-1]]
        return range([-1, *ends][generation - 1] + 1, [*ends, 2**32 - 1][generation - 1] + 1)

    def _attested(self, stream: int, attested: dict[str, Any]) -> bytes:
        """What is signed of a segment that a key generation names; it goes to `ends`."""
        if not attested["key"]:
            check(stream == 2 and attested == {"key": "", "size": 0, "digest": ""}, "no checkpoint")
            return bytes(60)
        prefix, _, rest = attested["key"].partition("/")
        sequence, epoch, writer = rest.split("-")
        check(prefix == {1: "segments", 2: "checkpoints"}[stream], "stream of a generation's end")
        self.ends[stream][int(sequence, 16)] = attested
        return struct.pack(
            "<QI8sQ32s",
            int(sequence, 16),
            int(epoch, 16),
            bytes.fromhex(writer),
            attested["size"],
            bytes.fromhex(attested["digest"]),
        )

    def _unlock(self, body: dict[str, Any], password: bytes, secret: bytes) -> bytes:
        def fits(slot: dict[str, Any]) -> bool:
            salt = bytes.fromhex(slot["kdf"]["salt"])
            return _hkdf(secret, salt, b"mirrorfs v1 token check")[:8].hex() == str(slot["token_check"])

        slots = [slot for slot in body["slots"] if fits(slot)]
        check(len(slots) == 1, "token")
        slot = slots[0]
        kdf = slot["kdf"]
        check(2 <= kdf["t"] <= 16 and 65536 <= kdf["m_kib"] <= 2097152 and 1 <= kdf["p"] <= 8, "kdf")
        salt = bytes.fromhex(kdf["salt"])
        stretched = Argon2id(
            salt=salt, length=32, iterations=kdf["t"], lanes=kdf["p"], memory_cost=kdf["m_kib"]
        ).derive(password)
        kek = _hkdf(stretched + secret, salt, b"mirrorfs v1 kek")
        check(_hkdf(kek, salt, b"mirrorfs v1 kek commitment").hex() == slot["commitment"], "password")
        rest = {name: value for name, value in slot.items() if name not in ("wrapped", "boxed")}
        generation = slot["key_generation"] if slot["version"] == 2 else 1
        aad = b"mirrorfs v1 slot" + self.volume + struct.pack("<I", generation) + _canonical(rest)
        keys = _decrypt(kek, bytes.fromhex(slot["wrap_nonce"]), bytes.fromhex(slot["wrapped"]), aad)
        if generation == body["key_generation"]:
            return keys
        private = X25519PrivateKey.from_private_bytes(_hkdf(kek, salt, b"mirrorfs v1 slot box"))
        boxed, box_key = bytes.fromhex(slot["boxed"]), bytes.fromhex(slot["box_key"])
        check(private.public_key().public_bytes_raw() == box_key, "box key")
        shared = private.exchange(X25519PublicKey.from_public_bytes(boxed[:32]))
        label = b"mirrorfs v1 slot boxed"
        key = _hkdf(shared + keys[:32], self.volume, label + boxed[:32] + box_key)
        place = struct.pack("<I", body["key_generation"]) + bytes.fromhex(slot["id"])
        return _decrypt(key, boxed[32:44], boxed[44:], label + self.volume + place)

    # --- documents ---------------------------------------------------------------------------

    def _body(self, data: bytes, kind: int) -> dict[str, Any]:
        check(data[:12] == b"MFSDOC1\n" + bytes((kind, 0, 0, 0)), "document's prefix")
        (size,) = struct.unpack_from("<I", data, 12)
        check(len(data) == 16 + size + 96, "document's length")
        body: dict[str, Any] = json.loads(data[16 : 16 + size])
        check(_canonical(body) == data[16 : 16 + size], "canonical form")
        return body

    def document(self, key: str, kind: int) -> dict[str, Any]:
        """Authenticate a document signed by the writer; its body."""
        return self.authentic(self.objects[key], kind, self.writer)

    def authentic(self, data: bytes, kind: int, public: bytes) -> dict[str, Any]:
        """Authenticate a document that the role with this public key signed; its body."""
        mac = hmac.digest(self._derived(b"document-mac"), self.volume + data[:-32], "sha256")
        check(mac == data[-32:], "document's MAC")
        _verify(public, data[-96:-32], b"mirrorfs v1 document" + self.volume + data[:-96])
        body = self._body(data, kind)
        check(body["format"] == 1 and body["volume"] == self.volume.hex(), "document's volume")
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
                    sha(segment.data[:cut]) == later.previous_digest
                ):
                    check(not segment.sealed or cut == len(segment.data), "cut of a sealed segment")
                    segment.end = cut
                    following.append(later)
            attested = self.ends[1].get(segment.sequence)
            if attested is not None:
                segment.end = attested["size"]
                check(sha(segment.data[: segment.end]).hex() == attested["digest"], "end of a generation")
            elif not following and not segment.sealed:
                return
            yield segment
            current = following


class Frame:
    """An authenticated frame."""

    def __init__(self, segment: Segment, offset: int, ordinal: int | None) -> None:
        data = segment.data
        size, self.ordinal, nonce, birth, birth_ordinal = struct.unpack_from("<II12sQI", data, offset)
        check(ordinal is None or self.ordinal == ordinal, "ordinal")
        self.offset, self.end = offset, offset + 32 + size
        check(28 <= size <= 1 << 24 and self.end <= len(data), "frame's size")
        header = data[offset : offset + 32]
        aad = b"mirrorfs v1 frame\x01" + segment.identity + struct.pack("<Q", offset) + header
        envelope = _decrypt(segment.key, nonce, data[offset + 32 : self.end], aad)
        self.kind, codec, reserved, packed, length = struct.unpack_from("<BBHII", envelope)
        body = envelope[12 : 12 + packed]
        check(reserved == 0 and len(body) == packed and codec < 2, "envelope")
        if codec:
            check(zstandard.get_frame_parameters(body).content_size == length, "content size")
            body = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompress(body)
        check(len(body) == length, "plaintext's length")
        self.plain = body
        self.name = birth << 20 | birth_ordinal
        self.birth = birth


class Segment:
    """A segment with an authentic header."""

    def __init__(self, reader: Reader, key: str, data: bytes) -> None:
        self.data = data
        self.end = len(data)
        check(data[:8] == b"MFSSEG1\n", "magic")
        (generation,) = struct.unpack_from("<I", data, 32)
        check(generation in reader.generations, "key generation")
        self.is_past = generation < max(reader.generations)
        root, self.signer, first, until = reader.generations[generation]
        mac = hmac.digest(reader._derived(b"segment-header-mac", root), data[:284], "sha256")
        check(mac == data[284:316], "header's MAC")
        _verify(self.signer, data[220:284], b"mirrorfs v1 segment header" + data[:220])
        version, size, self.stream, r1, volume, _, _, self.sequence, self.epoch, self.writer = (
            struct.unpack_from("<HHB3s16sIIQI8s", data, 8)
        )
        (
            salt,
            commitment,
            present,
            r2,
            epoch,
            sequence,
            writer,
            self.previous_size,
            self.previous_digest,
            r3,
        ) = struct.unpack_from("<32s32sB3sIQ8sQ32s32s", data, 60)
        check((version, size, volume) == (1, 316, reader.volume), "header")
        check(self.stream != 1 or first <= self.sequence < until, "generation of its place")
        check(not any(r1 + r2 + r3) and present < 2, "reserved")
        self.previous = (epoch, sequence, writer) if present else None
        name = f"{self.sequence:016x}-{self.epoch:08x}-{self.writer.hex()}"
        prefix = {1: "segments/", 2: "checkpoints/", 3: "relocated/"}[self.stream]
        check(key == prefix + name, "key of a segment")
        check(self.stream != 3 or not present, "predecessor of a relocated segment")
        check(self.stream != 3 or self.epoch in reader.epochs(generation), "generation of its epoch")
        self.key = _hkdf(root, salt, b"mirrorfs v1 segment key" + reader.volume)
        expected = _hkdf(root, salt, b"mirrorfs v1 segment commitment" + reader.volume)
        check(expected == commitment, "commitment")
        self.identity = data[16:32] + data[32:36] + data[12:13] + data[40:48] + data[48:52] + data[52:60]
        self.sealed = data[-4:] == b"MFSE"
        self.rows: list[tuple[int, int]] = []
        self.copy = b""
        if self.sealed:
            self._trailer()

    def _trailer(self) -> None:
        (offset,) = struct.unpack_from("<I", self.data, len(self.data) - 8)
        frame = Frame(self, offset, None)
        count, *_, size, digest = struct.unpack_from("<IQQqqI32s", frame.plain)
        rows = frame.plain[136:]
        check(frame.kind == TRAILER and frame.ordinal == count and size == offset, "trailer")
        check(len(rows) == 5 * count and digest == sha(self.data[:offset]), "trailer's digest")
        signed = b"mirrorfs v1 trailer" + self.identity + frame.plain[:72] + rows
        _verify(self.signer, frame.plain[72:136], signed)
        self.rows = list(struct.iter_unpack("<IB", rows))
        self.copy = self.data[frame.end : -8]
        check(not self.copy or self.stream == 2, "bytes behind the trailer")

    def frames(self) -> Iterator[Frame]:
        """All frames before the trailer or the cut."""
        offset, ordinal = 316, 0
        end = struct.unpack_from("<I", self.data, len(self.data) - 8)[0] if self.sealed else self.end
        while offset < end:
            frame = Frame(self, offset, ordinal)
            check(frame.end <= end, "frame over the cut")
            if self.sealed:
                check(self.rows[ordinal] == (offset, frame.kind), "row of the trailer")
            yield frame
            offset, ordinal = frame.end, ordinal + 1
