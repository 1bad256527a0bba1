"""The writer ids of the last mounts from a state directory, and in which boot of the machine each was.

They tell our own leases from those of others after a crash. The boot is kept with them because a state
directory can be copied, or put back, while the PC it is from is alive (engine/lease_watch.py).

Local file: MAGIC, then RECORD_SIZE bytes for each mount, newest last: the writer id and the tag of the boot.
One without MAGIC is of an earlier version, and has ids alone.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from mirrorfs.engine.local import World

WRITER_SIZE: Final = 8
WRITERS_PATH: Final = "writers"
WRITERS_KEPT: Final = 8
CREATED_PATH: Final = "created"
"""There from the beginning on the machine that created the volume: no other can have begun it before."""
MAGIC: Final = b"writers2"
BOOT_SIZE: Final = 16
RECORD_SIZE: Final = WRITER_SIZE + BOOT_SIZE
_UNKNOWN: Final = bytes(BOOT_SIZE)


class OwnWriter(NamedTuple):
    """One earlier mount from this state directory, whose lock we hold."""

    writer: bytes
    boot: bytes
    """Tag of the boot of the machine (`boot_tag`); zeros: not known."""


def boot_tag(boot_id: str) -> bytes:
    """What is kept of a boot's id."""
    return hashlib.sha256(boot_id.encode()).digest()[:BOOT_SIZE]


def has_created(world: World) -> bool:
    """Whether the volume was created on this machine."""
    try:
        world.disk.open(CREATED_PATH).close()
    except FileNotFoundError:
        return False
    return True


def read_own_writers(world: World) -> list[OwnWriter]:
    """The last mounts, newest last."""
    try:
        file = world.disk.open(WRITERS_PATH)
    except FileNotFoundError:
        return []
    try:
        data = file.read(offset=0, size_bytes=len(MAGIC) + RECORD_SIZE * WRITERS_KEPT)
    finally:
        file.close()
    if data.startswith(MAGIC):
        records = _cut(data[len(MAGIC) :], RECORD_SIZE)
        return [OwnWriter(record[:WRITER_SIZE], record[WRITER_SIZE:]) for record in records]
    return [OwnWriter(record, _UNKNOWN) for record in _cut(data, WRITER_SIZE)][-WRITERS_KEPT:]


async def write_own_writers(world: World, writers: list[OwnWriter]) -> None:
    """Keep the last WRITERS_KEPT of them, durably."""
    data = MAGIC + b"".join(b"".join(one) for one in writers[-WRITERS_KEPT:])
    await world.offload.sync(lambda: world.disk.write_whole(WRITERS_PATH, data))


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]
