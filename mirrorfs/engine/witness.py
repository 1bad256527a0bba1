"""The newest state that this machine knows of: what it wrote, and what views on it saw.

A store that went back while nobody here looked shows it to whoever remembers. A view writes nothing else to
the local state, and only heads whose log it shows.
"""

from __future__ import annotations

import logging
from typing import Final

from mirrorfs.engine.closed_segments import newest_local_head
from mirrorfs.engine.heads import FoundHead
from mirrorfs.errors import DamagedError, LimitError
from mirrorfs.format.control import Head, open_head, parse_head_key
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Disk

logger = logging.getLogger(__name__)

SEEN_HEAD_PATH: Final = "view-head"
"""The key of a head, a line feed, its bytes."""
_KEY_SIZE_MAX: Final = 200


def known_head(disk: Disk, *, keys: VolumeKeys, public_key: bytes) -> Head | None:
    """The newest head that this machine wrote, or that a view on it saw. Blocking.

    Args:
        public_key: Ed25519 of the writer role, 32 bytes.
    Raises: DiskError.
    """
    local = newest_local_head(disk, keys=keys, public_key=public_key)
    found = [head for head in (local and local[0], seen_head(disk, keys=keys, public_key=public_key)) if head]
    return max(found, key=_order, default=None)


def seen_head(disk: Disk, *, keys: VolumeKeys, public_key: bytes) -> Head | None:
    """The newest head that a view saw; a damaged one counts as none. Blocking. Raises: DiskError."""
    try:
        file = disk.open(SEEN_HEAD_PATH)
    except FileNotFoundError:
        return None
    try:
        kept = file.read(offset=0, size_bytes=_KEY_SIZE_MAX + DOCUMENT_SIZE_MAX)
    finally:
        file.close()
    key, _, data = kept.partition(b"\n")
    try:
        name = key.decode("ascii", "replace")
        parse_head_key(name)
        return open_head(data, key=name, keys=keys, public_key=public_key, with_past=True)
    except (DamagedError, LimitError) as exc:
        logger.warning("What an earlier view saw last cannot be read: %s", exc)
        return None


def remember_head(disk: Disk, found: FoundHead, *, keys: VolumeKeys, public_key: bytes) -> None:
    """Keep a head, if it is newer than the one that is kept. Blocking. Raises: DiskError, DiskFull."""
    before = seen_head(disk, keys=keys, public_key=public_key)
    if before is None or _order(before) < _order(found.head):
        disk.write_whole(SEEN_HEAD_PATH, found.key.encode() + b"\n" + found.data)


def _order(head: Head) -> tuple[int, int]:
    return head.epoch, head.counter
