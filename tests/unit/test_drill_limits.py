"""What a restore drill keeps to: the [limits] of its volume, of which a mount leaves it one half."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, memory_stream_one_way_pair

from mirrorfs.cli import drill_child, drill_requests
from mirrorfs.cli.config import StoreConfig, VolumeConfig, volume_paths
from mirrorfs.cli.config_limits import LimitsConfig
from mirrorfs.cli.drill_requests import DrillRequests
from mirrorfs.cli.drill_session import DrillSession
from mirrorfs.cli.key_pipe import SessionRequest, UnlockedSession
from mirrorfs.core.timetable import Rates, Timetable
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.engine.limits import Limits
from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.format.header import seal_header
from mirrorfs.ports import OBJECT_SIZE_MAX
from tests.support.volumes import HEADER, KEY_SET, KEYS
from tests.unit.test_config import CONFIG

KIB = 1024
RATE = 64 * KIB
PIECE = 64 * KIB
HEADER_BYTES = seal_header(HEADER, keys=KEYS, seed=KEY_SET.writer)
LIMITS = LimitsConfig(Timetable(Rates(0, RATE)), parallel=3)
STORES = (
    StoreConfig("a", "s3://bucket-a", b"a" * 16),
    StoreConfig("b", "s3://bucket-b", b"b" * 16),
    StoreConfig("house", "s3://house?limits=0", b"c" * 16),
    StoreConfig("disk", "file:///mnt/disk", b"d" * 16),
)


def request(config: VolumeConfig) -> UnlockedSession:
    return UnlockedSession(SessionRequest("v", config.to_toml(), "/v"), KEY_SET, HEADER_BYTES)


def session(tmp_path: Path, limits: LimitsConfig, **options: bool) -> DrillSession:
    config = replace(CONFIG, stores=STORES, limits=limits)
    paths = volume_paths("v", {"MIRRORFS_CONFIG_HOME": str(tmp_path), "MIRRORFS_STATE_HOME": str(tmp_path)})
    return DrillSession(
        request(config), paths, config, lambda inodes: inodes, on_progress=lambda item: None, **options
    )


def throttle_of(store: RetryingStore) -> Limits | None:
    assert isinstance(store._store, S3Store)
    found = store._store._line._throttle
    assert found is None or isinstance(found, Limits)
    return found


@pytest.mark.parametrize(("options", "share"), [({}, 1.0), ({"beside_mount": True}, 0.5)])
async def test_the_stores_of_a_drill_share_one_rate(
    autojump_clock: MockClock, tmp_path: Path, options: dict[str, bool], share: float
) -> None:
    drills = session(tmp_path, LIMITS, **options)
    used = []
    for _ in range(2):
        async with drills._opened(STORES[0]) as (tried, (other, house, disk), local):
            limits, same = throttle_of(tried), throttle_of(other)
            assert limits is not None and limits is same and throttle_of(house) is None
            assert isinstance(disk._store, DirectoryStore) and isinstance(local._store, DirectoryStore)
            waits = [limits.download(PIECE, urgent=False) for _ in range(4)]
            assert waits == [number * PIECE / RATE / share for number in range(4)]
            for one in (tried, other, house):
                assert isinstance(one._store, S3Store)
                line = one._store._line
                assert (line.downloads.total_tokens, line.ranges.total_tokens) == (3, 6)
            used.append(limits)
    # Their times are of the loop in which they were used, and each drill may have a loop of its own.
    assert used[0] is not used[1]


async def test_what_the_limit_holds_up_is_not_taken_for_stuck(tmp_path: Path) -> None:
    async with session(tmp_path, LIMITS, beside_mount=True)._opened(STORES[0]) as (tried, (other, *_), _):
        for one, attempts_max in ((tried, RetryPolicy().attempts_max), (other, 1)):
            assert one._policy.attempts_max == attempts_max
            # As many whole objects as go at a time, beside ranges that take what they may: an eighth is left.
            waits_s = len(STORES) * LIMITS.parallel * OBJECT_SIZE_MAX / (RATE / 2 / 8)
            assert one._policy.attempt_deadline_s(OBJECT_SIZE_MAX) > waits_s


async def test_without_limits_nothing_waits(tmp_path: Path) -> None:
    async with session(tmp_path, LimitsConfig())._opened(STORES[0]) as (tried, (other, *_), _):
        assert throttle_of(tried) is throttle_of(other) is None
        assert tried._policy == RetryPolicy()


# --- beside a mount ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_mount_shares_with_its_drill_while_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: MockClock, is_limited: bool
) -> None:
    limits = Limits(LIMITS.timetable, SystemClock()) if is_limited else None
    seen = []

    def takes_s() -> float:
        """How long the mount now waits before its second second of bytes."""
        if limits is None:
            return 0.0
        return limits.download_s(RATE)

    @asynccontextmanager
    async def child(arguments: list[str]) -> AsyncIterator[object]:
        (keys, _), (said, answers) = memory_stream_one_way_pair(), memory_stream_one_way_pair()
        await said.send_all(json.dumps({"type": "done", "passed": True}).encode() + b"\n")
        await said.aclose()
        seen.append(takes_s())
        yield SimpleNamespace(stdin=keys, stdout=answers)
        seen.append(takes_s())

    async def say(message: object) -> None:
        raise AssertionError(message)

    monkeypatch.setattr(drill_requests, "_child", child)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    control = SimpleNamespace(limits=limits, volume=lambda: SimpleNamespace(header_bytes=HEADER_BYTES))
    drills = DrillRequests(request(CONFIG), cast(Any, None), cast(Any, control))
    alone_s = takes_s()
    assert await drills._run("a", "", say) == {"passed": True}
    assert seen == [2 * alone_s, 2 * alone_s]
    assert takes_s() == alone_s


def test_the_child_takes_the_limits_of_the_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Halves of two different tables would not be one."""
    mounted = replace(CONFIG, stores=STORES, limits=LIMITS)
    edited = replace(mounted, stores=STORES[1:], limits=LimitsConfig())
    made: list[tuple[VolumeConfig, bool]] = []

    class Drills:
        def __init__(self, *arguments: Any, beside_mount: bool, **options: object) -> None:
            made.append((arguments[2], beside_mount))

        async def drill(self, store: StoreConfig, work: Path) -> StoreConfig:
            await trio.lowlevel.checkpoint()
            return store

    monkeypatch.setattr(drill_child, "load_config", lambda paths: edited)
    monkeypatch.setattr(drill_child, "DrillSession", Drills)
    found = trio.run(drill_child._drill, request(mounted), "b", "", tmp_path)
    assert cast(object, found) == STORES[1]
    assert made == [(replace(edited, limits=LIMITS), True)]
