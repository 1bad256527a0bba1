"""The report of a restore drill: only the drill role makes one, and it does not contradict itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mirrorfs.errors import AuthenticationError, FormatError, LimitError, MirrorfsError
from mirrorfs.format.document import DocumentKind, seal_document
from mirrorfs.format.drill import (
    OBJECTS_MAX,
    DrillFault,
    DrillReport,
    check_drill_report,
    open_drill_report,
    seal_drill_report,
    volume_of_report,
)
from mirrorfs.format.kdf import VolumeKeys
from tests.support.volumes import DRILL, KEY_SET, KEYS, VOLUME

PUBLIC = KEY_SET.public_keys().drill
OBJECT = "segments/000000000000002a-00000003-00112233445566ff"
FAILED = replace(
    DRILL,
    differing_names=3,
    damaged_files=1,
    differing_files=2,
    object_count=90,
    objects=(OBJECT,),
    faults=(DrillFault.LOG, DrillFault.BEHIND, DrillFault.NAMES, DrillFault.DAMAGED, DrillFault.CONTENTS),
)
NOTHING = replace(
    DRILL,
    previous=b"",
    position=0,
    time_ns=0,
    journal_sequence=0,
    journal_hash=b"",
    names=0,
    files=0,
    size_bytes=0,
    drilled_files=0,
    drilled_bytes=0,
    compared_files=0,
    faults=(DrillFault.NOTHING,),
)


def sealed(report: DrillReport = DRILL) -> bytes:
    return seal_drill_report(report, keys=KEYS, seed=KEY_SET.drill)


@pytest.mark.parametrize("report", [DRILL, FAILED, NOTHING])
def test_it_reads_back(report: DrillReport) -> None:
    data = sealed(report)
    assert open_drill_report(data, keys=KEYS, public_key=PUBLIC) == report
    assert check_drill_report(data, volume=VOLUME, public_key=PUBLIC) == report
    assert volume_of_report(data) == VOLUME
    assert report.passed == (report is DRILL)


def test_a_body_is_that_of_the_specification() -> None:
    assert FAILED.to_body() == {
        "store": "home",
        "instance": "20" * 16,
        "host": "accueil",
        "program": "1.0",
        "started_ns": 1_700_000_100_000_000_000,
        "ended_ns": 1_700_000_200_000_000_000,
        "previous": DRILL.previous.hex(),
        "header_generation": 1,
        "header_hash": DRILL.header_hash.hex(),
        "position": 0x2A << 20 | 7,
        "time_ns": 1_700_000_000_000_000_000,
        "journal_sequence": 99,
        "journal_hash": DRILL.journal_hash.hex(),
        "missing_since_ns": 1_700_000_090_000_000_000,
        "names": 12,
        "files": 8,
        "size_bytes": 5000,
        "drilled_files": 4,
        "drilled_bytes": 3000,
        "compared_files": 3,
        "differing_names": 3,
        "damaged_files": 1,
        "differing_files": 2,
        "object_count": 90,
        "objects": [OBJECT],
        "faults": ["log", "behind", "names", "damaged", "contents"],
    }
    assert [fault.value for fault in DrillFault] == [
        "header", "nothing", "log", "history", "behind", "went-back", "names", "damaged", "contents",
    ]  # fmt: skip


def test_forged_reports_are_refused() -> None:
    data = sealed(FAILED)
    writer = seal_drill_report(DRILL, keys=KEYS, seed=KEY_SET.writer)
    good = bytearray(data)
    good[data.index(b'"damaged_files":1') + 16] = ord("0")
    for forged in (writer, bytes(good), data[:-97] + b"]" + data[-96:], sealed()[:16] + data[16:]):
        with pytest.raises(MirrorfsError):
            open_drill_report(forged, keys=KEYS, public_key=PUBLIC)
        with pytest.raises(MirrorfsError):
            check_drill_report(forged, volume=VOLUME, public_key=PUBLIC)
    with pytest.raises(AuthenticationError, match="signature"):
        check_drill_report(bytes(good), volume=VOLUME, public_key=PUBLIC)
    with pytest.raises(AuthenticationError):
        check_drill_report(data, volume=VOLUME, public_key=KEY_SET.public_keys().writer)
    with pytest.raises(AuthenticationError):
        check_drill_report(data, volume=bytes(16), public_key=PUBLIC)
    # Who has the signing seed alone cannot make one that the volume's keys take.
    other = VolumeKeys.derive(b"\x0f" * 32, volume=VOLUME, generation=1)
    with pytest.raises(AuthenticationError, match="MAC"):
        open_drill_report(data, keys=other, public_key=PUBLIC)


def test_a_slot_without_the_role_signs_none() -> None:
    with pytest.raises(LimitError, match="does not grant the role"):
        seal_drill_report(DRILL, keys=KEYS, seed=bytes(32))


def test_one_kind_is_not_taken_for_another() -> None:
    head = seal_document(DocumentKind.HEAD, DRILL.to_body(), volume=VOLUME, keys=KEYS, seed=KEY_SET.drill)
    with pytest.raises(FormatError):
        check_drill_report(head, volume=VOLUME, public_key=PUBLIC)


Change = Callable[[dict[str, Any]], object]

BAD: list[Change] = [
    lambda body: body.pop("host"),
    lambda body: body.update(extra=1),
    lambda body: body.update(store="../x"),
    lambda body: body.update(host="a\nb"),
    lambda body: body.update(host="a" * 256),
    lambda body: body.update(program="1" * 65),
    lambda body: body.update(ended_ns=body["started_ns"] - 1),
    lambda body: body.update(started_ns=-1),
    lambda body: body.update(header_generation=0),
    lambda body: body.update(header_hash=""),
    lambda body: body.update(instance="20" * 15),
    lambda body: body.update(journal_hash=""),
    lambda body: body.update(drilled_files=9),
    lambda body: body.update(compared_files=5),
    lambda body: body.update(damaged_files=5),
    lambda body: body.update(damaged_files=0),
    lambda body: body.update(differing_names=0),
    lambda body: body.update(differing_files=0),
    lambda body: body.update(faults=[]),
    lambda body: body.update(faults=["damaged", "names", "contents"]),
    lambda body: body.update(faults=["names", "names", "damaged", "contents"]),
    lambda body: body.update(faults=["names", "damaged", "contents", "other"]),
    lambda body: body.update(faults=["nothing", "names", "damaged", "contents"]),
    lambda body: body.update(object_count=0),
    lambda body: body.update(objects=["Patient Meyer.odt"]),
    lambda body: body.update(objects=[OBJECT, OBJECT]),
    lambda body: body.update(objects=["b", "a"]),
    lambda body: body.update(objects=[1]),
    lambda body: body.update(objects=[f"segments/{number:04}" for number in range(OBJECTS_MAX + 1)]),
    lambda body: body.update(position="17"),
    lambda body: body.update(names="12"),
]


@pytest.mark.parametrize("change", BAD)
def test_what_it_must_not_say(change: Change) -> None:
    body = FAILED.to_body()
    change(body)
    data = seal_document(DocumentKind.DRILL_REPORT, body, volume=VOLUME, keys=KEYS, seed=KEY_SET.drill)
    with pytest.raises((FormatError, LimitError)):
        check_drill_report(data, volume=VOLUME, public_key=PUBLIC)
    with pytest.raises((FormatError, LimitError)):
        open_drill_report(data, keys=KEYS, public_key=PUBLIC)
