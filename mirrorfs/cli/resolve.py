"""From what somebody typed, a volume's name or its mountpoint, to the volume.

Mountpoints are looked up in the kernel's mount table only: a stat of a mount whose daemon hangs would
hang as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mirrorfs.cli.config import VolumePaths, configured_volumes, volume_paths
from mirrorfs.errors import UsageError
from mirrorfs.fuse.mount_table import FSTYPE, MOUNTINFO, MountRecord, find_mount, parse_mountinfo

FSNAME_PREFIX: Final = "mirrorfs:"


def fsname(volume: str) -> str:
    """What mount tables show as the source of a volume's mount."""
    return FSNAME_PREFIX + volume


def mounts_of(volume: str) -> list[MountRecord]:
    """The mounts that carry a volume's name, in the order they were made; of any user."""
    wanted = fsname(volume)
    return [
        record
        for record in parse_mountinfo(MOUNTINFO.read_bytes())
        if record.fstype == FSTYPE and record.source == wanted
    ]


def resolve(text: str, environment: Mapping[str, str]) -> VolumePaths:
    """The volume that a name or a mountpoint means; a configured name wins over a path.

    Raises: UsageError: neither.
    """
    if "/" not in text and text in configured_volumes(environment):
        return volume_paths(text, environment)
    record = find_mount(text)
    if record is None or record.fstype != FSTYPE or not record.source.startswith(FSNAME_PREFIX):
        raise UsageError(
            "No volume of that name is configured, and none is mounted there;"
            " `mirrorfs status` lists the volumes."
        )
    return volume_paths(record.source.removeprefix(FSNAME_PREFIX), environment)
