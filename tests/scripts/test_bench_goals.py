"""scripts/bench: ratios, goals and verdicts."""

from __future__ import annotations

import pytest

from scripts.bench_goals import (
    GOALS,
    MEMORY_GOAL_BYTES,
    Ratio,
    best_peer,
    median_rate,
    memory_verdict,
    ratio,
    verdict,
)
from scripts.bench_workloads import WORKLOADS

RATES = {
    "mirrorfs": {"create": [30.0, 20.0, 40.0], "walk": [5.0, 0.0, 5.0]},
    "null": {"create": [60.0, 50.0, 50.0], "walk": [10.0, 10.0, 10.0]},
    "encfs": {"create": [10.0, 20.0, 10.0]},
    "cryfs": {"create": [15.0, 15.0, 15.0], "walk": [0.0, 0.0, 0.0]},
}


def test_every_workload_has_a_goal_and_no_other() -> None:
    assert set(GOALS) == {workload.name for workload in WORKLOADS}


@pytest.mark.parametrize(
    ("workload", "peer", "ceiling"),
    [
        ("write-text", 1.3, 0.35),
        ("write-random", 1.5, 0.55),
        ("read-text-cold", 1.5, 0.6),
        ("read-random-cold", 1.5, 0.6),
        ("create", 1.2, 0.75),
        ("unlink", 1.2, 0.75),
        ("walk", 2.0, 0.75),
        ("list", 2.0, None),
        ("small-reads", 1.3, 0.6),
        ("untar", 1.2, None),
        ("append", 1.0, None),
    ],
)
def test_goals_are_those_that_were_set(workload: str, peer: float, ceiling: float | None) -> None:
    assert (GOALS[workload].peer, GOALS[workload].ceiling) == (peer, ceiling)


def test_fsync_bound_work_has_one_goal() -> None:
    bound = {workload.name for workload in WORKLOADS if workload.fsync_bound}
    assert bound == {"create-fsync", "dicom", "sqlite-delete", "sqlite-wal", "update-fdatasync"}
    assert {GOALS[name].peer for name in bound} == {1.5}


@pytest.mark.parametrize(
    ("rates", "median"), [([3.0, 1.0, 2.0], 2.0), ([4.0], 4.0), ([], 0.0), ([5.0, 0.0, 5.0], 0.0)]
)
def test_median_knows_failed_rounds(rates: list[float], median: float) -> None:
    assert median_rate(rates) == median


def test_ratio_is_that_of_medians_with_the_range_of_rounds() -> None:
    assert ratio(RATES, "create", "null") == Ratio("null", 30 / 50, 20 / 50, 40 / 50)


@pytest.mark.parametrize(("workload", "other"), [("walk", "null"), ("create", "rclone"), ("list", "null")])
def test_no_ratio_without_two_numbers(workload: str, other: str) -> None:
    assert ratio(RATES, workload, other) is None


def test_best_peer() -> None:
    assert best_peer(RATES, "create", ["encfs", "cryfs"]) == "cryfs"
    assert best_peer(RATES, "create", ["encfs"]) == "encfs"
    assert best_peer(RATES, "walk", ["encfs", "cryfs"]) is None  # one was not measured, the other failed
    assert best_peer(RATES, "create", []) is None


@pytest.mark.parametrize(
    ("value", "goal", "said"),
    [
        (1.5, 1.5, "met"),
        (1.6, 1.5, "met"),
        (0.75, 1.5, "missed by 50 %"),
        (1.4999, 1.5, "missed by 1 %"),
        (None, 1.5, "not measured"),
        (0.1, None, ""),
        (None, None, ""),
    ],
)
def test_verdict(value: float | None, goal: float | None, said: str) -> None:
    assert verdict(value, goal) == said


@pytest.mark.parametrize(
    ("peak_bytes", "said"),
    [
        (MEMORY_GOAL_BYTES - 1, "met"),
        (MEMORY_GOAL_BYTES, "missed by 1 %"),
        (2 * MEMORY_GOAL_BYTES, "missed by 100 %"),
    ],
)
def test_memory_verdict(peak_bytes: int, said: str) -> None:
    assert memory_verdict(peak_bytes) == said
