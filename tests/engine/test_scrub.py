"""Scrub and mend: every kind of harm to every kind of object, in each place, is named and mended."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mirrorfs.engine.mend import GATHER_S
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.retry import RetryPolicy
from mirrorfs.engine.scrub import DEEP, LOCAL, PARALLEL, SIZES, Depth, Fault
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreDenied, StoreUnavailable
from mirrorfs.ports import ObjectInfo, ObjectKey, ObjectVersion
from tests.support.machine import Machine, read_file, write_file
from tests.support.store_memory import MemoryStore

FILES = 12


class FailingStore(MemoryStore):
    """Can be away, after some more reads; can throttle; can refuse to delete."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reads_left = 1 << 30
        self.keeps = False
        self.throttles = False
        self.refused = 0
        self._asked: Counter[str] = Counter()

    def _throttle(self, what: str) -> None:
        """If it throttles, what looks is refused four times before it is answered."""
        self._asked[what] += self.throttles
        if self._asked[what] % 5:
            self.refused += 1
            raise StoreUnavailable(f"Store {self.name} answers 503 SlowDown.")

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        self._throttle(f"{prefix} {start_after}")
        return await super().list(prefix, start_after=start_after)

    async def head(self, key: ObjectKey) -> ObjectInfo:
        self._throttle(key)
        return await super().head(key)

    async def get(
        self, key: ObjectKey, *, size_max: int = 1 << 25, version: ObjectVersion | None = None
    ) -> bytes:
        self._throttle(key)
        self.reads_left -= 1
        if self.reads_left < 0:
            raise StoreUnavailable(f"Store {self.name} is away.")
        return await super().get(key, size_max=size_max, version=version)

    async def delete(self, key: ObjectKey) -> None:
        if self.keeps:
            raise StoreDenied(f"Store {self.name} does not allow deleting.")
        await super().delete(key)


class Place:
    def __init__(self, machine: Machine, volume: MountedVolume, stores: list[FailingStore]) -> None:
        self.machine = machine
        self.volume = volume
        self.stores = stores
        self.good = dict(stores[0].objects)
        del self.good["lease"]

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.good if key.startswith(prefix))

    def check_all_good(self) -> None:
        for store in self.stores:
            assert {key: data for key, data in store.objects.items() if key != "lease"} == self.good


@asynccontextmanager
async def place(root: Path, *, cache_bytes: int = 1 << 30) -> AsyncIterator[Place]:
    stores = [FailingStore("home"), FailingStore("s3")]
    machine = Machine(root, stores, cache_bytes=cache_bytes)
    async with machine.mounted() as volume:
        for number in range(FILES):
            await write_file(volume, b"%d" % number, random.Random(number).randbytes(50_000))
            await volume.flush()
        yield Place(machine, volume, stores)


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


HARM: dict[str, Callable[[bytes], bytes]] = {
    "flip": flip,
    "truncate": lambda data: data[:-7],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
}


async def test_what_is_whole_is_found_whole(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        assert {key.split("/")[0] for key in it.good} == {"header", "segments", "heads"}
        report = await it.volume.scrubber.run(DEEP)
        assert (report.bad, report.unreachable) == ([], False)
        assert [found.place for found in report.places] == [LOCAL, "home", "s3"]
        assert [found.read for found in report.places] == [len(it.good)] * 3
        assert [found.pending for found in report.places] == [0, 0, 0]


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize("prefix", ["segments/", "heads/", "header/"])
@pytest.mark.parametrize("harm", HARM)
async def test_harm_to_one_copy(tmp_path: Path, harm: str, prefix: str) -> None:
    async with place(tmp_path) as it:
        key = it.keys(prefix)[0]
        store = it.stores[0]
        store.objects[key] = HARM[harm](store.objects[key])
        sizes = await it.volume.scrubber.run(SIZES)
        changed = len(store.objects[key]) != len(it.good[key])
        assert [bad.key for bad in sizes.bad] == [key] * changed
        report = await it.volume.scrubber.run(DEEP)
        assert [(bad.place, bad.key) for bad in report.bad] == [("home", key)]
        assert report.bad[0].fault is (Fault.SIZE if changed else Fault.DAMAGED)
        assert list((await it.volume.mender.mend(report.bad)).values()) == [None]
        await it.volume.flush()
        it.check_all_good()
        assert (await it.volume.scrubber.run(DEEP)).bad == []


@pytest.mark.expects_warnings("is damaged")
async def test_different_harm_in_all_places(tmp_path: Path) -> None:
    """Half of what one store has, the other half of the other, and files of the local disk."""
    async with place(tmp_path) as it:
        draw = random.Random(3)
        keys = it.keys("segments/") + it.keys("heads/")
        draw.shuffle(keys)
        here, there, local = keys[::3], keys[1::3], keys[2::3]
        expected = set()
        for place_name, objects, chosen in (
            ("home", it.stores[0].objects, here),
            ("s3", it.stores[1].objects, there),
        ):
            for key in chosen:
                expected.add((place_name, key))
                harm = draw.choice([*HARM, "delete", "swap"])
                if harm == "delete":
                    del objects[key]
                elif harm == "swap":
                    objects[key] = it.good[draw.choice([other for other in keys if other != key])]
                else:
                    objects[key] = HARM[harm](objects[key])
        for key in local:
            expected.add((LOCAL, key))
            path = it.machine.root / "objects" / key
            path.write_bytes(flip(path.read_bytes()))
        report = await it.volume.scrubber.run(DEEP)
        assert {(bad.place, bad.key) for bad in report.bad} == expected
        results = await it.volume.mender.mend(report.bad)
        assert set(results.values()) == {None}
        await it.volume.flush()
        it.check_all_good()
        assert (await it.volume.scrubber.run(DEEP)).bad == []


@pytest.mark.expects_warnings("is damaged", "holds other bytes under", "cannot be sent")
async def test_what_cannot_be_mended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.engine.mirror.CONFLICT_PATIENCE_S", 1.0)
    async with place(tmp_path) as it:
        lost, kept = it.keys("segments/")[:2]
        for store in it.stores:
            store.objects[lost] = b""
        (it.machine.root / "objects" / lost).unlink()
        it.stores[1].objects[kept] = flip(it.good[kept])
        it.stores[1].keeps = True
        report = await it.volume.scrubber.run(DEEP)
        assert len(report.bad) == 3
        why = {
            (bad.place, bad.key): reason for bad, reason in (await it.volume.mender.mend(report.bad)).items()
        }
        assert all("no good copy" in str(why[name, lost]) for name in ("home", "s3"))
        assert "does not allow deleting" in str(why["s3", kept])
        assert it.stores[0].objects[lost] == b"", "nothing is removed without a good copy"
        with pytest.raises(ExceptionGroup), trio.fail_after(60):
            await it.volume.flush()
        assert it.volume.status().stores[1].state == "conflict"
        it.stores[0].objects[lost] = it.stores[1].objects[lost] = it.good[lost]
        it.stores[1].keeps = False
        assert set((await it.volume.mender.mend(report.bad)).values()) == {None}
        await it.volume.flush()
        it.check_all_good()


@pytest.mark.expects_warnings("is damaged")
async def test_a_deep_scrub_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.engine.scrub.CHUNK", 4)
    async with place(tmp_path) as it:
        first, last = it.keys("header/")[0], it.keys("segments/")[-1]
        for key in (first, last):
            it.stores[0].objects[key] = flip(it.good[key])
        it.stores[0].reads_left = 10
        broken_off = await it.volume.scrubber.run(DEEP)
        assert [found.unreachable is None for found in broken_off.places] == [True, False, True]
        assert [bad.key for bad in broken_off.bad] == [first]
        it.stores[0].reads_left = 1 << 30
        rest = await it.volume.scrubber.run(DEEP)
        assert rest.resumed
        assert {bad.key for bad in rest.bad} == {first, last}, "what was found before is not forgotten"
        assert [found.read for found in rest.places][0::2] == [0, 0], "places that were done with"
        assert rest.places[1].read < len(it.good)
        again = await it.volume.scrubber.run(DEEP)
        assert not again.resumed
        assert again.places[0].read == len(it.good)


async def test_samples_come_round_to_everything(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        seen: list[str] = []
        original = it.stores[0].get

        async def get(
            key: ObjectKey, *, size_max: int = 1 << 25, version: ObjectVersion | None = None
        ) -> bytes:
            seen.append(key)
            return await original(key, size_max=size_max)

        it.stores[0].get = get  # type: ignore[method-assign]
        for _ in range(20):
            report = await it.volume.scrubber.run(Depth(0.05), places=["home"])
            assert report.places[0].read in (1, 2)
        assert set(seen) >= set(it.good)


async def test_what_is_still_on_its_way_is_not_blamed(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        it.volume._stores[1].mirror.forget(it.keys("segments/")[0])
        del it.stores[1].objects[it.keys("segments/")[0]]
        report = await it.volume.scrubber.run(DEEP)
        assert report.bad == []
        assert [found.pending for found in report.places] == [0, 0, 1]


@pytest.mark.expects_warnings("is mended", "Trying the stores", "segments/", "is damaged")
async def test_what_a_reader_finds_bad_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.engine.mend.GATHER_S", 0.05)
    assert GATHER_S > 1
    async with place(tmp_path, cache_bytes=0) as it:
        volume = it.volume
        inode = await write_file(volume, b"big", random.Random(9).randbytes(3 << 20))
        await volume.flush()
        before, it.good = it.good, {key: data for key, data in it.stores[1].objects.items() if key != "lease"}
        big = [key for key in it.keys("segments/") if key not in before]
        await volume._local.cache.shrink()
        volume._local.reader.cache = FrameCache()
        for key in big:
            it.stores[0].objects[key] = flip(it.good[key])
            path = it.machine.root / "objects" / key
            if path.exists():
                path.write_bytes(flip(path.read_bytes()))
        assert await read_file(volume, inode) == random.Random(9).randbytes(3 << 20)
        with trio.fail_after(60):
            for name in (LOCAL, "home"):
                for key in big:
                    while (bad := await volume.scrubber.examine(name, key)) is not None:
                        if name == LOCAL and bad.fault is Fault.MISSING:
                            break  # the cache gave it up
                        await trio.sleep(0.05)


@pytest.mark.parametrize("depth", [SIZES, DEEP], ids=["sizes", "deep"])
async def test_a_store_that_throttles_is_looked_at_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: Depth
) -> None:
    monkeypatch.setattr("mirrorfs.engine.ask_again.POLICY", RetryPolicy(backoff_first_s=0.001))
    async with place(tmp_path) as it:
        lost = it.keys("segments/")[3]
        del it.stores[0].objects[lost]
        it.stores[0].throttles = True
        report = await it.volume.scrubber.run(depth, places=["home"])
        assert [found.unreachable for found in report.places] == [None]
        assert [(bad.place, bad.key) for bad in report.bad] == [("home", lost)]
        assert report.places[0].read == (len(it.good) - 1 if depth is DEEP else 0)
        it.stores[0].throttles = False
        assert it.stores[0].refused > 4 * (len(it.good) if depth is DEEP else 1)


async def test_a_store_that_is_away_is_not_asked_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorfs.engine.ask_again.POLICY", RetryPolicy(backoff_first_s=0.001))
    async with place(tmp_path) as it:
        it.stores[0].reads_left = 0
        report = await it.volume.scrubber.run(DEEP, places=["home"])
        assert report.places[0].unreachable == "Store home is away."
        first = -it.stores[0].reads_left
        assert first <= PARALLEL * RetryPolicy().attempts_max
        for key in it.good:
            with pytest.raises(StoreUnavailable):
                await it.volume.scrubber.examine("home", key)
        assert -it.stores[0].reads_left == first + len(it.good), "known to be away"
        it.stores[0].reads_left = 1 << 30
        assert await it.volume.scrubber.examine("home", it.keys()[0]) is None
        it.stores[0].reads_left = 0
        with pytest.raises(StoreUnavailable):
            await it.volume.scrubber.examine("home", it.keys()[0])
        assert -it.stores[0].reads_left == RetryPolicy().attempts_max, "there is patience again"


async def test_progress_of_a_look_that_only_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.engine.scrub.SAID_EVERY", 5)
    async with place(tmp_path) as it:
        said: list[tuple[str, int, int]] = []
        await it.volume.scrubber.run(SIZES, on_progress=lambda *what: said.append(what))
        counts = list(range(5, len(it.good) + 1, 5))
        assert len(counts) > 3
        assert said == [(name, count, 0) for name in (LOCAL, "home", "s3") for count in counts]
