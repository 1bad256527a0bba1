"""PKCS#11 modules: where they are, loading one for the length of a call, and what its errors mean.

A module is initialised and finalised around each call. So no handle, session or log-in outlives it,
a fork between two calls does no harm, and a token that was exchanged meanwhile is seen, for several
modules list slots and tokens once per initialisation. One call runs at a time in a process.
"""

from __future__ import annotations

import glob
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pkcs11
from pkcs11 import exceptions as p11
from pkcs11._pkcs11 import lib as Module

from mirrorfs.errors import (
    ConfigError,
    ModuleMissing,
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    UsageError,
    WrongPin,
    WrongToken,
)
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri

# Hardware first. A YubiKey is served by two of these; the first that holds the key is used.
WELL_KNOWN_MODULES = (
    "/usr/lib/*/opensc-pkcs11.so",
    "/usr/lib64/opensc-pkcs11.so",
    "/usr/lib/opensc-pkcs11.so",
    "/usr/lib/*/libykcs11.so*",
    "/usr/lib64/libykcs11.so*",
    "/usr/lib/libykcs11.so*",
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/*/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
MODULE_DIRECTORIES = (
    "/usr/lib/*",
    "/usr/lib/*/*",
    "/usr/lib64",
    "/usr/lib64/*",
    "/usr/lib",
    "/usr/local/lib",
)

_NO_FLAGS = pkcs11.TokenFlag(0)

_call_lock = threading.Lock()

_ABSENT = (p11.NoSuchToken, p11.TokenNotPresent, p11.TokenNotRecognised, p11.SlotIDInvalid)
_WRONG_PIN = (p11.PinIncorrect, p11.PinLenRange, p11.PinInvalid)
_REMOVED = (
    p11.KeyHandleInvalid,
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.UserNotLoggedIn,
    p11.ObjectHandleInvalid,
    p11.DeviceRemoved,
)
_WRONG_KEY = (p11.NoSuchKey, p11.EncryptedDataInvalid, p11.EncryptedDataLenRange)
# What ykcs11 and SoftHSM answer when asked to undo what another key made; elsewhere these say nothing.
_WRONG_KEY_IN_USE = (p11.FunctionFailed, p11.GeneralError)


def token_error(
    error: p11.PKCS11Error,
    *,
    label: str,
    using_key: bool = False,
    flags: pkcs11.TokenFlag = _NO_FLAGS,
) -> UnlockError:
    """Translate an error of a module that is loaded.

    Args:
        label: of the token in question.
        using_key: it came from using the private key, not from finding or opening something.
        flags: the token's, read after the error: the module's word on PIN tries.
    """
    if isinstance(error, p11.PinLocked) or (
        isinstance(error, _WRONG_PIN) and flags & pkcs11.TokenFlag.USER_PIN_LOCKED
    ):
        return PinLocked(f"The PIN of token {label!r} is locked; unblock it with the token's own tool.")
    if isinstance(error, p11.PinExpired | p11.UserPinNotInitialized):
        return PinLocked(f"The PIN of token {label!r} must first be set with the token's own tool.")
    if isinstance(error, _WRONG_PIN):
        last = flags & pkcs11.TokenFlag.USER_PIN_FINAL_TRY
        warning = "one more wrong PIN locks it, so make sure" if last else "check it and try again"
        return WrongPin(f"The token {label!r} refused the PIN; {warning}.")
    if isinstance(error, _ABSENT):
        return TokenMissing(f"The token {label!r} is not there; insert it and try again.")
    if isinstance(error, _REMOVED):
        return _removed(label)
    if isinstance(error, _WRONG_KEY) or (using_key and isinstance(error, _WRONG_KEY_IN_USE)):
        return WrongToken(f"The token {label!r} does not hold the key of this slot; insert the right one.")
    return TokenFailed(
        f"The token {label!r} failed ({type(error).__name__}); remove it, insert it again and try again."
    )


def _removed(label: str) -> TokenMissing:
    return TokenMissing(f"The token {label!r} was removed while in use; insert it and try again.")


@contextmanager
def translated(label: str, *, using_key: bool = False) -> Iterator[None]:
    """Translate what the block raises of python-pkcs11's errors (`token_error`)."""
    try:
        yield
    except p11.PKCS11Error as exc:
        raise token_error(exc, label=label, using_key=using_key) from exc


# --- finding modules -------------------------------------------------------------------------


def _existing(patterns: tuple[str, ...]) -> list[str]:
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def module_paths(uri: Pkcs11Uri) -> list[str]:
    """Libraries to try, in order: the one the URI names, or those at well-known places.

    module-name NAME stands for NAME.so, libNAME.so or NAME-pkcs11.so in MODULE_DIRECTORIES. Without
    any, WELL_KNOWN_MODULES are looked for: OpenSC, ykcs11, SoftHSM. No environment variable counts.
    Raises: ModuleMissing: there is none.
    """
    if uri.module_path is not None:
        return [uri.module_path]
    if uri.module_name is not None:
        names = (f"{uri.module_name}.so", f"lib{uri.module_name}.so", f"{uri.module_name}-pkcs11.so")
        found = _existing(tuple(f"{place}/{name}" for place in MODULE_DIRECTORIES for name in names))[:1]
        if not found:
            raise ModuleMissing(
                f"No PKCS#11 module {uri.module_name} is installed; install it or give module-path."
            )
        return found
    found = _existing(WELL_KNOWN_MODULES)
    if not found:
        raise ModuleMissing(
            "No PKCS#11 module is installed at a usual place; install opensc or ykcs11, or add"
            " ?module-path=/PATH to the token URI."
        )
    return found


def _check_module_file(path: str) -> None:
    """Refuse a library that somebody else could have put there: loading it runs its code."""
    try:
        found = os.stat(path)
        place = os.stat(os.path.dirname(os.path.realpath(path)))
    except OSError as exc:
        raise ModuleMissing(
            f"The PKCS#11 module {path} is not there; install it or correct its path."
        ) from exc
    if not stat.S_ISREG(found.st_mode):
        raise ModuleMissing(f"The PKCS#11 module {path} is not a file; correct its path.")
    trusted = (0, os.geteuid())
    if found.st_uid not in trusted or place.st_uid not in trusted:
        raise ConfigError(f"The PKCS#11 module {path} belongs to another user; use one that root installed.")
    # A sticky directory such as /tmp would still let anyone plant a file, so it is refused as well.
    if found.st_mode & 0o022 or place.st_mode & 0o002:
        raise ConfigError(f"The PKCS#11 module {path} can be written by others; correct its permissions.")


@contextmanager
def opened_module(path: str) -> Iterator[Module]:
    """Load and initialise a module for the length of the block.

    Raises: ModuleMissing: not there, or no PKCS#11 module. ConfigError: others can write it.
        TokenMissing: it finds no reader. TokenFailed: it cannot be initialised.
    """
    _check_module_file(path)
    with _call_lock:
        try:
            module = pkcs11.lib(path)
        except p11.PKCS11Error as exc:
            # python-pkcs11 raises the base class itself when the library cannot be loaded.
            if type(exc) is p11.PKCS11Error:
                raise ModuleMissing(
                    f"The library {path} is not a PKCS#11 module that can be loaded."
                ) from exc
            if isinstance(exc, p11.DeviceError):
                raise TokenMissing(
                    f"The PKCS#11 module {path} finds no reader; insert the token and see that pcscd runs."
                ) from exc
            raise TokenFailed(
                f"The PKCS#11 module {path} cannot be initialised ({type(exc).__name__}); try its own tool."
            ) from exc
        try:
            yield module
        finally:
            # Ends every session the block left. When the token is gone this may fail, and then
            # nothing is left to end; the error of the block, if any, is the one that matters.
            with suppress(p11.PKCS11Error):
                module.finalize()


def present_tokens(module: Module, uri: Pkcs11Uri) -> list[pkcs11.Token]:
    """Initialised tokens in the module's slots that the URI matches, in slot order.

    Raises: TokenFailed, TokenMissing: the module cannot tell.
    """
    tokens = []
    with translated(uri.describe()):
        try:
            slots = module.get_slots(token_present=True)
        except p11.DeviceError:
            return []  # what ykcs11 says where no pcscd runs
        for slot in slots:
            try:
                token = slot.get_token()
            except (p11.TokenNotPresent, p11.TokenNotRecognised):
                continue
            if token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED and _matches(token, uri):
                tokens.append(token)
    return tokens


def token_serial(token: pkcs11.Token) -> str:
    """The serial as text; modules pad it with spaces or zero bytes."""
    return token.serial.rstrip(b"\0 ").decode(errors="replace")


def token_identity(token: pkcs11.Token) -> tuple[str, str]:
    """Serial and label: they tell the tokens of one module apart, but differ between modules."""
    return token_serial(token), token.label


def has_reader(module: Module) -> bool:
    """Whether the module has any place where a token could be."""
    try:
        return bool(module.get_slots())
    except p11.PKCS11Error:
        return False


def check_still_there(module: Module, tokens: Sequence[pkcs11.Token]) -> None:
    """Look anew for tokens that were listed before; ends all sessions and handles.

    Raises: TokenMissing: one of them has gone.
    """
    try:
        # Asked again without this, modules may answer from memory: of a card that left a moment ago
        # the service itself may not know yet, and only making its acquaintance again shows it.
        module.reinitialize()
        now = {token_identity(token) for token in present_tokens(module, Pkcs11Uri())}
    except (p11.PKCS11Error, UnlockError):
        now = set()
    for token in tokens:
        if token_identity(token) not in now:
            raise _removed(token.label)


@contextmanager
def removal_noticed(module: Module, tokens: Sequence[pkcs11.Token]) -> Iterator[None]:
    """What fails in the block fails with TokenMissing if one of the tokens has gone meanwhile.

    A card that leaves in the middle of a command makes modules say nearly anything: OpenSC GeneralError,
    ykcs11 DeviceError or FunctionFailed, and either that the token holds no key.
    """
    try:
        yield
    except (TokenFailed, WrongToken, UsageError):
        check_still_there(module, tokens)
        raise


def _matches(token: pkcs11.Token, uri: Pkcs11Uri) -> bool:
    wanted = (
        (uri.token, token.label),
        (uri.serial, token_serial(token)),
        (uri.manufacturer, token.manufacturer_id),
        (uri.model, token.model),
    )
    return all(expected is None or expected == found for expected, found in wanted)


# --- sessions --------------------------------------------------------------------------------


@contextmanager
def session(token: pkcs11.Token, *, pin: str | None, writable: bool = False) -> Iterator[pkcs11.Session]:
    """A session for the length of the block, logged in when a PIN is given.

    The PIN is sent once. The block's own PKCS#11 errors are the block's to translate.
    Raises: WrongPin, PinLocked, TokenMissing, TokenFailed.
    """
    try:
        opened = token.open(rw=writable, user_pin=pin)
    except p11.PKCS11Error as exc:
        raise token_error(exc, label=token.label, flags=_flags_now(token)) from exc
    try:
        yield opened
    finally:
        # Fails when the token was removed; finalising the module right after ends it in any case.
        with suppress(p11.PKCS11Error):
            opened.close()


def _flags_now(token: pkcs11.Token) -> pkcs11.TokenFlag:
    """The token's flags as they are after an error; none when it no longer answers."""
    try:
        return token.slot.get_token().flags
    except p11.PKCS11Error:
        return _NO_FLAGS
