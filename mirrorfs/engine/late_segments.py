"""A local log that went on with keys that were out of use: its PC had not heard of their rotation."""

from __future__ import annotations

from mirrorfs.engine.sources import Segments
from mirrorfs.engine.standing import WHAT_NEXT
from mirrorfs.errors import ChainError, DamagedError
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Offload


async def check_no_late_segment(
    disk: Disk, offload: Offload, keys: VolumeKeys, writer: WriterPublicKey
) -> None:
    """Refuse a local log that goes on with old keys where later ones seal.

    Where it does, it has a segment with the very number with which those begin: what came before could be
    read here. Such a segment is valid for nobody, and the stores' log would be followed past it unsaid.
    Raises: ChainError.
    """
    for first in [past.until_sequence for past in keys.past]:
        segments = Segments(Stream.MAIN, disk=disk, offload=offload, stores=())
        await segments.look(from_sequence=first, stores=False)
        for segment in await segments.candidates(first):
            async for _, data in segments.beginnings(segment):
                try:
                    header, _ = decode_header(data, keys.for_any_place(), writer)
                except DamagedError:
                    continue
                if header.key_generation < keys.era(first):
                    raise ChainError(
                        "This machine wrote on with keys that had been rotated elsewhere, and nobody follows"
                        f" that; {WHAT_NEXT}"
                    )
