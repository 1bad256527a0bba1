"""core/sense.py with made-up events: what counts, what does not, and which moment was the last clean one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mirrorfs.core.file_changes import NOTHING_LOST, Lost, Written, compressed_well
from mirrorfs.core.sense import FILES_MAX, LIMIT, NAMES_MAX, SPAN_NS, STARTS_MAX, Burst, Sense

S = 1_000_000_000
BEGAN_NS = 1_800_000_000 * S
SIZE = 40_000
TEXT = b"Dear colleague, thank you for referring this patient. " * 3
JPEG = bytes.fromhex("ffd8ffe000104a46494600010101004800480000ffdb0043") + bytes(range(100))
NOISE = random.Random(3).randbytes(132)
OPAQUE = random.Random(4).randbytes(132)
"""Another one."""


class Story:
    """A volume whose files are changed one by one, with a commit after each."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.sense = Sense(limit)
        self.changes: list[int] = []
        """Positions of commits that were told to change the burst."""
        self.sense.on_change = self._changed
        self.position = 0
        self.now_ns = BEGAN_NS
        self.next_inode = 10
        self.commit()

    def _changed(self) -> None:
        self.changes.append(self.position)

    def commit(self, after_s: float = 5.0) -> None:
        self.position += 1
        self.now_ns += int(after_s * S)
        self.sense.committed(self.position, self.now_ns)

    def old(self, start: bytes | None = TEXT) -> int:
        """A file that was there before, whose first bytes were read."""
        self.next_inode += 1
        if start is not None:
            self.sense.saw(self.next_inode, start)
        return self.next_inode

    def create(
        self, name: bytes, start: bytes, *, parent: int = 1, opaque: bool = True, size: int = SIZE
    ) -> int:
        self.next_inode += 1
        self.sense.created(self.next_inode, parent, name)
        self.sense.wrote(self.next_inode, _written(size, start, opaque=opaque), NOTHING_LOST)
        return self.next_inode

    def write(
        self, inode: int, start: bytes | None, lost: Lost = NOTHING_LOST, *, opaque: bool = True
    ) -> None:
        self.sense.wrote(inode, _written(lost.size_bytes or SIZE, start, opaque=opaque), lost)

    def burst(self) -> Burst | None:
        return self.sense.burst

    def remove(self, inode: int, name: bytes, lost: Lost, *, parent: int = 1) -> None:
        self.sense.removed(inode, parent, name)
        self.sense.gone(inode, lost)


def _written(size: int, start: bytes | None, *, opaque: bool) -> Written:
    return Written(size * opaque, size * (not opaque), start, size)


WAS_TEXT = Lost(SIZE, SIZE)
WAS_PHOTO = Lost(SIZE, 0)


def in_place(story: Story, number: int) -> None:
    story.write(story.old(), NOISE, WAS_TEXT)


def photo_in_place(story: Story, number: int) -> None:
    story.write(story.old(JPEG), NOISE, WAS_PHOTO)


def cut_and_written(story: Story, number: int) -> None:
    inode = story.old()
    story.sense.cut(inode, 0, WAS_TEXT)
    story.commit()
    story.write(inode, NOISE)


def in_part(story: Story, number: int) -> None:
    """Every other block, and not the first."""
    story.write(story.old(), None, WAS_TEXT)


def a_marker_first(story: Story, number: int) -> None:
    """A start that says little: only what is gone tells."""
    story.write(story.old(), b"\0\1\0\0LOCK" * 20, WAS_TEXT)


def written_a_moment_ago(story: Story, number: int) -> None:
    inode = story.create(b"new.txt", TEXT, opaque=False)
    story.write(inode, NOISE, WAS_TEXT)


def beside_it(story: Story, number: int) -> None:
    inode = story.old()
    story.create(b"letter %d.txt.locked" % number, NOISE)
    story.commit()
    story.remove(inode, b"letter %d.txt" % number, WAS_TEXT)


def beside_it_afterwards(story: Story, number: int) -> None:
    inode = story.old(JPEG)
    story.remove(inode, b"photo %d.jpg" % number, WAS_PHOTO)
    story.create(b"photo %d.enc" % number, NOISE)


def over_it(story: Story, number: int) -> None:
    inode = story.old()
    new = story.create(b".tmp", NOISE)
    story.sense.renamed(new, b".tmp", 1, b"letter.txt")
    story.sense.replaced(inode, by=new)
    story.commit()
    story.sense.gone(inode, WAS_TEXT)


def named_later(story: Story, number: int) -> None:
    story.remove(story.old(), b"letter %d.txt" % number, Lost(9000, 9000))
    new = story.create(b"%d.tmp" % number, NOISE)
    story.sense.renamed(new, b"%d.tmp" % number, 1, b"letter %d.txt.crypt" % number)


def unknown_and_renamed(story: Story, number: int) -> None:
    inode = story.old(None)
    story.write(inode, None, WAS_PHOTO)
    story.sense.renamed(inode, b"scan.dat", 1, b"scan.dat.locked")


ATTACKS = [
    in_place, photo_in_place, cut_and_written, in_part, a_marker_first, written_a_moment_ago, beside_it,
    beside_it_afterwards, over_it, named_later, unknown_and_renamed,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_burst_is_found_and_knows_the_last_clean_moment(attack: Callable[[Story, int], None]) -> None:
    story = Story()
    for _ in range(40):
        story.write(story.old(), TEXT, WAS_TEXT, opaque=False)
        story.commit()
    clean = story.position, story.now_ns
    for number in range(LIMIT - 1):
        attack(story, number)
        story.commit()
    assert story.burst() is None and not story.changes
    attack(story, LIMIT)
    burst = story.burst()
    assert burst is not None and burst.files == LIMIT
    assert (burst.clean_position, burst.clean_ns) == clean
    assert not story.changes, "it is told with the commit that has it"
    story.commit()
    assert story.changes == [story.position]
    attack(story, LIMIT + 1)
    story.commit()
    story.commit()
    burst = story.burst()
    assert burst is not None
    assert (burst.files, burst.clean_position) == (LIMIT + 1, clean[0])
    assert burst.last_position == story.position - 1 == story.changes[-1]
    assert len(story.changes) == 2


def photo_that_came(story: Story, number: int) -> int:
    return story.create(b"photo %d.jpg" % number, JPEG)


def photo_that_was_saved(story: Story, number: int) -> int:
    inode = story.old(JPEG)
    story.sense.cut(inode, 0, WAS_PHOTO)
    story.write(inode, JPEG)
    story.write(inode, None)
    return inode


@pytest.mark.parametrize("write", [photo_that_came, photo_that_was_saved])
def test_the_clean_moment_has_what_was_written_lately(write: Callable[[Story, int], int]) -> None:
    story = Story()
    photos = []
    for number in range(LIMIT):
        photos.append(write(story, number))
        story.commit()
    clean = story.position
    for inode in photos:
        story.write(inode, NOISE, WAS_PHOTO)
        story.commit()
    burst = story.burst()
    assert burst is not None and (burst.files, burst.clean_position) == (LIMIT, clean)


def removed_and_new(story: Story, number: int, growth: int, *, others: int = 0) -> None:
    """The new one has a name of its own."""
    inode, size = story.old(), SIZE + 5000 * number
    story.create(b"%032x" % number, NOISE, size=size)
    for other in range(others):
        story.create(b"note %d" % other, TEXT, opaque=False)
    story.remove(inode, b"letter %d.txt" % number, Lost(size - growth, size - growth))
    story.commit()


def test_of_always_the_same_growth_counts_half() -> None:
    story = Story()
    for number in range(2 * LIMIT + 1):  # The first has nothing to be compared with.
        assert story.burst() is None
        removed_and_new(story, number, 300 + number % 16)
    assert story.burst() is not None


@pytest.mark.parametrize(("growths", "others"), [((300, 400), 0), ((2000,), 0), ((-50,), 0), ((300,), 5)])
def test_of_other_sizes_or_another_time_it_does_not_count(growths: tuple[int, ...], others: int) -> None:
    story = Story(limit=1)
    for number in range(4 * LIMIT):
        removed_and_new(story, number, growths[number % len(growths)], others=others)
    assert story.burst() is None


def import_photos(story: Story, number: int) -> None:
    story.create(b"photo %d.jpg" % number, JPEG)


def import_encrypted(story: Story, number: int) -> None:
    story.create(b"archive %d.gpg" % number, NOISE)


def import_encrypted_beside_old_ones(story: Story, number: int) -> None:
    story.create(b"archive %d.gpg" % number, NOISE)
    story.remove(story.old(OPAQUE), b"archive %d.gpg" % number, WAS_PHOTO)


def save_photo(story: Story, number: int) -> None:
    inode = story.old(JPEG)
    story.sense.cut(inode, 0, WAS_PHOTO)
    story.write(inode, JPEG)
    story.write(inode, None)


def save_encrypted(story: Story, number: int) -> None:
    story.write(story.old(OPAQUE), NOISE, WAS_PHOTO)


def save_letter(story: Story, number: int) -> None:
    old = story.old()
    new = story.create(b"~x.tmp", b"PK\x03\x04" + NOISE)
    story.sense.renamed(new, b"~x.tmp", 1, b"letter.docx")
    story.sense.replaced(old, by=new)
    story.sense.gone(old, WAS_TEXT)


def compress(story: Story, number: int) -> None:
    old = story.old()
    story.create(b"log %d.gz" % number, b"\x1f\x8b\x08\0" + NOISE)
    story.remove(old, b"log %d" % number, WAS_TEXT)


def compress_in_place(story: Story, number: int) -> None:
    """A large one, whose first bytes come last."""
    inode = story.old()
    story.sense.cut(inode, 0, WAS_TEXT)
    story.write(inode, None)
    story.commit()
    story.write(inode, b"%PDF-1.7" + NOISE)


def compress_in_place_in_order(story: Story, number: int) -> None:
    """Text becomes a PDF without being cut; only its first part compresses."""
    inode = story.old()
    story.write(inode, b"%PDF-1.7 " + TEXT, WAS_TEXT, opaque=False)
    story.write(inode, None, WAS_TEXT)


def preallocated(story: Story, number: int) -> None:
    """Zeros are written, and filled by what is received."""
    inode = story.create(b"film %d.mp4" % number, bytes(132), opaque=False)
    story.write(inode, None, Lost(SIZE, 0))


def preallocated_and_unknown(story: Story, number: int) -> None:
    inode = story.create(b"film %d" % number, bytes(132), opaque=False)
    story.write(inode, NOISE, Lost(SIZE, 0))


def edited_and_compressed(story: Story, number: int) -> None:
    """A document is edited; then a picture in it grows, which compresses nothing."""
    inode = story.old()
    story.write(inode, TEXT, WAS_TEXT, opaque=False)
    story.write(inode, None, NOTHING_LOST)


def database_page(story: Story, number: int) -> None:
    story.write(11, None, Lost(4096, 4096))


def elsewhere(story: Story, number: int) -> None:
    story.create(b"%d.gpg" % number, NOISE, parent=2)
    story.remove(story.old(), b"%d.txt" % number, WAS_TEXT, parent=3)


def empty_files(story: Story, number: int) -> None:
    story.write(story.old(), None, Lost(100, 100))
    story.remove(story.old(), b"x", NOTHING_LOST)


HARMLESS = [
    import_photos, import_encrypted, import_encrypted_beside_old_ones, save_photo, save_encrypted,
    save_letter, compress, compress_in_place, compress_in_place_in_order, preallocated,
    preallocated_and_unknown, edited_and_compressed, database_page, elsewhere, empty_files,
]  # fmt: skip


@pytest.mark.parametrize("work", HARMLESS)
def test_honest_work_is_no_burst(work: Callable[[Story, int], None]) -> None:
    story = Story(limit=2)
    for number in range(300):
        work(story, number)
        if number % 3 == 0:
            story.commit()
    assert story.burst() is None


def test_what_lies_far_apart_is_not_added_up() -> None:
    story = Story()
    for number in range(5 * LIMIT):
        in_place(story, number)
        story.commit(SPAN_NS / S / (LIMIT - 2))
    assert story.burst() is None
    for number in range(LIMIT):
        in_place(story, number)
        story.commit(60)
    assert story.burst() is not None


def test_a_clock_that_is_set_back_does_not_blind_it() -> None:
    story = Story()
    in_place(story, 0)
    story.commit(-10 * SPAN_NS / S)
    for number in range(LIMIT):
        in_place(story, number)
        story.commit()
    assert story.burst() is not None


def test_cleared_it_begins_anew() -> None:
    story = Story()
    for number in range(LIMIT):
        in_place(story, number)
    story.sense.clear()
    story.commit()
    assert story.burst() is None and not story.changes
    position = story.position
    for number in range(LIMIT):
        assert story.burst() is None
        in_place(story, number)
    burst = story.burst()
    assert burst is not None and burst.clean_position == position


def test_switched_off_it_keeps_nothing() -> None:
    story = Story(limit=0)
    for number in range(50):
        for work in (*ATTACKS, *HARMLESS):
            work(story, number)
    sense = story.sense
    assert sense.burst is None
    assert not (sense._files or sense._starts or sense._new or sense._removed or sense._directories)


def test_any_order_of_events_is_taken_and_memory_is_bounded() -> None:
    story = Story(limit=10**9)
    sense, draw = story.sense, random.Random(5)
    for _ in range(200_000):
        inode, parent, name = draw.randrange(1, 10**5), draw.randrange(3000), b"n%d" % draw.randrange(50)
        lost = Lost(*sorted((draw.randrange(9000), draw.randrange(9000)), reverse=True))
        match draw.randrange(8):
            case 0:
                sense.created(inode, parent, name)
            case 1:
                sense.removed(inode, parent, name)
            case 2:
                sense.renamed(inode, name, parent, draw.choice((name + b".x", b"other")))
            case 3:
                sense.replaced(inode, draw.randrange(1, 10**5))
            case 4:
                sense.gone(inode, lost)
            case 5:
                sense.cut(inode, draw.choice((0, 5)), lost)
            case 6:
                sense.saw(inode, draw.choice((TEXT, JPEG, NOISE)))
            case 7:
                story.write(inode, draw.choice((None, TEXT, NOISE)), lost, opaque=draw.random() < 0.5)
                story.commit(draw.choice((0.1, 100.0)))
    assert len(sense._files) <= FILES_MAX and len(sense._starts) <= STARTS_MAX
    assert len(sense._new) <= NAMES_MAX and len(sense._removed) <= NAMES_MAX
    assert sum(len(one.noise) for one in sense._directories.values()) <= FILES_MAX


@pytest.mark.parametrize(
    ("size", "length", "is_so"),
    [
        (60 + 50_000, 100_000, True),
        (60 + 84_000, 100_000, True),
        (60 + 86_000, 100_000, False),
        (60 + 100_000, 100_000, False),
        (60 + 120, 1 << 20, False),
        (60 + 17, 4096, False),
    ],
)
def test_what_compressed_well(size: int, length: int, is_so: bool) -> None:
    assert compressed_well(size, length) is is_so
