"""Each exception a filesystem call may raise has its errno, and nothing else leaves a handler."""

from __future__ import annotations

import errno
import inspect

import pytest
import trio
from pyfuse3 import FUSEError

from mirrorfs import errors
from mirrorfs.fuse.errno_table import ERRNO, async_handler, errno_of, handler

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.MirrorfsError) and kind.__module__ == errors.__name__
]
CALLS = [kind for kind in CLASSES if issubclass(kind, errors.FilesystemError)]


@pytest.mark.parametrize("kind", CALLS)
def test_every_filesystem_error_is_in_the_table_as_documented(kind: type[errors.MirrorfsError]) -> None:
    assert kind in ERRNO
    if kind is not errors.FilesystemError:
        assert errno.errorcode[ERRNO[kind]] in (kind.__doc__ or "")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_an_errno(kind: type[errors.MirrorfsError]) -> None:
    assert errno_of(kind("text")) in errno.errorcode


def test_the_nearest_class_counts() -> None:
    class Nearer(errors.DiskFull):
        pass

    assert errno_of(Nearer("text")) == errno.ENOSPC
    assert errno_of(errors.DiskError("text")) == errno.EIO
    assert errno_of(errors.AuthenticationError("text")) == errno.EIO


class Handlers:
    """Raises what it is told to raise."""

    def __init__(self) -> None:
        self.seen: list[Exception] = []

    def unexpected(self, error: Exception) -> None:
        self.seen.append(error)

    @handler
    def plain(self, error: BaseException | None) -> int:
        if error is not None:
            raise error
        return 7

    @async_handler
    async def waiting(self, error: BaseException | None) -> int:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return 7


@pytest.mark.parametrize("name", ["plain", "waiting"])
@pytest.mark.parametrize(
    ("error", "number", "unexpected"),
    [
        (errors.NoEntry("text"), errno.ENOENT, False),
        (errors.StoreUnavailable("text"), errno.EIO, False),
        (FUSEError(errno.ENOSYS), errno.ENOSYS, False),
        (KeyError("secret"), errno.EIO, True),
        (MemoryError(), errno.EIO, True),
        (ExceptionGroup("text", [ValueError()]), errno.EIO, True),
    ],
)
async def test_a_handler_raises_fuse_errors_only(
    name: str, error: Exception, number: int, unexpected: bool
) -> None:
    handlers = Handlers()
    with pytest.raises(FUSEError) as caught:
        await getattr(handlers, name)(error)
    assert caught.value.errno == number
    assert handlers.seen == ([error] if unexpected else [])


@pytest.mark.parametrize("name", ["plain", "waiting"])
async def test_values_and_cancellation_pass(name: str) -> None:
    handlers = Handlers()
    assert await getattr(handlers, name)(None) == 7
    with pytest.raises(KeyboardInterrupt):
        await getattr(handlers, name)(KeyboardInterrupt())
    with trio.CancelScope() as scope:
        scope.cancel()
        await handlers.waiting(None)
    assert scope.cancelled_caught
    assert handlers.seen == []
