"""Whether a condemned segment of a store may go: nothing that is kept needs it, or it lies elsewhere as well.

Which frames are needed is reckoned at a moment that was verified. Where they lie now only the newest log
says, whose writer may lie: so each is read there, and compared with the one that is to go. With an object all
its versions go, so each of them is looked at: what shows may have been put over what is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

from mirrorfs.core.compaction import Kept
from mirrorfs.core.scan import ScannedFrame, scan_segment
from mirrorfs.engine.versions import get_good
from mirrorfs.errors import DamagedError, LimitError, ObjectNotFound
from mirrorfs.format.frame import Kind, unpack
from mirrorfs.format.ids import (
    SegmentId,
    Stream,
    frame_id,
    parse_segment_object_key,
    segment_object_key,
    split_frame_id,
)
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.manifest import Listed
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index, ObjectKey, Store

CACHED_MAX: Final = 8
"""Segments of up to 16 MiB: a run copies into one what it takes out of several."""


class MustStay(Exception):
    """The object is needed, or that it is not cannot be told. Says why, in some words."""


class ForgedCopy(MustStay):
    """What is said to be a copy of a frame verifies, and is none: only a writer's keys can make that."""


class CondemnedCheck:
    """For one store."""

    def __init__(
        self,
        store: Store,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        *,
        newest: Index,
        base: Index,
        kept: Kept,
        condemned: Collection[str],
        trusts_log: bool,
    ) -> None:
        """
        Args:
            newest: of the end of the log; says where frames lie.
            base: of the verified moment `kept.base`; says when they died.
            condemned: keys that are no place for anything.
            trusts_log: what was collected before the base counts as not needed, as the log says.
        """
        self._store = store
        self._keys = keys
        self._writer = writer
        self._newest = newest
        self._base = base
        self._kept = kept
        self._condemned = condemned
        self._trusts_log = trusts_log
        self._cached: dict[str, bytes] = {}

    async def check(self, key: str) -> Listed:
        """What is to be deleted. Raises: MustStay. StoreError. ObjectNotFound: it is gone already."""
        stream, segment = parse_segment_object_key(key)
        if stream is Stream.MAIN and self._kept.is_log(segment.sequence):
            raise MustStay("it is a part of the log")
        listed: Listed | None = None
        digests: set[bytes] = set()
        missing = {row.frame for row in self._base.frames_in(stream, segment.sequence)}
        for version in (None, *await self._store.versions(ObjectKey(key))):
            try:
                data = await self._store.get(ObjectKey(key), version=version)
            except (ObjectNotFound, LimitError):
                continue
            digest = hashlib.sha256(data).digest()
            if digest in digests:
                continue
            digests.add(digest)
            try:
                frames = self._frames_of(key, data)
            except DamagedError:
                continue  # no reader takes anything out of it
            for frame in frames:
                if self._needs(frame.frame):
                    await self._compare(key, data, frame)
                missing.discard(frame.frame)
            listed = listed or Listed(key, len(data), digest)
        if not digests:
            raise ObjectNotFound(f"Store {self._store.name} holds no object {key}.")
        if listed is None or any(map(self._needs, sorted(missing))):
            raise MustStay("it is damaged")
        return listed

    async def whole(self, key: str) -> Listed:
        """The same of an object of which no part is looked at. Raises: as `check`."""
        segment = parse_segment_object_key(key)

        def check(data: bytes) -> Listed:
            header, _ = decode_header(data, self._keys, self._writer)
            if (header.stream, header.segment) != segment:
                raise DamagedError("another segment.")
            return Listed(key, len(data), hashlib.sha256(data).digest())

        try:
            return await get_good(self._store, ObjectKey(key), check)
        except (DamagedError, LimitError) as exc:
            raise MustStay("it is damaged") from exc

    def _needs(self, frame: int) -> bool:
        """Whether something that is kept refers to a frame. Raises: MustStay: that cannot be told."""
        row = self._base.get_frame(frame)
        if row is not None:
            return self._kept.needs(frame, live=row.live, death=row.death)
        if frame > self._kept.base or self._newest.get_frame(frame) is not None:
            return True
        # It was collected before the base.
        if not self._trusts_log:
            raise MustStay("what was in it was given up before this machine could tell")
        return False

    def _frames_of(self, key: str, data: bytes) -> list[ScannedFrame]:
        """The data frames in a segment. Raises: DamagedError: it is none. MustStay: a part of it is bad."""
        scan = scan_segment(data, self._keys, self._writer)
        if segment_object_key(scan.header.stream, scan.header.segment) != key:
            raise DamagedError("another segment.")
        if scan.bad or (scan.trailer is not None and scan.fault is not None):
            raise MustStay("it is damaged")
        return [*(frame for journal in scan.journals for frame in journal.frames), *scan.rest]

    async def _compare(self, key: str, data: bytes, frame: ScannedFrame) -> None:
        row, moved = self._newest.get_frame(frame.frame), self._newest.get_relocation(frame.frame)
        if row is None:
            raise MustStay("a kept moment needs it, and the log has given up what is in it")
        if moved is not None:
            place = self._key_at(moved.stream, moved.sequence)
            ordinal, offset = moved.ordinal, moved.offset
        else:
            sequence, ordinal = split_frame_id(frame.frame)
            place, offset = self._key_at(Stream.MAIN, sequence), row.offset
        if place is None or place == key or place in self._condemned:
            raise MustStay("a kept moment needs it, and what is in it is nowhere else")
        try:
            copy = self._opened(place, await self._read(place), frame.frame, ordinal, offset)
        except (DamagedError, LimitError, ObjectNotFound) as exc:
            raise MustStay("a kept moment needs it, and its copy is missing or damaged") from exc
        if copy != self._opened(key, data, frame.frame, frame.ordinal, frame.offset):
            raise ForgedCopy("a kept moment needs it, and its copy has other contents")

    def _key_at(self, stream: int, sequence: int) -> str | None:
        is_main = stream == Stream.MAIN
        row = self._newest.get_segment(sequence) if is_main else self._newest.get_relocated(sequence)
        if row is None:
            return None
        return segment_object_key(Stream(stream), SegmentId(sequence, row.epoch, row.writer))

    async def _read(self, key: str) -> bytes:
        if key not in self._cached:
            while len(self._cached) >= CACHED_MAX:
                del self._cached[next(iter(self._cached))]
            self._cached[key] = await self._store.get(ObjectKey(key))
        return self._cached[key]

    def _opened(self, key: str, data: bytes, frame: int, ordinal: int, offset: int) -> bytes:
        """The plaintext of a frame, as any reader takes it out of a segment. Raises: DamagedError."""
        header, cipher = decode_header(data, self._keys, self._writer)
        if segment_object_key(header.stream, header.segment) != key:
            raise DamagedError("another segment lies there.")
        found, body = cipher.open_body(memoryview(data)[offset:], offset=offset, ordinal=ordinal)
        if body.kind is not Kind.DATA or frame_id(found.birth_sequence, found.birth_ordinal) != frame:
            raise DamagedError("another frame lies there.")
        return unpack(body)
