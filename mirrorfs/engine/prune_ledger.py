"""What the machine that prunes remembers from run to run, by its own clock, of what the log said.

A writer can say anything in the log, and later something else. What was seen is not forgotten for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mirrorfs.core.retention import DAY_NS
from mirrorfs.errors import FormatError
from mirrorfs.format.rows import MomentRow, SnapshotRow
from mirrorfs.ports import Disk

LEDGER_PATH: Final = "prune-ledger"
SEEN_EVERY_NS: Final = DAY_NS // 4
"""So far apart are the positions that are remembered."""
SEEN_MAX: Final = 40_000
LATE_NS: Final = 7 * DAY_NS
"""So long may a PC that cannot reach its stores send what it wrote later."""
AHEAD_NS: Final = DAY_NS
"""So far may a PC's clock be ahead."""
_DAMAGED: Final = "What this machine remembers of the volume is damaged"


@dataclass(slots=True)
class SeenSnapshot:
    """A snapshot that the log had at some time."""

    held: bool
    gone_ns: int = 0
    """When it was first seen to be gone; 0: it is there."""


@dataclass(slots=True)
class Ledger:
    """Times are of this machine's clock, but `MomentRow.time_ns`."""

    seen: list[tuple[int, int]] = field(default_factory=list)
    """(time, end of the log), rising."""
    moments: dict[int, MomentRow] = field(default_factory=dict)
    """By position, those that were verified, or trusted on first use; `add_moment` says of which time."""
    snapshots: dict[int, SeenSnapshot] = field(default_factory=dict)
    """By position: names may tell of patients, and this lies in the clear."""
    unneeded: dict[str, int] = field(default_factory=dict)
    """Keys of objects that could go: when they were first seen so."""
    base: int = 0
    """Position from which on everything is kept, as this machine reckons; 0: it has none yet."""

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever seen."""
        return not self.seen

    def observe(self, now_ns: int, position: int) -> None:
        """The log ends here now."""
        if not self.seen or now_ns - self.seen[-1][0] >= SEEN_EVERY_NS:
            self.seen.append((now_ns, position))
        del self.seen[:-SEEN_MAX]

    def end_at(self, time_ns: int) -> int:
        """Where the log ended when it was last seen up to a time; 0: it had not been seen yet."""
        return max((position for at_ns, position in self.seen if at_ns <= time_ns), default=0)

    def add_moment(self, row: MomentRow, now_ns: int) -> None:
        """A writer may say that a moment is older than it is, and have it stand for those that were, or
        younger, so that those which are missing before it are not missed.
        """
        before_ns = max((at_ns for at_ns, position in self.seen if position < row.position), default=0)
        after_ns = min((at_ns for at_ns, position in self.seen if position >= row.position), default=now_ns)
        time_ns = min(max(row.time_ns, before_ns - LATE_NS), after_ns + AHEAD_NS)
        self.moments[row.position] = row._replace(time_ns=time_ns, base=0)

    def observe_snapshots(self, rows: Iterable[SnapshotRow], now_ns: int) -> list[int]:
        """Returns the positions of those whose hold was taken away since."""
        there = {row.position: bool(row.held) for row in rows}
        known = self.snapshots
        released = [at for at, held in there.items() if at in known and known[at].held and not held]
        known |= {at: SeenSnapshot(held) for at, held in there.items()}
        for at, snapshot in known.items():
            if at not in there and not snapshot.gone_ns:
                snapshot.gone_ns = now_ns
        return released

    def note_unneeded(self, keys: Iterable[str], now_ns: int) -> None:
        """Exactly these objects could go now; one that was needed in between begins anew."""
        self.unneeded = {key: self.unneeded.get(key, now_ns) for key in keys}


def read_ledger(disk: Disk) -> Ledger:
    """What was remembered; an empty one where there is none. Raises: FormatError, DiskError."""
    try:
        file = disk.open(LEDGER_PATH)
    except FileNotFoundError:
        return Ledger()
    try:
        found = json.loads(file.read(offset=0, size_bytes=file.size()))
        return _ledger(found)
    except (ValueError, TypeError, KeyError) as exc:
        raise FormatError(
            f"{_DAMAGED}; remove {LEDGER_PATH} to begin anew: it then waits as at first."
        ) from exc
    finally:
        file.close()


def _ledger(found: dict[str, Any]) -> Ledger:
    if found["version"] != 1:
        raise ValueError
    rows = [
        MomentRow._make([*row[:3], bytes.fromhex(row[3]), bytes.fromhex(row[4]), *row[5:]])
        for row in found["moments"]
    ]
    return Ledger(
        seen=[(int(at_ns), int(position)) for at_ns, position in found["seen"]],
        moments={row.position: row for row in rows},
        snapshots={int(at): SeenSnapshot(*fields) for at, fields in found["snapshots"].items()},
        unneeded={str(key): int(at_ns) for key, at_ns in found["unneeded"].items()},
        base=int(found["base"]),
    )


def write_ledger(disk: Disk, ledger: Ledger) -> None:
    """Remember it, durably. Raises: DiskError, DiskFull."""
    rows = [[*row[:3], row.writer.hex(), row.digest.hex(), *row[5:]] for row in ledger.moments.values()]
    snapshots = {str(at): [one.held, one.gone_ns] for at, one in ledger.snapshots.items()}
    fields = {
        "version": 1, "seen": ledger.seen, "moments": rows, "snapshots": snapshots,
        "unneeded": ledger.unneeded, "base": ledger.base,
    }  # fmt: skip
    disk.write_whole(LEDGER_PATH, json.dumps(fields).encode())
