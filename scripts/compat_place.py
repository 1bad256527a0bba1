"""Where the programs of scripts/compat run, how they are started, and what a failure is."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEADLINE_S = 300.0
START_S = 60.0
_PR_SET_CHILD_SUBREAPER = 36


class CheckFailed(Exception):
    """What a program did is not what it does on ext4; the text says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """One run of one check."""

    folder: Path
    """Empty, on the filesystem under test."""
    work: Path
    """Empty, elsewhere: sockets, logs, homes, what is compared with."""
    remount: Callable[[], None]
    """Unmount and mount the volume; nothing may be open on it."""


@dataclass(frozen=True, slots=True)
class Check:
    """Real programs, and what is done with them."""

    name: str
    needs: Sequence[str]
    """Commands that have to be there."""
    version: Sequence[str]
    """A command that tells the version on its first line."""
    run: Callable[[Place], str]
    """Raises CheckFailed; returns what was checked, in a few words."""


def expect(condition: bool, sentence: str) -> None:
    """Raises CheckFailed with the sentence if the condition does not hold."""
    if not condition:
        raise CheckFailed(sentence)


def environment(place: Place, **more: str) -> dict[str, str]:
    """Free of this user's configuration."""
    return {"PATH": os.environ["PATH"], "HOME": str(place.work), "LC_ALL": "C.UTF-8", **more}


def run(
    place: Place,
    *command: str | Path,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    allowed: Sequence[int] = (0,),
    cwd: Path | None = None,
) -> str:
    """Run a program to its end; its output. Raises CheckFailed: it failed, or took DEADLINE_S."""
    argv = [str(part) for part in command]
    try:
        done = subprocess.run(
            argv,
            cwd=cwd or place.work,
            env=dict(env or environment(place)),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise CheckFailed(f"{argv[0]} did not end within {DEADLINE_S:.0f} s.") from exc
    if done.returncode not in allowed:
        raise CheckFailed(
            f"{' '.join(argv)[:300]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
        )
    return done.stdout


@contextmanager
def server(
    place: Place, *command: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, killed at the end; its output is in work/server.log."""
    with (place.work / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=place.work,
            env=dict(env or environment(place)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a server and its children; they are gone on return."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(START_S)


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one: so that it can wait for them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for_port(place: Place, port: int) -> None:
    """Return when somebody listens. Raises CheckFailed."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    text = (place.work / "server.log").read_text(errors="replace")
    raise CheckFailed(f"The server did not come up: {text[-1500:]}")
