"""Which way of asking is taken, and asking by systemd-ask-password: a played one, and the real one."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from pathlib import Path

import pytest

from mirrorfs.cli.failures import describe
from mirrorfs.errors import CannotAsk, MirrorfsError, NotAnswered, UsageError
from mirrorfs.keys import ask_program, ask_systemd, askers
from mirrorfs.keys.ask_pinentry import PinentryAsker
from mirrorfs.keys.ask_systemd import SystemdAsker
from mirrorfs.keys.ask_terminal import TerminalAsker
from mirrorfs.keys.askers import choose_asker
from mirrorfs.keys.prompts import check_code_askable, read_new_password, read_password, read_pin
from mirrorfs.keys.question import Question, SecretKind
from tests.support.asking_programs import (
    PlayedProgram,
    is_running,
    own_children,
    processes_showing,
    wait_until,
)
from tests.support.password_agent import PasswordAgent

SECRET = "s3cret of the test"
ENVIRONMENT = {"MIRRORFS_ASK": "systemd", "LD_PRELOAD": "/tmp/evil.so"}
QUESTION = Question(kind=SecretKind.PIN, text="PIN of token x", label="PIN", about="x")


# --- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, TerminalAsker),
        (True, {"DISPLAY": ":0", "INVOCATION_ID": "1"}, TerminalAsker),
        (False, {"DISPLAY": ":0", "INVOCATION_ID": "1"}, PinentryAsker),
        (False, {"WAYLAND_DISPLAY": "wayland-0"}, PinentryAsker),
        (False, {"DISPLAY": "", "INVOCATION_ID": "1"}, SystemdAsker),
        (True, {"MIRRORFS_ASK": "pinentry"}, PinentryAsker),
        (True, {"MIRRORFS_ASK": "systemd", "DISPLAY": ":0"}, SystemdAsker),
        (False, {"MIRRORFS_ASK": "terminal", "DISPLAY": ":0"}, TerminalAsker),
        (True, {"MIRRORFS_ASK": ""}, TerminalAsker),
    ],
)
def test_the_choice(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], expected: type
) -> None:
    monkeypatch.setattr(askers, "has_terminal", lambda: terminal)
    assert type(choose_asker(environment, QUESTION)) is expected


@pytest.mark.parametrize("environment", [{}, {"DISPLAY": ""}, {"HOME": "/", "INVOCATION_ID": ""}])
def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    monkeypatch.setattr(askers, "has_terminal", lambda: False)
    with pytest.raises(CannotAsk, match="No terminal can be asked for the PIN, nor is there a display"):
        choose_asker(environment, QUESTION)
    with pytest.raises(CannotAsk, match="use --code-file"):
        check_code_askable(environment)


@pytest.mark.parametrize("name", ["gui", "Terminal", "/usr/bin/pinentry", "pinentry "])
def test_an_asker_is_named_not_pathed(name: str) -> None:
    with pytest.raises(UsageError, match="MIRRORFS_ASK is terminal, pinentry or systemd"):
        choose_asker({"MIRRORFS_ASK": name}, QUESTION)


def test_no_other_way_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers, "has_terminal", lambda: False)
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", ("/nonexistent",))
    for environment, says in (
        ({"DISPLAY": ":0", "INVOCATION_ID": "1"}, "The program pinentry, needed"),
        ({"INVOCATION_ID": "1"}, "The program systemd-ask-password, needed"),
    ):
        with pytest.raises(CannotAsk, match=says):
            read_pin("card", path=None, environment=environment)
        with pytest.raises(CannotAsk, match=says):
            check_code_askable(environment)


def test_what_starts_the_program_is_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers, "has_terminal", lambda: False)
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", (str(tmp_path),))
    (tmp_path / "pinentry").write_text("#!/bin/sh\n")
    (tmp_path / "pinentry").chmod(0o755)
    with pytest.raises(CannotAsk, match="The program setpriv, needed"):
        check_code_askable({"DISPLAY": ":0"})


@pytest.mark.parametrize("ask", ["terminal", "pinentry", "systemd", "nonsense"])
def test_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", ("/nonexistent",))
    (tmp_path / "secret").write_text("from a file\n")
    (tmp_path / "secret").chmod(0o600)
    environment = {"MIRRORFS_ASK": ask, "MIRRORFS_PIN_FILE": str(tmp_path / "secret")}
    assert read_pin("card", path=None, environment=environment) == "from a file"
    with pytest.raises(UsageError, match="one PIN try left, and no file is used"):
        read_pin("card", path=None, environment=environment, final_try=True)


# --- systemd-ask-password ------------------------------------------------------------------------


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedProgram:
    program = PlayedProgram(tmp_path / "bin", "systemd-ask-password")
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", (str(program.folder),))
    monkeypatch.setattr(ask_program, "END_WAIT_S", 0.3)
    return program


def pin() -> str:
    return read_pin("My card", path=None, environment=ENVIRONMENT, tries_left=2, touch_follows=True)


def test_what_it_is_told(systemd: PlayedProgram) -> None:
    systemd.plays(answers=[[" é %25 ".encode().decode("latin-1")]])
    assert pin() == " é %25 "
    (run,) = systemd.runs()
    assert run["argv"] == [
        "--no-tty",
        "--timeout=300",
        "--id=mirrorfs:pin:My_card",
        "--",
        "PIN of token My card (2 tries left, not the volume password). Then touch the token when it blinks:",
    ]
    assert run["environment"] == ["LANG", "PATH"]
    assert run["descriptors"] == [0, 1, 2]
    assert run["core"] == ["0", "0"]
    assert run["session"] == run["pid"]


def test_a_label_is_no_option(systemd: PlayedProgram) -> None:
    systemd.plays(answers=[["1"]])
    read_pin("--echo\n%n", path=None, environment=ENVIRONMENT, final_try=True)
    assert systemd.runs()[0]["argv"][2:] == [
        "--id=mirrorfs:pin:--echo__n",
        "--",
        "PIN of token --echo %n (LAST TRY before it locks, not the volume password):",
    ]


def test_a_new_password(systemd: PlayedProgram) -> None:
    systemd.plays(answers=[["short"], ["short"], [SECRET], ["x"], [SECRET], ["!wait go", SECRET]])
    got: list[bytes] = []
    thread = threading.Thread(
        target=lambda: got.append(read_new_password("archive", path=None, environment=ENVIRONMENT))
    )
    thread.start()
    try:
        wait_until(lambda: len(systemd.runs()) == 6)
        assert systemd.runs()[-1]["pid"] in own_children()
        assert processes_showing([SECRET], own_children()) == []
    finally:
        systemd.go_on("go")
        thread.join()
    assert got == [SECRET.encode()]
    messages = [run["argv"][-1] for run in systemd.runs()]
    assert messages == [
        "NEW password of volume archive. It takes the place of the present one:",
        "Again: NEW password of volume archive:",
        "The password is too short; choose at least 10 characters."
        " NEW password of volume archive. It takes the place of the present one:",
        "Again: NEW password of volume archive:",
        "The two entries of the new volume password differ; start again."
        " NEW password of volume archive. It takes the place of the present one:",
        "Again: NEW password of volume archive:",
    ]


FAILURES: list[tuple[dict[str, object], type[MirrorfsError], str]] = [
    ({"answers": [["!exit 1"]]}, CannotAsk, "cancelled, or may not ask here"),
    ({"answers": [[SECRET, "!exit 1"]]}, CannotAsk, "cancelled, or may not ask here"),
    ({"answers": [[SECRET, "!die"]]}, CannotAsk, "cancelled, or may not ask here"),
    ({"answers": [[SECRET]], "end": ""}, CannotAsk, "garbled"),
    ({"answers": [[]]}, CannotAsk, "garbled"),
    ({"answers": [[""]]}, UsageError, "PIN is empty"),
    ({"answers": [[SECRET, SECRET]]}, UsageError, "not one line of text"),
    ({"answers": [[SECRET]], "end": "\r\n"}, UsageError, "not one line of text"),
    ({"answers": [[SECRET + "\0"]]}, UsageError, "not one line of text"),
    ({"answers": [[SECRET + "\xff"]]}, UsageError, "not one line of text"),
    ({"answers": [["!huge"]]}, CannotAsk, "more than it may"),
    ({"answers": [["x" * 1025]]}, CannotAsk, "more than it may"),
]


@pytest.mark.parametrize(("script", "kind", "says"), FAILURES)
def test_failures(
    systemd: PlayedProgram, script: dict[str, object], kind: type[MirrorfsError], says: str
) -> None:
    systemd.plays(**script)
    with pytest.raises(kind, match=says) as caught:
        pin()
    assert type(caught.value) is kind
    assert SECRET not in describe(caught.value) + "".join(traceback.format_exception(caught.value))
    assert not is_running(systemd.runs()[0]["pid"])


def test_the_longest_secret(systemd: PlayedProgram) -> None:
    systemd.plays(answers=[["x" * 1024]])
    assert pin() == "x" * 1024


@pytest.mark.parametrize("acts", [["!hang"], ["half of it", "!deaf"], ["!wait never"]])
def test_nobody_answers(systemd: PlayedProgram, monkeypatch: pytest.MonkeyPatch, acts: list[str]) -> None:
    monkeypatch.setattr(ask_systemd, "ASK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(ask_systemd, "GRACE_S", 0.5)
    systemd.plays(answers=[acts])
    with pytest.raises(NotAnswered, match="Nobody entered the PIN in time"):
        pin()
    assert not is_running(systemd.runs()[0]["pid"])


def test_its_own_time_out_is_one_too(systemd: PlayedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_systemd, "ASK_TIMEOUT_S", 0.001)
    monkeypatch.setattr(ask_systemd, "GRACE_S", 30.0)
    systemd.plays(answers=[["!exit 1"]])
    with pytest.raises(NotAnswered, match="Nobody entered the PIN in time"):
        pin()


def test_ctrl_c(systemd: PlayedProgram) -> None:
    systemd.plays(answers=[["!hang"]])
    main_thread = threading.get_ident()

    def interrupt() -> None:
        systemd.wait_for("!hang", run=0)
        signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pin()
    finally:
        thread.join()
    assert not is_running(systemd.runs()[0]["pid"])


# --- the real one --------------------------------------------------------------------------------


def test_the_real_one_and_an_agent() -> None:
    assert os.geteuid() == 0, "the tests run as root"
    volume = f"archive-{os.getpid()}"
    with PasswordAgent() as agent:
        agent.expect(f"mirrorfs:password:{volume}", "clé % of it".encode())
        assert read_password(volume, path=None, environment=ENVIRONMENT) == "clé % of it".encode()
        wait_until(lambda: len(agent.answered) == 1)
        (seen,) = agent.answered
        assert seen["Message"] == (
            f"Password of volume {volume}. This is the password of the volume, not the PIN of a token:"
        )
        assert seen["Echo"] == "0" and seen["AcceptCached"] == "0"
        agent.expect(f"mirrorfs:password:{volume}", None)
        with pytest.raises(CannotAsk, match="cancelled, or may not ask here"):
            read_password(volume, path=None, environment=ENVIRONMENT)
        wait_until(lambda: len(agent.answered) == 2)
        assert not is_running(int(agent.answered[1]["PID"]))


def test_the_real_one_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_systemd, "ASK_TIMEOUT_S", 1.0)
    with pytest.raises(NotAnswered, match="Nobody entered the volume password in time"):
        read_password("nobody", path=None, environment=ENVIRONMENT)
