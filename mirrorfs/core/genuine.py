"""Whether bytes are the immutable object that a key names. Pure: bytes in, a verdict out."""

from __future__ import annotations

import hashlib

from mirrorfs.core.scan import scan_segment
from mirrorfs.errors import DamagedError, FormatError, StoreTooNew
from mirrorfs.format.control import open_head
from mirrorfs.format.document import DocumentKind, open_document
from mirrorfs.format.header import parse_header
from mirrorfs.format.ids import parse_segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import RelocatedRow, SegmentRow
from mirrorfs.format.segment import header_copy
from mirrorfs.format.signing import load_public_key


def check_object(
    key: str,
    data: bytes,
    *,
    keys: VolumeKeys,
    public_key: bytes,
    row: SegmentRow | RelocatedRow | None = None,
) -> None:
    """Return if `data` is what the writer stored under `key`, in every byte.

    Args:
        public_key: Ed25519 of the writer role, 32 bytes.
        row: what the index says of this very segment: its size and digest then decide. Without one, as for
            checkpoints, the segment's own signed trailer does, so that it must be sealed.
    Raises: DamagedError, LimitError: it is not, or not all of it.
    """
    if key.startswith("header/"):
        # The key holds the hash, and keys come from what this machine knows to be stored.
        parse_header(data, key=key)
    elif key.startswith("heads/"):
        open_head(data, key=key, keys=keys, public_key=public_key, with_past=True)
    elif row is not None:
        if len(data) != row.size:
            raise DamagedError(f"it has {len(data)} bytes instead of {row.size}.")
        if hashlib.sha256(data).digest() != row.digest:
            raise DamagedError("its bytes are not those that were written.")
    else:
        stream, segment = parse_segment_object_key(key)
        scan = scan_segment(data, keys, load_public_key(public_key))
        if (scan.header.stream, scan.header.segment) != (stream, segment):
            raise FormatError("it holds another segment.")
        if scan.fault is not None or scan.trailer is None:
            raise DamagedError(scan.fault or "it ends before its trailer.")
        # What lies behind the trailer is outside its digest, and proves itself.
        copy = header_copy(data, offset=scan.trailer.size, stream=stream)
        if copy:
            open_document(
                copy,
                DocumentKind.HEADER,
                volume=keys.volume,
                keys=keys,
                public_key=public_key,
                with_past=True,
            )


def is_another_state(
    key: str, data: bytes, *, keys: VolumeKeys, public_key: bytes, row: SegmentRow | RelocatedRow
) -> bool:
    """Whether what is not the segment that the index has is one of that name all the same, whole or longer.

    Its writer wrote it: a clone of this machine, or this one before its state was put back. It is no damage.
    """
    try:
        scan = scan_segment(data, keys, load_public_key(public_key))
    except (DamagedError, StoreTooNew):
        return False
    named = parse_segment_object_key(key)
    is_whole = scan.fault is None and (scan.trailer is not None or len(data) > row.size)
    return is_whole and (scan.header.stream, scan.header.segment) == named
