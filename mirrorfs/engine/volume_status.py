"""What `status` tells of a mounted volume."""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.core.sense import Burst
from mirrorfs.engine.mirror_state import MirrorState


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A moment of a mounted volume."""

    position: int
    durable_ns: int
    """Everything written before is in the local log."""
    dirty_bytes: int
    pending_records_bytes: int
    open_since_ns: int
    """Changes in the open segment were made after this moment; 0 when all changes are in closed ones."""
    log_bytes_appended: int
    commits: int
    files: int
    allocated_bytes: int
    free_bytes: int
    stalled: bool
    fatal: str | None
    stores: tuple[MirrorState, ...]
    fenced: str | None
    burst: Burst | None
    """Files that were replaced by what looks encrypted, until a person cleared it."""
