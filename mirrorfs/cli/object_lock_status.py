"""What `status` tells of a store that locks its objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirrorfs.cli.shown_times import local_time, timestamp


def lock_json(lock: Mapping[str, Any]) -> dict[str, Any]:
    """As docs/status-json.md has it."""
    return {
        "mode": lock["mode"],
        "days": lock["days"],
        "until": None if lock["until_ns"] is None else timestamp(lock["until_ns"]),
        "behind_count": lock["behind_count"],
        "error": lock["error"],
    }


def lock_words(lock: Mapping[str, Any], *, now_ns: int) -> str:
    """What is added to the line of a store."""
    if lock["until_ns"] is None:
        words = f"; {lock['mode']} lock, not yet of everything"
    else:
        words = f"; locked until {local_time(lock['until_ns'], now_ns=now_ns)} at least ({lock['mode']})"
    if lock["behind_count"]:
        words += f"; {lock['behind_count']} locks to be renewed"
    if lock["error"] is not None:
        words += f"; locks are not renewed: {lock['error']}"
    return words
