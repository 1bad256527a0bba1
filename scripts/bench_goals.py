"""What MirrorFS is meant to reach, as ratios within one run, and whether it did. Pure.

A ratio is that of the medians over the rounds; beside it stands the range of the ratios of single rounds,
which tells how much of it is noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OWN = "mirrorfs"
CEILING = "null"
MEMORY_GOAL_BYTES = 300_000_000

Rates = Mapping[str, Mapping[str, Sequence[float]]]
"""Filesystem, then workload: a rate per round; 0 where it failed."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Least ratio to the fastest encrypted peer, and to the do-nothing filesystem; None: there is no goal."""

    peer: float | None = None
    ceiling: float | None = None


GOALS: Mapping[str, Goal] = {
    "write-text": Goal(1.3, 0.35),
    "write-random": Goal(1.5, 0.55),
    "write-text-stored": Goal(),  # the peers keep one copy, MirrorFS three: told, not judged
    "create": Goal(1.2, 0.75),
    "create-fsync": Goal(1.5),
    "create-empty": Goal(1.0),
    "dicom": Goal(1.5),
    "untar": Goal(1.2),
    "append": Goal(1.0),
    "mmap": Goal(1.0),
    "sqlite-delete": Goal(1.5),
    "sqlite-wal": Goal(1.5),
    "read-text-cold": Goal(1.5, 0.6),
    "read-random-cold": Goal(1.5, 0.6),
    "read-text-warm": Goal(1.0),
    "read-random-warm": Goal(1.0),
    "update-fdatasync": Goal(1.5),
    "walk": Goal(2.0, 0.75),
    "small-reads": Goal(1.3, 0.6),
    "list": Goal(2.0),
    "unlink": Goal(1.2, 0.75),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """MirrorFS to another filesystem in one workload."""

    other: str
    value: float
    lowest: float
    """Of single rounds."""
    highest: float


def median_rate(rates: Sequence[float]) -> float:
    """The median; 0 when any round failed, or none was measured."""
    return statistics.median(rates) if rates and all(rates) else 0.0


def ratio(rates: Rates, workload: str, other: str) -> Ratio | None:
    """MirrorFS to another filesystem; None where either has no number."""
    own, theirs = (rates.get(name, {}).get(workload, ()) for name in (OWN, other))
    above, below = median_rate(own), median_rate(theirs)
    if not above or not below:
        return None
    single = [mine / yours for mine, yours in zip(own, theirs, strict=False)]
    return Ratio(other, above / below, min(single), max(single))


def best_peer(rates: Rates, workload: str, peers: Sequence[str]) -> str | None:
    """The fastest of these; None when none has a number."""
    found = {name: median_rate(rates.get(name, {}).get(workload, ())) for name in peers}
    best = max(found, key=lambda name: found[name], default=None)
    return best if best is not None and found[best] else None


def verdict(value: float | None, goal: float | None) -> str:
    """Whether a least ratio was reached, and by how much it was missed."""
    if goal is None:
        return ""
    if value is None:
        return "not measured"
    if value >= goal:
        return "met"
    return f"missed by {max(1, round(100 * (1 - value / goal)))} %"


def memory_verdict(peak_bytes: int) -> str:
    """The same of a most, in bytes."""
    if peak_bytes < MEMORY_GOAL_BYTES:
        return "met"
    return f"missed by {max(1, round(100 * (peak_bytes / MEMORY_GOAL_BYTES - 1)))} %"
