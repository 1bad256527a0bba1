"""More than two stores: every one gets everything, and each alone brings it back."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.mounted import mounted_volume


def test_each_of_three_stores_has_everything(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    places = {name: tmp_path / f"store-{name}" for name in ("a", "b", "c")}
    for place in places.values():
        place.mkdir()
    data = random.Random(5).randbytes(3_000_000)
    with mounted_volume(tmp_path / "volume", stores=places) as volume:
        (volume.mountpoint / "image.dcm").write_bytes(data)
        volume.flush()
        assert [store["name"] for store in volume.status()["stores"]] == ["a", "b", "c"]
        volume.umount()
        shutil.rmtree(volume.state)
        volume.config.unlink()
        for name, place in places.items():
            target = tmp_path / f"restored-{name}"
            command = ("restore", f"--store=file://{place}", "--token=pkcs11:token=practice", "--yes")
            done = subprocess.run(
                [sys.executable, "-m", "mirrorfs", *command, str(target)],
                env=volume.env, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert (target / "image.dcm").read_bytes() == data
