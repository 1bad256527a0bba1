"""Where secrets come from: files that only their owner can change, or a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.errors import UsageError
from mirrorfs.keys.prompts import read_password, read_pin, read_secret_file
from mirrorfs.keys.question import SecretKind


def secret_file(directory: Path, content: bytes, mode: int = 0o600) -> str:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        (b" spaces kept \nsecond line\n", " spaces kept "),
        ("clé\n".encode(), "clé"),
        (b"x" * 1024 + b"\n", "x" * 1024),
    ],
)
def test_the_first_line_of_a_file(tmp_path: Path, content: bytes, expected: str) -> None:
    assert read_secret_file(secret_file(tmp_path, content), SecretKind.PASSWORD) == expected


@pytest.mark.parametrize("content", [b"", b"\n", b"\nsecond", b"\xff\xfe", b"x" * 1025, b"x" * 5000])
def test_lines_that_are_no_secret(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError):
        read_secret_file(secret_file(tmp_path, content), SecretKind.PIN)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_modes_that_are_safe(tmp_path: Path, mode: int) -> None:
    assert read_secret_file(secret_file(tmp_path, b"s3cret", mode), SecretKind.PIN) == "s3cret"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602, 0o666])
def test_modes_that_are_not(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match="chmod 600"):
        read_secret_file(secret_file(tmp_path, b"s3cret", mode), SecretKind.PIN)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = secret_file(tmp_path, b"s3cret")
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:  # only root can give a file away, so the caller becomes the other one
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="another user"):
        read_secret_file(path, SecretKind.PIN)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(UsageError):
            read_secret_file(str(path), SecretKind.PASSWORD)


def test_a_pipe_is_as_good_as_a_file() -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"from a pipe\n")
        assert read_secret_file(f"/dev/fd/{read_end}", SecretKind.PASSWORD) == "from a pipe"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_option_goes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    option = secret_file(tmp_path / "a", b"of the option")
    variable = secret_file(tmp_path / "b", b"of the variable")
    environment = {"MIRRORFS_PASSWORD_FILE": variable, "MIRRORFS_PIN_FILE": variable}
    assert read_password("v", path=option, environment=environment) == b"of the option"
    assert read_password("v", path=None, environment=environment) == b"of the variable"
    assert read_pin("card", path=option, environment=environment) == "of the option"
    assert read_pin("card", path=None, environment=environment) == "of the variable"


def test_password_and_pin_do_not_stand_for_one_another(tmp_path: Path) -> None:
    path = secret_file(tmp_path, b"s3cret")
    code = (
        "import sys\n"
        "from mirrorfs.errors import UsageError\n"
        "from mirrorfs.keys.prompts import read_password, read_pin\n"
        "try:\n"
        "    if sys.argv[1] == 'pin':\n"
        "        read_pin('card', path=None, environment={'MIRRORFS_PASSWORD_FILE': sys.argv[2]})\n"
        "    else:\n"
        "        read_password('v', path=None, environment={'MIRRORFS_PIN_FILE': sys.argv[2]})\n"
        "except UsageError as exc:\n"
        "    print(exc)\n"
    )
    for kind, option in (("pin", "--pin-file"), ("password", "--password-file")):
        done = subprocess.run(
            [sys.executable, "-c", code, kind, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,  # no controlling terminal
            check=True,
        )
        assert "No terminal" in done.stdout
        assert option in done.stdout


def test_a_password_is_normalised_and_a_pin_is_not(tmp_path: Path) -> None:
    path = secret_file(tmp_path, "e\u0301".encode())
    assert read_password("v", path=path, environment={}) == "é".encode()
    assert read_pin("card", path=path, environment={}) == "e\u0301"


def test_the_last_try_is_not_spent_on_a_file(tmp_path: Path) -> None:
    path = secret_file(tmp_path, b"123456")
    with pytest.raises(UsageError, match="one PIN try left"):
        read_pin("card", path=path, environment={}, final_try=True)
    with pytest.raises(UsageError, match="one PIN try left"):
        read_pin("card", path=None, environment={"MIRRORFS_PIN_FILE": path}, final_try=True)


# --- a terminal ------------------------------------------------------------------------------


def on_a_terminal(call: str, answers: list[tuple[bytes, bytes]]) -> str:
    """Run a call in a process whose controlling terminal is ours, answering each prompt in turn."""
    code = (
        "import os\n"
        "os.open(os.ttyname(0), os.O_RDWR)\n"  # a session leader's first terminal is its controlling one
        "from mirrorfs.errors import UsageError\n"
        "from mirrorfs.keys.prompts import read_password, read_pin\n"
        "try:\n"
        f"    print('got', ascii({call}))\n"
        "except UsageError as exc:\n"
        "    print('refused', exc)\n"
    )
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""
    try:
        for prompt, answer in answers:
            expected = shown.count(prompt) + 1
            while shown.count(prompt) < expected:
                shown += os.read(master, 4096)
            os.write(master, answer + b"\n")
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:  # EIO: the child has closed the terminal
                break
    finally:
        child.wait(timeout=60)
        os.close(master)
    return shown.decode()


def test_prompts_name_what_they_ask_for_and_echo_nothing() -> None:
    shown = on_a_terminal("read_pin('My card', path=None, environment={}).upper()", [(b": ", b"pin-abc")])
    assert "PIN of token My card (not the volume password): " in shown
    assert "got 'PIN-ABC'" in shown
    assert "pin-abc" not in shown

    shown = on_a_terminal(
        "read_password('archive', path=None, environment={}).upper()", [(b": ", b"pass-abc")]
    )
    assert "Password of volume archive: " in shown
    assert "got b'PASS-ABC'" in shown
    assert "pass-abc" not in shown


def test_the_last_try_is_announced() -> None:
    shown = on_a_terminal(
        "read_pin('My card', path=None, environment={}, final_try=True)", [(b": ", b"123456")]
    )
    assert "LAST TRY" in shown
    assert "got '123456'" in shown


def test_the_tries_left_are_shown() -> None:
    shown = on_a_terminal(
        "read_pin('My card', path=None, environment={}, tries_left=3)", [(b": ", b"123456")]
    )
    assert "PIN of token My card (3 tries left, not the volume password): " in shown
    shown = on_a_terminal(
        "read_pin('My card', path=None, environment={}, final_try=True, tries_left=1)", [(b": ", b"123456")]
    )
    assert "PIN of token My card (LAST TRY before it locks, not the volume password): " in shown


NEW = "read_password('archive', path=None, environment={}, confirm=True).upper()"


def test_a_new_password_is_asked_for_twice() -> None:
    shown = on_a_terminal(NEW, [(b"archive: ", b"secret one"), (b"Again: ", b"secret one")])
    assert "got b'SECRET ONE'" in shown
    assert "secret" not in shown


def test_a_new_password_that_will_not_do_is_asked_for_again() -> None:
    first, again = b"Password of volume archive: ", b"Again: "
    shown = on_a_terminal(
        NEW,
        [
            (first, b"secret one"), (again, b"secret two"), (first, b"short"), (again, b"short"),
            (first, b"secret six"), (again, b"secret six"),
        ],
    )  # fmt: skip
    assert "mirrorfs: The two entries of the volume password differ; start again." in shown
    assert "mirrorfs: The password is too short; choose at least 10 characters." in shown
    assert "got b'SECRET SIX'" in shown
    assert "secret" not in shown


def test_but_not_for_ever() -> None:
    first, again = b"Password of volume archive: ", b"Again: "
    shown = on_a_terminal(NEW, [(first, b"secret one"), (again, b""), *[(first, b"x"), (again, b"x")] * 2])
    assert "mirrorfs: The volume password is empty; enter it again." in shown
    assert "refused The password is too short" in shown


def test_a_new_password_of_a_file_is_judged_too(tmp_path: Path) -> None:
    path = secret_file(tmp_path, b"short")
    with pytest.raises(UsageError, match="too short"):
        read_password("archive", path=path, environment={}, confirm=True)
    assert read_password("archive", path=path, environment={}) == b"short"


def test_a_name_cannot_play_tricks_on_the_terminal() -> None:
    shown = on_a_terminal(
        "read_pin('My\\x1b[2Jcard\\n' + 'x' * 500, path=None, environment={})", [(b": ", b"123456")]
    )
    assert "PIN of token My [2Jcard x" in shown
    assert len(shown) < 300


def test_an_empty_answer_is_refused() -> None:
    shown = on_a_terminal("read_pin('My card', path=None, environment={})", [(b": ", b"")])
    assert "refused The PIN is empty" in shown
