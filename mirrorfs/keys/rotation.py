"""A new key generation: new root key and role keys, for all that is written from then on.

Every slot gets the new keys, its token being here or not (`slots.box_key_set`). The old ones are kept in the
header under the new root key, so that what they sealed is read as before; whoever has only them, from an old
copy of the header, opens nothing that is sealed afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from mirrorfs.errors import LimitError, UsageError
from mirrorfs.format.document import DOCUMENT_SIZE_MAX, canonical_json
from mirrorfs.format.generation import retire_generation
from mirrorfs.format.header import (
    KEY_GENERATIONS_MAX,
    KeyGeneration,
    VolumeHeader,
    seal_header,
)
from mirrorfs.format.ids import Previous
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import SLOT_VERSION_FIRST, KeySet, Role, Slot
from mirrorfs.keys.slots import box_key_set
from mirrorfs.ports import Entropy

_ENTRY_MAX = 1100
"""Bytes of the header that a key generation takes at most when it is out of use, and the document's frame."""
_BOX_MAX = 400
"""Bytes that a slot's box takes."""


def check_can_rotate(header: VolumeHeader, roles: Sequence[Role]) -> None:
    """Raises: UsageError: a slot cannot take new keys, or the opened one may not make them. LimitError."""
    if set(roles) != set(Role):
        raise UsageError("The slot that was opened does not have every role; use one that has them all.")
    first = [slot.name for slot in header.slots if slot.version == SLOT_VERSION_FIRST]
    if first:
        raise UsageError(
            f"Slot {first[0]} was made by an earlier version and takes no new keys: run `mirrorfs key passwd`"
            " with its token, or remove it."
        )
    if header.key_generation >= KEY_GENERATIONS_MAX:
        raise LimitError(f"A volume has at most {KEY_GENERATIONS_MAX} key generations; it has them all.")
    boxes = _BOX_MAX * sum(not slot.boxed for slot in header.slots)
    size = len(canonical_json(header.to_body())) + _ENTRY_MAX + boxes
    if size > DOCUMENT_SIZE_MAX:
        raise LimitError(
            "The volume's header has no room for another key generation: remove slots that are not needed."
        )


def rotate_keys(
    header: VolumeHeader,
    data: bytes,
    keys: VolumeKeys,
    key_set: KeySet,
    *,
    slots: Sequence[Slot],
    log_end: Previous,
    checkpoint: Previous | None,
    entropy: Entropy,
) -> tuple[bytes, KeySet]:
    """The sealed header of the next key generation, and its key set with all roles.

    Args:
        header, data, keys, key_set: what is in force; `check_can_rotate` has passed.
        slots: those that are to open it.
        log_end, checkpoint: the last segment of the main stream, and the checkpoint segment with the newest
            root, both of this generation.
    Raises: FormatError, LimitError.
    """
    generation = header.key_generation + 1
    new = KeySet(root=entropy(32), writer=entropy(32), pruner=entropy(32), drill=entropy(32))
    new_keys = VolumeKeys.derive(new.root, volume=header.volume, generation=generation)
    last = header.generations[-1]
    retired = retire_generation(
        last,
        keys,
        seed=key_set.writer,
        newer=new_keys,
        newer_writer=new.public_keys().writer,
        log_end=log_end,
        checkpoint=checkpoint,
        entropy=entropy,
    )
    roots = {past.keys.generation: past.keys.root for past in keys.past} | {keys.generation: keys.root}
    rotated = replace(
        header,
        generation=header.generation + 1,
        previous=hashlib.sha256(data).digest(),
        fingerprint=new_keys.fingerprint,
        key_generation=generation,
        generations=(
            *header.generations[:-1],
            retired,
            KeyGeneration(generation, log_end.segment.sequence + 1, b""),
        ),
        public_keys=new.public_keys(),
        slots=tuple(
            box_key_set(
                slot,
                new,
                volume=header.volume,
                key_generation=generation,
                slot_root=roots[slot.key_generation],
                entropy=entropy,
            )
            for slot in slots
        ),
    )
    return seal_header(rotated, keys=new_keys, seed=new.writer), new
