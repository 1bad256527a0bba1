"""What `status` tells of a mounted volume."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirrorfs.core.sense import Burst
from mirrorfs.engine.attached import StoreSet
from mirrorfs.engine.local import LocalVolume
from mirrorfs.engine.mirror_state import MirrorState
from mirrorfs.engine.objects import SegmentAges
from mirrorfs.engine.went_back import WentBack


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
    damaged: dict[str, int]
    """Copies that scrubs found bad and that are not known to be whole again, by store or LOCAL; no zeros."""


def status_of(local: LocalVolume, ages: SegmentAges, stores: StoreSet, went_back: WentBack) -> VolumeStatus:
    """The state now; cheap."""
    files, allocated = local.index.totals()
    return VolumeStatus(
        position=local.committer.durable_position,
        durable_ns=local.committer.durable_ns,
        dirty_bytes=local.state.dirty_bytes,
        pending_records_bytes=local.state.pending_bytes,
        open_since_ns=ages.open_since_ns(oldest_ns) if (oldest_ns := local.log.oldest_ns) else 0,
        log_bytes_appended=local.log.bytes_appended,
        commits=local.committer.commits,
        files=files,
        allocated_bytes=allocated,
        free_bytes=local.space.free_bytes(),
        stalled=local.state.stalled,
        fatal=local.state.fatal,
        stores=tuple(
            replace(one.snapshot(), went_back_ns=went_back.since_ns(one.instance)) for one in stores.members
        ),
        fenced=stores.fenced(),
        burst=local.bursts.open,
        damaged={} if stores.faults is None else stores.faults.counts(),
    )
