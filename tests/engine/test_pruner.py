"""Pruning: what the policy keeps stays readable, bit for bit; what it does not keep leaves the stores."""

from __future__ import annotations

import random
from datetime import UTC
from pathlib import Path

from trio.testing import MockClock

from mirrorfs.core.retention import Policy
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.volume import MountedVolume
from tests.support.machine import FILE, read_file
from tests.support.practice import Practice

POLICY = Policy(every_moment=3, daily=10, weekly=20, monthly=100)
State = dict[bytes, bytes]


class Diary:
    """A practice that writes every day, and remembers what it had."""

    def __init__(self, practice: Practice, seed: int) -> None:
        self.practice = practice
        self.pc = practice.pc("pc")
        self.rng = random.Random(seed)
        self.state: State = {}
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


async def test_what_is_kept(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice = Practice(tmp_path)
    diary = Diary(practice, 1)
    reports: list[PruneReport] = []
    for _ in range(30):
        async with diary.pc.mounted() as volume:
            volume.pruner.moments.zone = UTC
            volume.pruner.sweeper.grace_ns = 0
            await diary.day(volume)
            reports.append(await volume.pruner.run(POLICY))
            assert await tree(volume) == diary.state
    print(reports[-1], sum(report.collected for report in reports))
    print({name: len(v) for name, v in ((s.name, s.objects) for s in practice.stores)})
