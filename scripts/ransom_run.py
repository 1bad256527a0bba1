"""A practice's worst day: an encryptor runs over the whole volume, with the credentials of the PC at hand.

Both stores are S3 buckets (moto, in this process) with Object Lock in compliance mode, and the credentials
have the rights that docs/operations.md gives them. Documents are written to a mounted volume and sent. An
encryptor overwrites and renames every one, while the daemon is asked every 50 ms: "alarm seen after" is how
many files were done when it knew. The encrypted files are sent too, the daemon is killed, and the PC's state
deleted; then every object of both stores is to be deleted, overwritten and unlocked with the credentials.
A new PC restores the clean moment that the alarm named, once from each store alone (the rights to the other
are taken away), and contents, mode, owner, times and attributes of all files are compared with what there
was before.

Exit code 1: no alarm, an object is gone or hidden, or something did not come back.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mirrorfs.cli.control_protocol import ControlClient
from mirrorfs.fuse.mount_table import detach, find_mount
from scripts import demo_manifest
from scripts.sense_files import Maker
from scripts.sense_work import renamed
from tests.support.mounted import Mounted, mounted_volume
from tests.support.s3_policy import PolicyServer, policy_server
from tests.support.s3_servers import connect, environment
from tests.support.s3_thief import PREFIX, Thief, Versions, policy_of_the_pc, versions

BUCKETS = ("north", "south")
FOLDER_FILES = 500
LOCK_DAYS = 60
ASK_EVERY_S = 0.05
ALARM_WAIT_S = 60.0
"""After the encryptor's end."""
DIFFERENCES_SHOWN = 10
HARMLESS = {"put_object": 1 + 3}
"""What the thief may do: overwrite the lease, and put garbage under three names that nobody has."""
COLUMNS = (
    "requests of the attack", "granted", "objects as they were",
    "files restored", "differences", "restore took", "its exit code",
)  # fmt: skip
NEWER_COMMITS = 5
"""The exit code of a restore that says that what the thief planted may be commits which cannot be read."""


def url_of(server: PolicyServer, bucket: str) -> str:
    return f"s3://{bucket}/{PREFIX}?endpoint={server.endpoint}"


def command(volume: Mounted, *arguments: str) -> tuple[int, str]:
    """(exit code, what it said) of a command, however long it takes."""
    with volume.start(*arguments) as process:
        output, _ = process.communicate()
    return process.returncode, output


def must(volume: Mounted, *arguments: str) -> None:
    code, output = command(volume, *arguments)
    if code:
        raise SystemExit(f"mirrorfs {arguments[0]} ended with {code}: {output}")


def status(volume: Mounted) -> dict[str, Any]:
    """The daemon's own; the kernel is not asked to write back, as `mirrorfs status` does."""
    with ControlClient(volume.state / "control.sock", volume=volume.name) as client:
        client.send("status")
        found: Any = list(client.answers())[-1]["status"]
    return dict(found)


def write_practice(top: Path, count: int) -> int:
    """Write so many documents, in folders; returns how many bytes they are."""
    maker = Maker(count)
    size_bytes = 0
    for number in range(count):
        folder = top / f"patients {number // FOLDER_FILES:03}"
        if number % FOLDER_FILES == 0:
            folder.mkdir()
        name, data = maker.document(number)
        (folder / name).write_bytes(data)
        size_bytes += len(data)
    return size_bytes


def encrypt(top: Path, done: Any) -> None:
    """The encryptor, in a process of its own."""
    for folder in sorted(top.iterdir()):
        for _ in renamed(folder, 0):
            done.value += 1


class Ransom:
    """One run."""

    def __init__(
        self, folder: Path, server: PolicyServer, volume: Mounted, count: int, *, remount: bool
    ) -> None:
        self._folder = folder
        self._server = server
        self._volume = volume
        self._count = count
        self._remount = remount
        self._began_s = time.monotonic()
        self._before: demo_manifest.Manifest = {}
        self._rows: dict[str, list[str]] = {}
        """Of each store what the table says of it."""

    def run(self) -> bool:
        volume = self._volume
        volume.mount()
        size_bytes = write_practice(volume.mountpoint, self._count)
        must(volume, "flush", volume.name)
        self._before = demo_manifest.take(volume.mountpoint)
        self._say(f"{self._count:,} files written ({size_bytes / 2**20:,.0f} MiB) and sent to both stores")
        if self._remount:
            must(volume, "umount", volume.name)
            volume.mount()
            self._say("unmounted, and mounted again")
        if status(volume)["burst"] is not None:
            self._say("FALSE ALARM: nothing was encrypted yet")
            return False
        burst = self._run_encryptor()
        if burst is None:
            return False
        with contextlib.closing(connect(self._server)) as owner:
            kept = {bucket: versions(owner, bucket) for bucket in BUCKETS}
            self._lose_pc()
            good = all([self._attack(owner, bucket, kept[bucket]) for bucket in BUCKETS])
        good &= all([self._restore(bucket, burst["clean_position"]) for bucket in BUCKETS])
        self._table()
        return good

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", flush=True)

    def _table(self) -> None:
        print("\n| store | " + " | ".join(COLUMNS) + " |")
        print("| --- " * (1 + len(COLUMNS)) + "|")
        for bucket, row in self._rows.items():
            print(f"| {bucket} | " + " | ".join(row) + " |")
        print(flush=True)

    def _run_encryptor(self) -> dict[str, Any] | None:
        """Returns the burst as it is in the end."""
        context = multiprocessing.get_context("spawn")
        done = context.Value("q", 0)
        encryptor = context.Process(target=encrypt, args=(self._volume.mountpoint, done))
        encryptor.start()
        while done.value == 0 and encryptor.is_alive():
            time.sleep(0.001)
        began_s = time.monotonic()
        alarm_s, seen_after = self._wait_for_alarm(encryptor, done, began_s)
        encryptor.join()
        took_s = time.monotonic() - began_s
        if encryptor.exitcode or done.value != self._count:
            raise SystemExit(f"the encryptor ended with {encryptor.exitcode} after {done.value} files")
        must(self._volume, "flush", self._volume.name)
        self._say(f"an encryptor overwrote and renamed all in {took_s:.1f} s; that was sent too")
        found = self._volume.status()
        burst: dict[str, Any] | None = found["burst"]
        if burst is None or seen_after is None:
            self._say("NOT FOUND: no alarm")
            return None
        self._say(
            f"alarm seen after {seen_after:,} files, {alarm_s:.1f} s; {burst['files']:,} counted in the end,"
            f" the light is {found['light']}, the clean moment {burst['clean_position']}"
        )
        return burst

    def _wait_for_alarm(self, encryptor: Any, done: Any, began_s: float) -> tuple[float, int | None]:
        ended_s: float | None = None
        while ended_s is None or time.monotonic() < ended_s + ALARM_WAIT_S:
            if status(self._volume)["burst"] is not None:
                return time.monotonic() - began_s, done.value
            if ended_s is None and not encryptor.is_alive():
                ended_s = time.monotonic()
            time.sleep(ASK_EVERY_S)
        return 0.0, None

    def _lose_pc(self) -> None:
        volume = self._volume
        volume.kill()
        while find_mount(volume.mountpoint) is not None:
            detach(volume.mountpoint)
        shutil.rmtree(volume.state)
        volume.config.unlink()
        self._say("the daemon was killed, the PC's state and configuration deleted")

    def _attack(self, owner: Any, bucket: str, kept: Versions) -> bool:
        """Whether everything is there afterwards."""
        with contextlib.closing(connect(self._server.as_pc())) as client:
            thief = Thief(client, bucket)
            thief.run(kept)
        after = versions(owner, bucket)
        intact = sum(after.get(key) == found for key, found in kept.items())
        granted = ", ".join(f"{count} {call}" for call, count in thief.done.items())
        self._rows[bucket] = [f"{thief.tried:,}", granted, f"{intact:,} of {len(kept):,}"]
        self._say(f"store {bucket}: attacked")
        return intact == len(kept) and thief.done == HARMLESS

    def _restore(self, bucket: str, moment: str) -> bool:
        """Whether everything came back from this store alone."""
        self._server.policy = policy_of_the_pc(bucket)
        new_pc = Mounted(
            self._folder / f"new-pc-{bucket}",
            hsm=self._volume.hsm,
            token=self._volume.token,
            stores={},
            state_home=self._folder / f"new-pc-{bucket}" / "state",
            environment=self._volume.env
            | {
                f"MIRRORFS_{name.upper()}_HOME": str(self._folder / f"new-pc-{bucket}" / name)
                for name in ("config", "state")
            },
            mount_options=(),
        )
        target = self._folder / f"restored-{bucket}"
        began_s = time.monotonic()
        code, output = command(
            new_pc, "restore", f"--store={url_of(self._server, bucket)}", "--token", new_pc.token.uri(),
            "--at", moment, "--yes", str(target),
        )  # fmt: skip
        took_s = time.monotonic() - began_s
        if code not in (0, NEWER_COMMITS):
            self._say(f"store {bucket}: restore ended with {code}: {output}")
            return False
        found = demo_manifest.take(target)
        different = demo_manifest.differences(self._before, found)
        for line in different[:DIFFERENCES_SHOWN]:
            print(f"      {line}", flush=True)
        files = sum(entry.size_bytes > 0 for entry in found.values())
        self._rows[bucket] += [f"{files:,}", f"{len(different):,}", f"{took_s:.1f} s", str(code)]
        self._say(f"store {bucket}: the clean moment restored from it alone, and compared")
        shutil.rmtree(target)
        return not different and files == self._count


@contextlib.contextmanager
def volume_on(server: PolicyServer, folder: Path) -> Iterator[Mounted]:
    """A volume on two buckets with Object Lock, for which the PC has the credentials of the PC."""
    with contextlib.closing(connect(server)) as owner:
        for bucket in BUCKETS:
            owner.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    lock = f"lock=compliance&lock_days={LOCK_DAYS}"
    urls = {bucket: f"{url_of(server, bucket)}&{lock}" for bucket in BUCKETS}
    with mounted_volume(folder, store_urls=urls, make=False) as volume:
        volume.env |= environment(server.as_pc())
        volume.must(*volume.init_arguments, "--token", volume.token.uri(), "--create-key")
        yield volume


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000, help="to be encrypted (default: %(default)s)")
    parser.add_argument(
        "--remount",
        action="store_true",
        help="unmount and mount before the encryptor comes: the daemon then has not seen the files come",
    )
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mirrorfs-ransom-") as folder,
        policy_server(policy_of_the_pc(*BUCKETS)) as server,
        volume_on(server, Path(folder)) as volume,
    ):
        good = Ransom(Path(folder), server, volume, arguments.files, remount=arguments.remount).run()
    print("RANSOM PASSED" if good else "RANSOM FAILED", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
