"""scripts/bench: the report and the file it goes into."""

from __future__ import annotations

import pytest

from scripts.bench_measure import Sample
from scripts.bench_report import BEGIN, END, NoMarkers, Report, merged, number, text
from scripts.bench_run import shown_command
from scripts.bench_workloads import with_needed


def samples(*rates: float, peak_bytes: int = 50_000_000) -> list[Sample]:
    return [
        Sample(rate, cpu_s=0.25, peak_bytes=peak_bytes, written_bytes=1000, stored_bytes=1500)
        for rate in rates
    ]


def report(**changes: dict[str, list[Sample]]) -> Report:
    """Two workloads; cryfs is the fastest, but its fsync is none."""
    results = {
        "disk": {"create": samples(500), "create-fsync": samples(90)},
        "null": {"create": samples(200), "create-fsync": samples(80)},
        "mirrorfs": {"create": samples(100), "create-fsync": samples(30)},
        "encfs": {"create": samples(50), "create-fsync": samples(20)},
        "cryfs": {"create": samples(125), "create-fsync": samples(1000)},
    }
    return Report(
        results=results | changes,
        workloads=with_needed(["create", "create-fsync"]),
        peers=["encfs", "cryfs"],
        ignore_fsync=frozenset({"null", "cryfs"}),
        facts=["Measured somewhere."],
    )


def line(full: str, begin: str) -> str:
    """The first line of a report that begins so."""
    return next(each for each in full.splitlines() if each.startswith(begin))


def test_goals_name_the_best_peer_and_what_is_missing() -> None:
    full = text(report())
    assert line(full, "| 4 KiB creates |") == (
        "| 4 KiB creates | cryfs | 0.80 (0.80 to 0.80) | 1.2 | missed by 33 %"
        " | 0.50 (0.50 to 0.50) | 0.75 | missed by 33 % |"
    )


def test_peers_without_fsync_are_no_measure_of_it() -> None:
    assert line(text(report()), "| 4 KiB creates + fsync |") == (
        "| 4 KiB creates + fsync | encfs | 1.50 (1.50 to 1.50) | 1.5 | met | 0.38 (0.38 to 0.38) | - |  |"
    )


def test_rates_costs_and_facts() -> None:
    full = text(report())
    assert full.startswith("- Measured somewhere.\n")
    assert "| 4 KiB creates, /s | 500 | 200 | 100 (0.50) | 50 (0.25) | 125 (0.62) |" in full
    assert "| 4 KiB creates | 0.25 | 0.25 | 0.25 | 0.25 |" in full
    assert "| 4 KiB creates | 50 | 50 | 50 | 50 |" in full
    assert "| 4 KiB creates | 1.50 | 1.50 | 1.50 |" in full
    assert "daemon: 50 MB, goal under 300 MB: met." in full


def test_worst_peak_counts() -> None:
    rows = {"create": samples(100, 100) + samples(100, peak_bytes=330_000_000)}
    assert "daemon: 330 MB, goal under 300 MB: missed by 10 %." in text(report(mirrorfs=rows))


def test_what_failed_is_told() -> None:
    failed = [Sample(0.0, error="OSError: no mmap")]
    full = text(report(encfs={"create": failed, "create-fsync": samples(20)}))
    assert "| 4 KiB creates, /s | 500 | 200 | 100 (0.50) | failed | 125 (0.62) |" in full
    assert "- encfs failed in create: OSError: no mmap" in full


def test_report_without_mirrorfs_has_no_goals() -> None:
    alone = Report(
        results={"disk": {"create": samples(5)}},
        workloads=with_needed(["create"]),
        peers=[],
        ignore_fsync=frozenset(),
        facts=[],
    )
    full = text(alone)
    assert "goals" not in full
    assert "| 4 KiB creates, /s | 5 |" in full


@pytest.mark.parametrize(("value", "shown"), [(1234.5, "1,234"), (99.94, "99.9"), (0.0123, "0.0123")])
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


# --- the file ----------------------------------------------------------------------------------


def test_new_file_has_a_place_for_notes() -> None:
    made = merged(None, "one\n", title="Speeds")
    assert made == f"# Speeds\n\n{BEGIN}\n\none\n\n{END}\n\n## Notes\n"


def test_notes_around_the_report_stay() -> None:
    first = merged(None, "one", title="Speeds")
    noted = first.replace("# Speeds\n", "# Speeds\n\nRead this.\n") + "\nWhy it is so.\n"
    again = merged(noted, "two", title="Speeds")
    assert again == noted.replace("one", "two")
    assert merged(again, "two", title="Speeds") == again


@pytest.mark.parametrize("old", ["", "# Speeds\n", f"{BEGIN}\nno end", f"{END}\n{BEGIN}\n"])
def test_file_without_a_place_is_not_touched(old: str) -> None:
    with pytest.raises(NoMarkers, match=BEGIN):
        merged(old, "new", title="Speeds")


def test_shown_command_has_no_paths() -> None:
    arguments = ["--rounds", "5", "--json", "/x/a", "--only", "null", "--dir=/x", "--markdown", "/x/b"]
    assert shown_command(arguments) == "scripts/bench --rounds 5 --only null"
