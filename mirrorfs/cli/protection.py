"""From what the engine says to what people ask: is my data safe, and up to when?

Pure: the daemon's answer and a clock reading in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from mirrorfs.cli.progress import format_bytes
from mirrorfs.cli.shown_times import local_time, timestamp
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.scrub_state import LOCAL
from mirrorfs.format.ids import format_position
from mirrorfs.format.object_lock import DAY_NS

DAY_S: Final = 24 * 3600
COPIES_ENOUGH: Final = 2
KERNEL_HOLDS_S: Final = 30.0
"""How long the kernel may keep written bytes to itself when it was not asked for them."""

_FAULTS: Final = frozenset(
    {
        StateWord.UNREACHABLE,
        StateWord.DENIED,
        StateWord.FULL,
        StateWord.CONFLICT,
        StateWord.WAITING_FOR_LEASE,
    }
)


class Light(StrEnum):
    """One word for a mounted volume."""

    PROTECTED = "protected"
    """Every store holds everything."""
    CATCHING_UP = "catching-up"
    """Something is on its way to the stores, and nothing holds it up."""
    UNTESTED = "untested"
    """Nobody has tried for too long whether everything comes back from a store; else as the two above."""
    AT_RISK = "at-risk"
    """Something is not on a store and does not get there, copies are damaged, a store does not answer for
    too long, went back or failed a drill, files look encrypted, or writing has stopped."""


@dataclass(frozen=True, slots=True)
class StoreProtection:
    """How far one store is."""

    name: str
    state: str
    safe_until_ns: int
    """Everything written before this moment is on the store."""
    pending_bytes: int
    pending_count: int
    rate_bytes_s: int
    failing_since_ns: int | None
    """Since when something holds uploads back, or would; None when nothing does."""
    last_error: str | None
    lag_s: float
    """Age of the oldest change in sealed objects that are not known to be there; 0 when all of those are.

    What is in memory or in the open segment is not counted, which is mirror_delay_s and a few seconds old at
    most: `safe_until_ns` counts it. That one is no measure of age: an hour without changes may lie before it.
    """
    eta_s: float | None
    """When it has everything at the present rate; None where that cannot be told."""
    blocked: str | None
    """Why an object does not get there although others do."""
    weak_fencing: bool
    """A second writer can be told only after the fact."""
    rotating: bool
    """It may be away for long."""
    away_since_ns: int | None
    """When a rotating store that is away was last there."""
    filling: bool
    """It is new, and has never held everything yet."""
    can_delete: bool | None
    """This PC's credentials can remove objects for good; None: not known."""
    lock: Mapping[str, Any] | None
    """Fields of engine.mirror_state.LockState; None: nothing is locked there."""
    drilled_ns: int | None
    """When the last restore drill that passed began; None when none is known here."""
    drill_failed_ns: int | None
    """When the last drill began, if it failed."""
    damaged_count: int
    """Copies there that `verify` found damaged or missing and that are not known to be whole again."""
    went_back_ns: int | None
    """When it was found to have gone back to an earlier state, until a person acknowledges it."""


@dataclass(frozen=True, slots=True)
class Protection:
    """How safe a mounted volume is."""

    light: Light
    reason: str | None
    """Why it is at risk, or what stands in the way; one sentence."""
    as_of_ns: int
    """What was written after this moment is not judged."""
    durable_until_ns: int
    """Everything written before this moment is in the local log."""
    stores: tuple[StoreProtection, ...]
    burst: Mapping[str, Any] | None
    """Of files that look encrypted, while nobody has cleared it: fields of core.sense.Burst."""
    damaged_here: int
    """As `damaged_count` of a store, of the local disk."""


class Thresholds(Protocol):
    """When a delay becomes a risk; 0 turns one off (cli/config_alarm.py)."""

    @property
    def max_lag_s(self) -> int: ...
    @property
    def max_pending_bytes(self) -> int: ...
    @property
    def max_blocked_s(self) -> int: ...
    @property
    def max_absent_days(self) -> int: ...
    @property
    def min_free_bytes(self) -> int: ...
    @property
    def max_drill_days(self) -> int: ...


class LastDrill(Protocol):
    """What is known of the drills on one store (cli/drill_record.py)."""

    @property
    def good_ns(self) -> int | None: ...
    @property
    def failed_ns(self) -> int | None: ...


NO_DRILLS: Final[Mapping[str, LastDrill]] = {}


def judge(
    status: Mapping[str, Any],
    *,
    asked_ns: int,
    written_back: bool,
    thresholds: Thresholds,
    drills: Mapping[str, LastDrill] = NO_DRILLS,
) -> Protection:
    """Judge a status as the daemon sends it.

    Args:
        status: fields of engine.volume.VolumeStatus.
        asked_ns: CLOCK_REALTIME before the kernel was asked to write back, or else before the question.
        written_back: whether the kernel has handed over everything written before asked_ns.
        drills: by names of stores; one that is not among them was never drilled.
    """
    as_of_ns = asked_ns if written_back else asked_ns - int(KERNEL_HOLDS_S * 1e9)
    in_memory = bool(status["dirty_bytes"] or status["pending_records_bytes"])
    # What is in memory was written after the last commit.
    durable_ns = min(as_of_ns, int(status["durable_ns"])) if in_memory else as_of_ns
    open_ns = int(status["open_since_ns"])
    not_offered_ns = min(durable_ns, open_ns) if open_ns else durable_ns
    damaged = status.get("damaged", {})  # a mount of an earlier version does not know of it
    stores = tuple(
        _store(
            store,
            not_offered_ns,
            asked_ns,
            drills.get(store["store"]),
            damaged_count=damaged.get(store["store"], 0),
        )
        for store in status["stores"]
    )
    light, reason = _light(status, stores, all_offered=not in_memory and not open_ns)
    burst = status.get("burst")  # a mount of an earlier version does not know of it
    if burst is not None:
        # Said before all else: what goes wrong besides can wait.
        light, reason = Light.AT_RISK, _burst_reason(burst, asked_ns)
    elif light is not Light.AT_RISK:
        passed = _damaged(damaged) or _passed(status, stores, thresholds, asked_ns)
        if passed is not None:
            light, reason = Light.AT_RISK, passed
    if light is not Light.AT_RISK:
        untested = _untested(stores, thresholds, asked_ns)
        if untested is not None:
            light, reason = Light.UNTESTED, untested
    return Protection(light, reason, as_of_ns, durable_ns, stores, burst, damaged.get(LOCAL, 0))


def _burst_reason(burst: Mapping[str, Any], now_ns: int) -> str:
    position = format_position(burst["clean_position"])
    clean = local_time(burst["clean_ns"], now_ns=now_ns)
    return (
        f"{burst['files']} files were replaced by what looks encrypted, after {clean}. If nobody meant that,"
        " disconnect the PCs that write here; `mirrorfs restore --at "
        f"{position}` brings everything back as it was. If it was meant: `mirrorfs alarm clear VOLUME`."
    )


def went_back_reason(store: str, found_ns: int, now_ns: int) -> str:
    """What there is to say of a store that went back, and to do."""
    return (
        f"Store {store} went back to an earlier state, or lost its newest heads (found at"
        f" {local_time(found_ns, now_ns=now_ns)}); what it lacks is sent again. Find out why it did, then:"
        f" `mirrorfs alarm clear VOLUME --store {store}`."
    )


def burst_json(burst: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """As docs/status-json.md has it."""
    if burst is None:
        return None
    return {
        "files": burst["files"],
        "clean_position": format_position(burst["clean_position"]),
        "clean_at": timestamp(burst["clean_ns"]),
        "last_position": format_position(burst["last_position"]),
        "last_at": timestamp(burst["last_ns"]),
    }


def _damaged(counts: Mapping[str, int]) -> str | None:
    """Where copies are damaged, in a sentence; None when nowhere. `counts`: by store or LOCAL."""
    if not counts:
        return None
    places = [
        f"{count} on the local disk" if place == LOCAL else f"{count} in store {place}"
        for place, count in counts.items()
    ]
    return f"Damaged or missing copies were found: {', '.join(places)}. Run `mirrorfs repair`."


def damaged_copies(count: int) -> str:
    """For people."""
    return f"{count} damaged or missing {'copy' if count == 1 else 'copies'}"


def _passed(
    status: Mapping[str, Any], stores: Sequence[StoreProtection], thresholds: Thresholds, now_ns: int
) -> str | None:
    """Which threshold is passed, in a sentence; None when none is."""
    # A new store is behind from its beginning: that is a risk only where there would be one copy without it.
    enough = sum(1 for store in stores if not store.rotating and not store.filling) >= COPIES_ENOUGH
    for store, raw in zip(stores, status["stores"], strict=True):
        if store.went_back_ns is not None:
            return went_back_reason(store.name, store.went_back_ns, now_ns)
        if store.drill_failed_ns is not None:
            ago = span(max(0.0, (now_ns - store.drill_failed_ns) / 1e9))
            return f"Store {store.name} failed a restore drill {ago} ago; repair it, and run the drill again."
        if (lock := store.lock) is not None and _is_running_out(lock, now_ns):
            why = lock["error"] or "it has not been there for long enough."
            return f"The locks of store {store.name} end, or have ended, and are not renewed: {why}"
        if store.rotating:
            away_s = 0.0 if store.away_since_ns is None else (now_ns - store.away_since_ns) / 1e9
            absent_s = max(store.lag_s, away_s, _failing_s(store, now_ns))
            if 0 < thresholds.max_absent_days * DAY_S < absent_s:
                return f"Rotating store {store.name} has not had everything for {span(absent_s)}."
            continue
        if store.filling and enough:
            continue
        if 0 < thresholds.max_lag_s < store.lag_s:
            return f"Store {store.name} has lacked changes for {span(store.lag_s)}."
        if 0 < thresholds.max_pending_bytes < store.pending_bytes:
            return f"Store {store.name} lacks {format_bytes(store.pending_bytes)}."
        failing_s = _failing_s(store, now_ns)
        if 0 < thresholds.max_lag_s < failing_s:
            why = store.last_error or "changes would not get there."
            return f"Store {store.name} has been {store.state} for {span(failing_s)}: {why}"
        since_ns = raw["blocked_since_ns"]
        if since_ns is not None and 0 < thresholds.max_blocked_s < (now_ns - since_ns) / 1e9:
            return f"An object does not get to store {store.name}: {store.blocked}"
    if thresholds.min_free_bytes > 0 and status["free_bytes"] < thresholds.min_free_bytes:
        return f"Only {format_bytes(status['free_bytes'])} are free on the local disk."
    return None


def _failing_s(store: StoreProtection, now_ns: int) -> float:
    """For how long it has taken nothing, or would have taken nothing; 0.0: it does."""
    if store.state not in _FAULTS or store.failing_since_ns is None:
        return 0.0
    return (now_ns - store.failing_since_ns) / 1e9


def _is_running_out(lock: Mapping[str, Any], now_ns: int) -> bool:
    """Whether locks have ended, or soon do because they cannot be renewed."""
    if lock["until_ns"] is None:
        return lock["error"] is not None
    left_ns = lock["until_ns"] - now_ns
    return left_ns < 0 or (lock["error"] is not None and left_ns < lock["days"] * DAY_NS // 4)


def _untested(stores: Sequence[StoreProtection], thresholds: Thresholds, now_ns: int) -> str | None:
    """Which store was not drilled for too long, in a sentence; None when none was."""
    if thresholds.max_drill_days <= 0:
        return None
    for store in stores:
        if store.filling or store.away_since_ns is not None:
            continue  # it cannot be tried now
        if store.drilled_ns is None:
            return f"No restore drill on store {store.name} has passed on this PC yet."
        age_s = (now_ns - store.drilled_ns) / 1e9
        if age_s > thresholds.max_drill_days * DAY_S:
            return f"The last restore drill on store {store.name} that passed was {span(age_s)} ago."
    return None


def span(seconds: float) -> str:
    """A duration for people."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _store(
    store: Mapping[str, Any],
    not_offered_ns: int,
    now_ns: int,
    drill: LastDrill | None,
    *,
    damaged_count: int,
) -> StoreProtection:
    oldest_ns = store["oldest_pending_ns"]
    pending, rate = int(store["pending_bytes"]), int(store["rate_bytes_s"])
    is_held_back = store["state"] in (*_FAULTS, StateWord.MISSING)
    safe_ns = not_offered_ns if oldest_ns is None else min(not_offered_ns, int(oldest_ns))
    return StoreProtection(
        name=str(store["store"]),
        state=str(store["state"]),
        safe_until_ns=safe_ns,
        pending_bytes=int(store["pending_bytes"]),
        pending_count=int(store["pending_count"]),
        rate_bytes_s=int(store["rate_bytes_s"]),
        failing_since_ns=store["failing_since_ns"],
        last_error=store["last_error"],
        lag_s=max(0.0, (now_ns - int(oldest_ns)) / 1e9) if store["pending_count"] and oldest_ns else 0.0,
        eta_s=0.0 if not pending else pending / rate if rate and not is_held_back else None,
        blocked=store["blocked"],
        weak_fencing=bool(store["weak_fencing"]),
        rotating=bool(store["rotating"]),
        away_since_ns=store["away_since_ns"],
        filling=bool(store["filling"]),
        can_delete=store.get("can_delete"),  # a mount of an earlier version does not know of it
        lock=store.get("lock"),
        drilled_ns=None if drill is None else drill.good_ns,
        drill_failed_ns=None if drill is None else drill.failed_ns,
        damaged_count=damaged_count,
        went_back_ns=store.get("went_back_ns"),  # as can_delete
    )


def _light(
    status: Mapping[str, Any], stores: Sequence[StoreProtection], *, all_offered: bool
) -> tuple[Light, str | None]:
    if status["fatal"] is not None:
        return Light.AT_RISK, f"Writing has stopped: {status['fatal']}"
    if status["fenced"] is not None:
        return Light.AT_RISK, str(status["fenced"])
    if status["stalled"]:
        return Light.AT_RISK, "The local disk is full: free some space."
    for store in stores:
        if store.state in (StateWord.CONFLICT, StateWord.MISSING):
            return Light.AT_RISK, store.last_error
        # With nothing pending, a store that is away lacks only what is not sealed yet. How long: `_passed`.
        if store.state in _FAULTS and (store.pending_count or not all_offered):
            return Light.AT_RISK, store.last_error or f"Store {store.name} is {store.state}."
    if all_offered and not any(store.pending_count for store in stores if store.away_since_ns is None):
        return Light.PROTECTED, None
    return Light.CATCHING_UP, None
