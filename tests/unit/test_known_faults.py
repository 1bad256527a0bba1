"""mirrorfs.engine.known_faults: what keeps a bad copy on the list, and what takes it off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import known_faults, scrub_state
from mirrorfs.engine.known_faults import STATE_PATH, KnownFaults
from mirrorfs.engine.objects import LocalObjects
from mirrorfs.engine.scrub_state import LOCAL, BadObject, Fault
from mirrorfs.errors import DiskFull
from tests.support.virtual_pc import FillingDisk

KEY, OTHER = "segments/0000000000000001-00000001-00112233445566ff", "heads/1"


class Objects(LocalObjects):
    """Of which only is asked whether they are in use."""

    def __init__(self) -> None:
        self.collected: set[str] = set()

    def is_in_use(self, key: str) -> bool:
        return key not in self.collected


class Place:
    """A state directory, and the list of one process after the other."""

    def __init__(self, root: Path) -> None:
        self.disk = FillingDisk(root)
        self.objects = Objects()
        self.faults = KnownFaults(self.disk, self.objects)

    def restart(self) -> None:
        self.faults = KnownFaults(self.disk, self.objects)

    def found(self, *faults: Fault, place: str = "a", key: str = KEY) -> None:
        for fault in faults:
            self.faults.found(BadObject(place, key, fault, "it is bad."))


@pytest.fixture
def it(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("fault", list(Fault))
def test_it_is_there_after_a_restart(it: Place, fault: Fault) -> None:
    it.found(fault)
    it.found(fault, place=LOCAL, key=OTHER)
    it.restart()
    assert it.faults.counts() == {"a": 1, LOCAL: 1}
    assert it.faults.all() == [
        BadObject("a", KEY, fault, "it is bad."),
        BadObject(LOCAL, OTHER, fault, "it is bad."),
    ]
    assert it.faults.is_bad("a", KEY) and not it.faults.is_bad("b", KEY)
    it.faults.whole("a", KEY)
    it.faults.file_changed("objects/" + OTHER)
    assert it.faults.counts() == {}
    it.restart()
    assert it.faults.counts() == {}


@pytest.mark.parametrize("fault", list(Fault))
def test_what_is_sent_anew_is_whole(it: Place, fault: Fault) -> None:
    it.found(fault)
    it.faults.held_changed("b", KEY, is_held=True)
    it.faults.held_changed("a", KEY, is_held=False)
    assert it.faults.counts() == {"a": 1}
    it.faults.held_changed("a", KEY, is_held=True)
    assert it.faults.counts() == {}


@pytest.mark.parametrize(
    ("fault", "hidden"),
    [(Fault.MISSING, False), (Fault.SIZE, False), (Fault.DAMAGED, True), (Fault.FORK, True)],
)
def test_what_a_listing_does_not_show(it: Place, fault: Fault, hidden: bool) -> None:
    """Mending was cut short: bytes that are still in the way may have the right size."""
    it.found(fault)
    it.faults.held_changed("a", KEY, is_held=False)
    it.restart()
    assert it.faults.is_hidden("a", KEY) is hidden
    assert not it.faults.is_hidden("b", KEY) and not it.faults.is_hidden("a", OTHER)


@pytest.mark.parametrize(
    ("fault", "left"), [(Fault.MISSING, 0), (Fault.SIZE, 0), (Fault.DAMAGED, 1), (Fault.FORK, 1)]
)
def test_what_a_later_scrub_says(it: Place, fault: Fault, left: int) -> None:
    it.found(fault)
    it.faults.scrubbed([], {"b"}, is_held=lambda place, key: True)
    it.faults.scrubbed([], {"a"}, is_held=lambda place, key: False)
    it.faults.scrubbed(it.faults.all(), {"a"}, is_held=lambda place, key: True)
    assert len(it.faults.all()) == 1
    it.faults.scrubbed([], {"a"}, is_held=lambda place, key: True)
    assert len(it.faults.all()) == left


def test_what_is_to_go_is_no_fault(it: Place) -> None:
    it.found(Fault.DAMAGED)
    it.found(Fault.DAMAGED, place="b")
    it.objects.collected.add(KEY)
    it.faults.held_changed("a", KEY, is_held=False)
    assert it.faults.counts() == {"b": 1}
    it.faults.scrubbed([], set(), is_held=lambda place, key: False)
    assert it.faults.counts() == {}


def test_what_is_deleted_is_no_fault(it: Place) -> None:
    """Of what no index knows, too."""
    it.found(Fault.DAMAGED, key=OTHER)
    it.found(Fault.DAMAGED, place="b", key=OTHER)
    it.found(Fault.DAMAGED)
    it.faults.gone([OTHER])
    assert [bad.key for bad in it.faults.all()] == [KEY]


def test_it_stays_hidden(it: Place) -> None:
    """A disk that is away for a moment shows nothing; when it is back, what is damaged still is."""
    it.found(Fault.DAMAGED, Fault.MISSING)
    assert it.faults.is_hidden("a", KEY)


def test_what_was_found_is_on_the_disk_when_it_is_to_be(it: Place) -> None:
    for number in range(200):
        it.found(Fault.DAMAGED, key=f"heads/{number}")
    it.faults.settle()
    it.found(Fault.DAMAGED)
    it.restart()
    assert not it.faults.is_hidden("a", KEY)
    it.found(Fault.DAMAGED)
    it.disk.full_for = STATE_PATH
    with pytest.raises(DiskFull):
        it.faults.settle()
    it.disk.full_for = ""
    it.faults.settle()
    it.restart()
    assert it.faults.is_hidden("a", KEY)


def test_a_store_that_is_being_filled(it: Place) -> None:
    """What lies there damaged is not the object; of what it holds nobody knows whose it was."""
    it.found(Fault.DAMAGED)
    it.found(Fault.DAMAGED, key=OTHER)
    it.faults.keep_only({LOCAL}, lacks=lambda place, key: (place, key) == ("a", KEY))
    assert [bad.key for bad in it.faults.all()] == [KEY]


def test_stores_that_left(it: Place) -> None:
    for place in ("a", "b", "c", LOCAL):
        it.found(Fault.DAMAGED, place=place)
    it.faults.forget_place("a")
    assert it.faults.counts() == {"b": 1, "c": 1, LOCAL: 1}
    it.faults.keep_only({LOCAL, "c"})
    it.restart()
    assert it.faults.counts() == {"c": 1, LOCAL: 1}


def test_who_counts_copies_hears_of_it(it: Place) -> None:
    heard: list[str] = []
    it.faults.on_change = heard.append
    it.found(Fault.DAMAGED)
    it.faults.whole("a", OTHER)
    assert heard == [KEY]
    it.faults.whole("a", KEY)
    assert heard == [KEY, KEY]


def test_it_is_bounded_and_seldom_written(it: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_faults, "FOUND_MAX", 1000)
    writes = 0

    def write_whole(path: str, data: bytes) -> None:
        nonlocal writes
        writes += 1
        LocalDisk.write_whole(it.disk, path, data)

    monkeypatch.setattr(it.disk, "write_whole", write_whole)
    for number in range(1100):
        it.found(Fault.MISSING, key=f"heads/{number}")
    it.faults.scrubbed(it.faults.all(), {"a"}, is_held=lambda place, key: True)
    assert it.faults.counts() == {"a": 1000}
    assert 0 < writes < 400
    it.restart()
    assert it.faults.counts() == {"a": 1000}
    it.faults.scrubbed([], {"a"}, is_held=lambda place, key: True)
    it.restart()
    assert it.faults.counts() == {}


def test_a_full_disk(it: Place) -> None:
    it.disk.full_for = STATE_PATH
    it.found(Fault.DAMAGED)
    assert it.faults.counts() == {"a": 1}, "it is known all the same"
    with pytest.raises(DiskFull):
        it.faults.scrubbed(it.faults.all(), {"a"}, is_held=lambda place, key: True)
    it.disk.full_for = ""
    it.faults.scrubbed(it.faults.all(), {"a"}, is_held=lambda place, key: True)
    it.restart()
    assert it.faults.counts() == {"a": 1}


def test_the_list_of_earlier_versions_counts(it: Place) -> None:
    bad = {"place": "a", "key": KEY, "fault": "damaged", "detail": "it is bad."}
    it.disk.write_whole(scrub_state.STATE_PATH, json.dumps({"version": 1, "found": [bad]}).encode())
    it.restart()
    assert it.faults.counts() == {"a": 1}
    it.faults.whole("a", KEY)
    it.restart()
    assert it.faults.counts() == {}, "but once"


@pytest.mark.parametrize(
    "kept",
    [b"", b"[]", b"{", b"7", b'{"found": 1}', b'{"found": [{}]}', b'{"found": [{"place": "a", "key": "b"}]}'],
)
def test_what_is_remembered_may_be_anything(it: Place, kept: bytes) -> None:
    it.disk.write_whole(STATE_PATH, kept)
    it.restart()
    assert it.faults.counts() == {}
