"""A second PC, as the technician sees it: attach, take-over, what was never sent, and back."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from mirrorfs.engine.lease import LEASE_PERIOD_S
from tests.support.mounted import Mounted, mounted_volume

DATA = random.Random(4).randbytes(2_000_000)


def second_pc(volume: Mounted, folder: Path) -> Mounted:
    """Another PC with the same token and secrets, which has never seen the volume."""
    folder.mkdir()
    (folder / "mnt").mkdir()
    for name in ("config", "state"):
        (folder / name).mkdir(mode=0o700)
    environment = volume.env | {
        "MIRRORFS_CONFIG_HOME": str(folder / "config"),
        "MIRRORFS_STATE_HOME": str(folder / "state"),
    }
    other = Mounted(
        folder,
        hsm=volume.hsm,
        token=volume.token,
        stores=volume.stores,
        state_home=folder / "state",
        environment=environment,
        mount_options=(),
    )
    return other


def urls(volume: Mounted) -> list[str]:
    return [f"--store=file://{place}" for place in volume.stores.values()]


def test_attach_and_take_turns(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one") as first:
        (first.mountpoint / "letter").write_bytes(DATA)
        first.umount()
        second = second_pc(first, tmp_path / "two")
        try:
            said = second.must("attach", second.name, *urls(first), "--yes")
            assert "Newest state: position" in said
            assert second.run("attach", second.name, *urls(first), "--yes").returncode == 2
            second.mount()
            assert (second.mountpoint / "letter").read_bytes() == DATA
            (second.mountpoint / "answer").write_bytes(DATA[:1000])
            in_use = first.run("mount", first.name, str(first.mountpoint))
            assert in_use.returncode == 6, in_use.stdout
            assert "in use" in in_use.stdout
            second.umount()
        finally:
            second.remove()
        first.mount()
        assert (first.mountpoint / "answer").read_bytes() == DATA[:1000]
        assert (first.mountpoint / "letter").read_bytes() == DATA


def test_attach_with_one_store(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one") as first:
        (first.mountpoint / "letter").write_bytes(DATA)
        first.umount()
        second = second_pc(first, tmp_path / "two")
        try:
            said = second.must("attach", second.name, urls(first)[0], "--yes")
            assert "cannot prove" in said
            assert "which was not given" in said
            segments = {path.name: path.stat().st_size for path in first.store_segments("a")}
            second.mount()
            assert (second.mountpoint / "letter").read_bytes() == DATA
            assert [store["name"] for store in second.status()["stores"]] == ["a"]
            # What nobody reads comes by itself, whole.
            second.wait_until(lambda: "bytes were fetched ahead" in second.log_text(), within_s=120)
            kept = {path.name: path.stat().st_size for path in (second.state / "ranges").iterdir()}
            assert kept == segments
            second.umount()
        finally:
            second.remove()


def test_take_over_from_a_live_pc(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one") as first:
        # What is not flushed stays here for longer than this takes.
        first.umount()
        first.set_mirror_delay_s(3600)
        first.mount()
        (first.mountpoint / "sent").write_bytes(DATA)
        first.flush()
        (first.mountpoint / "never sent").write_bytes(DATA[:5000])
        second = second_pc(first, tmp_path / "two")
        try:
            second.must("attach", second.name, *urls(first), "--yes")
            second.must("mount", second.name, str(second.mountpoint), "--take-over")
            (second.mountpoint / "new").write_bytes(b"of the new PC")
            second.flush()
            first.wait_until(lambda: _is_read_only(first), within_s=LEASE_PERIOD_S)
            assert first.status()["light"] == "at-risk"
            assert "taken over" in str(first.status()["reason"])
            assert (first.mountpoint / "sent").read_bytes() == DATA
            first.must("umount", first.name, "--no-wait")
            assert sorted(path.name for path in second.mountpoint.iterdir()) == ["new", "sent"]
            second.umount()
        finally:
            second.remove()
        refused = first.run("mount", first.name, str(first.mountpoint))
        assert refused.returncode == 5, refused.stdout
        assert "--from-state" in refused.stdout
        target = tmp_path / "exported"
        token = "--token=pkcs11:token=practice"
        first.must("restore", "--from-state", first.name, token, "--yes", str(target))
        assert (target / "never sent").read_bytes() == DATA[:5000]
        assert (target / "sent").read_bytes() == DATA
        first.config.write_text(first.config.read_text() + "\n[alarm]\nmax_lag_s = 1234\n")
        again = first.must("attach", first.name, "--again", "--yes")
        assert "max_lag_s = 1234" in first.config.read_text()
        aside = next(path for path in first.state.parent.iterdir() if ".before-" in path.name)
        assert str(aside) in again
        first.mount()
        assert sorted(path.name for path in first.mountpoint.iterdir()) == ["new", "sent"]
        first.must("restore", "--from-state", str(aside), token, "--yes", str(tmp_path / "later"))
        assert (tmp_path / "later" / "never sent").read_bytes() == DATA[:5000]


def _is_read_only(volume: Mounted) -> bool:
    try:
        (volume.mountpoint / "probe").write_bytes(b"")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("words", [["--again"], ["--store=file:///nowhere/at/all"], []])
def test_what_is_wrong_is_said(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one", mount=False) as first:
        second = second_pc(first, tmp_path / "two")
        outcome = second.run("attach", second.name, "--yes", *words)
        assert outcome.returncode in (2, 4)
        assert outcome.stdout.startswith("mirrorfs: ")
        assert not second.config.exists()
        assert json.loads(second.must("status", "--json"))["volumes"] == []


def test_another_seat_follows(tmp_path: Path) -> None:
    """A view on a second PC sees what the first uploads, without a lease; it says as of when it is."""
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one") as first:
        letter = first.mountpoint / "letter"
        letter.write_bytes(DATA)
        (first.mountpoint / "gone soon").write_bytes(b"x")
        first.flush()
        second = second_pc(first, tmp_path / "two")
        try:
            second.must("attach", second.name, *urls(first), "--yes")
            second.must("mount", second.name, str(second.mountpoint), "--read-only")
            seen = second.mountpoint / "letter"
            assert seen.read_bytes() == DATA
            with pytest.raises(OSError, match="Read-only"):
                seen.write_bytes(b"")
            for turn in range(3):
                changed = DATA[: 400_000 * (turn + 1)] + b"turn %d" % turn
                letter.write_bytes(changed)
                (first.mountpoint / f"new {turn}").write_bytes(b"%d" % turn)
                (first.mountpoint / "gone soon").unlink(missing_ok=True)
                first.flush()
                second.wait_until(lambda turn=turn: (second.mountpoint / f"new {turn}").exists(), within_s=60)
                assert seen.read_bytes() == changed
                assert not (second.mountpoint / "gone soon").exists()
            status = json.loads(second.must("status", str(second.mountpoint), "--json"))["volumes"][0]
            assert (status["read_only"], status["follows"], status["reason"]) == (True, True, None)
            assert "follows the writer" in second.must("status", str(second.mountpoint))
            assert first.status()["light"] == "protected", "no lease was touched"
            (kept,) = second.state.glob("views/*/ranges")
            assert list(kept.iterdir())
            os.kill(status["pid"], signal.SIGTERM)
            second.wait_until(lambda: not kept.exists(), within_s=30)
            assert (kept.parent / "lock").exists(), "the process removed it, not a later command"
        finally:
            second.remove()
