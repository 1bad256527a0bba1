"""Making and opening slots: a password and a token's secret wrap the keys of a volume.

    KEK = HKDF(Argon2id(password) || token secret); the KEK wraps the key set with AES-256-GCM

Neither factor alone is worth anything: the token's secret is random, and nothing in a slot lets a
password be checked without it. `token_check` depends on the token only, so that a wrong token is
told from a wrong password. The commitment is compared before unwrapping, because AES-GCM would let a
hostile slot open under more than one key.

A slot is also a letter box. From its KEK follows an X25519 key whose public half stands in the slot, so that
whoever rotates the keys of the volume can put the new ones into every slot, its token being far away:

    boxed = AES-256-GCM(HKDF(X25519 || root key the slot wraps), new key set)

The old root key is in it so that X25519 alone is not what keeps out a store that has all the time in the
world; X25519 is in it so that a slot that was removed, and knew the old root key, opens no other slot's box.
"""

from __future__ import annotations

import hmac
import unicodedata
from dataclasses import replace
from itertools import pairwise

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from mirrorfs.errors import (
    AuthenticationError,
    LimitError,
    UnlockError,
    UsageError,
    WrongPassword,
    WrongToken,
)
from mirrorfs.format.document import canonical_json
from mirrorfs.format.kdf import KEY_GENERATION_MAX, VOLUME_ID_SIZE_BYTES, hkdf
from mirrorfs.format.slot import (
    BOX_KEY_SIZE_BYTES,
    KDF_SALT_SIZE_BYTES,
    MEMORY_MIN_KIB,
    NONCE_SIZE_BYTES,
    SLOT_ID_SIZE_BYTES,
    SLOT_VERSION_FIRST,
    TOKEN_CHECK_SIZE_BYTES,
    TOKEN_SECRET_SIZE_BYTES,
    WRAPPED_SIZE_BYTES,
    KdfParameters,
    KeySet,
    Role,
    Slot,
)
from mirrorfs.format.slot_token import SlotKind
from mirrorfs.keys.token import Enrolment
from mirrorfs.ports import Entropy

PASSWORD_LENGTH_MIN = 10
PASSWORD_DISTINCT_MIN = 5
PASSWORD_SIZE_MAX_BYTES = 1024
NEW_ITERATIONS = 3
NEW_LANES = 4
NEW_MEMORY_KIB = 256 * 1024


def check_new_password(password: bytes) -> None:
    """Refuse a password that is too weak for a new slot.

    The rule: at least 10 characters, at least 5 of them different, and not a plain run such as
    "1234567890". It is deliberately small: the token, not the password, resists offline guessing.
    Args:
        password: UTF-8 in normalization form C, so that every keyboard and system makes equal bytes.
    Raises: UsageError: weak, too long, or not in that form.
    """
    try:
        text = password.decode()
    except UnicodeDecodeError:
        raise UsageError("The password is not UTF-8 text; choose another.") from None
    if len(password) > PASSWORD_SIZE_MAX_BYTES:
        raise UsageError(f"The password has more than {PASSWORD_SIZE_MAX_BYTES} bytes; choose another.")
    if not unicodedata.is_normalized("NFC", text):
        raise UsageError("The password is not in Unicode normalization form C; choose another.")
    if len(text) < PASSWORD_LENGTH_MIN:
        raise UsageError(f"The password is too short; choose at least {PASSWORD_LENGTH_MIN} characters.")
    steps = [ord(second) - ord(first) for first, second in pairwise(text)]
    longest_run = max(steps.count(1), steps.count(-1))
    if len(set(text)) < PASSWORD_DISTINCT_MIN or longest_run >= len(steps) - 1:
        raise UsageError(
            "The password is too easy to guess; choose one with more different characters, in no plain order."
        )


def new_salt(entropy: Entropy) -> bytes:
    """16 random bytes for `new_kdf_parameters`."""
    return entropy(KDF_SALT_SIZE_BYTES)


def new_kdf_parameters(*, available_bytes: int, salt: bytes) -> KdfParameters:
    """Argon2id parameters for a new slot: 256 MiB, or less where memory is short.

    Args:
        available_bytes: memory free for use; at most half of it is taken, but never less than the
            floor of 64 MiB.
        salt: 16 random bytes.
    """
    memory_kib = NEW_MEMORY_KIB
    while memory_kib > MEMORY_MIN_KIB and memory_kib * 1024 > available_bytes // 2:
        memory_kib //= 2
    return KdfParameters(iterations=NEW_ITERATIONS, memory_kib=memory_kib, lanes=NEW_LANES, salt=salt)


def available_memory_bytes() -> int:
    """Memory that Linux says a new program could use without swapping (MemAvailable); 0 if unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                name, _, amount = line.partition(":")
                if name == "MemAvailable":
                    return int(amount.split()[0]) * 1024
    except OSError:
        pass  # no /proc here, as in some containers: unknown, so the floor is used
    return 0


# --- derivations -----------------------------------------------------------------------------


def stretch_password(password: bytes, kdf: KdfParameters) -> bytes:
    """Argon2id of a password: 32 bytes from which everything that a slot asks of it follows. Blocks.

    Args:
        password: UTF-8 in normalization form C.
    Raises: UnlockError: not enough memory.
    """
    try:
        return Argon2id(
            salt=kdf.salt,
            length=32,
            iterations=kdf.iterations,
            lanes=kdf.lanes,
            memory_cost=kdf.memory_kib,
        ).derive(password)
    except MemoryError as exc:
        raise UnlockError(
            f"The password cannot be processed without {kdf.memory_kib // 1024} MiB of free memory;"
            " close other programs and try again."
        ) from exc


def token_authorisation(stretched: bytes, kdf: KdfParameters) -> bytes:
    """What a token that wants the password itself is given: 32 bytes that tell nothing about the KEK."""
    return hkdf(stretched, salt=kdf.salt, info=b"mirrorfs v1 token authorisation")


def _token_check(secret: bytes, kdf: KdfParameters) -> bytes:
    return hkdf(secret, salt=kdf.salt, info=b"mirrorfs v1 token check")[:TOKEN_CHECK_SIZE_BYTES]


def _kek(stretched: bytes, secret: bytes, kdf: KdfParameters) -> bytes:
    return hkdf(stretched + secret, salt=kdf.salt, info=b"mirrorfs v1 kek")


def _commitment(kek: bytes, kdf: KdfParameters) -> bytes:
    return hkdf(kek, salt=kdf.salt, info=b"mirrorfs v1 kek commitment")


def _box_key(kek: bytes, kdf: KdfParameters) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hkdf(kek, salt=kdf.salt, info=b"mirrorfs v1 slot box"))


def _bound_to(volume: bytes, key_generation: int) -> bytes:
    if len(volume) != VOLUME_ID_SIZE_BYTES or not 1 <= key_generation <= KEY_GENERATION_MAX:
        raise LimitError("A slot belongs to a volume of 16 bytes and a key generation from 1 on.")
    return volume + key_generation.to_bytes(4, "little")


def _aad(slot: Slot, *, volume: bytes) -> bytes:
    """Everything a slot says but the wrapped keys, so that no field of it can be changed."""
    body = slot.to_body()
    del body["wrapped"]
    body.pop("boxed", None)
    return b"mirrorfs v1 slot" + _bound_to(volume, slot.key_generation) + canonical_json(body)


# --- slots -----------------------------------------------------------------------------------


def make_slot(
    key_set: KeySet,
    *,
    volume: bytes,
    key_generation: int,
    name: str,
    roles: tuple[Role, ...],
    stretched: bytes,
    enrolment: Enrolment,
    kdf: KdfParameters,
    created_ns: int,
    entropy: Entropy,
) -> Slot:
    """Wrap a key set so that a password together with this token opens it.

    Args:
        key_set: restricted here to `roles`; the roles it lacks cannot be granted.
        key_generation: that of the key set.
        stretched: `stretch_password` of a password that `check_new_password` accepted, with `kdf`.
        enrolment: the token's fields and secret, from `Token.enrol`.
        kdf: parameters under a fresh salt.
    Raises: LimitError, FormatError: a field breaks a rule of the format.
    """
    secret = enrolment.secret
    if len(secret) != TOKEN_SECRET_SIZE_BYTES:
        raise LimitError("A token's secret has 32 bytes.")
    granted = tuple(role for role in Role if role in roles)
    plain = key_set.restricted(granted).encode()
    kek = _kek(stretched, secret, kdf)
    slot = Slot(
        slot_id=entropy(SLOT_ID_SIZE_BYTES),
        name=name,
        roles=granted,
        created_ns=created_ns,
        kdf=kdf,
        token=enrolment.fields,
        token_check=_token_check(secret, kdf),
        commitment=_commitment(kek, kdf),
        wrap_nonce=entropy(NONCE_SIZE_BYTES),
        wrapped=bytes(WRAPPED_SIZE_BYTES),
        key_generation=key_generation,
        box_key=_box_key(kek, kdf).public_key().public_bytes_raw(),
    )
    return replace(slot, wrapped=AESGCM(kek).encrypt(slot.wrap_nonce, plain, _aad(slot, volume=volume)))


def check_token_secret(slot: Slot, secret: bytes) -> None:
    """Tell at once, before a password is asked for, whether a token's secret is the slot's.

    Raises: WrongToken.
    """
    if len(secret) != TOKEN_SECRET_SIZE_BYTES or not hmac.compare_digest(
        _token_check(secret, slot.kdf), slot.token_check
    ):
        if slot.kind is SlotKind.RECOVERY:
            raise WrongToken(
                "That recovery code is not the one of the volume's newest sheet; take that sheet, or a token."
            )
        raise WrongToken("The token does not hold the key of this slot; insert the token that was enrolled.")


def open_slot(
    slot: Slot, *, volume: bytes, key_generation: int, stretched: bytes, token_secret: bytes
) -> KeySet:
    """The key set of a slot, of the volume's key generation.

    Args:
        key_generation: that of the header the slot stands in.
        stretched: `stretch_password` with the slot's kdf.
        token_secret: what `Token.secret_for` returned.
    Raises: WrongToken. WrongPassword. AuthenticationError: password and token are right, but the
        slot was altered.
    """
    check_token_secret(slot, token_secret)
    kek = _kek(stretched, token_secret, slot.kdf)
    if not hmac.compare_digest(_commitment(kek, slot.kdf), slot.commitment):
        what = "recovery code" if slot.kind is SlotKind.RECOVERY else "token"
        raise WrongPassword(f"The {what} is right but the volume password is not; try again.")
    key_set = _opened(kek, slot.wrap_nonce, slot.wrapped, _aad(slot, volume=volume), slot)
    if slot.boxed:
        key_set = _unboxed(slot, kek, key_set, volume=volume, key_generation=key_generation)
    elif slot.key_generation != key_generation:
        raise _altered()
    return key_set


def _opened(key: bytes, nonce: bytes, sealed: bytes, aad: bytes, slot: Slot) -> KeySet:
    try:
        key_set = KeySet.decode(AESGCM(key).decrypt(nonce, sealed, aad))
    except InvalidTag as exc:
        raise _altered() from exc
    if key_set.roles() != slot.roles:
        raise AuthenticationError("A slot wraps other roles than it names.")
    return key_set


def _altered() -> AuthenticationError:
    return AuthenticationError(
        "A slot of the volume header was altered; unlock with another slot or an older header."
    )


# --- later keys for a slot whose token is not here ---------------------------------------------


def box_key_set(
    slot: Slot,
    key_set: KeySet,
    *,
    volume: bytes,
    key_generation: int,
    slot_root: bytes,
    entropy: Entropy,
) -> Slot:
    """Put a key set of a later generation into a slot, without its password and token.

    Args:
        key_set: restricted here to the slot's roles.
        key_generation: that of the key set, above the slot's own.
        slot_root: the root key of the slot's own generation, 32 bytes.
    Raises: LimitError: not a later generation; a slot of version 1, which has no box.
    """
    if slot.version == SLOT_VERSION_FIRST or key_generation <= slot.key_generation:
        raise LimitError("Only a slot of version 2 takes keys of a later generation.")
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(slot.box_key))
    public, nonce = ephemeral.public_key().public_bytes_raw(), entropy(NONCE_SIZE_BYTES)
    plain = key_set.restricted(slot.roles).encode()
    key, aad = _box_cipher(slot, shared, public, slot_root, volume=volume, key_generation=key_generation)
    return replace(slot, boxed=public + nonce + AESGCM(key).encrypt(nonce, plain, aad))


def _unboxed(slot: Slot, kek: bytes, own: KeySet, *, volume: bytes, key_generation: int) -> KeySet:
    public, sealed = slot.boxed[:BOX_KEY_SIZE_BYTES], slot.boxed[BOX_KEY_SIZE_BYTES:]
    try:
        shared = _box_key(kek, slot.kdf).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as exc:  # a point of low order
        raise _altered() from exc
    key, aad = _box_cipher(slot, shared, public, own.root, volume=volume, key_generation=key_generation)
    return _opened(key, sealed[:NONCE_SIZE_BYTES], sealed[NONCE_SIZE_BYTES:], aad, slot)


def _box_cipher(
    slot: Slot, shared: bytes, ephemeral: bytes, slot_root: bytes, *, volume: bytes, key_generation: int
) -> tuple[bytes, bytes]:
    """The key of a box, and what is authenticated beside its contents."""
    info = b"mirrorfs v1 slot boxed" + ephemeral + slot.box_key
    key = hkdf(shared + slot_root, salt=volume, info=info)
    return key, b"mirrorfs v1 slot boxed" + _bound_to(volume, key_generation) + slot.slot_id
