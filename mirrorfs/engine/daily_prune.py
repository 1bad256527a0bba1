"""Pruning by itself: soon after the mount, then some times a day, by the policy that is in force."""

from __future__ import annotations

import logging
from typing import Final

import trio

from mirrorfs.core.retention import Policy, PolicyState
from mirrorfs.engine.policy_record import read_policy, write_policy
from mirrorfs.engine.pruner import Pruner
from mirrorfs.errors import FilesystemError, FormatError, MirrorfsError, StoreError
from mirrorfs.ports import Clock, Disk

logger = logging.getLogger(__name__)

FIRST_S: Final = 900.0
"""After the mount: what lies here goes out first, and people begin to work."""
EVERY_S: Final = 6 * 3600.0


class DailyPrune:
    """Runs the pruner of one mounted volume."""

    def __init__(self, pruner: Pruner, configured: Policy | None, disk: Disk, clock: Clock) -> None:
        """`configured`: what the configuration says; None: to keep everything."""
        self._pruner = pruner
        self.configured = configured
        self._disk = disk
        self._clock = clock

    def policy(self, *, confirmed: bool = False) -> PolicyState:
        """What is in force now, written down if it was not. Raises: DiskError, DiskFull."""
        before = self._read()
        now = self._after(before, confirmed=confirmed)
        if now != before:
            write_policy(self._disk, now)
        return now

    def next_policy(self, *, confirmed: bool = False) -> PolicyState:
        """The same, and nothing is written down."""
        return self._after(self._read(), confirmed=confirmed)

    def _after(self, before: PolicyState, *, confirmed: bool) -> PolicyState:
        return before.with_configured(self.configured, self._clock.now_ns(), confirmed=confirmed)

    def _read(self) -> PolicyState:
        try:
            return read_policy(self._disk)
        except FormatError as exc:
            logger.warning("%s", exc)
            return PolicyState()

    async def run(self) -> None:
        """Prune now and then, until cancelled. Raises: DiskError, DiskFull."""
        wait_s = FIRST_S
        self.policy()  # a delay counts from the mount on
        while True:
            await trio.sleep(wait_s)
            wait_s = EVERY_S
            policy = self.policy().in_force
            try:
                if policy is None:
                    await self._pruner.let_go()
                else:
                    await self._pruner.run(policy, attended=False)
            except (StoreError, FilesystemError) as exc:
                logger.info("nothing is pruned now: %s", exc)
            except MirrorfsError as exc:
                logger.warning("Pruning did not come to its end, and is tried again: %s", exc)
