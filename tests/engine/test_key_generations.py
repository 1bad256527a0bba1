"""A log over a rotation of the keys: what who has only the old ones can add to it, which is nothing."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.checkpoints import CheckpointWriter
from mirrorfs.engine.heads import newest_head, seal_head
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.recovery import Recovery
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.segment_writer import SegmentWriter, WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, StoreUnavailable
from mirrorfs.format.control import LEASE_KEY, open_head, seal_control
from mirrorfs.format.header import header_key
from mirrorfs.format.ids import SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.rows import MomentRow
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import load_public_key, load_signer
from tests.sim.world import InlineOffload
from tests.support.machine import write_file
from tests.support.rotated import Objects, Rotated, contents, names
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import LEASE

EPOCH = 1000


OLD = [b"old 0", b"old 1", b"old 2"]


async def test_what_the_header_attests(autojump_clock: MockClock, it: Rotated) -> None:
    last = segment_object_key(Stream.MAIN, it.end.segment)
    assert len(it.places[0][last]) == it.end.size
    (past,) = it.pc.keys.past
    assert past.checkpoint is not None
    assert segment_object_key(Stream.CHECKPOINT, past.checkpoint.segment) == it.roots[-1]
    found, plan = await it.restored(it.view())
    assert (found, plan.damage) == ([b"new", *OLD], None)


async def readable_roots(it: Rotated) -> list[str]:
    """The checkpoints that count, the newest first."""
    segments = Segments(Stream.CHECKPOINT, disk=None, offload=it.pc.world.offload, stores=it.view())
    await segments.look()
    reader = CheckpointReader(segments, it.pc.keys, load_public_key(it.pc.header.public_keys.writer))
    newer: set[SegmentId] = set()
    seen = []
    while (one := await reader.newest(but=newer)) is not None:
        newer.add(one[1])
        seen.append(segment_object_key(Stream.CHECKPOINT, one[1]))
    return seen


async def test_every_checkpoint_of_before_is_still_one(autojump_clock: MockClock, it: Rotated) -> None:
    assert len(it.roots) > 1
    assert set(it.roots) <= set(await readable_roots(it))


@pytest.mark.expects_warnings("out of use", "other bytes")
@pytest.mark.parametrize("is_named", [True, False])
async def test_a_checkpoint_of_before_that_a_moment_names(
    autojump_clock: MockClock, it: Rotated, is_named: bool
) -> None:
    """The segments between it and the one that the header attests are kept no longer."""
    data = {key: it.places[0][key] for key in it.roots}
    segment = parse_segment_object_key(it.roots[0])[1]
    digest = hashlib.sha256(data[it.roots[0]] if is_named else data[it.roots[1]]).digest()
    keys = it.pc.keys
    files = SqliteIndexFiles(str(it.root / "new.db"), keys.index_key, digest_key=keys.dedup_key)
    index, _ = await Planner(
        it.view(), files, InlineOffload(random.Random(3)), keys, it.pc.header.public_keys.writer
    ).run(NEWEST)
    row = MomentRow(1, *segment, digest, 1, 0)
    index.put_moment(row)
    index.commit()
    identity = WriterIdentity(
        keys, load_signer(it.pc.key_set.writer), it.pc.header.generation, EPOCH, os.urandom(8), True,
        it.pc.header_bytes,
    )  # fmt: skip
    snapshot = index.snapshot()
    try:
        written = CheckpointWriter(
            LocalDisk(it.root / "made"), identity, os.urandom, sequence=900, previous=None
        ).write(snapshot, None)
    finally:
        snapshot.close()
        index.close()
    for place in it.places:
        for key in it.roots[1:]:
            del place[key]
    before = await readable_roots(it)
    assert it.roots[0] not in before
    for place in it.places:
        place.update({key: (it.root / "made" / "objects" / key).read_bytes() for key in written.keys})
    assert (it.roots[0] in await readable_roots(it)) is is_named


@pytest.mark.expects_warnings("out of use", "does not verify", "checkpoint cannot be used")
@pytest.mark.parametrize("sequence", [0, 1, 2, 900])
async def test_a_checkpoint_that_a_thief_made(autojump_clock: MockClock, it: Rotated, sequence: int) -> None:
    """It would overrule the log: it says what the tree was at a position before the rotation."""
    thief = SqliteIndexFiles(
        str(it.root / "thief.db"), it.old_keys.index_key, digest_key=it.old_keys.dedup_key
    )
    planner = Planner(
        it.without_new(), thief, InlineOffload(random.Random(3)), it.old_keys,
        it.old_set.public_keys().writer,
    )  # fmt: skip
    index, _ = await planner.run(NEWEST)
    rows = index.list_dentries(1, after_cookie=0, limit=9)
    index.delete_dentry(next(row for row in rows if row.name == b"old 1"))
    index.commit()
    disk = LocalDisk(it.root / "forged")
    identity = WriterIdentity(
        it.old_keys, load_signer(it.old_set.writer), 1, EPOCH, os.urandom(8), True, it.pc.header_bytes
    )
    snapshot = index.snapshot()
    try:
        written = CheckpointWriter(disk, identity, os.urandom, sequence=sequence, previous=None).write(
            snapshot, None
        )
    finally:
        snapshot.close()
        index.close()
    forged = {key: (it.root / "forged" / "objects" / key).read_bytes() for key in written.keys}
    for place in it.places:
        place.update(forged)
    for stores, expected in ((it.view(), [b"new", *OLD]), (it.without_new(), OLD)):
        found, plan = await it.restored(stores)
        assert (found, plan.damage) == (expected, None if len(expected) == 4 else plan.damage)


@pytest.mark.expects_warnings(".")
@pytest.mark.parametrize("back", [1, 2, 3])
async def test_a_log_that_a_thief_sealed(autojump_clock: MockClock, it: Rotated, back: int) -> None:
    forged = await it.forge_log(it.first - back, epoch=EPOCH)
    assert [key for key in forged if key.startswith("segments/")]
    for place in it.places:
        for key, data in forged.items():
            if key.startswith("segments/"):
                place.setdefault(key, data)
    for stores in (it.view(), it.without_new()):
        found, _ = await it.restored(stores)
        assert not [name for name in found if name.startswith(b"forged")]


@pytest.mark.expects_warnings(".")
@pytest.mark.parametrize("hidden", [1, 2])
async def test_the_end_of_before_is_hidden_or_replaced(
    autojump_clock: MockClock, it: Rotated, hidden: int
) -> None:
    forged = await it.forge_log(it.first - hidden, epoch=EPOCH)
    for with_forged in (False, True):
        stores = it.without_new(but=hidden)
        for store in stores if with_forged else ():
            store.objects.update(
                (key, data)
                for key, data in forged.items()
                if key.startswith("segments/") and int(key[9:25], 16) < it.first
            )
            for key in [key for key in store.objects if key.startswith("checkpoints/")]:
                del store.objects[key]
        found, plan = await it.restored(stores)
        assert plan.damage is not None
        assert hidden > 1 or not [name for name in found if name.startswith(b"forged")]
        assert "rotated" in plan.damage or "segment" in plan.damage
        new_pc = VirtualPc(it.root / f"new pc {with_forged}", stores, seed=4)
        new_pc.adopt(it.pc.header_bytes, it.pc.key_set)
        with pytest.raises(ExceptionGroup) as caught:
            async with new_pc.mounted():
                pass
        assert caught.group_contains((StoreUnavailable, DamagedError))


@pytest.mark.expects_warnings("other bytes than the header says", "checkpoint cannot be used")
async def test_the_end_of_before_with_other_bytes(autojump_clock: MockClock, it: Rotated) -> None:
    """Under its own name a thief seals one that says less: without the last file."""
    end = it.end
    key = segment_object_key(Stream.MAIN, end.segment)
    writer = load_public_key(it.old_set.public_keys().writer)
    previous = decode_header(it.places[0][key], it.old_keys, writer)[0].previous
    _, epoch, name = end.segment
    identity = WriterIdentity(it.old_keys, load_signer(it.old_set.writer), 1, epoch, name, True)
    forged = SegmentWriter(
        LocalDisk(it.root / "forged"), identity, os.urandom,
        stream=Stream.MAIN, sequence=end.segment.sequence, previous=previous,
    )  # fmt: skip
    forged.seal()
    forged.sync()
    forged.close()
    data = (it.root / "forged" / "objects" / key).read_bytes()
    for stores in (it.view(), it.without_new()):
        stores[0].objects[key] = data
        found, plan = await it.restored(stores)
        assert set(OLD) <= set(found), "from the other store"
        assert plan.damage is None
    stores[1].objects[key] = data
    _, plan = await it.restored(stores)
    assert plan.damage is not None


@pytest.mark.expects_warnings("does not verify", "cannot be used", "Another machine wrote")
async def test_a_pc_that_is_behind_does_not_write_before_the_rest_is_there(
    autojump_clock: MockClock, it: Rotated, written: Rotated
) -> None:
    """What it wrote under the new keys, in the place of the old, nobody would read."""
    shutil.copytree(written.pc.root, it.root / "behind")
    for path in (it.root / "behind" / "objects").glob("segments/*"):
        if int(path.name[:16], 16) >= it.first - 1:
            path.unlink()
    shutil.rmtree(it.root / "behind" / "objects" / "checkpoints")
    shutil.rmtree(it.root / "behind" / "objects" / "heads")
    behind = VirtualPc(it.root / "behind", it.without_new(but=1), seed=5)
    behind.adopt(it.pc.header_bytes, it.pc.key_set)
    with pytest.raises(ExceptionGroup) as caught:
        async with behind.mounted():
            pass
    assert caught.group_contains(StoreUnavailable, match="keys were rotated at segment")
    behind.stores = it.view()
    async with behind.mounted() as volume:
        assert set(OLD) < set(names(volume._local.index))


@pytest.mark.expects_warnings(
    "keys were rotated elsewhere", "not held yet", "does not verify", "cannot be", "not in use for its place"
)
async def test_a_writer_that_slept_over_a_rotation(autojump_clock: MockClock, it: Rotated) -> None:
    """It writes no lease over that of the new keys, and sends nothing: it is told to mount again."""
    old: list[Objects] = [{}, {}]
    stores = [SimulatedStore(n, seed=6, objects=place) for n, place in zip(("home", "s3"), old, strict=True)]
    sleeper = VirtualPc(it.root / "sleeper", stores, seed=6)
    async with sleeper.mounted(wait=False) as volume:
        await write_file(volume, b"before", contents(1))
        await volume.flush()
        assert volume.status().fenced is None
        other = VirtualPc(it.root / "other", [], seed=7)
        other.rotate(await volume.ends())
        lease = replace(LEASE, epoch=7, released=True)
        data = seal_control(lease, keys=other.keys, seed=other.key_set.writer)
        for place in old:
            place[header_key(other.header.generation, other.header_bytes)] = other.header_bytes
            place[LEASE_KEY] = data
        await trio.sleep(LEASE_PERIOD_S)  # until it knows that its own has run out
        before = [dict(place) for place in old]
        await write_file(volume, b"after", contents(2))
        with trio.fail_after(1000):
            while volume.status().fenced is None:  # noqa: ASYNC110
                await trio.sleep(1)
        assert "keys were rotated elsewhere" in str(volume.status().fenced)
        await trio.sleep(300)
        assert old == before
    # It takes the new keys: its log goes on where the old ones were out of use, which nobody follows.
    sleeper.adopt(other.header_bytes, other.key_set)
    assert "export" in await refusal(sleeper)
    files = SqliteIndexFiles(
        str(it.root / "export.db"), sleeper.keys.index_key, digest_key=sleeper.keys.dedup_key
    )
    recovered = await Recovery(
        sleeper.world.disk, files, sleeper.world.offload, sleeper.keys.for_any_place(),
        load_public_key(sleeper.header.public_keys.writer), stores=stores, follows=False,
    ).run()  # fmt: skip
    assert names(recovered.index) == [b"after", b"before"]
    recovered.index.close()


async def refusal(pc: VirtualPc) -> str:
    """Why it does not mount."""
    with pytest.raises(ExceptionGroup) as caught:
        async with pc.mounted(wait=False):
            pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


async def test_old_heads_hide_no_new_ones_and_are_counted_past(
    autojump_clock: MockClock, it: Rotated
) -> None:
    store = SimulatedStore("home", seed=1, objects=dict(it.places[0]))
    public_key = it.pc.header.public_keys.writer
    newest = await newest_head(store, keys=it.pc.keys, public_key=public_key)
    assert newest is not None

    def plant(count: int, make: Callable[[int], int]) -> None:
        for number in range(count):
            head = replace(newest.head, counter=make(number))
            sealed = seal_head(head, keys=it.old_keys, seed=it.old_set.writer)
            open_head(
                sealed.data, key=sealed.key, keys=it.old_keys, public_key=it.old_set.public_keys().writer
            )
            store.objects[sealed.key] = bytes(sealed.data)

    plant(31, lambda number: 1000 + number)
    again = await newest_head(store, keys=it.pc.keys, public_key=public_key)
    assert again is not None
    assert again.key == newest.key
    plant(40, lambda number: 2000 + number)
    # Now it is as if there were none yet: the next that is written comes behind them.
    assert await newest_head(store, keys=it.pc.keys, public_key=public_key) is None
    old = await newest_head(store, keys=it.pc.keys, public_key=public_key, with_past=True)
    assert old is not None
    assert old.head.counter == 2039


@pytest.mark.expects_warnings("is away", "holds no object", "not held yet")
async def test_the_first_head_under_new_keys_comes_after_all_others(
    autojump_clock: MockClock, it: Rotated
) -> None:
    """On a PC that has no head of before, where the one that rotated was cut off before its first."""
    for place in it.places:
        for key in [key for key in place if key.startswith("heads/")]:
            data = place[key]
            try:
                open_head(data, key=key, keys=it.pc.keys, public_key=it.pc.header.public_keys.writer)
            except DamagedError:
                continue
            del place[key]
    before = max(int(key[6:22], 16) for key in it.places[0] if key.startswith("heads/"))
    new_pc = VirtualPc(it.root / "new pc", it.view(), seed=4)
    new_pc.adopt(it.pc.header_bytes, it.pc.key_set)
    async with new_pc.mounted() as volume:
        await write_file(volume, b"more", contents(1))
    assert max(int(key[6:22], 16) for key in it.places[0] if key.startswith("heads/")) > before
    found = await newest_head(it.view()[0], keys=it.pc.keys, public_key=it.pc.header.public_keys.writer)
    assert found is not None
    assert found.head.counter > before
