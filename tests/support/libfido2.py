"""Yubico's libfido2 against a software security key: a second opinion on CTAP2, from C, by other people.

libfido2 lets a program bring functions of its own for the packets, so it needs neither /dev/hidraw* nor a
kernel with uhid.
"""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_void_p

from tests.support.soft_hid import SoftHid

EXTENSION_HMAC_SECRET = 1
ES256 = -7

_OPEN = ctypes.CFUNCTYPE(c_void_p, c_char_p)
_CLOSE = ctypes.CFUNCTYPE(None, c_void_p)
_READ = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_ubyte), c_size_t, c_int)
_WRITE = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_ubyte), c_size_t)
_POINTERS = "fido_dev_new fido_cred_new fido_assert_new fido_cred_id_ptr fido_assert_hmac_secret_ptr"
_SIZES = "fido_cred_id_len fido_assert_hmac_secret_len"


class _Functions(ctypes.Structure):
    """fido_dev_io_t."""

    _fields_ = (("open", _OPEN), ("close", _CLOSE), ("read", _READ), ("write", _WRITE))


class LibFido2Error(Exception):
    """A call failed; `code` is the key's CTAP2 status, or a negative number of libfido2's own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"0x{code:02x}")
        self.code = code


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libfido2.so.1")
    for name in _POINTERS.split():
        getattr(library, name).restype = c_void_p
    for name in _SIZES.split():
        getattr(library, name).restype = c_size_t
    library.fido_init(0)
    return library


def _check(code: int) -> None:
    if code:
        raise LibFido2Error(code)


class LibFido2:
    """The key behind one wire, as libfido2 sees it; made by `opened`."""

    def __init__(self, library: ctypes.CDLL, device: c_void_p) -> None:
        self._library = library
        self._device = device

    def _do(self, name: str, *arguments: object) -> None:
        _check(getattr(self._library, name)(*arguments))

    def make_credential(self, *, rp: str, pin: str) -> bytes:
        """The id of a new credential with hmac-secret."""
        made = c_void_p(self._library.fido_cred_new())
        try:
            self._do("fido_cred_set_type", made, ES256)
            self._do("fido_cred_set_clientdata_hash", made, bytes(32), c_size_t(32))
            self._do("fido_cred_set_rp", made, rp.encode(), b"someone")
            self._do("fido_cred_set_user", made, bytes(16), c_size_t(16), b"someone", None, None)
            self._do("fido_cred_set_extensions", made, EXTENSION_HMAC_SECRET)
            self._do("fido_dev_make_cred", self._device, made, pin.encode())
            # The attestation's signature, so that what the software key signs is checked as well.
            self._do("fido_cred_verify_self", made)
            return ctypes.string_at(
                self._library.fido_cred_id_ptr(made), self._library.fido_cred_id_len(made)
            )
        finally:
            self._library.fido_cred_free(ctypes.byref(made))

    def hmac_secret(self, *, rp: str, pin: str, credential: bytes, salt: bytes) -> bytes:
        """What the key computes from a salt."""
        asked = c_void_p(self._library.fido_assert_new())
        try:
            self._do("fido_assert_set_clientdata_hash", asked, bytes(32), c_size_t(32))
            self._do("fido_assert_set_rp", asked, rp.encode())
            self._do("fido_assert_allow_cred", asked, credential, c_size_t(len(credential)))
            self._do("fido_assert_set_extensions", asked, EXTENSION_HMAC_SECRET)
            self._do("fido_assert_set_hmac_salt", asked, salt, c_size_t(len(salt)))
            self._do("fido_dev_get_assert", self._device, asked, pin.encode())
            size = self._library.fido_assert_hmac_secret_len(asked, c_size_t(0))
            return ctypes.string_at(
                self._library.fido_assert_hmac_secret_ptr(asked, c_size_t(0)),
                size,
            )
        finally:
            self._library.fido_assert_free(ctypes.byref(asked))


@contextmanager
def opened(wire: SoftHid) -> Iterator[LibFido2]:
    """The key behind the wire, open for the length of the block. Raises: LibFido2Error."""

    def read(handle: object, into: ctypes._Pointer[c_ubyte], size: int, timeout_ms: int) -> int:
        try:
            packet = wire.read_packet()
        except (OSError, queue.Empty):
            return -1
        ctypes.memmove(into, packet, min(size, len(packet)))
        return len(packet)

    def write(handle: object, data: ctypes._Pointer[c_ubyte], size: int) -> int:
        try:
            wire.write_packet(ctypes.string_at(data, size)[1:])  # the first byte is HID's report number
        except OSError:
            return -1
        return size

    library = _library()
    # Held here: libfido2 copies the pointers, and Python would free what they point to.
    functions = _Functions(
        _OPEN(lambda path: 1), _CLOSE(lambda handle: wire.close()), _READ(read), _WRITE(write)
    )
    device = c_void_p(library.fido_dev_new())
    try:
        _check(library.fido_dev_set_io_functions(device, ctypes.byref(functions)))
        _check(library.fido_dev_open(device, b"soft"))
        try:
            yield LibFido2(library, device)
        finally:
            library.fido_dev_close(device)
    finally:
        library.fido_dev_free(ctypes.byref(device))
