"""mirrorfs.cli.progress: what is shown, and how often."""

from __future__ import annotations

import io

import pytest

from mirrorfs.cli.progress import Progress, ProgressItem, format_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Watch:
    """A clock that stands until it is set."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (5 * 1024**5, "5.0 PiB"),
        (5 * 1024**6, "5120.0 PiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def half(done_bytes: int = 512) -> list[ProgressItem]:
    return [ProgressItem("a", done_bytes, 1024), ProgressItem("b", 0, 0, note="away")]


def test_lines_where_there_is_no_terminal() -> None:
    stream, watch = io.StringIO(), Watch()
    progress = Progress(stream, now_s=watch)
    progress.show(half())
    assert stream.getvalue() == "a: 50% done, 512 B to go; b: 100% done, 0 B to go, away\n"
    watch.now_s += 1.9
    progress.show(half(600))
    assert stream.getvalue().count("\n") == 1
    watch.now_s += 0.1
    progress.show(half(600))
    watch.now_s += 5
    progress.show(half(600))
    assert stream.getvalue().splitlines()[1:] == ["a: 58% done, 424 B to go; b: 100% done, 0 B to go, away"]
    progress.end()
    assert "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal() -> None:
    stream, watch = Terminal(), Watch()
    progress = Progress(stream, now_s=watch, columns=200)
    progress.show(half())
    assert stream.getvalue().startswith("\ra [##########..........]  50% 512 B to go | b [####")
    watch.now_s += 0.2
    progress.show(half(1024))
    last = stream.getvalue().rpartition("\r")[2]
    assert last.startswith("a [####################] 100%") and "\n" not in stream.getvalue()
    progress.end()
    assert stream.getvalue().endswith(" \r")


def test_a_narrow_terminal_gets_one_line() -> None:
    stream = Terminal()
    Progress(stream, now_s=Watch(), columns=20).show(half())
    assert len(stream.getvalue()) == 1 + 19


@pytest.mark.parametrize(
    ("done", "total", "fraction"), [(0, 0, 1.0), (-5, 10, 0.0), (20, 10, 1.0), (1, 4, 0.25)]
)
def test_fractions_stay_in_range(done: int, total: int, fraction: float) -> None:
    assert ProgressItem("a", done, total).fraction == fraction
