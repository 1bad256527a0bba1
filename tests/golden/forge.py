"""Makes segments and documents that are authentic but wrong, as only a holder of the keys can."""

from __future__ import annotations

import hashlib
import hmac
import struct

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mirrorfs.format.kdf import VolumeKeys, segment_key
from mirrorfs.format.segment import FOOTER, FOOTER_MAGIC, SegmentHeader, encode_header


def reseal_header(data: bytes, keys: VolumeKeys, seed: bytes) -> bytes:
    """The segment with its 220 bytes of header fields signed and authenticated anew."""
    fields = data[:220]
    signed = fields + Ed25519PrivateKey.from_private_bytes(seed).sign(b"mirrorfs v1 segment header" + fields)
    return signed + hmac.digest(keys.segment_header_mac_key, signed, "sha256") + data[316:]


class Forge:
    """A segment under construction, with no checks at all."""

    def __init__(self, header: SegmentHeader, keys: VolumeKeys, seed: bytes) -> None:
        self.header = header
        self._seed = seed
        self._aead = AESGCM(segment_key(keys, header.salt)[0])
        self.data = bytearray(encode_header(header, keys, Ed25519PrivateKey.from_private_bytes(seed)))
        self._rows: list[tuple[int, int]] = []
        self.last_hash = bytes(32)

    def raw(self, data: bytes) -> None:
        """Append bytes as they are."""
        self.data += data

    def frame(
        self,
        *,
        kind: int = 2,
        codec: int = 0,
        reserved: int = 0,
        body: bytes = b"a body of some bytes",
        size: int | None = None,
        length: int | None = None,
        ordinal: int | None = None,
        birth: tuple[int, int] | None = None,
    ) -> None:
        """Append one authentic frame with these values in it."""
        number = len(self._rows) if ordinal is None else ordinal
        born = birth or (self.header.segment.sequence, number)
        nonce = hashlib.sha256(b"forged" + number.to_bytes(4, "little")).digest()[:12]
        declared = len(body) if size is None else size
        plain = len(body) if length is None else length
        envelope = struct.pack("<BBHII", kind, codec, reserved, declared, plain) + body
        offset = len(self.data)
        header = struct.pack("<II12sQI", len(envelope) + 16, number, nonce, *born)
        aad = b"mirrorfs v1 frame\x01" + self.header.identity + struct.pack("<Q", offset) + header
        self.data += header + self._aead.encrypt(nonce, envelope, aad)
        self._rows.append((offset, kind))

    def bomb(self, *, kind: int) -> None:
        """A frame whose zstd body unpacks to 1 GiB of zeros, with a plaintext length of 64."""
        compressor = zstandard.ZstdCompressor(level=19, write_content_size=True)
        small = compressor.compress(bytes(1 << 20))
        # One zstd frame cannot be written by hand in few bytes; its stated content size can be changed.
        assert small[:4] == b"\x28\xb5\x2f\xfd" and small[4] & 0xC0 == 0x80
        header = small[:4] + bytes((small[4] | 0xC0,)) + (1 << 30).to_bytes(8, "little")
        self.frame(kind=kind, codec=1, body=header + small[9:], length=64)

    def journal(
        self,
        *,
        sequence: int = 1,
        durable: int = 0,
        flags: int = 0,
        reserved: int = 0,
        count: int | None = None,
        previous: bytes = bytes(32),
        records: bytes = b"",
    ) -> None:
        """Append a journal frame with these values in it."""
        number = count if count is not None else int(bool(records))
        payload = (
            struct.pack("<QqQBBHI32s", sequence, 0, durable, flags, reserved, 0, number, previous) + records
        )
        self.last_hash = hashlib.sha256(payload).digest()
        self.frame(kind=2, body=payload)

    def trailer(
        self,
        *,
        seed: bytes | None = None,
        extra: list[tuple[int, int]] | None = None,
        backwards: bool = False,
        kind: int | None = None,
        size_add: int = 0,
        digest: bytes | None = None,
        appendix: bytes = b"",
    ) -> None:
        """Append a trailer and a footer, right but for what is said."""
        rows = [*self._rows, *(extra or [])]
        if backwards:
            rows.reverse()
        if kind is not None:
            rows = [(offset, kind) for offset, _ in rows]
        table = b"".join(struct.pack("<IB", *row) for row in rows)
        offset = len(self.data)
        found = hashlib.sha256(self.data).digest()
        head = struct.pack("<IQQqqI32s", len(rows), 0, 0, 0, 0, offset + size_add, digest or found)
        signer = Ed25519PrivateKey.from_private_bytes(seed or self._seed)
        signature = signer.sign(b"mirrorfs v1 trailer" + self.header.identity + head + table)
        self.frame(kind=4, body=head + signature + table)
        self.data += appendix + FOOTER.pack(offset, FOOTER_MAGIC)

    @staticmethod
    def document(kind: int, body: bytes, keys: VolumeKeys, seed: bytes) -> bytes:
        """An authentic document around any bytes."""
        unsigned = b"MFSDOC1\n" + bytes((kind, 0, 0, 0)) + len(body).to_bytes(4, "little") + body
        context = b"mirrorfs v1 document" + keys.volume
        signed = unsigned + Ed25519PrivateKey.from_private_bytes(seed).sign(context + unsigned)
        return signed + hmac.digest(keys.document_mac_key, keys.volume + signed, "sha256")
