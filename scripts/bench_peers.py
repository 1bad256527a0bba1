"""The encrypted peers of MirrorFS, each with its own defaults unless a comment says why not.

`honours_fsync` was seen with `strace -f -e fsync,fdatasync,sync_file_range,syncfs,msync` on the daemon
during 20 times write + fsync.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.bench_filesystems import PASSWORD, BenchError, Place, Served, run

QUEUE_DEADLINE_S = 300.0
QUEUE_POLL_S = 0.1


def first_line(*argv: str) -> str:
    """The first line that a program says of its version; some exit with 1 after it."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), "")


class Peer(Served):
    """An encrypted filesystem that keeps its ciphertext in one directory."""

    is_peer = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.cipher = place.local / "cipher"

    def make(self) -> None:
        self.cipher.mkdir()

    def stores(self) -> list[Path]:
        return [self.cipher]


class Gocryptfs(Peer):
    """gocryptfs; a cheap key derivation, which plays no part once it is mounted."""

    name = program = "gocryptfs"

    @classmethod
    def version(cls) -> str:
        return first_line("gocryptfs", "--version").split(";")[0]

    def make(self) -> None:
        super().make()
        run("gocryptfs", "-init", "-q", "-scryptn", "10", str(self.cipher), input_text=PASSWORD + "\n")

    def command(self) -> Sequence[str]:
        return ["gocryptfs", "-fg", "-q", str(self.cipher), str(self.root)]


class Securefs(Peer):
    """securefs."""

    name = program = "securefs"

    @classmethod
    def version(cls) -> str:
        # Debian's package says no version of itself.
        return "securefs " + first_line("dpkg-query", "-W", "-f", "${Version}", "securefs")

    def make(self) -> None:
        super().make()
        run("securefs", "create", "--pass", PASSWORD, str(self.cipher))

    def command(self) -> Sequence[str]:
        return ["securefs", "mount", "--pass", PASSWORD, str(self.cipher), str(self.root)]


class Cryfs(Peer):
    """CryFS. During fsyncs it makes no sync call at all."""

    name = program = "cryfs"
    honours_fsync = False

    @classmethod
    def version(cls) -> str:
        return first_line("cryfs", "--version")

    def environment(self) -> Mapping[str, str]:
        return {
            "CRYFS_FRONTEND": "noninteractive",
            "CRYFS_LOCAL_STATE_DIR": str(self.place.local / "state"),
            "CRYFS_NO_UPDATE_CHECK": "true",
        }

    def command(self) -> Sequence[str]:
        return ["cryfs", "-f", str(self.cipher), str(self.root)]


class Encfs(Peer):
    """EncFS with its standard configuration."""

    name = program = "encfs"

    @classmethod
    def version(cls) -> str:
        return first_line("encfs", "--version")

    def command(self) -> Sequence[str]:
        return ["encfs", "-f", "--standard", "--stdinpass", str(self.cipher), str(self.root)]


class Rclone(Peer):
    """rclone mount of a crypt remote over a directory. What is written lies in its cache, in the clear, and
    is encrypted in the background; an fsync makes no sync call."""

    name = program = "rclone"
    honours_fsync = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.cipher = place.remote / "cipher"
        self._config = place.local / "rclone.conf"
        self._socket = place.local / "rc"

    @classmethod
    def version(cls) -> str:
        return first_line("rclone", "version")

    def make(self) -> None:
        super().make()
        obscured = run("rclone", "obscure", "-", input_text=PASSWORD + "\n").strip()
        text = f"[secret]\ntype = crypt\nremote = {self.cipher}\npassword = {obscured}\n"
        with os.fdopen(os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)

    def command(self) -> Sequence[str]:
        # One second of write-back delay, not five: the benchmark waits for the queue after every workload.
        return [
            "rclone", "mount", "secret:", str(self.root), "--config", str(self._config),
            "--vfs-cache-mode", "full", "--vfs-write-back", "1s",
            "--cache-dir", str(self.place.local / "cache"),
            "--rc", "--rc-no-auth", "--rc-addr", f"unix://{self._socket}",
        ]  # fmt: skip

    def umount(self) -> None:
        super().umount()
        self._socket.unlink(missing_ok=True)

    def flush(self) -> None:
        """Return when its queue of uploads is empty."""
        deadline_s = time.monotonic() + QUEUE_DEADLINE_S
        while True:
            answer = run("rclone", "rc", "--unix-socket", str(self._socket), "vfs/stats")
            cache = json.loads(answer)["diskCache"]
            if not cache["uploadsInProgress"] and not cache["uploadsQueued"]:
                return
            if time.monotonic() > deadline_s:
                raise BenchError(f"rclone still has {cache['uploadsQueued']} files to upload")
            time.sleep(QUEUE_POLL_S)


class S3ql(Peer):
    """S3QL over a directory. What is written lies in its cache, in the clear, and is encrypted in the
    background; its fsync makes no sync call."""

    name, program = "s3ql", "mount.s3ql"
    honours_fsync = False
    unmount_command = ("umount.s3ql",)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.cipher = place.remote / "cipher"
        self._url = f"local://{self.cipher}"
        self._options = ("--cachedir", str(place.local / "cache"), "--authfile", str(place.local / "auth"))

    @classmethod
    def version(cls) -> str:
        return first_line("mount.s3ql", "--version")

    def make(self) -> None:
        super().make()
        text = f"[bench]\nstorage-url: {self._url}\nfs-passphrase: {PASSWORD}\n"
        with os.fdopen(
            os.open(self.place.local / "auth", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
        ) as file:
            file.write(text)
        run("mkfs.s3ql", *self._options, self._url, input_text=f"{PASSWORD}\n{PASSWORD}\n")

    def command(self) -> Sequence[str]:
        return ["mount.s3ql", "--fg", *self._options, self._url, str(self.root)]

    def flush(self) -> None:
        """Return when every cached block is uploaded."""
        run("s3qlctrl", "flushcache", str(self.root))


PEERS: tuple[type[Peer], ...] = (Gocryptfs, Securefs, Cryfs, Encfs, Rclone, S3ql)
