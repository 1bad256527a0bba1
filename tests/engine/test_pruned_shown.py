"""What the commands that look back say of a volume whose log begins with a base."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli import history, log
from mirrorfs.cli.past_session import Past
from mirrorfs.cli.progress import Progress
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.format.ids import format_position
from mirrorfs.format.rows import MomentRow
from tests.support.built_volume import WRITER_KEY
from tests.support.pruned import Pruned
from tests.support.volumes import KEYS


def past_of(made: Pruned, work: Path) -> Past:
    return Past("volume", KEYS, WRITER_KEY, [made.volume.store()], None, work, Progress(sys.stderr))  # type: ignore[list-item]


def entry(row: MomentRow, **more: Any) -> dict[str, Any]:
    return {"position": format_position(row.position), "time_ns": row.time_ns, **more}


async def shown(
    past: Past, capsys: pytest.CaptureFixture[str], since: Moment, **options: Any
) -> tuple[str, str]:
    """What `log` prints, and what it says beside it."""
    given = {"all": True, "by": None, "json": False, "since": None, **options}
    assert await log._show(past, Namespace(**given), since, NEWEST) == 0
    out, err = capsys.readouterr()
    return out, err


async def test_log(made: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Moments that are kept come first, by themselves; then every one from the base on."""
    past = past_of(made, tmp_path)
    out, err = await shown(past, capsys, NEWEST)
    lines = out.splitlines()
    when = datetime.fromtimestamp(made.kept.time_ns // 10**9).astimezone()
    assert (
        lines[0] == f"{when:%Y-%m-%d %H:%M:%S}  {format_position(made.kept.position)}: kept, snapshot monthly"
    )
    assert lines[1].endswith(f"{format_position(made.base.position)}: kept")
    positions = [line.split("  ")[1].split(":")[0] for line in lines[2:]]
    expected = map(format_position, made.positions(first=made.base.position + 1))
    assert set(expected) <= set(positions)
    assert "only single moments are kept" in err
    found = json.loads((await shown(past, capsys, NEWEST, json=True))[0])
    assert found["kept"] == [entry(made.kept, snapshots=["monthly"]), entry(made.base, snapshots=[])]
    assert found["entries"][0]["first"]["position"] == positions[0]


async def test_log_since_then(made: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    since = Moment(position=made.base.position)
    out, err = await shown(past_of(made, tmp_path), capsys, since)
    assert "kept" not in out + err


@pytest.mark.parametrize("is_before", [False, True])
async def test_history(
    made: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_before: bool
) -> None:
    """It begins with the base, also where more is asked for."""
    since = Moment(position=made.kept.position) if is_before else NEWEST
    past = past_of(made, tmp_path)
    await history._show(past, Namespace(json=False), [b"letter"], since)
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("there already, 9")
    assert len(out.splitlines()) == 4
    assert "of what was before, 1 single moment is kept" in err
    await history._show(past, Namespace(json=True), [b"letter"], since)
    found = json.loads(capsys.readouterr().out)
    assert found["there_before"]
    assert found["kept"] == ([entry(made.base)] if is_before else [entry(made.kept), entry(made.base)])
    assert [version["what"] for version in found["versions"]] == ["replaced"] * 3


async def test_the_gap_is_said(made: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    past = past_of(made, tmp_path)
    async with past.at(Moment(position=made.kept.position + 1)):
        pass
    said = capsys.readouterr().err
    assert f"(position {format_position(made.kept.position)}); the next one is of" in said
    async with past.at(Moment(position=made.kept.position)):
        pass
    assert "kept" not in capsys.readouterr().err
