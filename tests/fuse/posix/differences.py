"""All that the mount answers otherwise than ext4. What is not named here is the same on both.

A test asks through the fixture `differs`, which knows only the names below; docs/posix.md tells the same
to the user, by the same names.
"""

from __future__ import annotations

DIFFERENCES: dict[str, str] = {
    # name: why
    "fallocate": "pyfuse3 passes no such request on",
    "holes": "pyfuse3 passes no lseek on: the kernel takes a file for one piece of data",
    "tmpfile": "pyfuse3 passes no such request on",
    "whiteout": "RENAME_WHITEOUT serves the upper layer of overlayfs, which wants more than that",
    "ioctl": "pyfuse3 passes none on: no chattr, no lsattr, no map of the disk's blocks",
    "birth-time": "FUSE asks for it with statx, which pyfuse3 does not pass on",
    "largest-file": "ext4 ends at 16 TiB, the mount far beyond",
    "most-subdirectories": "each has a link to its parent, and 65000 links are the limit of the format",
    "direct-io": "there is no device whose blocks direct I/O would have to meet",
    "devices-and-set-id": "mounted nodev and nosuid, as FUSE mounts are",
    "range-of-times": "the format keeps times as signed 64-bit nanoseconds: 1677 to 2262",
    "setgid-without-group-execution": "the kernel's FUSE clears setgid only beside group execution",
}
