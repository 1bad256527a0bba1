"""Pruning: what the policy keeps stays readable, bit for bit; what it does not keep leaves the stores."""

from __future__ import annotations

import random
from datetime import UTC
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.core.compaction import JOINED_MIN
from mirrorfs.core.retention import Policy, wanted_times
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreDenied
from mirrorfs.ports import ObjectKey
from tests.support.machine import FILE, read_file
from tests.support.practice import Practice
from tests.support.volumes import HEADER, KEYS

POLICY = Policy(every_moment=3, daily=10, weekly=20, monthly=100)
State = dict[bytes, bytes]


class Diary:
    """A practice that writes every day, and remembers what it had."""

    def __init__(self, practice: Practice, seed: int) -> None:
        self.practice = practice
        self.pc = practice.pc("pc")
        self.rng = random.Random(seed)
        self.state: State = {}
        self.named: State = {}
        self.states: list[tuple[int, State]] = []
        """(time of the commit, the tree after it)."""

    async def day(self, volume: MountedVolume) -> None:
        """A day's work, with some commits."""
        for _ in range(3):
            await self.work(volume)
            self.pc.world.clock.stepped_s += 8 * 3600

    async def work(self, volume: MountedVolume) -> None:
        fs, rng = volume.filesystem, self.rng
        name = b"file %d" % rng.randrange(6)
        match rng.randrange(3) if name in self.state else 0:
            case 0 | 1:
                data = rng.randbytes(rng.choice((500, 70_000)))
                if name in self.state:
                    fs.unlink(1, name)
                inode = fs.create(1, name, mode=FILE, uid=0, gid=0, umask=0).inode
                fs.opened(inode, writable=True)
                await fs.write(inode, 0, data)
                fs.released(inode, writable=True)
                self.state = {**self.state, name: data}
            case _:
                fs.unlink(1, name)
                self.state = {key: value for key, value in self.state.items() if key != name}
        await fs.sync()
        await volume._local.quiesce()
        self.states.append((volume._local.committer.durable_ns, self.state))


async def tree(volume: MountedVolume) -> State:
    rows = volume._local.index.list_dentries(1, after_cookie=0, limit=1000)
    return {row.name: await read_file(volume, row.inode) for row in rows}


async def look_back(practice: Practice, store: str, moment: Moment) -> tuple[int, State]:
    """What a new PC shows of a moment, with one store."""
    pc = practice.new_pc()
    async with trio.open_nursery() as nursery:
        view = await ReadOnlyVolume.open(
            nursery=nursery, world=pc.world, files=pc.files, keys=KEYS, writer_key=HEADER.public_keys.writer,
            stores=[pc.links[store]], moment=moment, random=random.Random(1).random,
        )  # fmt: skip
        rows = view._index.list_dentries(1, after_cookie=0, limit=1000)
        found = {row.name: await view.filesystem.read(row.inode, 0, 1 << 20) for row in rows}
        position = view.position
        view.close()
        nursery.cancel_scope.cancel()
    return position, found


async def test_what_is_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 1)
    collected = 0
    for number in range(30):
        async with diary.pc.mounted() as volume:
            volume.pruner.moments.zone = UTC
            volume.pruner.sweeper.grace_ns = 0
            await diary.day(volume)
            if number == 5:
                named = await volume.snapshots.create(b"day 5", held=True)
                diary.named = diary.state
            report = await volume.pruner.run(POLICY)
            collected += report.collected
            assert await tree(volume) == diary.state
            now_ns = diary.pc.world.clock.now_ns()
            base = volume.pruner.moments.base()
            needed = sum(map(len, diary.state.values()))
    assert base is not None and collected > 20
    for store in practice.places:
        # Every moment of the window, and the end of each day, week and month before it that is kept.
        since_ns = base.time_ns
        for time_ns, state in diary.states:
            if time_ns >= since_ns:
                assert (await look_back(practice, store, Moment(time_ns=time_ns)))[1] == state
        for time_ns in wanted_times(POLICY, now_ns, since_ns, UTC):
            then = [state for at_ns, state in diary.states if at_ns <= time_ns]
            if then:
                found = await look_back(practice, store, Moment(time_ns=time_ns))
                assert found[1] == then[-1]
        position, found_state = await look_back(practice, store, Moment(position=named.position))
        assert (position, found_state) == (named.position, diary.named)
    written = sum(len(data) for _, state in diary.states for data in state.values())
    assert needed < stored_bytes(practice) < written / 4


def stored_bytes(practice: Practice) -> int:
    """In the store that has more."""
    return max(sum(map(len, place.values())) for place in practice.places.values())


async def test_a_dry_run_changes_nothing_and_says_what_a_run_does(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 4)
    async with diary.pc.mounted() as volume:
        pruner = volume.pruner
        pruner.moments.zone = UTC
        pruner.sweeper.grace_ns = 0
        assert (await pruner.account(POLICY)).base_ns == 0
        for number in range(2):
            for _ in range(6):
                await diary.day(volume)
            await volume.snapshots.create(b"%d" % number, held=False)
            await volume.flush()
            before, moments = practice.objects(), volume._local.index.list_moments()
            said = await pruner.account(POLICY)
            assert practice.objects() == before and volume._local.index.list_moments() == moments
            report = await pruner.run(POLICY)
            assert said.made <= report.made <= said.made + 1  # the new base is one, too
            assert said.dropped == report.dropped
            assert len(said.moments) - 1 <= len(report.moments) <= len(said.moments)
            assert 0 <= said.base_ns - report.base_ns < 24 * 3600 * 10**9
            assert 0 < report.collected <= said.collected
            assert (
                said.collected_bytes - said.copied_bytes >= report.collected_bytes - report.copied_bytes > 0
            )
            assert practice.lost(before)


async def test_a_store_that_denies_deleting_gets_no_checkpoint_for_each_try(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 6)
    link = diary.pc.links["s3"]
    delete = link.delete

    async def denied(key: ObjectKey) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreDenied("Store s3 does not allow deleting.")

    link.delete = denied  # type: ignore[method-assign]  # as credentials without that right
    async with diary.pc.mounted() as volume:
        volume.pruner.moments.zone = UTC
        volume.pruner.sweeper.grace_ns = 0
        for _ in range(6):
            await diary.day(volume)
        await volume.flush()
        report = await volume.pruner.run(POLICY)
        assert report.denied == volume.pruner.denied == ["s3"] and report.condemned == report.collected > 0
        await volume.flush()
        kept = set(practice.places["s3"])
        for _ in range(2):
            again = await volume.pruner.run(POLICY)
            assert again.denied == ["s3"] and again.condemned == report.condemned
        assert {key for key in practice.places["s3"] if key.startswith("checkpoints/")} <= kept
        link.delete = delete  # type: ignore[method-assign]
        last = await volume.pruner.run(POLICY)
        assert (last.condemned, last.denied) == (0, [])
        assert last.deleted >= report.collected
        assert await tree(volume) == diary.state


async def test_in_an_append_only_store_nothing_is_deleted_and_what_is_gone_is_seen(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 6)
    diary.pc.append_only = frozenset({"s3"})
    asked: list[str] = []

    async def refused(key: ObjectKey) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(key)

    diary.pc.links["s3"].delete = refused  # type: ignore[method-assign]  # it hears what it is asked
    async with diary.pc.mounted() as volume:
        volume.pruner.moments.zone = UTC
        volume.pruner.sweeper.grace_ns = 0
        for _ in range(6):
            await diary.day(volume)
        await volume.flush()
        before = set(practice.places["s3"])
        report = await volume.pruner.run(POLICY)
        assert report.left == volume.pruner.left == ["s3"] and report.denied == []
        assert report.condemned == report.collected > 0
        assert before <= set(practice.places["s3"])
        gone = before - set(practice.places["home"])
        for key in gone:
            del practice.places["s3"][key]
        last = await volume.pruner.run(POLICY)
        assert (last.condemned, last.left, last.denied) == (0, [], [])
        assert asked == []
        assert await tree(volume) == diary.state


async def test_tiny_segments_are_joined(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A volume that is written a little now and then, of which all is needed."""
    practice = Practice(tmp_path)
    pc, rng = practice.pc("pc"), random.Random(5)
    state: State = {}
    async with pc.mounted() as volume:
        fs, pruner = volume.filesystem, volume.pruner
        pruner.sweeper.grace_ns = 0
        for number in range(3 * JOINED_MIN):
            name, data = b"%d" % number, rng.randbytes(20_000)
            inode = fs.create(1, name, mode=FILE, uid=0, gid=0, umask=0).inode
            fs.opened(inode, writable=True)
            await fs.write(inode, 0, data)
            fs.released(inode, writable=True)
            await volume._local.quiesce()
            pc.world.clock.stepped_s += 3600
            state[name] = data
        pc.world.clock.stepped_s += 5 * 24 * 3600
        report = await pruner.run(Policy(every_moment=3))
        assert report.collected > 2 * JOINED_MIN
        index = volume._local.index
        assert len(index.list_relocated(from_sequence=0, limit=100)) == 1
        # What was joined is left alone until there are more of its like.
        assert (await pruner.run(Policy(every_moment=3))).collected == 0
        assert await tree(volume) == state
        await volume.flush()
    for store, place in practice.places.items():
        assert (await look_back(practice, store, Moment()))[1] == state
        assert sum(key.startswith("segments/") for key in place) < JOINED_MIN
