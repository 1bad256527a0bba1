"""Instance, lease and head documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.control import (
    INSTANCE_KEY,
    LEASE_KEY,
    Head,
    Instance,
    Lease,
    LeaseHolder,
    head_key,
    open_head,
    open_instance,
    open_lease,
    open_lease_box,
    parse_head_key,
    seal_control,
    seal_lease_box,
)
from mirrorfs.format.kdf import VolumeKeys
from tests.support.volumes import HEAD, INSTANCE, KEY_SET, KEYS, LEASE, VOLUME, WRITER

Change = Callable[[dict[str, Any]], object]
PUBLIC = KEY_SET.public_keys().writer
HEAD_KEY = head_key(counter=HEAD.counter, epoch=HEAD.epoch, writer=HEAD.writer)


def sealed(value: Instance | Lease | Head) -> bytes:
    return seal_control(value, keys=KEYS, seed=KEY_SET.writer)


def test_documents_read_back() -> None:
    assert open_instance(sealed(INSTANCE), keys=KEYS, public_key=PUBLIC) == INSTANCE
    assert open_lease(sealed(LEASE), keys=KEYS, public_key=PUBLIC) == LEASE
    assert open_head(sealed(HEAD), key=HEAD_KEY, keys=KEYS, public_key=PUBLIC) == HEAD
    first = replace(HEAD, counter=1, previous=b"", checkpoint="", checkpoint_digest=b"")
    empty = replace(first, sequence=0, segment_key="", segment_size=0, segment_digest=b"")
    for head in (first, empty):
        assert Head.from_body(head.to_body()) == head


def test_one_kind_is_not_taken_for_another() -> None:
    with pytest.raises(FormatError):
        open_lease(sealed(INSTANCE), keys=KEYS, public_key=PUBLIC)
    with pytest.raises(FormatError):
        open_instance(sealed(LEASE), keys=KEYS, public_key=PUBLIC)


def test_documents_of_others_are_refused() -> None:
    with pytest.raises(AuthenticationError):
        open_lease(sealed(LEASE), keys=KEYS, public_key=KEY_SET.public_keys().drill)
    other = VolumeKeys.derive(b"\x0f" * 32, volume=VOLUME, generation=1)
    with pytest.raises(AuthenticationError):
        open_instance(sealed(INSTANCE), keys=other, public_key=PUBLIC)


def test_bodies_are_those_of_the_specification() -> None:
    assert INSTANCE.to_body() == {"store": "home", "instance": "20" * 16}
    assert LEASE.to_body() == {
        "writer": "00112233445566ff",
        "epoch": 3,
        "parent": LEASE.parent.hex(),
        "counter": 17,
        "released": 0,
        "period_ms": 30000,
        "box": "30" * 60,
    }
    assert replace(LEASE, released=True, parent=b"").to_body()["released"] == 1
    assert (INSTANCE_KEY, LEASE_KEY) == ("instance", "lease")


def test_the_key_of_a_head() -> None:
    assert HEAD_KEY == "heads/0000000000000002-00000003-00112233445566ff"
    assert parse_head_key(HEAD_KEY) == (2, 3, WRITER)
    keys = [head_key(counter=counter, epoch=1, writer=WRITER) for counter in (1, 9, 10, 255, 256, 2**40)]
    assert keys == sorted(keys)


def test_a_head_under_another_key_is_misdirected() -> None:
    for key in (
        head_key(counter=3, epoch=3, writer=WRITER),
        head_key(counter=2, epoch=4, writer=WRITER),
        head_key(counter=2, epoch=3, writer=bytes(8)),
    ):
        with pytest.raises(FormatError, match="not its own"):
            open_head(sealed(HEAD), key=key, keys=KEYS, public_key=PUBLIC)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "heads/",
        "heads/0000000000000000-00000003-00112233445566ff",
        "heads/0000000000000001-00000000-00112233445566ff",
        "heads/ffffffffffffffff-00000001-00112233445566ff",
        "heads/0000000000000001-00000001-00112233445566FF",
        "heads/0000000000000001-00000001-00112233445566f",
        "heads/0000000000000001-00000001-00112233445566ff\n",
        "segments/0000000000000001-00000001-00112233445566ff",
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(FormatError):
        parse_head_key(key)


@pytest.mark.parametrize(
    ("counter", "epoch", "writer"),
    [(0, 1, WRITER), (2**63, 1, WRITER), (1, 0, WRITER), (1, 2**32, WRITER), (1, 1, WRITER[1:])],
)
def test_keys_out_of_range_are_not_made(counter: int, epoch: int, writer: bytes) -> None:
    with pytest.raises(LimitError):
        head_key(counter=counter, epoch=epoch, writer=writer)


HEAD_CHANGES: dict[str, Change] = {
    "unknown field": lambda body: body.update(more=1),
    "missing field": lambda body: body.pop("position"),
    "counter 0": lambda body: body.update(counter=0),
    "counter 1 with previous": lambda body: body.update(counter=1),
    "counter 2 without previous": lambda body: body.update(previous=""),
    "previous short": lambda body: body.update(previous="00"),
    "epoch 0": lambda body: body.update(epoch=0),
    "epoch large": lambda body: body.update(epoch=2**32),
    "writer short": lambda body: body.update(writer="00" * 7),
    "writer upper case": lambda body: body.update(writer="AA" * 8),
    "sequence of another segment": lambda body: body.update(sequence=1),
    "segment key of a checkpoint": lambda body: body.update(segment_key=body["checkpoint"], sequence=3),
    "segment key with a path": lambda body: body.update(segment_key="../../etc/passwd"),
    "segment without digest": lambda body: body.update(segment_digest=""),
    "segment without size": lambda body: body.update(segment_size=0),
    "segment too large": lambda body: body.update(segment_size=16 * 1024 * 1024 + 1),
    "digest without segment": lambda body: body.update(segment_key=""),
    "negative position": lambda body: body.update(position=-1),
    "checkpoint without digest": lambda body: body.update(checkpoint_digest=""),
    "digest without checkpoint": lambda body: body.update(checkpoint=""),
    "checkpoint key of a segment": lambda body: body.update(checkpoint=body["segment_key"]),
    "header generation 0": lambda body: body.update(header_generation=0),
    "no header hash": lambda body: body.update(header_hash=""),
    "number as text": lambda body: body.update(journal_sequence="99"),
}


@pytest.mark.parametrize("change", HEAD_CHANGES.values(), ids=HEAD_CHANGES.keys())
def test_what_a_head_may_not_say(change: Change) -> None:
    body: dict[str, Any] = dict(HEAD.to_body())
    change(body)
    with pytest.raises((FormatError, LimitError)):
        Head.from_body(body)


LEASE_CHANGES: dict[str, Change] = {
    "unknown field": lambda body: body.update(host="pc"),
    "missing field": lambda body: body.pop("box"),
    "writer short": lambda body: body.update(writer="00"),
    "epoch 0": lambda body: body.update(epoch=0),
    "parent short": lambda body: body.update(parent="00" * 31),
    "counter negative": lambda body: body.update(counter=-1),
    "released 2": lambda body: body.update(released=2),
    "released true": lambda body: body.update(released=True),
    "period 0": lambda body: body.update(period_ms=0),
    "period of years": lambda body: body.update(period_ms=10**12),
    "box short": lambda body: body.update(box="00" * 27),
    "box long": lambda body: body.update(box="00" * 3000),
}


@pytest.mark.parametrize("change", LEASE_CHANGES.values(), ids=LEASE_CHANGES.keys())
def test_what_a_lease_may_not_say(change: Change) -> None:
    body: dict[str, Any] = dict(LEASE.to_body())
    change(body)
    with pytest.raises((FormatError, LimitError)):
        Lease.from_body(body)


@pytest.mark.parametrize(
    "body",
    [
        {"store": "home"},
        {"store": "home", "instance": "20" * 15},
        {"store": "a/b", "instance": "20" * 16},
        {"store": 1, "instance": "20" * 16},
        [],
    ],
)
def test_what_an_instance_may_not_say(body: object) -> None:
    with pytest.raises((FormatError, LimitError)):
        Instance.from_body(body)


def test_the_lease_box_hides_and_binds_its_holder() -> None:
    holder = LeaseHolder(host="pc-étude", since_ns=5)
    box = seal_lease_box(holder, keys=KEYS, nonce=b"\x40" * 12)
    assert box[:12] == b"\x40" * 12
    assert b"pc-" not in box
    assert open_lease_box(box, keys=KEYS) == holder
    assert len(Lease.from_body(replace(LEASE, box=box).to_body()).box) == len(box)
    for offset in range(len(box)):
        changed = bytearray(box)
        changed[offset] ^= 1
        with pytest.raises(AuthenticationError):
            open_lease_box(bytes(changed), keys=KEYS)
    with pytest.raises(AuthenticationError):
        open_lease_box(box, keys=VolumeKeys.derive(KEY_SET.root, volume=bytes(16), generation=1))


def test_lease_boxes_out_of_range() -> None:
    with pytest.raises(LimitError):
        seal_lease_box(LeaseHolder(host="pc", since_ns=5), keys=KEYS, nonce=bytes(11))
    with pytest.raises(LimitError):
        seal_lease_box(LeaseHolder(host="x" * 256, since_ns=5), keys=KEYS, nonce=bytes(12))
    with pytest.raises(FormatError):
        seal_lease_box(LeaseHolder(host="a\nb", since_ns=5), keys=KEYS, nonce=bytes(12))
    for size_bytes in (0, 27, 5000):
        with pytest.raises(LimitError):
            open_lease_box(bytes(size_bytes), keys=KEYS)
    longest = LeaseHolder(host="\U0001f512" * 63, since_ns=2**63 - 1)
    box = seal_lease_box(longest, keys=KEYS, nonce=bytes(12))
    assert open_lease_box(replace(LEASE, box=box).box, keys=KEYS) == longest
    replace(LEASE, box=box).to_body()
