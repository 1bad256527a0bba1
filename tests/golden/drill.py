"""The report of a drill on the golden volume's store, which found one bad object."""

from __future__ import annotations

import hashlib

from mirrorfs.format.drill import DrillFault, DrillReport, seal_drill_report
from mirrorfs.format.header import parse_header
from tests.golden.material import Material


def report(m: Material) -> bytes:
    """The document, sealed."""
    key, _ = m.segment(1)
    drilled = DrillReport(
        store="golden",
        instance=parse_header(m.header).stores[0].instance,
        host="accueil-2",
        program="0.1.0",
        started_ns=1_700_000_200_000_000_000,
        ended_ns=1_700_000_260_500_000_000,
        previous=b"",
        header_generation=1,
        header_hash=hashlib.sha256(m.header).digest(),
        position=3 << 20 | 2,
        time_ns=1_700_000_100_000_000_000,
        journal_sequence=11,
        journal_hash=hashlib.sha256(b"a journal frame").digest(),
        missing_since_ns=0,
        names=9,
        files=6,
        size_bytes=1_200_000,
        drilled_files=6,
        drilled_bytes=1_100_000,
        compared_files=5,
        differing_names=0,
        damaged_files=1,
        differing_files=0,
        object_count=1,
        objects=(key,),
        faults=(DrillFault.DAMAGED,),
    )
    return seal_drill_report(drilled, keys=m.keys, seed=m.key_set.drill)
