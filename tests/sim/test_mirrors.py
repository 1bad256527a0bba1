"""Seeds of the simulation with two stores that run with every test; more: scripts/simulate.

And a life that its model judged wrongly, told as a scenario.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.sim.mirrors import MirrorSimulation, Refused, Session

# Stores that fail are said to; the simulation judges what comes of it.
pytestmark = pytest.mark.expects_warnings(".*")

SEEDS_PER_TEST = 5


@pytest.mark.parametrize("first", range(0, 30, SEEDS_PER_TEST))
def test_nothing_that_was_said_to_be_safe_is_lost(first: int, fast_directory: Path) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        directory = fast_directory / f"seed-{seed}"
        directory.mkdir()
        MirrorSimulation(seed, directory).run()


def test_only_the_pc_that_has_what_a_store_lost_goes_on(fast_directory: Path) -> None:
    # A store lost a segment that it had acknowledged, and shows its writer's heads; nothing of the machine
    # that took over meanwhile came to a store. It and a fresh one are refused, the first writer is not.
    MirrorSimulation(17196, fast_directory).run()


def test_a_lease_that_could_not_be_put_back_stays(fast_directory: Path) -> None:
    # Both leases were lost when a machine took over; it was refused for what came meanwhile, and so was the
    # first one then, until it took over itself.
    MirrorSimulation(31067, fast_directory).run()


def test_two_writers_may_come_to_states_that_are_alike(fast_directory: Path) -> None:
    MirrorSimulation(47608, fast_directory).run()


def test_what_is_exported_may_be_like_the_state_of_another_writer(fast_directory: Path) -> None:
    MirrorSimulation(6327, fast_directory).run()


def test_what_a_crash_left_does_not_stop_who_took_over(fast_directory: Path) -> None:
    # Both leases were rotten at the take-over. When they were written anew, a segment without end, which the
    # take-over had left behind, counted as another machine's later state.
    MirrorSimulation(42090, fast_directory).run()


def test_what_cannot_be_read_may_be_whole_elsewhere(fast_directory: Path) -> None:
    # Of what a writer was told is safe one store had a rotten segment, a rotten head and no lease. A machine
    # that had written without stores met that store first, and sent what it had.
    MirrorSimulation(31262, fast_directory).run()


def test_what_is_told_safe_during_a_take_over_is_not_left_behind(fast_directory: Path) -> None:
    MirrorSimulation(36637, fast_directory, copies=0.6).run()


def test_a_refused_mount_leaves_an_index_that_goes_on(fast_directory: Path) -> None:
    # The index was lost in a power cut. Of a segment of the other machine there was a bad copy, and nothing
    # of what comes after it: an index that was begun with it never fitted the log again.
    MirrorSimulation(48353, fast_directory, copies=0.6).run()


def test_a_storm_that_comes_and_goes_while_a_machine_mounts_may_refuse_it(fast_directory: Path) -> None:
    # It was calm when the mount began, and when it was refused because of a request sent in the storm.
    MirrorSimulation(7082, fast_directory).run()


def test_what_is_referred_to_again_is_not_lost_either(fast_directory: Path) -> None:
    found_bytes = 0
    for seed in range(5):
        directory = fast_directory / f"seed-{seed}"
        directory.mkdir()
        simulation = MirrorSimulation(seed, directory, copies=0.6)
        simulation.run()
        found_bytes += simulation.found_bytes
    assert found_bytes


class StopsWhileLookedAt(MirrorSimulation):
    """The second machine takes over, and stops while what it shows is being read: it has sent by then.

    The first one has synced what no store has. It is refused for a reason, and its state is exported.
    """

    was_refused = False

    def run(self) -> None:
        for life in (self._first, self._second, self._first_again):
            self._live(life)

    async def _first(self) -> None:
        async with trio.open_nursery() as nursery:
            session = await self._mount_fresh(nursery)
            await self._save(session)
            await session.volume.flush()
            for place in self.weather.places:
                place.outage = True
            await self._save(session)
            await self._sync(session)
            session.machine.disk.crash_now()

    async def _second(self) -> None:
        self.weather.heal()
        async with trio.open_nursery() as nursery:
            await self._mount_fresh(nursery)

    async def _first_again(self) -> None:
        machine = self._machines[0]
        self._wake(machine, may_crash=False)
        async with trio.open_nursery() as nursery:
            with pytest.raises(Refused):
                await self._mount(machine, nursery)
            self.was_refused = True

    async def _mount_fresh(self, nursery: trio.Nursery) -> Session:
        machine = self._fresh()
        self._wake(machine, may_crash=False)
        return await self._mount(machine, nursery, take_over=True)

    async def _check_contents(self, session: Session) -> None:
        await super()._check_contents(session)
        if session.machine is not self._machines[0]:
            await session.volume.flush()
            session.machine.disk.crash_now()


def test_a_mount_that_stops_while_it_is_looked_at_is_known_to_have_been_one(fast_directory: Path) -> None:
    simulation = StopsWhileLookedAt(1, fast_directory)
    simulation.run()
    assert simulation.was_refused
