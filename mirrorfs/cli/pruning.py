"""Pruning a volume whose engine runs in this process, and telling a client how it goes.

Messages: {"type": "progress", "what", "done", "total"}; the last one has the policy and the report.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import trio

from mirrorfs.cli.control_protocol import Message
from mirrorfs.core.retention import Policy
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import UsageError

Say = Callable[[Message], Awaitable[None]]
NO_POLICY = (
    "The volume keeps everything: its configuration has no [retention]; docs/operations.md shows one to begin"
    " with."
)


async def prune(volume: MountedVolume, request: Message, say: Say, *, confirmed: bool = False) -> Message:
    """Carry out a request. Returns the fields of the last message.

    Args:
        confirmed: a person unlocked the volume for it: a policy that keeps less counts at once.
    Raises: UsageError: there is no policy, or not the client's. MirrorfsError: as of Pruner.run.
    """
    daily = volume.daily_prune
    if request.get("configured") != (None if daily.configured is None else asdict(daily.configured)):
        raise UsageError(
            "The volume was mounted with another [retention] than its configuration has now: unmount it, and"
            " mount it again."
        )
    dry = request.get("dry_run") is True
    state = daily.next_policy(confirmed=confirmed) if dry else daily.policy(confirmed=confirmed)
    policy = state.in_force or (state.wanted if dry else None)
    if policy is None:
        if state.wanted is not None:
            raise UsageError(
                "The policy is not in force yet: one that keeps less than before waits for 30 days. --dry-run"
                " says what it would do. To have it at once, unmount the volume and run `mirrorfs prune"
                " --confirm`."
            )
        raise UsageError(NO_POLICY)
    report = await _run(volume, policy, say, dry=dry)
    return {
        "dry_run": dry,
        "policy": asdict(policy),
        "in_force": state.in_force is not None,
        "waits": None if state.wanted is None else asdict(state.wanted),
        "waits_since_ns": state.since_ns,
        "report": asdict(report),
    }


async def _run(volume: MountedVolume, policy: Policy, say: Say, *, dry: bool) -> PruneReport:
    if dry:
        return await volume.pruner.account(policy)
    sender, receiver = trio.open_memory_channel[Message](math.inf)
    report: PruneReport | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, receiver, say)
        report = await volume.pruner.run(
            policy,
            on_progress=lambda what, done, total: sender.send_nowait(
                {"type": "progress", "what": what, "done": done, "total": total}
            ),
        )
        sender.close()
    return report


async def _pass_on(receiver: trio.MemoryReceiveChannel[Message], say: Say) -> None:
    async for message in receiver:
        await say(message)
