"""The manifest of a deletion from the golden volume's store: a segment of the log, and a checkpoint."""

from __future__ import annotations

import hashlib

from mirrorfs.format.header import parse_header
from mirrorfs.format.manifest import Listed, Manifest, seal_manifest
from tests.golden.material import Material


def manifest(m: Material) -> bytes:
    """The document, sealed."""
    checkpoint = min(key for key in m.objects if key.startswith("checkpoints/"))
    listed = [
        Listed(key, len(m.objects[key]), hashlib.sha256(m.objects[key]).digest())
        for key in (checkpoint, m.segment(1)[0])
    ]
    made = Manifest(
        instance=parse_header(m.header).stores[0].instance,
        counter=0x1A,
        created_ns=1_700_000_300_000_000_000,
        position=4 << 20,
        base=3 << 20 | 1,
        policy=(30, 93, 0, 1116, 7320),
        objects=tuple(listed),
    )
    return seal_manifest(made, keys=m.keys, seed=m.key_set.pruner)
