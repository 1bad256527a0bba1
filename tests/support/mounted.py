"""A volume mounted by the real command line in processes of its own: SoftHSM2 token, two directory stores.

Every command is run as users run it, with secrets from files of mode 0600. The daemon is a process that
can be killed; nothing of it runs in the process of the tests, so its log is read from its file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirrorfs.fuse.mount_table import detach, find_mount
from tests.support.softhsm import PIN, SoftHsm, SoftToken, softhsm

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "correct horse battery staple"  # of tests only
KDF_MEMORY_MIB = 64
"""The least that the format allows: a mount then takes about a second."""
CHEAP = f"--kdf-memory-mib={KDF_MEMORY_MIB}"
"""Makes a new slot cost that, too, for each time that it is opened: a quarter of the default."""
COMMAND_DEADLINE_S = 300.0
ASKING = ("MIRRORFS_ASK", "DISPLAY", "WAYLAND_DISPLAY", "INVOCATION_ID")
"""Variables that say how a person can be asked: the tests are to run alike on a desktop and as a service."""
GONE_DEADLINE_S = 60.0


class Mounted:
    """One volume, its stores and its mountpoint. `mounted_volume` makes it."""

    def __init__(
        self,
        folder: Path,
        *,
        hsm: SoftHsm,
        token: SoftToken,
        stores: Mapping[str, Path],
        state_home: Path,
        environment: Mapping[str, str],
        mount_options: tuple[str, ...],
    ) -> None:
        # The mount table tells volumes apart by their names: no run may take another's for its own.
        self.name = f"practice-{secrets.token_hex(4)}"
        self.mountpoint = folder / "mnt"
        self.hsm = hsm
        """Where its token is; more can be added."""
        self.token = token
        """What opens it, unless the test makes it with another."""
        self.stores = dict(stores)
        self.state = state_home / self.name
        self.config = folder / "config" / f"{self.name}.toml"
        self.env = dict(environment)
        self.mount_options = mount_options
        self.log = self.state / "mirrorfs.log"
        self.init_arguments: tuple[str, ...] = ()
        """What makes it, but for the token."""

    # --- commands ----------------------------------------------------------------------------

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command; what it says is in one stream."""
        return subprocess.Popen(
            [sys.executable, "-m", "mirrorfs", *arguments],
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code; stdout and stderr in one text."""
        with self.start(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=COMMAND_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def must(self, *arguments: str) -> str:
        """Run a command that has to succeed."""
        outcome = self.run(*arguments)
        assert outcome.returncode == 0, f"mirrorfs {arguments[0]}: {outcome.stdout}\n{self.log_text()}"
        return outcome.stdout

    def mount(self, *options: str) -> str:
        """Mount the volume; its options come before these."""
        return self.must("mount", self.name, str(self.mountpoint), *self.mount_options, *options)

    def umount(self, *options: str) -> str:
        """Unmount it, waiting for the stores unless told otherwise."""
        return self.must("umount", self.name, *options)

    def flush(self) -> str:
        """Wait until every store holds everything."""
        return self.must("flush", self.name)

    def status(self) -> dict[str, Any]:
        """What `status --json` says of the volume."""
        volume: dict[str, Any] = json.loads(self.must("status", self.name, "--json"))["volumes"][0]
        return volume

    def store_status(self, name: str) -> dict[str, Any]:
        """The part of it on one store."""
        (found,) = (store for store in self.status()["stores"] if store["name"] == name)
        return dict(found)

    def set_mirror_delay_s(self, delay_s: float) -> None:
        """For the next mount."""
        text = self.config.read_text()
        self.config.write_text(re.sub(r"mirror_delay_s = .*", f"mirror_delay_s = {delay_s}", text))

    # --- the daemon --------------------------------------------------------------------------

    def daemon_pids(self) -> list[int]:
        """Background processes that hold this volume's lock."""
        return [pid for pid in _processes("mirrorfs.cli.daemon") if _has_open(pid, self.state / "lock")]

    def kill(self) -> None:
        """SIGKILL the daemon; it is gone on return, its mount is not."""
        pids = self.daemon_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Return when no background process has the volume."""
        deadline_s = time.monotonic() + GONE_DEADLINE_S
        while self.daemon_pids():
            assert time.monotonic() < deadline_s, "the daemon does not end"
            time.sleep(0.01)

    def wait_until(self, condition: Callable[[], bool], *, within_s: float) -> None:
        """Return when something came true."""
        deadline_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline_s, "it does not come true"
            time.sleep(0.2)

    def log_text(self) -> str:
        """What the daemon logged so far, all mounts together."""
        return self.log.read_text() if self.log.exists() else ""

    def warnings(self) -> list[str]:
        """Lines of the log at WARNING and above."""
        return [
            line for line in self.log_text().splitlines() if re.search(r" (WARNING|ERROR|CRITICAL) ", line)
        ]

    # --- what lies there ---------------------------------------------------------------------

    def local_segments(self) -> list[Path]:
        """Files of the local log's main stream, oldest first."""
        return sorted((self.state / "objects" / "segments").iterdir())

    def store_segments(self, name: str) -> list[Path]:
        """The same on one store."""
        folder = self.stores[name] / "segments"
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Leave no process and no mount behind, whatever happened."""
        self.kill()
        while find_mount(self.mountpoint) is not None:
            detach(self.mountpoint)


def _processes(module: str) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # It ended meanwhile.
            if module.encode() in arguments:
                yield int(entry.name)


def _has_open(pid: int, path: Path) -> bool:
    real = os.path.realpath(path)
    try:
        return any(os.path.realpath(link) == real for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _secret(path: Path, text: str) -> str:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    return str(path)


@contextmanager
def mounted_volume(
    folder: Path,
    *,
    mount_options: tuple[str, ...] = (),
    mount: bool = True,
    mirror_delay_s: float | None = None,
    state_home: Path | None = None,
    stores: Mapping[str, Path] | None = None,
    store_urls: Mapping[str, str] | None = None,
    make: bool = True,
) -> Iterator[Mounted]:
    """Make a volume in an empty directory and mount it.

    Args:
        mount_options: of every mount of it, such as "--allow-other".
        mount: whether it is mounted when the block begins.
        make: False where the test makes it, with `Mounted.init_arguments`; then it is not mounted either.
        mirror_delay_s: None for the default.
        state_home: another place for the local state, an existing private directory.
        stores: other places for the stores, existing directories, by name; default `a` and `b`.
        store_urls: stores of any kind instead, by name; the volume then knows no directories of them.
    """
    (folder / "mnt").mkdir()
    (folder / "config").mkdir(mode=0o700)
    (folder / "token").mkdir()
    if state_home is None:
        state_home = folder / "state"
        state_home.mkdir(mode=0o700)
    if store_urls is not None:
        stores = {}
    elif stores is None:
        stores = {name: folder / f"store-{name}" for name in ("a", "b")}
        for place in stores.values():
            place.mkdir()
    with softhsm(folder / "token") as hsm:
        token = hsm.add_token("practice")
        inherited = {name: value for name, value in os.environ.items() if name not in ASKING}
        environment = inherited | {
            "MIRRORFS_CONFIG_HOME": str(folder / "config"),
            "MIRRORFS_STATE_HOME": str(state_home),
            "MIRRORFS_PASSWORD_FILE": _secret(folder / "password", PASSWORD),
            "MIRRORFS_PIN_FILE": _secret(folder / "pin", PIN),
            "PYTHONPATH": str(REPOSITORY),
        }
        volume = Mounted(
            folder,
            hsm=hsm,
            token=token,
            stores=stores,
            state_home=state_home,
            environment=environment,
            mount_options=mount_options,
        )
        if store_urls is None:
            store_urls = {name: f"file://{place}" for name, place in stores.items()}
        urls = [f"--store={name}={url}" for name, url in store_urls.items()]
        volume.init_arguments = ("init", volume.name, *urls, CHEAP)
        if make:
            volume.must(*volume.init_arguments, "--token", token.uri(), "--create-key")
            if mirror_delay_s is not None:
                volume.set_mirror_delay_s(mirror_delay_s)
        try:
            if make and mount:
                volume.mount()
            yield volume
        finally:
            volume.remove()
