"""From a token URI to the token, and what can be said about it before a PIN is asked for.

PKCS#11 is loaded where such a token is used: most of `mount` only passes tokens on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mirrorfs.cli.config import TokenConfig
from mirrorfs.errors import TokenMissing, UnlockError, UsageError
from mirrorfs.format.slot_token import SlotKind
from mirrorfs.keys.fido2_token import Fido2Token
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri, parse_pkcs11_uri
from mirrorfs.keys.prompts import read_code, read_pin
from mirrorfs.keys.recovery_token import RecoveryToken
from mirrorfs.keys.token import AskPin, Token
from mirrorfs.keys.tpm2_token import Tpm2Token
from mirrorfs.keys.tpm2_uri import parse_tpm2_uri

ANY_TOKEN: Final = (TokenConfig("pkcs11:"), TokenConfig("fido2:"), TokenConfig("tpm2:"))
"""Whatever token is there, for a machine on which nothing is configured."""

_SOFTWARE = "softhsm"


@dataclass(frozen=True, slots=True)
class SecretSources:
    """Where the secrets come from: files that were named, or else a person (keys/askers.py)."""

    password_file: str | None
    pin_file: str | None
    environment: Mapping[str, str]
    code_file: str | None = None
    remembers_pin: bool = False
    """Each token asks for its PIN once, for who unlocks several headers; one that was refused ends that."""


def _scheme(config: TokenConfig) -> str:
    return config.uri.partition(":")[0].lower()


def token_uri(config: TokenConfig) -> Pkcs11Uri:
    """The parsed URI, with the module that was named beside it.

    Raises: UsageError: malformed, or of a kind that this version does not know.
    """
    uri = parse_pkcs11_uri(config.uri, local=True)
    if config.module_path is None:
        return uri
    if not config.module_path.startswith("/"):
        raise UsageError("The PKCS#11 module must be given by its absolute path.")
    return replace(uri, module_path=config.module_path, module_name=None)


def chosen_tokens(
    uri: str | None, module: str | None, configured: Sequence[TokenConfig]
) -> tuple[TokenConfig, ...]:
    """The tokens to try: the one that the command line names, or else those that are configured.

    Args:
        module: path of a PKCS#11 module, for the token named or for all configured ones of that kind.
    """
    if uri is not None:
        return (TokenConfig(uri, module),)
    if module is None:
        return tuple(configured)
    return tuple(replace(token, module_path=module) for token in configured if _scheme(token) == "pkcs11")


def tokens_to_keep(used: Sequence[TokenConfig]) -> tuple[TokenConfig, ...]:
    """What is configured where these opened the volume: the recovery code is never looked for by itself."""
    return tuple(token for token in used if _scheme(token) != SlotKind.RECOVERY) or ANY_TOKEN


def make_tokens(configs: Sequence[TokenConfig], sources: SecretSources) -> list[Token]:
    """Raises: UsageError."""
    return [make_token(config, sources) for config in configs]


def refuse_recovery(tokens: Sequence[TokenConfig], *, volume: str) -> None:
    """For what the recovery code does not stand for. Raises: UsageError."""
    if any(_scheme(token) == SlotKind.RECOVERY for token in tokens):
        raise UsageError(
            "The recovery code restores and enrols a new token, no more: run `mirrorfs key add"
            f" {volume} --token recovery: --new-token URI`, then use that token."
        )


def make_token(config: TokenConfig, sources: SecretSources, *, create: bool = False) -> Token:
    """The token that a URI names; `create` as for Pkcs11Token. Raises: UsageError."""
    if _scheme(config) == SlotKind.RECOVERY:
        return RecoveryToken(
            ask_code=lambda: read_code(path=sources.code_file, environment=sources.environment),
            confirm=_not_enrolled_so,
        )
    if _scheme(config) == "tpm2":
        return _tpm2_token(config, create=create)
    if _scheme(config) == "fido2":
        return _fido2_token(config, sources)
    if _scheme(config) != "pkcs11":
        raise UsageError("A token is named by a URI that begins with pkcs11:, fido2: or tpm2:; correct it.")
    from mirrorfs.keys.pkcs11_token import Pkcs11Token

    uri = token_uri(config)
    pin_file = sources.pin_file if sources.pin_file is not None else uri.pin_source
    return Pkcs11Token(uri, ask_pin=_pin_from(pin_file, sources), create=create)


def _pin_from(pin_file: str | None, sources: SecretSources, *, touch_follows: bool = False) -> AskPin:
    remembered: dict[str, str] = {}

    def ask_pin(label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        if label in remembered:
            return remembered[label]
        pin = read_pin(
            label,
            path=pin_file,
            environment=sources.environment,
            final_try=final_try,
            tries_left=tries_left,
            touch_follows=touch_follows,
        )
        if sources.remembers_pin:
            remembered[label] = pin
        return pin

    return ask_pin


def _not_enrolled_so(code: bytes) -> None:
    raise UsageError("A recovery code is made by `mirrorfs key recovery`.")


def _tell(sentence: str) -> None:
    # Without delay, for a security key gives up when nobody touches it. Who has no terminal was told of the
    # touch when the PIN was asked for (`read_pin`): a window of pinentry would wait for a click instead.
    print(f"mirrorfs: {sentence}", file=sys.stderr, flush=True)


def _tpm2_token(config: TokenConfig, *, create: bool = False) -> Tpm2Token:
    if create or config.module_path is not None:
        raise UsageError("--create-key and --module are for pkcs11: tokens; leave them out for a TPM.")
    return Tpm2Token(parse_tpm2_uri(config.uri, local=True), tell=_tell)


def _fido2_token(config: TokenConfig, sources: SecretSources) -> Fido2Token:
    if config.module_path is not None:
        raise UsageError("A PKCS#11 module is named for a fido2: token, which has none; leave it out.")
    ask_pin = _pin_from(sources.pin_file, sources, touch_follows=True)
    return Fido2Token(config.uri, ask_pin=ask_pin, tell=_tell)


def check_present(config: TokenConfig, sources: SecretSources) -> bool:
    """Look for a token that the URI matches, without a PIN.

    Returns: whether the first one is a software token, which anyone can copy.
    Raises: TokenMissing: there is none. ModuleMissing, TokenFailed: no module can be asked. Of security
        keys also what else keeps one from being enrolled (`Fido2Token.check_enrollable`).
    """
    if _scheme(config) == "tpm2":
        return _tpm2_token(config).is_emulated()
    if _scheme(config) == "fido2":
        _fido2_token(config, sources).check_enrollable()
        return False
    from mirrorfs.keys.pkcs11_module import module_paths, opened_module, present_tokens

    uri = token_uri(config)
    failure: UnlockError | None = None
    for path in module_paths(uri):
        try:
            with opened_module(path) as module:
                tokens = present_tokens(module, uri)
                if tokens:
                    return _SOFTWARE in tokens[0].manufacturer_id.lower() or _SOFTWARE in path.lower()
        except UnlockError as exc:
            failure = failure if failure is not None else exc
    if failure is not None and not isinstance(failure, TokenMissing):
        raise failure
    raise TokenMissing(f"No token matches {uri.describe()}; insert it and try again.")
