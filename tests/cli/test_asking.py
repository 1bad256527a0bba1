"""Commands that have no terminal, or are told to ask elsewhere: pinentry and systemd-ask-password."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import TokenFlag

from tests.support.asking_programs import (
    PlayedProgram,
    is_running,
    own_children,
    processes_below,
    processes_showing,
    wait_until,
)
from tests.support.mounted import CHEAP, PASSWORD, Mounted, mounted_volume
from tests.support.password_agent import PasswordAgent
from tests.support.softhsm import MODULE, PIN
from tests.support.terminal import Terminal

SECRETS = (PIN, PASSWORD)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted_volume(tmp_path_factory.mktemp("asking"), mount=False) as volume:
        yield volume


def without_files(volume: Mounted, **more: str) -> dict[str, str]:
    names = ("MIRRORFS_PASSWORD_FILE", "MIRRORFS_PIN_FILE")
    return {name: value for name, value in volume.env.items() if name not in names} | more


def start(
    environment: dict[str, str], *arguments: str, programs: Path | None = None
) -> subprocess.Popen[str]:
    """Start a command in a session without a terminal, which looks for programs in one folder only."""
    code = (
        "import sys\n"
        "from mirrorfs.keys import ask_program\n"
        f"ask_program.PROGRAM_DIRECTORIES = ({str(programs)!r},)\n"
        "from mirrorfs.__main__ import main\n"
        "sys.exit(main())\n"
    )
    how = ["-m", "mirrorfs"] if programs is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *how, *arguments],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_desktop_without_a_terminal(volume: Mounted, tmp_path: Path) -> None:
    pinentry = PlayedProgram(tmp_path / "bin", "pinentry")
    pinentry.plays(getpin=[["D " + PIN, "OK"], ["!wait go", "D " + PASSWORD, "OK"]])
    environment = without_files(volume, DISPLAY=":7")
    with start(environment, "key", "check", volume.name, programs=pinentry.folder) as command:
        pinentry.wait_for("GETPIN", run=1)
        # The command knows the PIN by now.
        everybody = processes_below(command.pid)
        shown = processes_showing(SECRETS, everybody)
        pinentry.go_on("go")
        output, _ = command.communicate(timeout=120)
    assert len(everybody) == 2 and shown == []
    assert command.returncode == 0, output
    assert f"Slot first opens volume {volume.name}" in output
    assert not any(secret in output for secret in SECRETS)
    first, second = pinentry.runs()
    assert "SETDESC PIN of token practice (not the volume password)" in first["heard"]
    assert any(line.startswith(f"SETDESC Password of volume {volume.name}\n") for line in second["heard"])


def test_cancelling_asks_nothing_more(volume: Mounted, tmp_path: Path) -> None:
    pinentry = PlayedProgram(tmp_path / "bin", "pinentry")
    pinentry.plays(getpin=[["ERR 83886179 Operation cancelled <Pinentry>"]])
    environment = without_files(volume, DISPLAY=":7")
    with start(environment, "key", "--debug", "check", volume.name, programs=pinentry.folder) as command:
        output, _ = command.communicate(timeout=120)
    assert command.returncode == 3, output
    assert "mirrorfs: Entering the PIN was cancelled; run the command again." in output
    assert len(pinentry.runs()) == 1


def test_neither_terminal_nor_display_nor_unit(volume: Mounted) -> None:
    with start(without_files(volume), "key", "check", volume.name) as command:
        output, _ = command.communicate(timeout=120)
    assert command.returncode == 2
    assert output == (
        "mirrorfs: No terminal can be asked for the PIN, nor is there a display or a systemd unit;"
        " use --pin-file or set MIRRORFS_PIN_FILE.\n"
    )


def test_a_unit_at_boot_and_the_real_systemd_ask_password(volume: Mounted) -> None:
    assert os.geteuid() == 0, "the tests run as root"
    shown: list[str] = []
    watched: list[int] = []

    def look(question: dict[str, str]) -> None:
        everybody = processes_below(command.pid)
        assert int(question["PID"]) in everybody
        watched.append(len(everybody))
        shown.extend(processes_showing(SECRETS, everybody))

    with PasswordAgent() as agent:
        agent.expect("mirrorfs:pin:practice", PIN.encode(), look)
        agent.expect(f"mirrorfs:password:{volume.name}", PASSWORD.encode(), look)
        environment = without_files(volume, INVOCATION_ID="0" * 32)
        mount = ("mount", volume.name, str(volume.mountpoint), "--foreground", *volume.mount_options)
        with start(environment, *mount) as command:
            try:
                wait_until(lambda: os.path.ismount(volume.mountpoint) or command.poll() is not None)
                assert command.poll() is None, command.communicate()[0]
                volume.umount()
                output, _ = command.communicate(timeout=120)
            finally:
                command.kill()
    assert command.returncode == 0, output
    assert watched == [3, 3] and shown == []  # the mount, its child that unlocks, and the program that asks
    assert not any(secret in output for secret in SECRETS)
    assert agent.answered[0]["Message"] == "PIN of token practice (not the volume password):"


@pytest.fixture
def on_the_terminal(volume: Mounted) -> Iterator[Mounted]:
    """Told to use pinentry although there is a terminal; the real one then shows its form there."""
    before = dict(volume.env)
    volume.env |= {"MIRRORFS_ASK": "pinentry", "TERM": "xterm", "LANG": "C.UTF-8"}
    yield volume
    volume.env = before


def test_the_real_pinentry_on_a_terminal(on_the_terminal: Mounted) -> None:
    volume = on_the_terminal
    terminal = Terminal(volume, "key", "check", volume.name)
    terminal.answer(r"PIN of token practice(?s:.)*PIN: ___", PIN, enter="\r")
    terminal.answer(r"Password of volume(?s:.)*not the PIN(?s:.)*Password: ___", PASSWORD, enter="\r")
    assert terminal.end() == 0, terminal.shown
    assert f"Slot first opens volume {volume.name}" in terminal.shown
    assert not any(secret in terminal.shown for secret in SECRETS)


@pytest.mark.parametrize(
    ("key", "code", "says"), [("\t\t\r", 3, "was cancelled"), ("\x03", 130, "Interrupted")]
)
def test_leaving_the_real_pinentry(on_the_terminal: Mounted, key: str, code: int, says: str) -> None:
    volume = on_the_terminal
    terminal = Terminal(volume, "key", "check", volume.name)
    terminal.answer(r"PIN: ___", "", enter=key)
    assert terminal.end() == code, terminal.shown
    assert says in terminal.shown.splitlines()[-1]


def test_a_terminal_that_is_closed_leaves_no_pinentry(on_the_terminal: Mounted) -> None:
    before = set(own_children())
    terminal = Terminal(on_the_terminal, "key", "check", on_the_terminal.name)
    terminal.answer(r"PIN: ___", "", enter="1")
    started = set(own_children()) - before
    assert len(started) == 2  # the command and pinentry
    terminal.close()
    wait_until(lambda: not any(is_running(pid) for pid in started))


# --- whose PIN ---------------------------------------------------------------------------------


def refused_a_pin() -> set[str]:
    """Labels of the tokens that were sent a wrong PIN since the last right one: SoftHSM2 notes that."""
    module = pkcs11.lib(MODULE)
    try:
        return {token.label for token in module.get_tokens() if token.flags & TokenFlag.USER_PIN_COUNT_LOW}
    finally:
        module.finalize()


def test_a_wrong_pin_goes_to_one_token_only(volume: Mounted, tmp_path: Path) -> None:
    pin_file = volume.env["MIRRORFS_PIN_FILE"]
    spare = volume.hsm.add_token("spare")
    new = ("--new-token", spare.uri(), "--create-key", "--new-pin-file", pin_file, CHEAP)
    volume.must("key", "add", volume.name, *new)
    assert len(re.findall("^uri", volume.config.read_text(), re.MULTILINE)) == 2  # both would be tried
    assert refused_a_pin() == set()

    wrong = tmp_path / "wrong"
    wrong.write_text("000000")
    wrong.chmod(0o600)
    outcome = volume.run("key", "check", volume.name, "--pin-file", str(wrong))
    assert outcome.returncode == 3 and "PIN" in outcome.stdout
    assert refused_a_pin() == {"practice"}

    # Nor does the one that is right for the first go to a second, which is asked for by its own name.
    pinentry = PlayedProgram(tmp_path / "bin", "pinentry")
    pinentry.plays(getpin=[["D 000000", "OK"]])
    environment = volume.env | {
        "DISPLAY": ":7",
        "MIRRORFS_NEW_PASSWORD_FILE": volume.env["MIRRORFS_PASSWORD_FILE"],
    }
    with start(environment, "key", "passwd", volume.name, programs=pinentry.folder) as command:
        output, _ = command.communicate(timeout=120)
    assert command.returncode == 0 and "Slot spare is left as it is: " in output, output
    (run,) = pinentry.runs()
    assert "SETDESC PIN of token spare (not the volume password)" in run["heard"]
    assert refused_a_pin() == {"spare"}
