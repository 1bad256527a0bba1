"""scripts/outage in small: a store away for a whole load, one wiped, both damaged, a follower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "outage_run.py"
DEADLINE_S = 500
"""Far beyond what it takes: a hang ends, a slow machine does not fail."""


def test_outage(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--size", "120MiB", "--corrupt", "6", "--refreshes", "1"],
        env=dict(os.environ) | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    passed = [line.split()[1].rstrip(":") for line in lines if line.startswith("PASSED ")]
    assert passed == ["outage", "wipe", "damage", "follower"]
    assert lines[-1] == "PASSED"
    assert any("verify --deep named all 12 damaged copies and no other" in line for line in lines)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
