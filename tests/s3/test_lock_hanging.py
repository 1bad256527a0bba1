"""`mirrorfs lock` while a store swallows every request and answers none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mirrorfs.fuse.mount_table import find_mount
from tests.s3.conftest import BUCKET
from tests.support.faults import Always, Fault, Kind
from tests.support.faulty_proxy import faulty_proxy
from tests.support.mounted import mounted_volume
from tests.support.s3_servers import S3Server, environment

LOCK_MAX_S = 15.0
"""For a busy machine; what is waited for is the local disk, and 2 s for the leases."""


def test_lock_with_a_hanging_store(tmp_path: Path, moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "b").mkdir()
    (tmp_path / "volume").mkdir()
    with faulty_proxy(moto.endpoint) as proxy:
        urls = {
            "a": f"s3://{BUCKET}/lock?endpoint={proxy.endpoint}&region=us-east-1",
            "b": f"file://{tmp_path / 'b'}",
        }
        with mounted_volume(tmp_path / "volume", store_urls=urls, mirror_delay_s=0.2) as volume:
            proxy.rule = Always(Fault(Kind.STALL_ANSWER))
            (volume.mountpoint / "file").write_bytes(b"x" * 3_000_000)
            volume.wait_until(lambda: volume.store_status("b")["pending_count"] == 0, within_s=30)
            assert proxy.hits()
            (volume.mountpoint / "last").write_text("written just before")
            began_s = time.monotonic()
            volume.must("lock", volume.name)
            took_s = time.monotonic() - began_s
            print(f"lock with a hanging store: {took_s:.1f} s")
            assert took_s < LOCK_MAX_S
            assert find_mount(volume.mountpoint) is None and volume.daemon_pids() == []
            proxy.clear()
            volume.mount()
            assert (volume.mountpoint / "last").read_text() == "written just before"
            assert (volume.mountpoint / "file").stat().st_size == 3_000_000
            assert "every store holds all of it" in volume.umount()
