"""Making and opening slots: a password and a token's secret wrap the keys of a volume.

    KEK = HKDF(Argon2id(password) || token secret); the KEK wraps the key set with AES-256-GCM

Neither factor alone is worth anything: the token's secret is random, and nothing in a slot lets a
password be checked without it. `token_check` depends on the token only, so that a wrong token is
told from a wrong password. The commitment is compared before unwrapping, because AES-GCM would let a
hostile slot open under more than one key.
"""

from __future__ import annotations

import hmac
import unicodedata
from itertools import pairwise

from cryptography.exceptions import InvalidTag
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
    KDF_SALT_SIZE_BYTES,
    MEMORY_MIN_KIB,
    NONCE_SIZE_BYTES,
    SLOT_ID_SIZE_BYTES,
    TOKEN_CHECK_SIZE_BYTES,
    TOKEN_SECRET_SIZE_BYTES,
    WRAPPED_SIZE_BYTES,
    KdfParameters,
    KeySet,
    Role,
    Slot,
    SlotKind,
)
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


def _token_check(secret: bytes, kdf: KdfParameters) -> bytes:
    return hkdf(secret, salt=kdf.salt, info=b"mirrorfs v1 token check")[:TOKEN_CHECK_SIZE_BYTES]


def _kek(password: bytes, secret: bytes, kdf: KdfParameters) -> bytes:
    try:
        stretched = Argon2id(
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
    return hkdf(stretched + secret, salt=kdf.salt, info=b"mirrorfs v1 kek")


def _commitment(kek: bytes, kdf: KdfParameters) -> bytes:
    return hkdf(kek, salt=kdf.salt, info=b"mirrorfs v1 kek commitment")


def _aad(slot: Slot, *, volume: bytes, key_generation: int) -> bytes:
    """Everything a slot says but the wrapped keys, so that no field of it can be changed."""
    if len(volume) != VOLUME_ID_SIZE_BYTES or not 1 <= key_generation <= KEY_GENERATION_MAX:
        raise LimitError("A slot belongs to a volume of 16 bytes and a key generation from 1 on.")
    body = slot.to_body()
    del body["wrapped"]
    return b"mirrorfs v1 slot" + volume + key_generation.to_bytes(4, "little") + canonical_json(body)


# --- slots -----------------------------------------------------------------------------------


def make_slot(
    key_set: KeySet,
    *,
    volume: bytes,
    key_generation: int,
    name: str,
    roles: tuple[Role, ...],
    password: bytes,
    enrolment: Enrolment,
    kdf: KdfParameters,
    created_ns: int,
    entropy: Entropy,
) -> Slot:
    """Wrap a key set so that this password together with this token opens it.

    Blocks for the time of one Argon2id.
    Args:
        key_set: restricted here to `roles`; the roles it lacks cannot be granted.
        password: UTF-8 in normalization form C; refused when weak.
        enrolment: the token's fields and secret, from `Token.enrol`.
        kdf: parameters under a fresh salt.
    Raises: UsageError: weak password. LimitError, FormatError: a field breaks a rule of the format.
    """
    check_new_password(password)
    secret = enrolment.secret
    if len(secret) != TOKEN_SECRET_SIZE_BYTES:
        raise LimitError("A token's secret has 32 bytes.")
    granted = tuple(role for role in Role if role in roles)
    plain = key_set.restricted(granted).encode()
    kek = _kek(password, secret, kdf)
    nonce = entropy(NONCE_SIZE_BYTES)

    def slot(wrapped: bytes) -> Slot:
        return Slot(
            slot_id=slot_id,
            kind=SlotKind.PKCS11,
            name=name,
            roles=granted,
            created_ns=created_ns,
            kdf=kdf,
            token=enrolment.fields,
            token_check=_token_check(secret, kdf),
            commitment=_commitment(kek, kdf),
            wrap_nonce=nonce,
            wrapped=wrapped,
        )

    slot_id = entropy(SLOT_ID_SIZE_BYTES)
    aad = _aad(slot(bytes(WRAPPED_SIZE_BYTES)), volume=volume, key_generation=key_generation)
    return slot(AESGCM(kek).encrypt(nonce, plain, aad))


def check_token_secret(slot: Slot, secret: bytes) -> None:
    """Tell at once, before a password is asked for, whether a token's secret is the slot's.

    Raises: WrongToken.
    """
    if len(secret) != TOKEN_SECRET_SIZE_BYTES or not hmac.compare_digest(
        _token_check(secret, slot.kdf), slot.token_check
    ):
        raise WrongToken("The token does not hold the key of this slot; insert the token that was enrolled.")


def open_slot(
    slot: Slot, *, volume: bytes, key_generation: int, password: bytes, token_secret: bytes
) -> KeySet:
    """Unwrap the key set of a slot. Blocks for the time of one Argon2id.

    Args:
        password: UTF-8 in normalization form C.
        token_secret: what `Token.secret_for` returned.
    Raises: WrongToken. WrongPassword. AuthenticationError: password and token are right, but the
        slot was altered. UnlockError: not enough memory.
    """
    check_token_secret(slot, token_secret)
    kek = _kek(password, token_secret, slot.kdf)
    if not hmac.compare_digest(_commitment(kek, slot.kdf), slot.commitment):
        raise WrongPassword("The token is right but the volume password is not; try again.")
    aad = _aad(slot, volume=volume, key_generation=key_generation)
    try:
        plain = AESGCM(kek).decrypt(slot.wrap_nonce, slot.wrapped, aad)
    except InvalidTag as exc:
        raise AuthenticationError(
            "A slot of the volume header was altered; unlock with another slot or an older header."
        ) from exc
    key_set = KeySet.decode(plain)
    if key_set.roles() != slot.roles:
        raise AuthenticationError("A slot wraps other roles than it names.")
    return key_set
