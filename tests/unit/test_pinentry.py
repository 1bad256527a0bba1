"""Asking by pinentry: a played one that is strict about the protocol, and every way in which it may fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from mirrorfs.cli.failures import describe
from mirrorfs.errors import CannotAsk, MirrorfsError, NotAnswered, UsageError
from mirrorfs.keys import ask_pinentry, ask_program
from mirrorfs.keys.assuan import escape, unescape
from mirrorfs.keys.prompts import read_code, read_new_password, read_password, read_pin
from mirrorfs.keys.recovery_code import format_code
from tests.support.asking_programs import (
    REPOSITORY,
    PlayedProgram,
    is_running,
    own_children,
    processes_showing,
    wait_until,
)

SECRET = "s3cret of the test"
ENVIRONMENT = {
    "MIRRORFS_ASK": "pinentry", "DISPLAY": ":7", "HOME": "/home/x", "LANG": "de_DE.UTF-8", "TERM": "xterm",
    "LD_PRELOAD": "/tmp/evil.so", "PYTHONPATH": "/tmp", "MIRRORFS_STATE_HOME": "/x", "LC_CTYPE": "../../evil",
}  # fmt: skip


@pytest.fixture
def pinentry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedProgram:
    program = PlayedProgram(tmp_path / "bin", "pinentry")
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", (str(tmp_path / "none"), str(program.folder)))
    monkeypatch.setattr(ask_program, "END_WAIT_S", 0.3)
    monkeypatch.setattr(ask_pinentry, "terminal_name", lambda: None)
    return program


def pin(**options: object) -> str:
    return read_pin("My card", path=None, environment=ENVIRONMENT, **options)  # type: ignore[arg-type]


def password() -> bytes:
    return read_password("archive", path=None, environment=ENVIRONMENT)


def new_password() -> bytes:
    return read_new_password("archive", path=None, environment=ENVIRONMENT)


# --- what is said and heard --------------------------------------------------------------------


def test_the_whole_dialogue(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["D 123456", "OK"]])
    assert pin(tries_left=3, touch_follows=True) == "123456"
    (run,) = pinentry.runs()
    assert run["heard"] == [
        "GETINFO flavor",
        "OPTION lc-ctype=de_DE.UTF-8",
        "OPTION lc-messages=de_DE.UTF-8",
        "SETTITLE MirrorFS",
        "SETTIMEOUT 300",
        "SETDESC PIN of token My card (3 tries left, not the volume password)\n"
        "Then touch the token when it blinks.",
        "SETPROMPT PIN:",
        "GETPIN",
        "BYE",
    ]


def test_the_password_is_told_from_the_pin(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["D " + SECRET, "OK"]])
    assert password() == SECRET.encode()
    heard = pinentry.runs()[0]["heard"]
    assert (
        "SETDESC Password of volume archive\nThis is the password of the volume, not the PIN of a token."
        in heard
    )
    assert "SETPROMPT Password:" in heard


def test_the_final_try_stands_out(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["D 1", "OK"]])
    assert pin(final_try=True, tries_left=1) == "1"
    heard = pinentry.runs()[0]["heard"]
    assert "SETERROR LAST TRY before it locks" in heard
    assert "SETDESC PIN of token My card (LAST TRY before it locks, not the volume password)" in heard


def test_what_surrounds_it(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["D 1", "OK"]])
    os.environ["PLANTED"] = SECRET
    leaked = os.open(pinentry.path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        pin()
    finally:
        os.close(leaked)
        del os.environ["PLANTED"]
    (run,) = pinentry.runs()
    assert run["environment"] == ["DISPLAY", "HOME", "LANG", "PATH"]
    assert run["argv"] == []
    assert run["descriptors"] == [0, 1, 2]
    assert run["core"] == ["0", "0"]
    assert run["directory"] == "/"
    assert run["session"] == run["pid"] != os.getsid(0)
    assert not is_running(run["pid"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["D a%25b%0", "OK"], None),
        (["D 100%25 sure", "OK"], "100% sure"),
        (["D %c3%A9t\xc3\xa9", "OK"], "été"),
        (["# a comment", "S PASSWORD_FROM_CACHE", "D ab", "D cd", "OK done"], "abcd"),
        (["D  spaces kept ", "OK"], " spaces kept "),
        (["D " + "x" * 998, "D " + "y" * 26, "OK"], "x" * 998 + "y" * 26),
    ],
)
def test_answers(pinentry: PlayedProgram, lines: list[str], expected: str | None, end: str) -> None:
    pinentry.plays(getpin=[lines], end=end)
    if expected is None:
        with pytest.raises(CannotAsk, match="garbled"):
            pin()
    else:
        assert pin() == expected


def test_names_cannot_speak_the_protocol(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["D 1", "OK"]])
    label = "card\nGETPIN\r%0AD 1\x1b[2J" + "é" * 500
    read_pin(label, path=None, environment=ENVIRONMENT)
    (described,) = [line for line in pinentry.runs()[0]["heard"] if line.startswith("SETDESC")]
    assert described.startswith("SETDESC PIN of token card GETPIN %0AD 1 [2Jé")
    assert "\n" not in described and len(described) < 200


@pytest.mark.parametrize("text", ["", "a%b", "%\r\n%0A", "é%"])
def test_escaping_runs_both_ways(text: str) -> None:
    assert unescape(escape(text)) == text.encode()
    assert not set(escape(text)) & {10, 13}


@pytest.mark.parametrize("data", [b"%", b"%2", b"a%GG", b"%%25", b"%25%2"])
def test_malformed_escapes(data: bytes) -> None:
    assert unescape(data) is None


# --- a secret that is new ----------------------------------------------------------------------


def test_a_pinentry_that_repeats_is_asked_once(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["S PIN_REPEATED", "D " + SECRET, "OK"]])
    assert new_password() == SECRET.encode()
    (run,) = pinentry.runs()
    assert "SETREPEAT Again:" in run["heard"]
    assert "SETREPEATERROR The two entries differ; enter them again." in run["heard"]


@pytest.mark.parametrize("repeat", [["OK"], ["ERR 83886355 Unknown command <Pinentry>"]])
def test_one_that_does_not_is_asked_again(pinentry: PlayedProgram, repeat: list[str]) -> None:
    pinentry.plays(getpin=[["D " + SECRET, "OK"], ["D " + SECRET, "OK"]], SETREPEAT=repeat)
    assert new_password() == SECRET.encode()
    assert len(pinentry.runs()) == 2
    assert not any(line.startswith("SETREPEAT") for line in pinentry.runs()[1]["heard"])


def test_a_weak_or_differing_one_is_asked_for_again(pinentry: PlayedProgram) -> None:
    repeated = "S PIN_REPEATED"
    pinentry.plays(
        getpin=[
            [repeated, "D short", "OK"],
            ["D " + SECRET, "OK"],
            ["D other " + SECRET, "OK"],
            [repeated, "D " + SECRET, "OK"],
        ]
    )
    assert new_password() == SECRET.encode()
    errors = [[line for line in run["heard"] if line.startswith("SETERROR")] for run in pinentry.runs()]
    assert errors[0] == []
    assert errors[1] == errors[2]
    assert errors[1] == ["SETERROR The password is too short; choose at least 10 characters."]
    assert errors[3] == ["SETERROR The two entries of the new volume password differ; start again."]


def test_not_for_ever(pinentry: PlayedProgram) -> None:
    pinentry.plays(getpin=[["S PIN_REPEATED", "D short", "OK"]] * 4)
    with pytest.raises(UsageError, match="too short"):
        new_password()
    assert len(pinentry.runs()) == 3


def test_a_recovery_code_in_two_lines(pinentry: PlayedProgram) -> None:
    code = bytes(range(32))
    first, second = format_code(code).split("\n")
    pinentry.plays(getpin=[["D " + first, "OK"], ["D " + second.lower(), "OK"]])
    assert read_code(path=None, environment=ENVIRONMENT, error="Look.") == code
    heard = [run["heard"] for run in pinentry.runs()]
    assert "SETERROR Look." in heard[0]
    assert "SETPROMPT Line 1:" in heard[0] and "SETPROMPT Line 2:" in heard[1]


# --- failures ------------------------------------------------------------------------------------


CANCELLED = "ERR 83886179 Operation cancelled <Pinentry>"
FAILURES: list[tuple[dict[str, object], type[MirrorfsError], str]] = [
    ({"getpin": [[CANCELLED]]}, NotAnswered, "PIN was cancelled"),
    ({"getpin": [["D " + SECRET, CANCELLED]]}, NotAnswered, "PIN was cancelled"),
    ({"getpin": [["ERR 198 gone <Pinentry>"]]}, NotAnswered, "PIN was cancelled"),
    ({"getpin": [["ERR 83886142 Timeout <Pinentry>"]]}, NotAnswered, "in time"),
    ({"getpin": [["ERR 83918950 Inappropriate ioctl for device <Pinentry>"]]}, CannotAsk, "error 32870"),
    ({"getpin": [["ERR " + SECRET]]}, CannotAsk, "garbled"),
    ({"getpin": [["ERR"]]}, CannotAsk, "garbled"),
    ({"getpin": [["D " + SECRET, "!die"]]}, CannotAsk, "ended by itself"),
    ({"getpin": [["D " + SECRET, "!exit 0"]]}, CannotAsk, "ended by itself"),
    ({"getpin": [["D " + SECRET, "INQUIRE QUALITY " + SECRET]]}, CannotAsk, "garbled"),
    ({"getpin": [[SECRET, "OK"]]}, CannotAsk, "garbled"),
    ({"getpin": [["", "OK"]]}, CannotAsk, "garbled"),
    ({"getpin": [["D " + SECRET + "\xff", "OK"]]}, UsageError, "not one line of text"),
    ({"getpin": [["D " + SECRET + "%00", "OK"]]}, UsageError, "not one line of text"),
    ({"getpin": [["D " + SECRET + "%0Asecond", "OK"]]}, UsageError, "not one line of text"),
    ({"getpin": [["OK"]]}, UsageError, "PIN is empty"),
    ({"getpin": [["D " + "x" * 600, "D " + "x" * 600, "OK"]]}, UsageError, "too long"),
    ({"getpin": [["!huge"]]}, CannotAsk, "more than it may"),
    ({"getpin": [["D " + "x" * 2000, "OK"]]}, CannotAsk, "more than it may"),
    ({"getpin": [["S X"] * 200 + ["OK"]]}, CannotAsk, "more than it may"),
    ({"greeting": ["ERR 5 no"]}, CannotAsk, "refused to begin"),
    ({"greeting": ["Hello"]}, CannotAsk, "garbled"),
    ({"greeting": ["!exit 1"]}, CannotAsk, "ended by itself"),
    ({"greeting": ["OK", "!die"]}, CannotAsk, "ended by itself"),
    ({"SETDESC": ["ERR 174 no"]}, CannotAsk, "does not take SETDESC"),
    ({"SETPROMPT": ["!die"]}, CannotAsk, "ended by itself"),
    ({"GETINFO": ["D curses", "OK"]}, CannotAsk, "for terminals only .install pinentry-gnome3"),
]


def text_of(error: BaseException) -> str:
    return describe(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize(("script", "kind", "says"), FAILURES)
def test_failures(
    pinentry: PlayedProgram, script: dict[str, object], kind: type[MirrorfsError], says: str
) -> None:
    pinentry.plays(**script)
    with pytest.raises(kind, match=says) as caught:
        pin()
    assert type(caught.value) is kind
    assert SECRET not in text_of(caught.value)
    if kind is CannotAsk:
        assert "use --pin-file or set MIRRORFS_PIN_FILE" in str(caught.value)
    assert not any(is_running(run["pid"]) for run in pinentry.runs())


def test_the_check_for_secrets_can_fail() -> None:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as exc:
            raise CannotAsk("a sentence") from exc
    except CannotAsk as error:
        assert SECRET in text_of(error)


def test_what_is_optional(pinentry: PlayedProgram) -> None:
    refuses = ["ERR 83886254 Unknown option <Pinentry>"]
    pinentry.plays(
        getpin=[["D 1", "OK"]], GETINFO=refuses, OPTION=refuses, SETTITLE=refuses, SETTIMEOUT=refuses
    )
    assert pin() == "1"


def test_on_the_last_try_no_file_is_proposed(pinentry: PlayedProgram) -> None:
    pinentry.plays(greeting=["!exit 1"])
    with pytest.raises(CannotAsk, match=r"gave no PIN; enter it at a terminal\.$"):
        pin(final_try=True)


@pytest.mark.parametrize("act", ["!hang", "!deaf"])
def test_a_person_who_is_not_there(
    pinentry: PlayedProgram, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr(ask_pinentry, "ASK_TIMEOUT_S", 0.4)
    monkeypatch.setattr(ask_pinentry, "GRACE_S", 0.1)
    pinentry.plays(getpin=[["D half", act]])
    with pytest.raises(NotAnswered, match="Nobody entered the PIN in time"):
        pin()
    assert not is_running(pinentry.runs()[0]["pid"])


@pytest.mark.parametrize("script", [{"greeting": ["!hang"]}, {"SETDESC": ["!deaf"]}])
def test_a_pinentry_that_hangs(
    pinentry: PlayedProgram, monkeypatch: pytest.MonkeyPatch, script: dict[str, object]
) -> None:
    monkeypatch.setattr(ask_pinentry, "REPLY_TIMEOUT_S", 3.0)
    pinentry.plays(**script)
    with pytest.raises(CannotAsk, match="pinentry does not answer"):
        pin()
    (run,) = pinentry.runs()
    assert run["heard"][-1] in ("!hang", "!deaf")
    assert not is_running(run["pid"])


@pytest.mark.parametrize("act", ["!hang", "!deaf"])
def test_ctrl_c(pinentry: PlayedProgram, act: str) -> None:
    pinentry.plays(getpin=[[act]])
    main_thread = threading.get_ident()

    def interrupt() -> None:
        pinentry.wait_for(act, run=0)
        signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pin()
    finally:
        thread.join()
    assert not is_running(pinentry.runs()[0]["pid"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_us(pinentry: PlayedProgram, number: int) -> None:
    pinentry.plays(getpin=[["!hang"]])
    # Whoever runs the tests may have the signal ignored, as nohup does, and that is inherited.
    heard = (
        "" if number == signal.SIGKILL else f"import signal\nsignal.signal({int(number)}, signal.SIG_DFL)\n"
    )
    code = (
        f"{heard}"
        "from mirrorfs.keys import ask_program, prompts\n"
        f"ask_program.PROGRAM_DIRECTORIES = ({str(pinentry.folder)!r},)\n"
        f"prompts.read_pin('card', path=None, environment={ENVIRONMENT!r})\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, start_new_session=True)
    try:
        run = pinentry.wait_for("!hang", run=0)
        asking.send_signal(number)
        assert asking.wait(60) == -number
        wait_until(lambda: not is_running(run["pid"]))
    finally:
        asking.kill()
        asking.wait()


# --- secrets of earlier questions --------------------------------------------------------------


def test_no_process_shows_a_secret(pinentry: PlayedProgram) -> None:
    pinentry.plays(
        getpin=[["S PIN_REPEATED", "D short", "OK"], ["!wait go", "S PIN_REPEATED", "D " + SECRET, "OK"]]
    )
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(new_password()))
    thread.start()
    try:
        run = pinentry.wait_for("GETPIN", run=1)
        # It waits, and the program knows what was entered before.
        assert run["pid"] in own_children()
        assert processes_showing(["short", SECRET], own_children()) == []
    finally:
        pinentry.go_on("go")
        thread.join()
    assert got == [SECRET.encode()]


@pytest.mark.parametrize("where", ["cmdline", "environ"])
def test_that_check_finds_a_planted_one(where: str) -> None:
    code = "import time; time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *([SECRET] if where == "cmdline" else [])],
        env={**os.environ, **({"X": SECRET} if where == "environ" else {})},
    )
    try:
        deadline_s = time.monotonic() + 30
        while processes_showing([SECRET], own_children()) != [f"{child.pid}/{where}"]:
            assert time.monotonic() < deadline_s
    finally:
        child.kill()
        child.wait()


# --- which program -------------------------------------------------------------------------------


def unfit(pinentry: PlayedProgram) -> str:
    pinentry.plays(getpin=[["D 1", "OK"]])
    with pytest.raises(CannotAsk) as caught:
        pin()
    assert pinentry.runs() == []
    return str(caught.value)


def test_a_program_that_others_could_change(pinentry: PlayedProgram) -> None:
    pinentry.path.chmod(0o775)
    assert "Others could change" in unfit(pinentry)
    pinentry.path.chmod(0o755)
    pinentry.folder.chmod(0o777)
    assert "Others could change" in unfit(pinentry)
    pinentry.folder.chmod(0o755)
    pinentry.folder.parent.chmod(0o770)
    assert "Others could change" in unfit(pinentry)
    pinentry.folder.parent.chmod(0o700)
    pinentry.plays(getpin=[["D 1", "OK"]])
    assert pin() == "1"


def test_a_program_of_another_user(pinentry: PlayedProgram) -> None:
    assert os.geteuid() == 0, "the tests run as root"
    os.chown(pinentry.path, 12345, 12345)
    assert "Others could change" in unfit(pinentry)


def test_a_link_is_followed_before_it_is_judged(pinentry: PlayedProgram, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "pinentry-x"
    real.parent.mkdir(mode=0o755)
    pinentry.path.rename(real)
    pinentry.path.symlink_to(real)
    pinentry.plays(getpin=[["D 1", "OK"]])
    assert pin() == "1"
    real.parent.chmod(0o777)
    assert "Others could change" in unfit(pinentry)
    real.unlink()
    assert "cannot be looked at" in unfit(pinentry)


def test_what_is_no_program(pinentry: PlayedProgram) -> None:
    pinentry.path.chmod(0o644)
    assert "no program that can be run" in unfit(pinentry)
    pinentry.path.unlink()
    assert "The program pinentry, needed to ask for the PIN, is not installed" in unfit(pinentry)
    pinentry.path.mkdir()
    assert "no program that can be run" in unfit(pinentry)


def test_a_program_of_no_known_format(pinentry: PlayedProgram) -> None:
    pinentry.path.write_bytes(b"\x7fELF nothing")
    assert "pinentry ended by itself and gave no PIN" in unfit(pinentry)


def test_the_program_that_starts_it_is_missing(pinentry: PlayedProgram) -> None:
    (pinentry.folder / "setpriv").unlink()
    assert "The program setpriv, needed to ask for the PIN, is not installed" in unfit(pinentry)


def test_path_does_not_count(pinentry: PlayedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_program, "PROGRAM_DIRECTORIES", ("/nonexistent",))
    monkeypatch.setenv("PATH", str(pinentry.folder))
    assert "not installed" in unfit(pinentry)
