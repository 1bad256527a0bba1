"""cli/headers.py: what is unlocked is the newest header, here or afar, that the writer signed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorfs.cli.config import StoreConfig, TokenConfig, VolumeConfig, VolumePaths
from mirrorfs.cli.headers import find_header
from mirrorfs.cli.unlock import Unlocked, check_pinned
from mirrorfs.errors import AuthenticationError, ChainError, StoreUnavailable
from mirrorfs.format.header import (
    StoreEntry,
    VolumeHeader,
    header_key,
    parse_header,
    seal_header,
    verify_header,
    verify_successor,
)
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import KeySet
from mirrorfs.keys.rotation import rotate_keys
from tests.support.volumes import HEADER, KEY_SET, KEYS, ended

STRANGER = KeySet(root=KEY_SET.root, writer=b"\x77" * 32, pruner=b"\x03" * 32, drill=b"\x04" * 32)
FIRST = seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer)


def header(generation: int, **fields: object) -> VolumeHeader:
    """A later generation, on which another PC added a store."""
    stores = (*HEADER.stores, StoreEntry(name="usb", instance=b"\x22" * 16))
    previous = hashlib.sha256(FIRST).digest()
    return replace(HEADER, generation=generation, previous=previous, stores=stores, **fields)  # type: ignore[arg-type]


def newer(generation: int) -> bytes:
    return seal_header(header(generation), keys=KEYS, seed=KEY_SET.writer)


def planted(generation: int) -> bytes:
    """Whoever has the root key but not the writer's, a follower, makes one with keys of his own."""
    return seal_header(
        header(generation, public_keys=STRANGER.public_keys()), keys=KEYS, seed=STRANGER.writer
    )


def with_the_writers_key(generation: int) -> bytes:
    """It names the writer's key, and another one signed it."""
    return seal_header(header(generation), keys=KEYS, seed=STRANGER.writer)


def of_another_root(generation: int) -> bytes:
    keys = VolumeKeys.derive(b"\x55" * 32, volume=HEADER.volume, generation=1)
    return seal_header(header(generation, fingerprint=keys.fingerprint), keys=keys, seed=KEY_SET.writer)


class Practice:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = VolumePaths("practice", root / "practice.toml", root / "state")
        self.config = VolumeConfig(
            HEADER.volume,
            KEYS.fingerprint,
            tuple(StoreConfig(one.name, f"file://{root / one.name}", one.instance) for one in HEADER.stores),
            (TokenConfig("pkcs11:token=x"),),
        )

    def put(self, place: str, generation: int, data: bytes) -> None:
        path = self.root / place / header_key(generation, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    async def found(self) -> bytes:
        return await find_header(self.paths, self.config)


@pytest.fixture
def it(tmp_path: Path) -> Practice:
    practice = Practice(tmp_path)
    for place in ("state/objects", "home", "s3"):
        practice.put(place, 1, FIRST)
    return practice


async def test_what_is_here_when_nothing_is_newer(it: Practice) -> None:
    assert await it.found() == FIRST


@pytest.mark.parametrize("place", ["home", "s3"])
async def test_a_newer_one_on_one_store_is_taken(place: str, it: Practice) -> None:
    it.put(place, 2, newer(2))
    it.put(place, 4, newer(4))
    found = await it.found()
    assert found == newer(4)
    assert verify_header(found, KEY_SET)[0].generation == 4


@pytest.mark.parametrize("forge", [planted, with_the_writers_key, of_another_root])
async def test_one_that_the_writer_did_not_sign_is_not(forge: Callable[[int], bytes], it: Practice) -> None:
    it.put("home", 9, forge(9))
    assert await it.found() == FIRST
    it.put("s3", 2, newer(2))
    assert await it.found() == newer(2)


async def test_rotten_and_misnamed_ones_are_not(it: Practice) -> None:
    it.put("home", 3, newer(3))
    rotten = it.root / "home" / header_key(3, newer(3))
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"\0")
    it.put("s3", 5, newer(4))
    assert await it.found() == FIRST


async def test_an_older_one_is_not(it: Practice) -> None:
    it.put("state/objects", 3, newer(3))
    it.put("home", 2, newer(2))
    assert await it.found() == newer(3)


async def test_stores_that_are_away_leave_what_is_here(it: Practice) -> None:
    for place in ("home", "s3"):
        (it.root / place).rename(it.root / f"{place}.away")
    assert await it.found() == FIRST
    (it.root / "state").rename(it.root / "state.lost")
    with pytest.raises(StoreUnavailable):
        await it.found()


async def test_without_local_state_the_newest_of_this_root_is_taken(it: Practice) -> None:
    (it.root / "state").rename(it.root / "state.lost")
    it.put("home", 2, newer(2))
    it.put("s3", 9, of_another_root(9))
    assert await it.found() == newer(2)


def test_verify_successor() -> None:
    assert verify_successor(newer(2), known=HEADER).generation == 2
    for forge in (planted, with_the_writers_key, of_another_root):
        with pytest.raises(AuthenticationError):
            verify_successor(forge(2), known=HEADER)


# --- headers with newer keys -------------------------------------------------------------------


def rotated(by: KeySet = KEY_SET, *, base: bytes = FIRST) -> bytes:
    """The next key generation, made by whoever has these keys."""
    slots = tuple(replace(slot, boxed=b"") for slot in parse_header(base).slots)
    data, _ = rotate_keys(
        parse_header(base), base, KEYS, by, slots=slots, log_end=ended(7), checkpoint=None, entropy=os.urandom
    )
    return data


async def test_newer_keys_that_the_writer_made_are_taken_whatever_the_number(it: Practice) -> None:
    new = rotated()
    it.put("s3", 2, new)
    assert await it.found() == new
    # This PC has changed its header more often meanwhile: its numbers are higher.
    for generation in (2, 3):
        it.put("state/objects", generation, newer(generation))
    assert await it.found() == new
    it.put("state/objects", 2, new)
    assert await it.found() == new


async def test_who_has_the_old_keys_rotates_more_often(it: Practice) -> None:
    """The practice rotated once, and a thief twice: a PC with the first keys sees both, and takes neither."""
    slots = tuple(replace(slot, boxed=b"") for slot in parse_header(FIRST).slots)
    data, key_set = rotate_keys(
        HEADER, FIRST, KEYS, KEY_SET, slots=slots, log_end=ended(7), checkpoint=None, entropy=os.urandom
    )
    header, keys = verify_header(data, key_set)
    again, _ = rotate_keys(
        header, data, keys, key_set, slots=slots, log_end=ended(8), checkpoint=None, entropy=os.urandom
    )
    it.put("home", 3, again)
    assert await it.found() == again, "as long as it sees nothing else"
    it.put("s3", 2, rotated())
    with pytest.raises(ChainError, match="two headers"):
        await it.found()


async def test_of_two_with_one_number_the_one_that_is_here_stays(it: Practice) -> None:
    """Two PCs changed the header at once: neither takes the other's for its own, whatever the bytes."""
    ours = newer(2)
    theirs = seal_header(replace(header(2), stores=HEADER.stores[:1]), keys=KEYS, seed=KEY_SET.writer)
    for mine, other in ((ours, theirs), (theirs, ours)):
        shutil.rmtree(it.paths.headers)
        it.put("state/objects", 1, FIRST)
        it.put("state/objects", 2, mine)
        it.put("s3", 2, other)
        assert await it.found() == mine


async def test_newer_keys_count_before_higher_numbers_without_a_store_too(it: Practice) -> None:
    slots = tuple(replace(slot, boxed=b"") for slot in parse_header(FIRST).slots)
    data, new_set = rotate_keys(
        HEADER, FIRST, KEYS, KEY_SET, slots=slots, log_end=ended(7), checkpoint=None, entropy=os.urandom
    )
    for generation in (2, 3):
        it.put("state/objects", generation, newer(generation))
    it.put("state/objects", 2, data)
    for place in ("home", "s3"):
        shutil.rmtree(it.root / place)
    assert await it.found() == data

    def opened(one: bytes, key_set: KeySet) -> Unlocked:
        found, keys = verify_header(one, key_set)
        return Unlocked(one, found, key_set, keys, found.slots[0], b"")

    check_pinned(opened(data, new_set), it.config, it.paths)
    with pytest.raises(ChainError, match="older than the one seen here"):
        check_pinned(opened(newer(2), KEY_SET), it.config, it.paths)
    # A rotten one with a higher number was there: nobody knows of which keys.
    (it.paths.headers / f"00000009-{'0' * 32}").write_bytes(b"rotten")
    with pytest.raises(ChainError):
        check_pinned(opened(data, new_set), it.config, it.paths)


async def test_newer_keys_that_somebody_else_made_are_none(it: Practice) -> None:
    """A seat that may only read has the root key; another store has nothing."""
    it.put("s3", 2, rotated(STRANGER))
    assert await it.found() == FIRST
    forged = bytearray(rotated())
    forged[-100] ^= 1
    it.put("home", 2, bytes(forged))
    assert await it.found() == FIRST


async def test_two_rotations_of_the_same_keys_are_a_fork(it: Practice) -> None:
    it.put("home", 2, rotated())
    it.put("s3", 2, rotated())
    with pytest.raises(ChainError, match="two headers whose new keys"):
        await it.found()


async def test_without_local_state_the_newest_keys_are_taken(it: Practice) -> None:
    new = rotated()
    it.put("home", 2, new)
    it.put("s3", 2, newer(9))
    shutil.rmtree(it.paths.state)
    # What it names proves nothing before it is unlocked; then its chain must have the pinned keys in it.
    assert await it.found() in (new, newer(9))
    assert parse_header(await it.found()).key_generation == 2
