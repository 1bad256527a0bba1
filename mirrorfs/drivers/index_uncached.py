"""The tables of the index that are asked too seldom for a cache: each call is one statement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mirrorfs.drivers import index_statements as sql
from mirrorfs.format.ids import Stream
from mirrorfs.format.rows import (
    CondemnedRow,
    ContentRow,
    MomentRow,
    RelocatedRow,
    RelocationRow,
    SegmentRow,
    SnapshotRow,
)


class UncachedTables:
    """A part of ports.Index; see there for the contract of each method."""

    def _query(self, statement: str, bindings: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def _query_many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        raise NotImplementedError

    # --- relocations ---------------------------------------------------------------------------

    def get_relocation(self, frame: int) -> RelocationRow | None:
        rows = self._query(sql.GET_RELOCATION, (frame,))
        return RelocationRow._make(rows[0]) if rows else None

    def put_relocation(self, row: RelocationRow) -> None:
        self._query(sql.PUT_RELOCATION, row)

    # --- segments ------------------------------------------------------------------------------

    def get_segment(self, sequence: int) -> SegmentRow | None:
        rows = self._query(sql.GET_SEGMENT, (sequence,))
        return SegmentRow._make(rows[0]) if rows else None

    def put_segment(self, row: SegmentRow) -> None:
        self._query(sql.PUT_SEGMENT, row)

    def last_segment(self) -> SegmentRow | None:
        rows = self._query(sql.LAST_SEGMENT)
        return SegmentRow._make(rows[0]) if rows else None

    def list_segments(self, *, from_sequence: int, limit: int) -> list[SegmentRow]:
        return [SegmentRow._make(row) for row in self._query(sql.LIST_SEGMENTS, (from_sequence, limit))]

    # --- snapshots -----------------------------------------------------------------------------

    def get_snapshot(self, name: bytes) -> SnapshotRow | None:
        rows = self._query(sql.GET_SNAPSHOT, (name,))
        return SnapshotRow._make(rows[0]) if rows else None

    def put_snapshot(self, row: SnapshotRow) -> None:
        self._query(sql.PUT_SNAPSHOT, row)

    def delete_snapshot(self, name: bytes) -> None:
        self._query(sql.DELETE_SNAPSHOT, (name,))

    def list_snapshots(self) -> list[SnapshotRow]:
        return [SnapshotRow._make(row) for row in self._query(sql.LIST_SNAPSHOTS)]

    def count_snapshots(self) -> int:
        return int(self._query(sql.COUNT_SNAPSHOTS)[0][0])

    # --- retention -----------------------------------------------------------------------------

    def delete_segment(self, sequence: int) -> None:
        self._query(sql.DELETE_SEGMENT, (sequence,))

    def get_moment(self, position: int) -> MomentRow | None:
        rows = self._query(sql.GET_MOMENT, (position,))
        return MomentRow._make(rows[0]) if rows else None

    def base_moment(self) -> MomentRow | None:
        rows = self._query(sql.BASE_MOMENT)
        return MomentRow._make(rows[0]) if rows else None

    def put_moment(self, row: MomentRow) -> None:
        self._query(sql.PUT_MOMENT, row)

    def delete_moment(self, position: int) -> None:
        self._query(sql.DELETE_MOMENT, (position,))

    def count_moments(self) -> int:
        return int(self._query(sql.COUNT_MOMENTS)[0][0])

    def list_moments(self) -> list[MomentRow]:
        return [MomentRow._make(row) for row in self._query(sql.LIST_MOMENTS)]

    def get_relocated(self, sequence: int) -> RelocatedRow | None:
        rows = self._query(sql.GET_RELOCATED, (sequence,))
        return RelocatedRow._make(rows[0]) if rows else None

    def put_relocated(self, row: RelocatedRow) -> None:
        self._query(sql.PUT_RELOCATED, row)

    def delete_relocated(self, sequence: int) -> None:
        self._query(sql.DELETE_RELOCATED, (sequence,))

    def list_relocated(self, *, from_sequence: int, limit: int) -> list[RelocatedRow]:
        return [RelocatedRow._make(row) for row in self._query(sql.LIST_RELOCATED, (from_sequence, limit))]

    def last_relocated(self) -> int:
        return int(self._query(sql.LAST_RELOCATED, (Stream.RELOCATED,))[0][0])

    def get_condemned(self, stream: int, sequence: int) -> CondemnedRow | None:
        rows = self._query(sql.GET_CONDEMNED, (stream, sequence))
        return CondemnedRow._make(rows[0]) if rows else None

    def put_condemned(self, row: CondemnedRow) -> None:
        self._query(sql.PUT_CONDEMNED, row)

    def delete_condemned(self, stream: int, sequence: int) -> None:
        self._query(sql.DELETE_CONDEMNED, (stream, sequence))

    def list_condemned(self, *, after: tuple[int, int], limit: int) -> list[CondemnedRow]:
        return [CondemnedRow._make(row) for row in self._query(sql.LIST_CONDEMNED, (*after, limit))]

    # --- local knowledge -----------------------------------------------------------------------

    def held(self, store: str, *, after: str, limit: int) -> list[str]:
        return [key for (key,) in self._query(sql.HELD, (store, after, limit))]

    def put_held(self, store: str, key: str) -> None:
        self._query(sql.PUT_HELD, (store, key))

    def delete_held(self, store: str, key: str) -> None:
        self._query(sql.DELETE_HELD, (store, key))

    def clear_held(self, store: str) -> None:
        self._query(sql.CLEAR_HELD, (store,))

    def get_content(self, digest: bytes) -> ContentRow | None:
        rows = self._query(sql.GET_CONTENT, (digest,))
        return ContentRow._make(rows[0]) if rows else None

    def put_contents(self, rows: Iterable[ContentRow]) -> None:
        self._query_many(sql.PUT_CONTENT, rows)

    def drop_contents(self, frames: Iterable[int]) -> None:
        self._query_many(sql.DROP_CONTENTS, ((frame,) for frame in frames))
