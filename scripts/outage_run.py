"""Two S3 servers behind a mounted volume are stopped, wiped and damaged; nothing is lost, and it is shown.

    scripts/outage [--size 2GiB] [--corrupt 30] [--refreshes 10] [--seed 1]

A is moto's server, B is `rclone serve s3`. Each step prints what a person sees and PASSED or FAILED:

- outage: B is stopped for the whole of the load, then started: it catches up by itself.
- wipe: everything on A is deleted, then `mirrorfs store replace` with a new, empty bucket: it is filled from
  the cache and from B.
- damage: objects on A, and others on B, are flipped, truncated, deleted and swapped: a restore brings
  everything back all the same, `verify --deep` names each, `repair` mends them.
- follower: how long a second PC takes to show what the first has uploaded.

The exit code is 0 if all passed, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mirrorfs.cli.progress import format_bytes
from mirrorfs.core.sizes import parse_size
from mirrorfs.engine.cache import CACHE_SIZE_MIN
from mirrorfs.errors import FormatError
from scripts import outage_load
from scripts.outage_load import Load
from scripts.outage_place import Failed, Place

CACHE_SHARE = 8
"""The cache holds one part in so many of the load: most of it is then on the stores alone."""
LARGE_BYTES = 512 * 1024 * 1024
SMALL_DELAY_S = 0.5
"""A small load takes less than the usual mirror_delay: it would be in one segment or two."""
WITHIN_S = 3600.0
SHRINK_WITHIN_S = 90.0
SHOWN_EVERY_S = 15.0
DIFFERENCES_SHOWN = 10
REFRESH_MAX_S = 15.0
USUAL_OUTCOMES = (Failed, AssertionError, OSError)


class Outage:
    """One run."""

    def __init__(self, place: Place, arguments: argparse.Namespace) -> None:
        self._place = place
        self._volume = place.volume
        self._size_bytes: int = arguments.size
        self._corrupt_count: int = arguments.corrupt
        self._refresh_count: int = arguments.refreshes
        self._seed: int = arguments.seed
        self._load = Load(self._volume.mountpoint, seed=arguments.seed)

    def run(self) -> bool:
        """All steps; returns whether all passed. One that fails ends the run: the others build on it."""
        steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("outage", self._outage),
            ("wipe", self._wipe),
            ("damage", self._damage),
            ("follower", self._follower),
        )
        for name, step in steps:
            print(f"== {name}", flush=True)
            try:
                outcome = step()
            except USUAL_OUTCOMES as exc:
                print(f"FAILED {name}: {exc}", flush=True)
                return False
            print(f"PASSED {name}: {outcome}", flush=True)
        return True

    # --- B is away during the load -----------------------------------------------------------------

    def _outage(self) -> str:
        place = self._place
        place.servers["B"].stop()
        place.say("Stopped server B. The load begins.")
        started_s = time.monotonic()
        shown_s = [started_s]

        def show() -> None:
            if time.monotonic() - shown_s[0] > SHOWN_EVERY_S:
                place.show_light()
                shown_s[0] = time.monotonic()

        self._load.write(self._size_bytes, on_round=show)
        taken_s = time.monotonic() - started_s
        place.say(
            f"Wrote {len(self._load.hashes):,} files, {format_bytes(self._load.size_bytes)}, in"
            f" {taken_s:.0f} s, each with fsync; no call failed."
        )
        status = place.show_light()
        place.must("status", self._volume.name)
        if status["light"] != "at-risk" or "B" not in (status["reason"] or ""):
            raise Failed(f"with B away the light is {status['light']}: {status['reason']}")
        lacking = next(store for store in status["stores"] if store["name"] == "B")
        if lacking["pending_bytes"] < self._load.size_bytes // 4:
            raise Failed("hardly anything waits for B")
        place.servers["B"].start()
        place.say("Started server B. Nothing else is done.")
        taken_s = place.wait("protected", lambda now: now["light"] == "protected", within_s=WITHIN_S)
        rate = format_bytes(int(lacking["pending_bytes"] / max(taken_s, 1)))
        place.say(f"B caught up by itself in {taken_s:.0f} s, {rate} per second.")
        self._compare("B")
        return f"B was away for all of {format_bytes(self._load.size_bytes)} and has all of it."

    # --- A loses everything --------------------------------------------------------------------------

    def _wipe(self) -> str:
        place = self._place
        self._wait_for_eviction()
        held = {key.removeprefix("segments/") for key in place.keys("B") if key.startswith("segments/")}
        local = place.local_segments()
        place.say(f"{len(held - local)} of {len(held)} segments are no longer on the local disk.")
        place.say(f"Deleted all {place.wipe('A')} objects on server A.")
        if self._size_bytes >= LARGE_BYTES:
            # It takes up to a minute to be noticed: too long for a quick run.
            place.wait(
                "at risk, A missing",
                lambda now: now["light"] == "at-risk" and now["stores"][0]["state"] == "missing",
                within_s=WITHIN_S,
            )
        replace = ("store", "replace", self._volume.name, "A", place.new_bucket("A"))
        code, _ = place.command(*replace)
        if code:
            place.say("Not while it is mounted: unmounting for it.")
            place.must("umount", self._volume.name, "--no-wait")
            place.must(*replace)
            place.must("mount", self._volume.name, str(self._volume.mountpoint))
        taken_s = place.wait("protected", lambda now: now["light"] == "protected", within_s=WITHIN_S)
        place.say(f"A was filled while the volume was mounted, in {taken_s:.0f} s.")
        self._compare("A")
        return f"A came back from nothing, {len(held - local)} of {len(held)} segments of it from B."

    def _wait_for_eviction(self) -> None:
        """Until the cache has given up what it may."""
        end_s = time.monotonic() + SHRINK_WITHIN_S
        before = self._place.local_segments()
        while time.monotonic() < end_s:
            time.sleep(2 * self._place.interval_s)
            now = self._place.local_segments()
            if now == before:
                return
            before = now

    # --- both rot ------------------------------------------------------------------------------------

    def _damage(self) -> str:
        place, count = self._place, self._corrupt_count
        draw = random.Random(self._seed)
        common = sorted(place.keys("A").keys() & place.keys("B").keys())
        if len(common) < 2 * count:
            raise Failed(f"there are only {len(common)} objects to damage")
        chosen = draw.sample(common, 2 * count)
        expected = set()
        for name, keys in (("A", chosen[:count]), ("B", chosen[count:])):
            done = place.harm(name, keys, draw)
            place.say(f"On {name}: " + ", ".join(f"{number} {way}" for way, number in done.items()) + ".")
            expected |= {(name, key) for key in keys}
        self._compare("A", "B")
        code, output = place.command("verify", self._volume.name, "--deep", "--json", shown_lines=0)
        if "{\n" not in output:
            raise Failed(f"verify says: {output.strip()}")
        report = json.loads(output[output.index("{\n") :])
        found = {(bad["place"], bad["key"]) for bad in report["bad"]}
        for where, key in sorted(expected - found)[:DIFFERENCES_SHOWN]:
            print(f"      not named: {where} {key}", flush=True)
        for where, key in sorted(found - expected)[:DIFFERENCES_SHOWN]:
            print(f"      named, but not damaged here: {where} {key}", flush=True)
        if found != expected or code != 5:
            raise Failed(
                f"verify names {len(found & expected)} of {len(expected)}, and {len(found - expected)} others"
            )
        place.say(f"verify --deep named all {len(found)} damaged copies and no other.")
        place.must("repair", self._volume.name, shown_lines=6)
        place.must("verify", self._volume.name, "--deep")
        return f"{len(expected)} damaged copies were restored around, named, and mended."

    def _compare(self, *names: str) -> None:
        """Restore from these stores alone and compare with what was written. Raises: Failed."""
        target = self._place.restore(*names)
        found = outage_load.differences(target, self._load.hashes)
        for line in found[:DIFFERENCES_SHOWN]:
            print(f"      {line}", flush=True)
        stores = " and ".join(names) + (" together" if len(names) > 1 else " alone")
        if found:
            raise Failed(f"what came back from {stores} differs in {len(found)} files")
        self._place.discard(target)
        self._place.say(f"Restored from {stores}: {len(self._load.hashes):,} files, all identical.")

    # --- a second PC ---------------------------------------------------------------------------------

    def _follower(self) -> str:
        place = self._place
        other = place.another_pc()
        stores = [f"--store={url}" for url in place.urls.values()]
        started_s = time.monotonic()
        try:
            other.must("attach", other.name, *stores, "--yes")
            attached_s = time.monotonic() - started_s
            other.must("mount", other.name, str(other.mountpoint), "--read-only")
            mounted_s = time.monotonic() - started_s
            name = min(self._load.hashes)
            (other.mountpoint / name).read_bytes()
            read_s = time.monotonic() - started_s
            place.say(
                f"A second PC: attached after {attached_s:.1f} s, mounted after {mounted_s:.1f} s,"
                f" first file read after {read_s:.1f} s."
            )
            delays = [self._refresh(other.mountpoint, number) for number in range(self._refresh_count)]
        finally:
            other.remove()
        place.say("Delays: " + ", ".join(f"{delay_s:.1f}" for delay_s in delays) + " s.")
        mean_s, max_s = sum(delays) / len(delays), max(delays)
        if max_s > REFRESH_MAX_S:
            raise Failed(f"the follower took {max_s:.1f} s")
        return (
            f"visible on the second PC {mean_s:.1f} s after the upload on the average, {max_s:.1f} s at most."
        )

    def _refresh(self, follower: Path, number: int) -> float:
        """Seconds from the end of an upload until the follower shows it."""
        name = f"new {number}"
        (self._volume.mountpoint / name).write_bytes(b"%d" % number)
        self._volume.flush()
        started_s = time.monotonic()
        while True:
            try:
                seen = (follower / name).read_bytes()
                break
            except FileNotFoundError:
                if time.monotonic() - started_s > 4 * REFRESH_MAX_S:
                    raise Failed("the follower shows nothing new") from None
                time.sleep(0.05)
        if seen != b"%d" % number:
            raise Failed("the follower shows other bytes")
        return time.monotonic() - started_s


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except FormatError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def main() -> int:
    """Run it in a temporary directory and clean up."""
    parser = argparse.ArgumentParser(prog="scripts/outage", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=_size, default="2GiB", metavar="SIZE", help="of the load (2GiB)")
    parser.add_argument("--corrupt", type=int, default=30, metavar="N", help="objects on each store (30)")
    parser.add_argument("--refreshes", type=int, default=10, metavar="N", help="of the follower (10)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the load and of the damage")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mirrorfs-outage-") as folder, ExitStack() as stack:
        cache_bytes = max(CACHE_SIZE_MIN, arguments.size // CACHE_SHARE)
        delay_s, interval_s = (10.0, 5.0) if arguments.size >= LARGE_BYTES else (SMALL_DELAY_S, 1.0)
        place = Place(
            Path(folder), stack, cache_bytes=cache_bytes, mirror_delay_s=delay_s, interval_s=interval_s
        )
        passed = Outage(place, arguments).run()
        if not passed:
            print(place.volume.log_text()[-4000:], flush=True)
    print("PASSED" if passed else "FAILED", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
