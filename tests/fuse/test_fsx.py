"""The exerciser of scripts/fsx: it finds what is wrong, and nothing on the filesystems under test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.fsx_exerciser import Exerciser, Wrong
from tests.support.mounted import mounted_volume

SIZE = 300_000
OPERATIONS = 6000


def test_every_byte_is_right(mountpoint: Path) -> None:
    exerciser = Exerciser(mountpoint / "file", 1, size_max=SIZE)
    exerciser.run(OPERATIONS)
    exerciser.close()


def test_every_byte_is_right_over_remounts(tmp_path: Path) -> None:
    with mounted_volume(tmp_path) as volume:

        def remount() -> None:
            volume.umount("--no-wait")
            volume.mount()

        exerciser = Exerciser(volume.mountpoint / "file", 2, size_max=SIZE, remount=remount)
        exerciser.run(900, remount_every=300)
        exerciser.close()


def test_a_seed_replays_a_run(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        exerciser = Exerciser(tmp_path / name, 3, size_max=SIZE)
        exerciser.run(500)
        exerciser.close()
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("fault", ["lost write", "late write", "lost truncate", "flipped bit", "short read"])
def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    count = 0
    pwrite, ftruncate, pread = os.pwrite, os.ftruncate, os.pread
    late: list[tuple[int, bytes, int]] = []

    def is_time() -> bool:
        nonlocal count
        count += 1
        return count >= 100 and count % 10 == 0

    def faulty_pwrite(fd: int, data: bytes, offset: int) -> int:
        for held in late:
            pwrite(*held)
        late.clear()
        if fault == "lost write" and is_time():
            return len(data)
        if fault == "late write" and is_time():
            late.append((fd, pread(fd, len(data), offset), offset))
        if fault == "flipped bit" and is_time():
            data = data[:-1] + bytes((data[-1] ^ 1,))
        return pwrite(fd, data, offset)

    def faulty_ftruncate(fd: int, size: int) -> None:
        if fault == "lost truncate" and is_time():
            return
        ftruncate(fd, size)

    def faulty_pread(fd: int, size: int, offset: int) -> bytes:
        found = pread(fd, size, offset)
        return found[:-1] if fault == "short read" and found and is_time() else found

    monkeypatch.setattr(os, "pwrite", faulty_pwrite)
    monkeypatch.setattr(os, "ftruncate", faulty_ftruncate)
    monkeypatch.setattr(os, "pread", faulty_pread)
    exerciser = Exerciser(tmp_path / "file", 4, size_max=SIZE)
    with pytest.raises(Wrong, match="Operation"):
        exerciser.run(20_000)
    exerciser.close()
    assert count >= 100
