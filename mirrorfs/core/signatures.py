"""What the first bytes of a file look like: a format that is known, some structure, or noise.

Only names of formats that compress their contents matter here, so that a photo is not taken for a file that
somebody encrypted. Formats whose contents are encrypted (OpenPGP, OpenSSL, age) are left out on purpose.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

START_BYTES: Final = 132
"""So many bytes are looked at: those of DICOM begin with 128 free ones."""
_DISTINCT_OF: Final = 64
_LEAST: Final = 16


class Start(IntEnum):
    """How a file begins."""

    UNSEEN = 0
    """Not known, too short to say, or all the same (zeros that wait to be filled)."""
    OPAQUE = 1
    """As random bytes do."""
    STRUCTURED = 2
    """Not as random bytes do, in no format that is known here."""
    KNOWN = 3
    """As text, or as a format that is known here."""

    @property
    def is_legible(self) -> bool:
        """Whether a program could tell what it is."""
        return self >= Start.STRUCTURED


_ENCRYPTED: Final = (b"Salted__", b"age-encryption.org/")
_KNOWN: Final = (
    # pictures
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"RIFF", b"8BPS",
    b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b"\xff\x0a", b"wOFF", b"wOF2",
    b"\x76\x2f\x31\x01", b"\x08\0\x05\0", b"\x02\0\0\0",
    # documents and mail
    b"%PDF", b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"\xd0\xcf\x11\xe0", b"{\\rtf", b"%!PS", b"!BDN",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"ITSF", b"AT&TFORM",
    # archives and compressed streams
    b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"LZIP",
    b"7z\xbc\xaf\x27\x1c", b"Rar!", b"MSCF", b"\x5d\0\0", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda",
    b"\xff\x06\0\0sNaPpY", b"xar!", b"\x60\xea", b"PAR1", b"hsqs", b"\x89HDF", b"PACK", b"BORG_SEG",
    b"MSWIM\0\0\0", b"\xedABEEV",
    # sound and film
    b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9", b"OggS", b"fLaC", b"FORM",
    b"\x1aE\xdf\xa3", b"FLV\x01", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"0&\xb2u", b"#!AMR",
    # databases, images of disks, safes and programs
    b"SQLite format 3\0", b"\x03\xd9\xa2\x9a", b"LUKS\xba\xbe", b"KDMV", b"conectix", b"QFI\xfb", b"vhdxfile",
    b"\x7fELF", b"MZ", b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe", b"dex\n", b"\0asm",
)  # fmt: skip
_TEXT: Final = bytes(range(0x20, 0x7F)) + b"\t\n\r\f\x1b"


def start_of(data: bytes) -> Start:
    """Judge the first START_BYTES bytes of a file, or all of it where it is shorter."""
    if data.startswith(_ENCRYPTED):
        return Start.OPAQUE
    if data.startswith(_KNOWN) or data[4:8] == b"ftyp" or data[128:132] == b"DICM":
        return Start.KNOWN
    head = data[:_DISTINCT_OF]
    different = len(set(head))
    if len(head) < _LEAST or different == 1:
        return Start.UNSEEN
    # Of 64 random bytes 57 differ, give or take 2; text and binary headers repeat themselves.
    if 8 * different > 5 * len(head):
        return Start.OPAQUE
    return Start.STRUCTURED if head.translate(None, _TEXT) else Start.KNOWN
