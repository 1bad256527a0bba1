"""Locking in values: the [lock] table, what is watched and told, the note, and taking a mount away."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli import lock_note
from mirrorfs.cli.config import TokenConfig, VolumeConfig, VolumePaths
from mirrorfs.cli.config_lock import LockConfig, Removal
from mirrorfs.cli.lock_note import LockEvent, LockNote, read_note, remove_note, write_note
from mirrorfs.cli.lock_status import lock_lines, locked_json, locked_line
from mirrorfs.cli.token_look import ABSENT, THERE, UNKNOWN, look_at
from mirrorfs.cli.token_lookout import lookout_environment
from mirrorfs.cli.watched_token import WatchedToken
from mirrorfs.errors import ConfigError, TokenFailed, UsageError
from mirrorfs.format.slot_token import (
    Fido2Fields,
    Pkcs11Fields,
    RecoveryFields,
    SlotKind,
    TokenFields,
    TokenMechanism,
    Tpm2Fields,
)
from mirrorfs.fuse import mount_table
from mirrorfs.fuse.mount_table import MountRecord, take_away
from mirrorfs.keys.token import Token
from tests.unit.test_config import CONFIG

FIELDS: list[TokenFields] = [
    Pkcs11Fields(TokenMechanism.ECDH_P256, b"\1" * 32, b"\3", b"\4" * 65, "card", "1234"),
    Fido2Fields("mirrorfs", b"credential", b"\5" * 32, b"\6" * 16, "key"),
    Tpm2Fields(b"public", b"private", b"\7" * 34, "TPM"),
    RecoveryFields(),
]


# --- the table -------------------------------------------------------------------------------


def test_what_removal_does_by_default() -> None:
    default = {kind: LockConfig().removal_of(kind) for kind in SlotKind}
    assert default == {
        SlotKind.PKCS11: Removal.UNMOUNT,
        SlotKind.FIDO2: Removal.UNMOUNT,
        SlotKind.TPM2: Removal.NOTHING,
        SlotKind.RECOVERY: Removal.NOTHING,
    }
    told = {kind: LockConfig(on_removal=Removal.READ_ONLY).removal_of(kind) for kind in SlotKind}
    assert told.pop(SlotKind.RECOVERY) is Removal.NOTHING, "paper is never seen to be there"
    assert set(told.values()) == {Removal.READ_ONLY}
    assert (LockConfig().grace_s, LockConfig().on_suspend, LockConfig().on_logout) == (10, True, True)


@pytest.mark.parametrize(
    "lock",
    [
        LockConfig(),
        LockConfig(on_removal=Removal.NOTHING, grace_s=0),
        LockConfig(on_removal=Removal.READ_ONLY, grace_s=3600, on_suspend=False, on_logout=False),
    ],
)
def test_table_and_back(lock: LockConfig) -> None:
    # CONFIG has [limits] with tables of its own, which must stay its own.
    config = replace(CONFIG, lock=lock)
    assert VolumeConfig.from_toml(config.to_toml()) == config
    assert ("[lock]" in config.to_toml()) == (lock != LockConfig())


@pytest.mark.parametrize(
    "table",
    [
        {"on_removal": "unmounts"},
        {"on_removal": False},
        {"on_removal": ["no"]},
        {"grace_s": -1},
        {"grace_s": 3601},
        {"grace_s": 1.5},
        {"grace_s": True},
        {"on_suspend": "yes"},
        {"on_logout": 1},
        {"on_lid": True},
        [],
    ],
)
def test_tables_that_are_refused(table: Any) -> None:
    with pytest.raises(ConfigError, match="lock"):
        LockConfig.from_table(table)


# --- looking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", FIELDS)
def test_what_is_watched_is_one_line_and_back(fields: TokenFields) -> None:
    watched = WatchedToken(fields, (TokenConfig("pkcs11:token=a%20b", "/usr/lib/module.so"),))
    text = watched.to_text()
    assert WatchedToken.from_text(text) == watched and "\n" not in text


class Road:
    """A token that is there, is not, or fails."""

    def __init__(self, present: bool | None) -> None:
        self._present = present

    def is_present(self, fields: TokenFields) -> bool:
        if self._present is None:
            raise TokenFailed("The reader fails; replace it.")
        return self._present


@pytest.mark.parametrize(
    ("roads", "seen"),
    [
        ([True], THERE),
        ([False], ABSENT),
        ([None], UNKNOWN),
        ([False, True], THERE),
        ([None, True], THERE),
        ([False, False], ABSENT),
        ([False, None], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_a_look_on_several_roads(roads: list[bool | None], seen: bytes) -> None:
    tokens: Sequence[Any] = [Road(present) for present in roads]
    typed: Sequence[Token] = tokens
    assert look_at(typed, FIELDS[0]) == seen


def test_whoever_looks_knows_no_place_of_a_secret() -> None:
    given = {
        "MIRRORFS_PASSWORD_FILE": "/p", "MIRRORFS_PIN_FILE": "/q", "AWS_SECRET_ACCESS_KEY": "s",
        "NOTIFY_SOCKET": "/n", "SOFTHSM2_CONF": "/c", "PATH": "/bin",
    }  # fmt: skip
    left = lookout_environment(given)
    left.pop("PYTHONPATH", None)
    assert left == {"SOFTHSM2_CONF": "/c", "PATH": "/bin"}


# --- telling ---------------------------------------------------------------------------------


def test_note_and_back(tmp_path: Path) -> None:
    paths = VolumePaths("v", tmp_path / "v.toml", tmp_path)
    remove_note(paths)
    assert read_note(paths) is None
    note = LockNote(LockEvent.LOGOUT, 1_772_373_930_123_000_000, complete=False)
    write_note(paths, note)
    assert read_note(paths) == note
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "its user logged out. What was written last did not get" in locked_line(note)
    assert locked_json(note) == {"at": "2026-03-01T14:05:30.123Z", "event": "logout", "complete": False}
    for text in ("", "{}", "[]", '{"event": "x", "time_ns": 1, "complete": true}', "\xff"):
        file.write_text(text, encoding="latin-1")
        assert read_note(paths) is None
    remove_note(paths)
    assert not list(tmp_path.iterdir())


def test_every_event_has_its_words() -> None:
    assert set(lock_note.REASONS) == set(LockEvent)


STATE: dict[str, Any] = {
    "on_removal": "unmount", "grace_s": 10, "on_suspend": True, "on_logout": True,
    "presence": "present", "locks_in_s": None, "read_only": False, "locking": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "locks 10 s after its token is removed"),
        ({"presence": "unknown"}, "cannot be told just now"),
        ({"presence": "removed", "locking": "token-removed"}, "BEING LOCKED: its token was removed"),
        ({"presence": "removed", "locks_in_s": 3.2}, "TOKEN REMOVED: the volume locks in 4 s"),
        ({"on_removal": "read-only", "locks_in_s": 0.0}, "TOKEN REMOVED: the volume turns read-only in 0 s"),
        ({"on_removal": "read-only"}, "turns read-only 10 s after its token is removed"),
        ({"on_removal": "read-only", "read_only": True}, "READ-ONLY: its token was removed"),
        ({"on_removal": "no"}, "pulling the token does not lock it"),
    ],
)
def test_lines_of_status(changes: dict[str, Any], line: str) -> None:
    (shown,) = lock_lines({**STATE, **changes})
    assert line in shown


# --- the mount -------------------------------------------------------------------------------


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A mount table with one mount, which fusermount3 takes away; what that was called with."""
    calls: list[list[str]] = []
    records = [MountRecord(42, "0:39", "/mnt", mount_table.FSTYPE, "mirrorfs:v")]

    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append(arguments)
        records.clear()
        return subprocess.CompletedProcess(arguments, 0, b"", b"")

    monkeypatch.setattr(mount_table, "parse_mountinfo", lambda text: list(records))
    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_mount_is_detached_and_its_connection_aborted(detached: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "39").mkdir()
    (tmp_path / "39" / "abort").write_text("")
    assert take_away("/mnt", connections=tmp_path)
    assert (tmp_path / "39" / "abort").read_text() == "1"
    assert [call[:3] for call in detached] == [["fusermount3", "-u", "-z"]]
    with pytest.raises(UsageError):
        take_away("/mnt", connections=tmp_path)


def test_without_fusectl_it_is_only_detached(detached: list[list[str]], tmp_path: Path) -> None:
    assert not take_away("/mnt", connections=tmp_path / "nothing")
    assert len(detached) == 1
