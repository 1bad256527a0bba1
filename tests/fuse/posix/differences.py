"""All that the mount answers otherwise than ext4. What is not named here is the same on both.

A test asks through the fixture `differs`, which knows only the names below; docs/posix.md tells the same
to the user, by the same names.
"""

from __future__ import annotations

DIFFERENCES: dict[str, str] = {
    # name: why
    "setgid-without-group-execution": "the kernel's FUSE clears setgid only beside group execution",
    "range-of-times": "the format keeps times as signed 64-bit nanoseconds: 1677 to 2262",
}
