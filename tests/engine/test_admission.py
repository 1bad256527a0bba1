"""Leave to write: every store is looked at before any lease is taken, and a refusal leaves no trace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.admission import Admission
from mirrorfs.engine.lease import FRESH_S, LEASE_PERIOD_S
from mirrorfs.engine.lease_documents import BLIND_STEP, next_epoch
from mirrorfs.errors import ChainError, DiskFull, InUseError, StoreError, StoreUnavailable
from mirrorfs.format.control import Lease
from mirrorfs.ports import ObjectKey, Version
from tests.support.practice import FORKED, SAID, Practice, fenced, save, seen_by_a_new_pc
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import LEASE


class Blinking:
    """A store of which the first look at the lease fails."""

    def __init__(self, store: SimulatedStore) -> None:
        self._read = store.read_mutable
        self._count = 0

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        self._count += 1
        if self._count == 1:
            raise StoreUnavailable("The network blinked.")
        return await self._read(key)


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


# --- of real mounts --------------------------------------------------------------------------


@pytest.mark.expects_warnings(*SAID)
async def test_a_refused_mount_leaves_no_trace(autojump_clock: MockClock, practice: Practice) -> None:
    """The writer reaches one store only; who is refused there takes no lease of the other."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted() as volume:
        await save(volume, b"a")
    one.cut_off("s3")
    async with one.mounted(wait=False) as volume:
        await save(volume, b"b")
        await trio.sleep(60)
        before = dict(practice.places["s3"])
        assert "in use" in await two.refusal()
        assert practice.places["s3"] == before
        one.reconnect()
        with trio.fail_after(2 * LEASE_PERIOD_S):
            await volume.flush()
        assert volume.status().fenced is None
    assert await seen_by_a_new_pc(practice) == [b"a", b"b"]


@pytest.mark.expects_warnings(*SAID, *FORKED)
async def test_a_take_over_that_could_not_look_waits(
    autojump_clock: MockClock, practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer whose lease was not seen may be alive: it is given the time to notice all the same."""
    one, two = practice.pc("one"), practice.pc("two")
    async with one.mounted(wait=False) as first:
        await save(first, b"a")
        await first.flush()
        for link in two.links.values():
            monkeypatch.setattr(link, "read_mutable", Blinking(link).read_mutable)
        began_s = trio.current_time()
        async with two.mounted(take_over=True, wait=False):
            assert trio.current_time() - began_s >= FRESH_S
            await fenced(first)


# --- the judgement ---------------------------------------------------------------------------


class Court:
    """A judge that notes what it heard, and raises what it is told to."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, Lease | None], set[str]]] = []
        self.verdict: Exception | None = None
        self.admitted: list[str] = []
        self.notice_s = 0.0
        self.takes_s = 0.0

    async def __call__(self, leases: Mapping[str, Lease | None], silent: Collection[str]) -> None:
        await trio.sleep(self.takes_s)
        self.heard.append((dict(leases), set(silent)))
        if self.verdict is not None:
            raise self.verdict

    async def notice(self, store: str, lease: Lease | None) -> float:
        return self.notice_s

    async def admit(self, admission: Admission, store: str, lease: Lease | None) -> None:
        await admission.admit(store, lease)
        self.admitted.append(store)


@asynccontextmanager
async def trial(court: Court, *stores: str) -> AsyncIterator[tuple[Admission, trio.Nursery]]:
    """An admission that is under way."""
    admission = Admission(stores, court, court.notice)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.run)
        yield admission, nursery


async def test_nobody_is_admitted_before_all_have_shown_their_leases(autojump_clock: MockClock) -> None:
    court = Court()
    async with trial(court, "home", "s3") as (admission, nursery):
        nursery.start_soon(court.admit, admission, "home", LEASE)
        await trio.sleep(50)
        assert court.admitted == [] and court.heard == []
        nursery.start_soon(court.admit, admission, "s3", None)
    assert sorted(court.admitted) == ["home", "s3"]
    assert court.heard == [({"home": LEASE, "s3": None}, set())], "judged once"


async def test_a_store_that_was_given_up_is_silent(autojump_clock: MockClock) -> None:
    court = Court()
    async with trial(court, "home", "s3") as (admission, nursery):
        nursery.start_soon(court.admit, admission, "home", LEASE)
        await trio.sleep(50)
        admission.give_up("s3", answers=False)
        admission.give_up("home", answers=False)  # it has shown its lease, so that this says nothing
    assert court.heard == [({"home": LEASE}, {"s3"})]


async def test_a_store_whose_lease_is_rotten_is_not_silent(autojump_clock: MockClock) -> None:
    """What else it has was read; nobody is waited for there, and no lease of it counts."""
    court = Court()
    async with trial(court, "home", "s3") as (admission, nursery):
        nursery.start_soon(court.admit, admission, "home", LEASE)
        await trio.sleep(50)
        admission.give_up("usb", answers=True)  # it is not waited for
        admission.give_up("s3", answers=True)
    assert court.heard == [({"home": LEASE, "s3": None}, {"usb"})]


async def test_whom_the_judge_refuses_is_admitted_nowhere(autojump_clock: MockClock) -> None:
    """Neither the stores that waited, nor one that shows its lease later."""
    court = Court()
    court.verdict = ChainError("another branch")

    async def refused(store: str) -> None:
        with pytest.raises(InUseError, match="another branch"):
            await admission.admit(store, None)

    async with trial(court, "home", "s3") as (admission, nursery):
        nursery.start_soon(refused, "home")
        nursery.start_soon(refused, "s3")
    court.verdict = None
    await refused("usb")
    assert len(court.heard) == 1
    assert isinstance(admission.refusal, ChainError)


async def test_a_refusal_needs_no_judge(autojump_clock: MockClock) -> None:
    """A lease that changed while it was watched: those who wait elsewhere hear of it at once."""
    court = Court()

    async def refused() -> None:
        with pytest.raises(InUseError, match="the first reason"):
            await admission.admit("home", None)

    async with trial(court, "home", "s3") as (admission, nursery):
        nursery.start_soon(refused)
        await trio.sleep(1)
        admission.refuse(InUseError("the first reason"))
        admission.refuse(InUseError("another one"))
    assert court.heard == []


async def test_a_late_store_is_judged_by_itself(autojump_clock: MockClock) -> None:
    """What it shows may fence us; where it cannot be told now, that is no fence, and is asked again."""
    court = Court()
    court.notice_s = 60.0
    async with trial(court, "home") as (admission, _):
        assert await admission.admit("home", None) == 0, "the mount itself waits for whom it displaces"
    late = replace(LEASE, epoch=9)
    with pytest.raises(StoreError, match="is being mounted"):
        await admission.admit("s3", late)
    admission.open()
    for error in (StoreUnavailable("away again"), DiskFull("no space for a head")):
        court.verdict = error
        with pytest.raises(type(error)):
            await admission.admit("s3", late)
    court.verdict = ChainError("another branch")
    with pytest.raises(InUseError, match="another branch"):
        await admission.admit("s3", late)
    court.verdict = None
    assert await admission.admit("s3", late) == 60
    assert court.heard == [({"home": None}, set()), *[({"s3": late}, set())] * 4]
    assert admission.refusal is None


async def test_a_judgement_survives_the_deadlines_of_stores(autojump_clock: MockClock) -> None:
    """It changes the index: begun again in the midst of it, changes would count twice."""
    court = Court()
    court.takes_s = 500.0
    async with trial(court, "home", "s3") as (admission, _):
        for store in ("home", "s3"):
            with trio.move_on_after(80):
                await admission.admit(store, None)
    assert len(court.heard) == 1


async def test_where_all_stores_rotate(autojump_clock: MockClock) -> None:
    """Nobody is waited for."""
    court = Court()
    async with trial(court) as (admission, _):
        with trio.fail_after(10), pytest.raises(StoreError, match="is being mounted"):
            await admission.admit("usb", LEASE)
    assert court.heard == [({}, set())]


async def test_a_rotating_store_is_late(autojump_clock: MockClock) -> None:
    court = Court()
    async with trial(court, "home") as (admission, _):
        with trio.move_on_after(50):
            await admission.admit("usb", LEASE)
        assert court.heard == []
        await admission.admit("home", None)
        with pytest.raises(StoreError, match="is being mounted"):
            await admission.admit("usb", LEASE)
        admission.open()
        await admission.admit("usb", LEASE)
    assert court.heard == [({"home": None}, set()), ({"usb": LEASE}, set())]


@pytest.mark.parametrize("local", [0, 7])
def test_the_epoch_of_who_does_not_see_all_stores(local: int) -> None:
    """It leaves room for what may have been counted there, so that no two branches end with one epoch."""
    seen = [None, replace(LEASE, epoch=4)]
    assert next_epoch(seen, local=local) == max(4, local) + 1
    assert next_epoch(seen, local=local, is_blind=True) == max(4, local) + BLIND_STEP
    assert next_epoch([], local=local, is_blind=True) == local + BLIND_STEP
