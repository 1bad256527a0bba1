"""What pruning did, or would do."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class PruneReport:
    """The account of one run. Bytes are those of objects, in each store."""

    base_ns: int = 0
    """Every moment since is kept; 0: all there ever were."""
    moments: list[int] = field(default_factory=list)
    """Commit times of the moments before that are kept, rising."""
    dropped: int = 0
    """Moments that are kept no longer."""
    made: int = 0
    """Moments for which a checkpoint was made, or would be."""
    collected: int = 0
    """Segments that are done without, or would be."""
    collected_bytes: int = 0
    copied_bytes: int = 0
    """Bytes of what is still needed of those, which are written anew."""
    merged_bytes: int = 0
    """Bytes of files that lay in very many pieces and were written anew."""
    merged_extents: int = 0
    """Pieces that those have less of."""
    condemned: int = 0
    """Segments that wait for their deletion."""
    deleted: int = 0
    """Objects that were deleted in every store."""
    left: list[str] = field(default_factory=list)
    """Names of append-only stores that hold what another machine is to delete there."""
    denied: list[str] = field(default_factory=list)
    """Names of stores that do not let this machine delete."""
