"""The demo: save a real tree, look for plaintext, lose the PC, restore from each store alone, compare.

    scripts/demo [--s3] [--quick] [--files N] [--keep]

Ends with one line, DEMO PASSED or DEMO FAILED, and exit code 0 or 1. Needs what scripts/setup.sh installs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import demo_leaks, demo_manifest, demo_place, demo_tree
from scripts.demo_manifest import Manifest
from scripts.demo_place import VOLUME, DemoFailed, Place, Store
from scripts.demo_tree import Saved

CATCH_UP_DEADLINE_S = 300.0
STATUS_INTERVAL_S = 4.0
DIFFERENCES_SHOWN = 10
FINDS_SHOWN = 5


class Demo:
    """One run."""

    def __init__(self, place: Place, sizes: demo_tree.Sizes) -> None:
        self._place = place
        self._sizes = sizes
        self._started_s = time.monotonic()
        self._names = 0

    def run(self) -> str:
        """All stages; returns the last line. Raises: DemoFailed."""
        place = self._place
        self._make_volume()
        saved = self._save()
        demo_place.check_memory_is_private(place.status()["pid"])
        self._say("The daemon writes no core dump, and its memory is closed to the user's other programs.")
        mounted_copy = place.root / "state-while-mounted"
        place.copy_state(mounted_copy)
        self._catch_up()
        manifest = self._take_manifest(saved)
        place.run("umount", VOLUME)
        self._say("Unmounted: both stores hold everything.")
        self._look_for_plaintext(saved, mounted_copy)
        place.forget()
        self._say("Deleted the local state and the configuration: this PC is lost. Token and stores remain.")
        for number, store in enumerate(place.stores):
            self._restore(store, place.stores[1 - number], manifest)
        one, other = place.stores
        return (
            f"{self._names:,} files came back identical from store {one.name} alone"
            f" and from store {other.name} alone."
        )

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started_s:5.1f} s] {text}", flush=True)

    # --- stages --------------------------------------------------------------------------------

    def _make_volume(self) -> None:
        place = self._place
        self._say(
            "Made a token with SoftHSM2: a stand-in for a hardware token, in software, for evaluation only:"
            " whoever copies its files needs only PIN and password."
        )
        kind = "S3 servers on loopback (rclone)" if place.stores[0].server is not None else "directories"
        self._say(f"Made two stores, both {kind}.")
        stores = [part for store in place.stores for part in ("--store", f"{store.name}={store.url}")]
        place.run("init", VOLUME, *stores, "--token", place.token, "--create-key", secrets=True)
        self._say("Made the volume.")
        place.run("mount", VOLUME, str(place.mountpoint), secrets=True)
        self._say("Mounted it.")

    def _save(self) -> Saved:
        saver = demo_tree.Saver(self._place.mountpoint, self._sizes, is_root=os.geteuid() == 0)
        self._say(f"Saved {saver.save_sources():,} source files.")
        self._say(f"Saved {saver.save_images():,} DICOM images.")
        self._say(f"Saved {saver.save_letters():,} scanned letters.")
        self._say(f"Changed an SQLite database in place in {saver.change_database():,} durable transactions.")
        self._say(f"Saved a file of {saver.save_large() // demo_tree.MIB:,} MiB.")
        saver.save_oddities()
        self._say(
            "Saved links, pipes, attributes, modes, holes and names of every kind;"
            f" {saver.saved.size_bytes // demo_tree.MIB:,} MiB in all."
        )
        return saver.saved

    def _catch_up(self) -> None:
        deadline_s = time.monotonic() + CATCH_UP_DEADLINE_S
        while True:
            self._place.run("status", VOLUME)
            volume = self._place.status()
            if not volume["mounted"]:
                raise DemoFailed(f"the volume is not mounted any more: {volume['reason']}")
            if volume["light"] == "protected":
                break
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"the stores have not caught up in {CATCH_UP_DEADLINE_S:.0f} s")
            time.sleep(STATUS_INTERVAL_S)
        self._say("Both stores have caught up.")

    def _take_manifest(self, saved: Saved) -> Manifest:
        """What the mounted tree is; it must be what was written."""
        place = self._place
        manifest = demo_manifest.take(place.mountpoint)
        for path, content in saved.hashes.items():
            if path not in manifest or manifest[path].content != content:
                raise DemoFailed(f"the mounted tree does not show what was written to {os.fsdecode(path)!r}")
        self._names = sum(entry.kind != stat.S_IFDIR for entry in manifest.values())
        images = demo_tree.count_dicom_patients(place.mountpoint / demo_tree.IMAGE_FOLDER)
        if images != self._sizes.images:
            raise DemoFailed(f"only {images} of {self._sizes.images} images can be read as DICOM")
        self._say(
            f"Noted content, mode, owner, times, links and attributes of {self._names:,} files"
            f" and {len(manifest) - self._names:,} directories."
        )
        return manifest

    def _look_for_plaintext(self, saved: Saved, mounted_copy: Path) -> None:
        place = self._place
        sample = next(path for path in place.stores[0].directory.rglob("*") if path.is_file())
        innocent = sample.read_bytes()[: 1024 * 1024]
        for needles in (saved.everything, saved.documents):
            if not demo_leaks.proves_itself(needles, innocent):
                raise DemoFailed("the search for plaintext does not find what was planted on purpose")
        search = demo_leaks.Search(saved.everything)
        in_log = demo_leaks.Search(saved.documents)
        for label, state in (("state while mounted", mounted_copy), ("state", place.state)):
            logs = sorted(state.glob(f"{place.log.name}*"))
            if not logs:
                raise DemoFailed("the daemon's log is not where it should be")
            search.tree(state, label=label, leave_out=logs)
            for log in logs:
                in_log.file(log, label=f"{label}, log")
        for store in place.stores:
            search.tree(store.directory, label=f"store {store.name}")
        finds = search.result.finds + in_log.result.finds
        for find in finds[:FINDS_SHOWN]:
            print(f"      {find.where}: {find.what}", flush=True)
        if finds:
            raise DemoFailed(f"plaintext was found in {len(finds)} places")
        if search.result.size_bytes < saved.size_bytes:
            raise DemoFailed("the stores hold less than was saved, so that the search proves nothing")
        self._say(
            f"Searched {search.result.size_bytes // demo_tree.MIB:,} MiB of state and stores, and the log,"
            f" for {len(saved.everything.names):,} names and {len(saved.everything.runs):,} pieces of"
            " contents: none is there. (Planted ones were found.)"
        )

    def _restore(self, store: Store, other: Store, manifest: Manifest) -> None:
        place = self._place
        target = place.root / f"restored-from-{store.name}"
        with other.away():
            place.run(
                "restore", "--store", store.url, "--token", place.token, "--yes", str(target), secrets=True
            )
        found = demo_manifest.differences(manifest, demo_manifest.take(target))
        for line in found[:DIFFERENCES_SHOWN]:
            print(f"      {line}", flush=True)
        if found:
            raise DemoFailed(f"what came back from store {store.name} differs in {len(found)} points")
        demo_place.remove_tree(target)
        self._say(f"Restored from store {store.name} alone, with store {other.name} gone: identical.")


# --- the frame ---------------------------------------------------------------------------------------


def main() -> int:
    """Run the demo in a temporary directory and clean up."""
    arguments = _arguments()
    sizes = demo_tree.QUICK if arguments.quick else demo_tree.FULL
    if arguments.files is not None:
        sizes = replace(sizes, sources=arguments.files)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    demo_place.leave_the_group_of_root()
    root = Path(tempfile.mkdtemp(prefix="mirrorfs-demo-"))
    outcome: str | None = None
    reason = "interrupted"
    try:
        with ExitStack() as stack:
            # Runs first, before anything is taken down: a second Ctrl-C must not leave a mount behind.
            place = Place(root, stack, s3=arguments.s3)
            stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
            outcome = Demo(place, sizes).run()
    except DemoFailed as error:
        reason = str(error)
    except (OSError, subprocess.SubprocessError, sqlite3.Error, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        pass
    finally:
        if arguments.keep:
            print(f"Everything is kept in {root}", flush=True)
        elif demo_place.is_mounted(root / "mountpoint"):
            print(f"The volume is still mounted; {root} is kept", flush=True)
        else:
            demo_place.remove_tree(root)
    print(f"DEMO PASSED: {outcome}" if outcome is not None else f"DEMO FAILED: {reason}.", flush=True)
    return 0 if outcome is not None else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Save a real tree, lose the PC, restore it from each store alone."
    )
    parser.add_argument("--s3", action="store_true", help="stores are two S3 servers on loopback")
    parser.add_argument("--quick", action="store_true", help="save less")
    parser.add_argument("--files", type=int, metavar="N", help="save at most N source files")
    parser.add_argument("--keep", action="store_true", help="keep the stores and all else for a look at them")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
