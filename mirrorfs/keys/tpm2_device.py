"""A TPM 2.0 through tpm2-tss: opening it for the length of a call, its storage key, and what its errors mean.

The storage key is the primary key that the ECC P-256 template of draft-bottomley-tpm2-keys (parent
0x40000001), systemd and tpm2-tools gives in the owner hierarchy. A TPM makes the same key from it each
time, until it is cleared; so nothing is written into the TPM, and the key's name says which TPM it is. A
persistent key (0x81000001) was rejected: often there is none, or one of another template, and to make one
takes the owner's rights and one of few places.

All that follows runs in a session whose key is salted with the storage key, and encrypted. Who listens on
the wires between processor and TPM learns neither the secret nor the password, and cannot guess at the
latter from a recorded HMAC. Nor can who answers in the TPM's stead: tpm2-tss checks that the name belongs to
the public key it salts with, and the caller that the name is the slot's. Enrolling trusts the TPM it finds.

No handle outlives a call, so a fork does no harm. One call runs at a time in a process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

from mirrorfs.errors import (
    ModuleMissing,
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    WrongPassword,
    WrongToken,
)
from mirrorfs.keys.tpm2_uri import Tpm2Uri

AUTHORISATION_SIZE_BYTES = 32

_call_lock = threading.Lock()

# Response codes (TPM 2.0 Library, Part 2, 6.6; TSS 2.0 Overview, 3.2), those that we tell apart.
_LAYER_TPM, _LAYER_ESAPI, _LAYER_SYS, _LAYER_TCTI = 0, 7, 8, 10
_FORMAT_ONE = 0x080
_PARAMETER = 0x040
_HIERARCHY = 0x085
_AUTH_FAIL = 0x08E
_INTEGRITY = 0x09F
_BAD_AUTH = 0x0A2
_LOCKOUT = 0x921


class Step(Enum):
    """What the TPM was doing, where that changes what a response code means."""

    STORAGE_KEY = "making its storage key"
    LOADING = "loading what a slot holds"
    OTHER = "anything else"


@dataclass(frozen=True, slots=True)
class Tries:
    """How many wrong passwords the TPM still takes. It keeps one count for all that it guards."""

    left: int
    interval_s: int
    """Seconds after which it forgets one; 0: it never does."""

    def wait(self) -> str:
        """What to do once none is left."""
        if self.interval_s == 0:
            return "have its owner reset it (tpm2_dictionarylockout --clear-lockout)"
        return f"it forgets one every {_duration(self.interval_s)}, so wait that long and try again"


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{round(seconds / 60)} minutes" if seconds < 7200 else f"{round(seconds / 3600)} hours"


def locked(where: str, tries: Tries | None) -> PinLocked:
    """What is said when the TPM takes no password for now."""
    advice = "wait some hours and try again" if tries is None else tries.wait()
    return PinLocked(f"After too many wrong passwords, {where} refuses all of them for a while; {advice}.")


def tpm_error(code: int, *, where: str, tries: Tries | None = None, step: Step = Step.OTHER) -> UnlockError:
    """Translate a response code.

    Args:
        where: `Tpm2Uri.describe`.
        tries: read after the error, where the TPM says it.
    """
    layer = code >> 16
    is_parameter = bool(code & _FORMAT_ONE and code & _PARAMETER)
    kind = _FORMAT_ONE | (code & 0x3F) if code & _FORMAT_ONE else code
    if layer == _LAYER_TCTI:
        return TokenMissing(
            f"There is no answer from {where}; see that no other program holds it, and try again."
        )
    # A session refused although nobody had to know a password: its key is not what both had agreed on.
    if layer in (_LAYER_ESAPI, _LAYER_SYS) or (
        layer == _LAYER_TPM and kind == _BAD_AUTH and step is not Step.STORAGE_KEY
    ):
        return TokenFailed(
            f"What came as the answer of {where} is malformed or not authentic (0x{code:x}); if it happens"
            " again, have the machine looked at."
        )
    if layer == _LAYER_TPM and kind == _AUTH_FAIL:
        return _wrong_password(where, tries)
    if layer == _LAYER_TPM and kind == _LOCKOUT:
        return locked(where, tries)
    if layer == _LAYER_TPM and (kind == _INTEGRITY or (step is Step.LOADING and is_parameter)):
        return damaged(where)
    if layer == _LAYER_TPM and kind == _BAD_AUTH:
        return TokenFailed(
            f"The owner hierarchy of {where} has a password, which MirrorFS does not use; remove it"
            " (tpm2_changeauth -c owner -p PASSWORD) or use another token."
        )
    if layer == _LAYER_TPM and kind == _HIERARCHY:
        return TokenFailed(
            f"The owner hierarchy of {where} is switched off; switch it on in the firmware's settings."
        )
    return TokenFailed(
        f"An error came from {where} (0x{code:x}); try again, and restart the machine if it goes on."
    )


def damaged(where: str) -> WrongToken:
    """What is said of an object that the TPM did not make, or that was altered since."""
    return WrongToken(
        f"What the slot holds cannot be undone by {where}: it was altered, or sealed by another; use another"
        " slot or an older header."
    )


def _wrong_password(where: str, tries: Tries | None) -> WrongPassword:
    # Here the TPM sees the password before we do: that it was refused says that the token is right.
    refused = f"The volume password was refused by {where}, which checks it and counts wrong ones"
    if tries is None:
        return WrongPassword(f"{refused}; check it and try again.")
    if tries.left == 0:
        return WrongPassword(f"{refused}; no try is left, and {tries.wait()}.")
    count = "1 try left" if tries.left == 1 else f"{tries.left} tries left"
    return WrongPassword(f"{refused}: {count} before it refuses for a while; check it and try again.")


# --- opening ---------------------------------------------------------------------------------


def _library() -> ModuleType:
    """tpm2-pytss, silenced. Raises: ModuleMissing."""
    # Each part of tpm2-tss reads this when it first has something to say, and has no call instead: at "trace"
    # it prints secrets, and even its errors do not belong on a terminal. It stays set, and is set once,
    # because another thread may be reading the environment in C.
    if os.environ.get("TSS2_LOG") != "all+none":
        os.environ["TSS2_LOG"] = "all+none"
    try:
        import tpm2_pytss
    except ImportError as exc:
        raise ModuleMissing(
            "A TPM needs the package tpm2-pytss, which is missing or does not fit this machine's tpm2-tss;"
            " install libtss2-dev, pkg-config and build-essential, then run: pip install 'mirrorfs[tpm2]'."
        ) from exc
    library: ModuleType = tpm2_pytss
    return library


def is_denied(uri: Tpm2Uri) -> bool:
    """Whether the TPM is there, but not for this user."""
    return os.path.exists(uri.path) and not os.access(uri.path, os.R_OK | os.W_OK, effective_ids=True)


def _check_place(uri: Tpm2Uri) -> None:
    if is_denied(uri):
        raise TokenMissing(
            f"This user may not open {uri.path}; as root, run 'usermod -aG tss USER' (tss being the group"
            " that owns it), then log in again."
        )
    if not os.path.exists(uri.path):
        raise TokenMissing(
            f"There is no TPM 2.0 at {uri.path}; switch it on in the firmware's settings, or use another"
            " token."
        )


@contextmanager
def opened_tpm(uri: Tpm2Uri) -> Iterator[OpenTpm]:
    """Open a TPM and find its storage key, for the length of the block.

    Raises: ModuleMissing: no library. TokenMissing: no TPM, or not for this user. TokenFailed.
        What the block raises of the library's errors is translated (`tpm_error`).
    """
    tss = _library()
    _check_place(uri)
    with _call_lock:
        try:
            with ExitStack() as stack:
                yield OpenTpm(uri, tss, stack.enter_context(tss.ESAPI(uri.tcti)), stack)
        except tss.TSS2_Exception as exc:
            raise tpm_error(int(exc.rc), where=uri.describe()) from exc


# --- an open TPM -----------------------------------------------------------------------------


class OpenTpm:
    """A TPM while it is open. Its methods raise the library's errors; `opened_tpm` translates them."""

    def __init__(self, uri: Tpm2Uri, tss: ModuleType, esys: Any, stack: ExitStack) -> None:
        self._where = uri.describe()
        self._tss = tss
        self._esys = esys
        self._stack = stack
        self._session: Any = None
        self._storage_key = self._primary(_storage_template(tss))
        self.storage_key_name = bytes(esys.tr_get_name(self._storage_key))
        """34 bytes: which TPM it is, until it is cleared."""

    def _kept(self, handle: Any) -> Any:
        """A handle that is flushed at the end: without a resource manager a TPM has three places in all."""

        def flush() -> None:
            # Fails when the TPM is gone, and then nothing is left to flush.
            with suppress(self._tss.TSS2_Exception):
                self._esys.flush_context(handle)

        self._stack.callback(flush)
        return handle

    def _primary(self, template: Any) -> Any:
        try:
            handle, *_ = self._esys.create_primary(None, template, self._tss.ESYS_TR.OWNER)
        except self._tss.TSS2_Exception as exc:
            raise tpm_error(int(exc.rc), where=self._where, step=Step.STORAGE_KEY) from exc
        return self._kept(handle)

    def _encrypted(self) -> Any:
        """The session of this call, which carries authorisations and hides parameters both ways."""
        if self._session is None:
            tss = self._tss
            self._session = self._kept(
                self._esys.start_auth_session(
                    tpm_key=self._storage_key,
                    bind=tss.ESYS_TR.NONE,
                    session_type=tss.TPM2_SE.HMAC,
                    symmetric=tss.TPMT_SYM_DEF(
                        algorithm=tss.TPM2_ALG.AES,
                        keyBits=tss.TPMU_SYM_KEY_BITS(aes=128),
                        mode=tss.TPMU_SYM_MODE(aes=tss.TPM2_ALG.CFB),
                    ),
                    auth_hash=tss.TPM2_ALG.SHA256,
                )
            )
            hidden = tss.TPMA_SESSION.DECRYPT | tss.TPMA_SESSION.ENCRYPT
            self._esys.trsess_set_attributes(self._session, hidden | tss.TPMA_SESSION.CONTINUESESSION)
        return self._session

    def seal(self, secret: bytes, *, authorisation: bytes) -> tuple[bytes, bytes]:
        """Seal a secret to this TPM and an authorisation.

        Args:
            authorisation: 32 bytes, the authValue.
        Returns: TPM2B_PUBLIC and TPM2B_PRIVATE, marshalled.
        """
        assert len(authorisation) == AUTHORISATION_SIZE_BYTES, "an authorisation has 32 bytes"
        tss = self._tss
        sensitive = tss.TPMS_SENSITIVE_CREATE(userAuth=authorisation, data=secret)
        private, public, *_ = self._esys.create(
            self._storage_key,
            tss.TPM2B_SENSITIVE_CREATE(sensitive),
            _sealed_template(tss),
            session1=self._encrypted(),
        )
        return public.marshal(), private.marshal()

    def load(self, *, public: bytes, private: bytes) -> Any:
        """Load what `seal` made, which needs no authorisation. Raises: WrongToken: it is not that."""
        tss = self._tss
        try:
            public_area, public_size = tss.TPM2B_PUBLIC.unmarshal(public)
            private_area, private_size = tss.TPM2B_PRIVATE.unmarshal(private)
        except tss.TSS2_Exception as exc:
            raise damaged(self._where) from exc
        if (public_size, private_size) != (len(public), len(private)):
            raise damaged(self._where)
        # Anyone on this machine can seal things too. One without protection against guessing would give the
        # password away try by try, so nothing is used but what has our template.
        expected = _sealed_template(tss)
        expected.publicArea.unique.keyedHash = bytes(public_area.publicArea.unique.keyedHash)
        if public != expected.marshal():
            raise damaged(self._where)
        try:
            session = self._encrypted()
            return self._kept(self._esys.load(self._storage_key, private_area, public_area, session1=session))
        except tss.TSS2_Exception as exc:
            raise tpm_error(int(exc.rc), where=self._where, step=Step.LOADING) from exc

    def unseal(self, loaded: Any, *, authorisation: bytes) -> bytes:
        """The secret of an object that is loaded: one try, and a wrong one counts.

        Raises: WrongPassword. PinLocked.
        """
        assert len(authorisation) == AUTHORISATION_SIZE_BYTES, "an authorisation has 32 bytes"
        self._esys.tr_set_auth(loaded, authorisation)
        try:
            return bytes(self._esys.unseal(loaded, session1=self._encrypted()))
        except self._tss.TSS2_Exception as exc:
            raise tpm_error(int(exc.rc), where=self._where, tries=self.tries()) from exc

    # --- what it says of itself ----------------------------------------------------------

    def _properties(self, first: int, count: int) -> dict[int, int]:
        """Properties from a number on; those that it lacks are missing."""
        tss = self._tss
        _, found = self._esys.get_capability(tss.TPM2_CAP.TPM_PROPERTIES, first, count)
        return {int(each.property): int(each.value) for each in found.data.tpmProperties}

    def tries(self) -> Tries | None:
        """What its protection against guessing stands at; None where it does not say."""
        names = self._tss.TPM2_PT
        try:
            found = self._properties(names.LOCKOUT_COUNTER, 3)
            left = max(0, found[names.MAX_AUTH_FAIL] - found[names.LOCKOUT_COUNTER])
            return Tries(left=left, interval_s=found[names.LOCKOUT_INTERVAL])
        except (self._tss.TSS2_Exception, KeyError):
            return None

    def maker(self) -> str:
        """Its maker's id and name, such as "IFX SLB9670", at most 20 printable characters."""
        names = self._tss.TPM2_PT
        # The four properties that follow the maker's id are the parts of its name.
        found = self._properties(names.MANUFACTURER, 5)
        wanted = range(names.MANUFACTURER, names.MANUFACTURER + 5)
        groups = [found.get(name, 0).to_bytes(4, "big") for name in wanted]
        printable = ["".join(chr(byte) for byte in group if 32 <= byte < 127) for group in groups]
        return " ".join(f"{printable[0]} {''.join(printable[1:])}".split())


# --- templates -------------------------------------------------------------------------------


def _storage_template(tss: ModuleType) -> Any:
    flags = tss.TPMA_OBJECT
    return tss.TPM2B_PUBLIC(
        tss.TPMT_PUBLIC(
            type=tss.TPM2_ALG.ECC,
            nameAlg=tss.TPM2_ALG.SHA256,
            objectAttributes=flags.FIXEDTPM
            | flags.FIXEDPARENT
            | flags.SENSITIVEDATAORIGIN
            | flags.USERWITHAUTH
            | flags.NODA  # its own authorisation is empty: there is nothing to guess
            | flags.RESTRICTED
            | flags.DECRYPT,
            parameters=tss.TPMU_PUBLIC_PARMS(
                eccDetail=tss.TPMS_ECC_PARMS(
                    symmetric=tss.TPMT_SYM_DEF_OBJECT(
                        algorithm=tss.TPM2_ALG.AES,
                        keyBits=tss.TPMU_SYM_KEY_BITS(aes=128),
                        mode=tss.TPMU_SYM_MODE(aes=tss.TPM2_ALG.CFB),
                    ),
                    scheme=tss.TPMT_ECC_SCHEME(scheme=tss.TPM2_ALG.NULL),
                    curveID=tss.TPM2_ECC.NIST_P256,
                    kdf=tss.TPMT_KDF_SCHEME(scheme=tss.TPM2_ALG.NULL),
                )
            ),
        )
    )


def _sealed_template(tss: ModuleType) -> Any:
    """An object that holds data. It lacks noDA, so that wrong tries count, and has no policy: PCRs change
    with every update of the firmware, and would then lock out the owner."""
    flags = tss.TPMA_OBJECT
    return tss.TPM2B_PUBLIC(
        tss.TPMT_PUBLIC(
            type=tss.TPM2_ALG.KEYEDHASH,
            nameAlg=tss.TPM2_ALG.SHA256,
            objectAttributes=flags.FIXEDTPM | flags.FIXEDPARENT | flags.USERWITHAUTH,
            parameters=tss.TPMU_PUBLIC_PARMS(
                keyedHashDetail=tss.TPMS_KEYEDHASH_PARMS(
                    scheme=tss.TPMT_KEYEDHASH_SCHEME(scheme=tss.TPM2_ALG.NULL)
                )
            ),
        )
    )
