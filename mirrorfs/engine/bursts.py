"""The bursts that the sense found (core/sense.py), remembered across processes until a person clears them.

One small file in the state directory. It holds positions, times and counts: no names. As long as a burst is
open it pins history: whoever prunes must keep every moment from `pinned_position` on.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import trio

from mirrorfs.core.sense import Burst, Sense
from mirrorfs.errors import FormatError
from mirrorfs.ports import Clock, Disk, Offload

logger = logging.getLogger(__name__)

STATE_PATH: Final = "bursts"
KEPT_MAX: Final = 100
"""Cleared ones that are still remembered, for `log`."""
WRITE_EVERY_S: Final = 5.0
"""A burst that goes on is written again after so long."""


@dataclass(frozen=True, slots=True)
class KnownBurst:
    """A burst, and whether a person looked at it."""

    burst: Burst
    cleared_ns: int | None


def read_bursts(disk: Disk) -> list[KnownBurst]:
    """Those that are remembered, the oldest first. Raises: FormatError: the file is damaged."""
    try:
        file = disk.open(STATE_PATH)
    except FileNotFoundError:
        return []
    try:
        found = json.loads(file.read(offset=0, size_bytes=file.size()))
        if not isinstance(found, dict) or found.get("version") != 1:
            raise FormatError("The list of suspicious bursts is of another version.")
        return [_known(entry) for entry in found["bursts"]]
    except (ValueError, KeyError, TypeError) as exc:
        raise FormatError("The list of suspicious bursts is damaged.") from exc
    finally:
        file.close()


def pinned_position(bursts: list[KnownBurst]) -> int | None:
    """From here on history is to be kept whatever the policy says; None: nothing is pinned."""
    return min((known.burst.clean_position for known in bursts if known.cleared_ns is None), default=None)


def _known(entry: dict[str, Any]) -> KnownBurst:
    values = {field.name: entry[field.name] for field in fields(Burst)}
    cleared_ns = entry["cleared_ns"]
    for value in (*values.values(), 0 if cleared_ns is None else cleared_ns):
        if isinstance(value, bool) or not isinstance(value, int):
            raise FormatError("The list of suspicious bursts is damaged.")
    return KnownBurst(Burst(**values), cleared_ns)


class Bursts:
    """Keeps the bursts of one mounted volume."""

    def __init__(self, sense: Sense, disk: Disk, clock: Clock, offload: Offload) -> None:
        """Reads what is remembered; a burst that is open goes on."""
        self._sense = sense
        self._disk = disk
        self._clock = clock
        self._offload = offload
        self._closed: list[KnownBurst] = []
        self._changed = trio.Event()
        self._written = True
        self._writing = trio.Lock()
        self._told = False
        try:
            known = read_bursts(disk)
        except FormatError as exc:
            logger.warning("%s It is begun anew.", exc)
            known = []
        self._closed = [one for one in known if one.cleared_ns is not None]
        for one in known:
            if one.cleared_ns is None:
                sense.burst, self._told = one.burst, True
        sense.on_change = self._change

    @property
    def open(self) -> Burst | None:
        """The burst that nobody has cleared yet."""
        return self._sense.burst

    def _change(self) -> None:
        self._written = False
        self._changed.set()
        if not self._told:
            self._told = True
            logger.warning("Many files are being replaced by what looks encrypted; see `mirrorfs status`.")

    async def run(self) -> None:
        """Write down what changes, until cancelled. Raises: DiskError, DiskFull: call it again."""
        while True:
            if self._written:
                await self._changed.wait()
            self._changed = trio.Event()
            await self._write()
            await trio.sleep(WRITE_EVERY_S)

    async def clear(self) -> Burst | None:
        """A person looked at the burst: history is not pinned any more. Returns it; None: none was open.

        Raises: DiskError, DiskFull: it could not be written down; the burst stays open.
        """
        burst = self._sense.burst
        if burst is None:
            return None
        self._closed = [*self._closed, KnownBurst(burst, self._clock.now_ns())][-KEPT_MAX:]
        self._sense.clear()
        self._told = False
        try:
            await self._write()
        except BaseException:
            if self._sense.burst is None:
                self._sense.burst, self._told = burst, True
            self._closed.pop()
            raise
        return burst

    async def _write(self) -> None:
        async with self._writing:
            data, self._written = self._encoded(), True
            try:
                await self._offload.run(lambda: self._disk.write_whole(STATE_PATH, data))
            except BaseException:
                self._written = False
                raise

    def close(self) -> None:
        """Write down what is not yet. Raises: DiskError, DiskFull."""
        if not self._written:
            self._disk.write_whole(STATE_PATH, self._encoded())
            self._written = True

    def _encoded(self) -> bytes:
        known = [*self._closed]
        if self._sense.burst is not None:
            known.append(KnownBurst(self._sense.burst, None))
        entries = [{**asdict(one.burst), "cleared_ns": one.cleared_ns} for one in known]
        return json.dumps({"version": 1, "bursts": entries}).encode()
