"""Pruning stores from a machine that writes nothing to the volume, and does not obey the PC that does.

    invariant  Nothing that a moment needs which this machine keeps by its own policy, clock and memory is
               deleted, whatever the log says; and nothing that the log does not condemn.

The PC compacts and condemns. Here it is reckoned anew what is kept: `base` is a moment whose position was
seen in the stores at least `every_moment` ago, and that replay from an earlier one confirms
(moment_check.py); the moments before are those that were seen once and that the policy still reaches, and the
snapshots, for 30 days after they were deleted. A condemned segment goes when it was so for GRACE_NS, is no
part of the log from the base on, and each frame in it that something kept refers to was read in its new place
and is the same there (condemned_check.py). What goes is first written down in a signed manifest; a run that
is cut short between the two is ended by the next. The first run deletes nothing: what it finds it can only
trust.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, closing
from datetime import tzinfo
from typing import Final

from mirrorfs.core.compaction import Kept
from mirrorfs.core.retention import (
    DAY_NS,
    POLICY_DELAY_NS,
    STEP_DAYS_MAX,
    Policy,
    kept_moments,
    wanted_times,
)
from mirrorfs.engine.condemned_check import CondemnedCheck
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.moment_check import MomentCheck
from mirrorfs.engine.policy_record import read_policy, write_policy
from mirrorfs.engine.prune_ledger import LEDGER_PATH, Ledger, read_ledger, write_ledger
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.store_deletion import OnProgress, StoreDeletion, StorePruneReport
from mirrorfs.engine.store_view import StoreViews, look_at_checkpoints
from mirrorfs.errors import DamagedError, MirrorfsError, StoreUnavailable
from mirrorfs.format.ids import format_position
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import MomentRow
from mirrorfs.format.signing import load_public_key
from mirrorfs.format.slot import PublicKeys
from mirrorfs.ports import Clock, Disk, Index, IndexFiles, Offload, Store

logger = logging.getLogger(__name__)

GRACE_NS: Final = DAY_NS
"""So long an object is seen to be of no use before it goes, for readers elsewhere that began before."""
CLOCKS_APART_NS: Final = DAY_NS
TRUSTED_TRIED_MAX: Final = 3


class StorePruner:
    """Prunes some stores of one volume; one run at a time."""

    def __init__(
        self,
        stores: Mapping[bytes, Store],
        disk: Disk,
        scratch: Callable[[], IndexFiles],
        offload: Offload,
        clock: Clock,
        keys: VolumeKeys,
        public_keys: PublicKeys,
        seed: bytes,
        *,
        zone: tzinfo | None = None,
    ) -> None:
        """
        Args:
            stores: by instance (16 bytes).
            disk: of what this machine remembers.
            scratch: makes the files of an index that is thrown away.
            seed: of the pruner role.
            zone: where days end at midnight; None: the local one.
        """
        self._stores = stores
        self._disk = disk
        self._scratch = scratch
        self._offload = offload
        self._clock = clock
        self._keys = keys
        self._public_keys = public_keys
        self._writer = load_public_key(public_keys.writer)
        self._seed = seed
        self._zone = zone

    async def run(
        self,
        configured: Policy,
        *,
        confirmed: bool = False,
        dry_run: bool = False,
        on_progress: OnProgress = lambda what, done, total: None,
    ) -> StorePruneReport:
        """Delete what is due, and remember what was seen.

        Args:
            confirmed: a person says that a shorter policy counts at once, and that what the PC gave up, as
                the log has it now, may be given up here.
            dry_run: nothing is deleted or remembered.
        Raises: StoreUnavailable: a store does not answer. DamagedError: the log cannot be read to its end.
            FormatError: what is remembered is damaged. MirrorfsError: the clock is behind. DiskError,
            DiskFull.
        """
        ledger = read_ledger(self._disk)
        now_ns = await self._now(ledger)
        state = read_policy(self._disk).with_configured(configured, now_ns, confirmed=confirmed)
        report = StorePruneReport(state, now_ns)
        files = self._scratch()
        try:
            planner = Planner(
                list(self._stores.values()), files, self._offload, self._keys, self._public_keys.writer
            )
            newest, plan = await planner.run(NEWEST)
            with closing(newest):
                if plan.silent or plan.unreached:
                    names = ", ".join(sorted({*plan.silent, *plan.unreached}))
                    raise StoreUnavailable(f"Store {names} did not answer; nothing is deleted.")
                if plan.damage is not None:
                    raise DamagedError(f"Nothing is deleted, for the log cannot be read: {plan.damage}.")
                report.position = plan.position
                await self._prune(newest, ledger, report, planner.main, on_progress, confirmed, dry_run)
        finally:
            files.remove()
        if not dry_run:
            write_policy(self._disk, state)
            write_ledger(self._disk, ledger)
        return report

    async def _now(self, ledger: Ledger) -> int:
        """This machine's time, but not later than when anything was last put in a store, as that says.

        Raises: MirrorfsError: it is before that, or before what was remembered: with such a clock moments
        would seem to be of a time that the policy has not come to, and waiting would end with its next step.
        """
        told_ns, known_ns = 0, max((at_ns for at_ns, _ in ledger.seen), default=0)
        for store in self._stores.values():
            after = ""
            while page := await store.list("heads/", start_after=after):
                told_ns = max(told_ns, *(info.written_ns for info in page))
                after = page[-1].key
        now_ns = self._clock.now_ns()
        if now_ns < max(told_ns, known_ns) - CLOCKS_APART_NS:
            raise MirrorfsError(
                "Nothing is deleted, for the clock of this machine is behind the dates of its stores, or of"
                f" its last run: set it right. If it was ahead before, remove {LEDGER_PATH} to begin anew."
            )
        now_ns = max(min(now_ns, told_ns) if told_ns else now_ns, known_ns)
        # The dates of a directory's files are of this very clock, and it may be years ahead.
        return min(now_ns, known_ns + STEP_DAYS_MAX * DAY_NS) if known_ns else now_ns

    async def _prune(
        self,
        newest: Index,
        ledger: Ledger,
        report: StorePruneReport,
        main: Segments,
        on_progress: OnProgress,
        confirmed: bool,
        dry_run: bool,
    ) -> None:
        seen = max((position for _, position in ledger.seen), default=0)
        if report.position < seen and not confirmed:
            report.alarms.append(
                "The log ends earlier than it was seen to: a store was put back in time, or another PC went"
                " on from an earlier state. Nothing is deleted."
            )
            return
        # Of what a person confirms to be gone, nothing is waited for again.
        ledger.seen = [one for one in ledger.seen if one[1] <= report.position]
        checkpoints = await look_at_checkpoints(list(self._stores.values()), self._offload)
        checks = MomentCheck(main, checkpoints, self._scratch, self._offload, self._keys, self._writer)
        if confirmed:
            await self._go_back(ledger, checks)
        await self._learn(newest, ledger, report, checks, confirmed=confirmed)
        policy = report.policy.in_force
        if policy is None or not ledger.base:
            return
        base = ledger.moments[ledger.base]
        positions = self._kept_positions(newest, ledger, policy, report)
        kept = Kept(base.position, sorted(position for position in positions if position < base.position))
        report.base_ns, report.moments = base.time_ns, len(kept.moments)
        files = self._scratch()
        try:
            with closing(await checks.load(base, files)) as at_base:
                async with AsyncExitStack() as stack:
                    looking = StoreViews(self._scratch, self._offload, self._keys, self._public_keys.writer)
                    views = []
                    for instance, store in self._stores.items():
                        view = await looking.look(instance, store, ledger.moments.values(), kept, stack)
                        if isinstance(view, str):
                            report.alarms.append(
                                f"Nothing is deleted in store {store.name}, for its own log does not do"
                                f" without the others: {view}"
                            )
                        else:
                            views.append(view)
                    unneeded = {key for view in views for key in (*view.condemned, *view.old)}
                    ledger.note_unneeded(unneeded, report.now_ns)
                    due = {key for key, at_ns in ledger.unneeded.items() if report.now_ns - at_ns >= GRACE_NS}
                    report.waiting = len(unneeded - due)
                    for view in views:
                        check = CondemnedCheck(
                            view.store, self._keys, self._writer, newest=view.newest, base=at_base, kept=kept,
                            condemned=view.condemned, trusts_log=confirmed,
                        )  # fmt: skip
                        deletion = StoreDeletion(
                            view.instance, view.store, check, report, self._keys,
                            public_key=self._public_keys.pruner, seed=self._seed, base=base.position,
                            dry_run=dry_run,
                        )  # fmt: skip
                        await deletion.run(sorted(due & (view.condemned | view.old)), view.old, on_progress)
        finally:
            files.remove()

    # --- what is kept --------------------------------------------------------------------------

    async def _go_back(self, ledger: Ledger, checks: MomentCheck) -> None:
        """Begin at an earlier moment where the stores were put back to before they had the base."""
        while ledger.base:
            files = self._scratch()
            try:
                (await checks.load(ledger.moments[ledger.base], files)).close()
                return
            except DamagedError as exc:
                logger.info("an earlier moment is gone back to: %s", exc)
                del ledger.moments[ledger.base]
                ledger.base = max((one for one in ledger.moments if one < ledger.base), default=0)
            finally:
                files.remove()
            if not ledger.base:
                ledger.seen.clear()  # there is nothing to rely on: as on the first run

    async def _learn(
        self, newest: Index, ledger: Ledger, report: StorePruneReport, checks: MomentCheck, *, confirmed: bool
    ) -> None:
        """Take in what the log says now, as far as it can be believed."""
        tip = newest.base_moment()
        rows = [row for row in newest.list_moments() if tip is not None and row.position <= tip.position]
        for at in ledger.observe_snapshots(newest.list_snapshots(), report.now_ns):
            report.alarms.append(
                f"The hold of the snapshot of position {format_position(at)} was taken away."
            )
        is_new = ledger.is_new
        for row in rows:
            known = ledger.moments.get(row.position)
            if known is not None and known.digest == row.digest:
                continue
            if known is None and row.position < ledger.base:
                continue  # the policy here is done with it; the log of then may be gone
            if not is_new and (why := await _doubt(checks, row, ledger)) is not None:
                report.alarms.append(f"A moment that the PC made is not relied on: {why}")
                continue
            ledger.add_moment(row, report.now_ns)
        ledger.observe(report.now_ns, report.position)
        if confirmed:
            _give_up(newest, ledger)
        if report.policy.in_force is not None:
            self._move_base(ledger, report.policy.in_force, report, confirmed=confirmed)

    def _move_base(
        self, ledger: Ledger, policy: Policy, report: StorePruneReport, *, confirmed: bool
    ) -> None:
        """The newest moment that was in the stores when the window began, if none is missing before."""
        start_ns = report.now_ns - policy.every_moment * DAY_NS
        # A snapshot without a checkpoint of its own is a part of the log, and has nothing else.
        alone = [at for at in ledger.snapshots if at not in ledger.moments]
        limit = min([ledger.end_at(start_ns), *alone])
        found = max((position for position in ledger.moments if position <= limit), default=0)
        if found <= ledger.base:
            return
        rows = sorted(row for row in ledger.moments.values() if row.position <= found)
        begun_ns = ledger.moments[ledger.base].time_ns if ledger.base else start_ns
        for time_ns in self._times(policy, report.now_ns):
            if time_ns <= begun_ns or time_ns >= ledger.moments[found].time_ns or confirmed:
                continue
            position = max((row.position for row in rows if row.time_ns <= time_ns), default=0)
            if position < ledger.end_at(time_ns - CLOCKS_APART_NS):
                report.alarms.append(
                    "The PC keeps no moment for the end of a day, week, month or year that this machine's"
                    " policy has: make its [retention] keep as much, or run this with --confirm."
                )
                return
        ledger.base = found

    def _kept_positions(
        self, newest: Index, ledger: Ledger, policy: Policy, report: StorePruneReport
    ) -> set[int]:
        snapshots: set[int] = set()
        for at, one in list(ledger.snapshots.items()):
            if one.gone_ns and report.now_ns - one.gone_ns >= POLICY_DELAY_NS:
                del ledger.snapshots[at]
                continue
            if one.gone_ns:
                report.alarms.append(
                    f"The snapshot of position {format_position(at)} was deleted; here it is kept for 30"
                    " days."
                )
            snapshots.add(at)
        rows = sorted(row for row in ledger.moments.values() if row.position <= ledger.base)
        kept = kept_moments(rows, self._times(policy, report.now_ns), snapshots) | {ledger.base}
        # The PC's clock, and its days, may be ahead of ours.
        later = self._times(policy, report.now_ns + 2 * CLOCKS_APART_NS, until_ns=report.now_ns)
        given_up = kept_moments(rows, later, ()) - {row.position for row in newest.list_moments()}
        if given_up - {ledger.base}:
            report.alarms.append(
                f"The PC has given up moments that this machine's policy keeps"
                f" ({len(given_up - {ledger.base})}): what they need stays in the stores."
            )
        tip = newest.base_moment()
        window_ns = report.now_ns - policy.every_moment * DAY_NS + CLOCKS_APART_NS
        limit = min(
            (position for at_ns, position in ledger.seen if at_ns >= window_ns), default=report.position
        )
        if tip is not None and tip.position > limit:
            report.alarms.append(
                "The PC has given up the log of days that this machine's policy keeps: what it needs stays in"
                " the stores."
            )
        for row in rows:
            if row.position not in kept:
                del ledger.moments[row.position]
        return kept

    def _times(self, policy: Policy, now_ns: int, *, until_ns: int | None = None) -> list[int]:
        """The ends of days, weeks, months and years that the policy has before its window."""
        start_ns = (now_ns if until_ns is None else until_ns) - policy.every_moment * DAY_NS
        return wanted_times(policy, now_ns, start_ns, self._zone)


async def _doubt(checks: MomentCheck, row: MomentRow, ledger: Ledger) -> str | None:
    """Why a moment is not what the log leads to from one that is trusted; None: it is.

    Of the trusted ones some may be of a branch that another PC's take-over left behind.
    """
    before = sorted((one for one in ledger.moments.values() if one.position < row.position), reverse=True)
    why = None
    tried: list[MomentRow | None] = [*before[:TRUSTED_TRIED_MAX]]
    for trusted in tried or [None]:
        try:
            await checks.verify(row, trusted)
            return None
        except DamagedError as exc:
            why = why or str(exc)
    return why


def _give_up(newest: Index, ledger: Ledger) -> None:
    """A person says so: what the log has not, is not kept here either."""
    there = {row.position for row in newest.list_moments()} | {ledger.base}
    ledger.moments = {position: row for position, row in ledger.moments.items() if position in there}
    ledger.snapshots = {at: one for at, one in ledger.snapshots.items() if not one.gone_ns}
