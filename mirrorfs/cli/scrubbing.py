"""Scrubbing a volume whose engine runs in this process, and telling a client how it goes.

Messages: {"type": "progress", "place", "done", "total"}; {"type": "bad", "place", "key", "fault", "detail"};
for repair {"type": "mended", "place", "key", "why"}, where why is null of what is mended. The last one
holds the account of all places.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final

import trio

from mirrorfs.cli.control_protocol import Message
from mirrorfs.engine.scrub import BadObject, Depth, Fault, ScrubReport
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.format.control import INSTANCE_KEY

SEND_WITHIN_S: Final = 90.0
"""How long repair waits for the stores to take what is sent again."""

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
    async with volume.scrubbing:
        sender, receiver = trio.open_memory_channel[Message](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, receiver, say)
            if mends:
                await _reclaim(volume, sender)
            report = await volume.scrubber.run(
                depth,
                places=places,
                restart=request.get("restart") is True,
                on_bad=lambda bad: sender.send_nowait({"type": "bad", **asdict(bad)}),
                on_progress=lambda place, done, total: sender.send_nowait(
                    {"type": "progress", "place": place, "done": done, "total": total}
                ),
            )
            if mends:
                await _mend(volume, report, sender)
            sender.close()
    return {"places": [asdict(place) for place in report.places], "resumed": report.resumed}


def _share(request: Message) -> float:
    share = request.get("share", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UsageError("The part to look at closely is a percentage, from 0% to 100%.")
    return float(share)


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
    results = await volume.mender.mend([*report.bad, *earlier])
    await _wait_sent(volume, results)
    for bad, why in results.items():
        sender.send_nowait({"type": "mended", "place": bad.place, "key": bad.key, "why": why})


async def _wait_sent(volume: MountedVolume, results: dict[BadObject, str | None]) -> None:
    """Wait until the stores hold what is sent again; what does not get there in time is not mended."""

    async def wait(bad: BadObject) -> None:
        try:
            await volume.wait_held(bad.place, bad.key)
        except MirrorfsError as exc:
            results[bad] = str(exc)
            return
        results[bad] = None

    waiting = [bad for bad, why in results.items() if why is None and bad.place in volume.instances]
    for bad in waiting:
        results[bad] = "it is on its way; the store has not taken it yet."
    with trio.move_on_after(SEND_WITHIN_S):
        async with trio.open_nursery() as nursery:
            for bad in waiting:
                nursery.start_soon(wait, bad)
