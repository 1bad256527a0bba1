"""What `status` says of locking: the policy, a token that is gone, and how the last mount ended."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from mirrorfs.cli.config_lock import Removal
from mirrorfs.cli.lock_note import REASONS, LockEvent, LockNote
from mirrorfs.cli.shown_times import local_time, timestamp


def lock_lines(state: Mapping[str, Any] | None) -> list[str]:
    """Of a mounted volume, as session_lock.Locking has it; None: its process is of an older version."""
    if state is None:
        return []
    if state.get("locking") is not None:
        return [f"  BEING LOCKED: {REASONS[LockEvent(state['locking'])]}"]
    if state["read_only"]:
        return ["  READ-ONLY: its token was removed; unmount it and mount it again to write"]
    verb = "turns read-only" if state["on_removal"] == Removal.READ_ONLY else "locks"
    if state["locks_in_s"] is not None:
        return [f"  TOKEN REMOVED: the volume {verb} in {math.ceil(state['locks_in_s'])} s"]
    if state["on_removal"] == Removal.NOTHING:
        return ["  pulling the token does not lock it"]
    doubt = "; whether it is there cannot be told just now" if state["presence"] == "unknown" else ""
    return [f"  {verb} {state['grace_s']} s after its token is removed{doubt}"]


def locked_line(note: LockNote) -> str:
    """Of a volume that is not mounted."""
    moment = local_time(note.time_ns, now_ns=time.time_ns())
    line = f"  It was locked at {moment}: {REASONS[note.event]}."
    return line if note.complete else f"{line} What was written last did not get to the local log."


def locked_json(note: LockNote) -> dict[str, Any]:
    """`locked` of docs/status-json.md."""
    return {"at": timestamp(note.time_ns), "event": note.event.value, "complete": note.complete}
