"""Key generations: what the keys of before open after a rotation, and what they do not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from trio.testing import MockClock

from mirrorfs.engine.branches import Branches, End
from mirrorfs.engine.heads import newest_head, seal_head
from mirrorfs.errors import AuthenticationError, DamagedError, LimitError, UsageError
from mirrorfs.format.control import (
    Head,
    Instance,
    Lease,
    open_head,
    open_instance,
    open_lease,
    seal_control,
)
from mirrorfs.format.generation import check_descent
from mirrorfs.format.header import VolumeHeader, parse_header, seal_header, verify_header
from mirrorfs.format.ids import Previous, SegmentId, Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import HEADER_SIZE, SegmentHeader, decode_header, encode_header
from mirrorfs.format.signing import load_public_key, load_signer
from mirrorfs.format.slot import KdfParameters, KeySet, Role, Slot
from mirrorfs.keys import slots
from mirrorfs.keys.rotation import check_can_rotate, rotate_keys
from mirrorfs.keys.token import Enrolment
from mirrorfs.ports import ObjectKey, Sealed
from tests.golden.make_golden import OneCopy
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEAD, HEADER, INSTANCE, KEY_SET, KEYS, LEASE, SLOT, VOLUME, ended

PASSWORD = b"correct horse battery"
KDF = KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=b"\x11" * 16)
STRETCHED = slots.stretch_password(PASSWORD, KDF)
FIRST_OF_SECOND = 40


def slot_of(secret: bytes, name: str, *, roles: tuple[Role, ...] = tuple(Role)) -> Slot:
    return slots.make_slot(
        KEY_SET,
        volume=VOLUME,
        key_generation=1,
        name=name,
        roles=roles,
        stretched=STRETCHED,
        enrolment=Enrolment(SLOT.token, secret),
        kdf=KDF,
        created_ns=1,
        entropy=os.urandom,
    )


CARD, SPARE, LOST = (bytes([number]) * 32 for number in (1, 2, 3))


class Rotated:
    """A volume before and after one rotation, in which the slot `lost` was left out."""

    def __init__(self) -> None:
        all_slots = (slot_of(CARD, "card"), slot_of(SPARE, "spare", roles=()), slot_of(LOST, "lost"))
        self.old_header = replace(HEADER, slots=all_slots)
        self.old_data = seal_header(self.old_header, keys=KEYS, seed=KEY_SET.writer)
        self.old_keys = verify_header(self.old_data, KEY_SET)[1]
        self.data, self.key_set = rotate_keys(
            self.old_header,
            self.old_data,
            self.old_keys,
            KEY_SET,
            slots=all_slots[:2],
            log_end=ended(FIRST_OF_SECOND),
            checkpoint=None,
            entropy=os.urandom,
        )
        self.header, self.keys = verify_header(self.data, self.key_set)
        self.writer = load_public_key(self.header.public_keys.writer)


@pytest.fixture(scope="module")
def it() -> Rotated:
    return Rotated()


def opened(header: VolumeHeader, name: str, secret: bytes) -> KeySet:
    slot = next(slot for slot in header.slots if slot.name == name)
    return slots.open_slot(
        slot,
        volume=VOLUME,
        key_generation=header.key_generation,
        stretched=STRETCHED,
        token_secret=secret,
    )


def test_every_slot_that_was_kept_opens_without_its_token_at_the_rotation(it: Rotated) -> None:
    assert opened(it.header, "card", CARD).encode() == it.key_set.encode()
    spare = opened(it.header, "spare", SPARE)
    assert (spare.root, spare.roles()) == (it.key_set.root, ())
    assert [slot.name for slot in it.header.slots] == ["card", "spare"]
    assert it.header.previous == hashlib.sha256(it.old_data).digest()
    assert parse_header(it.data) == it.header
    # Nothing of the old generation is in use any more.
    old, new = KEY_SET.encode(), it.key_set.encode()
    assert not {old[at : at + 32] for at in range(0, 128, 32)} & {
        new[at : at + 32] for at in range(0, 128, 32)
    }
    assert it.header.fingerprint != it.old_header.fingerprint
    assert it.header.public_keys.writer != it.old_header.public_keys.writer


def test_the_new_keys_know_the_old_ones(it: Rotated) -> None:
    (past,) = it.keys.past
    assert (past.keys.root, past.writer) == (KEY_SET.root, HEADER.public_keys.writer)
    assert (past.until_sequence, it.keys.from_sequence) == (FIRST_OF_SECOND, FIRST_OF_SECOND)
    assert it.keys.past_of(1) is past and it.keys.past_of(2) is None and it.keys.past_of(3) is None


def test_the_old_header_with_a_lost_token_opens_no_new_keys(it: Rotated) -> None:
    old = opened(it.old_header, "lost", LOST)
    assert old.encode() == KEY_SET.encode(), "what it opened, it opens"
    with pytest.raises(DamagedError):
        verify_header(it.data, old)
    # With the old root key at hand, another slot's box stays shut: it takes that slot's own key.
    for slot in it.header.slots:
        with pytest.raises(DamagedError):
            slots.open_slot(
                replace(it.old_header.slots[2], boxed=slot.boxed),
                volume=VOLUME,
                key_generation=2,
                stretched=STRETCHED,
                token_secret=LOST,
            )


def test_a_header_whose_past_was_altered_is_refused(it: Rotated) -> None:
    first, second = it.header.generations
    for altered in (
        {"wrapped": bytes(60)},
        {"wrapped": first.wrapped[:-1] + bytes((first.wrapped[-1] ^ 1,))},
        {"fingerprint": bytes(16)},
        {"writer": it.header.public_keys.writer},
        {"endorsement": bytes(64)},
    ):
        generations = (replace(first, **altered), second)
        data = seal_header(replace(it.header, generations=generations), keys=it.keys, seed=it.key_set.writer)
        with pytest.raises(AuthenticationError):
            verify_header(data, it.key_set)


def test_only_the_writer_of_the_old_keys_makes_new_ones(it: Rotated) -> None:
    """Who may read has the root key, and can seal anything with it, but this signature."""
    reader = opened(it.old_header, "spare", SPARE)
    planted, planted_set = rotate_keys(
        it.old_header,
        it.old_data,
        it.old_keys,
        replace(reader, writer=b"\x66" * 32),
        slots=it.old_header.slots,
        log_end=ended(FIRST_OF_SECOND),
        checkpoint=None,
        entropy=os.urandom,
    )
    header = verify_header(planted, planted_set)[0]
    known = {
        "generation": 1,
        "fingerprint": it.old_header.fingerprint,
        "writer": it.old_header.public_keys.writer,
    }
    check_descent(VOLUME, it.header.line, **known)
    with pytest.raises(AuthenticationError, match="does not come from the keys that are known"):
        check_descent(VOLUME, header.line, **known)
    named = replace(header.generations[0], writer=it.old_header.public_keys.writer)
    renamed = replace(header, generations=(named, header.generations[1]))
    with pytest.raises(AuthenticationError, match="not made by the writer"):
        check_descent(VOLUME, renamed.line, **known)


def test_three_generations(it: Rotated) -> None:
    data, key_set = rotate_keys(
        it.header,
        it.data,
        it.keys,
        it.key_set,
        slots=it.header.slots,
        log_end=ended(90),
        checkpoint=None,
        entropy=os.urandom,
    )
    header, keys = verify_header(data, key_set)
    assert [past.keys.root for past in keys.past] == [KEY_SET.root, it.key_set.root]
    assert [past.until_sequence for past in keys.past] == [FIRST_OF_SECOND, 90]
    assert opened(header, "card", CARD).encode() == key_set.encode()
    with pytest.raises(LimitError):
        rotate_keys(
            it.header,
            it.data,
            it.keys,
            it.key_set,
            slots=(),
            log_end=ended(90),
            checkpoint=None,
            entropy=os.urandom,
        )
    with pytest.raises(DamagedError):
        rotate_keys(
            it.header,
            it.data,
            it.keys,
            it.key_set,
            slots=it.header.slots,
            log_end=ended(FIRST_OF_SECOND),
            checkpoint=None,
            entropy=os.urandom,
        )


def test_who_may_not_rotate(it: Rotated) -> None:
    check_can_rotate(it.header, tuple(Role))
    with pytest.raises(UsageError, match="every role"):
        check_can_rotate(it.header, (Role.WRITER,))
    first = replace(it.old_header, slots=(replace(SLOT, box_key=b""),))
    with pytest.raises(UsageError, match="earlier version"):
        check_can_rotate(first, tuple(Role))
    with pytest.raises(LimitError):
        check_can_rotate(replace(it.header, key_generation=64), tuple(Role))


@pytest.mark.parametrize("count", [1, 32])
def test_it_is_known_before_when_the_header_is_full(count: int) -> None:
    """Or `key remove` would have removed a slot, and then fail to rotate."""
    made = tuple(replace(slot_of(CARD, f"card {n}"), slot_id=bytes([n]) * 16) for n in range(1, count + 1))
    header, key_set = replace(HEADER, slots=made), KEY_SET
    data = seal_header(header, keys=KEYS, seed=KEY_SET.writer)
    keys = verify_header(data, key_set)[1]
    rotations = 0
    while True:
        try:
            check_can_rotate(header, tuple(Role))
        except LimitError:
            break
        rotations += 1
        end = ended(rotations * 3)
        data, key_set = rotate_keys(
            header, data, keys, key_set, slots=header.slots, log_end=end, checkpoint=end, entropy=os.urandom
        )
        header, keys = verify_header(data, key_set)
    assert rotations > 12
    assert count > 1 or rotations == 63


# --- what was sealed with which keys -----------------------------------------------------------


def segment(
    keys: VolumeKeys, seed: bytes, sequence: int, stream: Stream = Stream.MAIN, epoch: int = 1
) -> bytes:
    header = SegmentHeader(
        VOLUME, stream, keys.generation, 1, SegmentId(sequence, epoch, b"\x01" * 8), os.urandom(32), None
    )
    return encode_header(header, keys, load_signer(seed))


def test_segments_are_read_with_the_keys_of_their_place(it: Rotated) -> None:
    for sequence in (0, FIRST_OF_SECOND - 1):
        header, _ = decode_header(segment(KEYS, KEY_SET.writer, sequence), it.keys, it.writer)
        assert header.key_generation == 1
    header, _ = decode_header(segment(it.keys, it.key_set.writer, FIRST_OF_SECOND), it.keys, it.writer)
    assert header.key_generation == 2


@pytest.mark.parametrize("sequence", [FIRST_OF_SECOND, FIRST_OF_SECOND + 1, 2**42])
def test_who_has_the_old_keys_writes_nothing_new(it: Rotated, sequence: int) -> None:
    forged = segment(KEYS, KEY_SET.writer, sequence)
    decode_header(forged, it.old_keys, load_public_key(HEADER.public_keys.writer))
    with pytest.raises(AuthenticationError, match="not in use for its place"):
        decode_header(forged, it.keys, it.writer)
    with pytest.raises(AuthenticationError):
        decode_header(segment(it.keys, it.key_set.writer, FIRST_OF_SECOND - 1), it.keys, it.writer)


def test_relocated_segments_are_of_the_keys_of_their_epoch(it: Rotated) -> None:
    """A segment that stands in no chain, under a name that the thief of old keys has seen in a store."""
    end = it.keys.past[0].log_end
    assert end is not None
    last = end.segment.epoch
    for keys, seed, good, bad in (
        (KEYS, KEY_SET.writer, (1, last), (last + 1, 2**32 - 1)),
        (it.keys, it.key_set.writer, (last + 1, 2**32 - 1), (1, last)),
    ):
        # Their numbers say nothing: any that the main stream has in either time.
        for sequence in (0, FIRST_OF_SECOND):
            for epoch in good:
                decode_header(segment(keys, seed, sequence, Stream.RELOCATED, epoch), it.keys, it.writer)
            for epoch in bad:
                with pytest.raises(AuthenticationError, match="not in use in its epoch"):
                    decode_header(segment(keys, seed, sequence, Stream.RELOCATED, epoch), it.keys, it.writer)
    anywhere = it.keys.for_any_place()
    decode_header(segment(KEYS, KEY_SET.writer, 0, Stream.RELOCATED, last + 1), anywhere, it.writer)


def test_a_generation_that_is_claimed_and_not_held(it: Rotated) -> None:
    for claimed, keys, seed in ((2, KEYS, KEY_SET.writer), (1, it.keys, it.key_set.writer)):
        data = bytearray(segment(keys, seed, 5))
        data[32:36] = claimed.to_bytes(4, "little")
        assert len(data) == HEADER_SIZE
        with pytest.raises(AuthenticationError):
            decode_header(data, it.keys, it.writer)


# --- documents ---------------------------------------------------------------------------------


def documents(value: Head | Instance | Lease, it: Rotated) -> tuple[bytes, bytes]:
    """One under the old keys, one under the new."""
    old = seal_control(value, keys=KEYS, seed=KEY_SET.writer)
    return old, seal_control(value, keys=it.keys, seed=it.key_set.writer)


def test_instances_outlive_the_keys_they_were_made_with(it: Rotated) -> None:
    for data in documents(INSTANCE, it):
        assert open_instance(data, keys=it.keys, public_key=it.header.public_keys.writer) == INSTANCE


def test_a_lease_under_old_keys_counts_only_once_it_is_given_back(it: Rotated) -> None:
    def read(data: bytes) -> Lease:
        return open_lease(data, keys=it.keys, public_key=it.header.public_keys.writer)

    held, released = replace(LEASE, released=False), replace(LEASE, released=True)
    assert read(documents(held, it)[1]) == held
    assert read(documents(released, it)[0]) == released
    with pytest.raises(AuthenticationError, match="out of use"):
        read(documents(held, it)[0])
    # That of an earlier mount of this machine does: it is known to be gone.
    public_key = it.header.public_keys.writer
    data = documents(held, it)[0]
    assert open_lease(data, keys=it.keys, public_key=public_key, own=[LEASE.writer]) == held
    with pytest.raises(AuthenticationError):
        open_lease(data, keys=it.keys, public_key=public_key, own=[b"\0" * 8])


async def test_heads_count_under_the_newest_keys_alone(autojump_clock: MockClock, it: Rotated) -> None:
    store = SimulatedStore("home", seed=1)

    async def put(head: Head, keys: VolumeKeys, seed: bytes) -> str:
        sealed = seal_head(head, keys=keys, seed=seed)
        await store.put(ObjectKey(sealed.key), Sealed(sealed.data))
        return sealed.key

    async def found() -> str | None:
        head = await newest_head(store, keys=it.keys, public_key=it.header.public_keys.writer)
        return None if head is None else head.key

    old_key = await put(replace(HEAD, counter=2), KEYS, KEY_SET.writer)
    assert await found() is None, "nobody has published under the new keys"
    data = await store.get(ObjectKey(old_key))
    public_key = it.header.public_keys.writer
    with pytest.raises(AuthenticationError):
        open_head(data, key=old_key, keys=it.keys, public_key=public_key)
    open_head(data, key=old_key, keys=it.keys, public_key=public_key, with_past=True)
    new_key = await put(replace(HEAD, counter=3), it.keys, it.key_set.writer)
    assert await found() == new_key
    for counter in range(4, 9):
        await put(replace(HEAD, counter=counter), KEYS, KEY_SET.writer)
    assert await found() == new_key, "whoever has the old keys publishes nothing"


# --- branches ------------------------------------------------------------------------------------


class Headers:
    """Headers of segments in memory; a branch is added by who seals it."""

    def __init__(self) -> None:
        self._data: dict[SegmentId, bytes] = {}

    def add(self, keys: VolumeKeys, seed: bytes, segment: SegmentId, before: SegmentId | None) -> SegmentId:
        previous = None if before is None else Previous(before, 1000, bytes(32))
        header = SegmentHeader(VOLUME, Stream.MAIN, keys.generation, 1, segment, os.urandom(32), previous)
        self._data[segment] = encode_header(header, keys, load_signer(seed))
        return segment

    async def candidates(self, sequence: int) -> list[SegmentId]:
        found = [segment for segment in self._data if segment.sequence == sequence]
        return sorted(found, key=lambda segment: segment.epoch, reverse=True)

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        return OneCopy(self._data[segment])


def at(sequence: int, epoch: int) -> SegmentId:
    return SegmentId(sequence, epoch, bytes([epoch]) * 8)


async def test_a_branch_under_old_keys_loses_whatever_its_epoch(it: Rotated) -> None:
    headers = Headers()

    def old(sequence: int, epoch: int, before: SegmentId | None) -> SegmentId:
        return headers.add(KEYS, KEY_SET.writer, at(sequence, epoch), before)

    root = old(FIRST_OF_SECOND - 3, 1, None)
    genuine = old(FIRST_OF_SECOND - 2, 1, root)
    before = old(FIRST_OF_SECOND - 1, 1, genuine)
    end = headers.add(it.keys, it.key_set.writer, at(FIRST_OF_SECOND, 2), before)
    forged = old(FIRST_OF_SECOND - 2, 50, root)
    # In a place of the new keys the old ones are not valid.
    old(FIRST_OF_SECOND, 50, old(FIRST_OF_SECOND - 1, 50, forged))
    for keys, writer, winner in (
        (it.keys, it.writer, genuine),
        (it.old_keys, load_public_key(HEADER.public_keys.writer), forged),
    ):
        order = await Branches(headers, keys, writer).order([forged, genuine])
        assert order[0] == winner
    ends = await Branches(headers, it.keys, it.writer).ends([forged, genuine])
    assert ends[genuine] == End(2, 2, end.sequence, end.writer)
    assert ends[forged][:3] == (1, 50, FIRST_OF_SECOND - 1)
