"""Which retention policy is in force on this machine, remembered in its state directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from mirrorfs.core.retention import Policy, PolicyState
from mirrorfs.errors import FormatError
from mirrorfs.ports import Disk

POLICY_PATH: Final = "policy"
"""Local file: JSON, version 1."""
_DAMAGED: Final = "The record of the retention policy is damaged; everything is kept."


def read_policy(disk: Disk) -> PolicyState:
    """What is remembered. Raises: FormatError: the file is damaged."""
    try:
        file = disk.open(POLICY_PATH)
    except FileNotFoundError:
        return PolicyState()
    try:
        found = json.loads(file.read(offset=0, size_bytes=file.size()))
        if not isinstance(found, dict) or found.get("version") != 1:
            raise FormatError("The record of the retention policy is of another version.")
        return PolicyState(_policy(found["in_force"]), _policy(found["wanted"]), _number(found["since_ns"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise FormatError(_DAMAGED) from exc
    finally:
        file.close()


def write_policy(disk: Disk, state: PolicyState) -> None:
    """Remember it, durably. Raises: DiskError, DiskFull."""
    disk.write_whole(POLICY_PATH, json.dumps({"version": 1, **asdict(state)}).encode())


def _policy(value: Any) -> Policy | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise FormatError(_DAMAGED)
    return Policy(**{str(name): _number(days) for name, days in value.items()})


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FormatError(_DAMAGED)
    return value
