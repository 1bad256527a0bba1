"""How much work something is, by counting: the same on every machine, however busy it is.

Lines of the program that ran show a loop that nobody sees from outside; statements, disk calls and requests
show what leaves the process. The longest step is what one task did while no other could run.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import trio

from mirrorfs.drivers.index_sqlite import SqliteIndex
from tests.support.long_log import ListedDisk, ListedStore

_OURS = "/mirrorfs/"


@dataclass(slots=True)
class Work:
    """What was counted."""

    lines: int = 0
    """Lines of mirrorfs that ran; 0 unless asked for."""
    statements: int = 0
    """Of SQL."""
    disk_calls: int = 0
    requests: int = 0
    """To all stores."""
    cpu_s: float = 0.0
    """Processor time of all threads: a busy machine changes it little."""
    longest_calls: int = 0
    """Statements and disk calls of the longest step."""
    longest_s: float = 0.0
    """Processor time of the longest step."""
    functions: dict[str, int] = field(default_factory=dict)
    """Lines by function, to find out where they went."""


class _Steps(trio.abc.Instrument):
    def __init__(self, work: Work, disk: ListedDisk) -> None:
        self._work = work
        self._disk = disk
        self._start = (0.0, 0)

    def _calls(self) -> int:
        return self._work.statements + self._disk.calls

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._start = time.thread_time(), self._calls()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        start_s, calls = self._start
        if start_s:
            self._work.longest_s = max(self._work.longest_s, time.thread_time() - start_s)
            self._work.longest_calls = max(self._work.longest_calls, self._calls() - calls)


class Counted:
    """Counts what happens in a block, in all tasks."""

    def __init__(self, disk: ListedDisk, stores: Sequence[ListedStore], *, lines: bool = True) -> None:
        """`lines`: count lines, which takes ten times as long."""
        self.work = Work()
        self._disk = disk
        self._stores = stores
        self._lines = lines
        self._steps = _Steps(self.work, disk)
        self._query, self._query_many = SqliteIndex._query, SqliteIndex._query_many
        self._tracer = sys.gettrace()

    def __enter__(self) -> Work:
        work, query, query_many = self.work, self._query, self._query_many

        def one(self: SqliteIndex, *arguments: Any) -> Any:
            work.statements += 1
            return query(self, *arguments)

        def many(self: SqliteIndex, *arguments: Any) -> Any:
            work.statements += 1
            return query_many(self, *arguments)

        SqliteIndex._query, SqliteIndex._query_many = one, many  # type: ignore[method-assign]
        # What was left by whoever prepared this would be looked through in one of the steps counted.
        gc.collect()
        trio.lowlevel.add_instrument(self._steps)
        work.disk_calls, work.requests = -self._disk.calls, -self._requests()
        work.cpu_s = -time.process_time()
        if self._lines:
            sys.settrace(self._trace)
        return work

    def __exit__(self, *_exc: object) -> None:
        work = self.work
        sys.settrace(self._tracer)
        work.cpu_s += time.process_time()
        work.disk_calls += self._disk.calls
        work.requests += self._requests()
        trio.lowlevel.remove_instrument(self._steps)
        SqliteIndex._query, SqliteIndex._query_many = self._query, self._query_many  # type: ignore[method-assign]

    def _requests(self) -> int:
        return sum(store.request_count for store in self._stores)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "call" and _OURS not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.work.lines += 1
            name = frame.f_code.co_qualname
            self.work.functions[name] = self.work.functions.get(name, 0) + 1
        return self._trace
