"""What a daemon costs: processor time and memory of its processes, bytes in its stores."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

KIB = 1024
CPUCLOCK_SCHED = 2
RESET_PEAK = "5"
"""Written to clear_refs, it sets VmHWM back to the present size."""


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of processes so far: utime + stime of /proc, to the nanosecond instead of the tick."""
    total_s = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            # clock_getcpuclockid(3) of another process, which Python does not offer.
            total_s += time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    return total_s


def reset_peak(pids: Iterable[int]) -> None:
    """Forget how much memory processes once had; where that is not allowed, the peak is of their lives."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def peak_bytes(pids: Iterable[int]) -> int:
    """Most resident memory (VmHWM) since the reset, summed over processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * KIB
    return total


def tree_bytes(root: Path) -> int:
    """Lengths of all files below."""
    total = 0
    folders = [str(root)]
    for folder in folders:  # grows while it is walked
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
    return total
