"""Measure how long a new PC takes from `mirrorfs attach` to the first file of a large volume.

A volume with two directories and two buckets (rclone's S3 server on loopback) as stores is made once.
Then, each time with a fresh configuration and state, the real commands run: `attach`, `mount`, and a file is
read. The buckets are reached through a relay that counts, and delays each request by --latency-ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.attach_build import SMALL_BYTES, build, last_file
from scripts.attach_link import Relay, relay
from scripts.bench_daemon import cpu_s, peak_bytes
from tests.support.mounted import Mounted, mounted_volume
from tests.support.s3_servers import create_bucket, environment, rclone_server
from tests.support.softhsm import MODULE

MIB = 1024 * 1024
BUCKETS = ("c", "d")
DIRECTORIES = ("a", "b")


def say(sentence: str) -> None:
    """Print at once."""
    print(sentence, flush=True)


def directories_in(folder: Path) -> list[Path]:
    """The two stores in directories."""
    return [folder / f"store-{name}" for name in DIRECTORIES]


def bucket_url(name: str, endpoint: str) -> str:
    """Of one of the two stores in buckets."""
    return f"s3://store-{name}/practice?endpoint={endpoint}&region=us-east-1"


def new_machine(old: Mounted, folder: Path) -> Mounted:
    """A PC without anything of the volume, with its token and secrets."""
    for name in ("mnt", "config", "state"):
        (folder / name).mkdir(mode=0o700, parents=True)
    homes = {"MIRRORFS_CONFIG_HOME": str(folder / "config"), "MIRRORFS_STATE_HOME": str(folder / "state")}
    return Mounted(
        folder,
        hsm=old.hsm,
        token=old.token,
        stores={},
        state_home=folder / "state",
        environment=old.env | homes,
        mount_options=(),
    )


def pid_of(machine: Mounted) -> int:
    """The process that serves its mount."""
    answer = json.loads(machine.must("status", str(machine.mountpoint), "--json"))
    return int(answer["volumes"][0]["pid"])


def measure(
    title: str, old: Mounted, urls: Sequence[str], *, options: Sequence[str], path: Callable[[Path], Path],
    relays: Sequence[Relay], folder: Path,
) -> None:  # fmt: skip
    """One new PC: attach, mount, read; and what it took."""
    machine = new_machine(old, folder)
    before = [one.seen() for one in relays]
    try:
        start_s = time.monotonic()
        machine.must(
            "attach", machine.name, *[f"--store={url}" for url in urls],
            "--token", "pkcs11:token=practice", "--module", MODULE, "--yes",
        )  # fmt: skip
        attached_s = time.monotonic()
        machine.mount(*options)
        mounted_s = time.monotonic()
        assert len(path(machine.mountpoint).read_bytes()) == SMALL_BYTES
        read_s = time.monotonic()
        seen = [one.seen() for one in relays]
        pid = pid_of(machine)
        say(
            f"{title}: attach {attached_s - start_s:.1f} s, mount {mounted_s - attached_s:.1f} s,"
            f" first read {read_s - mounted_s:.2f} s, together {read_s - start_s:.1f} s;"
            f" of the process: processor {cpu_s([pid]):.1f} s, peak RSS {peak_bytes([pid]) / MIB:.0f} MiB"
        )
        for name, one, other in zip(BUCKETS, before, seen, strict=False):
            say(
                f"  bucket {name}: {other.requests - one.requests} requests,"
                f" {(other.answered_bytes - one.answered_bytes) / MIB:.0f} MiB answered"
            )
        machine.must("umount", str(machine.mountpoint), "--no-wait")
        machine.wait_gone()
        for line in machine.warnings():
            say(f"  {line}")
    finally:
        machine.remove()


def measure_all(
    volume: Mounted, endpoint: str, folder: Path, *, files: int, latencies_ms: Sequence[float]
) -> None:
    """Each kind of stores and of mount once."""
    directories = [f"file://{place}" for place in directories_in(folder.parent)]

    def path(root: Path) -> Path:
        return last_file(root, count=files)

    for kind, options in (("writable", ()), ("read-only", ("--read-only",))):
        measure(
            f"directories, {kind}", volume, directories,
            options=options, path=path, relays=[], folder=folder / f"{kind}-directories",
        )  # fmt: skip
        for latency_ms in latencies_ms:
            with contextlib.ExitStack() as lines:
                relays = [lines.enter_context(relay(endpoint, latency_s=latency_ms / 1000)) for _ in BUCKETS]
                urls = [bucket_url(name, one.endpoint) for name, one in zip(BUCKETS, relays, strict=True)]
                measure(
                    f"S3 at {latency_ms:.0f} ms, {kind}", volume, urls,
                    options=options, path=path, relays=relays, folder=folder / f"{kind}-{latency_ms:.0f}",
                )  # fmt: skip


@contextlib.contextmanager
def volume_with_stores(folder: Path) -> Iterator[tuple[Mounted, str]]:
    """A new volume that is not mounted, and the endpoint of its buckets."""
    for name in ("served", "volume"):
        (folder / name).mkdir()
    urls = {}
    for name, place in zip(DIRECTORIES, directories_in(folder), strict=True):
        place.mkdir()
        urls[name] = f"file://{place}"
    with rclone_server(folder / "served") as server:
        os.environ.update(environment(server))
        for name in BUCKETS:
            create_bucket(server, f"store-{name}")
            urls[name] = bucket_url(name, server.endpoint)
        with mounted_volume(folder / "volume", store_urls=urls, mount=False) as volume:
            yield volume, server.endpoint


def main() -> int:
    """Build and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N", help="in the checkpoint")
    parser.add_argument("--tail-files", type=int, default=10_000, metavar="N", help="made after it")
    parser.add_argument(
        "--latency-ms", type=float, nargs="*", default=[0.0, 50.0], metavar="MS", help="of the buckets"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="measure so many times")
    parser.add_argument("--folder", metavar="DIR", help="where to put everything; default: a temporary one")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(
            tempfile.TemporaryDirectory(prefix="mirrorfs-attach-", dir=arguments.folder)
        ))  # fmt: skip
        volume, endpoint = stack.enter_context(volume_with_stores(folder))
        start_s = time.monotonic()
        build(volume, files=arguments.files, tail_files=arguments.tail_files, say=say)
        say(
            f"{arguments.files} files and {arguments.tail_files} later ones are made and mirrored:"
            f" {time.monotonic() - start_s:.0f} s"
        )
        for number in range(arguments.rounds):
            measure_all(
                volume, endpoint, folder / f"new-{number}", files=arguments.files,
                latencies_ms=arguments.latency_ms,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
