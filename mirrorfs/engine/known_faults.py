"""The bad copies that scrubs found and that are not known to be whole again, across processes.

A copy is taken off the list when
- it was read and verified, or what was missing or had a wrong size is listed with the right one;
- a store turns out to hold it: it was sent anew, for that it is listed does not count (`Mirror.reconcile`)
  unless a listing shows such faults;
- the local file was replaced, or removed, whoever did that;
- nothing needs the object any more, or its store is none of the volume's, or a new one of the same name.
  Of a store that is being filled what it holds is not kept across processes.
What is on the list is no copy to count on: `is_bad`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Final

from mirrorfs.engine import scrub_state
from mirrorfs.engine.objects import LocalObjects
from mirrorfs.engine.scrub_state import LOCAL, BadObject, Fault
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.errors import DiskError
from mirrorfs.ports import Disk

logger = logging.getLogger(__name__)

STATE_PATH: Final = "faults"
"""Local file: JSON, {"version": 1, "found": [fields of BadObject]}."""
FOUND_MAX: Final = 10_000
"""So many are remembered; the rest is found again by the next scrub."""
SAVED_SHARE: Final = 64
"""Each time one part in so many has come on the list, or gone, it is written."""
SEEN_BY_SIZE: Final = frozenset({Fault.MISSING, Fault.SIZE})


class KnownFaults:
    """Of one mounted volume."""

    def __init__(self, disk: Disk, objects: LocalObjects) -> None:
        self._disk = disk
        self._objects = objects
        self._unsaved = 0
        self._found_unsaved = False
        self.on_change: Callable[[str], None] = lambda key: None
        """Hears the key of which a copy came on the list, or went."""
        self._bad = {(bad.place, bad.key): bad for bad in self._load()}

    def _load(self) -> list[BadObject]:
        for path in (STATE_PATH, scrub_state.STATE_PATH):  # earlier versions had the list in the latter
            try:
                file = self._disk.open(path)
            except FileNotFoundError:
                continue
            try:
                found = json.loads(file.read(offset=0, size_bytes=file.size()))
                return [scrub_state.bad_of(fields) for fields in found.get("found", ())]
            except (ValueError, LookupError, TypeError, AttributeError):
                logger.info("the list of bad copies cannot be read; the next scrub finds them again")
                return []
            finally:
                file.close()
        return []

    def all(self) -> list[BadObject]:
        """In the order of places and keys."""
        return [self._bad[where] for where in sorted(self._bad)]

    def counts(self) -> dict[str, int]:
        """How many there are, by place, of places that have any; quick."""
        return dict(Counter(place for place, _ in self._bad))

    def is_bad(self, place: str, key: str) -> bool:
        """Whether a copy is on the list."""
        return (place, key) in self._bad

    def is_hidden(self, place: str, key: str) -> bool:
        """Whether a copy is on the list for what a listing does not show."""
        bad = self._bad.get((place, key))
        return bad is not None and bad.fault not in SEEN_BY_SIZE

    # --- what happens --------------------------------------------------------------------------

    def found(self, bad: BadObject) -> None:
        """A copy was found to be bad; what no listing shows stays so, also when it is away for once."""
        known = self._bad.get((bad.place, bad.key))
        if known == bad or (self.is_hidden(bad.place, bad.key) and bad.fault in SEEN_BY_SIZE):
            return
        if len(self._bad) < FOUND_MAX or known is not None:
            self._bad[bad.place, bad.key] = bad
            self._unsaved += 1
            self._found_unsaved = True
            self.on_change(bad.key)
            self._save_now_and_then()

    def settle(self) -> None:
        """Have on the disk all that was found. Raises: DiskError."""
        if self._found_unsaved:
            self._write()

    def scrubbed(
        self, bad: Collection[BadObject], looked_at: Collection[str], *, is_held: Callable[[str, str], bool]
    ) -> None:
        """A scrub came to its end.

        Args:
            bad: all that it found.
            looked_at: places of which it listed everything.
            is_held: whether a store is known to hold an object; it was not looked for otherwise.
        Raises: DiskError: it is not remembered beyond this process.
        """
        now_bad = {(one.place, one.key) for one in bad}
        for (place, key), one in list(self._bad.items()):
            is_listed = place == LOCAL or (place in looked_at and is_held(place, key))
            seen_good = one.fault in SEEN_BY_SIZE and place in looked_at and is_listed
            if (place, key) not in now_bad and (seen_good or not self._objects.is_in_use(key)):
                self._take_off((place, key))
        self._write()

    def whole(self, place: str, key: str) -> None:
        """A copy is what it should be; or the object is to go."""
        self._take_off((place, key))
        self._save_now_and_then()

    def file_changed(self, path: str) -> None:
        """A local file is new, another one now, or gone."""
        self.whole(LOCAL, path.removeprefix(LOCAL_PREFIX))

    def held_changed(self, store: str, key: str, *, is_held: bool) -> None:
        """A store turned out to hold an object, or not to hold it after all."""
        if (store, key) in self._bad and (is_held or not self._objects.is_in_use(key)):
            self.whole(store, key)

    def gone(self, keys: Collection[str]) -> None:
        """Nothing needs these objects any more, and they are deleted."""
        deleted = frozenset(keys)
        self._keep(lambda place, key: key not in deleted)

    def keep_only(
        self, places: Collection[str], *, lacks: Callable[[str, str], bool] = lambda place, key: False
    ) -> None:
        """Those of other places were other stores', or are of stores that have left.

        `lacks`: whether another place is known, and not to hold an object: then what lies there counts.
        """
        self._keep(lambda place, key: place in places or lacks(place, key))

    def forget_place(self, place: str) -> None:
        """A store was removed, or has a new place."""
        self._keep(lambda known, key: known != place)

    def _keep(self, is_kept: Callable[[str, str], bool]) -> None:
        for where in [where for where in self._bad if not is_kept(*where)]:
            self._take_off(where)
        self._save_now_and_then()

    # --- the list ------------------------------------------------------------------------------

    def _take_off(self, where: tuple[str, str]) -> None:
        if self._bad.pop(where, None) is not None:
            self._unsaved += 1
            self.on_change(where[1])

    def _save_now_and_then(self) -> None:
        if not self._unsaved or self._unsaved * SAVED_SHARE < len(self._bad):
            return
        try:
            self._write()
        except DiskError as exc:
            # It is tried again; after a restart it may tell too much, until the copies are verified.
            logger.info("the list of bad copies could not be written: %s", exc)

    def _write(self) -> None:
        if self._unsaved:
            fields = [asdict(one) for one in self.all()]
            self._disk.write_whole(STATE_PATH, json.dumps({"version": 1, "found": fields}).encode())
            self._unsaved = 0
            self._found_unsaved = False
