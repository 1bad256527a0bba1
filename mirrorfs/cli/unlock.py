"""Unlocking a volume: its header, a token, a PIN and a password give the keys; used by mount and restore.

The PIN is asked for by the token's name once the token is found, the password after the token proved to
be the right one: so neither is typed in vain.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import trio

from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.stores import LOOK_DEADLINE_S, ONCE, check_version, open_store
from mirrorfs.cli.tokens import SecretSources
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.errors import (
    AuthenticationError,
    ChainError,
    DamagedError,
    LimitError,
    ModuleMissing,
    StoreError,
    StoreUnavailable,
    TokenMissing,
    UnlockError,
    WrongToken,
    WrongVolume,
)
from mirrorfs.format.document import DOCUMENT_SIZE_MAX, DocumentKind, verify_signature
from mirrorfs.format.generation import check_descent
from mirrorfs.format.header import (
    VolumeHeader,
    header_key,
    parse_header,
    parse_header_key,
    verify_header,
    verify_successor,
)
from mirrorfs.format.kdf import VolumeKeys, format_fingerprint
from mirrorfs.format.slot import KdfParameters, KeySet, Slot
from mirrorfs.keys.prompts import read_password
from mirrorfs.keys.slots import check_token_secret, open_slot, stretch_password, token_authorisation
from mirrorfs.keys.token import Authorise, Token
from mirrorfs.ports import ObjectKey, Store

HEADERS_MAX = 64
"""Headers of one store that are looked at; a volume makes one at init and one per change of its slots."""


@dataclass(frozen=True, slots=True, repr=False)
class Unlocked:
    """An opened volume. Its repr shows no secret."""

    data: bytes
    """The bytes of the header."""
    header: VolumeHeader
    key_set: KeySet
    keys: VolumeKeys
    slot: Slot
    """The one that was opened."""
    secret: bytes
    """What its token yielded."""


class AskedPassword:
    """The volume password: asked for once, at the moment it is needed, and stretched once for each slot."""

    def __init__(self, name: str, sources: SecretSources) -> None:
        self._name = name
        self._sources = sources
        self._password: bytes | None = None
        self._stretched: dict[KdfParameters, bytes] = {}

    def password(self) -> bytes:
        """UTF-8 in normalization form C. Raises: UsageError: no source for it."""
        if self._password is None:
            sources = self._sources
            self._password = read_password(
                self._name, path=sources.password_file, environment=sources.environment
            )
        return self._password

    def stretched(self, kdf: KdfParameters) -> bytes:
        """See `slots.stretch_password`. Raises: UsageError. UnlockError."""
        if kdf not in self._stretched:
            self._stretched[kdf] = stretch_password(self.password(), kdf)
        return self._stretched[kdf]

    def authorise(self, kdf: KdfParameters) -> Authorise:
        """For a slot with these parameters."""
        return lambda: token_authorisation(self.stretched(kdf), kdf)


def unlock_header(
    data: bytes,
    *,
    name: str,
    tokens: Sequence[Token],
    sources: SecretSources,
    password: AskedPassword | None = None,
) -> Unlocked:
    """Open a header with a token and a password, and authenticate it. Blocks.

    The caller compares fingerprint and generation with what it has pinned (`check_pinned`), or shows them.
    Args:
        name: of the volume, for the prompt.
        tokens: tried in this order; the first that is present and has a slot is used, and no other is asked.
        password: to ask with, for a caller that goes on to use it.
    Raises: UnlockError and its kinds. UsageError: no source for a secret. DamagedError, LimitError: the
        header is not what was written.
    """
    header = parse_header(data)
    slot, token = choose_slot(header, tokens)
    password = password or AskedPassword(name, sources)
    secret = token.secret_for(slot.token, volume=header.volume, authorise=password.authorise(slot.kdf))
    key_set = open_with(header, slot, password, secret)
    verified, keys = verify_header(data, key_set)
    return Unlocked(data=data, header=verified, key_set=key_set, keys=keys, slot=slot, secret=secret)


def open_with(header: VolumeHeader, slot: Slot, password: AskedPassword, secret: bytes) -> KeySet:
    """The key set of a slot whose token has yielded its secret. Raises: UnlockError, AuthenticationError."""
    # Before the password is asked for: it would be typed in vain.
    check_token_secret(slot, secret)
    return open_slot(
        slot,
        volume=header.volume,
        key_generation=header.key_generation,
        stretched=password.stretched(slot.kdf),
        token_secret=secret,
    )


def choose_slot(header: VolumeHeader, tokens: Sequence[Token]) -> tuple[Slot, Token]:
    """The first slot whose token is present, and that token; nothing secret is asked for.

    Raises: UnlockError: there is none; of several reasons a token that is there and has no slot comes first.
    """
    wrong: list[UnlockError] = []
    absent: list[UnlockError] = []
    needless: list[UnlockError] = []
    for token in tokens:
        slots = [slot for slot in header.slots if slot.kind is token.kind]
        if not slots:
            needless.append(WrongToken(f"The volume has no slot for {token.describe()}; use another token."))
            continue
        try:
            fields = token.choose([slot.token for slot in slots])
        except WrongToken as exc:
            wrong.append(exc)
        except (TokenMissing, ModuleMissing) as exc:
            absent.append(exc)
        else:
            return next(slot for slot in slots if slot.token == fields), token
    raise (wrong + absent + needless)[0]


def check_pinned(unlocked: Unlocked, config: VolumeConfig, paths: VolumePaths) -> None:
    """Refuse a header that opens but is not the one of this volume, or older than one seen here: a roll-back.

    Raises: WrongVolume. ChainError.
    """
    if not is_of(unlocked, config):
        found = format_fingerprint(unlocked.keys.fingerprint)
        raise WrongVolume(
            f"The header opens a volume with fingerprint {found}, not the one pinned here; nothing was used"
            " of it: check the stores."
        )
    for generation, header, _ in _local_headers(paths):
        # Numbers count among headers of the same keys; of a rotten one the number is all there is.
        is_earlier = header is not None and header.key_generation < unlocked.header.key_generation
        if generation > unlocked.header.generation and not is_earlier:
            raise ChainError(
                "The volume's header is older than the one seen here before; restore the state directory's"
                " copy."
            )


def is_of(unlocked: Unlocked, config: VolumeConfig) -> bool:
    """Whether a header is of the volume that is pinned: of its keys, or of those that they led to."""
    keys = (unlocked.keys, *(past.keys for past in unlocked.keys.past))
    pinned = any(hmac.compare_digest(one.fingerprint, config.fingerprint) for one in keys)
    return pinned and unlocked.header.volume == config.volume


def adopt(paths: VolumePaths, config: VolumeConfig, unlocked: Unlocked) -> VolumeConfig:
    """Keep what was opened, and then pin it where another PC has rotated the keys.

    Raises: DiskError, ConfigError.
    """
    key = header_key(unlocked.header.generation, unlocked.data)
    if not (paths.state / "objects" / key).exists():
        LocalDisk(paths.state).write_whole(f"objects/{key}", unlocked.data)
    if config.fingerprint != unlocked.keys.fingerprint:
        config = replace(config, fingerprint=unlocked.keys.fingerprint)
        write_config(paths, config)
    return config


# --- finding the header ----------------------------------------------------------------------


def local_header(paths: VolumePaths) -> bytes | None:
    """The newest header in the local state, later keys before higher numbers; None when none is whole."""
    whole = [(header, data) for _, header, data in _local_headers(paths) if header is not None]
    return max(whole, key=lambda one: _age(one[0]))[1] if whole else None


def _age(header: VolumeHeader) -> tuple[int, int]:
    return header.key_generation, header.generation


def _local_headers(paths: VolumePaths) -> list[tuple[int, VolumeHeader | None, bytes]]:
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
            data = await store.get(ObjectKey(key), size_max=DOCUMENT_SIZE_MAX)
            check_version(data, store=store.name)
            parse_header(data, key=key)
        except (DamagedError, LimitError):
            continue
        headers.append(data)
    return headers


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
    held = {header_key(one.generation, data) for _, one, data in _local_headers(paths) if one is not None}
    found = await _headers_of(config, above=known.key_generation if known is not None else 0, known=held)
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
    newest = max(fitting, key=lambda one: (*_age(fitting[one]), one))
    same = [one for one in fitting.values() if one.key_generation == fitting[newest].key_generation]
    if len({one.fingerprint for one in same}) > 1:
        raise ChainError(
            "The stores show two headers whose new keys replace the same old ones: two PCs rotated the keys,"
            " or somebody with old keys did. Nothing is written; find out whose is right before you go on."
        )
    return newest


def _fitting(data: bytes, known: VolumeHeader | None, config: VolumeConfig) -> VolumeHeader:
    """A header that may take the place of the known one. Raises: DamagedError, LimitError."""
    header = parse_header(data)
    if known is None:
        fingerprints = {header.fingerprint, *(entry.fingerprint for entry in header.generations)}
        if header.volume != config.volume or config.fingerprint not in fingerprints:
            raise AuthenticationError("The header is that of another volume.")
    elif header.key_generation > known.key_generation and header.volume == known.volume:
        check_descent(
            header.volume,
            header.line,
            generation=known.key_generation,
            fingerprint=known.fingerprint,
            writer=known.public_keys.writer,
        )
        verify_signature(data, DocumentKind.HEADER, volume=known.volume, public_key=header.public_keys.writer)
    elif header.generation > known.generation:
        verify_successor(data, known=known)
    else:
        raise AuthenticationError("The header is no newer than the one that is here.")
    return header


async def _headers_of(config: VolumeConfig, *, above: int, known: Collection[str]) -> list[bytes]:
    """Headers above a generation that the stores show within LOOK_DEADLINE_S."""
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
        for store_config in config.stores:
            nursery.start_soon(fetch, store_config)
    return found
