"""Installs the played pinentry and systemd-ask-password, and looks for secrets where none may be."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0


class PlayedProgram:
    """One of the two, in a folder that the code under test is made to look into."""

    def __init__(self, folder: Path, name: str) -> None:
        main = {"pinentry": "pinentry_main", "systemd-ask-password": "systemd_main"}[name]
        self.folder = folder
        self.path = folder / name
        folder.mkdir(mode=0o755)
        # Not with pytest's own path: it has to start fast, and with nothing of the environment.
        self.path.write_text(
            f"#!{sys.executable} -I\n"
            "import sys\n"
            f"sys.path.insert(0, {str(REPOSITORY / 'tests/support')!r})\n"
            f"from asking_scene import {main}\n"
            f"{main}({str(folder)!r})\n"
        )
        self.path.chmod(0o755)
        (folder / "setpriv").symlink_to("/usr/bin/setpriv")

    def plays(self, **script: object) -> None:
        """What the next runs do; see asking_scene.py. Earlier runs are forgotten."""
        for run in self.folder.glob("run-*"):
            run.unlink()
        (self.folder / "scene.json").write_text(json.dumps(script))

    def runs(self) -> list[dict[str, Any]]:
        """What each run heard and found around it so far."""
        runs = [json.loads(path.read_text()) for path in sorted(self.folder.glob("run-*"))]
        violations = [line for run in runs for line in run["heard"] if line.startswith("VIOLATION")]
        assert not violations, violations
        return runs

    def go_on(self, name: str) -> None:
        """Let a run that waits for this name go on."""
        (self.folder / name).touch()

    def wait_for(self, line: str, *, run: int) -> dict[str, Any]:
        """Return a run once it has heard a line."""
        wait_until(lambda: len(self.runs()) > run and line in self.runs()[run]["heard"])
        return self.runs()[run]


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when something came true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it does not come true"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether there is such a process, a zombie included: one that was not reaped."""
    return Path(f"/proc/{pid}").exists()


def processes_below(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which is in brackets and may hold anything: state, parent.
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def processes_showing(secrets: Iterable[str], pids: Iterable[int]) -> list[str]:
    """Where a secret stands in the arguments or the environment of a process: `ps` shows them."""
    found = []
    for pid in pids:
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{pid}/{name}").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [f"{pid}/{name}" for secret in secrets if secret.encode() in data]
    return found


def own_children() -> list[int]:
    """Descendants of this process."""
    return processes_below(os.getpid())[1:]
