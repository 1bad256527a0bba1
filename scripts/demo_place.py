"""The place in which the demo happens: a token, two stores, the secrets, and the commands run there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorfs.fuse.mount_table import find_mount
from tests.support import s3_servers, softhsm

REPOSITORY = Path(__file__).resolve().parents[1]
VOLUME = "demo"
PROFILE = "mirrorfs-demo"
BUCKET = "volume"
COMMAND_DEADLINE_S = 600.0
DETACH_TRIES = 5
OTHER_GROUP = 1


class DemoFailed(Exception):
    """The demo came to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class Store:
    """One store of the demo: its URL, and the directory in which its objects lie in the end."""

    name: str
    url: str
    directory: Path
    server: s3_servers.S3Server | None

    @contextmanager
    def away(self) -> Iterator[None]:
        """The store does not exist for the length of the block."""
        hidden = self.directory.with_name(f"{self.directory.name}-away")
        if self.server is not None:
            self.server.stop()
        self.directory.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(self.directory)
            if self.server is not None:
                self.server.start()


class Place:
    """A temporary directory with everything that the demo needs. Leave its `stack` to clean up."""

    def __init__(self, root: Path, stack: ExitStack, *, s3: bool) -> None:
        self.root = root
        self.mountpoint = root / "mountpoint"
        self.state = root / "state" / VOLUME
        self.log = self.state / "mirrorfs.log"
        self._environment = dict(os.environ) | {
            "MIRRORFS_CONFIG_HOME": str(root / "config"),
            "MIRRORFS_STATE_HOME": str(root / "state"),
            "PYTHONPATH": str(REPOSITORY),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": str(root / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.mountpoint.mkdir()
        (root / "token").mkdir()
        hsm = stack.enter_context(softhsm.softhsm(root / "token"))
        self._environment["SOFTHSM2_CONF"] = str(hsm.configuration)
        self.token = hsm.add_token("mirrorfs-demo").uri()
        self._secrets = (
            "--password-file", self._secret("password", secrets.token_urlsafe(24)),
            "--pin-file", self._secret("pin", softhsm.PIN),
        )  # fmt: skip
        self.stores = [self._store(name, stack, s3=s3) for name in ("A", "B")]
        stack.callback(self._unmount)

    def _secret(self, name: str, text: str) -> str:
        path = self.root / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
        return str(path)

    def _store(self, name: str, stack: ExitStack, *, s3: bool) -> Store:
        directory = self.root / f"store-{name}"
        directory.mkdir()
        if not s3:
            return Store(name, f"file://{directory}", directory, None)
        served = directory / "buckets"
        (served / BUCKET).mkdir(parents=True)
        server = stack.enter_context(s3_servers.rclone_server(served))
        if not (self.root / "credentials").exists():
            self._secret(
                "credentials",
                f"[{PROFILE}]\naws_access_key_id = {server.access_key}\n"
                f"aws_secret_access_key = {server.secret_key}",
            )
        url = f"s3://{BUCKET}/practice?endpoint={server.endpoint}&region=us-east-1&profile={PROFILE}"
        return Store(name, url, served, server)

    # --- commands ------------------------------------------------------------------------------

    def run(self, *arguments: str, secrets: bool = False) -> None:
        """Run a command of MirrorFS and show what it says. Raises: DemoFailed: its exit code is not 0."""
        print(f"    $ mirrorfs {self._shown(' '.join(arguments))}", flush=True)
        command = [sys.executable, "-m", "mirrorfs", *arguments, *(self._secrets if secrets else ())]
        with subprocess.Popen(
            command,
            env=self._environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"      {self._shown(line)}".rstrip(), flush=True)
        if process.returncode:
            raise DemoFailed(f"`mirrorfs {arguments[0]}` ended with exit code {process.returncode}")

    def status(self) -> dict[str, Any]:
        """What `status --json` says of the volume."""
        answer = subprocess.run(
            [sys.executable, "-m", "mirrorfs", "status", VOLUME, "--json"],
            env=self._environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )
        if answer.returncode:
            raise DemoFailed(f"`mirrorfs status` ended with exit code {answer.returncode}")
        volume: dict[str, Any] = json.loads(answer.stdout)["volumes"][0]
        return volume

    def _shown(self, text: str) -> str:
        return text.replace(self.token, "TOKEN").replace(str(self.root), "DIR")

    # --- forgetting and cleaning up ------------------------------------------------------------

    def copy_state(self, target: Path) -> None:
        """Copy the state directory as it lies there, mounted or not."""

        def sockets(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if Path(folder, name).is_socket()]

        shutil.copytree(self.state, target, symlinks=True, ignore=sockets)

    def forget(self) -> None:
        """Delete all local state and configuration: the PC is gone."""
        shutil.rmtree(self.root / "state")
        shutil.rmtree(self.root / "config")

    def _unmount(self) -> None:
        """Leave no mount and no daemon behind, whatever happened."""
        if not self.state.exists():
            return
        command = [sys.executable, "-m", "mirrorfs", "umount", "--no-wait", VOLUME]
        quiet: dict[str, Any] = dict(stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False)
        try:
            subprocess.run(command, env=self._environment, timeout=60.0, **quiet)
        except subprocess.TimeoutExpired:
            print("    the volume was not unmounted in a minute; its mount is detached", flush=True)
        for _ in range(DETACH_TRIES):
            if not is_mounted(self.mountpoint):
                break
            # Detached, the mount ends the daemon as soon as nothing uses it.
            subprocess.run(["fusermount3", "-u", "-z", str(self.mountpoint)], **quiet)
            time.sleep(1.0)


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there; looks at the mount table only, for the mount may hang."""
    return find_mount(str(mountpoint)) is not None


def remove_tree(root: Path) -> None:
    """Remove a tree in which directories may forbid that."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o700)
    shutil.rmtree(root)


# --- what others can see of the daemon -------------------------------------------------------------


def check_memory_is_private(pid: int) -> None:
    """Raises: DemoFailed: the process may dump core, or its memory is open to its user's other programs."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (core,) = (line.split()[4:6] for line in limits if line.startswith("Max core file size"))
    if core != ["0", "0"]:
        raise DemoFailed(f"the daemon may write a core dump: its limits are {core}")
    # The kernel gives the /proc files of a process that must not be dumped or traced to root. Of an
    # ordinary process, started alike, they are its user's and group's: or else this would show nothing.
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL) as ordinary:
        try:
            # Popen returns in the middle of exec, a moment before the new program may be traced.
            give_up_s = time.monotonic() + 5.0
            while _owner(ordinary.pid) != (os.geteuid(), os.getegid()):
                if time.monotonic() > give_up_s:
                    raise DemoFailed("this system does not show which processes may be traced")
                time.sleep(0.01)
            if _owner(pid) == _owner(ordinary.pid):
                raise DemoFailed("the daemon's memory is open to the other programs of its user")
        finally:
            ordinary.kill()


def leave_the_group_of_root() -> None:
    """Let root's demo and all that it starts be of another group than root's: see the check above."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(OTHER_GROUP)


def _owner(pid: int) -> tuple[int, int]:
    status = os.stat(f"/proc/{pid}/environ")
    return status.st_uid, status.st_gid
