"""The space that is kept back: the index has it for a COMMIT on a full disk, and it is kept back again."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio import sleep
from trio.testing import MockClock

from mirrorfs.engine.reserve import INDEX_BYTES, RESERVE_BYTES
from mirrorfs.engine.space import RESERVE_PATH
from tests.support.machine import write_file
from tests.support.practice import Practice

PLENTY = 1 << 40


@pytest.mark.parametrize("free", [0, INDEX_BYTES - 1, INDEX_BYTES])
async def test_the_index_has_it_before_a_commit(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    pc = Practice(tmp_path).pc("pc")
    left = [PLENTY]
    monkeypatch.setattr(pc.disk, "free_bytes", lambda: left[0])
    place = pc.root / RESERVE_PATH
    async with pc.mounted() as volume:
        committer = volume._local.committer
        await write_file(volume, b"letter", b"dear colleague")
        assert place.stat().st_size == RESERVE_BYTES
        left[0] = free
        await committer.commit(None)
        assert place.exists() == (free >= INDEX_BYTES)
        await sleep(20)
        assert place.exists() == (free >= INDEX_BYTES)
        assert not volume._local.state.stalled and volume._local.state.fatal is None
        left[0] = PLENTY
        await sleep(20)
        assert place.stat().st_size == RESERVE_BYTES
        await write_file(volume, b"another", b"dear colleague")
        await committer.commit(None)
        assert place.exists()
