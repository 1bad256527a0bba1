"""The numbers of docs/FORMAT.md, "Limits". Raising one is a new format version."""

from __future__ import annotations

FORMAT_VERSION = 1
INTEGER_MAX = 2**63 - 1
"""Most that any number may be: the index keeps signed 64-bit integers."""

EPOCH_MAX = 2**32 - 1
SEGMENT_SIZE_MAX = 16 * 1024 * 1024
FRAME_LENGTH_MAX = 1024 * 1024
"""Plaintext bytes of a data frame."""
PAYLOAD_MAX = FRAME_LENGTH_MAX + 64 * 1024
"""Plaintext bytes of any other frame: room for one oversized record or row beyond a full frame."""
GROUP_LENGTH_MAX = 128 * 1024
"""Plaintext bytes of a frame that small files share."""
CHUNK_SIZE = 1024 * 1024
"""Bytes of a file whose extents share one row of the index."""

ORDINAL_BITS = 20
ORDINAL_MAX = (1 << ORDINAL_BITS) - 1
SEQUENCE_MAX = (1 << (63 - ORDINAL_BITS)) - 1

NAME_MAX = 255
TARGET_MAX = 4095
XATTR_NAME_MAX = 255
XATTR_VALUE_MAX = 64 * 1024
FILE_SIZE_MAX = INTEGER_MAX - CHUNK_SIZE
LINKS_MAX = 65000
SNAPSHOTS_MAX = 4096
SNAPSHOT_NAME_MAX = 64
"""Bytes."""
MOMENTS_MAX = 16_384
"""Moments with a checkpoint that are kept at a time."""

ROOT_INODE = 1
FIRST_COOKIE = 16
"""Cookies below are the kernel's: 1 is '.', 2 is '..'."""
