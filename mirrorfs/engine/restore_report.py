"""What a restore tells while it runs, afterwards, and before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mirrorfs.engine.restore_archive import Archived
from mirrorfs.engine.restore_data import DataResult, Fetched
from mirrorfs.engine.restore_tree import MadeTree, RestoreTree

NAMED_MAX = 1000
"""Paths of incomplete files that a report names; all of them are counted."""


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """How far a restore is."""

    done_bytes: int
    total_bytes: int
    """Known once the names are made."""
    names: int
    """Names made so far."""
    finished: int
    """Inodes of which all is done."""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did, and what it could not do."""

    files: int
    """Regular files, hard links counted once."""
    directories: int
    made_names: int
    """Names made below the root, hard links and all kinds of files included."""
    written_bytes: int
    lost_bytes: int
    incomplete_count: int
    """Files that lack bytes for which no good copy was found."""
    incomplete: tuple[str, ...]
    """Paths of up to NAMED_MAX of them: for the person's eyes, not for logs."""
    unread_bytes: int
    unread_count: int
    """Files that lack only bytes that may lie in stores that did not answer when asked for them."""
    unread: tuple[str, ...]
    """Paths of up to NAMED_MAX of them."""
    unreached: tuple[str, ...]
    """Names of those stores."""
    refused_count: int
    refused: tuple[tuple[str, str], ...]
    """(path, reason) of up to NAMED_MAX names that could not be made; not for logs either."""
    bad_copies: Mapping[str, int]
    """By store, how many segments were met that are damaged there or that it lacks."""
    bad_objects: frozenset[tuple[str, str]]
    """(store, object key) of these segments."""
    left_out: Mapping[str, int]
    """Kinds of things that were not restored, in words, and how many of each."""
    kept_count: int
    """Names that were there before and stayed."""
    fetched: Mapping[str, Fetched]
    """By store, what contents were read from it."""

    @property
    def complete(self) -> bool:
        """Whether every file that was asked for is there with all its bytes."""
        return not self.incomplete_count and not self.unread_count and not self.refused_count


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a restore would do, if all copies are good."""

    files: int
    directories: int
    names: int
    """That would be made, below the root."""
    size_bytes: int
    """Contents that would be written."""
    fetched: Fetched
    """What the stores would be asked for, together."""


def tree_report(tree: RestoreTree, data: DataResult, made: MadeTree) -> RestoreReport:
    """Of a restore into a directory."""
    return _report(
        data,
        tree.path_of,
        files=made.regular_count,
        directories=len(made.directories),
        made_names=made.names,
        refused_count=tree.refused_count,
        refused=tuple(tree.refused[:NAMED_MAX]),
        left_out=dict(tree.left_out),
        kept_count=tree.kept_count,
    )


def archive_report(done: Archived, left_out: Mapping[str, int]) -> RestoreReport:
    """Of a restore into a stream."""
    return _report(
        done.data,
        lambda inode: done.paths.get(inode, f"inode {inode}"),
        files=done.files,
        directories=done.directories,
        made_names=done.names,
        refused_count=0,
        refused=(),
        left_out=dict(left_out),
        kept_count=0,
    )


def _report(
    data: DataResult,
    path_of: Callable[[int], str],
    *,
    files: int,
    directories: int,
    made_names: int,
    refused_count: int,
    refused: tuple[tuple[str, str], ...],
    left_out: Mapping[str, int],
    kept_count: int,
) -> RestoreReport:
    return RestoreReport(
        files=files,
        directories=directories,
        made_names=made_names,
        written_bytes=data.written_bytes,
        lost_bytes=data.lost_bytes,
        incomplete_count=len(data.incomplete),
        incomplete=tuple(path_of(inode) for inode in data.incomplete[:NAMED_MAX]),
        unread_bytes=data.unread_bytes,
        unread_count=len(data.unread),
        unread=tuple(path_of(inode) for inode in data.unread[:NAMED_MAX]),
        unreached=tuple(sorted(data.unreached)),
        refused_count=refused_count,
        refused=refused,
        bad_copies=Counter(store for store, _ in data.bad_copies),
        bad_objects=data.bad_copies,
        left_out=left_out,
        kept_count=kept_count,
        fetched=data.fetched,
    )
