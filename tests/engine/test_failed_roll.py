"""A segment whose last sync fails: nothing is lost, all of it is sent, and what is behind its end is void."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from mirrorfs.core.scan import scan_segment
from mirrorfs.engine import log
from mirrorfs.engine.segment_writer import SegmentWriter
from mirrorfs.errors import DiskError
from mirrorfs.format.frame import Kind
from mirrorfs.format.segment import check_sealed, decode_header
from mirrorfs.format.signing import load_public_key
from tests.support.practice import SAID, Pc, Practice, check_large, names, save, write_large
from tests.support.volumes import HEADER, KEYS

WRITER = load_public_key(HEADER.public_keys.writer)
FAILED = "ends at its last durable byte"


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


class FailingSync:
    """Syncs of segments with their trailers fail, a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = self.failed = 0
        sync = SegmentWriter.sync

        def fail(writer: SegmentWriter) -> None:
            if writer.sealed and self.left:
                self.left -= 1
                self.failed += 1
                raise DiskError("Cannot sync on the local disk: Input/output error.")
            sync(writer)

        monkeypatch.setattr(SegmentWriter, "sync", fail)


def local_segments(pc: Pc) -> list[Path]:
    return sorted((pc.root / "objects" / "segments").iterdir())


@pytest.mark.expects_warnings(FAILED, *SAID, "does not verify")
@pytest.mark.parametrize("is_bad", [False, True])
@pytest.mark.parametrize("index", ["lost", "without its log"])
async def test_what_is_behind_the_end_is_no_damage(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, is_bad: bool, index: str
) -> None:
    """Behind where it ends the file has frames that are in the next one too, and a good trailer.

    A page of them that never came to the disk is no damage of the log.
    """
    one = practice.pc("one")
    one.mirror_delay_s = 3600.0
    failing = FailingSync(monkeypatch)
    async with one.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        one.cut_off()
        await save(volume, b"b")
        # As while much is written, in the moment in which a segment is old enough to be closed.
        inode = volume.filesystem.create(1, b"large", mode=0o100644, uid=0, gid=0, umask=0).inode
        await volume.filesystem.write(inode, 0, bytes(range(256)) * 1200)
        await volume._local.committer._sealer.seal_some()
        failing.left = 1
        await volume._local.log.roll()
        assert failing.failed == 1
        await volume.filesystem.sync()
        await save(volume, b"c")
        one = practice.copy(one, "one again")
    path, after = local_segments(one)[1:3]
    data = path.read_bytes()
    previous = decode_header(after.read_bytes(), KEYS, WRITER)[0].previous
    assert previous is not None
    behind = [
        frame.offset
        for frame in check_sealed(data, KEYS, WRITER)[2].frames
        if frame.kind == Kind.DATA and frame.offset >= previous.size
    ]
    if is_bad:
        at = behind[0] + 40
        path.write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
    if index == "lost":
        one.files.remove()
    else:
        one.files.drop_wal()
    async with one.mounted() as volume:
        assert names(volume) == [b"a", b"b", b"c", b"large"]
        inode = volume.filesystem.lookup(1, b"large").inode
        assert await volume.filesystem.read(inode, 0, 400_000) == bytes(range(256)) * 1200


@pytest.mark.expects_warnings(FAILED, *SAID, "does not verify")
@pytest.mark.parametrize("index", ["kept", "lost", "without its log"])
async def test_a_full_segment_cannot_be_closed(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    """What was sealed again because of that is not forgotten when the next segment is begun."""
    one = practice.pc("one")
    monkeypatch.setattr(log, "ENTRIES_MAX", 4)
    fitting = SegmentWriter.count_fitting
    monkeypatch.setattr(SegmentWriter, "count_fitting", lambda self, bodies: min(2, fitting(self, bodies)))
    failing = FailingSync(monkeypatch)
    large = [b"l%d" % number for number in range(40)]
    async with one.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        one.cut_off()
        failing.left = 1
        for name in large:
            await write_large(volume, name)
        assert failing.failed == 1
        one = practice.copy(one, "one again")
    sequences = [scan_segment(path.read_bytes(), KEYS, WRITER).header for path in local_segments(one)]
    attested = [header.previous.segment for header in sequences if header.previous is not None]
    assert len(attested) == len(set(attested))
    if index == "lost":
        one.files.remove()
    elif index == "without its log":
        one.files.drop_wal()
    async with one.mounted() as volume:
        assert names(volume) == sorted([b"a", *large])
        await check_large(volume, *large)


@pytest.mark.expects_warnings(FAILED)
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_what_is_flushed_is_in_the_stores(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The segment that `flush` closes cannot be synced; its frames lie in another one, which is sent too."""
    one = practice.pc("one")
    one.mirror_delay_s = 3600.0
    failing = FailingSync(monkeypatch)
    async with one.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        await write_large(volume, b"safe")
        failing.left = count
        await volume.flush()
        assert failing.failed
        safe = practice.objects()
    for store, objects in safe.items():
        practice.places[store].clear()
        practice.places[store].update(objects)
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"safe"]
        await check_large(volume, b"safe")
