"""The header of a volume before it is unlocked: what lies in the local state, and what the stores show.

Nothing here is authenticated by the volume's keys; `unlock.unlock_header` does that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import trio

from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths
from mirrorfs.cli.stores import LOOK_DEADLINE_S, ONCE, check_version, open_store
from mirrorfs.engine.versions import get_good
from mirrorfs.errors import (
    AuthenticationError,
    ChainError,
    DamagedError,
    LimitError,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)
from mirrorfs.format.document import DOCUMENT_SIZE_MAX, DocumentKind, verify_signature
from mirrorfs.format.generation import KeyGeneration, check_descent
from mirrorfs.format.header import (
    VolumeHeader,
    header_key,
    parse_header,
    parse_header_key,
    verify_successor,
)
from mirrorfs.ports import ObjectKey, Store

HEADERS_MAX = 64
"""Headers of one store that are looked at; a volume makes one at init and one per change of its slots."""


def local_header(paths: VolumePaths) -> bytes | None:
    """The newest header in the local state, later keys before higher numbers; None when none is whole."""
    whole = [(header, data) for _, header, data in local_headers(paths) if header is not None]
    return max(whole, key=lambda one: age(one[0]))[1] if whole else None


def age(header: VolumeHeader) -> tuple[int, int]:
    return header.key_generation, header.generation


def local_headers(paths: VolumePaths) -> list[tuple[int, VolumeHeader | None, bytes]]:
    """The number in each one's name, and what it holds; a torn or rotten one holds nothing."""
    try:
        names = [path.name for path in paths.headers.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found: list[tuple[int, VolumeHeader | None, bytes]] = []
    for generation, key in _newest_first([f"header/{name}" for name in names]):
        try:
            with open(paths.state / "objects" / key, "rb") as file:
                data = file.read(DOCUMENT_SIZE_MAX + 1)
            found.append((generation, parse_header(data, key=key), data))
        except (DamagedError, LimitError, OSError):
            # It is passed over: the stores have the same bytes. Its name says that there was such a one.
            found.append((generation, None, b""))
    return found


def _newest_first(keys: Sequence[str]) -> list[tuple[int, str]]:
    found = []
    for key in keys:
        try:
            found.append((parse_header_key(key)[0], key))
        except DamagedError:
            continue
    return sorted(found, reverse=True)


async def store_headers(store: Store, *, above: int = 0, known: Collection[str] = frozenset()) -> list[bytes]:
    """Whole headers that a store holds, newest generation first; nothing in them is authenticated.

    Args:
        above: older generations, and this one, are left out.
        known: keys of headers that need not be fetched.
    Raises: StoreError: the store does not answer. StoreTooNew.
    """
    page = await store.list("header/", start_after=f"header/{above + 1:08x}")
    headers = []
    for _, key in _newest_first([info.key for info in page if info.key not in known])[:HEADERS_MAX]:
        try:
            check = partial(_named, key, store.name)
            headers.append(await get_good(store, ObjectKey(key), check, size_max=DOCUMENT_SIZE_MAX))
        except (DamagedError, LimitError, ObjectNotFound):
            continue
    return headers


def _named(key: str, store: str, data: bytes) -> bytes:
    """The bytes of a header. Raises: DamagedError, LimitError: not those that its key names. StoreTooNew."""
    if header_key(parse_header_key(key)[0], data) != key:
        raise DamagedError("the bytes of a header are not those that its key names.")
    check_version(data, store=store)
    parse_header(data, key=key)
    return data


async def find_header(paths: VolumePaths, config: VolumeConfig) -> bytes:
    """The newest header of a volume, of those in the local state and on the stores that answer.

    Another PC may have written a newer one than is here. It is taken if the writer signed it whom the local
    header names, or, where keys were rotated since, if the writers of all generations between made its keys.
    `unlock_header` authenticates it then, and `check_pinned` compares what is pinned. It is never passed over
    for an older one, whose keys would open, and what is then written would be followed by nobody.
    Raises: StoreUnavailable: there is none here, and no store that answers has it. ChainError: there are two
        that have new keys in place of the same ones.
    """
    local = local_header(paths)
    known = parse_header(local) if local is not None else None
    # Another PC may have rotated the keys in a header with a lower number than the newest here.
    held = {header_key(one.generation, data) for _, one, data in local_headers(paths) if one is not None}
    found = await headers_of(
        config.stores, above=known.key_generation if known is not None else 0, known=held
    )
    fitting: dict[bytes, VolumeHeader] = {} if known is None or local is None else {local: known}
    for data in found:
        try:
            fitting[data] = _fitting(data, known, config)
        except (DamagedError, LimitError):
            continue  # a store can hold, or show, anything
    if not fitting:
        raise StoreUnavailable(
            f"The header of volume {paths.name} is neither in the local state nor on a store that answers;"
            " make a store reachable and try again."
        )
    newest = max(fitting, key=lambda one: (*age(fitting[one]), one))
    for data, header in fitting.items():
        check_no_fork(data, header, fitting[newest])
    return newest


def _who(entry: KeyGeneration) -> tuple[bytes, bytes]:
    return entry.fingerprint, entry.writer


def check_no_fork(data: bytes, header: VolumeHeader, followed: VolumeHeader) -> None:
    """Return if two headers do not have different new keys in place of the same old ones.

    Args:
        data, header: of the one that is not followed; if no writer of keys of both made it, it says nothing.
    Raises: ChainError.
    """
    pairs = list(zip(header.line, followed.line, strict=False))
    common = 0
    while common < len(pairs) and _who(pairs[common][0]) == _who(pairs[common][1]):
        common += 1
    if common in (0, len(pairs)) or header.volume != followed.volume:
        return
    root = followed.line[common - 1]
    try:
        check_descent(
            header.volume, header.line,
            generation=root.generation, fingerprint=root.fingerprint, writer=root.writer,
        )  # fmt: skip
        verify_signature(
            data, DocumentKind.HEADER, volume=header.volume, public_key=header.public_keys.writer
        )
    except DamagedError:
        return
    raise ChainError(
        "The stores show two headers whose new keys replace the same old ones: two PCs rotated the keys,"
        " or somebody with old keys did. Nothing is written; find out whose is right before you go on."
    )


def _fitting(data: bytes, known: VolumeHeader | None, config: VolumeConfig) -> VolumeHeader:
    """A header that may take the place of the known one. Raises: DamagedError, LimitError."""
    header = parse_header(data)
    if known is None:
        fingerprints = {header.fingerprint, *(entry.fingerprint for entry in header.generations)}
        if header.volume != config.volume or config.fingerprint not in fingerprints:
            raise AuthenticationError("The header is that of another volume.")
    elif age(verify_relative(data, known=known)) <= age(known):
        raise AuthenticationError("The header is no newer than the one that is here.")
    return header


def verify_relative(data: bytes, *, known: VolumeHeader) -> VolumeHeader:
    """A header that the writer of a known one made, or a writer whose keys that one's keys led to.

    Raises: FormatError, LimitError: not a header. AuthenticationError: somebody else made it, or its keys are
        earlier ones.
    """
    header = parse_header(data)
    if header.key_generation <= known.key_generation or header.volume != known.volume:
        return verify_successor(data, known=known)
    check_descent(
        header.volume,
        header.line,
        generation=known.key_generation,
        fingerprint=known.fingerprint,
        writer=known.public_keys.writer,
    )
    verify_signature(data, DocumentKind.HEADER, volume=known.volume, public_key=header.public_keys.writer)
    return header


async def headers_of(
    stores: Sequence[StoreConfig], *, above: int, known: Collection[str] = frozenset()
) -> list[bytes]:
    """As `store_headers`, of all stores that answer within LOOK_DEADLINE_S."""
    found: list[bytes] = []

    async def fetch(store_config: StoreConfig) -> None:
        store = open_store(store_config.name, store_config.url, policy=ONCE)
        try:
            with trio.move_on_after(LOOK_DEADLINE_S):
                found.extend(await store_headers(store, above=above, known=known))
        except StoreError:
            # One store that answers is enough; what it means that none does is the caller's to say.
            pass
        finally:
            with trio.move_on_after(1.0, shield=True):
                await store.aclose()

    async with trio.open_nursery() as nursery:
        for store_config in stores:
            nursery.start_soon(fetch, store_config)
    return found
