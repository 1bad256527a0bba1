"""The place of scripts/outage: a volume on two S3 servers, what people see, and what befalls them."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from mirrorfs.cli.progress import format_bytes
from mirrorfs.engine.upload_queue import MIRRORED_PREFIXES
from tests.support import s3_servers
from tests.support.mounted import Mounted, mounted_volume
from tests.support.s3_servers import S3Server

BUCKET = "practice"
PREFIX = "volume"
TOKEN = "pkcs11:token=practice"


class Failed(Exception):
    """Something is not as it must be; the message says what."""


class Place:
    """A mounted volume with stores A and B. Leave its `stack` to clean up."""

    def __init__(
        self, root: Path, stack: ExitStack, *, cache_bytes: int, mirror_delay_s: float, interval_s: float
    ) -> None:
        """interval_s: between two looks at the light."""
        self.root = root
        self.interval_s = interval_s
        self._started_s = time.monotonic()
        (root / "b").mkdir()
        (root / "volume").mkdir()
        self.servers: dict[str, S3Server] = {
            "A": stack.enter_context(s3_servers.moto_process()),
            "B": stack.enter_context(s3_servers.rclone_server(root / "b")),
        }
        # Both servers know the same credentials; the commands find them as boto3's standard chain does.
        os.environ.update(s3_servers.environment(self.servers["A"]))
        for server in self.servers.values():
            s3_servers.create_bucket(server, BUCKET)
        self._buckets = dict.fromkeys(self.servers, BUCKET)
        self.volume: Mounted = stack.enter_context(
            mounted_volume(root / "volume", mount=False, store_urls=self.urls, mirror_delay_s=mirror_delay_s)
        )
        config = self.volume.config
        lines = [
            f'cache_size = "{cache_bytes // 1024**2}MiB"' if line.startswith("cache_size") else line
            for line in config.read_text().splitlines()
        ]
        config.write_text("\n".join(lines) + "\n")
        self.volume.mount()

    @property
    def urls(self) -> dict[str, str]:
        """Where the stores are, by name."""
        return {
            name: f"s3://{self._buckets[name]}/{PREFIX}?endpoint={server.endpoint}&region=us-east-1"
            for name, server in self.servers.items()
        }

    # --- what a person sees ----------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        print(f"[{time.monotonic() - self._started_s:6.1f} s] {text}", flush=True)

    def command(self, *arguments: str, shown_lines: int = 20) -> tuple[int, str]:
        """Run a command and show it with what it says; returns exit code and output."""
        shown = " ".join(arguments).replace(str(self.root), "DIR")
        print(f"    $ mirrorfs {shown}", flush=True)
        outcome = self.volume.run(*arguments)
        said = outcome.stdout.replace(str(self.root), "DIR").splitlines()
        lines = [line for line in said if "% done" not in line]
        for line in lines[:shown_lines]:
            print(f"      {line}", flush=True)
        if len(lines) > shown_lines:
            print(f"      ... {len(lines) - shown_lines} lines more", flush=True)
        if outcome.returncode:
            print(f"      (exit code {outcome.returncode})", flush=True)
        return outcome.returncode, outcome.stdout

    def must(self, *arguments: str, shown_lines: int = 20) -> str:
        """The same for a command that has to succeed. Raises: Failed."""
        code, output = self.command(*arguments, shown_lines=shown_lines)
        if code:
            raise Failed(f"`mirrorfs {arguments[0]}` ended with exit code {code}")
        return output

    def show_light(self) -> dict[str, Any]:
        """One line of what `status` says; returns all of it."""
        status = self.volume.status()
        stores = ", ".join(
            f"{store['name']} {store['state']}, {format_bytes(store['pending_bytes'])} to go"
            for store in status["stores"]
        )
        reason = f" ({status['reason']})" if status["reason"] else ""
        self.say(f"light: {status['light']}{reason}; {stores}")
        return status

    def wait(self, what: str, condition: Callable[[dict[str, Any]], bool], *, within_s: float) -> float:
        """Show the light until something is so; returns the seconds it took. Raises: Failed."""
        started_s = time.monotonic()
        while not condition(self.show_light()):
            if time.monotonic() - started_s > within_s:
                raise Failed(f"in {within_s:.0f} s it did not come to this: {what}")
            time.sleep(self.interval_s)
        return time.monotonic() - started_s

    def restore(self, *names: str) -> Path:
        """Restore from these stores alone into a new directory."""
        target = self.root / f"restored-{len(list(self.root.glob('restored-*')))}"
        stores = [f"--store={self.urls[name]}" for name in names]
        self.must("restore", *stores, f"--token={TOKEN}", "--yes", str(target), shown_lines=8)
        return target

    def discard(self, target: Path) -> None:
        """Remove what was restored; its room is needed."""
        shutil.rmtree(target)
        target.mkdir()

    # --- what befalls the servers ----------------------------------------------------------------

    def keys(self, name: str) -> dict[str, int]:
        """Sizes of the volume's immutable objects on a server, by key."""
        found: dict[str, int] = {}
        with closing(s3_servers.connect(self.servers[name])) as client:
            for page in client.get_paginator("list_objects_v2").paginate(
                Bucket=self._buckets[name], Prefix=f"{PREFIX}/"
            ):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(f"{PREFIX}/")
                    if key.startswith(MIRRORED_PREFIXES):
                        found[key] = entry["Size"]
        return found

    def wipe(self, name: str) -> int:
        """Delete every object on a server, whatever it is; returns how many."""
        count = 0
        with closing(s3_servers.connect(self.servers[name])) as client:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=self._buckets[name]):
                for entry in page.get("Contents", []):
                    client.delete_object(Bucket=self._buckets[name], Key=entry["Key"])
                    count += 1
        return count

    def new_bucket(self, name: str) -> str:
        """Make an empty bucket on a server, for the store to go to; returns the store's new URL."""
        bucket = f"{self._buckets[name]}-new"
        s3_servers.create_bucket(self.servers[name], bucket)
        self._buckets[name] = bucket
        return self.urls[name]

    def harm(self, name: str, keys: list[str], draw: random.Random) -> dict[str, int]:
        """Damage objects on a server through its own interface; returns how many in which way."""
        done = dict.fromkeys(("flipped", "truncated", "deleted", "swapped"), 0)
        bucket = self._buckets[name]
        with closing(s3_servers.connect(self.servers[name])) as client:

            def read(key: str) -> bytes:
                data: bytes = client.get_object(Bucket=bucket, Key=f"{PREFIX}/{key}")["Body"].read()
                return data

            def write(key: str, data: bytes) -> None:
                client.put_object(Bucket=bucket, Key=f"{PREFIX}/{key}", Body=data)

            left = list(keys)
            while left:
                way = draw.choice([way for way in done if way != "swapped" or len(left) > 1])
                key = left.pop()
                data = read(key)
                if way == "flipped":
                    at = draw.randrange(len(data))
                    write(key, data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
                elif way == "truncated":
                    write(key, data[: draw.randrange(len(data))])
                elif way == "deleted":
                    client.delete_object(Bucket=bucket, Key=f"{PREFIX}/{key}")
                else:
                    other = left.pop()
                    theirs = read(other)
                    write(key, theirs)
                    write(other, data)
                    done[way] += 1
                done[way] += 1
        return done

    # --- the local disk ------------------------------------------------------------------------------

    def local_segments(self) -> set[str]:
        """Names of the segments that are whole on the local disk."""
        return {path.name for path in self.volume.local_segments()}

    def another_pc(self) -> Mounted:
        """A second PC with the same token and secrets, which has never seen the volume."""
        folder = self.root / "other-pc"
        (folder / "mnt").mkdir(parents=True)
        for name in ("config", "state"):
            (folder / name).mkdir(mode=0o700)
        homes = {f"MIRRORFS_{name.upper()}_HOME": str(folder / name) for name in ("config", "state")}
        return Mounted(
            folder,
            hsm=self.volume.hsm,
            token=self.volume.token,
            stores={},
            state_home=folder / "state",
            environment=self.volume.env | homes,
            mount_options=(),
        )
