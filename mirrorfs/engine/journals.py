"""The journal frames of one commit: records, split to fit, chained to the frames before."""

from __future__ import annotations

from collections.abc import Sequence

from mirrorfs.format.frame import Body, Kind, make_body
from mirrorfs.format.journal import Journal, encode_journal, journal_hash
from mirrorfs.format.limits import FRAME_LENGTH_MAX


def journals_of_commit(
    records: Sequence[bytes], *, time_ns: int, durable_size: int, sequence: int, digest: bytes
) -> list[tuple[Journal, bytes]]:
    """Journals and their payloads; all but the last say that the commit continues.

    Args:
        records: encoded, each at most FRAME_LENGTH_MAX bytes.
        durable_size: bytes of the open segment that are known durable.
        sequence, digest: of the last journal frame in the log.
    """
    batches: list[list[bytes]] = [[]]
    size = 0
    for record in records:
        if batches[-1] and size + len(record) > FRAME_LENGTH_MAX:
            batches.append([])
            size = 0
        batches[-1].append(record)
        size += len(record)
    journals: list[tuple[Journal, bytes]] = []
    for number, batch in enumerate(batches):
        sequence += 1
        continues = number + 1 < len(batches)
        journal = Journal(sequence, time_ns, durable_size, continues, len(batch), digest, b"".join(batch))
        payload = encode_journal(journal)
        digest = journal_hash(payload)
        journals.append((journal, payload))
    return journals


def journal_body(payload: bytes) -> Body:
    """The frame body of a journal payload."""
    return make_body(Kind.JOURNAL, payload)
