"""Whether other keys came into use while a volume is mounted: its PC slept, and they were rotated elsewhere.

What is under the new keys does not verify here. A lease that does not is a fault of its store, and written
anew; so before that its store is asked for a header to whose keys ours have led.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mirrorfs.engine.versions import get_good
from mirrorfs.errors import AuthenticationError, DamagedError, InUseError, LimitError, ObjectNotFound
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.generation import check_descent
from mirrorfs.format.header import VolumeHeader, parse_header, parse_header_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Store

HEADERS_PREFIX = "header/"
HEADERS_MAX = 64
"""So many of the highest numbers are read of one store."""


async def check_keys_are_in_use(stores: Sequence[Store], keys: VolumeKeys, writer_key: bytes) -> None:
    """Refuse to write with keys that were rotated.

    Args:
        writer_key: Ed25519 public key of the writer under `keys`, 32 bytes.
    Raises: InUseError: they are out of use. StoreError: a store does not answer.
    """
    for store in stores:
        page = await store.list(HEADERS_PREFIX)
        for info in list(reversed(page))[:HEADERS_MAX]:
            try:
                parse_header_key(info.key)
                parse = partial(parse_header, key=info.key)
                header = await get_good(store, info.key, parse, size_max=DOCUMENT_SIZE_MAX)
            except (DamagedError, LimitError, ObjectNotFound):
                continue
            if _follows(header, keys, writer_key):
                raise InUseError(
                    f"The keys were rotated elsewhere, as a header in store {store.name} proves: unmount here"
                    " and mount again, which takes the new ones. What this machine has not sent is kept;"
                    " `mirrorfs restore --from-state` gets it out."
                )


def _follows(header: VolumeHeader, keys: VolumeKeys, writer_key: bytes) -> bool:
    if header.key_generation <= keys.generation or header.volume != keys.volume:
        return False
    try:
        check_descent(
            keys.volume, header.line,
            generation=keys.generation, fingerprint=keys.fingerprint, writer=writer_key,
        )  # fmt: skip
    except AuthenticationError:
        return False
    return True
