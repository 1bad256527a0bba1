"""scripts/bench: choosing workloads, remounts, data, counting."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from scripts.bench_daemon import cpu_s, peak_bytes, tree_bytes
from scripts.bench_filesystems import with_children
from scripts.bench_machine import description, kernel
from scripts.bench_measure import Warmth
from scripts.bench_requests import Cost, costs_table, operations, per_operation
from scripts.bench_s3 import counting_server, kind_of
from scripts.bench_trace import _REQUEST, _SYNC, matches
from scripts.bench_workloads import (
    MIB,
    WORKLOADS,
    Workload,
    make_tar,
    page_pieces,
    random_blocks,
    text_block,
    with_needed,
)
from tests.support.s3_servers import connect

BY_NAME = {workload.name: workload for workload in WORKLOADS}


# --- workloads ---------------------------------------------------------------------------------


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(WORKLOADS)


def test_needed_workloads_come_along_and_first() -> None:
    assert [each.name for each in with_needed(["unlink", "list"])] == [
        "create",
        "create-empty",
        "list",
        "unlink",
    ]
    assert with_needed([]) == list(WORKLOADS)


def test_each_finds_what_it_needs() -> None:
    for order in (list(WORKLOADS), operations()):
        seen: set[str] = set()
        for workload in order:
            assert seen.issuperset(workload.needs), workload.name
            seen.add(workload.name)


def test_nothing_is_read_cold_after_the_daemon_touched_it() -> None:
    warmth, mounts = Warmth(), 0
    touched_by: dict[str, int] = {}
    for workload in WORKLOADS:
        mounts += warmth.must_remount(workload)
        if workload.cold:
            assert all(touched_by[need] < mounts for need in workload.needs), workload.name
        warmth.touch(workload)
        touched_by.update(dict.fromkeys((workload.name, *workload.needs), mounts))
    assert mounts == 2  # more would take minutes where mounting is slow


def test_warm_work_needs_no_remount() -> None:
    warmth = Warmth()
    warmth.touch(BY_NAME["write-text"])
    assert not warmth.must_remount(BY_NAME["read-text-warm"])
    assert warmth.must_remount(BY_NAME["read-text-cold"])


def test_random_data_does_not_compress_alone_or_together() -> None:
    pages = b"".join(page_pieces(64))
    blocks = [bytes(block) for block in random_blocks(3)]
    assert len(zlib.compress(pages)) > len(pages)
    assert all(len(block) == MIB for block in blocks)
    # No block or page of one is in another: nothing for deduplication.
    cut = [{block[at : at + 4096] for at in range(0, MIB, 4096)} for block in blocks]
    assert not (cut[0] & cut[1] or cut[1] & cut[2] or cut[0] & cut[2])


def test_text_is_one_mib_that_compresses() -> None:
    assert len(text_block()) == MIB
    assert len(zlib.compress(text_block())) < MIB / 4


def test_tar_is_the_same_every_time(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", 0.1)
    size = (tmp_path / "a.tar").stat().st_size
    make_tar(tmp_path / "b.tar", 0.1)
    assert (tmp_path / "b.tar").stat().st_size == size > 80 * 512
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


# --- the daemon --------------------------------------------------------------------------------


def test_processor_time_of_another_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "sum(range(3_000_000)); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used_s = cpu_s([process.pid])
        assert peak_bytes([process.pid]) > MIB
        assert with_children(process.pid) == [process.pid]
        process.communicate(b"\n")
    assert 0.001 < used_s < 100
    assert abs(cpu_s([os.getpid()]) - time.process_time()) < 1.0
    assert cpu_s([process.pid]) == 0.0  # it has ended


def test_children_are_found() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in with_children(os.getpid())
        child.kill()


def test_tree_bytes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"12345")
    (tmp_path / "d").write_bytes(b"1")
    assert tree_bytes(tmp_path) == 6
    assert tree_bytes(tmp_path / "missing") == 0


def test_machine_is_described_and_not_named(tmp_path: Path) -> None:
    said = description(tmp_path)
    assert f"Linux {kernel()}" in said
    assert os.uname().release.startswith(kernel())
    assert os.uname().nodename not in said.split()


# --- counting ----------------------------------------------------------------------------------


def test_requests_of_a_trace() -> None:
    lines = [
        b"# tracer: nop",
        b" python3-42 [000] ..... 1.0: fuse_request_send: connection 66 req 2 opcode 1 (FUSE_LOOKUP) len 50 ",
        b" python3-42 [001] ..... 1.1: fuse_request_send: connection 66 req 4 opcode 16 (FUSE_WRITE) len 96 ",
        b" python3-42 [001] ..... 1.2: fuse_request_send: connection 66 req 6 opcode 16 (FUSE_WRITE) len 96 ",
        b" Thread-7 [001] ..... 1.3: sys_fdatasync(fd: 9)",
        b" Thread-7 [001] ..... 1.3: sys_fsync(fd: 9)",
    ]
    assert matches(_REQUEST, lines) == {"LOOKUP": 1, "WRITE": 2}
    assert matches(_SYNC, lines) == {"fdatasync": 1, "fsync": 1}


def test_requests_per_operation() -> None:
    counts = matches(
        _REQUEST, [b"fuse_request_send: (FUSE_READ)"] * 1000 + [b"fuse_request_send: (FUSE_OPEN)"]
    )
    assert per_operation(counts, 500.0) == {"READ": 2.0, "OPEN": 0.002}
    assert per_operation(counts, 1000.0) == {"READ": 1.0}


def test_costs_table() -> None:
    cost = Cost("creates, per operation", {"CREATE": 1.0, "WRITE": 0.5}, 0.0, 0.25, 123.4, 1234.5)
    assert costs_table([cost]).splitlines()[-1] == (
        "| creates, per operation | 1.50 | CREATE 1, WRITE 0.5 | 0.00 | 0.25 | 123 | 1,234 |"
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/bucket", "bucket"), ("/bucket/", "bucket"), ("/bucket/practice/segments/a/b", "segments")],
)
def test_kind_of_object(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_server_counts() -> None:
    with counting_server() as server, contextlib.closing(connect(server)) as client:
        client.create_bucket(Bucket="counted")
        before = server.traffic()
        client.put_object(Bucket="counted", Key="practice/segments/1", Body=b"12345")
        client.put_object(Bucket="counted", Key="practice/heads/1", Body=b"1")
        assert client.get_object(Bucket="counted", Key="practice/heads/1")["Body"].read() == b"1"
        traffic = server.traffic().since(before)
    assert traffic.puts == {"segments": 1, "heads": 1}
    assert traffic.requests == {"PUT": 2, "GET": 1}
    assert traffic.put_bytes == 6


def test_workload_is_shown_under_a_known_unit() -> None:
    assert {workload.unit for workload in WORKLOADS} <= {"/s", "MiB/s", "files/s", "pages/s", "entries/s"}
    assert all(isinstance(workload, Workload) and workload.title for workload in WORKLOADS)
