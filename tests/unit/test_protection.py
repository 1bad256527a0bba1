"""mirrorfs.cli.protection, status, waiting: what is safe up to when, and how long stores are waited for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.drill_record import LastDrills
from mirrorfs.cli.protection import KERNEL_HOLDS_S, Light, judge
from mirrorfs.cli.shown_times import local_time
from mirrorfs.cli.status import VolumeReport, as_json, as_text, timestamp
from mirrorfs.cli.waiting import Patience
from mirrorfs.engine.mirror_state import MirrorState, StateWord
from mirrorfs.format.object_lock import DAY_NS

S = 1_000_000_000
NOW_NS = 1_800_000_000 * S
DAY = 24 * 3600 * S


def store(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "store": name,
        "held_count": 3,
        "pending_count": 0,
        "pending_bytes": 0,
        "oldest_pending_ns": None,
        "safe_before_ns": None,
        "rate_bytes_s": 0,
        "failing_since_ns": None,
        "last_error": None,
        "state": "up to date",
        "blocked": None,
        "blocked_since_ns": None,
        "weak_fencing": False,
        "rotating": False,
        "away_since_ns": None,
        "filling": False,
        **changes,
    }


def status(*stores: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "durable_ns": NOW_NS - 60 * S,
        "dirty_bytes": 0,
        "pending_records_bytes": 0,
        "open_since_ns": 0,
        "files": 1,
        "allocated_bytes": 2048,
        "free_bytes": 10 << 30,
        "stalled": False,
        "fatal": None,
        "fenced": None,
        "burst": None,
        "damaged": {},
        "stores": list(stores),
        **changes,
    }


PENDING = {
    "pending_count": 2,
    "pending_bytes": 100,
    "oldest_pending_ns": NOW_NS - 30 * S,
    "state": "catching up",
}
AWAY = {
    **PENDING,
    "state": "unreachable",
    "last_error": "Store a is away.",
    "failing_since_ns": NOW_NS - 20 * S,
}

CASES: list[tuple[dict[str, Any], Light, int]] = [
    (status(store()), Light.PROTECTED, 0),
    (status(store(**PENDING)), Light.CATCHING_UP, 30),
    (status(store(), open_since_ns=NOW_NS - 7 * S), Light.CATCHING_UP, 7),
    (status(store(), dirty_bytes=1), Light.CATCHING_UP, 60),
    (status(store(), pending_records_bytes=1, open_since_ns=NOW_NS - 70 * S), Light.CATCHING_UP, 70),
    (status(store(**PENDING), open_since_ns=NOW_NS - 7 * S), Light.CATCHING_UP, 30),
    (status(store(**AWAY)), Light.AT_RISK, 30),
    (status(store(state="unreachable", last_error="Store a is away.")), Light.PROTECTED, 0),
    (status(store(state="unreachable"), dirty_bytes=1), Light.AT_RISK, 60),
    (status(store(state="conflict", last_error="Odd bytes.")), Light.AT_RISK, 0),
    (status(store(), fatal="The disk failed."), Light.AT_RISK, 0),
    (status(store(), fenced="Another machine took over."), Light.AT_RISK, 0),
    (status(store(), stalled=True), Light.AT_RISK, 0),
]


@pytest.mark.parametrize(("given", "light", "lag_s"), CASES)
def test_judgement(given: dict[str, Any], light: Light, lag_s: int) -> None:
    found = judge(given, asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig())
    assert found.light is light
    assert found.stores[0].safe_until_ns == NOW_NS - lag_s * S
    assert (found.reason is not None) == (light is Light.AT_RISK)


def test_what_the_kernel_still_holds_is_not_called_safe() -> None:
    found = judge(status(store()), asked_ns=NOW_NS, written_back=False, thresholds=AlarmConfig())
    assert found.as_of_ns == found.stores[0].safe_until_ns == NOW_NS - KERNEL_HOLDS_S * S


def report(given: dict[str, Any]) -> VolumeReport:
    answer = {"mountpoint": "/mnt", "read_only": False, "pid": 7, "status": given}
    return VolumeReport(
        "v", "/mnt", answer, judge(given, asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig()), None
    )


SILENT = {"state": "unreachable", "last_error": "Store a is away.", "failing_since_ns": NOW_NS - 3 * 3600 * S}


@pytest.mark.parametrize(
    ("given", "max_lag_s", "expected"),
    [
        ([store(**SILENT)], 3600, Light.AT_RISK),
        ([store(**SILENT)], 4 * 3600, Light.PROTECTED),
        ([store(**SILENT)], 0, Light.PROTECTED),
        ([store(**{**SILENT, "state": "denied"}), store("b")], 3600, Light.AT_RISK),
        ([store(**{**SILENT, "state": "waiting for lease"})], 3600, Light.AT_RISK),
        # What failed once and goes on is none of it.
        ([store(**{**SILENT, "state": "up to date"})], 3600, Light.PROTECTED),
        # A new store counts where there is one copy without it, a rotating one after days.
        ([store(**SILENT, filling=True), store("b"), store("c")], 3600, Light.PROTECTED),
        ([store(**SILENT, filling=True), store("b")], 3600, Light.AT_RISK),
        ([store(**SILENT, rotating=True), store("b")], 3600, Light.PROTECTED),
        (
            [store(**{**SILENT, "state": "denied", "failing_since_ns": NOW_NS - 31 * DAY}, rotating=True)],
            3600,
            Light.AT_RISK,
        ),
    ],
)
def test_a_store_that_has_everything_and_does_not_answer(
    given: list[dict[str, Any]], max_lag_s: int, expected: Light
) -> None:
    thresholds = AlarmConfig(max_lag_s=max_lag_s)
    found = judge(status(*given), asked_ns=NOW_NS, written_back=True, thresholds=thresholds)
    assert found.light is expected
    assert (found.reason is not None) == (expected is Light.AT_RISK)


def test_what_is_said_of_a_silent_store() -> None:
    first, reason, line = as_text(report(status(store(**SILENT))))[:3]
    assert first == "v: AT RISK, mounted on /mnt"
    assert reason == "  Store a has been unreachable for 3 hours: Store a is away."
    early = {**SILENT, "failing_since_ns": NOW_NS - 60 * S}
    first, line = as_text(report(status(store(**early))))[:2]
    assert first == "v: protected, mounted on /mnt"
    assert "is safe there; unreachable since " in line and line.endswith(": Store a is away.")


def test_words_for_people() -> None:
    lines = as_text(report(status(store(**AWAY), store("b"))))
    assert lines[0] == "v: AT RISK, mounted on /mnt"
    assert lines[1] == "  Store a is away."
    assert "a: everything before" in lines[2] and "100 B to go; unreachable since " in lines[2]
    assert lines[2].endswith(": Store a is away.")
    assert lines[3].endswith("is safe there")
    assert as_text(VolumeReport("v", None, None, None, None)) == ["v: is not mounted."]


BURST = {
    "clean_position": 17 << 20 | 203, "clean_ns": NOW_NS - 600 * S,
    "last_position": 18 << 20 | 5, "last_ns": NOW_NS - 10 * S, "files": 37,
}  # fmt: skip


def test_files_that_look_encrypted_come_before_all_else() -> None:
    found = report(status(store(**AWAY), fatal="The disk failed.", burst=BURST))
    assert found.protection is not None and found.protection.light is Light.AT_RISK
    lines = as_text(found)
    assert lines[0].startswith("v: AT RISK")
    assert "37 files were replaced" in lines[1] and "restore --at 17.203`" in lines[1]
    assert "alarm clear VOLUME" in lines[1]
    burst = as_json(found)["burst"]
    assert (burst["files"], burst["clean_position"], burst["last_position"]) == (37, "17.203", "18.5")
    assert burst["clean_at"] == timestamp(NOW_NS - 600 * S) and burst["last_at"] == timestamp(NOW_NS - 10 * S)
    assert as_json(report(status(store())))["burst"] is None
    assert as_json(VolumeReport("v", None, None, None, None))["burst"] is None


def test_the_limits_in_force() -> None:
    given = status(store())
    answer = {"mountpoint": "/mnt", "read_only": False, "pid": 7, "status": given}
    protection = judge(given, asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig())
    rates = {"upload_bytes_s": 500 << 10, "download_bytes_s": 0}
    some = VolumeReport("v", "/mnt", {**answer, "limits": rates}, protection, None)
    none = VolumeReport("v", "/mnt", {**answer, "limits": None}, protection, None)
    assert as_json(some)["limits"] == {"upload_bytes_s": 500 << 10, "download_bytes_s": None}
    assert as_json(none)["limits"] == {"upload_bytes_s": None, "download_bytes_s": None}
    assert "  limits now: upload at most 500.0 KiB/s" in as_text(some)
    assert not any("limits" in line for line in as_text(none))
    assert as_json(VolumeReport("v", None, None, None, None))["limits"] is None


def test_json_has_every_field_mounted_or_not() -> None:
    mounted = as_json(report(status(store(**PENDING))))
    absent = as_json(VolumeReport("v", None, None, None, "Its mount is dead."))
    view = as_json(VolumeReport("v", "/mnt", {"pid": 7, "follows": True, "fault": None}, None, None, NOW_NS))
    away = as_json(report(status(store(**AWAY))))["stores"][0]
    assert away["failing_since"] == timestamp(NOW_NS - 20 * S)
    assert mounted["stores"][0]["failing_since"] is None
    assert mounted.keys() == absent.keys() == view.keys()
    assert mounted["light"] == "catching-up"
    assert mounted["stores"][0]["safe_until"] == timestamp(NOW_NS - 30 * S)
    assert (absent["mounted"], absent["light"], absent["reason"]) == (False, None, "Its mount is dead.")
    assert (view["mounted"], view["read_only"], view["as_of"]) == (True, True, timestamp(NOW_NS))


LOCK = {"mode": "compliance", "days": 40, "until_ns": NOW_NS + 30 * DAY_NS, "behind_count": 0, "error": None}


@pytest.mark.parametrize(
    ("changes", "light", "words"),
    [
        ({}, Light.PROTECTED, "at least (compliance)"),
        ({"behind_count": 7}, Light.PROTECTED, "7 locks to be renewed"),
        ({"until_ns": None}, Light.PROTECTED, "compliance lock, not yet of everything"),
        ({"until_ns": None, "error": "Denied."}, Light.AT_RISK, "locks are not renewed: Denied."),
        ({"error": "Denied."}, Light.PROTECTED, "locks are not renewed: Denied."),
        (
            {"error": "Denied.", "until_ns": NOW_NS + 9 * DAY_NS},
            Light.AT_RISK,
            "locks are not renewed: Denied.",
        ),
        ({"until_ns": NOW_NS - DAY_NS}, Light.AT_RISK, "locked until"),
    ],
)
def test_locks(changes: dict[str, Any], light: Light, words: str) -> None:
    found = report(status(store(lock=LOCK | changes, can_delete=False), store("b")))
    assert found.protection is not None
    assert found.protection.light is light
    assert (found.protection.reason is not None) == (light is Light.AT_RISK)
    locked, other = as_text(found)[-3:-1]
    assert words in locked and locked.endswith("; credentials here cannot delete"), locked
    assert "lock" not in other and "delete" not in other
    told = as_json(found)["stores"]
    assert told[0]["can_delete"] is False and told[0]["lock"]["days"] == 40
    assert (told[1]["can_delete"], told[1]["lock"]) == (None, None)


def test_timestamps() -> None:
    assert timestamp(1_800_000_000_123_456_789) == "2027-01-15T08:00:00.123Z"


# --- patience --------------------------------------------------------------------------------


def mirror(
    *, pending_bytes: int = 100, held_count: int = 1, error: str | None = "Store a is away."
) -> MirrorState:
    return MirrorState(
        store="a",
        held_count=held_count,
        pending_count=1 if pending_bytes else 0,
        pending_bytes=pending_bytes,
        oldest_pending_ns=None,
        safe_before_ns=None,
        rate_bytes_s=0,
        failing_since_ns=None if error is None else NOW_NS,
        last_error=error,
        state=StateWord.UNREACHABLE,
    )


def test_a_store_in_error_is_given_up() -> None:
    patience = Patience(stall_s=10)
    assert patience.exhausted([mirror()], now_s=0) is None
    assert patience.exhausted([mirror()], now_s=9.9) is None
    assert patience.exhausted([mirror()], now_s=10) == "store a still lacks 100 B (Store a is away)"


def test_progress_and_slowness_are_waited_for() -> None:
    patience = Patience(stall_s=10)
    for now_s in range(0, 1000, 9):
        assert patience.exhausted([mirror(held_count=now_s)], now_s=now_s) is None
    for now_s in range(1000, 2000, 100):
        assert patience.exhausted([mirror(error=None)], now_s=now_s) is None
    assert patience.exhausted([mirror()], now_s=2000) is not None


def test_nothing_pending_is_nothing_to_wait_for() -> None:
    patience = Patience(stall_s=0, limit_s=0)
    assert patience.exhausted([mirror(pending_bytes=0)], now_s=0) is None
    assert patience.exhausted([mirror(pending_bytes=0)], now_s=100) is None


def test_a_limit_ends_any_waiting() -> None:
    patience = Patience(stall_s=100, limit_s=30)
    assert patience.exhausted([mirror(error=None)], now_s=0) is None
    assert patience.exhausted([mirror(error=None)], now_s=30) == "store a still lacks 100 B"


@pytest.mark.parametrize(
    ("config", "given", "words"),
    [
        (AlarmConfig(max_lag_s=20), status(store(**PENDING)), "lacked changes for 30 seconds"),
        (AlarmConfig(max_lag_s=0), status(store(**PENDING)), None),
        (AlarmConfig(max_pending_bytes=99), status(store(**PENDING)), "lacks 100 B"),
        (AlarmConfig(max_pending_bytes=100), status(store(**PENDING)), None),
        (AlarmConfig(min_free_bytes=11 << 30), status(store()), "Only 10.0 GiB are free"),
        (
            AlarmConfig(max_blocked_s=10),
            status(store(**PENDING, blocked="It cannot be read.", blocked_since_ns=NOW_NS - 11 * S)),
            "does not get to store a: It cannot be read.",
        ),
        (
            AlarmConfig(max_blocked_s=12),
            status(store(**PENDING, blocked="It cannot be read.", blocked_since_ns=NOW_NS - 11 * S)),
            None,
        ),
    ],
)
def test_thresholds(config: AlarmConfig, given: dict[str, Any], words: str | None) -> None:
    found = judge(given, asked_ns=NOW_NS, written_back=True, thresholds=config)
    if words is None:
        assert found.light is not Light.AT_RISK
    else:
        assert found.light is Light.AT_RISK
        assert found.reason is not None and words in found.reason


def test_lag_and_when_it_will_be_over() -> None:
    found = judge(
        status(store(**PENDING, rate_bytes_s=10)),
        asked_ns=NOW_NS,
        written_back=True,
        thresholds=AlarmConfig(),
    )
    assert (found.stores[0].lag_s, found.stores[0].eta_s) == (30.0, 10.0)
    # The rate is of the last half minute: what a store took before it went away says nothing.
    gone = status(store(**AWAY, rate_bytes_s=10))
    away = judge(gone, asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig())
    assert away.stores[0].eta_s is None


# --- restore drills --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "stores", "drills", "expected", "words"),
    [
        (0, [store()], {}, Light.PROTECTED, None),
        (0, [store()], {"a": LastDrills(NOW_NS - 999 * DAY)}, Light.PROTECTED, None),
        (35, [store()], {}, Light.UNTESTED, "No restore drill on store a has passed on this PC yet."),
        (35, [store()], {"a": LastDrills(NOW_NS - 34 * DAY)}, Light.PROTECTED, None),
        (35, [store()], {"a": LastDrills(NOW_NS - 36 * DAY)}, Light.UNTESTED, "was 36 days ago"),
        (35, [store(**PENDING)], {}, Light.UNTESTED, "No restore drill"),
        (35, [store(**PENDING)], {"a": LastDrills(NOW_NS)}, Light.CATCHING_UP, None),
        (35, [store("a"), store("b")], {"a": LastDrills(NOW_NS)}, Light.UNTESTED, "store b"),
        # It cannot be tried now.
        (35, [store(rotating=True, away_since_ns=NOW_NS - DAY)], {}, Light.PROTECTED, None),
        (35, [store(filling=True)], {}, Light.PROTECTED, None),
        # That one failed is never off.
        (0, [store()], {"a": LastDrills(NOW_NS - 3 * DAY, NOW_NS - 2 * DAY)}, Light.AT_RISK, "failed a rest"),
        (35, [store(**AWAY)], {}, Light.AT_RISK, "Store a is away."),
    ],
)
def test_drills(
    days: int, stores: list[dict[str, Any]], drills: dict[str, LastDrills], expected: Light, words: str | None
) -> None:
    found = judge(
        status(*stores),
        asked_ns=NOW_NS,
        written_back=True,
        thresholds=AlarmConfig(max_drill_days=days),
        drills=drills,
    )
    assert found.light is expected
    assert (found.reason is None) == (words is None) and (words or "") in (found.reason or "")


def test_the_last_drill_is_shown() -> None:
    given = status(store("a"), store("b"))
    drills = {"a": LastDrills(NOW_NS - DAY, NOW_NS)}
    answer = {"mountpoint": "/mnt", "read_only": False, "pid": 7, "status": given}
    found = judge(given, asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig(), drills=drills)
    shown = VolumeReport("v", "/mnt", answer, found, None)
    one, two = as_json(shown)["stores"]
    assert (one["drilled"], one["drill_failed"]) == (timestamp(NOW_NS - DAY), timestamp(NOW_NS))
    assert (two["drilled"], two["drill_failed"]) == (None, None)
    lines = as_text(shown)
    assert lines[0] == "v: AT RISK, mounted on /mnt"
    assert "last drill that passed: 20" in lines[2] and "drill" not in lines[3]


def test_a_store_that_went_back_is_at_risk_though_it_has_everything() -> None:
    given = status(store("a"), store("b", went_back_ns=NOW_NS - 3 * DAY))
    found = report(given)
    assert found.protection is not None and found.protection.light is Light.AT_RISK
    lines = as_text(found)
    assert lines[0] == "v: AT RISK, mounted on /mnt"
    when = local_time(NOW_NS - 3 * DAY, now_ns=NOW_NS)
    assert f"Store b went back to an earlier state, or lost its newest heads (found at {when});" in lines[1]
    assert lines[1].endswith("`mirrorfs alarm clear VOLUME --store b`.")
    assert f"; went back to an earlier state (found at {when})" in lines[3]
    assert "went back" not in lines[2]
    one, two = as_json(found)["stores"]
    assert (one["went_back"], two["went_back"]) == (None, timestamp(NOW_NS - 3 * DAY))
    # What is wrong now comes first; the line of the store says it all the same.
    worse = as_text(report(status(store("a", **AWAY), store("b", went_back_ns=NOW_NS))))
    assert worse[1] == "  Store a is away." and "went back" in worse[3]
    away = {"rotating": True, "state": "away", "away_since_ns": NOW_NS - DAY}
    assert "went back" in as_text(report(status(store("a", went_back_ns=NOW_NS, **away))))[2]


# --- stores that rotate, and new ones ----------------------------------------------------------

ROTATED = {**PENDING, "state": "away", "rotating": True, "oldest_pending_ns": NOW_NS - 20 * DAY}
FILLING = {**PENDING, "filling": True, "oldest_pending_ns": NOW_NS - 900 * DAY, "pending_bytes": 500 << 30}


def light(*stores: dict[str, Any], **changes: Any) -> tuple[Light, str | None]:
    found = judge(status(*stores, **changes), asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig())
    return found.light, found.reason


@pytest.mark.parametrize(
    ("stores", "expected"),
    [
        ([store("a"), store("usb", **ROTATED, away_since_ns=NOW_NS - 20 * DAY)], Light.PROTECTED),
        (
            [store("a", **PENDING), store("usb", **ROTATED, away_since_ns=NOW_NS - 20 * DAY)],
            Light.CATCHING_UP,
        ),
        ([store("a"), store("usb", **ROTATED, away_since_ns=NOW_NS - 31 * DAY)], Light.AT_RISK),
        # Nothing was changed since: it is away for too long all the same.
        (
            [store("a"), store("usb", state="away", rotating=True, away_since_ns=NOW_NS - 31 * DAY)],
            Light.AT_RISK,
        ),
        # Back after weeks, and not yet done: a matter of its own thresholds, not of those for the others.
        ([store("a"), store("usb", **{**ROTATED, "state": "catching up"})], Light.CATCHING_UP),
        ([store("a"), store("usb", **{**ROTATED, "state": "full"})], Light.AT_RISK),
        ([store("a"), store("usb", **{**ROTATED, "state": "conflict"})], Light.AT_RISK),
        # Away and not rotating is what it was.
        ([store("a"), store("b", **{**PENDING, "state": "unreachable"})], Light.AT_RISK),
        # A third store is being filled; or the second one.
        ([store("a"), store("b"), store("new", **FILLING)], Light.CATCHING_UP),
        ([store("a"), store("new", **FILLING)], Light.AT_RISK),
        ([store("a"), store("usb", rotating=True), store("new", **FILLING)], Light.AT_RISK),
    ],
)
def test_rotating_and_new_stores(stores: list[dict[str, Any]], expected: Light) -> None:
    assert light(*stores)[0] is expected


def test_what_is_said_of_them() -> None:
    away = store("usb", **ROTATED, away_since_ns=NOW_NS - 21 * DAY)
    answer = {
        "status": status(away, store("new", **FILLING, rate_bytes_s=50 << 20)),
        "read_only": False,
        "pid": 1,
    }
    protection = judge(answer["status"], asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig())
    report = VolumeReport("practice", "/mnt", answer, protection, None)
    usb = next(line for line in as_text(report) if line.startswith("  usb: "))
    new = next(line for line in as_text(report) if line.startswith("  new: "))
    assert usb.startswith("  usb: away since 20")
    assert "; lacks 100 B since 20" in usb
    assert "is being filled, 500.0 GiB to go at 50.0 MiB/s, about 3 hours more" in new
    assert "behind" not in new
    (first, second) = as_json(report)["stores"]
    assert (first["state"], first["rotating"], first["away_since"]) == (
        "away", True, timestamp(NOW_NS - 21 * DAY),
    )  # fmt: skip
    assert (second["filling"], second["away_since"]) == (True, None)


def test_nobody_waits_for_a_store_that_is_away() -> None:
    patience = Patience(stall_s=1)
    state = MirrorState(
        store="usb", held_count=1, pending_count=1, pending_bytes=5, oldest_pending_ns=1, safe_before_ns=None,
        rate_bytes_s=0, failing_since_ns=1, last_error="gone", state=StateWord.AWAY, rotating=True,
        away_since_ns=1,
    )  # fmt: skip
    for now_s in (0, 100, 1000):
        assert patience.exhausted([state], now_s=now_s) is None


def test_a_mount_of_an_earlier_version_is_judged_too() -> None:
    """It goes on while the programs are updated, and says nothing of what it does not know."""
    old = status(store())
    del old["burst"], old["damaged"]
    found = judge(old, asked_ns=NOW_NS, written_back=True, thresholds=AlarmConfig())
    assert (found.burst, found.light) == (None, Light.PROTECTED)
    assert (found.damaged_here, found.stores[0].damaged_count) == (0, 0)


# --- copies that `verify` found bad --------------------------------------------------------------


@pytest.mark.parametrize("thresholds", [AlarmConfig(), AlarmConfig(max_lag_s=0, max_pending_bytes=0)])
@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ({"b": 3}, "were found: 3 in store b. Run `mirrorfs repair`."),
        ({"local disk": 1}, "were found: 1 on the local disk. Run"),
        ({"local disk": 1, "a": 2}, "were found: 1 on the local disk, 2 in store a. Run"),
    ],
)
def test_damaged_copies_are_a_risk(damaged: dict[str, int], words: str, thresholds: AlarmConfig) -> None:
    given = status(store("a"), store("b"), damaged=damaged)
    found = judge(given, asked_ns=NOW_NS, written_back=True, thresholds=thresholds)
    assert found.light is Light.AT_RISK
    assert found.reason is not None and words in found.reason
    assert [one.damaged_count for one in found.stores] == [damaged.get("a", 0), damaged.get("b", 0)]
    assert found.damaged_here == damaged.get("local disk", 0)


def test_where_copies_are_damaged() -> None:
    shown = report(status(store("a"), store("b"), damaged={"a": 2, "local disk": 1}))
    lines = as_text(shown)
    assert lines[2].endswith("is safe there; 2 damaged or missing copies")
    assert lines[3].endswith("is safe there")
    assert lines[4].endswith("free on the local disk; 1 damaged or missing copy there")
    told = as_json(shown)
    assert [one["damaged_count"] for one in told["stores"]] == [2, 0]
    assert told["local"]["damaged_count"] == 1


def test_where_a_look_does_not_come_to_its_end() -> None:
    shown = report(status(store("a"), store("b")))
    assert shown.answer is not None
    shown = replace(shown, answer={**shown.answer, "unfinished_looks": {"local disk": NOW_NS, "b": NOW_NS}})
    lines = as_text(shown)
    assert [line.split(":")[0] for line in lines if "the daily look" in line] == ["  local disk", "  b"]
    told = as_json(shown)
    assert [one["look_unfinished_since"] for one in told["stores"]] == [None, timestamp(NOW_NS)]
    assert told["local"]["look_unfinished_since"] == timestamp(NOW_NS)


def test_what_stops_writing_is_said_before_damage() -> None:
    found = report(status(store(), fatal="The disk failed.", damaged={"a": 1})).protection
    assert found is not None and found.reason == "Writing has stopped: The disk failed."
