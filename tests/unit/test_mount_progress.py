"""What the waiting `mount` hears and says while the background process loads and replays."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from mirrorfs.cli import mount
from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.daemon import StatusPipe
from mirrorfs.errors import MirrorfsError

PATHS = VolumePaths(name="practice", config=Path("/c/practice.toml"), state=Path("/s/practice"))


def sent(tell: list[tuple[str, tuple[int, ...]]]) -> bytes:
    reading, writing = os.pipe()
    pipe = StatusPipe(writing)
    for name, arguments in tell:
        getattr(pipe, name)(*arguments)
    pipe.ready()
    with open(reading, "rb") as file:
        return file.read()


def test_each_percent_once() -> None:
    lines = sent([("loaded", (done, 1000)) for done in range(1, 1001)] + [("replay", (7,)), ("replay", (7,))])
    messages = [json.loads(line) for line in lines.splitlines()]
    assert messages == [{"loaded": percent} for percent in range(101)] + [{"replay": 7}, {"ready": True}]


def test_what_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mount, "LINE_INTERVAL_S", 0.0)
    mount._await_ready(io.BytesIO(sent([("loaded", (34, 100)), ("replay", (12,))])), PATHS)
    assert capsys.readouterr().err == (
        "mirrorfs: Fetching the volume's index: 34% ...\nmirrorfs: Reading the log: segment 12 ...\n"
    )


def test_a_wait_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    mount._await_ready(io.BytesIO(sent([("replay", (12,)), ("watching", (30.0,))])), PATHS)
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "the other lines come at most every few seconds"
    assert "waiting 30 s, to see whether it is still written to" in said


def test_a_process_that_ends() -> None:
    with pytest.raises(MirrorfsError, match="ended unexpectedly"):
        mount._await_ready(io.BytesIO(b'{"loaded": 34}\n'), PATHS)
