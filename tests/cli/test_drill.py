"""`mirrorfs drill` as people run it: beside a mount, on stores that are whole and on one that is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli.config import volume_paths
from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.cli.failures import RemoteError
from mirrorfs.format.document import DOCUMENT_MAGIC
from tests.support.mounted import Mounted, mounted_volume

DEADLINE_S = 120
LETTER = b"Dear colleague, thank you for referring this patient.\n"


class Practice:
    """A mounted volume with some files, on whose stores drills are run."""

    def __init__(self, volume: Mounted, folder: Path) -> None:
        self.volume = volume
        self.work = folder / "work"
        self.reports = folder / "reports"
        for directory in (self.work, self.reports):
            directory.mkdir()

    def run(self, *arguments: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, "-m", "mirrorfs", "drill", *arguments],
            env=self.volume.env | {"TMPDIR": str(self.work)}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert ended.returncode == exit_code, ended
        # Nothing is left of the indexes, and no name of a file is told where no person looks.
        assert not list(self.work.iterdir())
        assert "mueller" not in ended.stdout + ended.stderr
        return ended

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", exit_code=exit_code).stdout)

    def kept(self) -> list[Path]:
        return sorted((self.volume.state / "drills").iterdir())


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Practice]:
    folder = tmp_path_factory.mktemp("drill")
    with mounted_volume(folder) as volume:
        (volume.mountpoint / "letters").mkdir()
        (volume.mountpoint / "letters" / "mueller.txt").write_bytes(LETTER)
        (volume.mountpoint / "film").write_bytes(os.urandom(3 << 20))
        os.link(volume.mountpoint / "film", volume.mountpoint / "letters" / "film")
        volume.flush()
        yield Practice(volume, folder)


def test_both_stores_pass(practice: Practice) -> None:
    name = practice.volume.name
    told = practice.json(name, "--to", str(practice.reports))
    assert told["schema"] == 1 and told["volume"] == name
    assert [one["store"] for one in told["drills"]] == list(practice.volume.stores)
    for one in told["drills"]:
        report = one["report"]
        assert report["passed"] and not report["faults"] and one["error"] is None
        assert (report["names"], report["files"], report["drilled_files"]) == (4, 2, 2)
        assert report["compared_files"] == 2
        assert report["drilled_bytes"] == report["size_bytes"] >= (3 << 20) + len(LETTER)
        assert Path(one["file"]).read_bytes().startswith(DOCUMENT_MAGIC)
    first, second = (Path(one["file"]).read_bytes() for one in told["drills"])
    assert first != second and len(practice.kept()) == 2
    written = list(practice.reports.iterdir())
    assert sorted(path.suffix for path in written) == sorted([".json", ".report", ".txt"] * 2)
    text = next(practice.reports.glob("*.txt")).read_text()
    assert "RÉUSSI / PASSED" in text and name in text and report["key"] in text
    assert all(b"mueller" not in path.read_bytes() for path in (*practice.kept(), *written))
    for store in practice.volume.status()["stores"]:
        assert store["drilled"] is not None and store["drill_failed"] is None


def test_of_a_mounted_volume_nobody_is_asked(practice: Practice, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it ends, with its process, when whoever wanted it goes."""
    volume = practice.volume
    for name in ("MIRRORFS_PASSWORD_FILE", "MIRRORFS_PIN_FILE"):
        monkeypatch.delitem(volume.env, name, raising=False)
    (report,) = (one["report"] for one in practice.json(volume.name, "--store", "b")["drills"])
    assert report["passed"] and report["compared_files"] == 2
    before = len(practice.kept())
    paths = volume_paths(volume.name, volume.env)
    with ControlClient(paths.socket, volume=volume.name) as first:
        first.send("drill", store="a")
        served_by = first.pid
        wait_until(lambda: children(served_by))
        (child,) = children(served_by)
        os.kill(child, signal.SIGSTOP)  # so that it cannot come to its end first
        with ControlClient(paths.socket, volume=volume.name) as second:
            second.send("drill", store="a")
            with pytest.raises(RemoteError, match="under way"):
                list(second.answers())
        assert volume.status()["light"]  # it answers meanwhile
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: not children(served_by))
    assert len(practice.kept()) == before


def test_it_is_broken_off_by_the_end_of_the_mount(tmp_path: Path) -> None:
    """And its process, with the keys, is gone before the volume is."""
    with mounted_volume(tmp_path) as volume:
        (volume.mountpoint / "letter").write_bytes(LETTER)
        volume.flush()
        paths = volume_paths(volume.name, volume.env)
        for is_killed in (False, True):
            if is_killed:
                volume.mount()
            with ControlClient(paths.socket, volume=volume.name) as client:
                client.send("drill", store="a")
                wait_until(partial(children, client.pid))
                (child,) = children(client.pid)
                process = Path(f"/proc/{child}")
                if is_killed:
                    os.kill(client.pid, signal.SIGKILL)
                    wait_until(partial(is_gone, process))
                    continue
                os.kill(child, signal.SIGSTOP)
                volume.umount()
                assert is_gone(process)
                with pytest.raises(RemoteError, match="unmounted meanwhile"):
                    list(client.answers())
        assert not (volume.state / "drills").exists()


def is_gone(process: Path) -> bool:
    return not process.exists()


def children(pid: int) -> list[int]:
    """The processes of drills that a process has."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                if "drill_child" in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(int(child))
    return found


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sample(practice: Practice) -> None:
    told = practice.json(practice.volume.name, "--store", "a", "--sample", "1")
    (report,) = (one["report"] for one in told["drills"])
    assert report["passed"] and (report["files"], report["drilled_files"]) == (2, 1)
    for sample in ("0", "101%", "some", "-1", "nan", "inf%"):
        assert (
            "--sample takes" in practice.run(practice.volume.name, f"--sample={sample}", exit_code=2).stderr
        )
    assert "no store of that name" in practice.run(practice.volume.name, "--store", "c", exit_code=2).stderr


def test_reports_are_checked_without_secrets(practice: Practice, tmp_path: Path) -> None:
    name = practice.volume.name
    if not (practice.volume.state / "drills").exists():
        practice.run(name, "--store", "a")
    file = practice.kept()[0]
    checked = practice.json("--check", str(file), name)
    assert checked["genuine"] and checked["passed"]
    key = checked["key"]
    # As an auditor has it: the file and the key, and no volume.
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-m", "mirrorfs", "drill", "--check", str(file), "--key", key]
    alone = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert alone.returncode == 0 and "The report is genuine" in alone.stdout, alone
    forged = tmp_path / "forged"
    forged.write_bytes(file.read_bytes().replace(b'"names":4', b'"names":9'))
    assert "not genuine" in practice.run("--check", str(forged), name, exit_code=5).stderr
    other = "0" * 62 + "01"
    assert "not genuine" in practice.run("--check", str(file), "--key", other, exit_code=5).stderr
    assert "64 hexadecimal" in practice.run("--check", str(file), "--key", "00", exit_code=2).stderr
    assert "with which key" in practice.run("--check", str(file), exit_code=2).stderr


def test_a_damaged_store_fails(practice: Practice) -> None:
    name, place = practice.volume.name, practice.volume.stores["b"]
    segment = max((place / "segments").iterdir(), key=lambda path: path.stat().st_size)
    whole = segment.read_bytes()
    os.chmod(segment, 0o600)
    middle = len(whole) // 2
    segment.write_bytes(whole[:middle] + bytes((whole[middle] ^ 1,)) + whole[middle + 1 :])
    try:
        told = practice.json(name, exit_code=5)
    finally:
        segment.write_bytes(whole)
    good, bad = (one["report"] for one in told["drills"])
    assert good["passed"] and not bad["passed"]
    assert bad["faults"] == ["damaged"] and bad["damaged_files"] == 1
    assert bad["objects"] == [f"segments/{segment.name}"]
    seen = practice.volume.status()
    assert seen["light"] == "at-risk" and "Store b failed a restore drill" in seen["reason"]
    assert practice.volume.store_status("b")["drill_failed"] == bad["started"]
    text = practice.run(name, "--store", "b").stdout
    assert "RÉUSSI / PASSED" in text
    assert practice.volume.store_status("b")["drill_failed"] is None


def test_a_store_that_is_not_there(practice: Practice) -> None:
    name, place = practice.volume.name, practice.volume.stores["a"]
    away = place.with_name("away")
    before = len(practice.kept())
    os.rename(place, away)
    try:
        told = practice.json(name, "--store", "a", exit_code=4)
    finally:
        os.rename(away, place)
    (one,) = told["drills"]
    assert one["report"] is None and "store a" in one["error"].lower()
    assert len(practice.kept()) == before


def test_a_store_that_went_back(practice: Practice, tmp_path: Path) -> None:
    """Its newest segments are gone, and so is the head that knew them: a back-up was brought back."""
    name, place = practice.volume.name, practice.volume.stores["b"]
    practice.volume.umount()
    saved = tmp_path / "saved"
    shutil.copytree(place, saved)
    practice.volume.mount()
    (practice.volume.mountpoint / "later").write_bytes(b"later")
    practice.volume.flush()
    practice.volume.umount()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert practice.json(name, "--store", "b")["drills"][0]["report"]["passed"]
    # It changes nothing in the store.
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    newest = tmp_path / "newest"
    os.rename(place, newest)
    shutil.copytree(saved, place)
    try:
        report = practice.json(name, "--store", "b", exit_code=5)["drills"][0]["report"]
    finally:
        shutil.rmtree(place)
        os.rename(newest, place)
        practice.volume.mount()
    assert report["faults"] == ["went-back"] and report["missing_since"] is not None
