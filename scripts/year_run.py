"""A year of a small practice under a retention policy: what each store holds, and whether what is kept comes
back.

The engine is the real one, with its local disk; the clock is virtual and the stores are in memory. Every day
the volume is mounted, worked with, pruned and unmounted: letters are written and thrown away, scans come in,
and the database of the practice's software is changed page by page. At the end moments drawn at random within
the policy, from each store alone, are compared with what there was then, bit for bit.

"Needed" is what cannot be done without: all of the log since the day from which every moment is kept, and
every frame that a kept moment before, or the present, refers to.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import trio
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mirrorfs.core.compaction import Kept, survey
from mirrorfs.core.retention import Policy, wanted_times
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.ids import Stream
from tests.support.machine import FILE
from tests.support.practice import Practice
from tests.support.volumes import HEADER, KEYS

POLICY = Policy(every_moment=30, daily=93, monthly=3 * 366, yearly=20 * 366)
PAGE = 4096
DATABASE = b"practice.db"
State = dict[bytes, bytes]
"""SHA-256 of each file's contents by name."""


class Year:
    """What is done, and what there was after each commit."""

    def __init__(self, practice: Practice, seed: int, database_bytes: int) -> None:
        self.practice = practice
        self.pc = practice.pc("pc")
        self.rng = random.Random(seed)
        self.database = bytearray(self.rng.randbytes(database_bytes))
        self.sizes: dict[bytes, int] = {}
        self.state: State = {}
        self.states: list[tuple[int, State]] = []
        self.written_bytes = 0
        self._count = 0

    async def day(self, volume: MountedVolume, number: int) -> None:
        """Morning and afternoon; at weekends nobody works."""
        if number % 7 in (5, 6):
            self.pc.clock.stepped_s += 24 * 3600
            return
        for _ in range(2):
            for _ in range(4):
                await self._letter(volume)
            if self.rng.random() < 0.3:
                await self._put(volume, b"scan %d" % self._count, self.rng.randbytes(400_000))
            await self._bookkeeping(volume)
            if len(self.state) > 200:
                self._throw_away(volume)
            await volume.filesystem.sync()
            await volume._local.quiesce()
            self.states.append((volume._local.committer.durable_ns, self.state))
            self.pc.clock.stepped_s += 5 * 3600
        self.pc.clock.stepped_s += 14 * 3600

    async def _letter(self, volume: MountedVolume) -> None:
        text = b" ".join(b"%x" % self.rng.getrandbits(20) for _ in range(self.rng.randrange(300, 3000)))
        await self._put(volume, b"letter %d" % self.rng.randrange(self._count + 10), text)

    async def _put(self, volume: MountedVolume, name: bytes, data: bytes) -> None:
        fs = volume.filesystem
        self._count += 1
        if name in self.state:
            fs.unlink(1, name)
        inode = fs.create(1, name, mode=FILE, uid=0, gid=0, umask=0).inode
        fs.opened(inode, writable=True)
        await fs.write(inode, 0, data)
        fs.released(inode, writable=True)
        self.written_bytes += len(data)
        self.sizes[name] = len(data)
        self.state = {**self.state, name: hashlib.sha256(data).digest()}

    async def _bookkeeping(self, volume: MountedVolume) -> None:
        if DATABASE not in self.state:
            await self._put(volume, DATABASE, bytes(self.database))
            return
        fs = volume.filesystem
        inode = fs.lookup(1, DATABASE).inode
        fs.opened(inode, writable=True)
        for _ in range(30):
            at = self.rng.randrange(len(self.database) // PAGE) * PAGE
            page = self.rng.randbytes(PAGE)
            self.database[at : at + PAGE] = page
            await fs.write(inode, at, page)
        fs.released(inode, writable=True)
        self.written_bytes += 30 * PAGE
        self.state = {**self.state, DATABASE: hashlib.sha256(self.database).digest()}

    def _throw_away(self, volume: MountedVolume) -> None:
        for name in self.rng.sample(sorted(self.state.keys() - {DATABASE}), 40):
            volume.filesystem.unlink(1, name)
            self.state = {key: value for key, value in self.state.items() if key != name}
            del self.sizes[name]

    def stored_bytes(self, *prefixes: str) -> int:
        """Of some objects, in the store that has more."""
        places = self.practice.places.values()
        return max(
            sum(len(data) for key, data in place.items() if key.startswith(prefixes)) for place in places
        )

    async def look_back(self, store: str, moment: Moment) -> State:
        """What a new PC shows of a moment, with one store."""
        pc = self.practice.new_pc()
        found: State = {}
        async with trio.open_nursery() as nursery:
            view = await ReadOnlyVolume.open(
                nursery=nursery, world=pc.world, files=pc.files, keys=KEYS,
                writer_key=HEADER.public_keys.writer, stores=[pc.links[store]], moment=moment,
                random=random.Random(1).random,
            )  # fmt: skip
            for row in view._index.list_dentries(1, after_cookie=0, limit=10_000):
                digest = hashlib.sha256()
                size = view.filesystem.getattr(row.inode).size
                for at in range(0, size, 1 << 20):
                    digest.update(await view.filesystem.read(row.inode, at, 1 << 20))
                found[row.name] = digest.digest()
            view.close()
            nursery.cancel_scope.cancel()
        return found


def needed_bytes(volume: MountedVolume) -> int:
    """Of the log that is kept, and of the frames that are needed beside it."""
    index = volume._local.index
    kept = Kept.of(index.list_moments())
    log = {row.sequence: row.size for row in index.list_segments(from_sequence=0, limit=1 << 30)}
    total = sum(size for sequence, size in log.items() if kept.is_log(sequence))
    index.commit()
    snapshot = index.snapshot()
    frames, relocations = (snapshot.rows(table, first=()) for table in ("frames", "relocations"))
    usage = survey(frames, relocations, kept)  # type: ignore[arg-type]  # all of these are numbers
    snapshot.close()
    for (stream, sequence), used in usage.items():
        if stream != Stream.MAIN or not kept.is_log(sequence):
            total += used.needed_bytes
    return total


async def live(year: Year, days: int) -> tuple[int, int]:
    """Returns: the time at the end, and since when every moment is kept."""
    print("day  alive MB  written MB  needed MB  data MB  ratio  checkpoints MB  moments before  all since")
    collected = deleted = 0
    for number in range(days):
        async with year.pc.mounted() as volume:
            volume.pruner.moments.zone = UTC
            await year.day(volume, number)
            report = await volume.pruner.run(POLICY, attended=False)
            collected, deleted = collected + report.collected, deleted + report.deleted
            needed = needed_bytes(volume)
            now_ns = year.pc.clock.now_ns()
        if number % 30 == 29 or number == days - 1:
            alive, stored = sum(year.sizes.values()), year.stored_bytes("segments/", "relocated/")
            others = year.stored_bytes("checkpoints/", "heads/")
            since = datetime.fromtimestamp(report.base_ns / 1e9, UTC).date() if report.base_ns else "ever"
            print(
                f"{number + 1:3} {alive / 1e6:9.1f} {year.written_bytes / 1e6:11.1f} {needed / 1e6:10.1f}"
                f" {stored / 1e6:8.1f} {stored / needed:6.2f} {others / 1e6:15.1f} {len(report.moments):15}"
                f" {since!s:>19}",
                flush=True,
            )
    print(f"{collected} segments were done without, {deleted} objects deleted in every store.")
    return now_ns, report.base_ns


async def check(year: Year, now_ns: int, since_ns: int, samples: int) -> None:
    """Moments at random within the policy, from each store alone."""
    single = [at for at in wanted_times(POLICY, now_ns, since_ns, UTC) if at >= year.states[0][0]]
    window = [at for at, _ in year.states if at >= since_ns]
    checked = 0
    for store in year.practice.places:
        chosen = year.rng.sample(single, min(samples, len(single)))
        chosen += year.rng.sample(window, min(samples, len(window)))
        for time_ns in chosen:
            expected = [state for at, state in year.states if at <= time_ns][-1]
            if await year.look_back(store, Moment(time_ns=time_ns)) != expected:
                raise SystemExit(f"The moment {time_ns} came back as something else from store {store}.")
            checked += 1
    print(
        f"{checked} moments restored from one store alone, bit for bit ({len(single)} single ones are kept)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", type=int, default=4, metavar="MIB", help="size of the database file")
    parser.add_argument("--samples", type=int, default=20, help="moments of each kind, per store")
    arguments = parser.parse_args()
    began_s = time.monotonic()

    async def run(directory: Path) -> None:
        year = Year(Practice(directory), arguments.seed, arguments.database << 20)
        now_ns, since_ns = await live(year, arguments.days)
        await check(year, now_ns, since_ns, arguments.samples)

    print("Policy: every moment for 30 days, daily for 3 months, monthly for 3 years, yearly for 20 years.")
    with tempfile.TemporaryDirectory(prefix="mirrorfs-year-") as directory:
        trio.run(run, Path(directory), clock=MockClock(autojump_threshold=0))
    print(f"{time.monotonic() - began_s:.0f} s.")


if __name__ == "__main__":
    main()
