"""A pinentry and a systemd-ask-password played by a script, for tests; asking_programs.py installs them.

Both are strict: what a real one might tolerate ends the run, and is written down. The scene is JSON in the
folder the program lies in. A line of it that begins with "!" is an act: `!die`, `!hang`, `!deaf` (SIGTERM
does not end it either), `!huge` (output without end), `!wait NAME` (until that file is there), `!exit N`;
any other is printed as it is, byte for character. What was heard, and what the program found around it, goes
to a file of its own for each run.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

DEADLINE_S = 60.0
LINE_SIZE_MAX = 1000
OPTIONS = {"ttyname", "ttytype", "lc-ctype", "lc-messages"}
COMMANDS = {
    "OPTION", "GETINFO", "SETTITLE", "SETDESC", "SETPROMPT", "SETERROR", "SETREPEAT", "SETREPEATERROR",
    "SETTIMEOUT", "GETPIN", "BYE",
}  # fmt: skip


class Scene:
    """One run of a program."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.script: dict[str, Any] = json.loads((self._folder / "scene.json").read_text())
        self.number = len(list(self._folder.glob("run-*")))
        """Of this run, from 0."""
        self._heard: list[str] = []
        limits = Path("/proc/self/limits").read_text()
        self._around = {
            "pid": os.getpid(),
            "session": os.getsid(0),
            "argv": sys.argv[1:],
            "environment": sorted(os.environ),
            "descriptors": self._descriptors(),
            "core": re.findall(r"Max core file size +(\S+) +(\S+)", limits)[0],
            "directory": os.getcwd(),
        }
        self._write()

    def _descriptors(self) -> list[int]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                os.fstat(int(name))
            except OSError:  # the one that listed them
                continue
            found.append(int(name))
        return sorted(found)

    def hear(self, line: str) -> None:
        """Note a line that came in."""
        self._heard.append(line)
        self._write()

    def violated(self, why: str) -> NoReturn:
        """The caller did what it must not."""
        self.hear(f"VIOLATION: {why}")
        sys.exit(70)

    def play(self, lines: list[str], end: str) -> None:
        """Print lines, and do what they say."""
        for line in lines:
            if not line.startswith("!"):
                self._print((line + end).encode("latin-1"))
                continue
            act, _, argument = line.partition(" ")
            if act == "!die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif act == "!exit":
                sys.exit(int(argument))
            elif act == "!huge":
                while True:
                    self._print(b"D " + b"x" * 500 + end.encode())
            elif act == "!wait":
                deadline_s = time.monotonic() + DEADLINE_S
                while not (self._folder / argument).exists():
                    if time.monotonic() > deadline_s:
                        self.violated(f"nobody made {argument}")
                    time.sleep(0.02)
            else:
                assert act in ("!hang", "!deaf")
                if act == "!deaf":
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self.hear(act)
                time.sleep(DEADLINE_S)

    def _print(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(1, data) :]
            except BrokenPipeError:
                sys.exit(0)

    def _write(self) -> None:
        # Renamed into place: whoever watches sees whole files.
        path = self._folder / f"run-{self.number:02}"
        new = self._folder / f".new-{self.number:02}"
        new.write_text(json.dumps({**self._around, "heard": self._heard}))
        new.rename(path)


def pinentry_main(folder: str) -> None:
    """Play a pinentry: scene keys `end`, `greeting`, `getpin` (a list per run), and one per other command."""
    scene = Scene(folder)
    end = scene.script.get("end", "\n")
    scene.play(scene.script.get("greeting", ["OK Pleased to meet you"]), end)
    done: set[str] = set()
    pending = b""
    while True:
        while b"\n" not in pending:
            more = os.read(0, 65536)
            if not more:
                sys.exit(0)
            pending += more
        raw, _, pending = pending.partition(b"\n")
        if pending or (raw != b"BYE" and select.select([0], [], [], 0)[0] and os.read(0, 1)):
            scene.violated("a command before the reply to the one before")
        command = _understood(scene, raw)
        done.add(command)
        if command == "GETPIN":
            if not {"SETDESC", "SETPROMPT", "SETTIMEOUT"} <= done:
                scene.violated("nobody would know what is asked for")
            scene.play(scene.script["getpin"][scene.number], end)
        elif command == "BYE":
            scene.play(["OK closing connection"], end)
            sys.exit(0)
        else:
            default = ["D gtk2", "OK"] if command == "GETINFO" else ["OK"]
            scene.play(scene.script.get(command, default), end)


def _understood(scene: Scene, raw: bytes) -> str:
    """The command of a line that is as it must be."""
    if len(raw) >= LINE_SIZE_MAX or b"\r" in raw or re.search(rb"%(?![0-9A-F]{2})", raw):
        scene.violated("not an Assuan line")
    try:
        text = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), raw).decode()
    except UnicodeDecodeError:
        scene.violated("not UTF-8")
    scene.hear(text)
    command, _, argument = text.partition(" ")
    if command not in COMMANDS:
        scene.violated(f"unknown command {command}")
    if command == "OPTION":
        name, equals, value = argument.partition("=")
        if name not in OPTIONS or not equals or not value:
            scene.violated("not an option")
    if command == "GETPIN" and argument:
        scene.violated("GETPIN takes nothing")
    if command.startswith("SET") and not argument:
        scene.violated(f"{command} of nothing")
    return command


def systemd_main(folder: str) -> None:
    """Play a systemd-ask-password: scene key `answers`, one list per run."""
    scene = Scene(folder)
    shape = (r"--no-tty", r"--timeout=[0-9]+", r"--id=mirrorfs:[a-z_]+:[A-Za-z0-9._-]+", r"--", r"[^-].*:")
    given = sys.argv[1:]
    if len(given) != len(shape) or not all(re.fullmatch(*pair) for pair in zip(shape, given, strict=True)):
        scene.violated(f"not understood: {given}")
    scene.play(scene.script["answers"][scene.number], scene.script.get("end", "\n"))
