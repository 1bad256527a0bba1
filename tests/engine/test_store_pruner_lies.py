"""A PC whose keys are used against the past: the machine that prunes deletes nothing for it, and says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from mirrorfs.core.retention import DAY_NS, wanted_times
from mirrorfs.core.scan import scan_segment
from mirrorfs.engine.checkpoints import CheckpointWriter, WrittenCheckpoint
from mirrorfs.engine.compactor import Compactor, WantedFrame
from mirrorfs.engine.prune_ledger import read_ledger
from mirrorfs.engine.store_deletion import StorePruneReport
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError
from mirrorfs.format.checkpoint import Root
from mirrorfs.format.frame import Body, Kind, make_body, unpack
from mirrorfs.format.ids import (
    SegmentId,
    Stream,
    parse_segment_object_key,
    segment_object_key,
    split_frame_id,
)
from mirrorfs.format.record import SnapshotGone
from mirrorfs.format.rows import CondemnedRow, FrameRow, MomentRow, SegmentRow
from mirrorfs.format.segment import decode_header
from mirrorfs.ports import OBJECT_SIZE_MAX, IndexSnapshot, ObjectInfo, ObjectKey, ObjectVersion
from tests.engine.test_store_pruner import POLICY, STORE, Elsewhere, deleted_here
from tests.support.machine import write_file
from tests.support.segment_bytes import PUBLIC, SegmentBytes
from tests.support.trio_clock import TrioClock
from tests.support.volumes import KEYS

DAY_S = 86400
FORGED = "the copy of something that is kept has other contents"


class ForgedSnapshot:
    """An index in which every file is gone, its frames have long been dead, and segments are condemned."""

    def __init__(self, true: IndexSnapshot) -> None:
        self._true = true

    def __getattr__(self, name: str) -> Any:
        return getattr(self._true, name)

    def rows(self, table: str, *, first: tuple[int | bytes, ...]) -> Iterable[tuple[object, ...]]:
        rows = self._true.rows(table, first=first)
        match table:
            case "dentries" | "extents":
                return []
            case "frames":
                return self._dead(rows)
            case "condemned":
                return self._condemned()
        return rows

    @staticmethod
    def _dead(rows: Iterable[Any]) -> Iterator[FrameRow]:
        for row in rows:
            frame = FrameRow._make(row)
            yield frame._replace(live=0, death=frame.frame + 1)

    def _condemned(self) -> list[CondemnedRow]:
        moments: list[Any] = list(self._true.rows("moments", first=()))
        base = max((MomentRow._make(row).position for row in moments), default=0)
        rows: list[Any] = list(self._true.rows("segments", first=()))
        segments = map(SegmentRow._make, rows)
        return [
            CondemnedRow(Stream.MAIN, row.sequence, row.epoch, row.writer, row.last_ns)
            for row in segments
            if row.sequence + 1 < base >> 20
        ]


class ForgingWriter(CheckpointWriter):
    """Seals, with the writer's keys, what is not so."""

    made: list[WrittenCheckpoint]

    def write(self, snapshot: IndexSnapshot, old: Root | None) -> WrittenCheckpoint:
        written = super().write(ForgedSnapshot(snapshot), None)
        self.made.append(written)
        return written


def forged_body(body: Body) -> Body:
    """As long, sealed like any other, and with other contents."""
    return make_body(Kind.DATA, bytes(one ^ 1 for one in unpack(body)))


async def prepared(one: Elsewhere, volume: MountedVolume, *, days: int) -> None:
    await one.prune(confirmed=True)
    for _ in range(days):
        await one.day(volume)
        assert (await one.prune()).alarms == []


def held(place: dict[str, bytes]) -> list[bytes]:
    """The contents of all data frames that a reader can take out of what a store has."""
    found = []
    for key, data in place.items():
        if not key.startswith(("segments/", "relocated/")):
            continue
        scan = scan_segment(data, KEYS, PUBLIC)
        if segment_object_key(scan.header.stream, scan.header.segment) != key:
            continue
        _, cipher = decode_header(data, KEYS, PUBLIC)
        for frame in [one for journal in scan.journals for one in journal.frames] + list(scan.rest):
            sealed = memoryview(data)[frame.offset :]
            found.append(unpack(cipher.open_body(sealed, offset=frame.offset, ordinal=frame.ordinal)[1]))
    return found


def check_held(one: Elsewhere, place: dict[str, bytes], now_ns: int) -> None:
    """The contents of every moment that the policy keeps are there, whatever the log says of them."""
    start_ns = now_ns - POLICY.every_moment * DAY_NS
    wanted = [time_ns for time_ns, _ in one.diary.states if start_ns <= time_ns <= now_ns]
    wanted += wanted_times(POLICY, now_ns, start_ns, UTC)
    contents = held(place)
    needed: set[bytes] = set()
    for time_ns in wanted:
        then = [state for at_ns, state in one.diary.states if at_ns <= time_ns]
        needed |= set(then[-1].values()) if then else set()
    assert needed
    for data in needed:
        assert any(data in content for content in contents), "what is kept was deleted"


async def test_a_forged_checkpoint_is_not_relied_on(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Elsewhere(tmp_path, 11)
    monkeypatch.setattr(ForgingWriter, "made", [], raising=False)
    async with one.diary.pc.mounted() as volume:
        await prepared(one, volume, days=8)
        base = read_ledger(one.pc.disk).base
        monkeypatch.setattr("mirrorfs.engine.checkpointer.CheckpointWriter", ForgingWriter)
        clock = one.diary.pc.clock
        clock.stepped_s += DAY_S
        await volume.pruner.run(POLICY)
        await volume.pruner._holding.hold_checkpoint()
        await volume.flush()
        said: set[str] = set()
        condemned = 0
        for _ in range(6):
            report = await one.prune()
            said |= set(report.alarms)
            condemned = max(condemned, sum(report.kept.values()))
            check_held(one, one.practice.places[STORE], report.now_ns)
            clock.stepped_s += DAY_S
        ledger = read_ledger(one.pc.disk)
        moments = {row.position for row in volume._local.index.list_moments()}
    forged = {written.root.position for written in ForgingWriter.made}
    assert forged & moments
    assert any("is not what the log says" in sentence for sentence in said)
    assert not forged & ledger.moments.keys() and ledger.base >= base
    assert condemned


async def test_a_copy_with_other_contents_does_not_stand_for_what_it_was_made_from(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Elsewhere(tmp_path, 12)
    opened = Compactor._opened
    link = one.pc.links[STORE]
    beneath: dict[str, bytes] = {}
    get = link.get

    async def versions(key: ObjectKey) -> Sequence[ObjectVersion]:
        return [ObjectVersion("first")] if key in beneath else []

    async def get_version(
        key: ObjectKey, *, version: ObjectVersion | None = None, size_max: int = OBJECT_SIZE_MAX
    ) -> bytes:
        return await get(key, size_max=size_max) if version is None else beneath[key]

    def lies(self: Compactor, key: str, data: bytes, frames: Sequence[WantedFrame]) -> list[tuple[int, Body]]:
        return [(frame, forged_body(body)) for frame, body in opened(self, key, data, frames)]

    async with one.diary.pc.mounted() as volume:
        await prepared(one, volume, days=7)
        monkeypatch.setattr(Compactor, "_opened", lies)
        for _ in range(3):
            await one.day(volume)
            report = await one.prune()
            check_held(one, one.practice.places[STORE], report.now_ns)
        one.diary.pc.clock.stepped_s += DAY_S
        report = await one.prune()
        assert any(FORGED in sentence for sentence in report.alarms)
        assert any("other contents" in why for why in report.kept)
        check_held(one, one.practice.places[STORE], report.now_ns)

        # In a store that keeps versions he puts one over it in which there is nothing.
        place = one.practice.places[STORE]
        for key in [key for key in read_ledger(one.pc.disk).unneeded if key in place]:
            stream, segment = parse_segment_object_key(key)
            if stream is not Stream.CHECKPOINT:
                beneath[key] = place[key]
                place[key] = bytes(SegmentBytes(stream=stream, segment=segment).data)
        assert beneath
        monkeypatch.setattr(link, "versions", versions)
        monkeypatch.setattr(link, "get", get_version)
        again = await one.prune()
        assert again.kept == report.kept and again.alarms == report.alarms
        left = {key: data for key, data in beneath.items() if key in place}
        check_held(one, {**place, **left}, again.now_ns)


async def test_a_copy_that_no_reader_would_take_is_none(autojump_clock: MockClock, tmp_path: Path) -> None:
    one = Elsewhere(tmp_path, 13)
    async with one.diary.pc.mounted() as volume:
        await prepared(one, volume, days=7)
        place = one.practice.places[STORE]
        for _ in range(2):
            known = set(place)
            await one.day(volume)
            for key in [key for key in place if key.startswith("relocated/") and key not in known]:
                place[key] = elsewhere(place[key])
            await one.prune()
        one.diary.pc.clock.stepped_s += DAY_S
        report = await one.prune()
        assert any("missing or damaged" in why for why in report.kept)
        check_held(one, place, report.now_ns)


def elsewhere(data: bytes) -> bytes:
    """The same frames at the same offsets, in a segment that says that it is another one."""
    _, cipher = decode_header(data, KEYS, PUBLIC)
    scan = scan_segment(data, KEYS, PUBLIC)
    sequence, epoch, writer = scan.header.segment
    made = SegmentBytes(stream=Stream.RELOCATED, segment=SegmentId(sequence + 1000, epoch, writer))
    for frame in scan.rest:
        _, body = cipher.open_body(
            memoryview(data)[frame.offset :], offset=frame.offset, ordinal=frame.ordinal
        )
        assert made.frame(body, birth=split_frame_id(frame.frame)) == frame.offset
    return made.seal()


async def test_a_snapshot_that_was_deleted_before_it_had_a_checkpoint_is_kept(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    one = Elsewhere(tmp_path, 14)
    async with one.diary.pc.mounted() as volume:
        await prepared(one, volume, days=2)
        # Within one day, so that no end of a day has it.
        data = bytes(range(256)) * 3
        await write_file(volume, b"once", data)
        await volume.filesystem.sync()
        snapshot = await volume.snapshots.create(b"soon gone", held=False)
        volume.filesystem.unlink(1, b"once")
        await volume.flush()
        await one.prune()
        # As by somebody with the PC's keys: the PC itself would wait.
        volume._local.state.record(SnapshotGone(one.diary.pc.clock.now_ns(), b"soon gone"))
        await volume.flush()
        for _ in range(9):
            await one.day(volume)
            report = await one.prune()
        assert deleted_here(snapshot.position) in report.alarms
        assert any(data in content for content in held(one.practice.places[STORE]))
        assert read_ledger(one.pc.disk).base <= snapshot.position
        # Once the 30 days are over, what only it needed goes.
        one.diary.pc.clock.stepped_s += 30 * DAY_S
        for _ in range(4):
            one.diary.pc.clock.stepped_s += DAY_S
            report = await one.prune()
        assert deleted_here(snapshot.position) not in report.alarms
        assert read_ledger(one.pc.disk).base > snapshot.position


class Dated:
    """The dates that a store's own clock gives what it has."""

    def __init__(self, one: Elsewhere) -> None:
        self.one = one
        self.at_ns: dict[str, int] = {}
        self.link = one.pc.links[STORE]
        self.list = self.link.list
        self.link.list = self.listed  # type: ignore[method-assign]

    def note(self) -> None:
        """Everything new came just now."""
        now_ns = self.one.diary.pc.clock.now_ns()
        for key in self.one.practice.places[STORE]:
            self.at_ns.setdefault(key, now_ns)

    async def listed(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        self.note()
        found = await self.list(prefix, start_after=start_after)
        return [ObjectInfo(info.key, info.size_bytes, written_ns=self.at_ns[info.key]) for info in found]


class WrongClock:
    """One that is off by some days."""

    def __init__(self, right: TrioClock, days_off: int) -> None:
        self._right = right
        self._days_off = days_off

    def now_ns(self) -> int:
        return self._right.now_ns() + self._days_off * DAY_NS

    def boottime_ns(self) -> int:
        return self._right.boottime_ns()


async def pruned_with(one: Elsewhere, *, days_off: int) -> StorePruneReport:
    """A run on a machine whose clock is wrong."""
    clock = WrongClock(one.diary.pc.clock, days_off)
    return await one.prune(clock=clock)


async def test_the_dates_of_the_stores_bound_a_clock_that_is_wrong(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    one = Elsewhere(tmp_path, 15)
    dated = Dated(one)
    async with one.diary.pc.mounted() as volume:
        await prepared(one, volume, days=7)
        await one.day(volume)
        dated.note()
        said = await one.prune(dry_run=True)
        ahead = await pruned_with(one, days_off=200)
        newest_ns = max(at_ns for key, at_ns in dated.at_ns.items() if key.startswith("heads/"))
        assert ahead.now_ns == newest_ns <= one.diary.pc.clock.now_ns()
        assert (ahead.deleted, ahead.base_ns, ahead.alarms) == (said.deleted, said.base_ns, [])
        await one.shows(one.practice.places[STORE], ahead.now_ns)

        await one.day(volume)
        before, ledger = dict(one.practice.places[STORE]), (one.pc.root / "prune-ledger").read_bytes()
        with pytest.raises(MirrorfsError, match="clock of this machine is behind"):
            await pruned_with(one, days_off=-200)
        assert one.practice.places[STORE] == before
        assert (one.pc.root / "prune-ledger").read_bytes() == ledger
        # Put right, it goes on as if nothing had been.
        for _ in range(2):
            await one.day(volume)
            report = await one.prune()
            assert report.alarms == [] and report.base_ns > ahead.base_ns
        await one.shows(one.practice.places[STORE], report.now_ns)


async def test_without_dates_a_clock_that_was_ahead_is_told_of(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    one = Elsewhere(tmp_path, 16)
    async with one.diary.pc.mounted() as volume:
        await prepared(one, volume, days=5)
        await pruned_with(one, days_off=200)
        await one.day(volume)
        before = dict(one.practice.places[STORE])
        with pytest.raises(MirrorfsError, match="remove prune-ledger"):
            await one.prune()
        assert one.practice.places[STORE] == before
        one.pc.disk.remove("prune-ledger")
        again = await one.prune()
        assert (again.deleted, again.base_ns) == ({}, 0)
