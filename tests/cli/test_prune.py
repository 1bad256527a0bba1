"""`mirrorfs prune` by the real command line: what it refuses, says and does; and what `status` says of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_key import refused
from tests.cli.test_key_events import change, events, lines_of, told
from tests.cli.test_snapshot import shown_by
from tests.support.mounted import mounted_volume

TABLE = '\n[retention]\nevery_moment = "1 day"\n'


def test_prune(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one", mount=False) as volume:
        name, letter = volume.name, volume.mountpoint / "letter"
        assert "need not be kept any more" in refused(volume, "key", "rotate", name, "--reseal", code=2)
        volume.mount()
        out = told(volume, tmp_path)
        letter.write_bytes(b"first")
        volume.must("snapshot", "create", name, "first")
        letter.write_bytes(b"second")
        assert "configuration has no [retention]" in refused(volume, "prune", name, code=2)
        assert volume.status()["retention"] is None
        with volume.config.open("a") as config:
            config.write(TABLE)
        assert "mount it again" in refused(volume, "prune", name, code=2)
        volume.umount()
        volume.mount()
        assert "--dry-run says what" in refused(volume, "prune", name, code=2)
        assert "unmount the volume first" in refused(volume, "prune", name, "--confirm", code=2)
        said = shown_by(volume, "prune", name, "--dry-run")
        assert "everything is kept until" in said and "and then: every moment for 1 day" in said
        assert "would be dropped: 0" in said
        status = volume.status()["retention"]
        assert (status["every_moment_since"], status["in_force"]) == (None, False)
        assert "history: every moment there ever was; from " in volume.must("status", name)
        volume.umount()

        shown_by(volume, "prune", name, "--confirm", "--dry-run")
        assert events(volume) == [] and lines_of(volume, out, 0) == []
        assert "every moment there ever was" in shown_by(volume, "prune", name, "--confirm")
        words = "every moment for 1 day"
        (event,) = events(volume)
        assert event["changes"] == [change("policy-confirmed", words)]
        (line,) = lines_of(volume, out, 1)
        assert line["event"] == "retention-changed"
        volume.must("key", "rotate", name, "--reseal")
        account = json.loads(shown_by(volume, "prune", name, "--json"))
        assert account["policy"]["every_moment"] == 1 and account["in_force"] and account["waits"] is None
        assert account["report"]["dropped"] == 0
        assert shown_by(volume, "cat", name, "letter", "--at", "first") == "first"
        volume.mount()
        status = volume.status()["retention"]
        assert status["in_force"] and status["reseal"]["left"] > 0 and status["reseal"]["until"] is not None
        said = volume.must("status", name)
        assert "history: every moment there ever was\n" in said and "re-sealing: " in said
