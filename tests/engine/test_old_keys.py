"""What who has keys that are out of use can still do, and honest PCs in odd states around a rotation."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import checkpointer
from mirrorfs.engine.checkpoints import CheckpointWriter
from mirrorfs.engine.follower import Follower
from mirrorfs.engine.heads import newest_head, seal_head
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.segment_writer import SegmentWriter, WriterIdentity
from mirrorfs.errors import DamagedError, MirrorfsError
from mirrorfs.format.control import LEASE_KEY, open_head, seal_control
from mirrorfs.format.frame import Body, Kind, make_body, unpack
from mirrorfs.format.header import header_key
from mirrorfs.format.ids import Stream, segment_object_key
from mirrorfs.format.journal import decode_journal, encode_journal
from mirrorfs.format.limits import EPOCH_MAX
from mirrorfs.format.segment import check_sealed
from mirrorfs.format.signing import load_public_key, load_signer
from mirrorfs.ports import OBJECT_SIZE_MAX, ObjectKey, ObjectVersion
from tests.sim.world import InlineOffload
from tests.support.machine import write_file
from tests.support.rotated import Objects, Rotated, contents, names
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import LEASE

# What is forged is said to be; the tests judge what comes of it.
pytestmark = pytest.mark.expects_warnings(".")


def shared(places: list[Objects], seed: int = 1) -> list[SimulatedStore]:
    return [SimulatedStore(n, seed=seed, objects=p) for n, p in zip(("home", "s3"), places, strict=True)]


async def mount_and(pc: VirtualPc, name: bytes = b"") -> list[bytes]:
    """Mount, write a file if one is named, and unmount when all is sent. Returns: what is there then."""
    async with pc.mounted() as volume:
        if name:
            await write_file(volume, name, contents(3))
        await volume.flush()
        return names(volume._local.index)


async def refusal(pc: VirtualPc) -> str | None:
    """Why it does not mount; None where it does."""
    said: list[str] = []
    try:
        await mount_and(pc)
    except* MirrorfsError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        said.append(str(error))
    return said[0] if said else None


def copy_of_the_pc(it: Rotated) -> VirtualPc:
    shutil.copytree(it.pc.root, it.root / "pc")
    pc = VirtualPc(it.root / "pc", it.view(), seed=9)
    pc.adopt(it.pc.header_bytes, it.pc.key_set)
    return pc


# --- leases and heads --------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [5000, EPOCH_MAX])
async def test_a_lease_that_was_never_taken_stops_no_mount(
    autojump_clock: MockClock, it: Rotated, epoch: int
) -> None:
    """A thief writes one under the old keys that says it was given back."""
    lease = replace(LEASE, epoch=epoch, released=True, writer=b"thief!!!")
    for place in it.places:
        place[LEASE_KEY] = seal_control(lease, keys=it.old_keys, seed=it.old_set.writer)
    pc = copy_of_the_pc(it)
    with trio.fail_after(3000):
        assert b"new" in await mount_and(pc)
        async with pc.mounted(take_over=True):
            pass


async def test_a_lease_that_was_never_taken_fences_nobody(autojump_clock: MockClock, it: Rotated) -> None:
    async with copy_of_the_pc(it).mounted(wait=False) as volume:
        lease = replace(LEASE, epoch=5000, released=True, writer=b"thief!!!")
        it.places[0][LEASE_KEY] = seal_control(lease, keys=it.old_keys, seed=it.old_set.writer)
        await trio.sleep(10 * LEASE_PERIOD_S)
        assert volume.status().fenced is None


async def test_more_old_heads_than_are_tried(autojump_clock: MockClock, it: Rotated) -> None:
    """A volume that is some hours old has that many; and the PC that rotated was cut before its first."""
    public_key = it.pc.header.public_keys.writer
    for place in it.places:
        last = None
        for key in sorted(key for key in place if key.startswith("heads/")):
            try:
                open_head(place[key], key=key, keys=it.pc.keys, public_key=public_key)
                del place[key]
            except DamagedError:
                old_public_key = it.old_set.public_keys().writer
                last = open_head(place[key], key=key, keys=it.old_keys, public_key=old_public_key)
        assert last is not None
        for number in range(40):
            head = replace(last, counter=last.counter + 1 + number)
            sealed = seal_head(head, keys=it.old_keys, seed=it.old_set.writer)
            place[sealed.key] = bytes(sealed.data)
    before = max(int(key[6:22], 16) for key in it.places[0] if key.startswith("heads/"))
    new_pc = VirtualPc(it.root / "new pc", it.view(), seed=4)
    new_pc.adopt(it.pc.header_bytes, it.pc.key_set)
    await mount_and(new_pc, b"more")
    found = await newest_head(it.view()[0], keys=it.pc.keys, public_key=public_key)
    assert found is not None
    assert found.head.counter > before


# --- the end of the old log --------------------------------------------------------------------


def forge_segment(it: Rotated, key: str, change: Callable[[Body], Body], tag: str) -> bytes:
    """The segment of that name once more, sealed with the old keys, with frames changed."""
    data = it.places[0][key]
    header, cipher, trailer = check_sealed(
        data, it.old_keys, load_public_key(it.old_set.public_keys().writer)
    )
    _, epoch, name = header.segment
    pads = it.pc.header.pad_data
    identity = WriterIdentity(it.old_keys, load_signer(it.old_set.writer), 1, epoch, name, pads)
    out = SegmentWriter(
        LocalDisk(it.root / f"forged {tag}"), identity, os.urandom,
        stream=Stream.MAIN, sequence=header.segment.sequence, previous=header.previous,
    )  # fmt: skip
    for ordinal, entry in enumerate(trailer.frames):
        _, body = cipher.open_body(memoryview(data)[entry.offset :], offset=entry.offset, ordinal=ordinal)
        body = change(body)
        if body.kind is Kind.JOURNAL:
            out.note_journal(decode_journal(unpack(body)))
        out.append(body)
    out.seal()
    out.sync()
    out.close()
    return (it.root / f"forged {tag}" / "objects" / key).read_bytes()


def forge_end(it: Rotated, key: str) -> bytes:
    """The last segment of before, of its size, with another name of a file in it and one bad frame."""
    for number in range(40):

        def change(body: Body, name: bytes = b"bad%02d" % number) -> Body:
            if body.kind is not Kind.JOURNAL:
                return body
            journal = decode_journal(unpack(body))
            renamed = journal._replace(records=journal.records.replace(b"old 2", name))
            return make_body(Kind.JOURNAL, encode_journal(renamed))

        forged = bytearray(forge_segment(it, key, change, str(number)))
        if len(forged) == it.end.size:
            break
    assert len(forged) == it.end.size
    writer = load_public_key(it.old_set.public_keys().writer)
    _, _, trailer = check_sealed(bytes(forged), it.old_keys, writer)
    forged[next(entry.offset for entry in trailer.frames if entry.kind != Kind.JOURNAL) + 200] ^= 1
    return bytes(forged)


async def test_a_forged_end_that_is_damaged_too(autojump_clock: MockClock, it: Rotated) -> None:
    """Of damaged bytes the digest cannot be told; so nobody takes them for those that are attested."""
    key = segment_object_key(Stream.MAIN, it.end.segment)
    forged = forge_end(it, key)
    lease = replace(LEASE, epoch=it.end.segment.epoch, writer=it.end.segment.writer, released=True)
    stores = it.without_new()
    for store in stores:
        store.objects[key] = forged
        store.objects[LEASE_KEY] = seal_control(lease, keys=it.old_keys, seed=it.old_set.writer)
        for one in [one for one in store.objects if one.startswith("checkpoints/")]:
            del store.objects[one]
    _, plan = await it.restored(stores)
    assert plan.damage is not None
    new_pc = VirtualPc(it.root / "new pc", stores, seed=4)
    new_pc.adopt(it.pc.header_bytes, it.pc.key_set)
    assert await refusal(new_pc) is not None


async def test_a_checkpoint_planted_before_the_rotation(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who still has the keys, in one store: the PC that rotates vouches for its own."""
    monkeypatch.setattr(checkpointer, "JOURNAL_MIN_BYTES", 10)
    monkeypatch.setattr(checkpointer, "SEGMENTS_MAX", 0)
    places: list[Objects] = [{}, {}]
    a = VirtualPc(tmp_path / "a", shared(places), seed=11)
    async with a.mounted() as volume:
        for number in range(3):
            await write_file(volume, b"a %d" % number, contents(number))
            await volume.flush()
            await trio.sleep(1)

    def planner(name: str) -> Planner:
        files = SqliteIndexFiles(str(tmp_path / name), a.keys.index_key, digest_key=a.keys.dedup_key)
        offload = InlineOffload(random.Random(3))
        return Planner(shared(places), files, offload, a.keys, a.header.public_keys.writer)

    index, _ = await planner("thief.db").run(NEWEST)
    rows = index.list_dentries(1, after_cookie=0, limit=9)
    index.delete_dentry(next(row for row in rows if row.name == b"a 1"))
    index.commit()
    signer = load_signer(a.key_set.writer)
    identity = WriterIdentity(a.keys, signer, 1, 1000, os.urandom(8), True, a.header_bytes)
    disk = LocalDisk(tmp_path / "forged")
    snapshot = index.snapshot()
    made = CheckpointWriter(disk, identity, os.urandom, sequence=9, previous=None).write(snapshot, None)
    snapshot.close()
    index.close()
    for key in made.keys:
        places[0][key] = (tmp_path / "forged" / "objects" / key).read_bytes()
    async with a.mounted() as volume:
        await volume.flush()
        ends = await volume.ends()
    a.rotate(ends)
    for number in range(3):
        await mount_and(a, b"new %d" % number)
    index, _ = await planner("restore.db").run(NEWEST)
    assert b"a 1" in names(index)
    index.close()


# --- honest PCs --------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [0, 3])
async def test_unsent_changes_of_before(autojump_clock: MockClock, tmp_path: Path, later: int) -> None:
    """B wrote offline; A mounts some times, and rotates. B is told how to get its changes out."""
    places: list[Objects] = [{}, {}]
    a = VirtualPc(tmp_path / "a", shared(places), seed=11)
    b_stores = shared(places)
    b = VirtualPc(tmp_path / "b", b_stores, seed=12)
    await mount_and(a, b"from a")
    await mount_and(b, b"from b")
    for store in b_stores:
        store.outage = True
    async with b.mounted(wait=False) as volume:
        await write_file(volume, b"offline", contents(4))
    for number in range(later):
        await mount_and(a, b"more %d" % number)
    async with a.mounted() as volume:
        await volume.flush()
        ends = await volume.ends()
    a.rotate(ends)
    await mount_and(a, b"after")
    for place in places:
        place[header_key(a.header.generation, a.header_bytes)] = a.header_bytes
    b.stores = shared(places, 5)
    b.adopt(a.header_bytes, a.key_set)
    said = await refusal(b)
    assert said is not None
    assert "restore --from-state" in said


async def test_an_unborn_segment_of_before(autojump_clock: MockClock, it: Rotated, written: Rotated) -> None:
    """B lost power before its first commit; then the keys were rotated at that very number."""
    root = it.root / "b"
    shutil.copytree(written.pc.root, root)
    for path in (root / "objects").glob("segments/*"):
        if int(path.name[:16], 16) >= it.first:
            path.unlink()
    identity = WriterIdentity(it.old_keys, load_signer(it.old_set.writer), 1, 1, os.urandom(8), True)
    out = SegmentWriter(
        LocalDisk(root), identity, os.urandom, stream=Stream.MAIN, sequence=it.first, previous=it.end
    )
    out.append(make_body(Kind.DATA, contents(77)))
    out.sync()
    out.close()
    b = VirtualPc(root, it.view(), seed=5)
    b.adopt(it.pc.header_bytes, it.pc.key_set)
    assert b"new" in await mount_and(b)


class Counting(SimulatedStore):
    """Notes which segments are read whole."""

    def __init__(self, name: str, objects: Objects) -> None:
        super().__init__(name, seed=5, objects=objects)
        self.whole: list[str] = []

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        if key.startswith("segments/"):
            self.whole.append(key)
        return await super().get(key, size_max=size_max, version=version)


async def test_another_pc_does_not_read_all_of_the_log_again(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an index and checkpoints of its own; the new keys open the index no more."""
    monkeypatch.setattr(checkpointer, "JOURNAL_MIN_BYTES", 10)
    monkeypatch.setattr(checkpointer, "SEGMENTS_MAX", 0)
    places: list[Objects] = [{}, {}]
    a = VirtualPc(tmp_path / "a", shared(places), seed=11)
    async with a.mounted() as volume:
        for number in range(12):
            await write_file(volume, b"a %d" % number, contents(number))
            await volume.flush()
            await trio.sleep(1)
    b = VirtualPc(tmp_path / "b", shared(places), seed=12)
    async with b.mounted() as volume:
        for number in range(2):
            await write_file(volume, b"b %d" % number, contents(number))
            await volume.flush()
            await trio.sleep(1)
    async with a.mounted() as volume:
        await write_file(volume, b"a last", contents(5))
        await volume.flush()
        await trio.sleep(1)
        await volume.flush()
        ends = await volume.ends()
    a.rotate(ends)
    await mount_and(a, b"after")
    counting = [Counting(n, p) for n, p in zip(("home", "s3"), places, strict=True)]
    b.stores = counting
    b.adopt(a.header_bytes, a.key_set)
    assert b"after" in await mount_and(b)
    assert 0 not in [int(key[9:25], 16) for store in counting for key in store.whole]


async def test_a_view_over_a_rotation(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Read-only, with the old keys: it says that it does not go on."""
    places: list[Objects] = [{}, {}]
    a = VirtualPc(tmp_path / "a", shared(places), seed=11)
    await mount_and(a, b"from a")
    old, public_key = a.keys, a.header.public_keys.writer
    files = SqliteIndexFiles(str(tmp_path / "view.db"), old.index_key, digest_key=old.dedup_key)
    offload = InlineOffload(random.Random(2))
    planner = Planner(shared(places), files, offload, old, public_key)
    index, _ = await planner.run(NEWEST)
    (tmp_path / "view").mkdir()
    follower = Follower(
        index, planner.end, disk=LocalDisk(tmp_path / "view"), offload=offload, stores=shared(places),
        keys=old, writer=load_public_key(public_key), random=lambda: 0.5,
    )  # fmt: skip
    await follower.look()
    assert follower.fault is None
    async with a.mounted() as volume:
        await volume.flush()
        ends = await volume.ends()
    a.rotate(ends)
    for place in places:
        place[header_key(a.header.generation, a.header_bytes)] = a.header_bytes
    await mount_and(a, b"after")
    await follower.look()
    assert "keys were rotated" in str(follower.fault)
    await follower.look(heads=False)
    assert "keys were rotated" in str(follower.fault), "it stays so"
    index.close()
