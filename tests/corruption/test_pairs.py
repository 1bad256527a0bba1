"""Two bad objects on one store, and one here and another on a store: each pair of kinds, the harms in turn.

What must hold is what test_matrix.py says. Pairs on both stores are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.scrub import DEEP, LOCAL
from tests.corruption.original import NAMES, A, B
from tests.corruption.place import HARMS, KINDS, SEGMENTS, Place, harm_at
from tests.corruption.test_matrix import WARNINGS, check_everything_is_had, check_found, check_mended

pytestmark = pytest.mark.expects_warnings(*WARNINGS)

Pair = tuple[str, str, str, str]
RETRIED_S = 1200.0
"""A store that was away is tried again before."""


def in_turn(pairs: Iterable[tuple[str, str]]) -> list[Pair]:
    """(kind, its harm, other kind, its harm), so that each two harms meet about as often."""
    return [
        (first, harm_at(number), second, harm_at(2 * number + number // len(HARMS) + 1))
        for number, (first, second) in enumerate(pairs)
    ]


ON_ONE_STORE = in_turn(combinations(KINDS, 2))
HERE_AND_ON_A_STORE = in_turn(combinations(KINDS, 2))
BEFORE_THE_MOUNT = in_turn((second, first) for first, second in combinations(KINDS[1:], 2))


@pytest.mark.parametrize(("first", "harm", "second", "other_harm"), ON_ONE_STORE)
async def test_two_objects_of_one_store_are_bad(
    autojump_clock: MockClock, place: Place, first: str, harm: str, second: str, other_harm: str
) -> None:
    """The other store is whole, so that all is had and mended."""
    store = NAMES[ON_ONE_STORE.index((first, harm, second, other_harm)) % 2]
    harms = {first: harm, second: other_harm}
    keys = {kind: place.harm(store, kind, how) for kind, how in harms.items()}
    bad = {(store, key) for key in keys.values()}
    by_size = {(store, keys[kind]) for kind, how in harms.items() if place.shows_in_size(kind, how)}
    await check_everything_is_had(place)
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        await check_mended(place, volume, await check_found(place, volume, bad, by_size=by_size))


@pytest.mark.expects_warnings("[Nn]o good copy", "refers to frame", "cannot be sent", "is falling behind")
@pytest.mark.parametrize(("first", "harm", "second", "other_harm"), ON_ONE_STORE)
async def test_two_objects_of_the_only_store_are_bad(
    autojump_clock: MockClock, place: Place, first: str, harm: str, second: str, other_harm: str
) -> None:
    """The other store is away, and the cache has given the segments up: what is lost until then is said."""
    harms = {first: harm, second: other_harm}
    original = place.original
    async with place.pc().mounted() as volume:
        place.stores[1].outage = True
        keys = {kind: place.harm(A, kind, how) for kind, how in harms.items()}
        given_up = {key for kind, key in keys.items() if kind in SEGMENTS}
        lost = {name for name, segments in original.lies_in.items() if segments & given_up}
        for key in given_up:
            place.file(key).unlink()
        restored = await place.restore(place.stores[:1])
        incomplete = {path.encode() for path in restored.report.incomplete}
        for name, data in restored.contents.items():
            assert name in incomplete or data == original.contents[name], name
        missing = original.contents.keys() - restored.contents.keys()
        assert not missing or restored.plan.damage is not None
        assert given_up or not (missing or incomplete)

        deep = await volume.scrubber.run(DEEP)
        assert {(one.place, one.key) for one in deep.bad} == {(A, key) for key in keys.values()}
        assert [report.place for report in deep.places if report.unreachable] == [B]
        assert await place.read_all(volume) <= lost
        for one, why in (await volume.mender.mend(deep.bad)).items():
            assert why is None or one.key in given_up
        for kind, key in keys.items():
            assert kind in SEGMENTS or place.file(key).read_bytes() == original.objects[A][key]

        place.stores[1].outage = False
        await trio.sleep(RETRIED_S)
        results = await volume.mender.mend((await volume.scrubber.run(DEEP)).bad)
        assert set(results.values()) <= {None}
        await volume.flush()
        place.assert_stores_whole()
        assert (await volume.scrubber.run(DEEP)).bad == []
        assert await place.read_all(volume) == set()


@pytest.mark.parametrize(("first", "harm", "second", "other_harm"), HERE_AND_ON_A_STORE)
async def test_an_object_here_and_another_on_a_store_are_bad(
    autojump_clock: MockClock, place: Place, first: str, harm: str, second: str, other_harm: str
) -> None:
    store = NAMES[HERE_AND_ON_A_STORE.index((first, harm, second, other_harm)) % 2]
    async with place.pc().mounted() as volume:
        here, there = place.harm(LOCAL, first, harm), place.harm(store, second, other_harm)
        assert await place.read_all(volume) == set()
        bad, by_size = {(store, there)}, set()
        if place.shows_in_size(second, other_harm):
            by_size.add((store, there))
        # Of a segment see test_matrix.py: it may be gone here, or longer.
        if harm != "delete" or first not in SEGMENTS:
            bad.add((LOCAL, here))
            if place.shows_in_size(first, harm, even_longer=first not in SEGMENTS):
                by_size.add((LOCAL, here))
        await check_mended(place, volume, await check_found(place, volume, bad, by_size=by_size))
    await check_everything_is_had(place)


@pytest.mark.parametrize(("first", "harm", "second", "other_harm"), BEFORE_THE_MOUNT)
async def test_an_object_here_and_another_on_a_store_were_bad_before_the_mount(
    autojump_clock: MockClock, place: Place, first: str, harm: str, second: str, other_harm: str
) -> None:
    place.harm(LOCAL, first, harm)
    place.harm(A, second, other_harm)
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        await check_mended(place, volume, (await volume.scrubber.run(DEEP)).bad)
    await check_everything_is_had(place)
