"""What a report says about the machine, without naming it."""

from __future__ import annotations

import os
import re
from pathlib import Path

GIB = 1024**3


def mount_of(path: Path) -> tuple[str, str]:
    """Type and device (major:minor) of the filesystem that holds a path."""
    best, kind, device = "", "", ""
    real = str(path.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        _, _, number, _, where = fields.split()[:5]
        inside = real == where or real.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, kind, device = where, source.split()[0], number
    return kind, device


def disk_kind(path: Path) -> str:
    """The filesystem below, and what it lies on."""
    kind, device = mount_of(path)
    if kind == "tmpfs":
        return "tmpfs (memory)"
    block = Path("/sys/dev/block") / device
    name = block.resolve().name
    if name.startswith("vd"):
        return f"{kind} on a virtual disk"
    if name.startswith("nvme"):
        return f"{kind} on NVMe"
    for queue in (block / "queue", block.resolve().parent / "queue"):  # of a disk, of a partition's disk
        if (queue / "rotational").exists():
            spins = (queue / "rotational").read_text().strip() == "1"
            return f"{kind} on a {'rotating disk' if spins else 'solid-state disk'}"
    return kind


def processor() -> str:
    """Model of the processor, as the kernel calls it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else os.uname().machine


def kernel() -> str:
    """The kernel's version by number only: what follows may name a site."""
    found = re.match(r"[0-9.]+", os.uname().release)
    return found[0].rstrip(".") if found else "unknown"


def description(folder: Path) -> str:
    """One sentence: cores, memory, kernel, disk."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return (
        f"{len(os.sched_getaffinity(0))} cores ({processor()}), {memory:.0f} GiB of memory,"
        f" Linux {kernel()}, {disk_kind(folder)}."
    )
