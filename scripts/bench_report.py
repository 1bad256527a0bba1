"""The tables of a run in Markdown, and the file that keeps them beside notes written by hand. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scripts.bench_goals import (
    CEILING,
    GOALS,
    MEMORY_GOAL_BYTES,
    OWN,
    Ratio,
    best_peer,
    median_rate,
    memory_verdict,
    ratio,
    verdict,
)
from scripts.bench_measure import Results, Sample
from scripts.bench_workloads import Workload

MB = 1_000_000
BEGIN = "<!-- written by scripts/bench --markdown: changes here are lost -->"
END = "<!-- end of what scripts/bench writes -->"
NOTES = "\n\n## Notes\n"
NOTHING = "-"


class NoMarkers(ValueError):
    """A file exists and does not say where the report goes."""


@dataclass(frozen=True, slots=True)
class Report:
    """A run, as the report tells of it."""

    results: Results
    workloads: Sequence[Workload]
    peers: Sequence[str]
    """Encrypted peers of this run."""
    ignore_fsync: frozenset[str]
    """Filesystems whose fsync does not reach the disk."""
    facts: Sequence[str]
    """Sentences on when, where and how it was measured."""


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    rule = "| --- |" + " ---: |" * (len(head) - 1)
    return "\n".join([row(head), rule, *(row(cells) for cells in rows)])


def number(value: float) -> str:
    """Three digits that matter, at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rates(report: Report) -> dict[str, dict[str, list[float]]]:
    return {
        name: {workload: [sample.rate for sample in samples] for workload, samples in rows.items()}
        for name, rows in report.results.items()
    }


def _peer_of(report: Report, rates: Mapping[str, Mapping[str, Sequence[float]]], workload: Workload) -> str:
    """The fastest peer that is a measure of this workload; empty when there is none."""
    peers = [name for name in report.peers if not (workload.fsync_bound and name in report.ignore_fsync)]
    return best_peer(rates, workload.name, peers) or ""


def _shown(found: Ratio | None) -> str:
    if found is None:
        return NOTHING
    return f"{found.value:.2f} ({found.lowest:.2f} to {found.highest:.2f})"


def rates_table(report: Report) -> str:
    """Median rates of all filesystems; in brackets the ratio to the do-nothing one."""
    names, rates = list(report.results), _rates(report)
    rows = []
    for workload in report.workloads:
        base = median_rate(rates.get(CEILING, {}).get(workload.name, ()))
        cells = [f"{workload.title}, {workload.unit}"]
        for name in names:
            rate = median_rate(rates[name].get(workload.name, ()))
            share = f" ({rate / base:.2f})" if base and name not in ("disk", CEILING) else ""
            cells.append(f"{number(rate)}{share}" if rate else "failed")
        rows.append(cells)
    return table(["workload", *names], rows)


def goals_table(report: Report) -> str:
    """MirrorFS against its goals."""
    rates = _rates(report)
    rows = []
    for workload in report.workloads:
        goal, peer = GOALS[workload.name], _peer_of(report, rates, workload)
        to_peer, to_ceiling = (ratio(rates, workload.name, other) for other in (peer, CEILING))
        rows.append(
            [
                workload.title,
                peer or NOTHING,
                _shown(to_peer),
                NOTHING if goal.peer is None else f"{goal.peer:g}",
                verdict(None if to_peer is None else to_peer.value, goal.peer),
                _shown(to_ceiling),
                NOTHING if goal.ceiling is None else f"{goal.ceiling:g}",
                verdict(None if to_ceiling is None else to_ceiling.value, goal.ceiling),
            ]
        )
    head = ["workload", "best peer", "ratio to it", "goal", "", "ratio to null", "goal", ""]
    return table(head, rows)


def _cost_table(report: Report, cell: Callable[[Sequence[Sample]], str]) -> str:
    names = [name for name in report.results if name != "disk"]
    rows = [
        [workload.title, *(cell(report.results[name].get(workload.name, ())) for name in names)]
        for workload in report.workloads
    ]
    return table(["workload", *names], rows)


def cpu_table(report: Report) -> str:
    """Processor time of the daemons."""
    return _cost_table(
        report,
        lambda samples: f"{statistics.median(each.cpu_s for each in samples):.2f}" if samples else NOTHING,
    )


def memory_table(report: Report) -> str:
    """Peak resident memory of the daemons: the worst round."""
    return _cost_table(
        report,
        lambda samples: f"{max(each.peak_bytes for each in samples) / MB:.0f}" if samples else NOTHING,
    )


def stored_table(report: Report) -> str:
    """Bytes that one store grew by, for every byte written."""

    def cell(samples: Sequence[Sample]) -> str:
        written = sum(each.written_bytes for each in samples)
        return f"{sum(each.stored_bytes for each in samples) / written:.2f}" if written else NOTHING

    names = [name for name in report.results if name not in ("disk", CEILING)]
    rows = [
        [workload.title, *(cell(report.results[name].get(workload.name, ())) for name in names)]
        for workload in report.workloads
        if any(cell(report.results[name].get(workload.name, ())) != NOTHING for name in names)
    ]
    return table(["workload", *names], rows)


def memory_sentence(report: Report) -> str:
    """MirrorFS's worst peak against its goal; empty when it was not measured."""
    peaks = [each.peak_bytes for samples in report.results.get(OWN, {}).values() for each in samples]
    if not peaks:
        return ""
    return (
        f"Most resident memory of MirrorFS's daemon: {max(peaks) / MB:.0f} MB,"
        f" goal under {MEMORY_GOAL_BYTES / MB:.0f} MB: {memory_verdict(max(peaks))}."
    )


def failures(report: Report) -> list[str]:
    """What did not work, once each."""
    found = {
        f"{name} failed in {workload}: {each.error}"
        for name, rows in report.results.items()
        for workload, samples in rows.items()
        for each in samples
        if each.error
    }
    return sorted(found)


def text(report: Report) -> str:
    """The whole report."""
    parts = [*(f"- {fact}" for fact in report.facts), ""]
    if OWN in report.results:
        parts += ["## MirrorFS against its goals", "", goals_table(report), "", memory_sentence(report), ""]
    parts += [
        "## Rates", "", "Medians; in brackets the ratio to `null`.", "", rates_table(report), "",
        "## Processor time of the daemon, seconds", "", cpu_table(report), "",
        "## Peak resident memory of the daemon, MB", "", memory_table(report), "",
    ]  # fmt: skip
    if any(name not in ("disk", CEILING) for name in report.results):
        parts += ["## Bytes in one store per byte written", "", stored_table(report), ""]
    broken = failures(report)
    if broken:
        parts += ["## What did not work", "", *(f"- {line}" for line in broken), ""]
    return "\n".join(parts).rstrip() + "\n"


def merged(old: str | None, new: str, *, title: str) -> str:
    """A file's new text: the report between its markers, all that stands around them as it was.

    Args:
        old: the file as it is; None when there is none.
    Raises: NoMarkers: the file has no place for a report.
    """
    part = f"{BEGIN}\n\n{new.strip()}\n\n{END}"
    if old is None:
        return f"# {title}\n\n{part}{NOTES}"
    before, begun, rest = old.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise NoMarkers(f"put the lines\n{BEGIN}\n{END}\nwhere the report belongs")
    return before + part + after
