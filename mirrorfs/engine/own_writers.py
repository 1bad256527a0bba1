"""The writer ids of the last mounts from a state directory, and in which boot of the machine each was.

They tell our own leases from those of others after a crash. The boot is kept with them because a state
directory can be copied, or put back, while the PC it is from is alive (engine/lease_watch.py). And a lease of
ours proves that nobody else wrote before it only if the log was read again while it was held, once who was
displaced had noticed: that is noted, too.

Local file: MAGIC, then RECORD_SIZE bytes for each mount, newest last: the writer id, the tag of the boot, and
1 if settled. With MAGIC_2 it is of an earlier version, without that last byte; with neither it has ids alone.
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
MAGIC: Final = b"writers3"
MAGIC_2: Final = b"writers2"
BOOT_SIZE: Final = 16
RECORD_SIZE: Final = WRITER_SIZE + BOOT_SIZE + 1
_UNKNOWN: Final = bytes(BOOT_SIZE)


class OwnWriter(NamedTuple):
    """One earlier mount from this state directory, whose lock we hold."""

    writer: bytes
    boot: bytes
    """Tag of the boot of the machine (`boot_tag`); zeros: not known."""
    settled: bool = True
    """Whether it has read the end of the log while it held the lease of a store."""


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
        return [OwnWriter(one[:WRITER_SIZE], one[WRITER_SIZE:-1], one[-1:] == b"\x01") for one in records]
    if data.startswith(MAGIC_2):
        records = _cut(data[len(MAGIC_2) :], RECORD_SIZE - 1)
        return [OwnWriter(one[:WRITER_SIZE], one[WRITER_SIZE:]) for one in records]
    return [OwnWriter(record, _UNKNOWN) for record in _cut(data, WRITER_SIZE)][-WRITERS_KEPT:]


async def write_own_writers(world: World, writers: list[OwnWriter]) -> None:
    """Keep the last WRITERS_KEPT of them, durably."""
    records = (one.writer + one.boot + bytes([one.settled]) for one in writers[-WRITERS_KEPT:])
    data = MAGIC + b"".join(records)
    await world.offload.sync(lambda: world.disk.write_whole(WRITERS_PATH, data))


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]
