"""SIGKILL of a mounted volume's daemon, at random moments and at awkward ones; model.py says what holds."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.drivers.local_disk import TEMPORARY_PREFIX
from mirrorfs.fuse.mount_table import is_stale
from tests.crash.model import look
from tests.crash.rounds import STALE, Rounds
from tests.support.mounted import Mounted, mounted_volume

KILLS = 8
MIB = 1024 * 1024
DEADLINE_S = 120.0


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        yield volume
        assert volume.warnings() == []


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def objects(folder: Path) -> dict[str, str]:
    """The objects of a log below a directory by key, with digests of their contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for stream in ("segments", "checkpoints", "heads")
        for path in (folder / stream).rglob("*")
        if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX)  # which a kill leaves
    }


def assert_stores_complete(volume: Mounted) -> None:
    local = objects(volume.state / "objects")
    assert local
    for place in volume.stores.values():
        assert objects(place) == local


def test_random_moments(volume: Mounted, tmp_path: Path) -> None:
    rounds = Rounds(volume, tmp_path, seed=2026)
    rounds.run(KILLS)
    assert rounds.totals.kills == KILLS
    assert rounds.totals.operations > 20 * KILLS
    before = look(volume.mountpoint)
    volume.umount()
    assert_stores_complete(volume)
    volume.mount()
    assert look(volume.mountpoint) == before


def test_stale_mount_is_cleaned_by_umount_too(volume: Mounted) -> None:
    write_synced(volume.mountpoint / "kept", b"kept")
    volume.kill()
    assert is_stale(volume.mountpoint)
    assert "dead mount" in volume.umount()
    assert not is_stale(volume.mountpoint)
    assert STALE not in volume.mount()
    assert (volume.mountpoint / "kept").read_bytes() == b"kept"


def test_kill_during_mount_and_recovery(volume: Mounted) -> None:
    """A recovery that is killed leaves what the next one needs, wherever it was."""
    draw = random.Random(7)
    expected = {}
    for turn in range(4):
        data = draw.randbytes(300_000)
        write_synced(volume.mountpoint / f"file-{turn}", data)
        (volume.mountpoint / f"directory-{turn}").mkdir()
        expected[f"file-{turn}"] = data
        volume.kill()
        if turn % 2:
            for path in volume.state.glob("index.db*"):
                path.unlink()
        with volume.start("mount", volume.name, str(volume.mountpoint)) as mounting:
            deadline_s = time.monotonic() + DEADLINE_S
            while not volume.daemon_pids():
                assert time.monotonic() < deadline_s
                time.sleep(0.005)
            # From before the keys arrive to after the mount answers.
            time.sleep(draw.random() * 1.2)
            volume.kill()
            mounting.kill()
            mounting.communicate(timeout=DEADLINE_S)
        volume.mount()
        found = look(volume.mountpoint)
        assert {name: found.contents[found.names[name]] for name in expected} == expected


def test_kill_during_umount(volume: Mounted) -> None:
    draw = random.Random(11)
    expected = {}
    for turn in range(4):
        data = draw.randbytes(4 * MIB)
        # Not synced: unmounting hands everything over before it may say so.
        (volume.mountpoint / f"plain-{turn}").write_bytes(data)
        write_synced(volume.mountpoint / f"file-{turn}", data[::-1])
        expected[f"file-{turn}"] = data[::-1]
        with volume.start("umount", volume.name) as unmounting:
            time.sleep(0.1 + draw.random() * 0.6)
            volume.kill()
            said, _ = unmounting.communicate(timeout=DEADLINE_S)
        if "every store holds all of it" in said:
            assert unmounting.returncode == 0
            expected[f"plain-{turn}"] = data
            assert_stores_complete(volume)
        volume.mount()
        found = look(volume.mountpoint)
        assert {name: found.contents[found.names[name]] for name in expected} == expected


def test_kill_while_uploading(volume: Mounted) -> None:
    """What was not sent is sent by the next mount, and stores never keep half an object under its name."""
    draw = random.Random(13)
    for turn in range(3):
        for part in range(5):
            write_synced(volume.mountpoint / f"file-{turn}-{part}", draw.randbytes(8 * MIB))
        with volume.start("flush", volume.name) as flushing:
            time.sleep(0.3 + draw.random() * 0.3)
            volume.kill()
            flushing.communicate(timeout=DEADLINE_S)
        local = objects(volume.state / "objects")
        for place in volume.stores.values():
            held = objects(place)
            assert held.items() <= local.items()
        volume.mount()
    volume.flush()
    assert {store["pending_count"] for store in volume.status()["stores"]} == {0}
    volume.umount()
    assert_stores_complete(volume)
