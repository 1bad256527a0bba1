"""One file: whether noise took the place of something legible in it, or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from mirrorfs.core.file_changes import JUDGED_MIN_BYTES, Lost
from mirrorfs.core.signatures import Start

GROWTH_MAX_BYTES: Final = 1024
"""An encryptor adds so much to a file, at most: a key and some padding."""
MADE_BEFORE: Final = 4
"""So many files may have been created between the new one and the removal of the old one."""
PADDING_BYTES: Final = 16
"""By so much does differ what an encryptor adds to one file and to the next."""
FULL, HALF = 2, 1
"""What a file counts."""


class Mark(NamedTuple):
    """A commit."""

    position: int
    time_ns: int


class Suspect:
    """A file that was changed lately."""

    __slots__ = (
        "inode",
        "is_counted",
        "is_cut",
        "is_longer",
        "is_new",
        "lost",
        "lost_compressible",
        "name",
        "opaque",
        "parent",
        "replaces",
        "seen_ns",
        "since",
        "size",
        "start",
        "was_legible",
    )  # fmt: skip

    def __init__(self, inode: int, mark: Mark) -> None:
        self.inode = inode
        self.parent = 0
        self.name = b""
        self.is_new = False
        self.seen_ns = mark.time_ns
        self.is_longer = False
        """It was renamed, by something put behind its name."""
        self.replaces: Mark | None = None
        """It took the name of a legible file, which went after this commit."""
        self.size = 0
        self.is_counted = False
        self.forgive()

    def forgive(self) -> None:
        """What was written last is no encryptor's: what was before does not count."""
        self.since: Mark | None = None
        """The commit before the first of the changes below that may be an encryptor's; None: none may."""
        self.opaque = 0
        """Bytes that did not compress."""
        self.start = Start.UNSEEN
        """How it begins now, if that was written lately."""
        self.is_cut = False
        """Its first bytes went, and are not there again."""
        self.was_legible = False
        """It began in a legible way, before noise came in its place."""
        self.lost = 0
        self.lost_compressible = 0

    def lose(self, lost: Lost, mark: Mark) -> None:
        """Bytes of it went after this commit."""
        if lost.size_bytes:
            self.since = self.since or mark
        self.lost += lost.size_bytes
        self.lost_compressible += lost.compressible_bytes

    def begin(self, start: Start, mark: Mark) -> None:
        """Its first bytes were written after this commit."""
        self.start = start
        self.is_cut = False
        if start is Start.KNOWN:
            self.since = None  # Saved as programs save it: the moment before is no better than this one.
        elif start is Start.OPAQUE:
            self.since = self.since or mark

    @property
    def is_opaque(self) -> bool:
        """Whether noise was written to it last, and enough to say so."""
        return self.opaque >= JUDGED_MIN_BYTES

    @property
    def is_rewritten(self) -> bool:
        """Whether noise took the place of something legible in it."""
        if not self.is_opaque or not self.lost:
            return False
        if self.start is Start.OPAQUE and self.was_legible:
            return True
        if self.start is Start.KNOWN or self.is_cut or self.lost < JUDGED_MIN_BYTES:
            return False
        return 2 * self.lost_compressible >= self.lost or (
            self.is_longer and self.start is not Start.STRUCTURED
        )

    @property
    def is_noise(self) -> bool:
        """Whether it is new, and noise from its first byte."""
        return self.is_new and self.is_opaque and self.start is Start.OPAQUE


@dataclass(frozen=True, slots=True)
class Victim:
    """A legible file that was removed."""

    name: bytes
    size: int
    since: Mark
    newest: int
    """The inode that had been created last when it was removed."""


def continues(file: Suspect, victim: Victim) -> bool:
    """Whether the name of what came continues that of what went."""
    stem = victim.name.rpartition(b".")[0] or victim.name
    return file.name.startswith((victim.name, stem + b"."))


def growth_of(file: Suspect, victim: Victim) -> int | None:
    """How many bytes the one has more than the other, where one may have been made of the other."""
    growth = file.size - victim.size
    is_near = -MADE_BEFORE <= file.inode - victim.newest <= 1
    return growth if is_near and 0 <= growth <= GROWTH_MAX_BYTES else None
