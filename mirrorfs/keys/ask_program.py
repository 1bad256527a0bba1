"""Running a program that asks a person for a secret and hands it over on its standard output.

The program is looked for in fixed directories, never on PATH, and must be out of other users' reach. It gets
a bare environment, no descriptor but its three, a session of its own, and a limit of zero for core dumps; it
is ended and reaped whatever happens. A secret passes through the pipe only, towards us.

It ends with us, too, however we end: started by `setpriv --pdeathsig`, since the same from here would need a
fork that copies our secrets. A pinentry-curses whose terminal was closed would otherwise run for ever.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirrorfs.errors import CannotAsk
from mirrorfs.keys.question import Question, cannot_ask

PROGRAM_DIRECTORIES: Final = ("/usr/bin", "/bin")
END_WAIT_S: Final = 2.0
"""How long a program may take to end by itself, and then after SIGTERM."""
_READ_SIZE: Final = 4096
_STARTER: Final = "setpriv"  # of util-linux


def find_program(name: str, question: Question) -> str:
    """Look for a program.

    Returns: the path of its file; no link is followed again after it was checked.
    Raises: CannotAsk: it is not installed, or others could change it.
    """
    for directory in PROGRAM_DIRECTORIES:
        path = os.path.join(directory, name)
        if not os.path.lexists(path):
            continue
        real_path = os.path.realpath(path)
        # The directories that a link lies in count too: who writes there could point it elsewhere.
        checked = [*Path(path).parents, *Path(real_path).parents]
        try:
            found = os.stat(real_path, follow_symlinks=False)
            is_safe = _is_out_of_reach(found) and all(_is_out_of_reach(os.stat(place)) for place in checked)
        except OSError as exc:
            raise cannot_ask(
                question, f"The program {path} cannot be looked at, and needs to be installed anew"
            ) from exc
        if not stat.S_ISREG(found.st_mode) or not os.access(real_path, os.X_OK):
            raise cannot_ask(
                question, f"{path} is no program that can be run, and needs to be installed anew"
            )
        if not is_safe:
            raise cannot_ask(
                question, f"Others could change the program {path} (run 'chmod go-w' on it and its directory)"
            )
        return real_path
    raise cannot_ask(
        question, f"The program {name}, needed to ask for the {question.kind.title}, is not installed"
    )


def check_program(name: str, question: Question) -> None:
    """Raises: CannotAsk: it cannot be run by `running`, as far as can be told without."""
    find_program(name, question)
    find_program(_STARTER, question)


def _is_out_of_reach(found: os.stat_result) -> bool:
    if found.st_uid not in (0, os.geteuid()):
        return False
    # In a sticky directory, such as /tmp, others cannot touch what is not theirs.
    is_sticky = stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)
    return is_sticky or not found.st_mode & 0o022


class Helper:
    """A program that runs; see `running`."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, question: Question) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout_fd = process.stdout.fileno()
        self._name = name
        self._question = question
        self._buffer = b""

    def send(self, line: bytes) -> None:
        """Write a line, which is not secret. Raises: CannotAsk: the program has ended."""
        try:
            self._stdin.write(line + b"\n")
        except BrokenPipeError as exc:
            raise self.failed("ended by itself") from exc

    def read_line(self, *, deadline_s: float, size_max: int) -> bytes:
        """The next line, without its LF or CR LF.

        Args:
            deadline_s: of time.monotonic().
            size_max: bytes of the line, its end not counted.
        Raises: CannotAsk: the output has ended, or the line is longer. TimeoutError: the deadline passed.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > size_max + 1:
                raise self.failed("said more than it may")
            more = self._read(deadline_s)
            if not more:
                raise self.failed("ended by itself")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        line = line.removesuffix(b"\r")
        if len(line) > size_max:
            raise self.failed("said more than it may")
        return line

    def read_to_end(self, *, deadline_s: float, size_max: int) -> bytes:
        """All output until the program closes it. Raises: CannotAsk: longer. TimeoutError."""
        while more := self._read(deadline_s):
            self._buffer += more
            if len(self._buffer) > size_max:
                raise self.failed("said more than it may")
        return self._buffer

    def wait(self) -> int:
        """The exit code of a program that has closed its output. Raises: CannotAsk: it goes on."""
        try:
            return self._process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired as exc:
            raise self.failed("does not end") from exc

    def failed(self, why: str) -> CannotAsk:
        """The error for a program that does not do what it should."""
        return cannot_ask(self._question, f"{self._name} {why} and gave no {self._question.kind.title}")

    def _read(self, deadline_s: float) -> bytes:
        poll = select.poll()
        poll.register(self._stdout_fd, select.POLLIN)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise TimeoutError
        return os.read(self._stdout_fd, _READ_SIZE)


@contextmanager
def running(
    name: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    question: Question,
    show_errors: bool = False,
) -> Iterator[Helper]:
    """Run a program for the length of a block; it has ended and is reaped afterwards.

    Args:
        arguments: nothing secret.
        environment: the whole of it; nothing secret.
        show_errors: what it says on standard error goes to ours, instead of nowhere.
    Raises: CannotAsk: it cannot be started; see `find_program` too.
    """
    command = [find_program(name, question), *arguments]
    starter = find_program(_STARTER, question)
    # Inherited by what is started; this process holds secrets and wants none either.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        process = subprocess.Popen(
            [starter, "--pdeathsig", "TERM", "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show_errors else subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env=dict(environment),
            start_new_session=True,  # Ctrl-C comes to us, who end it
        )
    except OSError as exc:
        raise cannot_ask(question, f"The program {name} cannot be started") from exc
    try:
        yield Helper(process, name, question)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            pass  # it gave its answer, and is ended below
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # what it started included
            try:
                process.wait(END_WAIT_S)
            except subprocess.TimeoutExpired:
                pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
