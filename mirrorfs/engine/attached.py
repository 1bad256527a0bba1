"""The stores of a mounted volume: what belongs to each, and what the local half sees of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import LocalVolume, Mirrors, World
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.mirror_state import MirrorState, StateWord
from mirrorfs.engine.objects import LocalObjects, ObjectSource
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.errors import InUseError
from mirrorfs.format.header import VolumeHeader
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Index, Store


class AttachedStore:
    """One store of a mounted volume."""

    def __init__(self, store: Store, lease: LeaseKeeper, mirror: Mirror) -> None:
        self.store = store
        self.lease = lease
        self.mirror = mirror

    def snapshot(self) -> MirrorState:
        """The state of the store now: its mirror's, with what its lease knows better."""
        lease, state = self.lease.state(), self.mirror.snapshot()
        if lease.missing and state.state is not StateWord.CONFLICT:
            # The mirror of a store that has everything asks it for nothing.
            state = replace(state, state=StateWord.MISSING, last_error=lease.last_error)
        return replace(state, weak_fencing=lease.weak_fencing)


def attach_store(
    store: Store,
    lease: LeaseKeeper,
    leases: Sequence[LeaseKeeper],
    objects: ObjectSource,
    index: Index,
    world: World,
    settings: VolumeSettings,
    *,
    pace: UploadPace,
    random: Callable[[], float],
    suspect: Callable[[str | None, str], None],
) -> AttachedStore:
    """A store with its lease and its mirror; no task runs yet.

    Args:
        leases: of all stores: a writer that one of them fenced sends nothing to the others either.
    """
    instance = settings.instances[store.name]

    async def fresh() -> None:
        for one in leases:
            if (fenced := one.state().fenced) is not None:
                raise InUseError(fenced)
        await lease.fresh()

    mirror = Mirror(
        store,
        instance=instance,
        read_object=objects.read,
        lease_fresh=fresh,
        load_held=lambda: index.held(instance),
        save_held=lambda key: index.put_held(instance, key),
        forget_held=lambda key: index.delete_held(instance, key),
        on_conflict=lambda key: suspect(store.name, key),
        clock=world.clock,
        pace=pace,
        random=random,
    )
    return AttachedStore(store, lease, mirror)


def attach_stores(
    stores: Sequence[Store],
    leases: Sequence[LeaseKeeper],
    objects: ObjectSource,
    index: Index,
    world: World,
    settings: VolumeSettings,
    *,
    pace: UploadPace,
    random: Callable[[], float],
    suspect: Callable[[str | None, str], None],
) -> list[AttachedStore]:
    """Every store with its lease."""
    return [
        attach_store(
            store, lease, leases, objects, index, world, settings, pace=pace, random=random, suspect=suspect
        )
        for store, lease in zip(stores, leases, strict=True)
    ]


def upload_pace(world: World, settings: VolumeSettings, local: Callable[[], LocalVolume]) -> UploadPace:
    """The pace of uploads of a local half that is made later."""
    return UploadPace(
        world.clock, written_ns=lambda: local().state.written_ns, delay_s=settings.mirror_delay_s
    )


def object_source(
    world: World, index: Index, keys: VolumeKeys, header: VolumeHeader, stores: Sequence[Store]
) -> ObjectSource:
    """Where the objects of a volume are read from, whole and verified."""
    local = LocalObjects(world.disk, index, world.offload)
    return ObjectSource(local, world.offload, keys, header.public_keys.writer, stores=lambda: stores)


def mirrors_of(attached: Sequence[AttachedStore], suspect: Callable[[str | None, str], None]) -> Mirrors:
    """What the local half of a volume needs of these stores."""
    return Mirrors(
        stores=lambda: [one.store for one in attached],
        is_held=lambda key: all(one.mirror.is_held(key) for one in attached),
        on_bad_copy=suspect,
    )
