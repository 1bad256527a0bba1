"""mirrorfs store: one more, one less, one that was wiped; each new store brings everything back alone."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.mounted import Mounted, mounted_volume

DATA = random.Random(6).randbytes(3_000_000)


def restored(volume: Mounted, place: Path, target: Path) -> bytes:
    done = subprocess.run(
        [
            sys.executable, "-m", "mirrorfs", "restore", f"--store=file://{place}",
            "--token=pkcs11:token=practice", "--yes", str(target),
        ],
        env=volume.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (target / "image.dcm").read_bytes()


def test_add_and_remove(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    usb = tmp_path / "usb"
    with mounted_volume(tmp_path / "volume") as volume:
        (volume.mountpoint / "image.dcm").write_bytes(DATA)
        assert volume.run("store", "add", volume.name, f"usb=file://{usb}").returncode == 6, "mounted"
        volume.umount()
        assert volume.run("store", "add", volume.name, f"usb=file://{usb}").returncode != 0, "no directory"
        assert volume.run("store", "add", volume.name, f"b=file://{usb}").returncode == 2
        assert volume.run("store", "add", volume.name, f"c=file://{volume.stores['a']}").returncode == 2
        volume.must("store", "add", volume.name, f"usb=file://{usb}", "--create-store")
        names = [line.split()[0] for line in volume.must("store", "list", volume.name).splitlines()]
        assert names == ["a", "b", "usb"]
        volume.mount()
        volume.flush()
        assert [store["name"] for store in volume.status()["stores"]] == ["a", "b", "usb"]
        assert restored(volume, usb, tmp_path / "from usb") == DATA
        volume.umount()
        volume.must("store", "remove", volume.name, "b")
        assert volume.run("store", "remove", volume.name, "usb").returncode == 2, "the last but one"
        volume.mount()
        (volume.mountpoint / "later").write_bytes(b"x")
        volume.flush()
        assert [store["name"] for store in volume.status()["stores"]] == ["a", "usb"]
        assert restored(volume, volume.stores["b"], tmp_path / "from b") == DATA
        assert not (tmp_path / "from b" / "later").exists()


def test_a_store_that_was_wiped(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        (volume.mountpoint / "image.dcm").write_bytes(DATA)
        volume.umount()
        wiped = volume.stores["a"]
        shutil.rmtree(wiped)
        wiped.mkdir()
        said = volume.must("mount", volume.name, str(volume.mountpoint))
        assert "store replace" in said
        (volume.mountpoint / "new").write_bytes(b"work goes on")
        volume.wait_until(lambda: volume.store_status("a")["state"] == "missing", within_s=60)
        assert volume.status()["light"] == "at-risk"
        assert list(wiped.iterdir()) == [], "nothing is sent to a place that is not the store"
        volume.must("umount", volume.name, "--no-wait")
        volume.must("store", "replace", volume.name, "a", f"file://{wiped}")
        volume.mount()
        volume.flush()
        assert volume.status()["light"] == "protected"
        assert restored(volume, wiped, tmp_path / "restored") == DATA
        assert (tmp_path / "restored" / "new").read_bytes() == b"work goes on"
        assert volume.run("verify", volume.name, "--deep").returncode == 0


def test_a_disk_that_is_plugged_in_again(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        (volume.mountpoint / "image.dcm").write_bytes(DATA)
        volume.umount()
        place, away = volume.stores["a"], tmp_path / "unplugged"
        place.rename(away)
        place.mkdir()
        volume.mount()
        (volume.mountpoint / "new").write_bytes(b"written meanwhile")
        volume.wait_until(lambda: volume.store_status("a")["state"] == "missing", within_s=60)
        place.rmdir()
        away.rename(place)
        volume.wait_until(lambda: volume.status()["light"] == "protected", within_s=120)
        assert restored(volume, place, tmp_path / "restored") == DATA
