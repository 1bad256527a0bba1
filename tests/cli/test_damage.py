"""Damaged bytes, full disks and stores that misbehave, on a volume mounted by the real command line."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.format.frame import parse_frame_header
from mirrorfs.format.segment import HEADER_SIZE
from tests.support.mounted import Mounted, mounted_volume

MIB = 1024 * 1024
DEADLINE_S = 60.0


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        yield volume


@contextmanager
def small_disk(path: Path, size_mib: int) -> Iterator[Path]:
    """A filesystem of its own, of that size."""
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "small", str(path)], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"in vain: {what}"
        time.sleep(0.1)


def write(path: Path, data: bytes) -> None:
    """Write and fsync."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def filled(volume: Mounted) -> dict[str, bytes]:
    """Put files into the volume so that each is in a segment of its own, on all stores; then unmount."""
    draw = random.Random(4)
    files = {f"file-{number}": draw.randbytes(2 * MIB) for number in range(3)}
    for name, data in files.items():
        write(volume.mountpoint / name, data)
        volume.flush()
    volume.umount()
    return files


def largest_segments(folder: Path) -> list[Path]:
    """The segments that hold the three files, in their order."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 2 * MIB]
    assert len(found) == 3
    return sorted(found)


def large_frame(segment: Path) -> tuple[int, int]:
    """(offset, size) of the first large frame; which it is of is sealed, but only data is that large."""
    data, position = segment.read_bytes(), HEADER_SIZE
    while (size := parse_frame_header(data, position=position).size) < 64 * 1024:
        position += size
    return position, size


def flip(path: Path, offset: int) -> None:
    """Turn one bit over."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def contents(volume: Mounted, names: dict[str, bytes]) -> dict[str, bytes]:
    return {name: (volume.mountpoint / name).read_bytes() for name in names}


def refused(path: Path) -> int:
    """The errno with which reading a file fails."""
    with pytest.raises(OSError) as caught:
        path.read_bytes()
    return caught.value.errno or 0


# --- damaged objects -------------------------------------------------------------------------


def test_flipped_bit_in_a_local_segment(volume: Mounted) -> None:
    files = filled(volume)
    segment = largest_segments(volume.state / "objects" / "segments")[1]
    offset, size = large_frame(segment)
    flip(segment, offset + size // 2)
    volume.mount()
    assert contents(volume, files) == files
    (line,) = [line for line in volume.warnings() if segment.name in line]
    assert "WARNING" in line and f"segments/{segment.name}, offset {offset}" in line
    volume.umount()


def test_flipped_bit_in_one_store_and_no_local_copy(volume: Mounted) -> None:
    files = filled(volume)
    segment = largest_segments(volume.state / "objects" / "segments")[1]
    offset, size = large_frame(segment)
    flip(largest_segments(volume.stores["a"] / "segments")[1], offset + size // 2)
    segment.unlink()
    volume.mount()
    assert contents(volume, files) == files
    warnings = [line for line in volume.warnings() if segment.name in line]
    assert any(f"Store a, object segments/{segment.name}, offset {offset}" in line for line in warnings)
    assert not any("Store b" in line for line in warnings)
    volume.umount()


def test_no_good_copy_of_one_frame(volume: Mounted) -> None:
    """Exactly the file that it belongs to cannot be read; everything else goes on."""
    files = filled(volume)
    segment = largest_segments(volume.state / "objects" / "segments")[1]
    offset, size = large_frame(segment)
    for place in volume.stores.values():
        flip(largest_segments(place / "segments")[1], offset + size // 2)
    segment.unlink()
    volume.mount()
    assert refused(volume.mountpoint / "file-1") == errno.EIO
    assert any("ERROR" in line and segment.name in line for line in volume.warnings())
    del files["file-1"]
    assert contents(volume, files) == files
    write(volume.mountpoint / "new", b"written")
    volume.umount()


@pytest.mark.parametrize("damage", ["truncated", "swapped", "empty", "foreign"])
def test_other_damage_of_a_store(volume: Mounted, damage: str) -> None:
    files = filled(volume)
    first, second, third = largest_segments(volume.stores["a"] / "segments")
    if damage == "truncated":
        os.truncate(second, HEADER_SIZE + 1000)
    elif damage == "swapped":
        data = second.read_bytes()
        second.write_bytes(third.read_bytes())
        third.write_bytes(data)
    elif damage == "empty":
        os.truncate(second, 0)
    else:
        second.write_bytes(random.Random(1).randbytes(2 * MIB))
    for segment in largest_segments(volume.state / "objects" / "segments"):
        segment.unlink()
    volume.mount()
    assert contents(volume, files) == files
    warnings = "\n".join(volume.warnings())
    assert f"Store a, object segments/{second.name}" in warnings
    assert f"Store a, object segments/{first.name}" not in warnings
    assert "Store b" not in warnings
    volume.umount()


def header_objects(root: Path) -> list[Path]:
    return [path for path in (root / "header").iterdir() if path.is_file()]


def test_garbage_headers(volume: Mounted) -> None:
    """One good header anywhere is enough; none at all is said, and nothing is touched."""
    files = filled(volume)
    places = [volume.state / "objects", *volume.stores.values()]
    good = {path: path.read_bytes() for place in places for path in header_objects(place)}
    assert len(good) == 3
    for kept in good:
        for path, data in good.items():
            path.write_bytes(data if path == kept else random.Random(2).randbytes(len(data)))
        volume.mount()
        assert contents(volume, files) == files
        volume.umount("--no-wait")
    for path, data in good.items():
        path.write_bytes(b"" if "store-a" in str(path) else random.Random(3).randbytes(len(data)))
    outcome = volume.run("mount", volume.name, str(volume.mountpoint))
    assert outcome.returncode in (4, 5), outcome.stdout
    assert "Traceback" not in outcome.stdout and outcome.stdout.strip()
    for path, data in good.items():
        path.write_bytes(data)
    volume.mount()
    assert contents(volume, files) == files
    volume.umount()


# --- a full local disk -----------------------------------------------------------------------


def fill_until_refused(folder: Path, draw: random.Random) -> dict[str, bytes]:
    """Write and fsync files until there is no space; those that were acknowledged."""
    kept: dict[str, bytes] = {}
    for number in range(1000):
        name, data = f"fill-{number:04d}", draw.randbytes(1 * MIB)
        try:
            write(folder / name, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return kept
        kept[name] = data
    raise AssertionError("the disk never got full")


def take_the_rest(disk: Path) -> None:
    """The last bytes go to another program."""
    with pytest.raises(OSError, match="No space"), (disk / "rest").open("wb") as rest:
        for _ in range(300):
            rest.write(bytes(MIB))


def test_full_local_disk(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    draw = random.Random(6)
    with small_disk(tmp_path / "disk", 200) as disk:
        (disk / "state").mkdir(mode=0o700)
        with mounted_volume(tmp_path / "volume", state_home=disk / "state") as volume:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(80 * MIB))
            files = fill_until_refused(volume.mountpoint, draw)
            assert len(files) >= 20
            # Reading, listing and removing go on, and writing goes on being refused.
            assert contents(volume, files) == files
            assert fill_until_refused(volume.mountpoint, draw) == {}
            assert os.statvfs(volume.mountpoint).f_bavail < 20 * MIB // 4096
            (volume.mountpoint / "fill-0000").unlink()
            del files["fill-0000"]
            # The last bytes go as well, as if another program took them.
            take_the_rest(disk)
            with pytest.raises(OSError) as caught:
                write(volume.mountpoint / "more", b"more")
            assert caught.value.errno == errno.ENOSPC
            assert contents(volume, files) == files
            # Space returns: everything goes on by itself.
            (disk / "rest").unlink()
            ballast.unlink()

            def accepts() -> bool:
                try:
                    write(volume.mountpoint / "after", b"after")
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error
                    return False
                return True

            eventually(accepts, "writing goes on after space returned")
            files["after"] = b"after"
            assert not volume.status()["local"]["full"]
            assert not (volume.mountpoint / "fill-0000").exists()
            assert contents(volume, files) == files
            volume.kill()
            volume.mount()
            assert contents(volume, files) == files
            volume.umount()
            volume.mount()
            assert contents(volume, files) == files
            volume.umount()


def test_recovery_on_a_full_disk_uses_the_reserve(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    draw = random.Random(9)
    with small_disk(tmp_path / "disk", 150) as disk:
        (disk / "state").mkdir(mode=0o700)
        with mounted_volume(tmp_path / "volume", state_home=disk / "state") as volume:
            files = {f"file-{number}": draw.randbytes(MIB) for number in range(20)}
            for name, data in files.items():
                write(volume.mountpoint / name, data)
            assert (volume.state / "reserve").exists()
            volume.kill()
            take_the_rest(disk)
            volume.mount()
            assert contents(volume, files) == files
            (disk / "rest").unlink()
            volume.umount()
            volume.mount()
            assert contents(volume, files) == files


def test_killed_while_the_local_disk_is_full(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    with small_disk(tmp_path / "disk", 150) as disk:
        (disk / "state").mkdir(mode=0o700)
        with mounted_volume(tmp_path / "volume", state_home=disk / "state") as volume:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(60 * MIB))
            files = fill_until_refused(volume.mountpoint, random.Random(8))
            volume.kill()
            volume.mount()
            assert contents(volume, files) == files
            ballast.unlink()
            eventually(
                lambda: os.statvfs(volume.mountpoint).f_bavail > 20 * MIB // 4096,
                "the space is seen to be back",
            )
            write(volume.mountpoint / "after", b"after")
            volume.umount()


# --- stores that cannot be written -----------------------------------------------------------


def written_while(volume: Mounted, name: str, *, state: str) -> None:
    """Write while a store cannot be: the mount goes on, and status says so."""
    write(volume.mountpoint / name, random.Random(name).randbytes(8 * MIB))
    eventually(lambda: volume.store_status("a")["state"] == state, f"store a is {state}")
    assert volume.store_status("a")["last_error"]
    assert volume.status()["light"] == "at-risk"
    eventually(lambda: volume.store_status("b")["pending_count"] == 0, "store b has everything")
    write(volume.mountpoint / f"{name}-more", b"more")


def assert_catches_up(volume: Mounted) -> None:
    volume.flush()
    status = volume.store_status("a")
    assert (status["state"], status["pending_count"], status["last_error"]) == ("up-to-date", 0, None)
    volume.umount()
    sizes = [
        {path.name: path.stat().st_size for path in (place / "segments").rglob("*") if path.is_file()}
        for place in volume.stores.values()
    ]
    assert sizes[0] == sizes[1] and sizes[0]


@pytest.fixture
def on_small_store(tmp_path: Path) -> Iterator[tuple[Mounted, Path]]:
    """A volume, mounted, and the small disk on which its store a lies."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "store-b").mkdir()
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk / "store-a").mkdir()
        stores = {"a": disk / "store-a", "b": tmp_path / "store-b"}
        with mounted_volume(tmp_path / "volume", stores=stores, mirror_delay_s=0.5) as volume:
            yield volume, disk


def test_full_store(on_small_store: tuple[Mounted, Path]) -> None:
    volume, disk = on_small_store
    with pytest.raises(OSError, match="No space"), (disk / "ballast").open("wb") as ballast:
        for _ in range(100):
            ballast.write(bytes(MIB))
    written_while(volume, "while full", state="full")
    (disk / "ballast").unlink()
    assert_catches_up(volume)


def test_read_only_store(on_small_store: tuple[Mounted, Path]) -> None:
    volume, disk = on_small_store
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    written_while(volume, "while read-only", state="denied")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_catches_up(volume)


def test_missing_store(on_small_store: tuple[Mounted, Path]) -> None:
    volume, disk = on_small_store
    hidden = disk / "elsewhere"
    volume.stores["a"].rename(hidden)
    written_while(volume, "while missing", state="unreachable")
    hidden.rename(volume.stores["a"])
    assert_catches_up(volume)


def test_store_missing_when_mounted(on_small_store: tuple[Mounted, Path]) -> None:
    volume, disk = on_small_store
    write(volume.mountpoint / "before", b"before")
    volume.umount()
    hidden = disk / "elsewhere"
    volume.stores["a"].rename(hidden)
    assert "a" in volume.mount()
    assert (volume.mountpoint / "before").read_bytes() == b"before"
    written_while(volume, "while missing", state="unreachable")
    hidden.rename(volume.stores["a"])
    assert_catches_up(volume)
