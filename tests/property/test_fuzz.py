"""The corpus of scripts/fuzz is replayed, and the fuzzer is seen to find bugs that are planted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.errors import FormatError
from scripts import fuzz_corpus
from scripts.fuzz_mutations import (
    INPUT_SIZE_MAX_BYTES,
    mutate_bytes,
    mutate_document,
    mutate_json,
    mutate_text,
)
from scripts.fuzz_oracle import TIME_MAX_S, Finding, Judge
from scripts.fuzz_run import INPUTS, Inputs, Run, replay, report, shares
from scripts.fuzz_targets import TARGETS, Target

CORPUS_SIZE_MAX_BYTES = 300 * 1024
# On a busy machine the corpus is checked for what it does, not for how fast: the fuzzer times it.
NO_HURRY_S = 5.0
FOREVER_S = float("inf")


def planted(parse: Callable[[bytes], object], name: str = "planted") -> Target:
    """A parser that documents FormatError only."""
    return Target(name, parse, (FormatError,), lambda: [b"\x07 a valid input"], mutate_bytes, 1)


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    target = TARGETS[name]
    kept = fuzz_corpus.stored(target)
    with Judge(target, time_max_s=NO_HURRY_S) as judge:
        outcomes = [judge.run(data) for data in target.seeds()]
        for path, data in kept:
            outcomes.append(judge.run(data))
            assert path.name.startswith("failure-") or path.name == fuzz_corpus.name_of(data)
    assert outcomes[0] == "accepted"
    # Each kept input was kept for a path that valid ones do not take, so most of them are refused.
    assert not kept or not target.documented or set(outcomes) - {"accepted"}


def test_corpus_is_small_and_has_no_strangers() -> None:
    files = [path for path in fuzz_corpus.CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(TARGETS)
    assert len(files) > 100
    assert sum(path.stat().st_size for path in files) < CORPUS_SIZE_MAX_BYTES


# --- planted bugs ----------------------------------------------------------------------------


def _key_error(data: bytes) -> object:
    if data[:1] != b"\x07":
        return {}["missing"]
    raise FormatError("It is refused.")


def _endless(data: bytes) -> object:
    while data[:1] != b"\x07":
        pass
    raise FormatError("It is refused.")


def _endless_but_catching(data: bytes) -> object:
    while data[:1] != b"\x07":
        try:
            int("x")
        except Exception:  # noqa: BLE001  # as bad as a parser can be
            continue
    raise FormatError("It is refused.")


def _recursion(data: bytes) -> object:
    return _recursion(data) if data[:1] != b"\x07" else None


def _memory(data: bytes) -> object:
    return b"x" * (200 << 20) if data[:1] != b"\x07" else None


def _slow(data: bytes) -> object:
    started_s = time.process_time()
    while data[:1] != b"\x07" and time.process_time() - started_s < 4 * TIME_MAX_S:
        pass
    return None


def _control_characters(data: bytes) -> object:
    if data[:1] != b"\x07":
        raise FormatError("The input has \x1b[2J in it.")
    return None


@pytest.mark.parametrize(
    ("parse", "kind"),
    [
        (_key_error, "crash"),
        (_endless, "hang"),
        (_endless_but_catching, "hang"),
        (_recursion, "crash"),
        (_memory, "memory"),
        (_slow, "slow"),
        (_control_characters, "message"),
    ],
)
def test_planted_bug(parse: Callable[[bytes], object], kind: str) -> None:
    hang_s, time_max_s = (0.05, FOREVER_S) if kind in ("hang", "memory") else (10.0, TIME_MAX_S)
    with Judge(planted(parse), hang_s=hang_s, time_max_s=time_max_s) as judge:
        assert judge.run(b"\x07") in ("accepted", "FormatError")
        with pytest.raises(Finding) as found:
            judge.run(b"\x08")
    assert found.value.kind == kind
    assert kind in ("memory", "slow") or "test_fuzz.py" in found.value.signature


def test_memory_is_judged_by_what_an_input_adds() -> None:
    with Judge(planted(lambda data: b"x" * (1 << 20))) as judge:
        assert [judge.run(b"") for _ in range(5)] == ["accepted"] * 5


def test_planted_bug_is_found_kept_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = planted(_key_error)
    run = Run(target, seed=7, corpus=tmp_path)
    run.run(100, 400, deadline_s=FOREVER_S)
    assert run.count == 400
    assert run.faults["crash"] > 10
    assert run.outcomes["FormatError"] > 10
    assert report([run], seed=7) == 1
    said = capsys.readouterr().out
    assert "KeyError at test_fuzz.py" in said
    assert said.splitlines()[-1] == f"400 inputs: {run.faults['crash']} crashes, 0 hangs"
    (kept,) = (tmp_path / "planted").iterdir()  # one of each kind
    number = int(kept.name.removeprefix("failure-7-"))
    assert f"--target planted --seed 7 --first {number} --inputs 1" in said

    monkeypatch.setitem(TARGETS, "planted", target)
    assert replay([kept]) == 1
    kept_data = kept.read_bytes()
    kept.unlink()  # the number alone gives the input, as long as the corpus is the same
    assert Inputs(target, seed=7, corpus=tmp_path)[number] == kept_data


def test_planted_hang_is_counted_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(planted(_endless), seed=1, corpus=tmp_path)
    run.run(0, 20, deadline_s=FOREVER_S, hang_s=0.05)
    assert run.count == 20
    assert run.faults["hang"] > 0
    assert report([run], seed=1) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"20 inputs: 0 crashes, {run.faults['hang']} hangs"


def test_good_parser_has_no_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(TARGETS["frame-header"], seed=1, corpus=fuzz_corpus.CORPUS)
    run.run(0, 3000, deadline_s=FOREVER_S)
    assert report([run], seed=1) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3,000 inputs: 0 crashes, 0 hangs"
    assert run.outcomes["accepted"] > 100
    assert run.outcomes["FormatError"] > 100


# --- inputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_replay_differ_and_are_bounded(name: str) -> None:
    target = TARGETS[name]
    inputs, again = (Inputs(target, seed=3, corpus=fuzz_corpus.CORPUS) for _ in range(2))
    made = [inputs[number] for number in range(200)]
    assert made == [again[number] for number in reversed(range(200))][::-1]
    assert len(set(made)) > 60
    assert max(map(len, made)) <= INPUT_SIZE_MAX_BYTES + 1024
    assert made != [Inputs(target, seed=4, corpus=fuzz_corpus.CORPUS)[number] for number in range(200)]


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_document, mutate_json, mutate_text])
def test_any_input_can_be_mutated(mutate: Callable[..., bytes]) -> None:
    target = Target("any", bytes, (), lambda: [b"", b"\xff", b"[" * 9000, b"{}", b"0"], mutate, 1)
    inputs = Inputs(target, seed=1, corpus=Path("/nonexistent"))
    assert all(isinstance(inputs[number], bytes) for number in range(500))


def test_every_input_belongs_to_a_target() -> None:
    targets = list(TARGETS.values())
    assert sum(shares(INPUTS, targets).values()) == INPUTS
    assert min(shares(INPUTS, targets).values()) >= 100_000


def test_what_takes_a_new_path_is_kept() -> None:
    target = TARGETS["frame-header"]
    seed = target.seeds()[0]
    assert fuzz_corpus.distilled(target, [seed, b"", b"\x00", bytes(40)], seen=set()) == [b"", bytes(40)]
