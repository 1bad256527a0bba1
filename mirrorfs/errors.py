"""Every exception of MirrorFS.

One root, `MirrorfsError`. The message is one sentence for a person that says what to do next;
`exit_code` is what the command line returns for it (README.md, "Exit codes"). Messages never
carry key material, file names or file contents: names of objects and stores only.
"""

from __future__ import annotations


class MirrorfsError(Exception):
    """Root of all errors that MirrorFS raises on purpose."""

    exit_code = 1


class LimitError(MirrorfsError):
    """A value is outside the limits that docs/FORMAT.md states."""


class UsageError(MirrorfsError):
    """The caller asked for something that cannot be done as stated; nothing was touched."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration of a volume is missing, malformed or unsafe."""


class CannotAsk(UsageError):
    """Nobody can be asked for a secret: there is no terminal, or the program that asks does not work."""


# --- unlocking -------------------------------------------------------------------------------


class UnlockError(MirrorfsError):
    """The volume was not unlocked; nothing changed."""

    exit_code = 3


class WrongPassword(UnlockError):
    """The token is right, the password is not."""


class WrongToken(UnlockError):
    """The token present does not hold the key that any slot names."""


class TokenMissing(UnlockError):
    """No token, or no reader, or no such slot on the machine."""


class WrongPin(UnlockError):
    """The token refused the PIN. It was sent once and is never retried."""


class PinLocked(UnlockError):
    """The token refuses further PINs until it is unblocked with its own tool."""


class NotTouched(UnlockError):
    """The token waited for a touch that did not come in time, was refused or was cancelled."""


class NotAnswered(UnlockError):
    """Whoever was asked for a secret cancelled, or did not answer in time."""


class TokenFailed(UnlockError):
    """The token or its module failed in a way that says nothing about the PIN."""


class ModuleMissing(UnlockError):
    """The PKCS#11 module, or the library that reaches tokens of this kind, cannot be loaded."""


class WrongVolume(UnlockError):
    """The header opens, but its fingerprint is not the one pinned for this volume."""


# --- stores ----------------------------------------------------------------------------------


class StoreError(MirrorfsError):
    """A store failed; the message names the store and the object."""

    exit_code = 4


class StoreUnavailable(StoreError):
    """The store cannot be reached or answered with a passing fault; nothing was written."""


class UnknownOutcome(StoreError):
    """The request may or may not have taken effect; look again before relying on either."""


class StoreDenied(StoreError):
    """The store refuses these credentials, or cannot be written to."""


class ObjectLocked(StoreDenied):
    """The store keeps the object until its lock is over, whoever wants it removed."""


class StoreFull(StoreError):
    """The store has no space left."""


class StoreMismatch(StoreError):
    """The store is empty, belongs to another volume, or was replaced."""


class StoreTooNew(StoreError):
    """The store was written by a newer format than this program reads."""

    exit_code = 2


class ObjectNotFound(StoreError):
    """The store holds no object under that key."""


class ObjectExists(StoreError):
    """The key holds other bytes (put), or the version is not the expected one (swap)."""


# --- damaged data ----------------------------------------------------------------------------


class DamagedError(MirrorfsError):
    """Bytes are not what was written; the message names the store, object and offset."""

    exit_code = 5


class FormatError(DamagedError):
    """Bytes do not parse as docs/FORMAT.md says."""


class AuthenticationError(DamagedError):
    """An AEAD tag, MAC, signature or commitment does not verify."""


class ChainError(DamagedError):
    """Segments or journal frames do not follow one another: a gap, a fork or a roll-back."""


class IndexDamaged(DamagedError):
    """The local index cannot be read. It holds nothing of its own: remove it and rebuild it from the log."""


# --- running ---------------------------------------------------------------------------------


class InUseError(MirrorfsError):
    """The volume, mountpoint or store is in use elsewhere."""

    exit_code = 6


class DiskError(MirrorfsError):
    """The local disk failed a read, a write or a sync."""


class DiskFull(DiskError):
    """The local disk has no space left."""


# --- what a filesystem call may answer (fuse/errno_table.py maps each to one errno) ----------


class FilesystemError(MirrorfsError):
    """A filesystem call was refused; the file tree is unchanged."""


class NoEntry(FilesystemError):
    """ENOENT."""


class EntryExists(FilesystemError):
    """EEXIST."""


class NotADirectory(FilesystemError):
    """ENOTDIR."""


class IsADirectory(FilesystemError):
    """EISDIR."""


class DirectoryNotEmpty(FilesystemError):
    """ENOTEMPTY."""


class NameTooLong(FilesystemError):
    """ENAMETOOLONG."""


class InvalidCall(FilesystemError):
    """EINVAL."""


class NoAttribute(FilesystemError):
    """ENODATA."""


class AttributeTooBig(FilesystemError):
    """E2BIG or ENOSPC: an extended attribute beyond the limits of the format."""


class NotPermitted(FilesystemError):
    """EPERM."""


class AccessDenied(FilesystemError):
    """EACCES: permissions that the kernel does not see."""


class ViewsBusy(FilesystemError):
    """EBUSY: as many moments of the past as can be are open and in use."""


class FileTooLarge(FilesystemError):
    """EFBIG."""


class TooManyLinks(FilesystemError):
    """EMLINK."""


class ReadOnlyVolume(FilesystemError):
    """EROFS."""


class NoSpaceLeft(FilesystemError):
    """ENOSPC."""


class ReadFailed(FilesystemError):
    """EIO: no good copy of the bytes can be had."""


class WritesStopped(FilesystemError):
    """EIO: an earlier failure stopped writing until the volume is mounted again."""
