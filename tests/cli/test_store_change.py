"""mirrorfs store: one more, one less, one that was wiped, mounted or not; each restores everything alone."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.cli.failures import RemoteError
from tests.support.mounted import PASSWORD, Mounted, mounted_volume

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


def test_what_is_left_of_a_store_is_no_empty_place(tmp_path: Path) -> None:
    """It is never claimed anew: a sentence says what it looks like, and what to do."""
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume") as volume:
        (volume.mountpoint / "image.dcm").write_bytes(DATA)
        volume.umount()
        place = volume.stores["a"]
        command = ("store", "replace", volume.name, "a", f"file://{place}")
        (place / "instance").unlink()
        for gone, words in ((None, "`mirrorfs repair`"), ("header", "lies there aside")):
            if gone is not None:
                shutil.rmtree(place / gone)
            before = sorted(path for path in place.rglob("*") if path.is_file())
            outcome = volume.run(*command)
            assert outcome.returncode == 4 and words in outcome.stdout, outcome
            assert sorted(path for path in place.rglob("*") if path.is_file()) == before
        place.rename(tmp_path / "aside")
        volume.must(*command, "--create-store")
        volume.mount()
        volume.flush()
        assert volume.status()["light"] == "protected"


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


# --- while mounted ---------------------------------------------------------------------------

KILLED_AT = {
    "with the place claimed": "mirrorfs.cli.store:carry_out",
    "with the header on the local disk": "mirrorfs.cli.header_change:spread_header",
    "with the header on the stores": "mirrorfs.cli.store_steps:write_config",
    "with the configuration written": "mirrorfs.cli.store_session:MountedSession.tell",
}
KILLING = """
import importlib, os, signal, sys
from mirrorfs.cli.main import main
module, _, path = sys.argv[1].partition(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)
assert hasattr(owner, name), name
setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(sys.argv[2:]))
"""


def data_of(number: int) -> bytes:
    return random.Random(number).randbytes(1_000_000)


def write(volume: Mounted, first: int, count: int) -> None:
    for number in range(first, first + count):
        (volume.mountpoint / f"file {number}").write_bytes(data_of(number))


def assert_restored(volume: Mounted, place: Path, target: Path, count: int) -> None:
    """The store alone has the image and these files."""
    assert restored(volume, place, target) == DATA
    for number in range(count):
        assert (target / f"file {number}").read_bytes() == data_of(number), number


@contextmanager
def writing(volume: Mounted, first: int, count: int) -> Iterator[None]:
    """Files are written all the while; all of them are when the block ends."""
    writer = threading.Thread(target=write, args=(volume, first, count))
    writer.start()
    try:
        yield
    finally:
        writer.join()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Mounted]:
    (tmp_path / "volume").mkdir()
    with mounted_volume(tmp_path / "volume", mirror_delay_s=1) as made:
        (made.mountpoint / "image.dcm").write_bytes(DATA)
        yield made


def names(volume: Mounted) -> list[str]:
    return [store["name"] for store in volume.status()["stores"]]


def test_add_under_a_mount(volume: Mounted, tmp_path: Path) -> None:
    usb = tmp_path / "usb"
    write(volume, 0, 20)
    volume.flush()
    with writing(volume, 20, 20):
        said = volume.must("store", "add", volume.name, f"usb=file://{usb}", "--create-store", "--wait")
    assert "Store usb holds everything." in said
    assert names(volume) == ["a", "b", "usb"]
    said = volume.flush()
    assert "Every store holds everything" in said
    assert volume.status()["light"] == "protected"
    assert_restored(volume, usb, tmp_path / "restored", 40)
    assert volume.run("verify", volume.name, "--deep").returncode == 0
    volume.umount()
    volume.mount()
    assert names(volume) == ["a", "b", "usb"]
    assert not volume.warnings()


def test_a_wiped_store_is_replaced_under_a_mount(volume: Mounted, tmp_path: Path) -> None:
    """The cache is smaller than the volume: a part has to come from the other store."""
    volume.umount()
    text = volume.config.read_text()
    volume.config.write_text(re.sub(r"cache_size = .*", 'cache_size = "64MiB"', text))
    volume.mount()
    write(volume, 0, 130)
    volume.flush()
    volume.wait_until(lambda: len(volume.local_segments()) < len(volume.store_segments("b")) - 2, within_s=60)
    wiped = volume.stores["a"]
    shutil.rmtree(wiped)
    wiped.mkdir()
    with writing(volume, 130, 10):
        volume.must("store", "replace", volume.name, "a", f"file://{wiped}", "--wait")
    volume.flush()
    assert names(volume) == ["a", "b"]
    assert volume.status()["light"] == "protected"
    assert_restored(volume, wiped, tmp_path / "restored", 140)
    assert volume.run("verify", volume.name, "--deep").returncode == 0


def test_remove_under_a_mount(volume: Mounted, tmp_path: Path) -> None:
    volume.flush()
    assert volume.run("store", "remove", volume.name, "b").returncode == 2, "the last but one"
    volume.must("store", "remove", volume.name, "b", "--yes")
    assert names(volume) == ["a"]
    before = sorted(path for path in volume.stores["b"].rglob("*") if path.is_file())
    write(volume, 0, 3)
    volume.flush()
    volume.umount()
    after = sorted(path for path in volume.stores["b"].rglob("*") if path.is_file())
    assert [path for path in after if path not in before] == []
    assert restored(volume, volume.stores["b"], tmp_path / "from b") == DATA
    assert not (tmp_path / "from b" / "file 0").exists()
    volume.mount()
    volume.must("store", "add", volume.name, f"b=file://{volume.stores['b']}", "--wait")
    assert_restored(volume, volume.stores["b"], tmp_path / "again", 3)


def test_with_a_wrong_password_nothing_changes(volume: Mounted, tmp_path: Path) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("no such horse\n")
    before = volume.config.read_bytes(), sorted((volume.state / "objects" / "header").iterdir())
    for change in (("add", f"usb=file://{usb}"), ("replace", "a", f"file://{usb}"), ("remove", "b", "--yes")):
        arguments = (change[0], volume.name, *change[1:])
        assert volume.run("store", *arguments, "--password-file", str(wrong)).returncode == 3
    assert (volume.config.read_bytes(), sorted((volume.state / "objects" / "header").iterdir())) == before
    assert list(usb.iterdir()) == []
    assert names(volume) == ["a", "b"]
    assert PASSWORD not in volume.log_text()


def test_what_cannot_be_a_store_of_a_mounted_volume(volume: Mounted, tmp_path: Path) -> None:
    inside = volume.mountpoint / "inside"
    inside.mkdir()
    for place in (inside, volume.mountpoint, volume.state / "store", tmp_path / "volume"):
        assert volume.run("store", "add", volume.name, f"usb=file://{place}").returncode == 2, place
    assert names(volume) == ["a", "b"]


def test_the_daemon_is_killed_while_a_store_is_filled(volume: Mounted, tmp_path: Path) -> None:
    usb = tmp_path / "usb"
    write(volume, 0, 60)
    volume.flush()
    volume.must("store", "add", volume.name, f"usb=file://{usb}", "--create-store")
    volume.kill()
    before = len(list((usb / "segments").rglob("*"))) if (usb / "segments").exists() else 0
    volume.mount()
    state = volume.store_status("usb")
    assert state["filling"] or not state["pending_count"]
    volume.flush()
    assert len(list((usb / "segments").rglob("*"))) > before
    assert_restored(volume, usb, tmp_path / "restored", 60)


@pytest.mark.parametrize("where", list(KILLED_AT))
def test_the_command_is_killed_between_its_steps(volume: Mounted, tmp_path: Path, where: str) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    command = ("store", "add", volume.name, f"usb=file://{usb}")
    killed = subprocess.run(
        [sys.executable, "-c", KILLING, KILLED_AT[where], *command],
        env=volume.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (usb / "instance").exists()
    assert names(volume) == ["a", "b"]
    write(volume, 0, 1)
    volume.flush()
    volume.must(*command)
    assert names(volume) == ["a", "b", "usb"]
    volume.flush()
    assert_restored(volume, usb, tmp_path / "restored", 1)
    volume.umount()
    volume.mount()
    assert names(volume) == ["a", "b", "usb"]


def test_a_change_that_the_daemon_was_not_told_of(volume: Mounted, tmp_path: Path) -> None:
    """Removed, and killed before the daemon knew: run again it knows; or else the next mount does."""
    command = ("store", "remove", volume.name, "b", "--yes")
    for again in (True, False):
        killed = subprocess.run(
            [sys.executable, "-c", KILLING, KILLED_AT["with the configuration written"], *command],
            env=volume.env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert names(volume) == ["a", "b"]
        if again:
            assert "an earlier run" in volume.must(*command)
            assert names(volume) == ["a"]
            volume.must("store", "add", volume.name, f"b=file://{volume.stores['b']}")
        else:
            volume.umount()
            volume.mount()
            assert names(volume) == ["a"]


def test_one_change_at_a_time(volume: Mounted, tmp_path: Path) -> None:
    command = ("store", "add", volume.name, f"usb=file://{tmp_path / 'usb'}", "--create-store")
    lock = os.open(volume.state / "change.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert volume.run(*command).returncode == 6
    volume.umount()
    assert volume.run("mount", volume.name, str(volume.mountpoint)).returncode == 6
    assert volume.run("verify", volume.name).returncode == 6
    os.close(lock)
    volume.mount()
    volume.must(*command)
    assert names(volume) == ["a", "b", "usb"]


def test_a_forged_header_is_not_taken(volume: Mounted) -> None:
    """Whoever can write to the state directory and the configuration, but has no key, changes nothing."""
    headers = volume.state / "objects" / "header"
    (newest,) = headers.iterdir()
    data = bytearray(newest.read_bytes())
    at = data.index(b'"generation":1,"generations"') if b'"generation":1,"generations"' in data else 0
    data[at + 13 : at + 14] = b"2"
    (headers / f"00000002-{newest.name[9:]}").write_bytes(data)
    text = volume.config.read_text()
    volume.config.write_text(text[: text.rindex("[[store]]")])
    with ControlClient(volume.state / "control.sock", volume=volume.name) as client:
        client.send("stores")
        with pytest.raises(RemoteError):
            list(client.answers())
    assert names(volume) == ["a", "b"]


# --- rotating --------------------------------------------------------------------------------


def test_a_disk_that_rotates(volume: Mounted, tmp_path: Path) -> None:
    disk, away = tmp_path / "usb", tmp_path / "in the safe"
    volume.must(
        "store", "add", volume.name, f"usb=file://{disk}", "--create-store", "--rotating", "--wait"
    )  # fmt: skip
    assert "rotating = true" in volume.config.read_text()
    assert "usb" in volume.must("store", "list", volume.name)
    disk.rename(away)
    write(volume, 0, 3)
    assert "every store but usb, which is away, holds" in volume.flush().lower()
    status = volume.status()
    assert status["light"] == "protected", status
    state = volume.store_status("usb")
    assert (state["state"], state["rotating"]) == ("away", True)
    assert state["away_since"] is not None
    said = volume.must("status", volume.name)
    assert "usb: away since" in said
    assert "; lacks " in said
    assert "every store but usb" in volume.umount()
    disk.mkdir()
    said = volume.mount()
    assert said.count("\n") == 2 + said.count("swap"), said
    assert "Store usb is away; it gets what it lacks when it is back." in said
    write(volume, 3, 3)
    volume.flush()
    assert list(disk.iterdir()) == [], "nothing is written below the empty mountpoint"
    disk.rmdir()
    away.rename(disk)
    volume.wait_until(lambda: volume.store_status("usb")["state"] == "up-to-date", within_s=150)
    assert "Every store holds everything" in volume.flush()
    assert_restored(volume, disk, tmp_path / "restored", 6)
    assert not volume.warnings()


def test_one_store_at_least_must_always_be_there(volume: Mounted, tmp_path: Path) -> None:
    place = tmp_path / "usb"
    place.mkdir()
    volume.must("store", "remove", volume.name, "b", "--yes")
    volume.must("store", "add", volume.name, f"usb=file://{place}", "--rotating")
    assert volume.run("store", "remove", volume.name, "a", "--yes").returncode == 2
    replaced = ("replace", volume.name, "a", f"file://{tmp_path / 'other'}", "--rotating")
    assert volume.run("store", *replaced).returncode == 2
    assert names(volume) == ["a", "usb"]


def test_under_a_mount_in_the_foreground(volume: Mounted, tmp_path: Path) -> None:
    """It lets go of the lock of changes once it is mounted, and keeps it until then."""
    volume.umount()
    process = volume.start("mount", volume.name, str(volume.mountpoint), "--foreground")
    try:
        volume.wait_until(lambda: bool(volume.status()["mounted"]), within_s=60)
        volume.wait_until(lambda: volume.mountpoint.is_mount(), within_s=60)
        usb = tmp_path / "usb"
        volume.must("store", "add", volume.name, f"usb=file://{usb}", "--create-store", "--wait")
        assert names(volume) == ["a", "b", "usb"]
        volume.umount()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert restored(volume, usb, tmp_path / "restored") == DATA
