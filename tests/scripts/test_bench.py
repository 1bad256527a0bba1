"""scripts/bench as it is run, at a small scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 240
"""Far beyond what it takes: a hang ends, a slow machine does not fail."""
CHOSEN = ["write-text", "create", "sqlite-wal", "small-reads"]


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with a temporary directory of its own."""
    (folder / "tmp").mkdir()
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "bench_run.py"), *arguments],
        env=dict(os.environ) | {"TMPDIR": str(folder / "tmp")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_bench(tmp_path: Path) -> None:
    samples, markdown = tmp_path / "samples.json", tmp_path / "speeds.md"
    result = bench(
        tmp_path, "--scale", "0.01", "--rounds", "1", "--only", "disk", "null", "mirrorfs",
        "--stores", "memory", "--workload", *CHOSEN, "--json", str(samples), "--markdown", str(markdown),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].startswith("round 1/1: mirrorfs")
    found = json.loads(samples.read_text())
    assert list(found) == ["disk", "null", "mirrorfs"]
    for name, rows in found.items():
        assert sorted(rows) == sorted(CHOSEN), name
        for workload, (sample,) in rows.items():
            assert sample["error"] == "", f"{name}, {workload}"
            assert sample["rate"] > 0
            assert (sample["peak_bytes"] > 0) == (name != "disk")
    assert found["mirrorfs"]["create"][0]["stored_bytes"] >= 20 * 4096
    assert result.stdout.strip() in markdown.read_text()
    assert str(tmp_path) not in markdown.read_text()
    assert "## MirrorFS against its goals" in result.stdout
    assert list((tmp_path / "tmp").iterdir()) == []  # nothing is left behind
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_file_without_a_place_is_refused_at_once(tmp_path: Path) -> None:
    markdown = tmp_path / "speeds.md"
    markdown.write_text("my notes")
    result = bench(tmp_path, "--only", "disk", "--markdown", str(markdown))
    assert result.returncode == 2
    assert result.stderr.startswith(f"{markdown}: put the lines")
    assert result.stdout == ""
    assert markdown.read_text() == "my notes"
