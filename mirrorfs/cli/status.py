"""`mirrorfs status`: what is mounted where, and how much of it is safe. JSON: docs/status-json.md."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mirrorfs.cli import volume_lock
from mirrorfs.cli.alarm_note import alarm_json, alarm_lines
from mirrorfs.cli.config import VolumePaths, configured_volumes, load_config, volume_paths
from mirrorfs.cli.control_protocol import ControlClient, NotMounted
from mirrorfs.cli.drill_record import last_drills
from mirrorfs.cli.failures import one_line
from mirrorfs.cli.key_status import KeyStatus, key_lines, keys_json, read_key_status
from mirrorfs.cli.lock_note import LockNote, read_note
from mirrorfs.cli.lock_status import lock_lines, locked_json, locked_line
from mirrorfs.cli.object_lock_status import lock_json, lock_words
from mirrorfs.cli.progress import format_bytes
from mirrorfs.cli.protection import (
    Light,
    Protection,
    StoreProtection,
    burst_json,
    damaged_copies,
    judge,
    span,
)
from mirrorfs.cli.resolve import mounts_of, resolve
from mirrorfs.cli.retention_status import retention_json, retention_lines
from mirrorfs.cli.shown_times import local_time, timestamp
from mirrorfs.cli.waiting_client import STATUS_SYNC_DEADLINE_S, write_back
from mirrorfs.engine.scrub_state import LOCAL
from mirrorfs.errors import MirrorfsError, UsageError

SCHEMA: Final = 1
LAG_SHOWN_S: Final = 60.0

_WORDS: Final = {
    Light.PROTECTED: "protected",
    Light.CATCHING_UP: "catching up",
    Light.UNTESTED: "NOT TESTED",
    Light.AT_RISK: "AT RISK",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `status`."""
    parser.add_argument(
        "target", metavar="VOLUME|MOUNTPOINT", nargs="?", help="without it, all volumes are listed"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, as docs/status-json.md says")


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """All that is known of one volume."""

    name: str
    mountpoint: str | None
    answer: Mapping[str, Any] | None
    """What the daemon said; None when the volume is not mounted."""
    protection: Protection | None
    note: str | None
    """Why nothing more can be said; one sentence."""
    view_time_ns: int | None = None
    """Of a read-only view: the time of the last change that it shows."""
    locked: LockNote | None = None
    """That the last mount ended so; of a volume that is not mounted."""
    keys: KeyStatus | None = None
    """None: it is not known which there are."""


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `status`. Raises: MirrorfsError."""
    if arguments.target is not None:
        volumes = [resolve(arguments.target, environment)]
        if not volumes[0].config.exists():
            raise UsageError(
                f"Volume {volumes[0].name} is not configured here; ask as the user who mounted it."
            )
    else:
        volumes = [volume_paths(name, environment) for name in configured_volumes(environment)]
    reports = [replace(_report(paths), keys=read_key_status(paths)) for paths in volumes]
    if arguments.json:
        print(json.dumps({"schema": SCHEMA, "volumes": [as_json(report) for report in reports]}, indent=2))
        return 0
    if not reports:
        print("No volume is configured; `mirrorfs init` makes one.")
    for report in reports:
        print("\n".join(as_text(report)))
    return 0


def _report(paths: VolumePaths) -> VolumeReport:
    try:
        config = load_config(paths)
        answer = _ask(paths)
    except NotMounted:
        note = None
        if mounts_of(paths.name, paths.view):
            note = f"Its mount is dead; `mirrorfs umount {paths.name}` removes it."
        elif volume_lock.is_held(paths):
            note = "It is just being mounted or unmounted."
        return VolumeReport(paths.name, None, None, None, note, locked=read_note(paths))
    except MirrorfsError as error:
        return VolumeReport(paths.name, None, None, None, one_line(str(error)))
    mountpoint = str(answer["mountpoint"])
    if "view_time_ns" in answer:
        return VolumeReport(paths.name, mountpoint, answer, None, None, int(answer["view_time_ns"]))
    asked_ns = time.time_ns()
    written_back = write_back(mountpoint, deadline_s=STATUS_SYNC_DEADLINE_S)
    try:
        answer = _ask(paths)
    except MirrorfsError as error:
        return VolumeReport(paths.name, mountpoint, None, None, one_line(str(error)))
    protection = judge(
        answer["status"],
        asked_ns=asked_ns,
        written_back=written_back,
        thresholds=config.alarm,
        drills=last_drills(paths, volume=config.volume, stores=config.stores),
    )
    return VolumeReport(paths.name, mountpoint, answer, protection, None)


def _ask(paths: VolumePaths) -> Mapping[str, Any]:
    with ControlClient(paths.socket, volume=paths.name) as client:
        client.send("status")
        return next(iter(client.answers()))


# --- JSON ------------------------------------------------------------------------------------


def as_json(report: VolumeReport) -> dict[str, Any]:
    """One element of "volumes" in docs/status-json.md."""
    result: dict[str, Any] = {
        "name": report.name,
        "mounted": report.answer is not None,
        "mountpoint": report.mountpoint,
        "read_only": None,
        "pid": None,
        "light": None,
        "reason": report.note,
        "as_of": None,
        "follows": None,
        "local": None,
        "limits": None if report.answer is None else _limits(report.answer.get("limits")),
        "lock": None if report.answer is None else report.answer.get("lock"),
        "locked": None if report.locked is None else locked_json(report.locked),
        "keys": keys_json(report.keys),
        "burst": None,
        "alarm": None,
        "retention": None,
        "stores": [],
    }
    if report.view_time_ns is not None and report.answer is not None:
        return result | _view_json(report.answer, report.view_time_ns)
    if report.answer is None or report.protection is None:
        return result
    status, protection = report.answer["status"], report.protection
    looks = _unfinished_looks(report.answer)
    return result | {
        "read_only": report.answer["read_only"],
        "pid": report.answer["pid"],
        "light": protection.light.value,
        "reason": protection.reason,
        "as_of": timestamp(protection.as_of_ns),
        "burst": burst_json(protection.burst),
        "alarm": alarm_json(report.answer.get("alarm")),
        "retention": retention_json(report.answer.get("retention")),
        "local": _local(status, protection, looks.get(LOCAL)),
        "stores": [_store_json(store, looks.get(store.name)) for store in protection.stores],
    }


def _store_json(store: StoreProtection, look_unfinished_ns: int | None) -> dict[str, Any]:
    return {
        "name": store.name,
        "state": store.state.replace(" ", "-"),
        "safe_until": timestamp(store.safe_until_ns),
        "pending_bytes": store.pending_bytes,
        "pending_count": store.pending_count,
        "rate_bytes_s": store.rate_bytes_s,
        "failing_since": None if store.failing_since_ns is None else timestamp(store.failing_since_ns),
        "last_error": store.last_error,
        "lag_s": round(store.lag_s, 3),
        "eta_s": None if store.eta_s is None else round(store.eta_s),
        "blocked": store.blocked,
        "damaged_count": store.damaged_count,
        "weak_fencing": store.weak_fencing,
        "can_delete": store.can_delete,
        "lock": None if store.lock is None else lock_json(store.lock),
        "rotating": store.rotating,
        "away_since": None if store.away_since_ns is None else timestamp(store.away_since_ns),
        "filling": store.filling,
        "drilled": None if store.drilled_ns is None else timestamp(store.drilled_ns),
        "drill_failed": None if store.drill_failed_ns is None else timestamp(store.drill_failed_ns),
        "went_back": None if store.went_back_ns is None else timestamp(store.went_back_ns),
        "look_unfinished_since": None if look_unfinished_ns is None else timestamp(look_unfinished_ns),
    }


def _view_json(answer: Mapping[str, Any], time_ns: int) -> dict[str, Any]:
    return {
        "read_only": True,
        "pid": answer["pid"],
        "as_of": timestamp(time_ns),
        "follows": answer["follows"],
        "reason": answer["fault"],
    }


def _local(
    status: Mapping[str, Any], protection: Protection, look_unfinished_ns: int | None
) -> dict[str, Any]:
    return {
        "safe_until": timestamp(protection.durable_until_ns),
        "dirty_bytes": status["dirty_bytes"],
        "free_bytes": status["free_bytes"],
        "allocated_bytes": status["allocated_bytes"],
        "files": status["files"],
        "full": status["stalled"],
        "damaged_count": protection.damaged_here,
        "look_unfinished_since": None if look_unfinished_ns is None else timestamp(look_unfinished_ns),
    }


def _unfinished_looks(answer: Mapping[str, Any]) -> Mapping[str, int]:
    # A mount of an earlier version does not know of it.
    found: Mapping[str, int] = answer.get("unfinished_looks", {})
    return found


def _limits(rates: Mapping[str, int] | None) -> dict[str, int | None]:
    names = ("upload_bytes_s", "download_bytes_s")
    return {name: (rates[name] if rates else 0) or None for name in names}


# --- text ------------------------------------------------------------------------------------


def as_text(report: VolumeReport) -> list[str]:
    """The lines for people."""
    return _volume_lines(report) + key_lines(report.name, report.keys)


def _volume_lines(report: VolumeReport) -> list[str]:
    if report.view_time_ns is not None:
        moment = local_time(report.view_time_ns, now_ns=time.time_ns())
        answer = report.answer or {}
        kind = "a read-only view that follows the writer," if answer.get("follows") else "a read-only view"
        lines = [f"{report.name}: {kind} as of {moment}, mounted on {report.mountpoint}"]
        lines += [f"  {answer[key]}" for key in ("gap", "fault") if answer.get(key)]
        lines += _limits_line(answer.get("limits"))
        lines += [f"  Store {name} does not answer." for name in answer.get("silent", ())]
        return lines + lock_lines(answer.get("lock"))
    if report.answer is None or report.protection is None:
        note = "" if report.note is None else f" {report.note}"
        where = "is not mounted." if report.mountpoint is None else f"is mounted on {report.mountpoint}."
        lines = [f"{report.name}: {where}{note}"]
        return lines if report.locked is None else [*lines, locked_line(report.locked)]
    protection = report.protection
    lines = [f"{report.name}: {_WORDS[protection.light]}, mounted on {report.mountpoint}"]
    if protection.reason is not None:
        lines.append(f"  {protection.reason}")
    lines += alarm_lines(report.answer.get("alarm"), now_ns=protection.as_of_ns)
    lines += ["  " + _store_line(store, now_ns=protection.as_of_ns) for store in protection.stores]
    lines += [
        f"  {name}: the daily look at what it holds has not come to its end since"
        f" {local_time(since_ns, now_ns=protection.as_of_ns)}; try `mirrorfs verify {report.name}`"
        for name, since_ns in _unfinished_looks(report.answer).items()
    ]
    lines += _limits_line(report.answer.get("limits")) + lock_lines(report.answer.get("lock"))
    lines += retention_lines(report.answer.get("retention"), now_ns=protection.as_of_ns)
    status = report.answer["status"]
    lines.append(
        f"  {status['files']} files and directories, {format_bytes(status['allocated_bytes'])};"
        f" {format_bytes(status['free_bytes'])} free on the local disk"
        + (f"; {damaged_copies(protection.damaged_here)} there" if protection.damaged_here else "")
    )
    return lines


def _limits_line(rates: Mapping[str, int] | None) -> list[str]:
    shown = [
        f"{word} at most {format_bytes(rates[name])}/s"
        for word, name in (("upload", "upload_bytes_s"), ("download", "download_bytes_s"))
        if rates and rates[name]
    ]
    return [f"  limits now: {', '.join(shown)}"] if shown else []


def _store_line(store: StoreProtection, *, now_ns: int) -> str:
    if store.away_since_ns is not None:
        return _away_line(store, now_ns=now_ns)
    safe = f"{store.name}: everything before {local_time(store.safe_until_ns, now_ns=now_ns)} is safe there"
    if store.pending_count:
        verb = "is being filled, " if store.filling else ""
        safe += f"; {verb}{format_bytes(store.pending_bytes)} to go"
        if store.rate_bytes_s:
            safe += f" at {format_bytes(store.rate_bytes_s)}/s"
        if store.eta_s is not None:
            safe += f", about {span(store.eta_s)} more"
        if store.lag_s >= LAG_SHOWN_S and not store.filling:
            safe += f"; {span(store.lag_s)} behind"
    if store.blocked is not None:
        safe += f"; one object does not get there: {store.blocked}"
    if store.last_error is not None and store.last_error != store.blocked:
        since = ""
        if store.failing_since_ns is not None:
            since = f" since {local_time(store.failing_since_ns, now_ns=now_ns)}"
        safe += f"; {store.state}{since}: {store.last_error}"
    if store.damaged_count:
        safe += f"; {damaged_copies(store.damaged_count)}"
    if store.drilled_ns is not None:
        safe += f"; last drill that passed: {local_time(store.drilled_ns, now_ns=now_ns)}"
    safe += _went_back(store, now_ns=now_ns)
    if store.lock is not None:
        safe += lock_words(store.lock, now_ns=now_ns)
    if store.can_delete is False:
        safe += "; credentials here cannot delete"
    if store.weak_fencing:
        safe += "; weak fencing: this store cannot keep a second writer out"
    return safe


def _went_back(store: StoreProtection, *, now_ns: int) -> str:
    if store.went_back_ns is None:
        return ""
    return f"; went back to an earlier state (found at {local_time(store.went_back_ns, now_ns=now_ns)})"


def _away_line(store: StoreProtection, *, now_ns: int) -> str:
    assert store.away_since_ns is not None
    line = f"{store.name}: away since {local_time(store.away_since_ns, now_ns=now_ns)}"
    line += _went_back(store, now_ns=now_ns)
    if not store.pending_count:
        return f"{line}; has everything that was sent to stores"
    since = local_time(store.safe_until_ns, now_ns=now_ns)
    return f"{line}; lacks {format_bytes(store.pending_bytes)} since {since}"
