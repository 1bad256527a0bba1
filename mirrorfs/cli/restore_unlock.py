"""Unlocking a volume of which nothing is known here: which of the headers that its stores show is followed.

A store can show anything: junk, a header of its own, the volume's with a bit turned. They are tried newest
first; what does not open is passed over, and nobody is asked twice for it. But one that the volume's own
writers made never is for an older one: a slot that it lacks was taken away, a password of then was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mirrorfs.cli.config import TokenConfig
from mirrorfs.cli.headers import age, check_no_fork, verify_relative
from mirrorfs.cli.restore_report import say
from mirrorfs.cli.restore_stores import StoresFound
from mirrorfs.cli.tokens import SecretSources, make_tokens
from mirrorfs.cli.unlock import AskedPassword, TokenSecrets, Unlocked, unlock_header
from mirrorfs.errors import (
    DamagedError,
    LimitError,
    MirrorfsError,
    NotAnswered,
    NotTouched,
    PinLocked,
    UnlockError,
    WrongPin,
)
from mirrorfs.format.header import VolumeHeader, parse_header

TRIES_MAX: Final = 4
"""Headers of one store that may fail: each may cost a touch, a wrong password to a TPM, or seconds."""

_ENDS_IT: Final = (WrongPin, PinLocked, NotAnswered, NotTouched)
"""These come from a token or a person, whatever the header: they are not asked again."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A header, and the names of the stores that show it."""

    data: bytes
    header: VolumeHeader
    stores: tuple[str, ...]


def unlock_newest(found: StoresFound, tokens: Sequence[TokenConfig], sources: SecretSources) -> Unlocked:
    """Unlock the newest header of the volume's writers. Blocks; asks for a PIN and for the password once.

    Raises: UnlockError and its kinds, DamagedError, LimitError: of the header that most stores show, of
        several the newest; or of the newest that the writers made. UsageError: no source for a secret.
    """
    return _Tries(_shown(found), tokens, sources).run()


def _shown(found: StoresFound) -> list[_Shown]:
    """Each header once, newest first; of several as new, first what most stores show."""
    stores: dict[bytes, list[str]] = {}
    for one in found.found:
        for data in one.headers:
            stores.setdefault(data, []).append(one.store.name)
    shown = [_Shown(data, parse_header(data), tuple(names)) for data, names in stores.items()]
    return sorted(shown, key=lambda one: (*age(one.header), len(one.stores), one.data), reverse=True)


class _Tries:
    """One unlocking."""

    def __init__(
        self, shown: Sequence[_Shown], tokens: Sequence[TokenConfig], sources: SecretSources
    ) -> None:
        sources = replace(sources, remembers_pin=True)
        self._shown = shown
        self._name = f"{shown[0].header.volume.hex()[:8]}..."
        self._tokens = make_tokens(tokens, sources)
        self._sources = sources
        self._password = AskedPassword(self._name, sources)
        self._secrets = TokenSecrets()
        self._failed: dict[str, int] = {}
        """How many headers of each store failed."""

    def run(self) -> Unlocked:
        failures: list[tuple[_Shown, MirrorfsError]] = []
        passed_over: list[_Shown] = []
        for one in self._shown:
            if all(self._failed.get(name, 0) >= TRIES_MAX for name in one.stores):
                passed_over.append(one)
                continue
            try:
                unlocked = self._open(one)
            except (DamagedError, LimitError, UnlockError) as exc:
                if isinstance(exc, _ENDS_IT):
                    raise
                failures.append((one, exc))
                for name in one.stores:
                    self._failed[name] = self._failed.get(name, 0) + 1
                continue
            return self._checked(unlocked, failures, passed_over)
        raise _most_helpful(failures)

    def _open(self, one: _Shown) -> Unlocked:
        return unlock_header(
            one.data,
            name=self._name,
            tokens=self._tokens,
            sources=self._sources,
            password=self._password,
            secrets=self._secrets,
        )

    def _checked(
        self,
        unlocked: Unlocked,
        failures: Sequence[tuple[_Shown, MirrorfsError]],
        passed_over: Sequence[_Shown],
    ) -> Unlocked:
        """What was opened, or a newer one that the volume's writers made.

        Raises: why that does not open. ChainError: there are two rotations of the same keys.
        """
        for one in self._shown:
            check_no_fork(one.data, one.header, unlocked.header)
        for one, exc in failures:
            if _is_genuine(one, unlocked):
                raise exc
            say(
                f"A header of {_named(one)} opens nothing, and no writer of the volume made it: it is passed"
                " over. Find out who can write there."
            )
        for one in passed_over:
            if age(one.header) > age(unlocked.header) and _is_genuine(one, unlocked):
                return self._open(one)
        return unlocked


def _most_helpful(failures: Sequence[tuple[_Shown, MirrorfsError]]) -> MirrorfsError:
    """What is to be raised where nothing opens; the rest is said, but not the same of the same stores."""
    reported, failure = max(failures, key=lambda one: (len(one[0].stores), *age(one[0].header)))
    for one, other in failures:
        if str(other) != str(failure) or len(one.stores) < len(reported.stores):
            say(f"Header generation {one.header.generation} of {_named(one)} does not open: {other}")
    return failure


def _is_genuine(one: _Shown, opened: Unlocked) -> bool:
    """Whether the writer of a header that opened made this one, or a writer whose keys its keys led to."""
    try:
        verify_relative(one.data, known=opened.header)
    except (DamagedError, LimitError):
        return False
    return True


def _named(one: _Shown) -> str:
    return f"{'stores' if len(one.stores) > 1 else 'store'} {', '.join(one.stores)}"
