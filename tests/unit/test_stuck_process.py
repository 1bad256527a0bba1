"""What people are told when the process that served a volume does not end."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli import lock, umount
from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.control_protocol import ControlClient, NoAnswer, reachable_path
from mirrorfs.errors import MirrorfsError


class Client:
    """A served volume that answers, or not."""

    pid = os.getpid()

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, command: str, **_: object) -> None:
        pass

    def be_impatient(self, silence_s: float) -> None:
        pass

    def answers(self) -> Iterator[Any]:
        raise NoAnswer("It does not answer.")


class Followed:
    """What the closing of a mount says."""

    def follow(self, client: Client, *, until: str = "done") -> dict[str, Any]:
        return {"mountpoint": "/nowhere"} if until == "prepared" else {"complete": True}


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    place = tmp_path / "v"
    return VolumePaths("v", place, place, place)


@pytest.fixture(autouse=True)
def stuck(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(umount, "resolve", lambda target, environment: paths)
    monkeypatch.setattr(umount, "ControlClient", Client)
    monkeypatch.setattr(umount, "Waiting", Followed)
    monkeypatch.setattr(umount, "find_mount", lambda mountpoint: None)
    for module in (umount, lock):
        monkeypatch.setattr(module.volume_lock, "wait_released", lambda paths, timeout_s: False)


def test_umount_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(target="v", no_wait=False, stall=1.0)
    with pytest.raises(MirrorfsError, match="is unmounted, but the process that served it does not end"):
        umount.run(arguments, {})
    assert not capsys.readouterr().out


def test_umount_knows_the_process_when_its_connection_is_closed(
    paths: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umount, "ControlClient", ControlClient)
    paths.socket.parent.mkdir(parents=True, exist_ok=True)
    arguments = argparse.Namespace(target="v", no_wait=False, stall=1.0)
    with socket.socket(socket.AF_UNIX) as listener:
        with reachable_path(paths.socket) as name:
            listener.bind(name)
        listener.listen()
        with pytest.raises(MirrorfsError, match="is unmounted, but the process that served it does not end"):
            umount.run(arguments, {})


def test_lock_says_so_of_one_that_was_killed(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(lock.os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(lock, "mounts_of", lambda name, view: [])
    with pytest.raises(MirrorfsError, match=r"was killed and does not end.* keys are in memory"):
        lock._outcome(lock._Asked(paths, Client()), 1.0)  # type: ignore[arg-type]
    assert killed == [Client.pid]
