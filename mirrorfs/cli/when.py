"""Moments in the past as people write them, for --at, --since and the like; and names of snapshots."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, time, timedelta
from typing import Final

from mirrorfs.engine.moment import Moment
from mirrorfs.errors import FormatError, LimitError, UsageError
from mirrorfs.format.ids import parse_position
from mirrorfs.format.names import check_snapshot_name

_AGO = re.compile(
    r"([0-9]{1,9})\s*(s|min|m|h|d|w|(?:second|minute|hour|day|week)s?)(?:\s+ago)?", re.IGNORECASE
)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
"""By the first letter of a unit."""
_NS_PER_S: Final = 1_000_000_000
_TIME = r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?"
_DAY = re.compile(rf"(today|yesterday)(?:[ T]+{_TIME})?", re.IGNORECASE)
_POSITION = re.compile(r"([0-9]{1,13})([.:])([0-9]{1,7})")
_CLOCK = re.compile(_TIME)
_LIKE_A_MOMENT = re.compile(
    r"(now|today|yesterday|tomorrow)\b.*|.*\bago|[0-9]{4}-?[0-9]{2}-?[0-9]{2}T.*", re.IGNORECASE
)
"""Taken for a moment that was mistyped, or that a later version may know: no name of a snapshot. Nor is what
has no letter."""


def parse_when(text: str, *, now_ns: int) -> int:
    """A moment in nanoseconds since the epoch.

    Either a date with or without a time (2026-03-01, "2026-03-01 14:05", 2026-03-01T14:05:30+01:00; local
    time unless an offset or Z is given; a bare date is its midnight), "today" or "yesterday" with or without
    a time ("yesterday 18:00"), a time of today (18:00), or an age: 90s, 15m, 2h, 3d, 1w, "3 days", each with
    or without "ago".
    Raises: UsageError: none of these, or in the future.
    """
    text = text.strip()
    match = _AGO.fullmatch(text)
    if match is not None:
        return now_ns - int(match[1]) * _UNIT_S[match[2][0].lower()] * _NS_PER_S
    try:
        moment = _day(text, now_ns=now_ns) or datetime.fromisoformat(text)
        whole_s = int(moment.replace(microsecond=0).timestamp())
    except (ValueError, OverflowError, OSError) as exc:
        raise UsageError(
            "The moment cannot be read; write it as 2026-03-01, '2026-03-01 14:05', 'yesterday 18:00', 18:00,"
            " 2h, '3 days ago', a position such as 17.203 or the name of a snapshot."
        ) from exc
    when_ns = whole_s * _NS_PER_S + moment.microsecond * 1000
    if when_ns > now_ns:
        raise UsageError("That moment lies in the future; give one in the past.")
    return when_ns


def _day(text: str, *, now_ns: int) -> datetime | None:
    match = _DAY.fullmatch(f"today {text}" if _CLOCK.fullmatch(text) else text)
    if match is None:
        return None
    day = datetime.fromtimestamp(now_ns // _NS_PER_S).date()
    if match[1].lower() == "yesterday":
        day -= timedelta(days=1)
    # A naive value: local time, so that a change to summer time in between does no harm.
    return datetime.combine(day, time(int(match[2] or 0), int(match[3] or 0), int(match[4] or 0)))


def parse_moment(text: str, *, now_ns: int) -> Moment:
    """What --at means: a moment as `parse_when` reads it, a position such as 17.203 or 17:203, or a snapshot.

    What looks like a time of day is one: 17:20 is today's, the position is written 17.20. Whether there is a
    snapshot of that name shows later.
    Raises: UsageError: none of these, or in the future.
    """
    text = text.strip()
    if _is_moment(text):
        return _parse_moment(text, now_ns=now_ns)
    try:
        return Moment(snapshot=snapshot_name(text))
    except UsageError:
        return _parse_moment(text, now_ns=now_ns)  # which says how moments are written


def snapshot_name(text: str) -> bytes:
    """The name of a snapshot as it was typed, in Unicode's form C.

    Raises: UsageError: it cannot be one, for its form or because it would be read as a moment.
    """
    name = unicodedata.normalize("NFC", text)
    if _is_moment(name):
        raise UsageError("That is how a moment is written; choose another name for a snapshot.")
    encoded = name.encode(errors="surrogateescape")
    try:
        check_snapshot_name(encoded)
    except FormatError as exc:
        raise UsageError(str(exc)) from exc
    return encoded


def _is_moment(text: str) -> bool:
    """Whether it is read as a moment, whenever that is, or was probably meant to be one."""
    if _LIKE_A_MOMENT.fullmatch(text) or not any(map(str.isalpha, text)):
        return True
    if _AGO.fullmatch(text) or _POSITION.fullmatch(text):
        return True
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _parse_moment(text: str, *, now_ns: int) -> Moment:
    match = _POSITION.fullmatch(text)
    if match is None or _CLOCK.fullmatch(text):
        return Moment(time_ns=parse_when(text, now_ns=now_ns))
    try:
        position = parse_position(f"{match[1]}.{match[3]}")
    except LimitError as exc:
        raise UsageError(
            "That position is beyond what a volume can hold; copy it from what was shown."
        ) from exc
    assert position is not None
    return Moment(position=position)
