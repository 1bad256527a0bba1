"""What a session takes over when it is told that its volume's stores were changed.

The control socket says only that there is something to look at: whoever can write to it could as well signal
the process. What counts is the configuration, which nobody else can write, and the newest local header, which
somebody with the writer's key made and which continues, link by link, the one that the session has.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace

from mirrorfs.cli.config import VolumeConfig, VolumePaths, load_config
from mirrorfs.cli.headers import local_header
from mirrorfs.engine.store_tasks import StoreChange
from mirrorfs.errors import ChainError, ConfigError
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import StoreEntry, VolumeHeader, header_key, parse_header, verify_header
from mirrorfs.format.slot import KeySet
from mirrorfs.ports import Store

LINKS_MAX = 64
"""Generations that a session may be behind."""


def read_change(
    paths: VolumePaths,
    key_set: KeySet,
    current: bytes,
    open_store: Callable[[VolumeConfig, StoreEntry], Store],
) -> StoreChange:
    """Read and check what the stores are to be. Blocks for some reads of small files.

    Args:
        key_set: of the session.
        current: the bytes of the header that the session has.
        open_store: makes a store that the session does not have.
    Raises: ConfigError: the configuration cannot be used, or names other stores than the header.
        AuthenticationError, FormatError: the header was not made by a writer of this volume. ChainError: it
        does not continue the session's.
    """
    config = load_config(paths)
    data = local_header(paths)
    if data is None:
        raise ChainError("The volume's header is not in the local state; run `mirrorfs store` again.")
    header, keys = verify_header(data, key_set)
    ours, our_keys = verify_header(current, key_set)
    if header.volume != ours.volume or config.volume != ours.volume:
        raise ConfigError("The configuration is of another volume than the one that is mounted.")
    if not hmac.compare_digest(keys.fingerprint, our_keys.fingerprint) or (
        config.fingerprint != our_keys.fingerprint
    ):
        raise ConfigError("The configuration has another fingerprint than the volume that is mounted.")
    _check_chain(paths, header, data, ours, current)
    wanted = {(store.name, store.instance) for store in config.stores}
    if wanted != {(entry.name, entry.instance) for entry in header.stores}:
        raise ConfigError(
            "The configuration names other stores than the volume's header; run `mirrorfs store` again."
        )
    return StoreChange(
        header=header,
        header_bytes=data,
        rotating=frozenset(store.name for store in config.stores if store.rotating),
        open_store=lambda entry: open_store(config, entry),
    )


def _check_chain(
    paths: VolumePaths, header: VolumeHeader, data: bytes, ours: VolumeHeader, current: bytes
) -> None:
    """Raises: ChainError: `header` is neither ours nor a later one that differs in stores and slots alone."""
    if header.generation < ours.generation or header.generation - ours.generation > LINKS_MAX:
        raise ChainError("The volume's local header is not one that follows the mounted one; mount again.")
    link, digest = header, hashlib.sha256(data).digest()
    while link.generation > ours.generation:
        digest = link.previous
        if link.generation - 1 > ours.generation:
            link = _header_before(paths, link)
        else:
            break
    if not hmac.compare_digest(digest, hashlib.sha256(current).digest()):
        raise ChainError("The volume's local header does not continue the mounted one; mount again.")
    same = replace(
        header,
        generation=ours.generation,
        previous=ours.previous,
        stores=ours.stores,
        slots=ours.slots,
    )
    if same != ours:
        raise ChainError("The volume's header has changed in more than stores and slots; mount it again.")


def _header_before(paths: VolumePaths, header: VolumeHeader) -> VolumeHeader:
    # The name of a header holds half of its digest; all of it is compared.
    name = f"{header.generation - 1:08x}-{header.previous.hex()[:32]}"
    try:
        with open(paths.headers / name, "rb") as file:
            data = file.read(DOCUMENT_SIZE_MAX + 1)
    except OSError as exc:
        raise ChainError("A header of the volume is not in the local state; mount it again.") from exc
    if not hmac.compare_digest(hashlib.sha256(data).digest(), header.previous):
        raise ChainError("A local header of the volume is not the one that was written; mount it again.")
    return parse_header(data, key=header_key(header.generation - 1, data))
