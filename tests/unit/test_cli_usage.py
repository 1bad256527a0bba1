"""mirrorfs.cli.main and failures: exit codes, sentences, and that no secret comes by argv or is shown."""

from __future__ import annotations

import argparse
import io
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs import __version__, errors
from mirrorfs.cli import kdf_option
from mirrorfs.cli.failures import describe, report, sentence_of, single_error
from mirrorfs.cli.key_pipe import SessionRequest, UnlockedSession, read_session, write_session
from mirrorfs.cli.launch import child_environment
from mirrorfs.cli.main import COMMANDS, main
from mirrorfs.cli.systemd import notify
from tests.support.volumes import KEY_SET

SECRET = "hunter2-do-not-show"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORFS_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MIRRORFS_STATE_HOME", str(tmp_path / "state"))
    for name in ("MIRRORFS_PASSWORD_FILE", "MIRRORFS_PIN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


# --- exit codes ------------------------------------------------------------------------------

EXIT_CODES = {
    errors.MirrorfsError: 1,
    errors.DiskError: 1,
    errors.UsageError: 2,
    errors.ConfigError: 2,
    errors.CannotAsk: 2,
    errors.StoreTooNew: 2,
    errors.WrongPassword: 3,
    errors.WrongPin: 3,
    errors.WrongToken: 3,
    errors.TokenMissing: 3,
    errors.ModuleMissing: 3,
    errors.WrongVolume: 3,
    errors.NotAnswered: 3,
    errors.StoreUnavailable: 4,
    errors.StoreMismatch: 4,
    errors.StoreDenied: 4,
    errors.StoreFull: 4,
    errors.FormatError: 5,
    errors.AuthenticationError: 5,
    errors.ChainError: 5,
    errors.InUseError: 6,
}


@pytest.mark.parametrize(("kind", "exit_code"), EXIT_CODES.items())
def test_every_error_has_its_exit_code(kind: type[errors.MirrorfsError], exit_code: int) -> None:
    stream = io.StringIO()
    assert report(kind("A sentence.\x1b[2J\nOf one line."), debug=False, stream=stream) == exit_code
    assert stream.getvalue() == "mirrorfs: A sentence. [2J Of one line.\n"


def test_interrupted() -> None:
    assert sentence_of(KeyboardInterrupt()) == ("Interrupted.", 130)


def test_unforeseen_errors_show_no_values() -> None:
    def inner(password: str) -> None:
        raise ValueError(f"bad value {password}")

    try:
        inner(SECRET)
    except ValueError as exc:
        caught = exc
    sentence, exit_code = sentence_of(caught)
    assert exit_code == 1 and "--debug" in sentence and SECRET not in sentence
    shown = io.StringIO()
    report(caught, debug=True, stream=shown)
    assert "ValueError" in shown.getvalue() and "in inner" in shown.getvalue()
    assert SECRET not in shown.getvalue()


def test_groups_are_about_what_is_in_them() -> None:
    group = BaseExceptionGroup(
        "", [ExceptionGroup("", [ValueError("x")]), ExceptionGroup("", [errors.InUseError("Busy.")])]
    )
    assert isinstance(single_error(group), errors.InUseError)
    assert sentence_of(group) == ("Busy.", 6)
    assert "InUseError: Busy." in describe(group)
    inner = errors.InUseError("Busy.")
    inner.__cause__ = ExceptionGroup("", [inner])
    assert describe(inner).splitlines() == ["InUseError: Busy.", "ExceptionGroup"]
    assert sentence_of(BaseExceptionGroup("", [KeyboardInterrupt()])) == ("Interrupted.", 130)


# --- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["mount"], ["mount", "v"], ["init", "v"], ["flush"], ["status", "--nonsense"]]
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


STORE = "--store=file:///nowhere/at/all"


@pytest.mark.parametrize(
    "argv",
    [
        ["log"], ["log", "nowhere"], ["log", "v", "more"], ["log", "v", "--since=2999-01-01"],
        ["log", STORE, "v"], ["log", STORE, STORE], ["log", "--store=ftp://host/"],
        ["history", "v"], ["history", "v", "a", "b"], ["history", "v", "/"], ["history", STORE],
        ["ls"], ["ls", "v", "a", "b"], ["ls", "v", "--at=1.2.3"], ["find", STORE, "a", "b"], ["cat", "v"],
        ["diff", "v"], ["diff", "v", "nonsense"], ["diff", "v", "1.1", "2.2", "3.3"],
    ],
)  # fmt: skip
def test_wrong_usage_of_commands_that_look_back(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    "argv",
    [
        ["snapshot"], ["snapshot", "create", "v"], ["snapshot", "list"], ["snapshot", "list", "v", "more"],
        ["snapshot", "create", "v", "yesterday 18:00"], ["snapshot", "create", "v", "a/b"],
        ["snapshot", "create", "v", ""], ["snapshot", "delete", "v", "17.203"],
        ["snapshot", "hold", "nowhere", "x"],
    ],
)  # fmt: skip
def test_wrong_usage_of_snapshots(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(argv) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 0
    assert f"mirrorfs {__version__}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["init", "mount", "restore"])
def test_no_option_takes_a_secret(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capsys.readouterr().out.split()
    options = {word.strip("[],") for word in words if word.strip("[],").startswith("--")}
    assert {"--password-file", "--pin-file"} <= options
    assert options.isdisjoint({"--password", "--pin", "--passphrase", "--key"})


def test_a_pin_in_a_token_uri_is_refused_unseen(capsys: pytest.CaptureFixture[str]) -> None:
    stores = ["--store=a=file:///tmp/mirrorfs-a", "--store=b=file:///tmp/mirrorfs-b"]
    assert main(["init", "v", *stores, f"--token=pkcs11:token=x?pin-value={SECRET}"]) == 2
    said = capsys.readouterr()
    assert "pin-value" in said.err and SECRET not in said.err + said.out


def test_credentials_in_a_store_url_are_refused_unseen(capsys: pytest.CaptureFixture[str]) -> None:
    stores = [f"--store=a=s3://user:{SECRET}@bucket/x", "--store=b=file:///tmp/mirrorfs-b"]
    assert main(["init", "v", *stores, "--token=pkcs11:"]) == 2
    said = capsys.readouterr()
    assert "credentials" in said.err and SECRET not in said.err + said.out


def test_a_token_of_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    stores = ["--store=a=file:///tmp/mirrorfs-a", "--store=b=file:///tmp/mirrorfs-b"]
    assert main(["init", "v", *stores, "--token=fido3:"]) == 2
    assert "pkcs11:, fido2: or tpm2:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--token=tpm2:0x81000001"], "'tpm2:' alone"),
        (["--token=tpm2:", "--create-key"], "--create-key"),
        (["--token=tpm2:", "--module=/usr/lib/x.so"], "--module"),
    ],
)
def test_what_a_tpm_does_not_take(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = ["--store=a=file:///tmp/mirrorfs-a", "--store=b=file:///tmp/mirrorfs-b"]
    assert main(["init", "v", *stores, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", ""])
def test_names_of_volumes_stay_in_their_directory(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", name, "/tmp"]) == 2
    assert "name" in capsys.readouterr().err


def test_status_without_any_volume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "No volume is configured" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert capsys.readouterr().out.split() == ["{", '"schema":', "1,", '"volumes":', "[]", "}"]
    assert main(["status", "nobody"]) == 2


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("Python", "/dev/fuse", "fusermount3", "libfuse", "PKCS#11", "wap", "free", "clock", "Linux"):
        assert word in said


def test_doctor_says_how_to_get_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "MISSING  fusermount3 is not installed" in said and "-> Install fuse3" in said


def test_python_m(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mirrorfs", "log"],
        env=child_environment(os.environ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2 and ended.stderr.startswith("mirrorfs: ") and ended.stdout == ""


LOADED = """
import importlib, pkgutil, sys
import mirrorfs.cli
from mirrorfs.cli.stores import open_store
for module in pkgutil.iter_modules(mirrorfs.cli.__path__):
    if module.name != "doctor":
        importlib.import_module(f"mirrorfs.cli.{module.name}")
open_store("a", "file:///nowhere")
print(*sorted({"boto3", "botocore", "pkcs11", "urllib3"} & set(sys.modules)))
open_store("b", "s3://bucket/prefix")
print("boto3" in sys.modules)
"""


def test_a_command_loads_no_more_than_it_needs() -> None:
    """boto3 is loaded for a bucket, PKCS#11 for such a token: they take as long as all the rest. `doctor`
    looks at every kind of token.
    """
    ended = subprocess.run(
        [sys.executable, "-c", LOADED],
        env=child_environment(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.splitlines() == ["", "True"], ended


# --- what a password costs -------------------------------------------------------------------


@pytest.mark.parametrize("memory_mib", ["63", "0", "-64", "2049"])
@pytest.mark.parametrize(
    "command",
    [
        ["init", "v", "--store=a=file:///a", "--store=b=file:///b", "--token=fido2:"],
        ["key", "add", "v", "--new-token=fido2:"],
        ["key", "passwd", "v"],
        ["key", "recovery", "v"],
    ],
    ids=["init", "add", "passwd", "recovery"],
)
def test_the_cost_has_a_floor(
    command: list[str], memory_mib: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, f"--kdf-memory-mib={memory_mib}"]) == 2
    assert capsys.readouterr().err.endswith("--kdf-memory-mib is from 64 to 2048; correct it.\n")


def test_the_cost_of_a_new_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf_option, "available_memory_bytes", lambda: 1 << 40)
    parser = argparse.ArgumentParser()
    kdf_option.add_kdf_argument(parser)
    made = [kdf_option.new_kdf(parser.parse_args(given)) for given in ([], ["--kdf-memory-mib=64"])]
    assert [kdf.memory_kib for kdf in made] == [256 * 1024, 64 * 1024]
    assert made[0].salt != made[1].salt and made[0].iterations == made[1].iterations


# --- the pipe for the keys -------------------------------------------------------------------

REQUEST = SessionRequest(name="v", config="format = 1\n", mountpoint="/mnt", view="ab", at_ns=5)


def test_keys_through_a_pipe() -> None:
    reading, writing = os.pipe()
    session = UnlockedSession(REQUEST, KEY_SET, b"header")
    assert KEY_SET.root.hex() not in repr(session)
    write_session(writing, session)
    found = read_session(reading)
    assert found is not None
    assert (found.request, found.key_set.encode(), found.header) == (REQUEST, KEY_SET.encode(), b"header")


def test_a_pipe_that_is_closed_or_cut() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    assert read_session(reading) is None
    whole_reading, whole_writing = os.pipe()
    write_session(whole_writing, UnlockedSession(REQUEST, KEY_SET, b"header"))
    whole = os.read(whole_reading, 65536)
    os.close(whole_reading)
    for size in (1, 15, 16, 40, len(whole) - 1):
        reading, writing = os.pipe()
        os.write(writing, whole[:size])
        os.close(writing)
        with pytest.raises(errors.MirrorfsError, match="did not arrive"):
            read_session(reading)


@pytest.mark.parametrize(
    "described",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff",
        b"[" * 9000,
        b'{"name":"v"}',
        b'{"name":"v","config":"","mountpoint":"/","x":1}',
    ],
)
def test_a_pipe_with_something_else_in_it(described: bytes) -> None:
    reading, writing = os.pipe()
    prefix = struct.pack("<8sII", b"MFSPIPE1", len(described), 6)
    os.write(writing, prefix + described + KEY_SET.encode() + b"header")
    os.close(writing)
    with pytest.raises(errors.MirrorfsError, match="did not arrive"):
        read_session(reading)


# --- systemd ---------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, abstract: bool) -> None:
    address = f"@mirrorfs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(5)
        notify("READY=1", {"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "bad"}])
def test_nobody_to_notify(environment: dict[str, str]) -> None:
    notify("READY=1", environment)
