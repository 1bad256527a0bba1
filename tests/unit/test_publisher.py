"""Publishing heads: each has a number of its own, and names the one before."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.publisher import Heads
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, WriterIdentity
from mirrorfs.errors import DiskError
from mirrorfs.format.control import Head, open_head
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.signing import load_signer
from tests.sim.world import InlineOffload, SimulatedClock
from tests.support.volumes import HEADER, KEY_SET, KEYS

ROW = SegmentRow(0, 1, b"machine1", 4096, 1, bytes(32), 0, 0)
IDENTITY = WriterIdentity(KEYS, load_signer(KEY_SET.writer), 1, 1, b"machine1", True)


class FailingDisk(LocalDisk):
    """One that fails to write when it is told to."""

    fails = False

    def write_whole(self, path: str, data: bytes) -> None:
        if self.fails:
            raise DiskError("The disk failed.")
        super().write_whole(path, data)


async def publish(heads: Heads, disk: LocalDisk) -> tuple[Head, bytes]:
    """The next head, and its digest."""
    key, _, _ = await heads.publish(ROW, IDENTITY, position=1, journal_sequence=1, header_hash=bytes(32))
    file = disk.open(LOCAL_PREFIX + key)
    data = file.read(offset=0, size_bytes=file.size())
    file.close()
    public_key = HEADER.public_keys.writer
    return open_head(data, key=key, keys=KEYS, public_key=public_key), hashlib.sha256(data).digest()


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_the_first_head_after_writes_that_failed(tmp_path: Path, failures: int) -> None:
    """The number of one that may lie on the disk after all is not used again; the next one is valid."""
    disk = FailingDisk(tmp_path)
    heads = Heads(
        disk, InlineOffload(random.Random(1)), SimulatedClock(),
        keys=KEYS, public_key=HEADER.public_keys.writer,
    )  # fmt: skip
    disk.fails = True
    for _ in range(failures):
        with pytest.raises(DiskError):
            await publish(heads, disk)
    disk.fails = False
    first, digest = await publish(heads, disk)
    second, _ = await publish(heads, disk)
    assert [first.counter, second.counter] == [failures + 1, failures + 2]
    assert second.previous == digest
