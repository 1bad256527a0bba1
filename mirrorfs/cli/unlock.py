"""Unlocking a volume: its header, a token, a PIN and a password give the keys; used by mount and restore.

The PIN is asked for by the token's name once the token is found, the password after the token proved to
be the right one: so neither is typed in vain.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from mirrorfs.cli.config import TokenConfig, VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.headers import find_header, local_headers
from mirrorfs.cli.key_events import note_opened
from mirrorfs.cli.tokens import SecretSources, make_tokens
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.errors import (
    ChainError,
    ModuleMissing,
    TokenMissing,
    UnlockError,
    WrongToken,
    WrongVolume,
)
from mirrorfs.format.header import VolumeHeader, header_key, parse_header, verify_header
from mirrorfs.format.kdf import VolumeKeys, format_fingerprint
from mirrorfs.format.slot import KdfParameters, KeySet, Slot
from mirrorfs.format.slot_token import SlotKind
from mirrorfs.keys.prompts import read_password
from mirrorfs.keys.slots import check_token_secret, open_slot, stretch_password, token_authorisation
from mirrorfs.keys.token import Authorise, Token


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


class TokenSecrets:
    """What tokens yielded, or why they did not: each is asked once for the same."""

    def __init__(self) -> None:
        self._known: dict[object, bytes | UnlockError] = {}

    def of(self, token: Token, slot: Slot, volume: bytes, authorise: Authorise) -> bytes:
        """See `Token.secret_for`."""
        # Of the password and its parameters only a TPM is told.
        kdf = slot.kdf if slot.kind is SlotKind.TPM2 else None
        asked = (id(token), slot.token, volume, kdf)
        if asked not in self._known:
            try:
                self._known[asked] = token.secret_for(slot.token, volume=volume, authorise=authorise)
            except UnlockError as exc:
                self._known[asked] = exc
        found = self._known[asked]
        if isinstance(found, UnlockError):
            raise found
        return found


def unlock_header(
    data: bytes,
    *,
    name: str,
    tokens: Sequence[Token],
    sources: SecretSources,
    password: AskedPassword | None = None,
    secrets: TokenSecrets | None = None,
) -> Unlocked:
    """Open a header with a token and a password, and authenticate it. Blocks.

    The caller compares fingerprint and generation with what it has pinned (`check_pinned`), or shows them.
    Args:
        name: of the volume, for the prompt.
        tokens: tried in this order; the first that is present and has a slot is used, and no other is asked.
        password: to ask with, for a caller that goes on to use it.
        secrets: likewise what the tokens yield.
    Raises: UnlockError and its kinds. UsageError: no source for a secret. DamagedError, LimitError: the
        header is not what was written.
    """
    header = parse_header(data)
    slot, token = choose_slot(header, tokens)
    password = password or AskedPassword(name, sources)
    secrets = secrets or TokenSecrets()
    secret = secrets.of(token, slot, header.volume, password.authorise(slot.kdf))
    key_set = open_with(header, slot, password, secret)
    verified, keys = verify_header(data, key_set)
    return Unlocked(data=data, header=verified, key_set=key_set, keys=keys, slot=slot, secret=secret)


def unlock_configured(
    paths: VolumePaths,
    config: VolumeConfig,
    chosen: Sequence[TokenConfig],
    sources: SecretSources,
    *,
    data: bytes | None = None,
    password: AskedPassword | None = None,
    keeps: bool = True,
) -> tuple[Unlocked, VolumeConfig]:
    """Unlock a volume that is configured here, by its newest header, and keep that. Blocks.

    Args:
        chosen: the tokens to try, see `chosen_tokens`.
        data: of the header, if the caller has found it; see `find_header`.
        password: see `unlock_header`.
        keeps: whether what another PC changed is taken over here.
    Returns: the volume, and its configuration, which pins its present keys.
    Raises: UnlockError and its kinds, and what `find_header`, `check_pinned` and `adopt` raise.
    """
    if data is None:
        data = trio.run(find_header, paths, config)
    tokens = make_tokens(chosen, sources)
    unlocked = unlock_header(data, name=paths.name, tokens=tokens, sources=sources, password=password)
    check_pinned(unlocked, config, paths)
    return unlocked, adopt(paths, config, unlocked) if keeps else config


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
    for generation, header, _ in local_headers(paths):
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

    What another PC has changed of keys and stores is recorded.

    Raises: DiskError, ConfigError.
    """
    note_opened(paths, config.alarm, unlocked.header, unlocked.data)
    key = header_key(unlocked.header.generation, unlocked.data)
    if not (paths.state / "objects" / key).exists():
        LocalDisk(paths.state).write_whole(f"objects/{key}", unlocked.data)
    if config.fingerprint != unlocked.keys.fingerprint:
        config = replace(config, fingerprint=unlocked.keys.fingerprint)
        write_config(paths, config)
    return config
