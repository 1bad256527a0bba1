"""Dirty ranges: bytes of a file that are in memory and not yet in a frame."""

from __future__ import annotations

from bisect import bisect_right

from mirrorfs.format.limits import CHUNK_SIZE


class DirtyRanges:
    """Non-overlapping byte ranges in offset order; the newest write wins.

    Writes are kept as the objects they came in, not copied together: sequential writers bring 1 MiB
    pieces, databases 4 KiB ones, and both are joined only when a frame is built.
    """

    __slots__ = ("_data", "_starts", "size_bytes")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytes | memoryview] = []
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def end(self) -> int:
        """Offset after the last dirty byte; 0 when there is none."""
        return self._starts[-1] + len(self._data[-1]) if self._starts else 0

    def write(self, offset: int, data: bytes) -> None:
        """Lay data over what is there."""
        if not data:
            return
        starts = self._starts
        if not starts or offset >= self.end:
            starts.append(offset)
            self._data.append(data)
            self.size_bytes += len(data)
            return
        end = offset + len(data)
        first = bisect_right(starts, offset) - 1
        if first >= 0 and starts[first] == offset and len(self._data[first]) == len(data):
            self._data[first] = data
            return
        if first < 0 or starts[first] + len(self._data[first]) <= offset:
            first += 1
        last = first
        new_starts, new_data = [offset], [data]
        while last < len(starts) and starts[last] < end:
            start, old = starts[last], self._data[last]
            self.size_bytes -= len(old)
            if start < offset:
                head = memoryview(old)[: offset - start]
                new_starts.insert(0, start)
                new_data.insert(0, head)  # type: ignore[arg-type]  # bytes-like, as declared for _data
            if start + len(old) > end:
                new_starts.append(end)
                new_data.append(memoryview(old)[end - start :])  # type: ignore[arg-type]  # bytes-like
            last += 1
        self.size_bytes += sum(map(len, new_data))
        starts[first:last] = new_starts
        self._data[first:last] = new_data

    def truncate(self, size: int) -> None:
        """Drop what lies at or beyond `size`."""
        while self._starts and self._starts[-1] >= size:
            self._starts.pop()
            self.size_bytes -= len(self._data.pop())
        if self._starts and self.end > size:
            keep = size - self._starts[-1]
            self.size_bytes -= len(self._data[-1]) - keep
            self._data[-1] = memoryview(self._data[-1])[:keep]

    def read_into(self, buffer: bytearray, offset: int) -> None:
        """Lay the dirty bytes over `buffer`, which holds the file from `offset` on."""
        starts = self._starts
        if not starts:
            return
        end = offset + len(buffer)
        i = max(bisect_right(starts, offset) - 1, 0)
        while i < len(starts) and starts[i] < end:
            start, data = starts[i], self._data[i]
            low, high = max(start, offset), min(start + len(data), end)
            if low < high:
                buffer[low - offset : high - offset] = data[low - start : high - start]
            i += 1

    def take(self, limit: int) -> list[tuple[int, bytes | memoryview]]:
        """Remove and return ranges from the front: at least one, then as many as fit `limit` bytes.

        What follows the last one without a gap, in one chunk with its end, comes too.
        """
        count, total, end = 0, 0, -1
        while count < len(self._starts):
            start, size = self._starts[count], len(self._data[count])
            if count and total + size > limit and (start != end or not start % CHUNK_SIZE):
                break
            total += size
            end = start + size
            count += 1
        taken = list(zip(self._starts[:count], self._data[:count], strict=True))
        del self._starts[:count]
        del self._data[:count]
        self.size_bytes -= total
        return taken
