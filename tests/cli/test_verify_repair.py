"""verify and repair as people run them: damage in both stores is named, restored around, mended."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, mounted_volume

FILES = 24
HARMED = 6


def restore(volume: Mounted, target: Path) -> None:
    stores = [f"--store=file://{place}" for place in volume.stores.values()]
    done = subprocess.run(
        [
            sys.executable, "-m", "mirrorfs", "restore", *stores, "--token=pkcs11:token=practice", "--yes",
            str(target),
        ],
        env=volume.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def harm(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    kind = draw.choice(["flip", "truncate", "delete", "zeros"])
    path.chmod(0o600)
    if kind == "flip":
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    elif kind == "truncate":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes(len(data)))


def objects(place: Path) -> list[str]:
    folders = ("segments", "heads")
    return sorted(str(path.relative_to(place)) for name in folders for path in (place / name).iterdir())


@pytest.mark.parametrize("is_mounted", [True, False], ids=["mounted", "unmounted"])
def test_damage_in_both_stores(tmp_path: Path, is_mounted: bool) -> None:
    draw = random.Random(7)
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        contents = {f"letter {number}.pdf": draw.randbytes(40_000) for number in range(FILES)}
        for name, data in contents.items():
            (volume.mountpoint / name).write_bytes(data)
            volume.flush()
        if not is_mounted:
            volume.umount()
        assert volume.run("verify", volume.name).returncode == 0
        places = list(volume.stores.items())
        keys = objects(places[0][1])
        assert keys == objects(places[1][1])
        chosen = draw.sample(keys, 2 * HARMED)
        expected = set()
        for number, key in enumerate(chosen):
            name, place = places[number % 2]
            harm(place / key, draw)
            expected.add((name, key))

        found = volume.run("verify", volume.name, "--deep", "--json")
        assert found.returncode == 5
        report = json.loads(found.stdout[found.stdout.index("{\n") :])
        assert {(bad["place"], bad["key"]) for bad in report["bad"]} == expected
        assert report["deep"] is True
        assert [place["unreachable"] for place in report["places"]] == [None, None, None]

        if is_mounted:
            told = volume.status()
            assert told["light"] == "at-risk" and "Run `mirrorfs repair`" in told["reason"]
            assert sum(store["damaged_count"] for store in told["stores"]) == 2 * HARMED
        restore(volume, tmp_path / "before repair")
        for name, data in contents.items():
            assert (tmp_path / "before repair" / name).read_bytes() == data

        repaired = volume.run("repair", volume.name)
        assert repaired.returncode == 0, repaired.stdout
        assert f"{2 * HARMED} of {2 * HARMED} bad copies mended." in repaired.stdout
        if is_mounted:
            assert {store["damaged_count"] for store in volume.status()["stores"]} == {0}
        clean = volume.run("verify", volume.name, "--deep")
        assert clean.returncode == 0, clean.stdout
        assert clean.stdout.count("all good") == 3
        for _, place in places:
            assert set(objects(place)) >= set(keys)


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        (volume.mountpoint / "letter").write_bytes(b"x" * 100_000)
        volume.flush()
        assert volume.run("verify", volume.name, "--store", "nowhere").returncode == 2
        assert volume.run("verify", volume.name, "--sample", "much").returncode == 2
        sample = volume.run("verify", volume.name, "--sample", "5%")
        assert sample.returncode == 0
        assert "1 read in full" in sample.stdout
        name, place = next(iter(volume.stores.items()))
        place.rename(place.with_name("away"))
        away = volume.run("verify", volume.name)
        assert away.returncode in (4, 5)
        assert f"Store {name}" in away.stdout
        place.with_name("away").rename(place)
        assert volume.run("verify", volume.name, "--deep").returncode == 0


@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_a_store_whose_instance_document_is_bad(tmp_path: Path, harm: str) -> None:
    """It stops no mount; repair writes it anew, for what the store holds shows which one it is."""
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        (volume.mountpoint / "letter").write_bytes(b"x" * 100_000)
        volume.flush()
        volume.umount()
        name, place = next(iter(volume.stores.items()))
        document = place / "instance"
        document.chmod(0o600)
        data = document.read_bytes()
        if harm == "flip":
            document.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
        else:
            document.unlink()
        assert "mirrorfs repair" in volume.mount()
        (volume.mountpoint / "second").write_bytes(b"y" * 100_000)
        assert volume.status()["light"] == "at-risk"
        looked = volume.run("verify", volume.name)
        assert looked.returncode == 4 and f"Store {name}: " in looked.stdout
        repaired = volume.run("repair", volume.name)
        assert repaired.returncode == 0, repaired.stdout
        assert f"Store {name}: instance is damaged" in repaired.stdout
        assert "1 of 1 bad copies mended." in repaired.stdout
        volume.flush()
        assert volume.run("verify", volume.name, "--deep").returncode == 0
        assert document.stat().st_size == len(data)
