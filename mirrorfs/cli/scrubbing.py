"""Scrubbing a volume whose engine runs in this process, and telling a client how it goes.

Messages:
- {"type": "progress", "place", "phase", "done", "total"}; phase is "looked at", "mended" or "sent"; total is
  0 if it is not known, and place null if all are meant;
- {"type": "bad", "place", "key", "fault", "detail"};
- for repair {"type": "mended", "place", "key", "why", "on_its_way"}; why is null of what is mended.
The last one holds the account of all places.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from typing import Final

import trio

from mirrorfs.cli.control_protocol import Message
from mirrorfs.engine.scrub import BadObject, Depth, Fault, ScrubReport
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.format.control import INSTANCE_KEY

STALL_S: Final = 90.0
"""How long a store may report an error, and take nothing, before repair does not wait for it any longer."""
WATCH_EVERY_S: Final = 1.0
MENDED_AT_ONCE: Final = 16
"""Copies; after each such step it is said how many are done."""
ON_ITS_WAY: Final = "the store has not taken it yet; it is sent as soon as it does."

Say = Callable[[Message], Awaitable[None]]


async def scrub(volume: MountedVolume, request: Message, say: Say) -> Message:
    """Carry out a request of `verify` or `repair`. Returns the fields of the last message.

    Raises: MirrorfsError: another one is under way, or the request is malformed.
    """
    depth = Depth(_share(request))
    mends = request.get("mend") is True
    places = request.get("places")
    if places is not None and not (
        isinstance(places, list) and all(place in volume.scrubber.places for place in places)
    ):
        known = ", ".join(volume.scrubber.places)
        raise UsageError(f"There is no such place to look at; there are: {known}.")
    if volume.scrubbing.locked() and not volume.daily_look.give_way():
        raise MirrorfsError("The volume is being verified or repaired already; wait for that to end.")
    sender, receiver = trio.open_memory_channel[Message](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, receiver, say)
        async with volume.scrubbing:
            if mends:
                await _reclaim(volume, sender)
            report = await volume.scrubber.run(
                depth,
                places=places,
                restart=request.get("restart") is True,
                on_bad=lambda bad: sender.send_nowait({"type": "bad", **asdict(bad)}),
                on_progress=lambda place, done, total: sender.send_nowait(
                    _progress("looked at", done, total, place=place)
                ),
            )
        if mends:  # which may take long: others may look meanwhile
            await _mend(volume, report, sender)
        sender.close()
    return {"places": [asdict(place) for place in report.places], "resumed": report.resumed}


def _share(request: Message) -> float:
    share = request.get("share", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UsageError("The part to look at closely is a percentage, from 0% to 100%.")
    return float(share)


def _progress(phase: str, done: int, total: int, *, place: str | None = None) -> Message:
    return {"type": "progress", "place": place, "phase": phase, "done": done, "total": total}


async def _pass_on(receiver: trio.MemoryReceiveChannel[Message], say: Say) -> None:
    async for message in receiver:
        await say(message)


async def _reclaim(volume: MountedVolume, sender: trio.MemorySendChannel[Message]) -> None:
    """Stores whose instance document is bad get it back first: nothing else is read or sent there before."""
    detail = "it does not show which store this is."
    for name, why in (await volume.mender.reclaim_stores()).items():
        bad = BadObject(name, INSTANCE_KEY, Fault.DAMAGED, detail)
        sender.send_nowait({"type": "bad", **asdict(bad)})
        sender.send_nowait({"type": "mended", "place": name, "key": INSTANCE_KEY, "why": why})


async def _mend(volume: MountedVolume, report: ScrubReport, sender: trio.MemorySendChannel[Message]) -> None:
    """Mend what was found now, and what earlier scrubs found."""
    known = {(bad.place, bad.key) for bad in report.bad}
    earlier = [bad for bad in volume.scrubber.faults.all() if (bad.place, bad.key) not in known]
    for bad in earlier:
        sender.send_nowait({"type": "bad", **asdict(bad)})
    bad_ones = [*report.bad, *earlier]
    results: dict[BadObject, str | None] = {}
    for at in range(0, len(bad_ones), MENDED_AT_ONCE):
        results |= await volume.mender.mend(bad_ones[at : at + MENDED_AT_ONCE])
        done = min(at + MENDED_AT_ONCE, len(bad_ones))
        sender.send_nowait(_progress("mended", done, len(bad_ones)))
    waiting = await _wait_sent(volume, results, sender)
    for bad, why in results.items():
        sender.send_nowait(
            {
                "type": "mended", "place": bad.place, "key": bad.key,
                "why": ON_ITS_WAY if bad in waiting else why, "on_its_way": bad in waiting,
            }
        )  # fmt: skip


async def _wait_sent(
    volume: MountedVolume, results: dict[BadObject, str | None], sender: trio.MemorySendChannel[Message]
) -> set[BadObject]:
    """Wait until the stores hold what is sent again, as long as they take anything.

    Returns: what has not got there yet. What cannot get there is not mended, as `results` says then.
    """
    instances = volume.instances
    waiting = {bad for bad, why in results.items() if why is None and bad.place in instances}
    total = len(waiting)

    async def wait(bad: BadObject) -> None:
        try:
            await volume.wait_held(bad.place, bad.key)
        except MirrorfsError as exc:
            results[bad] = str(exc)
        waiting.remove(bad)
        sender.send_nowait(_progress("sent", total - len(waiting), total))

    async def wait_at(place: str) -> None:
        mine = [bad for bad in waiting if bad.place == place]
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(_cancel_at_standstill, volume, place, instances[place], waiting, scope)
            async with trio.open_nursery() as waits:
                for bad in mine:
                    waits.start_soon(wait, bad)
            scope.cancel()
        if volume.instances.get(place) != instances[place]:
            for bad in waiting.intersection(mine):
                results[bad] = f"Store {place} is not one of the volume's any more."
                waiting.remove(bad)

    async with trio.open_nursery() as nursery:
        for place in {bad.place for bad in waiting}:
            nursery.start_soon(wait_at, place)
    return waiting


async def _cancel_at_standstill(
    volume: MountedVolume,
    place: str,
    instance: str,
    waiting: Collection[BadObject],
    scope: trio.CancelScope,
) -> None:
    """Cancel when a store is away that rotates, or had an error for STALL_S and took nothing meanwhile.

    Or when it leaves the volume, another one of its name coming or not.
    """
    began_ns, stalled_s = time.time_ns(), 0.0
    seen: tuple[int, int | None] | None = None
    while True:
        await trio.sleep(WATCH_EVERY_S)
        if volume.instances.get(place) != instance:
            scope.cancel()
        for state in volume.status().stores:
            if state.store != place:
                continue
            # What the store takes shows that these come nearer only where something older goes first.
            oldest_ns = state.oldest_pending_ns
            is_ahead = oldest_ns is not None and oldest_ns < began_ns and state.blocked is None
            now = sum(bad.place == place for bad in waiting), state.held_count if is_ahead else None
            if now != seen:
                seen, stalled_s = now, 0.0
            elif state.last_error is not None:
                stalled_s += WATCH_EVERY_S
            if state.away_since_ns is not None or stalled_s >= STALL_S:
                scope.cancel()
