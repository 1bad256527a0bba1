"""A volume on a machine of its own, driven by the real command line: SoftHSM as the token, directories as
the stores. One token serves all volumes of a run, and the password costs the least that the format allows.

tests/support/mounted.py is for what happens to a mounted volume; here the commands themselves are tested,
with what they say on each stream, and before and after a volume exists.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorfs.fuse.mount_table import detach, find_mount
from tests.support.softhsm import PIN, SoftToken, softhsm

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "correct horse 42"
DEADLINE_S = 120
KDF_MEMORY_MIB = 64


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of all volumes of this run."""

    configuration: Path
    """What SOFTHSM2_CONF names."""
    token: SoftToken
    other: SoftToken
    """Has a key of its own, and opens nothing."""


@functools.cache
def tokens() -> Tokens:
    """Make the tokens, once per process."""
    directory = Path(tempfile.mkdtemp(prefix="mirrorfs-tokens-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with softhsm(directory) as hsm:
        token, other = hsm.add_token("volume"), hsm.add_token("other")
        token.add_ec_key(label="key", key_id=b"\x01")
        other.add_ec_key(label="key", key_id=b"\x01")
    return Tokens(hsm.configuration, token, other)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    def refused(self, exit_code: int, *words: str, after_progress: bool = False) -> None:
        """Check the exit code, and that all it said was one sentence with these words."""
        assert self.exit_code == exit_code, self
        lines = self.err.splitlines()
        assert (lines if after_progress else len(lines) == 1) and lines[-1].startswith("mirrorfs: "), self
        for word in words:
            assert word in lines[-1], self


class Machine:
    """A volume called "test", its configuration, state, stores and mountpoint."""

    name = "test"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mountpoint = directory / "mountpoint"
        self.config_home = directory / "config"
        self.config = self.config_home / f"{self.name}.toml"
        self.state_home = directory / "state"
        self.state = self.state_home / self.name
        self.stores = {name: directory / f"store-{name}" for name in ("a", "b")}
        self.password_file = directory / "password"
        self.pin_file = directory / "pin"
        self.mountpoint.mkdir(parents=True)
        for store in self.stores.values():
            store.mkdir()
        for path, secret in ((self.password_file, PASSWORD), (self.pin_file, PIN)):
            path.touch(mode=0o600)
            path.write_text(secret + "\n")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "SOFTHSM2_CONF": str(tokens().configuration),
            "MIRRORFS_CONFIG_HOME": str(self.config_home),
            "MIRRORFS_STATE_HOME": str(self.state_home),
            "MIRRORFS_PASSWORD_FILE": str(self.password_file),
            "MIRRORFS_PIN_FILE": str(self.pin_file),
        }

    def command(self, *arguments: str) -> list[str]:
        """The argv of `mirrorfs ARGUMENTS`."""
        return [sys.executable, "-m", "mirrorfs", *arguments]

    def run(self, *arguments: str, check: bool = True, **environment: str) -> Outcome:
        """Run `mirrorfs ARGUMENTS`; with check, anything but exit code 0 fails the test.

        Args:
            environment: variables besides those of the machine.
        """
        ended = subprocess.run(
            self.command(*arguments),
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            # Asking for a secret must fail, not wait for whoever runs the tests.
            start_new_session=True,
            check=False,
        )
        outcome = Outcome(ended.returncode, ended.stdout, ended.stderr)
        if check:
            log = self.state / "mirrorfs.log"
            said = log.read_text() if log.exists() else ""
            assert outcome.exit_code == 0, f"mirrorfs {arguments[0]}: {outcome}\n{said}"
        return outcome

    def init(self, *options: str, check: bool = True) -> Outcome:
        """Make the volume on its stores."""
        stores = [f"--store={name}=file://{path}" for name, path in self.stores.items()]
        return self.run(
            "init", self.name, *stores, f"--token={tokens().token.uri()}",
            f"--kdf-memory-mib={KDF_MEMORY_MIB}", *options, check=check,
        )  # fmt: skip

    def set_config(self, name: str, value: str) -> None:
        """Change a top-level field of the configuration, given as TOML writes it."""
        lines = [
            f"{name} = {value}" if line.startswith(f"{name} =") else line
            for line in self.config.read_text().splitlines()
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def mount(self, *options: str, check: bool = True) -> Outcome:
        """Mount it in the background."""
        return self.run("mount", self.name, str(self.mountpoint), *options, check=check)

    def umount(self, *options: str, check: bool = True) -> Outcome:
        """Unmount it; the process that served it is gone on return."""
        return self.run("umount", self.name, *options, check=check)

    def status(self) -> dict[str, Any]:
        """What `status --json` says of the volume."""
        volume: dict[str, Any] = json.loads(self.run("status", self.name, "--json").out)["volumes"][0]
        return volume

    def pid(self) -> int:
        """The process that serves the volume."""
        pid = self.status()["pid"]
        assert isinstance(pid, int), "the volume is not mounted"
        return pid

    def kill(self) -> None:
        """SIGKILL the process that serves the volume; its dead mount stays."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        wait_ended(pid)

    def is_mounted(self) -> bool:
        """Whether the kernel has a mount there, dead or alive."""
        return find_mount(self.mountpoint) is not None


def wait_ended(pid: int) -> None:
    """Wait until a process that is no child of ours has ended."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} does not end")


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """A machine without a volume yet; in the end no mount and no process of it is left."""
    made = Machine(directory)
    try:
        yield made
    finally:
        if made.config.exists() and made.status()["mounted"]:
            made.kill()
        while made.is_mounted():
            detach(made.mountpoint)
