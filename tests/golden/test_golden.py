"""The golden volume reads as it must, by the program and by an independent reader; hostile files fail."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mirrorfs import errors
from mirrorfs.core.scan import scan_segment
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.replay import ReplayEnd, Replayer
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.format.checkpoint import decode_chunk, decode_root
from mirrorfs.format.control import open_head, open_instance, open_lease, open_lease_box
from mirrorfs.format.drill import DrillFault, open_drill_report
from mirrorfs.format.frame import Kind, unpack
from mirrorfs.format.header import parse_header, verify_header
from mirrorfs.format.ids import format_position
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.manifest import manifest_key, open_manifest, parse_manifest_key
from mirrorfs.format.record import decode_records
from mirrorfs.format.segment import check_sealed, decode_header, header_copy, read_footer
from mirrorfs.format.signing import WriterPublicKey, load_public_key
from mirrorfs.keys.slots import open_slot, stretch_password
from tests.golden import example
from tests.golden.expected_tree import SNAPSHOTS_3, TREE_2, TREE_3
from tests.golden.independent_log import Reader, Wrong
from tests.golden.independent_reader import read_snapshots, read_tree
from tests.golden.make_golden import PASSWORD, TOKEN_SECRET, FileSource, write
from tests.support.store_memory import MemoryStore

HERE = Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())
HOSTILE = json.loads((HERE / "hostile.json").read_text())
TREE = json.loads((HERE / "expected_tree.json").read_text())


def load_objects(name: str) -> dict[str, bytes]:
    """Keys and bytes of a golden volume."""
    base = HERE / name
    return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}


OBJECTS = load_objects("volume-1")
ROTATED = load_objects("volume-2")
NAMED = load_objects("volume-3")
KEPT = load_objects("volume-4")
HEADER_KEY = next(key for key in OBJECTS if key.startswith("header/"))


@pytest.fixture(scope="module")
def keys() -> VolumeKeys:
    header = parse_header(OBJECTS[HEADER_KEY], key=HEADER_KEY)
    key_set = open_slot(
        header.slots[0],
        volume=header.volume,
        key_generation=1,
        stretched=stretch_password(PASSWORD.encode(), header.slots[0].kdf),
        token_secret=TOKEN_SECRET,
    )
    return verify_header(OBJECTS[HEADER_KEY], key_set)[1]


@pytest.fixture(scope="module")
def public_key() -> bytes:
    return parse_header(OBJECTS[HEADER_KEY]).public_keys.writer


@pytest.fixture(scope="module")
def writer(public_key: bytes) -> WriterPublicKey:
    return load_public_key(public_key)


def changed_files(directory: Path) -> list[str]:
    """Files of a directory whose bytes are not those of the same file here."""
    return [
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.read_bytes() != (HERE / path.relative_to(directory)).read_bytes()
    ]


def test_files_are_those_of_the_manifest() -> None:
    assert {key: hashlib.sha256(data).hexdigest() for key, data in OBJECTS.items()} == MANIFEST["sha256"]
    assert {key: hashlib.sha256(data).hexdigest() for key, data in ROTATED.items()} == MANIFEST["sha256-2"]
    assert {key: hashlib.sha256(data).hexdigest() for key, data in NAMED.items()} == MANIFEST["sha256-3"]
    assert {key: hashlib.sha256(data).hexdigest() for key, data in KEPT.items()} == MANIFEST["sha256-4"]
    files = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_500_000


def test_same_story_same_bytes(tmp_path: Path) -> None:
    write(tmp_path)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"manifest.json", "hostile.json", "expected_tree.json"} <= made
    if MANIFEST["zstd"] == ".".join(map(str, zstandard.ZSTD_VERSION)):
        assert changed_files(tmp_path) == []
    else:
        # Another zstd compresses to other bytes; what holds no compressed bytes is still the same.
        assert not {"hostile.json", "expected_tree.json"} & set(changed_files(tmp_path))


def test_independent_reader() -> None:
    reader = Reader(OBJECTS, MANIFEST["password"], bytes.fromhex(MANIFEST["token_secret"]))
    genesis = read_tree(reader, from_checkpoint=False)
    assert genesis == TREE
    assert read_tree(reader, from_checkpoint=True) == genesis
    assert reader.lease_holder()["host"] == "golden"


def test_independent_reader_of_rotated_keys() -> None:
    reader = Reader(ROTATED, MANIFEST["password"], bytes.fromhex(MANIFEST["token_secret"]))
    assert sorted(reader.generations) == [1, 2]
    genesis = read_tree(reader, from_checkpoint=False)
    assert genesis == TREE_2
    assert read_tree(reader, from_checkpoint=True) == genesis


def test_a_drill_report(keys: VolumeKeys) -> None:
    data = (HERE / "drill-report").read_bytes()
    public = parse_header(OBJECTS[HEADER_KEY]).public_keys.drill
    report = open_drill_report(data, keys=keys, public_key=public)
    assert report.faults == (DrillFault.DAMAGED,) and report.objects[0] in OBJECTS
    assert report.header_hash == hashlib.sha256(OBJECTS[HEADER_KEY]).digest()
    reader = Reader(OBJECTS, MANIFEST["password"], bytes.fromhex(MANIFEST["token_secret"]))
    body = reader.authentic(data, 6, public)
    assert body.pop("format") == 1 and body.pop("volume") == keys.volume.hex()
    assert body == report.to_body()
    with pytest.raises(Wrong):
        reader.authentic(data, 6, reader.writer)


def test_a_deletion_manifest(keys: VolumeKeys) -> None:
    data = (HERE / "deletion-manifest").read_bytes()
    header = parse_header(OBJECTS[HEADER_KEY])
    # As FORMAT.md has it: counter and hash of all the bytes.
    key = f"manifests/{0x1A:016x}-{hashlib.sha256(data).hexdigest()[:32]}"
    assert (manifest_key(0x1A, data), parse_manifest_key(key)) == (key, 0x1A)
    manifest = open_manifest(data, key=key, keys=keys, public_key=header.public_keys.pruner)
    assert manifest.instance == header.stores[0].instance
    for one in manifest.objects:
        there = OBJECTS[one.key]
        assert (one.size, one.digest) == (len(there), hashlib.sha256(there).digest())
    reader = Reader(OBJECTS, MANIFEST["password"], bytes.fromhex(MANIFEST["token_secret"]))
    body = reader.authentic(data, 5, header.public_keys.pruner)
    assert body.pop("format") == 1 and body.pop("volume") == keys.volume.hex()
    assert body == manifest.to_body()
    assert (body["policy"], body["counter"]) == ([30, 93, 0, 1116, 7320], 0x1A)
    for role in (header.public_keys.writer, header.public_keys.drill):
        with pytest.raises(Wrong):
            reader.authentic(data, 5, role)
        with pytest.raises(errors.AuthenticationError):
            open_manifest(data, key=key, keys=keys, public_key=role)


async def test_rotated_keys(tmp_path: Path) -> None:
    """The program reads what the independent reader does: from the old keys' checkpoint, and without."""
    newest = max(key for key in ROTATED if key.startswith("header/"))
    slot = parse_header(ROTATED[newest], key=newest).slots[0]
    key_set = open_slot(
        slot,
        volume=parse_header(ROTATED[newest]).volume,
        key_generation=2,
        stretched=stretch_password(PASSWORD.encode(), slot.kdf),
        token_secret=TOKEN_SECRET,
    )
    header, keys = verify_header(ROTATED[newest], key_set)
    for number, objects in enumerate(
        (ROTATED, {key: data for key, data in ROTATED.items() if not key.startswith("checkpoints/")})
    ):
        files = SqliteIndexFiles(str(tmp_path / f"{number}.db"), keys.index_key, digest_key=keys.dedup_key)
        index, plan = await Planner(
            [MemoryStore("home", objects)], files, ThreadOffload(), keys, header.public_keys.writer
        ).run(NEWEST)
        try:
            names = {row.name for row in index.list_dentries(1, after_cookie=0, limit=100)}
            assert names == {path[1:].encode() for path in TREE_2 if path.count("/") == 1} - {b""}
            assert (format_position(plan.position), plan.damage) == ("5.1", None)
        finally:
            index.close()


def test_independent_reader_of_snapshots() -> None:
    reader = Reader(NAMED, MANIFEST["password"], bytes.fromhex(MANIFEST["token_secret"]))
    for from_checkpoint in (False, True):
        assert read_tree(reader, from_checkpoint=from_checkpoint) == TREE_3
        assert read_snapshots(reader, from_checkpoint=from_checkpoint) == SNAPSHOTS_3


async def test_snapshots(tmp_path: Path) -> None:
    """The program reads what the independent reader does: from the checkpoint, and without."""
    (key,) = (key for key in NAMED if key.startswith("header/"))
    header = parse_header(NAMED[key], key=key)
    key_set = open_slot(
        header.slots[0],
        volume=header.volume,
        key_generation=1,
        stretched=stretch_password(PASSWORD.encode(), header.slots[0].kdf),
        token_secret=TOKEN_SECRET,
    )
    header, keys = verify_header(NAMED[key], key_set)
    for number, objects in enumerate(
        (NAMED, {key: data for key, data in NAMED.items() if not key.startswith("checkpoints/")})
    ):
        files = SqliteIndexFiles(str(tmp_path / f"{number}.db"), keys.index_key, digest_key=keys.dedup_key)
        index, plan = await Planner(
            [MemoryStore("home", objects)], files, ThreadOffload(), keys, header.public_keys.writer
        ).run(NEWEST)
        try:
            assert (format_position(plan.position), plan.damage) == ("1.2", None)
            found = {
                row.name.decode(): (row.position, row.time_ns, row.held) for row in index.list_snapshots()
            }
            assert found == SNAPSHOTS_3
        finally:
            index.close()


def test_independent_reader_imports_nothing_of_ours() -> None:
    names = set()
    for module in ("independent_reader.py", "independent_log.py", "independent_past.py"):
        for node in ast.walk(ast.parse((HERE / module).read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {
        "cryptography",
        "tests",
        "zstandard",
    }
    ours = {name for name in names if name.startswith("tests")}
    assert ours == {"tests.golden.independent_log", "tests.golden.independent_reader"}


def test_worked_example_of_the_specification() -> None:
    text = (HERE.parents[1] / "docs" / "FORMAT.md").read_text()
    assert "\n".join(example.lines()) in text


async def replayed(
    objects: dict[str, bytes], keys: VolumeKeys, writer: WriterPublicKey, path: Path
) -> ReplayEnd:
    """Replay a log into a fresh index."""
    index = SqliteIndexFiles(str(path / "index.db"), keys.index_key, digest_key=keys.dedup_key).open()
    try:
        end = await Replayer(index, FileSource(objects), keys, writer).run(keep_tail=False)
        if end.damage is None and end.next_sequence == 5:
            assert index.totals()[0] == 16  # 15 with names, one of them two; the orphan; nothing forgotten
            assert index.orphans() == [13]
            assert index.get_meta("next_inode") == 23
        return end
    finally:
        index.close()


async def test_replay(keys: VolumeKeys, writer: WriterPublicKey, tmp_path: Path) -> None:
    end = await replayed(OBJECTS, keys, writer, tmp_path)
    assert (format_position(end.position), end.damage, end.tail) == ("4.0", None, None)
    assert end.journal_sequence == 9
    head_key = next(key for key in OBJECTS if key.startswith("heads/"))
    head = open_head(
        OBJECTS[head_key],
        key=head_key,
        keys=keys,
        public_key=parse_header(OBJECTS[HEADER_KEY]).public_keys.writer,
    )
    assert end.last is not None
    assert (head.position, head.segment_digest, head.segment_size) == (
        end.position,
        end.last.digest,
        end.last.size,
    )


def test_control_documents(keys: VolumeKeys, public_key: bytes) -> None:
    lease = open_lease(OBJECTS["lease"], keys=keys, public_key=public_key)
    assert (lease.epoch, lease.counter, lease.released) == (2, 7, False)
    assert open_lease_box(lease.box, keys=keys).host == "golden"
    assert open_instance(OBJECTS["instance"], keys=keys, public_key=public_key).store == "home"


def test_checkpoint(keys: VolumeKeys, writer: WriterPublicKey) -> None:
    key = next(key for key in OBJECTS if key.startswith("checkpoints/"))
    data = OBJECTS[key]
    header, cipher, trailer = check_sealed(data, keys, writer)
    offset = read_footer(data)
    assert offset is not None
    assert header_copy(data, offset=offset, stream=header.stream) == OBJECTS[HEADER_KEY]
    parts = [
        unpack(cipher.open_body(data[entry.offset :], offset=entry.offset)[1])
        for entry in trailer.frames
        if entry.kind == Kind.ROOT
    ]
    root = decode_root(b"".join(parts))
    assert format_position(root.position) == "2.2"
    assert (root.journal_sequence, root.next_inode, root.epoch) == (7, 21, 2)
    tables = []
    for ref in root.chunks:
        chunk = unpack(cipher.open_body(data[ref.offset :], offset=ref.offset, ordinal=ref.ordinal)[1])
        table, rows = decode_chunk(chunk)
        assert (table.code, len(rows), hashlib.sha256(chunk).digest()) == (ref.table, ref.rows, ref.digest)
        tables.append(table.name)
    assert tables == ["inodes", "dentries", "xattrs", "extents", "frames", "relocations", "segments"]


# --- hostile files -----------------------------------------------------------------------------


def scanned(data: bytes, keys: VolumeKeys, writer: WriterPublicKey) -> dict[str, Any]:
    """What a scan finds, in the words of hostile.json."""
    scan = scan_segment(data, keys, writer)
    _, cipher = decode_header(data, keys, writer)
    bad = {frame.offset for frame in scan.bad}
    unreadable = bad_records = 0
    for frame in [frame for found in scan.journals for frame in found.frames] + list(scan.rest):
        if frame.offset not in bad:
            _, body = cipher.open_body(data[frame.offset :], offset=frame.offset, ordinal=frame.ordinal)
            try:
                unpack(body)
            except errors.FormatError:
                unreadable += 1
    for found in scan.journals:
        try:
            list(decode_records(found.journal.records))
        except errors.FormatError:
            bad_records += 1
    if scan.fault is None and scan.trailer is not None:
        check_sealed(data, keys, writer)
    elif scan.trailer is None or scan.bad:
        with pytest.raises(errors.DamagedError):
            check_sealed(data, keys, writer)
    return {
        "journals": len(scan.journals),
        "sealed": scan.trailer is not None,
        "fault": scan.fault is not None,
        "bad": len(scan.bad),
        "journal_whole": scan.journal_whole,
        "unreadable": unreadable,
        "bad_records": bad_records,
    }


def read_header(data: bytes, opens: str | None) -> None:
    """Unlock a volume header as a program would; `opens` is the error that the slot must give."""
    header = parse_header(data)

    def unlock() -> None:
        key_set = open_slot(
            header.slots[0],
            volume=header.volume,
            key_generation=1,
            stretched=stretch_password(PASSWORD.encode(), header.slots[0].kdf),
            token_secret=TOKEN_SECRET,
        )
        verify_header(data, key_set)

    if opens is None:
        unlock()
    else:
        with pytest.raises(getattr(errors, opens)):
            unlock()


@pytest.mark.expects_warnings("golden, object segments/")
@pytest.mark.parametrize(
    "case", [case for case in HOSTILE if case["what"] != "kept"], ids=lambda case: case["file"]
)
async def test_hostile(
    case: dict[str, Any], keys: VolumeKeys, public_key: bytes, writer: WriterPublicKey, tmp_path: Path
) -> None:
    data = (HERE / "hostile" / case["file"]).read_bytes()
    expected = {name: value for name, value in case.items() if name not in ("file", "what", "why")}
    if case["what"] == "log":
        objects = dict(OBJECTS)
        for key, source in json.loads(data).items():
            if source is None:
                del objects[key]
            else:
                objects[key] = (
                    OBJECTS[source] if source in OBJECTS else (HERE / "hostile" / source).read_bytes()
                )
        end = await replayed(objects, keys, writer, tmp_path)
        assert {"position": format_position(end.position), "damage": end.damage is not None} == expected
        return

    def read() -> None:
        if case["what"] == "segment":
            assert scanned(data, keys, writer) == expected
        elif case["what"] == "header":
            read_header(data, expected.get("opens"))
        else:
            open_lease(data, keys=keys, public_key=public_key)

    if "raises" not in expected:
        read()
        return
    with pytest.raises(getattr(errors, expected["raises"])) as found:
        read()
    assert type(found.value).__name__ == expected["raises"]


def test_every_hostile_file_is_declared() -> None:
    assert sorted(case["file"] for case in HOSTILE) == sorted(
        path.name for path in (HERE / "hostile").iterdir()
    )
