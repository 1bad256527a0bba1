"""Which dirty bytes share a frame."""

from __future__ import annotations

import random

import pytest

from mirrorfs.core.grouping import DirtyPiece, FramePlan, Group, cut_ranges, plan_frames, split_range
from mirrorfs.format.limits import CHUNK_SIZE, FRAME_LENGTH_MAX, GROUP_LENGTH_MAX

OWNER = Group(uid=1000, parent=1)


def plans(*pieces: tuple[Group, int, int, int]) -> list[list[tuple[int, int]]]:
    """(inode, offset) of the pieces of each frame, from (group, inode, offset, length)."""
    made = plan_frames((group, DirtyPiece(inode, at, bytes(size))) for group, inode, at, size in pieces)
    for plan in made:
        check(plan)
    return [[(piece.inode, piece.offset) for piece in plan.pieces] for plan in made]


def check(plan: FramePlan) -> None:
    at = 0
    for piece in plan.pieces:
        assert piece.frame_offset == at
        at += len(piece.data)
    assert plan.length == at <= FRAME_LENGTH_MAX
    if len({piece.inode for piece in plan.pieces}) > 1:
        assert plan.shared
        assert at <= GROUP_LENGTH_MAX


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 10, [(0, 10)]),
        (5, CHUNK_SIZE - 5, [(5, CHUNK_SIZE - 5)]),
        (5, CHUNK_SIZE, [(5, CHUNK_SIZE - 5), (CHUNK_SIZE, 5)]),
        (
            CHUNK_SIZE - 1,
            CHUNK_SIZE + 2,
            [(CHUNK_SIZE - 1, 1), (CHUNK_SIZE, CHUNK_SIZE), (2 * CHUNK_SIZE, 1)],
        ),
        (0, 0, []),
    ],
)
def test_split_at_chunks(offset: int, size: int, expected: list[tuple[int, int]]) -> None:
    data = random.Random(1).randbytes(size)
    pieces = list(split_range(7, offset, data))
    assert [(piece.offset, piece.length) for piece in pieces] == expected
    assert b"".join(bytes(piece.data) for piece in pieces) == data


@pytest.mark.parametrize("step", [1000, 4096, CHUNK_SIZE // 2 + 1, CHUNK_SIZE, 2 * CHUNK_SIZE])
def test_pieces_do_not_depend_on_the_sizes_of_writes(step: int) -> None:
    data = random.Random(1).randbytes(2 * CHUNK_SIZE + 700)
    first, hole = CHUNK_SIZE - 300, CHUNK_SIZE + 100
    ranges = [(first + at, data[at : at + step]) for at in range(0, hole, step)]
    ranges = [(offset, part[: first + hole - offset]) for offset, part in ranges]
    ranges += [(first + at, data[at : at + step]) for at in range(hole + 50, len(data), step)]
    pieces = list(cut_ranges(7, ranges))
    ends = [piece.offset + piece.length for piece in pieces]
    assert [piece.offset for piece in pieces] == [
        first, CHUNK_SIZE, first + hole + 50, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE
    ]  # fmt: skip
    assert ends == [CHUNK_SIZE, first + hole, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE, first + len(data)]
    for piece, end in zip(pieces, ends, strict=True):
        assert piece.data == data[piece.offset - first : end - first]


def test_small_files_of_one_owner_and_directory_share() -> None:
    assert plans((OWNER, 1, 0, 100), (OWNER, 2, 0, 100), (OWNER, 3, 0, 100)) == [[(1, 0), (2, 0), (3, 0)]]


@pytest.mark.parametrize("other", [Group(uid=0, parent=1), Group(uid=1000, parent=2)])
def test_others_do_not(other: Group) -> None:
    assert plans((OWNER, 1, 0, 100), (other, 2, 0, 100)) == [[(1, 0)], [(2, 0)]]


def test_a_group_is_bounded() -> None:
    half = GROUP_LENGTH_MAX // 2
    assert plans((OWNER, 1, 0, half), (OWNER, 2, 0, half), (OWNER, 3, 0, 1)) == [[(1, 0), (2, 0)], [(3, 0)]]


def test_a_run_of_one_file_fills_a_frame() -> None:
    step = 128 * 1024
    pieces = [(OWNER, 1, at, step) for at in range(0, 2 * CHUNK_SIZE, step)]
    made = plans(*pieces)
    assert [len(plan) for plan in made] == [8, 8]
    assert made[1][0] == (1, CHUNK_SIZE)


def test_a_run_does_not_inflate_a_group() -> None:
    """A long run that began in a shared frame goes on in one of its own."""
    made = plans((OWNER, 1, 0, 1000), (OWNER, 2, 0, 1000), (OWNER, 2, 1000, 500_000))
    assert made == [[(1, 0), (2, 0)], [(2, 1000)]]


def test_large_pieces_stand_alone() -> None:
    assert plans((OWNER, 1, 0, CHUNK_SIZE), (OWNER, 2, 0, 10), (OWNER, 3, 0, CHUNK_SIZE)) == [
        [(1, 0)],
        [(2, 0)],
        [(3, 0)],
    ]


def test_random_plans_keep_the_rules() -> None:
    rng = random.Random(7)
    for _ in range(200):
        pieces = []
        ends: dict[int, int] = {}
        for _ in range(rng.randrange(1, 40)):
            inode = rng.randrange(1, 5)
            at = ends.get(inode, 0) + rng.choice([0, 0, 4096])
            size = min(rng.choice([1, 4096, 100_000, 300_000]), CHUNK_SIZE - at % CHUNK_SIZE)
            ends[inode] = at + size
            pieces.append((Group(inode % 2, 1), inode, at, size))
        made = plans(*pieces)
        for inode in ends:
            order = [at for plan in made for number, at in plan if number == inode]
            assert sorted(order) == [at for _, number, at, _ in pieces if number == inode]
        for plan in made:
            assert len({number % 2 for number, _ in plan}) == 1
