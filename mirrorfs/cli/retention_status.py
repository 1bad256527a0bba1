"""What `mirrorfs status` says of history: how far back it is kept, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mirrorfs.cli.config_retention import policy_words
from mirrorfs.cli.control_protocol import Message
from mirrorfs.cli.shown_times import counted, local_time, timestamp
from mirrorfs.core.retention import DAY_NS, POLICY_DELAY_NS, Policy
from mirrorfs.engine.volume import MountedVolume


def retention_answer(volume: MountedVolume) -> Message | None:
    """What the session knows; None: everything is kept, and nothing else is wanted."""
    pruner, state = volume.pruner, volume.daily_prune.next_policy()
    base, older, condemned = pruner.history()
    leaving = sorted(volume.snapshots.leaving().values())
    is_as_ever = state.in_force is None and state.wanted is None and base is None
    if is_as_ever and not leaving and not pruner.reseal.is_wanted:
        return None
    reseal: Message | None = None
    if pruner.reseal.is_wanted:
        found = pruner.reseal.state()
        until_ns = None
        if found.last_ns and state.in_force is not None:
            until_ns = found.last_ns + state.in_force.every_moment * DAY_NS
        reseal = {"left": found.left, "of": found.of, "until_ns": until_ns}
    return {
        "policy": None if state.in_force is None else asdict(state.in_force),
        "waits": None if state.wanted is None else asdict(state.wanted),
        "waits_until_ns": None if state.wanted is None else state.since_ns + POLICY_DELAY_NS,
        "base_ns": None if base is None else base.time_ns,
        "older_moments": older,
        "condemned": condemned,
        "denied": pruner.denied,
        "left": pruner.left,
        "reseal": reseal,
        "leaving": leaving,
    }


def retention_json(answer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The field `retention` of docs/status-json.md."""
    if answer is None:
        return None
    reseal = answer["reseal"]
    return {
        "in_force": answer["policy"] is not None,
        "waits_until": _timestamp(answer["waits_until_ns"]),
        "every_moment_since": _timestamp(answer["base_ns"]),
        "older_moments": answer["older_moments"],
        "condemned": answer["condemned"],
        "denied": answer["denied"],
        "left": answer.get("left", []),  # a mount of an earlier version does not know of it
        "snapshots_leaving": [timestamp(goes_ns) for goes_ns in answer.get("leaving", [])],
        "reseal": None
        if reseal is None
        else {"left": reseal["left"], "of": reseal["of"], "until": _timestamp(reseal["until_ns"])},
    }


def retention_lines(answer: Mapping[str, Any] | None, *, now_ns: int) -> list[str]:
    """The lines for people."""
    if answer is None:
        return []
    line = "  history: every moment there ever was"
    if answer["base_ns"] is not None:
        line = f"  history: every moment since {local_time(answer['base_ns'], now_ns=now_ns)}"
        line += f", {counted(answer['older_moments'], 'older moment')}"
    if answer["waits"] is not None:
        until = local_time(answer["waits_until_ns"], now_ns=now_ns)
        line += f"; from {until} on: {policy_words(Policy(**answer['waits']))}"
    if answer["condemned"]:
        waits = "waits for its" if answer["condemned"] == 1 else "wait for their"
        line += f"; {counted(answer['condemned'], 'segment')} {waits} deletion"
    for store in answer.get("left", []):
        line += f"; in store {store} that is for the machine that prunes it"
    for store in answer["denied"]:
        line += f"; store {store} does not let this PC delete"
    lines = [line, *_reseal_line(answer["reseal"], now_ns=now_ns)]
    if answer.get("leaving"):
        first = local_time(answer["leaving"][0], now_ns=now_ns)
        snapshots = counted(len(answer["leaving"]), "snapshot")
        goes = "was deleted and goes" if len(answer["leaving"]) == 1 else "were deleted; the first goes"
        lines.append(f"  {snapshots} {goes} on {first}: `mirrorfs snapshot keep` takes that back")
    return lines


def _reseal_line(reseal: Mapping[str, Any] | None, *, now_ns: int) -> list[str]:
    if reseal is None:
        return []
    line = f"  re-sealing: {reseal['left']} of {counted(reseal['of'], 'segment')} still under old keys"
    if reseal["until_ns"] is not None:
        line += f"; the last of them leaves the log on {local_time(reseal['until_ns'], now_ns=now_ns)}"
    return [line]


def _timestamp(time_ns: int | None) -> str | None:
    return None if time_ns is None else timestamp(time_ns)
