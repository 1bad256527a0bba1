"""What lies in a store and is not mirrored: its instance document, the lease, deletion manifests.

Each is harmed together with each kind of object that is mirrored, and with the other two: on the same store,
and each on one. Of instance documents alone see test_instance.py, of leases tests/unit/test_lease.py. A
manifest has no copy, and needs none: one that is bad counts for nothing, so that what it names seems to be
lost, is said to be, and is sent again.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.manifests import manifests_of
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.scrub import DEEP, SIZES
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, Instance, open_lease, seal_control
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.manifest import open_manifest
from tests.corruption.original import MADE_DAY, NAMES, PUBLIC_KEY, A
from tests.corruption.place import HARMS, KINDS, Place, harm_at, harmed
from tests.corruption.test_matrix import WARNINGS, check_everything_is_had, check_mended
from tests.support.volumes import HEADER, KEY_SET, KEYS, LEASE

DOCUMENTS = ("instance", "lease", "manifest")
PRUNER = HEADER.public_keys.pruner
FOREIGN = VolumeKeys.derive(b"\x09" * 32, volume=bytes(16), generation=1)
WATCHED_S = 200.0
"""Longer than a lease that does not verify is watched before it is replaced."""

pytestmark = pytest.mark.expects_warnings(
    *WARNINGS, "[Ss]tore home", "lease", "checkpoints/.* of (home|s3)", "Mended"
)


def pairs() -> list[tuple[str, str, str, str, str]]:
    """(document on A, its harm, other kind, its harm, its store), both stores in turn."""
    found = []
    some = [(one, kind) for one in DOCUMENTS for kind in KINDS] + list(combinations(DOCUMENTS, 2))
    for number, (document, other) in enumerate(some):
        harm = harm_at(2 * number)
        if (document, harm) == ("instance", "restore old"):
            harm = "delete"  # of a place that is another store see test_instance.py
        found.append((document, harm, other, harm_at(number), NAMES[number % 2]))
    return found


def key_of(place: Place, store: str, document: str) -> str:
    """Of manifests, the newest."""
    objects = place.original.objects[store]
    newest = max(key for key in objects if key.startswith("manifests/"))
    return {"instance": INSTANCE_KEY, "lease": LEASE_KEY, "manifest": newest}[document]


def harm_document(place: Place, store: str, document: str, harm: str) -> None:
    original, key = place.original, key_of(place, store, document)
    objects = original.objects[store]
    (other,) = set(NAMES) - {store}
    writer = KEY_SET.writer
    foreign = {
        "instance": seal_control(Instance(store, bytes(16)), keys=FOREIGN, seed=writer),
        "lease": seal_control(LEASE, keys=FOREIGN, seed=writer),
        "manifest": original.objects[other][key_of(place, other, "manifest")],
    }
    old = {
        "instance": seal_control(Instance(store, b"\x77" * 16), keys=KEYS, seed=writer),
        "lease": original.early[store][LEASE_KEY],
        "manifest": objects[min(one for one in objects if one.startswith("manifests/"))],
    }
    data = harmed(
        objects[key],
        harm,
        swapped=objects[original.kinds["newest head"]],
        foreign=foreign[document],
        old=old[document],
    )
    there = place.stores[NAMES.index(store)].objects
    if data is None:
        del there[key]
    else:
        there[key] = data


def pruned(place: Place, store: str) -> set[tuple[str, str]]:
    """What the newest manifest names of that which this PC still has."""
    key = key_of(place, store, "manifest")
    manifest = open_manifest(place.original.objects[store][key], key=key, keys=KEYS, public_key=PRUNER)
    found = {(store, one.key) for one in manifest.objects if place.file(one.key).exists()}
    assert found
    return found


# --- manifests alone -------------------------------------------------------------------------


async def test_what_a_manifest_names_is_not_lost(autojump_clock: MockClock, place: Place) -> None:
    async with place.pc().mounted() as volume:
        report = await volume.scrubber.run(DEEP)
        assert report.bad == [] and [one.pruned for one in report.places] == [0, 1, 1]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_bad_manifest_counts_for_nothing(autojump_clock: MockClock, place: Place, harm: str) -> None:
    harm_document(place, A, "manifest", harm)
    lost = pruned(place, A)
    await check_everything_is_had(place)
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        for depth in (SIZES, DEEP):
            report = await volume.scrubber.run(depth)
            assert {(one.place, one.key) for one in report.bad} == lost
            assert [one.pruned for one in report.places] == [0, 0, 1]
        await check_mended(place, volume, report.bad)
    # The machine that prunes goes on: what was sent again is not needed either.
    elsewhere = place.elsewhere()
    for day in (30, 32):
        assert (await elsewhere.prune(MADE_DAY + day)).alarms == []
    assert not place.stores[0].objects.keys() & {key for _, key in lost}
    (instance,) = (entry.instance for entry in HEADER.stores if entry.name == A)
    counters = [one.counter for one in await manifests_of(place.stores[0], KEYS, PRUNER, instance=instance)]
    assert counters == sorted(set(counters)) and len(counters) == 2
    restored = await place.restore(place.stores[:1])
    assert restored.report.complete and restored.contents == place.original.contents


# --- in pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("document", "harm", "other", "other_harm", "store"), pairs())
async def test_a_document_and_something_else_are_bad(
    autojump_clock: MockClock,
    place: Place,
    document: str,
    harm: str,
    other: str,
    other_harm: str,
    store: str,
) -> None:
    documents, bad = {(A, document)}, set()
    harm_document(place, A, document, harm)
    if other in DOCUMENTS:
        documents.add((store, other))
        harm_document(place, store, other, other_harm)
    else:
        bad.add((store, place.harm(store, other, other_harm)))
    for where, name in documents:
        bad |= pruned(place, where) if name == "manifest" else set()
    restored = await place.restore()
    assert restored.report.complete and restored.plan.damage is None
    assert restored.contents == place.original.contents

    async with place.pc().mounted(wait=False) as volume:
        assert await place.read_all(volume) == set()
        await trio.sleep(WATCHED_S)
        gone = {where for where, name in documents if name == "instance"}
        assert {one.store for one in volume.status().stores if one.state is StateWord.MISSING} == gone
        assert await volume.mender.reclaim_stores() == dict.fromkeys(gone)
        with trio.fail_after(1200):
            await volume.flush()
        deep = await volume.scrubber.run(DEEP)
        assert not deep.unreachable
        found = {(one.place, one.key) for one in deep.bad}
        # Of a store that was doubted some is mended by now.
        assert found <= bad
        for where, key in bad - found:
            good = place.original.objects[where].get(key, place.file(key).read_bytes())
            assert place.stores[NAMES.index(where)].objects[key] == good
        await check_mended(place, volume, deep.bad)
        assert {one.state for one in volume.status().stores} == {StateWord.UP_TO_DATE}
        for one in place.stores:
            open_lease(one.objects[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY)
    await check_everything_is_had(place)
