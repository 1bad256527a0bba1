"""The drill reports of a local state, and how one is told to people and programs."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorfs.cli.config import StoreConfig, TokenConfig, VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.drill import choice
from mirrorfs.cli.drill_list import list_reports
from mirrorfs.cli.drill_record import DrillRecord, LastDrills, last_drills
from mirrorfs.cli.drill_report import as_json, as_text
from mirrorfs.errors import UsageError
from mirrorfs.format.drill import DrillFault, DrillReport, seal_drill_report
from mirrorfs.format.header import header_key, seal_header
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import KeySet
from tests.support.volumes import DRILL, HEADER, KEY_SET, KEYS, VOLUME

STORES = (
    StoreConfig("home", "file:///home", DRILL.instance),
    StoreConfig("s3", "s3://bucket/prefix", b"\x21" * 16),
)
NOTHING = {"home": LastDrills(), "s3": LastDrills()}
FAILED = replace(DRILL, damaged_files=2, object_count=30, faults=(DrillFault.BEHIND, DrillFault.DAMAGED))


def at(seconds: int, report: DrillReport = DRILL, **changes: int | str) -> DrillReport:
    """The report of a drill that began then."""
    return replace(report, started_ns=seconds * 10**9, ended_ns=(seconds + 1) * 10**9, **changes)


class State:
    """A local state with a header."""

    def __init__(self, root: Path) -> None:
        self.paths = VolumePaths("practice", root / "practice.toml", root / "state")
        self.record = DrillRecord(self.paths, volume=VOLUME)
        self.add_header(seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer))

    def add_header(self, data: bytes, generation: int = 1) -> None:
        path = self.paths.state / "objects" / header_key(generation, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def add(self, report: DrillReport, *, seed: bytes = KEY_SET.drill) -> bytes:
        data = seal_drill_report(report, keys=KEYS, seed=seed)
        self.record.add(report, data)
        return data


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_nothing_is_known_of_a_new_state(state: State, tmp_path: Path) -> None:
    assert state.record.last(STORES) == NOTHING and state.record.newest_digest() == b""
    nowhere = DrillRecord(VolumePaths("other", tmp_path / "o.toml", tmp_path / "other"), volume=VOLUME)
    assert nowhere.last(STORES) == NOTHING and nowhere.drill_keys() == []


def test_the_last_ones_count(state: State) -> None:
    state.add(at(100, position=70))
    assert state.record.last(STORES)["home"] == LastDrills(100 * 10**9, None, 70)
    state.add(at(300, FAILED, position=60))
    assert state.record.last(STORES)["home"] == LastDrills(100 * 10**9, 300 * 10**9, 70)
    newest = state.add(at(400, position=71))
    assert state.record.last(STORES)["home"] == LastDrills(400 * 10**9, None, 71)
    assert state.record.last(STORES)["s3"] == LastDrills()
    assert state.record.newest_digest() == hashlib.sha256(newest).digest()
    assert last_drills(state.paths, volume=VOLUME, stores=STORES) == state.record.last(STORES)
    # Another store under the name is another one.
    replaced = (replace(STORES[0], instance=b"\x77" * 16),)
    assert state.record.last(replaced) == {"home": LastDrills()}


def test_what_was_not_signed_by_the_drill_role_is_no_report(state: State) -> None:
    state.add(at(200), seed=KEY_SET.writer)
    data = bytearray(state.add(at(300)))
    data[40] ^= 1
    state.record.add(at(300), bytes(data))
    (state.paths.state / "drills" / "notes").write_bytes(b"no report")
    assert state.record.last(STORES) == NOTHING
    other = DrillRecord(state.paths, volume=b"\x99" * 16)
    state.add(at(100))
    assert other.last(STORES) == NOTHING and state.record.last(STORES) != NOTHING


def test_reports_outlive_a_rotation_of_the_keys(state: State) -> None:
    state.add(at(100))
    newer = KeySet(root=b"\x51" * 32, writer=b"\x52" * 32, pruner=b"\x53" * 32, drill=b"\x54" * 32)
    keys = VolumeKeys.derive(KEY_SET.root, volume=VOLUME, generation=1)
    header = replace(HEADER, generation=2, previous=b"\x41" * 32, public_keys=newer.public_keys())
    state.add_header(seal_header(header, keys=keys, seed=newer.writer), 2)
    (state.paths.headers / "00000003-rotten").write_bytes(b"rotten")
    state.add(at(200), seed=newer.drill)
    assert state.record.drill_keys() == [newer.public_keys().drill, KEY_SET.public_keys().drill]
    assert state.record.last(STORES)["home"] == LastDrills(200 * 10**9, None, DRILL.position)


# --- for people and programs -----------------------------------------------------------------

KEY = KEY_SET.public_keys().drill


def test_text_of_one_that_passed() -> None:
    text = as_text(DRILL, volume=VOLUME, name="practice", key=KEY)
    for words in (
        "RÉUSSI / PASSED", "practice", VOLUME.hex(), KEY.hex(), "accueil", "2023-11-14 22:13:20",
        "4 fichiers sur 8", "4 files of 8", "3 of which", "2.9 KiB of 4.9 KiB", "position 42.7",
        "Il manque au dépôt les changements depuis 2023-11-14 22:14:50", "The store lacks the changes since",
    ):  # fmt: skip
        assert words in text, words
    assert max(len(line) for line in text.splitlines()) <= 110


def test_text_of_one_that_failed() -> None:
    named = replace(FAILED, objects=tuple(f"segments/{number:04}" for number in range(25)))
    text = as_text(named, volume=VOLUME, name="", key=KEY)
    assert "ÉCHEC / FAILED" in text and "no good copy: 2." in text and "pas de bonne copie: 2." in text
    assert "segments/0019" in text and "segments/0020" not in text and "(+10)" in text
    nothing = replace(
        DRILL, journal_hash=b"", position=0, time_ns=0, missing_since_ns=0, faults=(DrillFault.NOTHING,)
    )
    text = as_text(nothing, volume=VOLUME, name="", key=KEY)
    assert "Nothing can be restored" in text and "was\nrestored" not in text and "1970" not in text


@pytest.mark.parametrize("fault", DrillFault)
def test_every_fault_has_words(fault: DrillFault) -> None:
    counts = {"differing_names": 1, "damaged_files": 1, "differing_files": 1}
    text = as_text(replace(DRILL, faults=(fault,), **counts), volume=VOLUME, name="v", key=KEY)
    assert text.count("\n- ") == 2 and "{" not in text


def test_json() -> None:
    found = as_json(FAILED, volume=VOLUME, key=KEY)
    assert json.loads(json.dumps(found)) == found
    assert found["passed"] is False and found["faults"] == ["behind", "damaged"]
    assert (found["volume"], found["key"], found["position"]) == (VOLUME.hex(), KEY.hex(), "42.7")
    assert found["started"] == "2023-11-14T22:15:00.000Z" and found["missing_since"] is not None
    assert as_json(replace(DRILL, missing_since_ns=0), volume=VOLUME, key=KEY)["missing_since"] is None
    assert not any(name.endswith("_ns") for name in found)


# --- samples ---------------------------------------------------------------------------------


def test_samples() -> None:
    inodes = array("q", range(10, 1010))
    assert choice(None)(inodes) == inodes
    for text, count in (("5%", 50), ("0.01%", 1), ("100%", 1000), ("7", 7), ("5000", 1000)):
        chosen = choice(text)(inodes)
        assert len(chosen) == count and list(chosen) == sorted(set(chosen)) and set(chosen) <= set(inodes)
    assert choice("50%")(inodes) != choice("50%")(inodes)
    assert not choice("50%")(array("q"))


@pytest.mark.parametrize("text", ["", "%", "0", "0%", "-5", "101%", "1.5", "1e9x", "nan%", "inf", "inf%"])
def test_what_is_no_sample(text: str) -> None:
    with pytest.raises(UsageError, match="percentage or a number"):
        choice(text)


def test_reports_are_listed(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*stores: str, is_json: bool = False) -> str:
        assert list_reports(state.paths, stores, is_json=is_json) == 0
        return capsys.readouterr().out

    state.paths.config.parent.chmod(0o700)
    write_config(state.paths, VolumeConfig(VOLUME, KEYS.fingerprint, STORES, (TokenConfig("pkcs11:"),)))
    assert "no reports" in listed() and json.loads(listed(is_json=True))["reports"] == []
    state.add(at(100, FAILED))
    state.add(at(200, store="s3"))
    lines = listed().splitlines()
    assert len(lines) == 6 and lines[0].endswith("  s3  passed")
    assert lines[3].endswith(f"  {DRILL.store}  FAILED (behind, damaged)")
    assert Path(lines[2].strip()).read_bytes() and f"{DRILL.drilled_files} of {DRILL.files} files" in lines[1]
    assert listed(DRILL.store).splitlines() == lines[3:]
    told = json.loads(listed(is_json=True))
    assert told["schema"] == 1 and [one["store"] for one in told["reports"]] == ["s3", DRILL.store]
    assert (
        told["reports"][1]["faults"] == ["behind", "damaged"]
        and told["reports"][0]["file"] == lines[2].strip()
    )
    # One that somebody else signed, or changed, counts for nothing.
    state.add(at(300), seed=b"\x66" * 32)
    assert list_reports(state.paths, (), is_json=False) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == lines and "1 of the files" in said.err
