"""How moments, and numbers of things, are shown: to programs, and to people."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(time_ns: int) -> str:
    """UTC with milliseconds, as in ISO 8601."""
    moment = datetime.fromtimestamp(time_ns // 1_000_000 / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_time(time_ns: int, *, now_ns: int) -> str:
    """Local time; with the date where it is not today's."""
    moment, now = (datetime.fromtimestamp(value / 1e9).astimezone() for value in (time_ns, now_ns))
    return moment.strftime("%H:%M:%S" if moment.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def counted(count: int, noun: str) -> str:
    """ "1 moment", "2 moments"."""
    return f"{count} {noun}{'s' * (count != 1)}"
