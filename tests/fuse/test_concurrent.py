"""Processes at work in the same directories, briefly; scripts/concurrent does it for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.concurrent_run import on_a_volume, run_all
from scripts.concurrent_workers import check, prepare


def test_processes_in_the_same_directories(mountpoint: Path) -> None:
    assert run_all(mountpoint, processes=6, seed=1, seconds=4) > 100


def test_the_log_and_each_store_alone_give_the_same_tree(tmp_path: Path) -> None:
    assert on_a_volume(tmp_path, processes=8, seed=2, seconds=4) > 100


def test_the_checks_find_what_is_wrong(tmp_path: Path) -> None:
    prepare(tmp_path)
    nothing = [{"operations": 0, "records": 0, "claims": 0}]
    check(tmp_path, nothing)
    with pytest.raises(AssertionError, match="records of worker"):
        check(tmp_path, [nothing[0] | {"records": 1}])
    with pytest.raises(AssertionError, match="claimed"):
        check(tmp_path, [nothing[0] | {"claims": 1}])
    (tmp_path / "d0" / "token-0").unlink()
    with pytest.raises(AssertionError, match="tokens"):
        check(tmp_path, nothing)
