"""A mounted volume while the way to one of its two S3 stores has every fault at once."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3.conftest import BUCKET
from tests.support.faults import FAULTS, Mix
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.mounted import Mounted, mounted_volume
from tests.support.s3_servers import S3Server, environment

STORM_S = 15.0
STORMS_MAX = 5
HITS_MIN = 10
PAUSE_S = 0.15
OUTAGE_S = 2.0
STALL_S = 1.0
LONGEST_CALL_S = 20.0
"""Nothing waits for a store: a call takes milliseconds. The bound is for a busy machine, and below the
silence that botocore sits out (60 s)."""
SHARES = dict.fromkeys(FAULTS, 0.04)
RESTORE_SHARES = dict.fromkeys(FAULTS, 0.006)
"""So few that five in a row, which a request does not outlast, are not to be met in a life of test runs."""


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(moto.endpoint) as running:
        yield running


class Load:
    """Writes, changes, renames and removes files, and times every call that could wait for a store."""

    def __init__(self, root: Path, *, seed: int) -> None:
        self.hashes: dict[str, str] = {}
        self.longest_s: dict[str, float] = {}
        self._root = root
        self._draw = random.Random(seed)

    def run(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        number = 0
        while time.monotonic() < end_s:
            self._write(f"file {number:04}")
            if number % 5 == 4:
                self._change(self._draw.choice(sorted(self.hashes)))
                self._rename(self._draw.choice(sorted(self.hashes)), f"renamed {number}")
            if number % 7 == 6:
                self._remove(self._draw.choice(sorted(self.hashes)))
            number += 1
            time.sleep(PAUSE_S)

    def _timed(self, name: str, started_s: float) -> None:
        self.longest_s[name] = max(self.longest_s.get(name, 0.0), time.monotonic() - started_s)

    def _store(self, name: str, flags: int, offset: int, data: bytes) -> None:
        started_s = time.monotonic()
        file = os.open(self._root / name, flags, 0o644)
        self._timed("open", started_s)
        try:
            started_s = time.monotonic()
            assert os.pwrite(file, data, offset) == len(data)
            self._timed("write", started_s)
            started_s = time.monotonic()
            os.fsync(file)
            self._timed("fsync", started_s)
        finally:
            os.close(file)

    def _write(self, name: str) -> None:
        data = self._draw.randbytes(self._draw.choice((500, 20_000, 400_000)))
        self._store(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0, data)
        self.hashes[name] = hashlib.sha256(data).hexdigest()

    def _change(self, name: str) -> None:
        data = bytearray((self._root / name).read_bytes())
        assert hashlib.sha256(data).hexdigest() == self.hashes[name], "wrong bytes from the mount"
        data[100:200] = self._draw.randbytes(100)
        self._store(name, os.O_WRONLY, 100, bytes(data[100:200]))
        self.hashes[name] = hashlib.sha256(data).hexdigest()

    def _rename(self, name: str, new: str) -> None:
        started_s = time.monotonic()
        (self._root / name).rename(self._root / new)
        self._timed("rename", started_s)
        self.hashes[new] = self.hashes.pop(name)

    def _remove(self, name: str) -> None:
        started_s = time.monotonic()
        (self._root / name).unlink()
        self._timed("unlink", started_s)
        del self.hashes[name]


def outages(proxy: FaultyProxy, ended: threading.Event) -> None:
    """Now and then nobody listens, until the storm ends."""
    while not ended.wait(4 * OUTAGE_S):
        proxy.outage()
        ended.wait(OUTAGE_S)
        proxy.recover()


def restored(volume: Mounted, url: str, target: Path) -> dict[str, str]:
    done = subprocess.run(
        [
            sys.executable, "-m", "mirrorfs", "restore", f"--store={url}", "--token=pkcs11:token=practice",
            "--yes", str(target),
        ],
        env=volume.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}
    shutil.rmtree(target)
    return found


def test_storm(
    tmp_path: Path,
    proxy: FaultyProxy,
    moto: S3Server,
    rclone: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    urls = {
        "a": f"s3://{BUCKET}/storm?endpoint={proxy.endpoint}&region=us-east-1",
        "b": f"s3://{BUCKET}/storm?endpoint={rclone.endpoint}&region=us-east-1",
    }
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume", store_urls=urls, mirror_delay_s=0.3) as volume:
        load = Load(volume.mountpoint, seed=1)
        proxy.rule = Mix(1, SHARES, after_bytes_max=400_000, stall_s=STALL_S)
        ended = threading.Event()
        thread = threading.Thread(target=outages, args=(proxy, ended))
        thread.start()
        try:
            # A busy machine sends less in the same time.
            for _ in range(STORMS_MAX):
                load.run(STORM_S)
                if len(proxy.hits()) >= HITS_MIN:
                    break
        finally:
            ended.set()
            thread.join()
        hits = proxy.hits()
        kinds = {exchange.fault.kind for exchange in hits}
        print(
            f"{len(load.hashes)} files, {len(hits)} of {len(proxy.exchanges)} requests hit: {sorted(kinds)}"
        )
        print({name: round(longest_s, 3) for name, longest_s in load.longest_s.items()})
        # Back-off makes requests few: which kinds came is the seed's and the moment's affair.
        assert len(hits) >= HITS_MIN and len(kinds) >= 4
        assert max(load.longest_s.values()) < LONGEST_CALL_S
        assert volume.store_status("b")["state"] in ("up-to-date", "catching-up")
        proxy.clear()
        volume.flush()
        assert volume.status()["light"] == "protected"
        assert [line for line in volume.warnings() if " WARNING " not in line] == []
        near = {"a": urls["a"].replace(proxy.endpoint, moto.endpoint), "b": urls["b"]}
        for name, url in near.items():
            assert restored(volume, url, tmp_path / f"from-{name}") == load.hashes
        # And once more over a bad way: a restore repeats what fails, up to five times.
        proxy.rule = Mix(2, RESTORE_SHARES, after_bytes_max=400_000, stall_s=0.2)
        hits_before = len(proxy.hits())
        assert restored(volume, urls["a"], tmp_path / "through-the-storm") == load.hashes
        assert len(proxy.hits()) > hits_before
        proxy.clear()
        volume.umount()
