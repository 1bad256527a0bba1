"""Sealing anew what keys that are out of use had sealed: bit by bit, over kills, and nothing kept is lost."""

from __future__ import annotations

import random
from datetime import UTC
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.core.retention import Policy, wanted_times
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.reseal import RESEAL_PATH, request_reseal
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.ids import STREAM_PREFIX
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import load_public_key
from tests.engine.test_pruner import Diary, State, tree
from tests.support.machine import read_file, write_file
from tests.support.practice import Pc, Practice

POLICY = Policy(every_moment=3, daily=8)


class _Killed(Exception):
    pass


async def prune(volume: MountedVolume, *, kill: bool) -> None:
    """`kill`: when all copies are written and held, and nobody knows of them yet."""
    volume.pruner.moments.zone = UTC
    volume.pruner.sweeper.grace_ns = 0
    if kill:
        volume.pruner._collect = _die  # type: ignore[method-assign]  # in place of SIGKILL
    await volume.pruner.run(POLICY)


async def _die(copied: object, done: object) -> None:
    await trio.lowlevel.checkpoint()
    raise _Killed


def generations(pc: Pc, objects: dict[str, bytes]) -> set[int]:
    """Key generations of all segments."""
    prefixes = tuple(STREAM_PREFIX.values())
    writer = load_public_key(pc.header.public_keys.writer)
    return {
        decode_header(data, pc.keys.for_any_place(), writer)[0].key_generation
        for key, data in objects.items()
        if key.startswith(prefixes)
    }


async def look_back(practice: Practice, of: Pc, store: str, moment: Moment) -> State:
    pc = practice.new_pc()
    pc.adopt(of.header_bytes, of.key_set)
    async with trio.open_nursery() as nursery:
        view = await ReadOnlyVolume.open(
            nursery=nursery, world=pc.world, files=pc.files, keys=pc.keys,
            writer_key=pc.header.public_keys.writer, stores=[pc.links[store]], moment=moment,
            random=random.Random(1).random,
        )  # fmt: skip
        rows = view._index.list_dentries(1, after_cookie=0, limit=1000)
        found = {row.name: await view.filesystem.read(row.inode, 0, 1 << 20) for row in rows}
        view.close()
        nursery.cancel_scope.cancel()
    return found


def after_kill(practice: Practice, pc: Pc) -> Pc:
    copy = practice.copy(pc, "after the kill")
    copy.clock.stepped_s = pc.clock.stepped_s
    copy.adopt(pc.header_bytes, pc.key_set)
    return copy


async def test_all_is_sealed_anew(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 5)
    async with diary.pc.mounted() as volume:
        inode = await write_file(volume, b"never changed", b"x" * 50_000)
        diary.state = {b"never changed": b"x" * 50_000}
        for _ in range(3):
            await diary.day(volume)
        await volume.flush()
        ends = await volume.ends()
    request_reseal(diary.pc.disk)
    diary.pc.rotate(ends)
    was_killed, left, base = False, [], None
    while (diary.pc.root / RESEAL_PATH).exists():
        assert len(left) < 9, "the log of before is long out of the window"
        try:
            async with diary.pc.mounted() as volume:
                left.append(volume.pruner.reseal.state().left)
                await diary.day(volume)
                await prune(volume, kill=not was_killed)
                base = volume.pruner.moments.base()
                assert await tree(volume) == diary.state
        except* _Killed:
            was_killed = True
            diary.pc = after_kill(practice, diary.pc)
    assert was_killed and base is not None and left[0] >= left[-1] > 0
    pc = diary.pc
    async with pc.mounted() as volume:
        assert not volume.pruner.reseal.is_wanted
        assert volume.pruner.reseal.state().left == 0
        assert await read_file(volume, inode) == b"x" * 50_000
    for store, objects in practice.places.items():
        assert generations(pc, objects) == {pc.keys.generation}
        for time_ns in wanted_times(POLICY, pc.clock.now_ns(), base.time_ns, UTC):
            then = [state for at_ns, state in diary.states if at_ns <= time_ns]
            if then:
                assert await look_back(practice, pc, store, Moment(time_ns=time_ns)) == then[-1]


async def test_a_request_with_nothing_to_do_ends(autojump_clock: MockClock, tmp_path: Path) -> None:
    pc = Practice(tmp_path).pc("pc")
    request_reseal(pc.disk)
    async with pc.mounted() as volume:
        await write_file(volume, b"letter", b"text")
        await volume.flush()
        assert volume.pruner.reseal.state().left == 0
        await prune(volume, kill=False)
    assert not (pc.root / RESEAL_PATH).exists()
