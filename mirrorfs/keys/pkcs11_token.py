"""Tokens behind a PKCS#11 module: PIV cards, health-professional cards, HSMs, SoftHSM.

An EC P-256 key yields its secret by ECDH with an ephemeral point kept in the slot, an RSA key by
decrypting 32 random bytes kept there. Both were chosen because every module tried can do them;
OAEP cannot be had everywhere, and a signature is no secret.

The PIN of a card may serve other uses and often has three tries. So the right token is found first,
by its public keys, which need no PIN; the PIN is asked for by the token's name, sent once per call,
and never to a token that does not hold the key.
"""

from __future__ import annotations

import hmac
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from mirrorfs.format.slot_token import Pkcs11Fields, SlotKind, TokenFields
from mirrorfs.keys import pkcs11_keys
from mirrorfs.keys.pkcs11_keys import TokenKey
from mirrorfs.keys.pkcs11_module import (
    module_paths,
    opened_module,
    present_tokens,
    session,
    token_serial,
    translated,
)
from mirrorfs.keys.pkcs11_secret import check_point, hint, mechanism_needed, new_challenge, yielded
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri
from mirrorfs.keys.token import AskPin, Authorise, Enrolment
from mirrorfs.ports import Entropy

NEW_KEY_ID_SIZE_BYTES = 16


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

    kind: ClassVar[SlotKind] = SlotKind.PKCS11

    def describe(self) -> str:
        return self._uri.describe()

    def enrol(self, *, volume: bytes, entropy: Entropy, authorise: Authorise) -> Enrolment:
        """See `token.Token`. UsageError when several tokens or keys match the URI, or no key does."""
        with self._only_token() as token:
            mechanisms = _mechanisms(token)
            if self._create and Mechanism.ECDH1_DERIVE not in mechanisms:
                raise UsageError(f"The token {token.label!r} cannot do ECDH; name an RSA key on it instead.")
            pin = self._pin(token)
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
        with self._holder([fields for fields in candidates if isinstance(fields, Pkcs11Fields)]) as (
            _,
            found,
        ):
            return found

    def is_present(self, fields: TokenFields) -> bool:
        """See `token.Token`."""
        if not isinstance(fields, Pkcs11Fields):
            return False
        try:
            with self._holder([fields]):
                return True
        except (TokenMissing, WrongToken):
            return False

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        """See `token.Token`. FormatError when the slot's point is not on the curve."""
        if not isinstance(fields, Pkcs11Fields):
            raise WrongToken("That slot is not one of a PKCS#11 token; name another token.")
        check_point(fields)
        with self._holder([fields]) as (token, _):
            pin = self._pin(token)
            with session(token, pin=pin) as opened, translated(token.label, using_key=True):
                for key in pkcs11_keys.public_keys(opened):
                    if key.spki_sha256 == fields.spki_sha256:
                        secret = yielded(pkcs11_keys.private_key_of(opened, key), fields, volume=volume)
                        break
                else:
                    raise p11.NoSuchKey
        if len(secret) != TOKEN_SECRET_SIZE_BYTES:
            raise WrongToken(
                f"The token {token.label!r} does not undo what this slot holds; use another slot."
            )
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
        with closing(self._modules()) as modules:
            for module in modules:
                tokens = present_tokens(module, self._uri)
                if len(tokens) > 1:
                    serials = ", ".join(token_serial(token) for token in tokens)
                    raise UsageError(
                        f"Several tokens match {self.describe()}; add serial=... with one of: {serials}."
                    )
                if tokens:
                    yield tokens[0]
                    return
        raise TokenMissing(f"No token matches {self.describe()}; insert it and try again.")

    @contextmanager
    def _holder(self, candidates: Sequence[Pkcs11Fields]) -> Iterator[tuple[pkcs11.Token, Pkcs11Fields]]:
        """The token that holds one of these keys, found without a PIN."""
        labels: list[str] = []
        with closing(self._modules()) as modules:
            for module in modules:
                tokens = present_tokens(module, self._uri)
                labels += [repr(token.label) for token in tokens]
                found = _find_holder(tokens, candidates)
                if found is not None:
                    yield found
                    return
        if not labels:
            raise TokenMissing(f"No token matches {self.describe()}; insert it and try again.")
        raise WrongToken(
            f"No slot that was asked for names a key of the token {', '.join(labels)}; insert the right one."
        )

    def _pin(self, token: pkcs11.Token) -> str:
        if token.flags & TokenFlag.USER_PIN_LOCKED:
            raise PinLocked(
                f"The PIN of token {token.label!r} is locked; unblock it with the token's own tool."
            )
        return self._ask_pin(token.label, final_try=bool(token.flags & TokenFlag.USER_PIN_FINAL_TRY))

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
        return pkcs11_keys.create_key(opened, key_id=key_id)


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
            hints = (hint(token_serial(token)), hint(token.label))
            if not hashes and fields.serial and hints == (fields.serial, fields.label):
                return token, fields
    return None
