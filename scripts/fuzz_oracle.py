"""What the fuzzer takes for a fault: any exception but the documented ones, a hang, time, memory.

A hang is noticed by a timer of CPU time, so that a busy machine alone is none. The timer interrupts Python
code; a loop inside a C library is ended by `faulthandler` with the stack (scripts/fuzz_run.py).
"""

from __future__ import annotations

import resource
import signal
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from scripts.fuzz_targets import Target

TIME_MAX_S = 0.05
"""CPU time for an input of up to 64 KiB; in proportion for longer ones."""
TIME_SIZE_BYTES = 64 * 1024
MEMORY_MAX_KIB = 64 * 1024
"""By how much one input may raise the highest memory use of the process."""
HANG_S = 2.0
"""CPU time between two looks: an input that is seen at two of them hangs."""
_TRIES = 3
_REPOSITORY = str(Path(__file__).resolve().parents[1])


class Finding(Exception):
    """An input that shows a fault. `signature` is the same for inputs that show the same one."""

    def __init__(self, kind: str, signature: str, details: str = "") -> None:
        super().__init__(f"{kind}: {signature}")
        self.kind = kind
        self.signature = signature
        self.details = details


class _Hang(BaseException):
    """Raised into the parser; no `except` of a parser may take it for one of its errors."""


class Judge:
    """Runs inputs of one target; a context manager, for its timer belongs to the process."""

    def __init__(self, target: Target, *, hang_s: float = HANG_S, time_max_s: float = TIME_MAX_S) -> None:
        self._target = target
        self._hang_s = hang_s
        self._time_max_s = time_max_s
        self._count = 0
        self._is_running = False
        self._seen = -1
        self.slowest_s = 0.0

    def __enter__(self) -> Judge:
        # The highest memory use so far is that of something else: it begins anew, at what is used now.
        Path("/proc/self/clear_refs").write_text("5")
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, self._hang_s, self._hang_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self._is_running and self._seen == self._count:
            raise _Hang
        self._seen = self._count

    def run(self, data: bytes) -> str:
        """Run one input. Returns "accepted" or the name of the documented exception.

        Raises: Finding.
        """
        memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome, took_s = self._timed(data)
        limit_s = self._time_max_s * max(1.0, len(data) / TIME_SIZE_BYTES)
        if took_s > limit_s:
            # Once may have been the garbage collector, or the first use of something.
            took_s = min(self._timed(data)[1] for _ in range(_TRIES))
            if took_s > limit_s:
                raise Finding("slow", f"{self._target.name}, more than {limit_s:.2f} s", f"{took_s:.3f} s")
        self.slowest_s = max(self.slowest_s, took_s)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib
        if grown_kib > MEMORY_MAX_KIB:
            raise Finding("memory", self._target.name, f"{grown_kib} KiB for {len(data)} bytes")
        return outcome

    def _timed(self, data: bytes) -> tuple[str, float]:
        self._count += 1
        started_s = time.process_time()
        try:
            self._is_running = True
            try:
                self._target.parse(data)
            finally:
                self._is_running = False
        except self._target.documented as error:
            check_message(error)
            return type(error).__name__, time.process_time() - started_s
        except _Hang as error:
            raise Finding("hang", _place(error).function, _stack(error)) from None
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not documented
            raise Finding("crash", f"{type(error).__name__} at {_place(error).line}", _stack(error)) from None
        return "accepted", time.process_time() - started_s


def check_message(error: Exception) -> None:
    """Raises: Finding: the message is empty, or carries control characters of the input to a terminal."""
    if not str(error).isprintable() or not str(error):
        raise Finding("message", f"{type(error).__name__} at {_place(error).line}", ascii(str(error)))


class _Place(NamedTuple):
    line: str
    function: str
    """A hang is met on any line of a loop."""


def _place(error: BaseException) -> _Place:
    """The innermost line of our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        one
        for one in frames
        if one.filename.startswith(_REPOSITORY) and "/.venv/" not in one.filename and one.filename != __file__
    ]
    last = (ours or frames)[-1]
    file = last.filename.rpartition("/")[2]
    return _Place(f"{file}:{last.lineno}", f"{file}:{last.name}")


def _stack(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
