"""What one S3 store has on the line at a time, and how fast it goes.

Uploads, whole objects read and ranges read have threads of their own, or a scrub would keep readers
waiting for one. Small requests of control (leases, heads, listings, the look at the store's instance) have
theirs as well and wait for no limit: a lease that waited behind an upload would be lost.

Bodies are shaped while they are sent and read, piece by piece, in the worker thread. Pacing whole objects
was rejected: 16 MiB at full speed fill the queues of a slow line for half a minute, which is what a limit
in practice hours is there to prevent, and a store that takes nothing would use up the others' share.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from mirrorfs.ports import THROTTLE_PIECE, Throttle

PARALLEL = 4
CONTROL_PARALLEL = 4
CONTROL_SIZE_MAX = 128 * 1024
"""A whole object that is promised to be no larger than this is control."""

_SLICE_S = 0.5
_READ_SIZE = 1024 * 1024


class S3Line:
    """Limits of one store; `pace_small`, `read` and `shape` are for its worker threads."""

    def __init__(self, *, parallel: int = PARALLEL, throttle: Throttle | None = None) -> None:
        """
        Args:
            parallel: objects sent at a time, objects read whole, and half the number of ranges read.
            throttle: None for no limit of the rate.
        """
        self.uploads = trio.CapacityLimiter(parallel)
        self.downloads = trio.CapacityLimiter(parallel)
        self.ranges = trio.CapacityLimiter(2 * parallel)
        self.control = trio.CapacityLimiter(CONTROL_PARALLEL)
        self.connections_max = 4 * parallel + CONTROL_PARALLEL
        self._throttle = throttle

    def pace_small(self, size_bytes: int) -> None:
        """Wait before an object is sent that is too small for `shape`; raises trio.Cancelled."""
        if self._throttle is not None and size_bytes <= THROTTLE_PIECE:
            _wait(partial(self._throttle.upload, size_bytes, urgent=True))

    def for_get(self, size_max: int) -> trio.CapacityLimiter:
        """Where a request for a whole object belongs."""
        return self.control if size_max <= CONTROL_SIZE_MAX else self.downloads

    def read(self, body: Any, *, limit_bytes: int, is_range: bool = False) -> bytes:
        """Read an answer to its end, or to a little beyond limit_bytes when it does not stop there.

        Only the read that meets the end makes botocore compare with Content-Length, so this goes on
        until it does. Ranges are what readers wait for; raises trio.Cancelled.
        """
        is_paced = self._throttle is not None and (is_range or limit_bytes > CONTROL_SIZE_MAX)
        piece_bytes = THROTTLE_PIECE if is_paced else _READ_SIZE
        parts: list[bytes] = []
        total = 0
        while total <= limit_bytes:
            part: bytes = body.read(min(piece_bytes, limit_bytes + 1 - total))
            if not part:
                break
            if is_paced and self._throttle is not None:
                # The server, and what the network holds of its answer, wait for us to go on.
                _wait(partial(self._throttle.download, len(part), urgent=is_range))
            parts.append(part)
            total += len(part)
        return b"".join(parts)

    def shape(self, client: Any) -> None:
        """Have a client send large bodies at the throttle's pace."""
        throttle = self._throttle
        if throttle is None:
            return

        def before_send(request: Any, **_: object) -> None:
            # Not before: over plain http the whole body is read to be signed, which is no sending.
            data = request.body.getvalue() if isinstance(request.body, io.BytesIO) else request.body
            if len(data) > THROTTLE_PIECE:
                request.body = _ShapedBody(data, partial(throttle.upload, urgent=False))

        client.meta.events.register("before-send.s3.PutObject", before_send)


class _ShapedBody(io.BytesIO):
    """Bytes that take their time to be read."""

    def __init__(self, data: bytes, reserve: Callable[[int], float]) -> None:
        super().__init__(data)
        self._left_bytes = len(data)
        self._credit_bytes = 0
        self._reserve = reserve

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self._credit_bytes -= len(part)
        while self._credit_bytes < 0:
            piece_bytes = max(1, min(THROTTLE_PIECE, self._left_bytes))
            _wait(partial(self._reserve, piece_bytes))
            self._left_bytes -= piece_bytes
            self._credit_bytes += piece_bytes
        return part


def _wait(reserve: Callable[[], float]) -> None:
    """Reserve, and wait in this worker thread. Raises trio.Cancelled once its task was cancelled.

    So an upload that nobody waits for any more ends here, and takes no more of the line.
    """
    trio.from_thread.check_cancelled()
    left_s = trio.from_thread.run_sync(reserve)
    while left_s > 0:
        time.sleep(min(left_s, _SLICE_S))
        left_s -= _SLICE_S
        trio.from_thread.check_cancelled()
