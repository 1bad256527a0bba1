"""Tokens behind a PKCS#11 module: PIV cards, health-professional cards, HSMs, SoftHSM.

An EC P-256 key yields its secret by ECDH with an ephemeral point kept in the slot, an RSA key by
decrypting 32 random bytes kept there. Both were chosen because every module tried can do them;
OAEP cannot be had everywhere, and a signature is no secret.

The PIN of a card may serve other uses and often has three tries. So the right token is found first,
by its public keys, which need no PIN; the PIN is asked for by the token's name, sent once per call,
and never to a token that does not hold the key. No module is open while a person looks for the PIN:
other software can use the card meanwhile, and the token is found anew afterwards, for it may have been
changed for another.
"""

from __future__ import annotations

import hmac
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pkcs11
from pkcs11 import Mechanism, TokenFlag
from pkcs11 import exceptions as p11
from pkcs11._pkcs11 import lib as Module

from mirrorfs.errors import (
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    UsageError,
    WrongToken,
)
from mirrorfs.format.slot import TOKEN_SECRET_SIZE_BYTES
from mirrorfs.format.slot_token import Pkcs11Fields, SlotKind, TokenFields, token_hint
from mirrorfs.keys import pkcs11_keys
from mirrorfs.keys.pkcs11_keys import TokenKey
from mirrorfs.keys.pkcs11_module import (
    check_still_there,
    has_reader,
    module_paths,
    opened_module,
    present_tokens,
    removal_noticed,
    session,
    token_identity,
    token_serial,
    translated,
)
from mirrorfs.keys.pkcs11_secret import check_point, mechanism_needed, new_challenge, yielded
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri
from mirrorfs.keys.token import AskPin, Authorise, Enrolment
from mirrorfs.ports import Entropy

NEW_KEY_ID_SIZE_BYTES = 16

# How modules refuse to make a key in a place or a way of our choosing: for OpenSC a PIV card has no such
# function, ykcs11 knows ids of its own only and asks for the management key.
_MAKES_NO_KEY = (
    p11.FunctionNotSupported,
    p11.AttributeTypeInvalid,
    p11.AttributeValueInvalid,
    p11.AttributeReadOnly,
    p11.TemplateInconsistent,
    p11.MechanismInvalid,
    p11.UserNotLoggedIn,
)


class Pkcs11Token:
    """The tokens that a `pkcs11:` URI matches; implements `token.Token`.

    Args:
        uri: narrows the tokens and, for enrolling, the keys; it may name the module.
        ask_pin: called at most once per method call, when the token is known.
        create: enrolling makes a new EC P-256 key on the token instead of using one that is there.
    """

    def __init__(self, uri: Pkcs11Uri, *, ask_pin: AskPin, create: bool = False) -> None:
        self._uri = uri
        self._ask_pin = ask_pin
        self._create = create
        # Where `is_present` last saw the key: its hash, the module, and the token's identity there.
        self._sighting: tuple[bytes, str, tuple[str, str]] | None = None

    kind: ClassVar[SlotKind] = SlotKind.PKCS11

    def describe(self) -> str:
        return self._uri.describe()

    def enrol(self, *, volume: bytes, entropy: Entropy, authorise: Authorise) -> Enrolment:
        """See `token.Token`. UsageError when several tokens or keys match the URI, or no key does."""
        with self._only_token() as token:
            asked, label = token_identity(token), token.label
            mechanisms = _mechanisms(token)
            if self._create and Mechanism.ECDH1_DERIVE not in mechanisms:
                raise UsageError(f"The token {label!r} cannot do ECDH; name an RSA key on it instead.")
            tries_left = _tries_left(token)
        pin = self._pin(label, tries_left)
        with self._only_token() as token:
            if token_identity(token) != asked:
                raise WrongToken(
                    f"The PIN was asked for token {label!r}, but another is there now; try again."
                )
            _check_announced(token, tries_left)
            with session(token, pin=pin, writable=self._create) as opened, translated(token.label):
                private, key = self._new_key(opened, entropy) if self._create else self._key(opened, token)
                fields, secret = new_challenge(key, token, volume=volume, entropy=entropy)
                if mechanism_needed(fields.mechanism) not in mechanisms:
                    raise UsageError(f"The token {token.label!r} cannot use this key; name another.")
                # The token must undo now what it shall undo later: a slot that does not open is none.
                if not hmac.compare_digest(yielded(private, fields, volume=volume), secret):
                    raise TokenFailed(
                        f"The token {token.label!r} does not undo what its public key made; use another key."
                    )
        return Enrolment(fields=fields, secret=secret)

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        """See `token.Token`."""
        with self._holder([fields for fields in candidates if isinstance(fields, Pkcs11Fields)]) as holder:
            return holder.fields

    def is_present(self, fields: TokenFields) -> bool:
        """See `token.Token`."""
        if not isinstance(fields, Pkcs11Fields):
            return False
        try:
            if self._is_in_sight(fields):
                return True
            with self._holder([fields]) as holder:
                self._sighting = fields.spki_sha256, holder.module.so, token_identity(holder.token)
                return True
        except (TokenMissing, WrongToken):
            return False

    def _is_in_sight(self, fields: Pkcs11Fields) -> bool:
        """Whether the token that held the key when it was last looked for is still listed.

        Reading the keys of a PIV card takes up to 90 commands, listing it a few: too much and little
        enough to be done every second.
        """
        if self._sighting is None or self._sighting[0] != fields.spki_sha256:
            return False
        _, path, identity = self._sighting
        self._sighting = None
        with opened_module(path) as module:
            if identity not in map(token_identity, present_tokens(module, self._uri)):
                return False
        self._sighting = fields.spki_sha256, path, identity
        return True

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        """See `token.Token`. FormatError when the slot's point is not on the curve."""
        if not isinstance(fields, Pkcs11Fields):
            raise WrongToken("That slot is not one of a PKCS#11 token; name another token.")
        check_point(fields)
        with self._holder([fields]) as holder:
            label, tries_left = holder.token.label, _tries_left(holder.token)
        pin = self._pin(label, tries_left)
        with self._holder([fields]) as holder:
            token = holder.token
            _check_announced(token, tries_left)
            with session(token, pin=pin) as opened, translated(token.label, using_key=True):
                for key in pkcs11_keys.public_keys(opened):
                    if key.spki_sha256 == fields.spki_sha256:
                        secret = yielded(pkcs11_keys.private_key_of(opened, key), fields, volume=volume)
                        break
                else:
                    raise p11.NoSuchKey
        if len(secret) != TOKEN_SECRET_SIZE_BYTES:
            raise WrongToken(f"The token {label!r} does not undo what this slot holds; use another slot.")
        return secret

    # --- finding the token ---------------------------------------------------------------

    def _modules(self) -> Generator[Module, None, None]:
        """Each module that can be loaded, open while the caller holds it.

        Raises: the first failure, when none can.
        """
        failures: list[UnlockError] = []
        paths = module_paths(self._uri)
        for path in paths:
            with ExitStack() as stack:
                try:
                    module = stack.enter_context(opened_module(path))
                except UnlockError as exc:
                    # Without a module named, one that is installed but has no reader is passed over.
                    failures.append(exc)
                    continue
                yield module
        if len(failures) == len(paths):
            raise failures[0]

    @contextmanager
    def _only_token(self) -> Iterator[pkcs11.Token]:
        # `closing`, because an error's traceback would keep the module open for as long as it is kept.
        reader_found = False
        with closing(self._modules()) as modules:
            for module in modules:
                tokens = present_tokens(module, self._uri)
                reader_found = reader_found or has_reader(module)
                if len(tokens) > 1:
                    serials = ", ".join(token_serial(token) for token in tokens)
                    raise UsageError(
                        f"Several tokens match {self.describe()}; add serial=... with one of: {serials}."
                    )
                if tokens:
                    with removal_noticed(module, tokens):
                        yield tokens[0]
                    return
        raise self._missing(reader_found)

    @contextmanager
    def _holder(self, candidates: Sequence[Pkcs11Fields]) -> Iterator[_Holder]:
        """The token that holds one of these keys, found without a PIN."""
        labels: list[str] = []
        reader_found = False
        with closing(self._modules()) as modules:
            for module in modules:
                tokens = present_tokens(module, self._uri)
                labels += [repr(token.label) for token in tokens]
                reader_found = reader_found or has_reader(module)
                with removal_noticed(module, tokens):
                    found = _find_holder(tokens, candidates)
                if found is not None:
                    with removal_noticed(module, found[:1]):
                        yield _Holder(module, *found)
                    return
                # A token that left while it was read shows no key either.
                check_still_there(module, tokens)
        if not labels:
            raise self._missing(reader_found)
        raise WrongToken(
            f"No slot that was asked for names a key of the token {', '.join(labels)}; insert the right one."
        )

    def _missing(self, reader_found: bool) -> TokenMissing:
        if reader_found:
            return TokenMissing(f"No token matches {self.describe()}; insert it and try again.")
        return TokenMissing(
            f"No reader is found where {self.describe()} could be; plug it in and see that pcscd runs."
        )

    def _pin(self, label: str, tries_left: int | None) -> str:
        return self._ask_pin(label, final_try=tries_left == 1, tries_left=tries_left)

    # --- the key to enrol ----------------------------------------------------------------

    def _key(self, opened: pkcs11.Session, token: pkcs11.Token) -> tuple[pkcs11.Object, TokenKey]:
        pairs = pkcs11_keys.enrollable_keys(opened, label=self._uri.object, key_id=self._uri.id)
        if not pairs:
            raise UsageError(
                f"The token {token.label!r} has no key that matches {self.describe()} and can be used:"
                " EC P-256, or RSA of 2048 to 4096 bits, with an id, and no PIN at each use."
            )
        if len(pairs) > 1:
            ids = ", ".join("id=" + "".join(f"%{byte:02x}" for byte in key.key_id) for _, key in pairs)
            raise UsageError(
                f"Several keys of the token {token.label!r} match {self.describe()}; add one of: {ids}."
            )
        return pairs[0]

    def _new_key(self, opened: pkcs11.Session, entropy: Entropy) -> tuple[pkcs11.Object, TokenKey]:
        key_id = self._uri.id if self._uri.id is not None else entropy(NEW_KEY_ID_SIZE_BYTES)
        # Tokens with fixed places for keys would replace the one that is there.
        if pkcs11_keys.has_key(opened, key_id=key_id):
            raise UsageError(
                "The token already has a key under that id; enrol that one or choose another id."
            )
        try:
            return pkcs11_keys.create_key(opened, key_id=key_id)
        except _MAKES_NO_KEY as exc:
            raise UsageError(
                f"The token {opened.token.label!r} makes no keys here ({type(exc).__name__}); make one with"
                " the token's own tool and enrol that."
            ) from exc


@dataclass(frozen=True, slots=True)
class _Holder:
    """A token with the key of a slot, and the module that is open for it."""

    module: Module
    token: pkcs11.Token
    fields: Pkcs11Fields


def _tries_left(token: pkcs11.Token) -> int | None:
    """Wrong PINs that the token still takes: PKCS#11 tells the last one, and no number before that.

    Raises: PinLocked: none.
    """
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise PinLocked(f"The PIN of token {token.label!r} is locked; unblock it with the token's own tool.")
    return 1 if token.flags & TokenFlag.USER_PIN_FINAL_TRY else None


def _check_announced(token: pkcs11.Token, tries_left: int | None) -> None:
    """Refuse to use up the last try where that was not said when the PIN was asked for.

    Raises: TokenFailed: so it is. PinLocked: there is no try at all any more.
    """
    if _tries_left(token) == 1 and tries_left != 1:
        raise TokenFailed(
            f"The token {token.label!r} has one PIN try left since other software used one; try again."
        )


def _mechanisms(token: pkcs11.Token) -> set[Mechanism]:
    with translated(token.label):
        return token.slot.get_mechanisms()


def _find_holder(
    tokens: list[pkcs11.Token], candidates: Sequence[Pkcs11Fields]
) -> tuple[pkcs11.Token, Pkcs11Fields] | None:
    """Pair a token with the first candidate whose key it shows, or failing that, seems to hide."""
    shown: list[set[bytes]] = []
    for token in tokens:
        with session(token, pin=None) as opened, translated(token.label):
            shown.append({key.spki_sha256 for key in pkcs11_keys.public_keys(opened)})
    for fields in candidates:
        for token, hashes in zip(tokens, shown, strict=True):
            if fields.spki_sha256 in hashes:
                return token, fields
    # Some tokens show no public key before the PIN. Then, and only then, the hints decide, and both
    # must agree, for a PIN sent to the wrong card is a try lost there.
    for fields in candidates:
        for token, hashes in zip(tokens, shown, strict=True):
            hints = (token_hint(token_serial(token)), token_hint(token.label))
            if not hashes and fields.serial and hints == (fields.serial, fields.label):
                return token, fields
    return None
