"""The ransomware sense on a real volume: what encryptors and honest programs do, through the engine."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.core.sense import LIMIT, Burst
from mirrorfs.core.signatures import START_BYTES, Start, start_of
from mirrorfs.engine.bursts import STATE_PATH, KnownBurst, pinned_position, read_bursts
from mirrorfs.engine.local import LocalVolume
from mirrorfs.errors import DiskFull, FormatError
from mirrorfs.format.limits import ROOT_INODE
from tests.support.built_volume import BuiltVolume

FILES = LIMIT + 10
FOUND = pytest.mark.expects_warnings("replaced by what looks encrypted")


class Folder:
    """The root directory of a volume, as programs use it."""

    def __init__(self, volume: LocalVolume) -> None:
        self.fs = volume.filesystem
        self.volume = volume

    async def save(self, name: str, data: bytes) -> int:
        inode = self.fs.create(ROOT_INODE, name.encode(), mode=0o100644, uid=0, gid=0).inode
        await self.write(inode, 0, data)
        return inode

    async def write(self, inode: int, offset: int, data: bytes) -> None:
        self.fs.opened(inode, writable=True)
        await self.fs.write(inode, offset, data)
        self.fs.released(inode, writable=True)

    async def read(self, inode: int) -> bytes:
        return await self.fs.read(inode, 0, self.fs.getattr(inode).size)

    def remove(self, name: str) -> None:
        self.fs.forgotten(self.fs.unlink(ROOT_INODE, name.encode()).inode)

    def rename(self, name: str, new: str) -> None:
        replaced = [row for row in self.names() if row[1] == new]
        self.fs.rename(ROOT_INODE, name.encode(), new_parent=ROOT_INODE, new_name=new.encode())
        for inode, _ in replaced:
            self.fs.forgotten(inode)

    def names(self) -> list[tuple[int, str]]:
        rows = self.fs.readdir(ROOT_INODE, after_cookie=0, limit=10_000)
        return [(row.inode, row.name.decode()) for row in rows]


def letter(number: int, size: int) -> bytes:
    """Text that compresses as text does."""
    word = zlib.crc32(b"%d" % number)
    return b"".join([b"Findings %d: %08x on day %d\n" % (n, word * n, number) for n in range(size // 30)])


def noise(size: int) -> bytes:
    """Noise that does not begin, by chance, as a known kind of file does."""
    while start_of((data := os.urandom(size))[:START_BYTES]) is Start.KNOWN:
        pass
    return data


def photo(size: int) -> bytes:
    return bytes.fromhex("ffd8ffe000104a46494600010101004800480000ffdb0043") + noise(size)


async def in_place(folder: Folder, inode: int, name: str) -> None:
    data = await folder.read(inode)
    await folder.write(inode, 0, noise(len(data)))


async def in_part(folder: Folder, inode: int, name: str) -> None:
    """Every other block of 64 KiB."""
    data = await folder.read(inode)
    for offset in range(0, len(data), 128 * 1024):
        await folder.write(inode, offset, noise(min(64 * 1024, len(data) - offset)))


async def in_place_and_renamed(folder: Folder, inode: int, name: str) -> None:
    await in_place(folder, inode, name)
    folder.rename(name, f"{name}.locked")


async def beside_it(folder: Folder, inode: int, name: str) -> None:
    data = await folder.read(inode)
    await folder.save(f"{name}.enc", noise(len(data) + 16))
    folder.remove(name)


async def over_it(folder: Folder, inode: int, name: str) -> None:
    data = await folder.read(inode)
    await folder.save("tmp", noise(len(data) + 16))
    folder.rename("tmp", name)


Attack = Callable[[Folder, int, str], Awaitable[None]]
ATTACKS: list[Attack] = [in_place, in_part, in_place_and_renamed, beside_it, over_it]


def burst_of(volume: LocalVolume) -> Burst | None:
    return volume.bursts.open


async def fill(folder: Folder) -> dict[str, bytes]:
    """Letters, half of them small, and photos."""
    files = {f"letter {n}.txt": letter(n, 300_000 if n % 2 else 3000) for n in range(FILES // 2)}
    files |= {f"photo {n}.jpg": photo(30_000 + n) for n in range(FILES - len(files))}
    for name, data in files.items():
        await folder.save(name, data)
    await folder.fs.sync()
    return files


@FOUND
@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_encryptor_is_found(tmp_path: Path, attack: Attack) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        await fill(Folder(volume))
    async with built.session() as volume:
        folder = Folder(volume)
        # What is read now and then, as by an indexer, makes no difference.
        await volume.filesystem.sync()
        clean = volume.committer.durable_position, volume.committer.durable_ns
        for inode, name in folder.names():
            assert volume.bursts.open is None or volume.bursts.open.files >= LIMIT
            await attack(folder, inode, name)
            await volume.filesystem.fsync(inode)
        await volume.filesystem.sync()
        burst = volume.bursts.open
        assert burst is not None and burst.files == FILES
        assert (burst.clean_position, burst.clean_ns) == clean
        assert burst.last_position == volume.committer.durable_position
    # The next process knows of it, and goes on with it.
    assert read_bursts(built.world.disk) == [KnownBurst(burst, None)]
    async with built.session() as volume:
        assert burst_of(volume) == burst
        assert pinned_position(read_bursts(built.world.disk)) == clean[0]
        assert await volume.bursts.clear() == burst
        assert burst_of(volume) is None and await volume.bursts.clear() is None
    (known,) = read_bursts(built.world.disk)
    assert known.burst == burst and known.cleared_ns is not None
    assert pinned_position([known]) is None
    async with built.session() as volume:
        assert volume.bursts.open is None


async def test_honest_work_is_not(tmp_path: Path) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        folder = Folder(volume)
        files = await fill(folder)
        for number in range(FILES):
            await folder.save(f"import {number}.gpg", noise(20_000))
            await folder.save(f"import {number}.jpg", photo(20_000))
        for inode, name in folder.names():
            if name.endswith("jpg"):
                await folder.read(inode)
                folder.fs.setattr(inode, size=0)
                await folder.write(inode, 0, photo(25_000))
            elif name.endswith("txt"):
                await folder.save(f"{name}.gz", b"\x1f\x8b\x08\0" + noise(len(files[name]) // 3))
                folder.remove(name)
            await folder.fs.fsync(inode)
        await folder.fs.sync()
        assert volume.bursts.open is None and not volume.state.sense._counted
    assert read_bursts(built.world.disk) == []


BURST = Burst(5, 50, 9, 90, LIMIT)
GOOD: dict[str, Any] = {"version": 1, "bursts": [{**asdict(BURST), "cleared_ns": None}]}
DAMAGED: list[Any] = [
    [], {}, {**GOOD, "version": 2}, {"version": 1}, {"version": 1, "bursts": [{}]},
    {"version": 1, "bursts": 3},
    {"version": 1, "bursts": [{**asdict(BURST), "cleared_ns": "now"}]},
    {"version": 1, "bursts": [{**asdict(BURST), "clean_position": True, "cleared_ns": None}]},
]  # fmt: skip


@pytest.mark.parametrize("found", DAMAGED)
def test_a_damaged_list_is_told(tmp_path: Path, found: Any) -> None:
    built = BuiltVolume(tmp_path / "volume")
    (built.root / STATE_PATH).write_text(json.dumps(GOOD))
    assert read_bursts(built.world.disk) == [KnownBurst(BURST, None)]
    (built.root / STATE_PATH).write_text(json.dumps(found))
    with pytest.raises(FormatError):
        read_bursts(built.world.disk)


@pytest.mark.expects_warnings("begun anew")
async def test_a_damaged_list_stops_no_mount(tmp_path: Path) -> None:
    built = BuiltVolume(tmp_path / "volume")
    (built.root / STATE_PATH).write_bytes(b"\0\xff")
    async with built.session() as volume:
        assert volume.bursts.open is None


async def test_what_cannot_be_written_down_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = BuiltVolume(tmp_path / "volume")
    (built.root / STATE_PATH).write_text(json.dumps(GOOD))

    def full(path: str, data: bytes) -> None:
        raise DiskFull("The local disk is full.")

    async with built.session() as volume:
        with monkeypatch.context() as patch:
            patch.setattr(built.world.disk, "write_whole", full)
            with pytest.raises(DiskFull):
                await volume.bursts.clear()
        assert volume.bursts.open == BURST
    assert read_bursts(built.world.disk) == [KnownBurst(BURST, None)]
