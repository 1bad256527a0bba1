"""A volume on other machines: attached, overtaken, taken over; one branch is followed, nothing is lost."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import trio

from mirrorfs.engine import lease, lease_watch
from mirrorfs.engine.scrub import DEEP
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ChainError, InUseError, ReadOnlyVolume, StoreUnavailable
from mirrorfs.ports import ObjectKey, ObjectVersion
from tests.support.machine import Machine, read_file, write_file
from tests.support.store_memory import MemoryStore


def contents(number: int) -> bytes:
    return random.Random(number).randbytes(300_000 + number)


def names(volume: MountedVolume) -> list[bytes]:
    return sorted(row.name for row in volume._local.index.list_dentries(1, after_cookie=0, limit=1000))


class Stores:
    """Two places, and views of them for each machine."""

    def __init__(self) -> None:
        self.places: list[dict[str, bytes]] = [{}, {}]

    def view(self) -> list[MemoryStore]:
        return [MemoryStore(name, place) for name, place in zip(("home", "s3"), self.places, strict=True)]


class AwayStore(MemoryStore):
    async def list(self, prefix: str, *, start_after: str = ""):  # type: ignore[no-untyped-def]
        raise StoreUnavailable(f"Store {self.name} is away.")

    async def get(
        self, key: ObjectKey, *, size_max: int = 1 << 25, version: ObjectVersion | None = None
    ) -> bytes:
        raise StoreUnavailable(f"Store {self.name} is away.")

    async def read_mutable(self, key: ObjectKey):  # type: ignore[no-untyped-def]
        raise StoreUnavailable(f"Store {self.name} is away.")


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A period of seconds, not of a minute."""
    monkeypatch.setattr(lease, "LEASE_PERIOD_S", 2)
    monkeypatch.setattr(lease, "FRESH_S", 1)
    monkeypatch.setattr(lease, "RENEW_S", 0.4)
    monkeypatch.setattr(lease, "RENEW_AGAIN_S", 0.2)
    monkeypatch.setattr(lease_watch, "WATCH_POLL_S", 0.3)


@pytest.mark.expects_warnings("Another machine wrote")
async def test_turn_by_turn_on_two_machines(tmp_path: Path, stores: Stores) -> None:
    machines = [Machine(tmp_path / name, stores.view()) for name in ("one", "two")]
    inodes: dict[int, int] = {}
    for turn in range(6):
        async with machines[turn % 2].mounted() as volume:
            for number, inode in inodes.items():
                assert await read_file(volume, inode) == contents(number)
            inodes[turn] = await write_file(volume, b"%d" % turn, contents(turn))
    # Nothing is sent twice, and each machine's stores hold all of it.
    assert stores.places[0].keys() == stores.places[1].keys()
    async with Machine(tmp_path / "three", stores.view()).mounted() as volume:
        assert names(volume) == [b"%d" % number for number in range(6)]
        report = await volume.scrubber.run(DEEP)
        assert report.bad == []


@pytest.mark.expects_warnings("holds no object")
async def test_a_new_machine_with_one_store(tmp_path: Path, stores: Stores) -> None:
    async with Machine(tmp_path / "one", stores.view()).mounted() as volume:
        inode = await write_file(volume, b"letter", contents(1))
    stores.places[0] = {}
    stores.places[0]["instance"] = b"as after a replacement"
    async with Machine(tmp_path / "two", stores.view()).mounted() as volume:
        assert await read_file(volume, inode) == contents(1)
        await write_file(volume, b"second", contents(2))
        await volume.flush()
    assert not [
        path
        for path in (tmp_path / "two" / "objects" / "segments").iterdir()
        if "00000001" in path.name[17:25]
    ]


@pytest.mark.expects_warnings("is away", "cannot be", "not held yet")
async def test_a_known_volume_is_not_begun_anew(tmp_path: Path, stores: Stores) -> None:
    """What was attached has a local head: without its log no other one is begun."""
    async with Machine(tmp_path / "one", stores.view()).mounted() as volume:
        await write_file(volume, b"letter", contents(1))
    (tmp_path / "two" / "objects").mkdir(parents=True)
    shutil.copytree(tmp_path / "one" / "objects" / "heads", tmp_path / "two" / "objects" / "heads")
    with pytest.raises(ExceptionGroup) as caught:
        async with Machine(tmp_path / "two", [AwayStore("home"), AwayStore("s3")]).mounted():
            pass
    assert caught.group_contains(StoreUnavailable)


# What the first uploads while the second looks is followed before the lease is asked for.
@pytest.mark.expects_warnings("Another machine wrote")
async def test_in_use_elsewhere(tmp_path: Path, stores: Stores) -> None:
    async with Machine(tmp_path / "one", stores.view()).mounted() as first:
        await write_file(first, b"letter", contents(1))
        with pytest.raises(ExceptionGroup) as caught:
            async with Machine(tmp_path / "two", stores.view()).mounted():
                pass
        assert caught.group_contains(InUseError, match="by one since")
        await write_file(first, b"second", contents(2))
        await first.flush()
        assert first.status().fenced is None


@pytest.mark.expects_warnings("was taken over", "Another machine wrote", "is falling behind", "fenced since")
async def test_take_over_with_the_old_writer_alive(tmp_path: Path, stores: Stores) -> None:
    old = Machine(tmp_path / "old", stores.view())
    async with old.mounted(wait=False) as first:
        sent = await write_file(first, b"sent", contents(1))
        await first.flush()
        # On its way nowhere: both mirrors are held up while it is written.
        for one in first._stores:
            one.mirror._faults.puts.failed(StoreUnavailable("busy"), started_s=trio.current_time())
            one.mirror._faults.puts._retry_at_s = trio.current_time() + 1000
        unsent = await write_file(first, b"unsent", contents(2))
        await first.filesystem.fsync(unsent)
        async with Machine(tmp_path / "new", stores.view()).mounted(take_over=True) as second:
            assert names(second) == [b"sent"]
            assert await read_file(second, sent) == contents(1)
            await write_file(second, b"new", contents(3))
            await second.flush()
            with trio.fail_after(10):
                while not first.filesystem.read_only:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            before = [dict(place) for place in stores.places]
            with pytest.raises(ReadOnlyVolume):
                await write_file(first, b"late", contents(4))
            assert await read_file(first, unsent) == contents(2), "reads go on"
            assert first.status().fenced is not None
            for one in first._stores:
                one.mirror._faults.puts.retry_now()
                one.mirror._event.unpark_all()
            await trio.sleep(1.5)
            for place, earlier in zip(stores.places, before, strict=True):
                news = {key for key in place if key not in earlier}
                assert not any(f"-{first._local.identity.epoch:08x}-" in key for key in news)
            assert names(second) == [b"new", b"sent"]
    # What was only there is still there, and is not mixed with what came after.
    with pytest.raises(ExceptionGroup) as caught:
        async with old.mounted():
            pass
    assert caught.group_contains(ChainError, match="--from-state")
    async with Machine(tmp_path / "third", stores.view()).mounted() as third:
        assert names(third) == [b"new", b"sent"]


@pytest.mark.expects_warnings("Another machine wrote", "fenced since")
async def test_orphans_of_the_old_writer_are_not_followed(tmp_path: Path, stores: Stores) -> None:
    """They landed on both stores after the new writer had begun: at its own numbers and behind."""
    old = Machine(tmp_path / "old", stores.view())
    async with old.mounted() as first:
        await write_file(first, b"sent", contents(1))
    before = [dict(place) for place in stores.places]
    async with old.mounted() as first:
        for number in range(4):
            await write_file(first, b"lost %d" % number, contents(number))
            await first.flush()
    after = [dict(place) for place in stores.places]
    for place, earlier in zip(stores.places, before, strict=True):
        newest_lease = place["lease"]
        place.clear()
        place.update(earlier)
        place["lease"] = newest_lease
    with pytest.raises(ExceptionGroup) as refused:
        async with Machine(tmp_path / "new", stores.view()).mounted():
            pass
    assert refused.group_contains(InUseError, match="have not come to the stores")
    async with Machine(tmp_path / "new", stores.view()).mounted(take_over=True) as second:
        await write_file(second, b"new", contents(9))
        await second.flush()
        for _ in range(2):
            await second._local.quiesce()
    for place, landed in zip(stores.places, after, strict=True):
        for key, data in landed.items():
            if key.startswith("segments/"):
                place.setdefault(key, data)
    async with Machine(tmp_path / "third", stores.view()).mounted() as third:
        assert names(third) == [b"new", b"sent"]
    async with Machine(tmp_path / "new", stores.view()).mounted() as second:
        assert names(second) == [b"new", b"sent"]


@pytest.mark.expects_warnings("Another machine wrote")
async def test_what_is_sent_while_another_waits_for_the_lease_is_followed(
    tmp_path: Path, stores: Stores
) -> None:
    """The second one read the log before; the first one writes, sends and unmounts meanwhile."""
    seen: list[bytes] = []

    async def second() -> None:
        async with Machine(tmp_path / "two", stores.view()).mounted() as volume:
            seen.extend(names(volume))
            await write_file(volume, b"of two", contents(3))

    one = Machine(tmp_path / "one", stores.view())
    async with trio.open_nursery() as nursery, one.mounted() as first:
        await write_file(first, b"early", contents(1))
        await first.flush()
        nursery.start_soon(second)
        await trio.sleep(0.15)
        await write_file(first, b"late", contents(2))
    assert seen == [b"early", b"late"]
    async with Machine(tmp_path / "three", stores.view()).mounted() as third:
        assert names(third) == [b"early", b"late", b"of two"]


@pytest.mark.expects_warnings("was taken over", "Another machine wrote", "is falling behind")
async def test_take_over_follows_what_the_old_writer_sent_before_it_noticed(
    tmp_path: Path, stores: Stores
) -> None:
    async with Machine(tmp_path / "old", stores.view()).mounted(wait=False) as first:
        await write_file(first, b"early", contents(1))
        await first.flush()
        for one in first._stores:
            # Its next renewal comes late: what was fresh before is used until then.
            one.lease._lock.acquire_nowait()
            one.mirror.lease_fresh = trio.lowlevel.checkpoint
        seen: list[bytes] = []

        async def take_over() -> None:
            new = Machine(tmp_path / "new", stores.view())
            async with new.mounted(take_over=True) as volume:
                seen.extend(names(volume))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_over)
            await trio.sleep(0.3)
            await write_file(first, b"in between", contents(2))
            await first.flush()
            for one in first._stores:
                one.lease._lock.release()
        assert seen == [b"early", b"in between"]


@pytest.mark.expects_warnings("was taken over", "is away", "cannot be", "is falling behind", "not held yet")
async def test_a_fenced_writer_sends_nothing_to_the_store_that_was_out_of_reach(
    tmp_path: Path, stores: Stores
) -> None:
    async with Machine(tmp_path / "old", stores.view()).mounted(wait=False) as first:
        await write_file(first, b"sent", contents(1))
        await first.flush()
        reachable = AwayStore("s3")
        views = [stores.view()[0], reachable]
        async with Machine(tmp_path / "new", views).mounted(take_over=True, wait=False):
            with trio.fail_after(10):
                while not first.filesystem.read_only:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            fresh = first._stores[1].mirror.lease_fresh
            assert first._stores[1].lease.state().fenced is None
            with pytest.raises(InUseError, match="taken over"):
                await fresh()
