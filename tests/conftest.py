"""House rules for every test: no unexpected warning in the logs, no skips, repeatable examples.

- A test in which the `mirrorfs` loggers say WARNING or more fails, unless it is marked
  `@pytest.mark.expects_warnings("pattern", ...)`: each such message must then match one of the regular
  expressions. Logs are where lost redundancy shows first; a test that looks away would hide it.
- With CI=true or MIRRORFS_NO_SKIPS=1 a skipped test or module fails the run.
- Hypothesis runs the profile `ci` (the same examples every time, no deadlines: a slow machine is not a
  fault); MIRRORFS_HYPOTHESIS_PROFILE=explore looks for new ones.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings

LOGGER_NAME = "mirrorfs"
SKIPPED = pytest.StashKey[list[str]]()

settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("MIRRORFS_HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background with Ctrl-C ignored, and that is inherited.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[SKIPPED] = []
    config.addinivalue_line(
        "markers", "expects_warnings(pattern, ...): log messages of WARNING or more that this test may cause"
    )
    config.pluginmanager.register(SkipRule(config), "mirrorfs-skip-rule")


# --- logs ------------------------------------------------------------------------------------


class _Collector(logging.Handler):
    """Keeps what was logged at WARNING or above, from any thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((f"{record.levelname} {record.name}", record.getMessage()))


@contextmanager
def _unexpected_warnings_fail(item: pytest.Item) -> Iterator[None]:
    """Fail after the block, if it did not fail by itself, when it logged what item does not expect."""
    collector = _Collector()
    logger = logging.getLogger(LOGGER_NAME)
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
    patterns = [pattern for marker in item.iter_markers("expects_warnings") for pattern in marker.args]
    unexpected = [
        f"{source}: {message}"
        for source, message in collector.messages
        if not any(re.search(pattern, message) for pattern in patterns)
    ]
    if unexpected:
        pytest.fail("unexpected in the log:\n" + "\n".join(unexpected), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with _unexpected_warnings_fail(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with _unexpected_warnings_fail(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with _unexpected_warnings_fail(item):
        return (yield)


# --- skips -----------------------------------------------------------------------------------


def skips_are_failures() -> bool:
    """Whether this run must not skip anything."""
    return os.environ.get("CI", "").lower() in {"true", "1"} or os.environ.get("MIRRORFS_NO_SKIPS") == "1"


class SkipRule:
    """Counts skipped tests and modules, and turns the run into a failure where that is the rule."""

    def __init__(self, config: pytest.Config) -> None:
        self._skipped = config.stash[SKIPPED]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        passed = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self._skipped and skips_are_failures() and passed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._skipped and skips_are_failures():
            terminalreporter.section("skipped, which this run does not allow", red=True)
            for nodeid in self._skipped:
                terminalreporter.write_line(nodeid)
