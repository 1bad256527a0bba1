"""The documents that leases are: sealing and opening them, and saying in words whose one is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from mirrorfs.errors import AuthenticationError, DamagedError, FormatError, LimitError
from mirrorfs.format.control import (
    Lease,
    LeaseHolder,
    open_lease,
    open_lease_box,
    seal_control,
    seal_lease_box,
)
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import EPOCH_MAX
from mirrorfs.format.slot import NONCE_SIZE_BYTES
from mirrorfs.ports import Entropy

_NS: Final = 1_000_000_000


BLIND_STEP: Final = 1000


def next_epoch(seen: Iterable[Lease | None], *, local: int, is_blind: bool = False) -> int:
    """The epoch of a new mount: one more than any on the reachable stores, and than the local one.

    A take-over that does not see all stores (`is_blind`) leaves room for what may have been counted there:
    the branches of two writers must not end with one epoch.
    Raises: LimitError: there is none left.
    """
    newest = max([local, *(lease.epoch for lease in seen if lease is not None)])
    epoch = newest + (BLIND_STEP if is_blind else 1)
    if epoch > EPOCH_MAX:
        raise LimitError("The epochs of this volume are used up; run `mirrorfs restore` into a new one.")
    return epoch


class LeaseDocuments:
    """Lease documents of one volume on one store."""

    def __init__(
        self,
        store: str,
        *,
        keys: VolumeKeys,
        seed: bytes,
        public_key: bytes,
        entropy: Entropy,
        host: str,
        own: Collection[bytes] = (),
    ) -> None:
        """
        Args:
            store: its name, for messages.
            seed, public_key: Ed25519 of the writer role, 32 bytes each.
            host: this machine's name, sealed into each document.
            own: writer ids of earlier mounts of this machine, perhaps of an earlier key generation.
        """
        self._own = own
        self._store = store
        self._keys = keys
        self._seed = seed
        self._public_key = public_key
        self._entropy = entropy
        self._host = host

    def seal(self, lease: Lease, *, since_ns: int) -> bytes:
        """The document of a lease, whose box is made anew: no two documents are equal."""
        holder = LeaseHolder(host=self._host, since_ns=since_ns)
        box = seal_lease_box(holder, keys=self._keys, nonce=self._entropy(NONCE_SIZE_BYTES))
        return seal_control(replace(lease, box=box), keys=self._keys, seed=self._seed)

    def open(self, data: bytes) -> Lease:
        """The lease of a document. Raises: AuthenticationError: it does not verify."""
        try:
            return open_lease(data, keys=self._keys, public_key=self._public_key, own=self._own)
        except (FormatError, LimitError, AuthenticationError) as exc:
            raise AuthenticationError(f"The lease in store {self._store} does not verify.") from exc

    def describe(self, lease: Lease) -> str:
        """Who holds a lease, and since when."""
        try:
            holder = open_lease_box(lease.box, keys=self._keys)
        except (DamagedError, LimitError):
            return f"epoch {lease.epoch}, by a machine that gives no name"
        since = datetime.fromtimestamp(holder.since_ns // _NS, UTC)
        return f"epoch {lease.epoch}, by {holder.host} since {since:%Y-%m-%d %H:%M:%S} UTC"
