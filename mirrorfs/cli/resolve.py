"""From what somebody typed, a volume's name or its mountpoint, to the volume.

Mountpoints are looked up in the kernel's mount table only: a stat of a mount whose daemon hangs would
hang as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from mirrorfs.cli.config import VolumePaths, configured_volumes, volume_paths
from mirrorfs.errors import UsageError
from mirrorfs.fuse.mount_table import FSTYPE, MOUNTINFO, MountRecord, find_mount, parse_mountinfo

FSNAME_PREFIX: Final = "mirrorfs:"
VIEW_LENGTH_MAX: Final = 32


VIEW_MARK: Final = "+"
"""Stands between the volume and the read-only view of it; no volume's name holds it."""


def fsname(volume: str, view: str = "") -> str:
    """What mount tables show as the source of a mount: "mirrorfs:VOLUME", or "mirrorfs:VOLUME+VIEW"."""
    return FSNAME_PREFIX + volume + (VIEW_MARK + view if view else "")


def mounts_of(volume: str, view: str = "") -> list[MountRecord]:
    """The mounts that carry a volume's name, in the order they were made; of any user."""
    wanted = fsname(volume, view)
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
    name, _, view = record.source.removeprefix(FSNAME_PREFIX).partition(VIEW_MARK)
    if view and (len(view) > VIEW_LENGTH_MAX or not view.isalnum()):
        raise UsageError("The mount there has a name that this program does not give; leave it alone.")
    return replace(volume_paths(name, environment), view=view)
