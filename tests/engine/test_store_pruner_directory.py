"""Pruning a directory store to the end, with the store's own dates and nothing simulated but the days."""

from __future__ import annotations

import os
from pathlib import Path

from mirrorfs.core.retention import DAY_NS, Policy
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.scrub import SIZES
from tests.engine.test_pruner import look_back, tree
from tests.engine.test_store_pruner import STORE, Elsewhere
from tests.support.practice import Pc, Practice

POLICY = Policy(every_moment=2)


class Directories(Practice):
    """Its stores are directories."""

    def pc(self, name: str) -> Pc:
        self._seed += 1
        links = []
        for store in self.places:
            (self._root / f"store-{store}").mkdir(exist_ok=True)
            links.append(DirectoryStore(store, self._root / f"store-{store}"))
        return Pc(self._root / name, links, seed=self._seed)  # type: ignore[arg-type]  # nothing is simulated

    def objects_of(self, store: str) -> set[str]:
        base = self._root / f"store-{store}"
        return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}

    def date(self, store: str, now_ns: int) -> None:
        """What is new was put there now, as the days are counted here."""
        for path in (self._root / f"store-{store}" / "heads").iterdir():
            if abs(path.stat().st_mtime_ns - now_ns) > 100 * DAY_NS:
                os.utime(path, ns=(now_ns, now_ns))


async def test_a_deletion_to_the_end(tmp_path: Path) -> None:
    practice = Directories(tmp_path)
    one = Elsewhere(tmp_path, 21, practice=practice)
    clock = one.diary.pc.clock
    clock.stepped_s += 1000 * 86400  # far from the dates that the file system gives by itself
    async with one.diary.pc.mounted() as volume:
        assert (await one.prune(POLICY, confirmed=True)).deleted == {}
        deleted = 0
        for _ in range(6):
            await one.day(volume, POLICY)
            practice.date(STORE, clock.now_ns())
            before = practice.objects_of(STORE)
            report = await one.prune(POLICY)
            assert report.alarms == []
            gone = before - practice.objects_of(STORE)
            assert len(gone) == report.deleted.get(STORE, 0)
            deleted += len(gone)
        assert deleted > 5
        # Of what is gone the PC misses nothing, but for what a manifest names.
        found = await volume.scrubber.run(SIZES, places=[STORE])
        assert found.places[0].listed > 0 and not found.bad
        assert await tree(volume) == one.diary.state
        await volume.flush()
    start_ns = report.now_ns - POLICY.every_moment * DAY_NS
    wanted = [(at_ns, state) for at_ns, state in one.diary.states if start_ns <= at_ns <= report.now_ns]
    assert len(wanted) > 3
    for at_ns, state in wanted:
        assert (await look_back(practice, STORE, Moment(time_ns=at_ns)))[1] == state
