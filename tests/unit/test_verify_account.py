"""What `verify` and `repair` show of what they are told, and the exit code that follows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli.config import volume_paths
from mirrorfs.cli.verify import EXIT_DAMAGED, EXIT_UNAVAILABLE, _Account

HOME = {"place": "home", "listed": 9, "pending": 0, "read": 0, "pruned": 0, "unreachable": None}
BAD = {"type": "bad", "place": "home", "key": "segments/1", "fault": "missing", "detail": "it is gone."}
DONE = {"type": "done", "places": [HOME], "resumed": False}


def account(tmp_path: Path, *, mends: bool = True, as_json: bool = False) -> _Account:
    paths = volume_paths(
        "practice", {"MIRRORFS_CONFIG_HOME": str(tmp_path), "MIRRORFS_STATE_HOME": str(tmp_path)}
    )
    return _Account(paths, argparse.Namespace(json=as_json, deep=False, mends=mends))


def mended(**fields: Any) -> dict[str, Any]:
    return {"type": "mended", "place": "home", "key": "segments/1", "why": None, "on_its_way": False} | fields


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (mended(), 0, "1 of 1 bad copies mended.\n"),
        (mended(why="no good copy."), EXIT_DAMAGED, "segments/1 is not mended: no good copy."),
        (mended(why="not yet.", on_its_way=True), EXIT_UNAVAILABLE, "is on its way: not yet."),
        (mended(why="not yet.", on_its_way=True), EXIT_UNAVAILABLE, "0 of 1 bad copies mended, 1 on its way"),
    ],
)  # fmt: skip
def test_what_is_on_its_way_is_not_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], result: dict[str, Any], code: int, words: str
) -> None:
    for as_json in (False, True):
        it = account(tmp_path, as_json=as_json)
        for message in (BAD, result, DONE):
            it.take(message)
        assert it.end() == code
        out = capsys.readouterr().out
        if as_json:
            (bad,) = json.loads(out)["bad"]
            assert (bad["mended"], bad["on_its_way"]) == (result["why"] is None, result["on_its_way"])
        else:
            assert words in out


def test_damage_outweighs_what_is_on_its_way(tmp_path: Path) -> None:
    it = account(tmp_path)
    other = {"key": "segments/2"}
    for message in (BAD, {**BAD, **other}, mended(why="later.", on_its_way=True), mended(why="no.", **other)):
        it.take(message)
    it.take(DONE)
    assert it.end() == EXIT_DAMAGED


def test_an_earlier_mount_is_understood(tmp_path: Path) -> None:
    it = account(tmp_path)
    old = mended(why="it is on its way.")
    del old["on_its_way"]
    for message in ({"type": "progress", "place": "home", "done": 1, "total": 2}, BAD, old, DONE):
        it.take(message)
    assert it.end() == EXIT_DAMAGED


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (("home", "looked at", 500, 0), "home: 500 objects looked at\n"),
        (("home", "looked at", 5, 10), "home: 50% done, 5 of 10 objects looked at\n"),
        ((None, "mended", 0, 3), "all places: 0% done, 0 of 3 objects mended\n"),
    ],
)
def test_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], message: tuple[str | None, str, int, int], shown: str
) -> None:
    place, phase, done, total = message
    account(tmp_path).take({"type": "progress", "place": place, "phase": phase, "done": done, "total": total})
    assert capsys.readouterr().err == shown
