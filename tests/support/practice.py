"""A practice: any number of PCs and the two stores that they share, on trio's clock.

Each PC sees the stores through links of its own, so that one may be cut off while another is not.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError
from mirrorfs.errors import ReadOnlyVolume as ReadOnly
from mirrorfs.format.control import LEASE_KEY
from mirrorfs.format.frame import Kind
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.segment import check_sealed
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index
from tests.support.machine import write_file
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import HEADER, KEYS

SAID = (
    "cannot be (listed|read|asked)", "not held yet", "falling behind", "could not be given back",
    "does not answer",
)  # fmt: skip
"""What a PC says of stores that are away, for `expects_warnings`."""
FORKED = ("went on from an earlier state", "put back in time", "holds a later state", "taken over")
"""What a PC says that is fenced."""
LARGE = 30_000
"""Bytes of a file of `write_large`."""
FENCED_S = 3 * LEASE_PERIOD_S
"""So soon a writer that cannot go on is to know, once the stores answer."""


class Pc(VirtualPc):
    """One PC: a state directory and links to the stores."""

    def __init__(self, root: Path, links: list[SimulatedStore], *, seed: int) -> None:
        super().__init__(root, links, seed=seed)
        self.links = {link.name: link for link in links}

    def cut_off(self, *names: str) -> None:
        """Lose the way to these stores, or to all."""
        for name in names or self.links:
            self.links[name].outage = True

    def reconnect(self) -> None:
        """Have the way to all stores again."""
        for link in self.links.values():
            link.outage = False

    @asynccontextmanager
    async def until_killed(
        self, *, take_over: bool = False, wait: bool = True
    ) -> AsyncIterator[MountedVolume]:
        """Mount; at the end the process is killed. What comes after is `Practice.copy` of this one."""
        try:
            async with self.mounted(take_over=take_over, wait=wait) as volume:
                yield volume
                raise _Killed
        except* _Killed:
            pass

    async def refusal(self, *, take_over: bool = False) -> str:
        """Try to mount, and say with what words that is refused."""
        said: list[str] = []
        try:
            async with self.mounted(take_over=take_over, wait=False):
                pass
        except* MirrorfsError as group:
            said = [str(exc) for exc in _leaves(group)]
        if not said:
            pytest.fail(f"{self.root.name} mounted, which it must not")
        return said[0]


class Practice:
    """The stores, and where the PCs' state directories are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seed = 0
        self.places: dict[str, dict[str, bytes]] = {entry.name: {} for entry in HEADER.stores}

    def pc(self, name: str) -> Pc:
        """A PC of that name; that of an earlier one of it, if there was one, after its process ended."""
        self._seed += 1
        links = [
            SimulatedStore(store, seed=self._seed, objects=place) for store, place in self.places.items()
        ]
        return Pc(self._root / name, links, seed=self._seed)

    def new_pc(self) -> Pc:
        """One that nobody has used yet."""
        return self.pc(f"new {self._seed}")

    def copy(self, pc: Pc, name: str) -> Pc:
        """One with what there is of another's state now: a back-up, a clone, or what a kill left."""
        shutil.copytree(pc.root, self._root / name)
        return self.pc(name)

    def objects(self) -> dict[str, dict[str, bytes]]:
        """What the stores hold that is never changed, to be compared later."""
        return {
            store: {key: data for key, data in place.items() if key != LEASE_KEY}
            for store, place in self.places.items()
        }

    def lost(self, before: dict[str, dict[str, bytes]]) -> list[tuple[str, str]]:
        """Objects that are gone from a store or other than before: (store, key)."""
        return [
            (store, key)
            for store, objects in before.items()
            for key, data in objects.items()
            if self.places[store].get(key) != data
        ]


class _Killed(Exception):
    pass


def _leaves(group: BaseExceptionGroup[MirrorfsError]) -> list[MirrorfsError]:
    found: list[MirrorfsError] = []
    for exc in group.exceptions:
        found += _leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found


async def save(volume: MountedVolume, *names: bytes) -> None:
    """Write files of some bytes each, as a program does, and have them on the local disk."""
    for name in names:
        await write_file(volume, name, name * 300)
    await volume.filesystem.sync()


async def write_large(volume: MountedVolume, name: bytes) -> None:
    """Write a file that is a data frame of its own, and have it on the local disk."""
    await write_file(volume, name, Random(name).randbytes(LARGE))
    await volume.filesystem.sync()


async def check_large(volume: MountedVolume | ReadOnlyVolume, *names: bytes) -> None:
    """See that such files read as they were written."""
    for name in names:
        inode = volume.filesystem.lookup(ROOT_INODE, name).inode
        assert await volume.filesystem.read(inode, 0, LARGE) == Random(name).randbytes(LARGE)


def with_bad_data(data: bytes) -> bytes:
    """A sealed segment whose first data frame does not verify; all else does."""
    frames = check_sealed(data, KEYS, load_public_key(HEADER.public_keys.writer))[2].frames
    at = next(frame.offset for frame in frames if frame.kind == Kind.DATA) + 40
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def names_in(index: Index) -> list[bytes]:
    """Of the root directory, in order."""
    return sorted(row.name for row in index.list_dentries(ROOT_INODE, after_cookie=0, limit=1000))


def names(volume: MountedVolume) -> list[bytes]:
    """Of the root directory of a mounted volume, in order."""
    return sorted(row.name for row in volume.filesystem.readdir(ROOT_INODE, after_cookie=0, limit=1000))


async def fenced(volume: MountedVolume) -> None:
    """Wait until a volume is fenced, and see that nothing can be written there."""
    deadline_s = trio.current_time() + FENCED_S
    while volume.status().fenced is None or not volume.filesystem.read_only:
        assert trio.current_time() < deadline_s, "it goes on as if nothing were"
        await trio.sleep(1)
    with pytest.raises(ReadOnly):
        await save(volume, b"never")


async def seen_by_a_new_pc(practice: Practice) -> list[bytes]:
    """The names that a PC shows which has nothing but the stores."""
    pc = practice.new_pc()
    async with pc.mounted() as volume:
        return names(volume)
