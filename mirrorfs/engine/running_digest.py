"""SHA-256 of a growing file, computed behind the writes.

Hashing takes four times as long as encrypting and must follow the order of the bytes, but nobody needs
the result before the segment ends. So what was written is kept here, and hashed when a core is free.
"""

from __future__ import annotations

import hashlib
from collections import deque


class RunningDigest:
    """Hashes what is added, in order, whenever `catch_up` is called.

    `add` and `mark` are called by one thread at a time, and so is everything else; `catch_up` may run in
    another thread while `add` or `mark` is called.
    """

    __slots__ = ("_digest", "_marked", "_queue", "waiting_bytes")

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._marked = self._digest.copy()
        self._queue: deque[bytes | bytearray | None] = deque()
        self.waiting_bytes = 0
        """Bytes that are added and not hashed: an estimate while `catch_up` runs."""

    def add(self, data: bytes | bytearray) -> None:
        """The next bytes; they must not change any more."""
        self._queue.append(data)
        self.waiting_bytes += len(data)

    def mark(self) -> None:
        """Remember the digest of what was added so far."""
        self._queue.append(None)

    def catch_up(self) -> None:
        """Hash all that was added before the call, and perhaps some that came later."""
        self.waiting_bytes = 0
        while self._queue:
            data = self._queue.popleft()
            if data is None:
                self._marked = self._digest.copy()
            else:
                self._digest.update(data)

    def digest(self) -> bytes:
        """Of everything added."""
        self.catch_up()
        return self._digest.digest()

    def marked_digest(self) -> bytes:
        """Of everything added before the last mark; of nothing if there is none."""
        self.catch_up()
        return self._marked.digest()
