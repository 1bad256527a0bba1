"""`restore --repair`: what a restore met bad is good again in the stores, or they are as they were."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, mounted_volume

DEADLINE_S = 240
FILES = 12
CONTENTS = {
    f"letter {number}.pdf": random.Random(number).randbytes(40_000 + number) for number in range(FILES)
}


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    """A mounted volume with a segment and a head for each of some files."""
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        for name, data in CONTENTS.items():
            (volume.mountpoint / name).write_bytes(data)
            volume.flush()
        yield volume


def restore(
    volume: Mounted, target: Path, *options: str, stores: tuple[str, ...] = ("a", "b")
) -> subprocess.CompletedProcess[str]:
    """On another machine: without configuration and state. What it restores is whole."""
    urls = [f"--store=file://{volume.stores[name]}" for name in stores]
    environment = {name: value for name, value in volume.env.items() if not name.endswith("_HOME")}
    done = subprocess.run(
        [
            sys.executable, "-m", "mirrorfs", "restore", *urls, "--token=pkcs11:token=practice", "--yes",
            *options, str(target),
        ],
        env=environment | {"HOME": str(target.parent), "TMPDIR": str(target.parent)},
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert {path.name: path.read_bytes() for path in target.iterdir()} == CONTENTS
    # Neither index nor state is left anywhere.
    assert not list(target.parent.glob("mirrorfs-restore-*"))
    return done


def snapshot(place: Path, *, but: str = " ") -> dict[str, tuple[int, bytes]]:
    """Every file of a store: when it was written, and what is in it."""
    return {
        str(path.relative_to(place)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in place.rglob("*")
        if path.is_file() and path.name != but
    }


def objects(place: Path, *folders: str) -> list[Path]:
    return sorted(path for name in folders for path in (place / name).iterdir())


def harm(path: Path, kind: str) -> None:
    data = path.read_bytes()
    path.chmod(0o600)
    if kind == "flip":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :])
    elif kind == "truncate":
        os.truncate(path, len(data) // 3)
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes(len(data)))


def assert_all_good(volume: Mounted) -> None:
    """On the PC of the practice, which was unmounted meanwhile."""
    clean = volume.run("verify", volume.name, "--deep")
    assert clean.returncode == 0 and clean.stdout.count("all good") == 3, clean.stdout
    volume.mount()
    assert {path.name: path.read_bytes() for path in volume.mountpoint.iterdir()} == CONTENTS


def test_all_kinds_of_damage_in_both_stores(volume: Mounted, tmp_path: Path) -> None:
    volume.umount()
    draw = random.Random(7)
    names = [
        path.relative_to(volume.stores["a"]) for path in objects(volume.stores["a"], "segments", "heads")
    ]
    kinds = ["flip", "truncate", "delete", "zeros", "flip"]
    for number, name in enumerate(draw.sample(names, 10)):
        harm(volume.stores["ab"[number % 2]] / name, kinds[number // 2])
    said = restore(volume, tmp_path / "restored", "--repair", "--deep")
    assert "No store lacks anything now." in said.stdout and "not mended" not in said.stderr, said
    again = restore(volume, tmp_path / "again")
    assert " 0 warnings." in again.stdout and "damaged or missing" not in again.stdout, again
    assert_all_good(volume)


def test_what_was_met_is_mended_without_reading_everything(volume: Mounted, tmp_path: Path) -> None:
    volume.umount()
    chosen = random.Random(3).sample(objects(volume.stores["a"], "segments"), 8)
    for number, path in enumerate(chosen):
        # The log is read from the first store as long as that gives it; sizes come with the listings.
        if number < 4:
            harm(path, "zeros" if number % 2 else "delete")
        else:
            harm(volume.stores["b"] / "segments" / path.name, "truncate")
    said = restore(volume, tmp_path / "restored", "--repair")
    assert "No store lacks anything now." in said.stdout, said
    assert_all_good(volume)


def test_nothing_is_written_while_another_writer_has_the_volume(volume: Mounted, tmp_path: Path) -> None:
    for number, path in enumerate(objects(volume.stores["a"], "segments")[2:7]):
        harm(path if number % 2 else volume.stores["b"] / "segments" / path.name, "zeros")
    before = {name: snapshot(place, but="lease") for name, place in volume.stores.items()}
    said = restore(volume, tmp_path / "restored", "--repair")
    assert "The stores were not repaired: " in said.stderr and "in use" in said.stderr, said
    assert {name: snapshot(place, but="lease") for name, place in volume.stores.items()} == before
    (volume.mountpoint / "more").write_bytes(b"the mount goes on")
    volume.flush()
    assert volume.status()["light"] != "at-risk"


@pytest.mark.parametrize("options", [(), ("--repair",)], ids=["without it", "one store alone"])
def test_nothing_is_written(volume: Mounted, tmp_path: Path, options: tuple[str, ...]) -> None:
    volume.umount()
    harm(objects(volume.stores["b"], "segments")[3], "zeros")
    before = {name: snapshot(place) for name, place in volume.stores.items()}
    said = restore(volume, tmp_path / "restored", *options, stores=("a",) if options else ("b", "a"))
    assert ("were not repaired: store b of the volume was not given" in said.stderr) == bool(options), said
    assert {name: snapshot(place) for name, place in volume.stores.items()} == before
