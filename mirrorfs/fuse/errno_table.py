"""The one table from exceptions to errno, and the guard that every request handler runs under.

pyfuse3 handlers may raise FUSEError only: anything else ends the session loop, and the mount vanishes
under the user's software.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from mirrorfs import errors
from mirrorfs.engine.lasting import place_of

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

ERRNO: Final[Mapping[type[errors.MirrorfsError], int]] = {
    errors.MirrorfsError: errno.EIO,  # stores, keys, damaged data: all that a file's user cannot mend
    errors.LimitError: errno.EINVAL,
    errors.DiskFull: errno.ENOSPC,
    errors.FilesystemError: errno.EIO,
    errors.NoEntry: errno.ENOENT,
    errors.EntryExists: errno.EEXIST,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.InvalidCall: errno.EINVAL,
    errors.NoAttribute: errno.ENODATA,
    errors.AttributeTooBig: errno.E2BIG,
    errors.NotPermitted: errno.EPERM,
    errors.AccessDenied: errno.EACCES,
    errors.ViewsBusy: errno.EBUSY,
    errors.FileTooLarge: errno.EFBIG,
    errors.TooManyLinks: errno.EMLINK,
    errors.ReadOnlyVolume: errno.EROFS,
    errors.NoSpaceLeft: errno.ENOSPC,
    errors.ReadFailed: errno.EIO,
    errors.WritesStopped: errno.EIO,
}


def errno_of(error: errors.MirrorfsError) -> int:
    """The errno of the nearest class in the table; EIO at worst."""
    return next(ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO)


class Guarded(Protocol):
    """A class whose methods are handlers."""

    def unexpected(self, error: Exception) -> None:
        """Called once per exception that no handler should raise. Must not raise."""


S = TypeVar("S", bound=Guarded)


def _answer(owner: Guarded, error: Exception) -> FUSEError:
    """What the kernel is told about an exception. No FUSEError comes in here."""
    if isinstance(error, errors.MirrorfsError):
        return FUSEError(errno_of(error))
    owner.unexpected(error)
    return FUSEError(errno.EIO)


# Why a broad catch, here and nowhere else: an exception that escapes a handler ends the session, so one
# unforeseen bug in one request would take the mount away from every program that uses it. The request
# answers EIO, `unexpected` logs it and stops the writing. Cancelled is a BaseException and passes.


def handler(call: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Turn a plain method into a request handler without a further coroutine on its path."""

    @functools.wraps(call)
    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise _answer(self, error) from error

    return answer


def async_handler(
    call: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Guard a method that may wait."""

    @functools.wraps(call)
    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await call(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise _answer(self, error) from error

    return answer


def log_unexpected(error: Exception) -> None:
    """One line that names the type and the place of an exception, never its text: that may hold names."""
    log.critical("a request failed in an unforeseen way: %s", place_of(error))
