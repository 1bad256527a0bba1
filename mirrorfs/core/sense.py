"""Whether many files are being replaced by what looks encrypted: a ransomware sense.

It hears what the write path knows anyway (how well each frame compressed, which bytes an overwrite or a
removal took away, how a file begins, which names go and come) and counts files that were legible and are
not any more:

- overwritten in place, all or in part: what is gone compressed well and what came does not compress at all,
  or the file began in a way that programs know and now begins with noise;
- written new and noise from its first byte, where a legible file of a related name goes from the same
  directory (or of any name, at the same time and smaller by always the same), or where it takes the old name;
- overwritten by noise, whatever was there, and given a longer name (`report.jpg.locked`).

Noise that only comes (an import of photos, of encrypted archives) is never counted: something legible has to
go. One change of this kind is nothing; `limit` of them within SPAN_NS are a burst, which is open until a
person clears it. A burst names the last clean moment: the commit before the first change that counts.

Rejected: a share of all changes (it only tells a busy day from a quiet one), names of known ransomware (a
list that is old the day it is printed), entropy of samples (zstd has seen every byte already).

Invariants
- Nothing is read or waited for, and memory is bounded: the oldest is forgotten. Names stay in memory.
- Time is that of commits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from mirrorfs.core.file_changes import JUDGED_MIN_BYTES, Lost, Written
from mirrorfs.core.signatures import START_BYTES, Start, start_of
from mirrorfs.core.suspect import (
    FULL,
    HALF,
    PADDING_BYTES,
    Mark,
    Suspect,
    Victim,
    continues,
    growth_of,
)

SPAN_NS: Final = 3600 * 1_000_000_000
"""Changes that lie further apart are not added up."""
LIMIT: Final = 20
"""Files of a burst, by default."""
FILES_MAX: Final = 10_000
STARTS_MAX: Final = 50_000
NAMES_MAX: Final = 20_000
DIRECTORIES_MAX: Final = 1000
WAITING_MAX: Final = 256
"""Files of one directory that wait for their counterpart."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Many files were replaced by what looks encrypted."""

    clean_position: int
    """The last moment before: what to restore, and what history must keep."""
    clean_ns: int
    last_position: int
    """The newest commit that had such a change."""
    last_ns: int
    files: int


class _Directory:
    """What waits for its counterpart in one directory."""

    __slots__ = ("noise", "victims")

    def __init__(self) -> None:
        self.noise: list[Suspect] = []
        self.victims: list[Victim] = []


class Sense:
    """Counts for one volume. Every method takes microseconds."""

    def __init__(self, limit: int = 0) -> None:
        """`limit`: files of a burst; 0: nothing is looked at."""
        self.limit = limit
        self.burst: Burst | None = None
        """The one that is open."""
        self.on_change: Callable[[], None] = lambda: None
        """Hears of a commit after which `burst` is another."""
        self._mark = Mark(0, 0)
        self._counted: deque[tuple[Mark, int, int]] = deque()
        """(commit before, commit time when it was counted, weight)"""
        self._weight = 0
        self._is_changed = False
        self._files: dict[int, Suspect] = {}
        self._starts: dict[int, Start] = {}
        self._new: dict[int, tuple[int, bytes]] = {}
        self._newest = 0
        """The inode that was created last."""
        self._growth = -PADDING_BYTES - 1
        """What the last new file of another name had more than the old one."""
        self._removed: dict[int, tuple[int, bytes, Mark, int]] = {}
        self._replaced: dict[int, tuple[int, Mark]] = {}
        self._directories: dict[int, _Directory] = {}

    def clear(self) -> None:
        """A person looked: begin anew."""
        self.burst = None
        self._counted.clear()
        self._weight = 0
        self._is_changed = False
        self._files.clear()
        self._directories.clear()

    # --- what happens ------------------------------------------------------------------------

    def committed(self, position: int, time_ns: int) -> None:
        """All changes so far belong to this commit."""
        self._mark = Mark(position, time_ns)
        if self._is_changed and self.burst is not None:
            self._is_changed = False
            self.burst = replace(self.burst, last_position=position, last_ns=time_ns)
            self.on_change()

    def saw(self, inode: int, data: bytes) -> None:
        """The first bytes of a file were read."""
        if self.limit and inode not in self._starts:
            _bound(self._starts, STARTS_MAX)
            self._starts[inode] = start_of(data[:START_BYTES])

    def created(self, inode: int, parent: int, name: bytes) -> None:
        """A new regular file."""
        if self.limit:
            _bound(self._new, NAMES_MAX)
            self._new[inode] = parent, name
            self._newest = inode

    def renamed(self, inode: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """A file has another name."""
        if not self.limit:
            return
        if inode in self._new:
            self._new[inode] = new_parent, new_name
        file = self._file(inode)
        if new_name.startswith(name) and len(new_name) > len(name):
            file.is_longer = True
        if file.is_new:
            self._leave(file)
            file.parent, file.name = new_parent, new_name
        self._judge(file)

    def replaced(self, inode: int, by: int) -> None:
        """A file lost its name to another; if it was its last name, `gone` follows."""
        if self.limit:
            _bound(self._replaced, NAMES_MAX)
            self._replaced[inode] = by, self._mark

    def removed(self, inode: int, parent: int, name: bytes) -> None:
        """A name was removed; if it was the file's last one, `gone` follows."""
        if self.limit:
            _bound(self._removed, NAMES_MAX)
            self._removed[inode] = parent, name, self._mark, self._newest

    def cut(self, inode: int, size: int, lost: Lost) -> None:
        """A file was truncated."""
        if not self.limit or not lost.size_bytes:
            return
        file = self._file(inode)
        file.lose(lost, self._mark)
        file.is_cut = file.is_cut or not size

    def wrote(self, inode: int, written: Written, lost: Lost) -> None:
        """Frames with bytes of a file are in the log, in the place of what was lost."""
        if not self.limit:
            return
        file = self._file(inode)
        file.size = max(file.size, written.end)
        if 10 * written.opaque_bytes < 9 * (written.opaque_bytes + written.plain_bytes):
            file.forgive()
        else:
            file.lose(lost, self._mark)
            file.opaque += written.opaque_bytes
        if written.start is not None:
            file.begin(start_of(written.start), self._mark)
            file.was_legible = not file.start.is_legible and (
                file.was_legible or self._starts.get(inode, Start.UNSEEN).is_legible
            )
            _bound(self._starts, STARTS_MAX)
            self._starts[inode] = file.start
        self._judge(file)

    def gone(self, inode: int, lost: Lost) -> None:
        """A file without names was removed, with its contents."""
        if not self.limit:
            return
        start = self._starts.pop(inode, Start.UNSEEN)
        removed, replaced = self._removed.pop(inode, None), self._replaced.pop(inode, None)
        file = self._files.pop(inode, None)
        self._new.pop(inode, None)
        size, compressible = lost
        if file is not None:
            self._leave(file)
            if file.is_counted:
                return
            size, compressible = size + file.lost, compressible + file.lost_compressible
        is_legible = start.is_legible or 2 * compressible >= size >= JUDGED_MIN_BYTES
        if not is_legible or not size:
            return
        if replaced is not None:
            by = self._file(replaced[0])
            by.replaces = by.replaces or replaced[1]
            self._judge(by)
        elif removed is not None:
            parent, name, since, newest = removed
            self._legible_went(parent, Victim(name, size, since, newest))

    # --- judging -----------------------------------------------------------------------------

    def _file(self, inode: int) -> Suspect:
        file = self._files.get(inode)
        if file is not None and abs(self._mark.time_ns - file.seen_ns) <= SPAN_NS:
            return file
        if file is not None:
            self._leave(file)
            del self._files[inode]
        if len(self._files) >= FILES_MAX:
            self._leave(self._files.pop(next(iter(self._files))))
        file = self._files[inode] = Suspect(inode, self._mark)
        place = self._new.get(inode)
        if place is not None:
            file.is_new = True
            file.parent, file.name = place
        return file

    def _judge(self, file: Suspect) -> None:
        if file.is_counted:
            return
        if file.is_rewritten:
            self._count(file, FULL, file.since or self._mark)
        elif file.is_noise:
            if file.replaces is not None:
                self._count(file, FULL, min(file.replaces, file.since or file.replaces))
            else:
                self._noise_came(file)

    def _noise_came(self, file: Suspect) -> None:
        directory = self._directory(file.parent)
        for victim in directory.victims:
            weight = self._weight_of(file, victim)
            if weight:
                directory.victims.remove(victim)
                self._leave(file)
                self._count(file, weight, min(victim.since, file.since or victim.since))
                return
        if file not in directory.noise:
            directory.noise.append(file)
            del directory.noise[:-WAITING_MAX]

    def _legible_went(self, parent: int, victim: Victim) -> None:
        directory = self._directory(parent)
        for file in directory.noise:
            weight = self._weight_of(file, victim)
            if weight:
                directory.noise.remove(file)
                self._count(file, weight, min(victim.since, file.since or victim.since))
                return
        directory.victims.append(victim)
        del directory.victims[:-WAITING_MAX]

    def _weight_of(self, file: Suspect, victim: Victim) -> int:
        """How much it says that one came and the other went."""
        if continues(file, victim):
            return FULL
        growth = growth_of(file, victim)
        if growth is None:
            return 0
        before, self._growth = self._growth, growth
        return HALF if abs(growth - before) <= PADDING_BYTES else 0

    def _directory(self, parent: int) -> _Directory:
        directory = self._directories.get(parent)
        if directory is None:
            _bound(self._directories, DIRECTORIES_MAX)
            directory = self._directories[parent] = _Directory()
        horizon_ns = self._mark.time_ns - SPAN_NS
        while directory.victims and directory.victims[0].since.time_ns < horizon_ns:
            directory.victims.pop(0)
        while directory.noise and directory.noise[0].seen_ns < horizon_ns:
            directory.noise.pop(0)
        return directory

    def _leave(self, file: Suspect) -> None:
        directory = self._directories.get(file.parent) if file.is_new else None
        if directory is not None and file in directory.noise:
            directory.noise.remove(file)

    def _count(self, file: Suspect, weight: int, since: Mark) -> None:
        file.is_counted = True
        if self.burst is not None:
            clean = min(since, Mark(self.burst.clean_position, self.burst.clean_ns))
            self.burst = replace(
                self.burst, clean_position=clean.position, clean_ns=clean.time_ns, files=self.burst.files + 1
            )
            self._is_changed = True
            return
        now_ns = self._mark.time_ns
        self._counted.append((since, now_ns, weight))
        self._weight += weight
        while abs(now_ns - self._counted[0][1]) > SPAN_NS:
            self._weight -= self._counted.popleft()[2]
        if self._weight >= FULL * self.limit:
            clean = min(mark for mark, _, _ in self._counted)
            self.burst = Burst(*clean, *self._mark, len(self._counted))
            self._is_changed = True
            self._counted.clear()
            self._weight = 0


def _bound(table: dict[int, Any], most: int) -> None:
    """Make room for one more: the oldest goes."""
    if len(table) >= most:
        del table[next(iter(table))]
