"""The command line as people and scripts use it: real processes, a real mount, SoftHSM, two directories."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.fuse.mount_table import find_mount
from tests.cli.machine import DEADLINE_S, PASSWORD, Machine, machine, tokens, wait_ended
from tests.support import s3_servers


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Machine]:
    """No volume is made yet."""
    with machine(tmp_path / "machine") as made:
        yield made


@pytest.fixture
def made(bare: Machine) -> Machine:
    """Made, not mounted."""
    bare.init()
    return bare


@pytest.fixture
def mounted(made: Machine) -> Machine:
    made.mount()
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and ".tmp" not in path.parts
    }


# --- init ------------------------------------------------------------------------------------


def test_init_makes_a_volume_and_says_what_to_keep(bare: Machine) -> None:
    outcome = bare.init()
    assert "fingerprint:" in outcome.out and "software token" in outcome.out
    config = bare.config_home / "test.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(bare.state.stat().st_mode) == 0o700
    for store in bare.stores.values():
        assert sorted(name.split("/")[0] for name in contents(store)) == ["header", "instance"]
    assert PASSWORD not in config.read_text()


def test_init_never_overwrites(made: Machine) -> None:
    before = {name: contents(path) for name, path in made.stores.items()}
    made.init(check=False).refused(2, "configured already")
    stores = [f"--store={name}=file://{path}" for name, path in made.stores.items()]
    other = made.run("init", "other", *stores, f"--token={tokens().token.uri()}", check=False)
    other.refused(4, "Store a", "holds a MirrorFS volume already")
    assert {name: contents(path) for name, path in made.stores.items()} == before
    assert not (made.config_home / "other.toml").exists()


def test_init_wants_empty_directories_that_exist(bare: Machine) -> None:
    (bare.stores["b"] / "holiday.jpg").write_bytes(b"x")
    bare.init(check=False).refused(4, "store b", "not empty")
    shutil.rmtree(bare.stores["b"])
    bare.init(check=False).refused(4, "store b", "--create-store")
    assert not bare.state.exists()
    bare.init("--create-store")
    assert (bare.stores["b"] / "instance").exists()


def test_failed_init_leaves_stores_that_can_be_used(bare: Machine) -> None:
    # A file in place of the directory for headers: the second store fails in the middle of the writing.
    (bare.stores["b"] / "header").write_bytes(b"")
    outcome = bare.init(check=False)
    assert outcome.exit_code == 4
    assert contents(bare.stores["a"]) == {}
    assert not bare.state.exists() and not (bare.config_home / "test.toml").exists()
    (bare.stores["b"] / "header").unlink()
    bare.init()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store=a=file:///tmp/x"], "two stores"),
        (["--store=a=file:///tmp/x", "--store=a=file:///tmp/y"], "same name"),
        (["--store=a=file:///tmp/x", "--store=b=file:///tmp/x/y"], "one inside the other"),
        (["--store=a=file:///tmp/x", "--store=b=ftp://y"], "store b"),
        (["--store=file:///tmp/x", "--store=b=file:///tmp/y"], "NAME=URL"),
    ],
)
def test_init_refuses_unfit_stores(bare: Machine, arguments: list[str], words: str) -> None:
    outcome = bare.run("init", "v", *arguments, f"--token={tokens().token.uri()}", check=False)
    outcome.refused(2, words)


def test_init_refuses_a_weak_password(bare: Machine) -> None:
    bare.password_file.write_text("1234567890\n")
    bare.init(check=False).refused(2, "easy to guess")
    assert contents(bare.stores["a"]) == {} and not bare.state.exists()


# --- unlocking -------------------------------------------------------------------------------


def test_wrong_password(made: Machine) -> None:
    made.password_file.write_text("not the password\n")
    made.mount(check=False).refused(3, "volume password")
    assert not made.is_mounted()


def test_wrong_pin(made: Machine) -> None:
    made.pin_file.write_text("000000\n")
    made.mount(check=False).refused(3, "refused the PIN")


def test_missing_token(made: Machine) -> None:
    token = tokens().token
    outcome = made.mount(f"--token={token.uri().replace(token.label, 'nowhere', 1)}", check=False)
    outcome.refused(3, "No token matches")


def test_wrong_token(made: Machine) -> None:
    made.mount(f"--token={tokens().other.uri()}", check=False).refused(3, "'other'")


def test_missing_module(made: Machine) -> None:
    made.mount("--module=/nowhere/module.so", check=False).refused(3, "/nowhere/module.so")


def test_no_secret_and_no_terminal(made: Machine) -> None:
    outcome = made.run(
        "mount", made.name, str(made.mountpoint), check=False, MIRRORFS_PASSWORD_FILE="", MIRRORFS_PIN_FILE=""
    )
    outcome.refused(2, "--pin-file")


def test_another_fingerprint_is_another_volume(made: Machine) -> None:
    made.set_config("fingerprint", '"' + "00" * 16 + '"')
    made.mount(check=False).refused(3, "fingerprint")


def test_header_comes_from_a_store_when_the_state_is_lost(made: Machine) -> None:
    shutil.rmtree(made.state)
    made.mount()
    assert len(list((made.state / "objects" / "header").iterdir())) == 1


# --- mounting --------------------------------------------------------------------------------


def test_write_flush_umount_mount_read(mounted: Machine) -> None:
    (mounted.mountpoint / "directory").mkdir()
    data = os.urandom(300_000)
    (mounted.mountpoint / "directory" / "file").write_bytes(data)
    mounted.run("flush", str(mounted.mountpoint))
    status = mounted.status()
    assert status["light"] == "protected"
    assert [store["pending_count"] for store in status["stores"]] == [0, 0]
    outcome = mounted.umount()
    assert "every store holds all of it" in outcome.out
    assert not mounted.is_mounted()
    objects = [contents(path).keys() for path in mounted.stores.values()]
    assert objects[0] == objects[1] and any(key.startswith("heads/") for key in objects[0])
    mounted.mount()
    assert (mounted.mountpoint / "directory" / "file").read_bytes() == data
    before = sum(map(len, contents(mounted.stores["a"]).values()))
    (mounted.mountpoint / "copy").write_bytes(data)
    mounted.run("flush", str(mounted.mountpoint))
    grown = sum(map(len, contents(mounted.stores["a"]).values())) - before
    assert 0 < grown < len(data) // 2, "a copy is not stored again"
    mounted.run("umount", str(mounted.mountpoint), "--no-wait")
    assert not mounted.is_mounted()


def test_nothing_local_or_remote_is_readable(mounted: Machine) -> None:
    secret = b"the patient has recovered from everything"
    (mounted.mountpoint / "name-that-tells-a-lot").write_bytes(secret * 100)
    mounted.run("flush", mounted.name)
    mounted.umount()
    for place in (mounted.state, mounted.config_home, *mounted.stores.values()):
        for path in place.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                for clear in (secret, b"name-that-tells", PASSWORD.encode()):
                    assert clear not in data, path
                    assert clear.decode() not in str(path)


def test_mounted_twice_is_in_use(mounted: Machine) -> None:
    other = mounted.directory / "other"
    other.mkdir()
    outcome = mounted.run("mount", mounted.name, str(other), check=False)
    outcome.refused(6, "mounted already")


def test_unfit_mountpoints(made: Machine) -> None:
    (made.mountpoint / "something").write_text("x")
    made.mount(check=False).refused(2, "not empty")
    for place in (made.directory, made.stores["a"], made.state):
        outcome = made.run("mount", made.name, str(place), check=False)
        outcome.refused(2, "mountpoint")
    inside = made.stores["a"] / "inside"
    inside.mkdir()
    made.run("mount", made.name, str(inside), check=False).refused(2, "one of its stores")
    made.run("mount", made.name, "/nowhere/at/all", check=False).refused(2, "does not exist")


def test_unknown_volume(made: Machine) -> None:
    made.run("mount", "nobody", str(made.mountpoint), check=False).refused(2, "nobody")
    made.run("flush", "nobody", check=False).refused(2, "configured")
    made.run("flush", made.name, check=False).refused(1, "not mounted")
    made.run("umount", made.name, check=False).refused(1, "not mounted")


def test_configuration_that_others_can_write(made: Machine) -> None:
    (made.config_home / "test.toml").chmod(0o666)
    made.mount(check=False).refused(2, "written by others")


def test_killed_daemon_loses_nothing_synced(mounted: Machine) -> None:
    with open(mounted.mountpoint / "file", "wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
    mounted.kill()
    assert mounted.is_mounted()
    assert mounted.status()["mounted"] is False
    outcome = mounted.mount()
    assert "dead mount" in outcome.err
    assert (mounted.mountpoint / "file").read_bytes() == b"synced"


def test_umount_removes_a_dead_mount(mounted: Machine) -> None:
    mounted.kill()
    assert "dead mount" in mounted.umount().out
    assert not mounted.is_mounted()


def test_umount_of_a_mount_in_use(mounted: Machine) -> None:
    with open(mounted.mountpoint / "file", "wb") as file:
        mounted.umount(check=False).refused(6, "in use")
        file.write(b"still here")
    assert mounted.is_mounted()
    assert (mounted.mountpoint / "file").read_bytes() == b"still here"
    mounted.umount()


@pytest.mark.parametrize("how", ["signal", "fusermount"])
def test_other_ways_to_unmount_close_cleanly(mounted: Machine, how: str) -> None:
    (mounted.mountpoint / "file").write_bytes(b"written, not synced")
    pid = mounted.pid()
    if how == "signal":
        os.kill(pid, signal.SIGTERM)
    else:
        subprocess.run(["fusermount3", "-u", str(mounted.mountpoint)], check=True)
    wait_ended(pid)
    assert not mounted.is_mounted()
    assert (mounted.state / "index.db.clean").exists()
    names = [name for name in contents(mounted.stores["a"]) if name.startswith("segments/")]
    assert names
    mounted.mount()
    assert (mounted.mountpoint / "file").read_bytes() == b"written, not synced"


def test_control_socket_is_private(mounted: Machine) -> None:
    found = (mounted.state / "control.sock").stat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(mounted.state.stat().st_mode) == 0o700


def test_keys_and_secrets_are_in_no_argv_or_environment(mounted: Machine) -> None:
    process = Path(f"/proc/{mounted.pid()}")
    seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert PASSWORD.encode() not in seen
    root = process / "cwd"
    assert os.readlink(root) == "/"
    assert os.readlink(process / "fd" / "0") == "/dev/null"


def test_long_state_path(tmp_path: Path) -> None:
    with machine(tmp_path.joinpath(*["a-rather-long-directory-name"] * 5)) as deep:
        deep.init()
        deep.mount()
        assert len(str(deep.state / "control.sock")) > 107
        assert deep.status()["mounted"] is True
        deep.umount()


# --- stores ----------------------------------------------------------------------------------


def test_one_empty_store_stops_nobody(made: Machine) -> None:
    shutil.rmtree(made.stores["b"])
    made.stores["b"].mkdir()
    outcome = made.mount()
    assert "Store b" in outcome.err
    assert "store replace" in outcome.err
    made.umount("--no-wait")
    assert list(made.stores["b"].iterdir()) == []
    shutil.rmtree(made.stores["a"])
    made.stores["a"].mkdir()
    made.mount(check=False).refused(4, "Store a", "check its URL")


def test_a_bucket_as_a_store(bare: Machine) -> None:
    with s3_servers.moto_server() as server:
        s3_servers.create_bucket(server, "practice")
        bare.environment |= s3_servers.environment(server)
        url = f"s3://practice/volume?endpoint={server.endpoint}&region=us-east-1"
        options = (f"--token={tokens().token.uri()}", "--kdf-memory-mib=64")
        stores = (f"--store=disk=file://{bare.stores['a']}", f"--store=cloud={url}")
        bare.run("init", bare.name, *stores, *options)
        again = bare.run(
            "init", "other", f"--store=x=file://{bare.stores['b']}", stores[1], *options, check=False
        )
        again.refused(4, "Store cloud", "holds a MirrorFS volume already")
        bare.mount()
        (bare.mountpoint / "file").write_bytes(b"in the cloud")
        bare.run("flush", bare.name)
        assert bare.status()["light"] == "protected"
        # The server goes away under the mount: files work on, and the light says what is wrong.
        server.stop()
        (bare.mountpoint / "file").write_bytes(b"still here")
        given_up = bare.run("flush", bare.name, "--stall=0.5", check=False)
        given_up.refused(4, "store cloud", after_progress=True)
        assert bare.status()["light"] == "at-risk"
        server.start()
        bare.umount()


def test_limits_of_a_bucket(bare: Machine) -> None:
    with s3_servers.moto_server() as server:
        s3_servers.create_bucket(server, "practice")
        bare.environment |= s3_servers.environment(server)
        cloud = f"--store=cloud=s3://practice/limits?endpoint={server.endpoint}"
        bare.run(
            "init", bare.name, f"--store=disk=file://{bare.stores['a']}", cloud,
            f"--token={tokens().token.uri()}", "--kdf-memory-mib=64",
        )  # fmt: skip
        limits = '\n[limits]\nparallel = 1\n[[limits.during]]\nupload = "1MiB/s"\n'
        with bare.config.open("a") as config:
            config.write(limits)
        bare.mount()
        assert bare.status()["limits"] == {"upload_bytes_s": 1 << 20, "download_bytes_s": None}
        assert "limits now: upload at most 1.0 MiB/s\n" in bare.run("status", bare.name).out
        (bare.mountpoint / "file").write_bytes(os.urandom(4 << 20))
        began_s = time.monotonic()
        bare.run("flush", bare.name)
        assert time.monotonic() - began_s > 3.5
        bare.umount()
        bare.mount("--read-only")
        view = json.loads(bare.run("status", str(bare.mountpoint), "--json").out)["volumes"][0]
        assert view["limits"] == {"upload_bytes_s": 1 << 20, "download_bytes_s": None}
        bare.run("umount", str(bare.mountpoint))
        with bare.config.open("a") as config:
            config.write("rate = 5\n")
        bare.mount(check=False).refused(2, "unknown field limits.during.rate")


def test_foreign_store_is_refused(made: Machine, tmp_path: Path) -> None:
    with machine(tmp_path / "foreign") as foreign:
        foreign.init()
        shutil.rmtree(made.stores["b"])
        shutil.copytree(foreign.stores["b"], made.stores["b"])
        before = contents(made.stores["b"])
        made.mount(check=False).refused(4, "Store b", "does not belong to this volume")
        assert contents(made.stores["b"]) == before


def test_exchanged_stores_are_refused(made: Machine) -> None:
    kept = made.directory / "kept"
    made.stores["a"].rename(kept)
    made.stores["b"].rename(made.stores["a"])
    kept.rename(made.stores["b"])
    made.mount(check=False).refused(4, "another store of this volume")


def test_store_of_a_newer_program(made: Machine) -> None:
    instance = made.stores["a"] / "instance"
    instance.chmod(0o600)
    instance.write_bytes(instance.read_bytes().replace(b'"format":1', b'"format":2'))
    made.mount(check=False).refused(2, "Store a", "newer")


def test_store_that_is_away_is_a_warning_and_catches_up(made: Machine) -> None:
    away = made.directory / "away"
    made.stores["b"].rename(away)
    outcome = made.mount()
    assert "store b" in outcome.err
    (made.mountpoint / "file").write_bytes(b"x" * 1000)
    made.run("flush", made.name, "--stall=0.5", check=False).refused(4, "store b", after_progress=True)
    assert made.status()["light"] == "at-risk"
    made.umount("--stall=0.5", check=False).refused(4, "next mount", after_progress=True)
    away.rename(made.stores["b"])
    made.mount()
    made.run("flush", made.name)
    made.umount()
    segments = [{name for name in contents(path) if "/" in name} for path in made.stores.values()]
    assert segments[0] == segments[1]


# --- status ----------------------------------------------------------------------------------


def test_status_for_people_and_programs(mounted: Machine) -> None:
    (mounted.mountpoint / "file").write_bytes(b"x")
    text = mounted.run("status").out
    assert text.startswith(f"test: catching up, mounted on {mounted.mountpoint}\n")
    assert "a: everything before " in text and " is safe there" in text
    answer = json.loads(mounted.run("status", str(mounted.mountpoint), "--json").out)
    assert answer["schema"] == 1
    (volume,) = answer["volumes"]
    assert volume["mountpoint"] == str(mounted.mountpoint)
    assert [store["name"] for store in volume["stores"]] == ["a", "b"]
    mounted.umount()
    # What concerns keys is said mounted or not.
    assert mounted.run("status").out == (
        "test: is not mounted.\n"
        "  Only first opens this volume: if it is lost, all is lost. Run `mirrorfs key add` or"
        " `mirrorfs key recovery`.\n"
    )
    assert mounted.status()["mounted"] is False


# --- views of the past -----------------------------------------------------------------------


def test_read_only_view_beside_the_writable_mount(mounted: Machine) -> None:
    (mounted.mountpoint / "file").write_bytes(b"old")
    mounted.run("flush", mounted.name)
    time.sleep(1.1)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    time.sleep(1.1)
    (mounted.mountpoint / "file").write_bytes(b"newer")
    mounted.run("flush", mounted.name)
    place = mounted.directory / "view"
    place.mkdir()
    for options, expected in ((["--at", moment], b"old"), (["--read-only"], b"newer")):
        mounted.run("mount", mounted.name, str(place), *options)
        assert (place / "file").read_bytes() == expected
        with pytest.raises(OSError, match="Read-only"):
            (place / "other").write_bytes(b"x")
        assert "read-only view" in mounted.run("status", str(place)).out
        mounted.run("flush", str(place), check=False).refused(2, "read-only view")
        mounted.run("alarm", "clear", str(place), check=False).refused(2, "read-only view")
        mounted.run("umount", str(place))
        assert find_mount(place) is None
        assert list((mounted.state / "views").iterdir()) == []
    assert (mounted.mountpoint / "file").read_bytes() == b"newer"


# --- in the foreground -----------------------------------------------------------------------


def test_foreground_tells_systemd_and_stops_on_sigterm(made: Machine) -> None:
    address = made.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(DEADLINE_S)
        process = subprocess.Popen(
            made.command("mount", made.name, str(made.mountpoint), "--foreground"),
            env={**made.environment, "NOTIFY_SOCKET": str(address)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert manager.recv(4096).startswith(b"READY=1\n")
        (made.mountpoint / "file").write_bytes(b"x")
        process.send_signal(signal.SIGTERM)
        assert manager.recv(4096).startswith(b"STOPPING=1\n")
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert not made.is_mounted()
    made.mount()
    assert (made.mountpoint / "file").read_bytes() == b"x"


def test_foreground_with_a_wrong_password(made: Machine) -> None:
    made.password_file.write_text("not the password\n")
    made.mount("--foreground", check=False).refused(3, "volume password")
