"""What of keys, secrets and contents is in memory and in files, while mounted and when it is over.

The memory of a process is searched from outside, at the very last moment of its life too (see
tests/support/memory_scan.py). A canary in the environment of every process shows that the search finds
things.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pkcs11
import pytest

from mirrorfs.cli.config import load_config, volume_paths
from mirrorfs.cli.headers import local_header
from mirrorfs.cli.tokens import SecretSources, chosen_tokens, make_tokens
from mirrorfs.cli.unlock import AskedPassword, unlock_header
from mirrorfs.drivers.wiping import wipe
from mirrorfs.format.kdf import hkdf
from tests.cli.machine import wait_ended
from tests.fuse.conftest import needs_root
from tests.support.memory_scan import LastMoment, Scanner
from tests.support.mounted import PASSWORD, Mounted, mounted_volume
from tests.support.softhsm import MODULE, PIN

KEYS = ("root", "writer seed", "index key", "document key", "lease key")
"""What the daemon needs while it serves."""
FACTORS = ("password", "PIN", "stretched password", "token secret", "KEK")
"""What opens a volume: the daemon never needs it."""
PLAIN = ("name", "content")
LONG_PIN = "73915064"
"""The usual one of the tests is found in any program, as part of all digits."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A volume that is not mounted, and what to look for."""

    volume: Mounted
    secrets: dict[str, bytes]
    scanner: Scanner


@pytest.fixture
def searched(tmp_path: Path) -> Iterator[Searched]:
    with mounted_volume(tmp_path, mount=False) as volume:
        change_pin(volume)
        canary = secrets.token_bytes(32)
        volume.env["MIRRORFS_TEST_CANARY"] = canary.hex()
        found = secrets_of(volume) | {
            "canary": canary,
            "name": b"name-that-tells-a-lot",
            "content": b"the patient has recovered from everything",
        }
        yield Searched(volume, found, Scanner(found))


def change_pin(volume: Mounted) -> None:
    module = pkcs11.lib(MODULE)
    try:
        with module.get_token(token_label="practice").open(rw=True, user_pin=PIN) as session:
            session.set_pin(PIN, LONG_PIN)
    finally:
        module.finalize()
    Path(volume.env["MIRRORFS_PIN_FILE"]).write_text(LONG_PIN + "\n")


def secrets_of(volume: Mounted) -> dict[str, bytes]:
    """All there is, found out as the product does."""
    paths = volume_paths(volume.name, volume.env)
    sources = SecretSources(volume.env["MIRRORFS_PASSWORD_FILE"], volume.env["MIRRORFS_PIN_FILE"], volume.env)
    password = AskedPassword(volume.name, sources)
    tokens = make_tokens(chosen_tokens(None, None, load_config(paths).tokens), sources)
    header = local_header(paths)
    assert header is not None
    unlocked = unlock_header(header, name=volume.name, tokens=tokens, sources=sources, password=password)
    kdf = unlocked.slot.kdf
    stretched = password.stretched(kdf)
    return {
        "root": unlocked.key_set.root,
        "writer seed": unlocked.key_set.writer,
        "index key": unlocked.keys.index_key,
        "document key": unlocked.keys.document_mac_key,
        "lease key": unlocked.keys.lease_box_key,
        "password": PASSWORD.encode(),
        "PIN": LONG_PIN.encode(),
        "stretched password": stretched,
        "token secret": unlocked.secret,
        "KEK": hkdf(stretched + unlocked.secret, salt=kdf.salt, info=b"mirrorfs v1 kek"),
    }


def processes_with(canary: bytes) -> set[int]:
    """Every process on this machine that has the canary in its environment: all that we started."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and canary.hex().encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue  # It ended meanwhile.
    return found


@needs_root("only root sees the memory of a process that cannot be dumped")
def test_secrets_in_memory_from_mount_to_umount(searched: Searched) -> None:
    volume, scanner = searched.volume, searched.scanner
    mounting = volume.start("mount", volume.name, str(volume.mountpoint))
    moment = LastMoment(mounting.pid)
    moment.wait()
    unlocking = scanner.memory(mounting.pid)
    unlocking.must_have("canary")
    unlocking.must_lack(*KEYS, "PIN", "stretched password", "token secret", "KEK")
    # Text is not searched for and overwritten; docs/threat-model.md says what that means.
    assert unlocking.of("password") <= 1
    mounting.returncode = os.waitstatus_to_exitcode(moment.let_go())
    assert mounting.returncode == 0, mounting.communicate()
    mounting.communicate()

    (daemon,) = volume.daemon_pids()
    (volume.mountpoint / "name-that-tells-a-lot").write_bytes(searched.secrets["content"] * 100)
    volume.flush()
    serving = scanner.memory(daemon)
    for name in ("canary", *KEYS, *PLAIN):
        serving.must_have(name)
    serving.must_lack(*FACTORS)
    assert processes_with(searched.secrets["canary"]) == {daemon}

    moment = LastMoment(daemon)
    unmounting = volume.start("umount", volume.name)
    moment.wait()
    ending = scanner.memory(daemon)
    ending.must_have("canary")
    ending.must_lack(*KEYS, *FACTORS)
    moment.let_go()
    said, _ = unmounting.communicate(timeout=60)
    assert unmounting.returncode == 0, said
    wait_ended(daemon)
    assert not Path(f"/proc/{daemon}/maps").exists() or not Path(f"/proc/{daemon}/maps").read_text()
    assert processes_with(searched.secrets["canary"]) == set()


@needs_root("only root sees the memory of a process that cannot be dumped")
def test_secrets_in_memory_of_a_foreground_mount(searched: Searched) -> None:
    """Here a child unlocks: the process that serves has never had a password or PIN."""
    volume, scanner = searched.volume, searched.scanner
    process = volume.start("mount", volume.name, str(volume.mountpoint), "--foreground")
    volume.wait_until(volume.mountpoint.is_mount, within_s=60)
    serving = scanner.memory(process.pid)
    serving.must_have("canary")
    serving.must_have("root")
    serving.must_lack(*FACTORS)
    assert processes_with(searched.secrets["canary"]) == {process.pid}
    moment = LastMoment(process.pid)
    process.terminate()
    moment.wait()
    ending = scanner.memory(process.pid)
    ending.must_have("canary")
    ending.must_lack(*KEYS, *FACTORS)
    process.returncode = os.waitstatus_to_exitcode(moment.let_go())
    assert process.returncode == 0
    assert process.communicate()[0].endswith("is unmounted.\n")


def test_secrets_in_files(searched: Searched, tmp_path: Path) -> None:
    """The state directory with its log, the configuration and the stores; mounted, and afterwards."""
    volume, scanner = searched.volume, searched.scanner
    places = [volume.state, volume.config.parent, *volume.stores.values()]
    volume.mount()
    (volume.mountpoint / "name-that-tells-a-lot").write_bytes(searched.secrets["content"] * 100)
    volume.flush()
    mounted = scanner.files(places)
    volume.umount()
    for finds in (mounted, scanner.files(places)):
        finds.must_lack(*searched.secrets)
        assert finds.size_bytes > 100_000
    # What is planted is found, whatever its form, in contents as in names.
    for name in searched.secrets:
        place = tmp_path / "planted" / name
        place.mkdir(parents=True)
        (place / "raw").write_bytes(b"x" + searched.secrets[name] + b"x")
        scanner.files([place]).must_have(name)
    place = tmp_path / "planted" / "names"
    place.mkdir()
    (place / searched.secrets["root"].hex()).touch()
    scanner.files([place]).must_have("root")


WIPING = """
import os, sys
from mirrorfs.drivers.wiping import wipe
secret = bytes.fromhex(sys.argv[1])[::-1]
# Copies of many kinds: of the interpreter, of the C library, in a mapping of their own.
copies = [secret[:k] + secret[k:] for k in range(1, 20)] + [bytearray(8 << 20) + secret, secret * 3]
count = wipe([secret, bytes(32), b"short"])
print(count >= 23, secret == bytes(32), copies[-2][-32:] == bytes(32), flush=True)
sys.stdin.read()
"""


@needs_root("only root sees the memory of another process")
def test_wiping_reaches_every_copy() -> None:
    secret, kept = secrets.token_bytes(32), secrets.token_bytes(32)
    scanner = Scanner({"secret": secret, "kept": kept})
    command = [sys.executable, "-c", WIPING, secret[::-1].hex(), kept.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"True True True\n"
        finds = scanner.memory(process.pid)
        process.stdin.close()
    finds.must_have("kept")
    finds.must_lack("secret")


def test_nothing_to_wipe() -> None:
    assert wipe([]) == wipe([bytes(32), b"too short"]) == 0
