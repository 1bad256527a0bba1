"""The record of what was done with keys and stores: what it tells, its bounds, and a file that is damaged."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.key_events import EventLog, note_opened, recorded
from mirrorfs.cli.key_record import (
    EVENTS_MAX,
    FOUND,
    REFUSED_MAX,
    SIZE_MAX_BYTES,
    Change,
    KeyEvent,
    Record,
    Result,
    What,
    differences,
    read_record,
    update_record,
)
from mirrorfs.errors import WrongPassword
from mirrorfs.format.header import StoreEntry, header_key, seal_header
from tests.support.volumes import HEADER, KEY_SET, KEYS

SLOT = HEADER.slots[0]
FIRST = seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer)


def event(**fields: object) -> KeyEvent:
    plain = KeyEvent(0, 5, "key add", "first", (Change(What.SLOT_ADDED, "spare"),), Result.DONE, False)
    return replace(plain, **fields)  # type: ignore[arg-type]


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    return VolumePaths("practice", tmp_path / "practice.toml", tmp_path / "state")


def put(paths: VolumePaths, data: bytes, generation: int) -> None:
    path = paths.state / "objects" / header_key(generation, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_differences() -> None:
    spare = replace(SLOT, slot_id=b"\x51" * 16, name="spare")
    renewed = replace(SLOT, slot_id=b"\x52" * 16)
    first, second = HEADER.stores
    assert differences(HEADER, HEADER) == ()
    for changed, found in (
        ({"slots": (*HEADER.slots, spare)}, [Change(What.SLOT_ADDED, "spare")]),
        ({"slots": (spare,)}, [Change(What.SLOT_ADDED, "spare"), Change(What.SLOT_REMOVED, SLOT.name)]),
        ({"slots": (renewed,)}, [Change(What.SLOT_RENEWED, SLOT.name)]),
        ({"fingerprint": b"\x09" * len(HEADER.fingerprint)}, [Change(What.KEYS_ROTATED)]),
        ({"stores": (first,)}, [Change(What.STORE_REMOVED, second.name)]),
        ({"stores": (*HEADER.stores, StoreEntry("usb", b"\x22" * 16))}, [Change(What.STORE_ADDED, "usb")]),
        (
            {"stores": (first, replace(second, instance=b"\x23" * 16))},
            [Change(What.STORE_REPLACED, second.name)],
        ),
    ):
        assert list(differences(HEADER, replace(HEADER, **changed))) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "key add: slot spare added; opened with slot first."),
        ({"code_used": True}, "key add: slot spare added; opened with the recovery code."),
        (
            {"changes": (), "slot": None, "result": Result.REFUSED},
            "key add: refused, password or token were not right.",
        ),
        (
            {"command": FOUND, "slot": None},
            "slot spare added: on another PC, or by a command that was cut short.",
        ),
        (
            {"changes": (Change(What.SLOT_ADDED, "a\x1b[2Jb"),), "result": Result.FAILED},
            "key add: slot a [2Jb added; it ended with an error; opened with slot first.",
        ),
    ],
)
def test_sentences(fields: dict[str, object], sentence: str) -> None:
    assert event(**fields).sentence() == sentence


def test_it_is_bounded_and_guessing_pushes_nothing_out(paths: VolumePaths) -> None:
    record = Record().with_event(event(code_used=True, time_ns=7))
    for _ in range(3 * REFUSED_MAX):
        record = record.with_event(event(changes=(), result=Result.REFUSED))
    assert record.events[0].code_used and len(record.events) == 1 + REFUSED_MAX
    many = tuple(Change(What.SLOT_ADDED, "n" * 64) for _ in range(32))
    for _ in range(2 * EVENTS_MAX):
        record = record.with_event(event(changes=many))
    assert len(record.events) == EVENTS_MAX + REFUSED_MAX
    assert record.count == record.events[-1].number == 1 + 3 * REFUSED_MAX + 2 * EVENTS_MAX
    assert record.code_used_ns == 7, "kept although its event is gone"
    update_record(paths, lambda _: record)
    assert read_record(paths) == record
    (file,) = paths.state.glob("*.json")
    assert file.stat().st_size < SIZE_MAX_BYTES
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "[" * 9999, '{"events":[{}],"header":1,"count":1}'])
def test_what_cannot_be_made_out_is_begun_anew(paths: VolumePaths, text: str) -> None:
    update_record(paths, lambda record: record.with_event(event()))
    (file,) = paths.state.glob("*.json")
    file.write_text(text)
    assert read_record(paths) == Record()
    update_record(paths, lambda record: record.with_event(event()))
    assert len(read_record(paths).events) == 1


def test_several_at_once_lose_nothing(paths: VolumePaths) -> None:
    def add() -> None:
        for _ in range(5):
            update_record(paths, lambda record: record.with_event(event()))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in read_record(paths).events] == list(range(1, 21))


def test_what_another_pc_changed_is_found_once(paths: VolumePaths) -> None:
    put(paths, FIRST, 1)
    later = replace(HEADER, generation=2, previous=b"\x01" * 32, stores=HEADER.stores[:1])
    data = seal_header(later, keys=KEYS, seed=KEY_SET.writer)
    for _ in range(2):
        note_opened(paths, AlarmConfig(), HEADER, FIRST)
    assert read_record(paths).events == (), "the first that is seen is the beginning"
    for _ in range(2):
        note_opened(paths, AlarmConfig(), later, data)
        put(paths, data, 2)
    (found,) = read_record(paths).events
    assert found.command == FOUND and found.changes == (Change(What.STORE_REMOVED, HEADER.stores[1].name),)


def test_what_a_command_did_and_that_it_was_refused(
    paths: VolumePaths, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mirrorfs")
    put(paths, FIRST, 1)
    later = replace(HEADER, generation=2, previous=b"\x01" * 32, stores=HEADER.stores[:1])
    log = EventLog(paths, seen=0)
    with pytest.raises(WrongPassword), recorded(paths, AlarmConfig(), "key add", heard=log.log_new):
        raise WrongPassword("The token is right but the volume password is not; try again.")
    with pytest.raises(LookupError), recorded(paths, AlarmConfig(), "key add"):
        raise LookupError  # before anybody showed anything
    with recorded(paths, AlarmConfig(), "store remove", heard=log.log_new) as recording:
        recording.opened(HEADER, SLOT)
        put(paths, seal_header(later, keys=KEYS, seed=KEY_SET.writer), 2)
    with recorded(paths, AlarmConfig(), "key check", heard=log.log_new) as recording:
        recording.opened(later, SLOT)
    refused, removed = read_record(paths).events
    assert (refused.result, refused.slot) == (Result.REFUSED, None)
    assert (removed.command, removed.slot, removed.result) == ("store remove", SLOT.name, Result.DONE)
    assert [record.getMessage() for record in caplog.records] == [
        f"Keys and stores: {one.sentence()}" for one in (refused, removed)
    ]
