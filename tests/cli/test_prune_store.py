"""`mirrorfs prune --store` by the real command line, on a machine with a token and a policy of its own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_attach import second_pc, urls
from tests.cli.test_key import add_spare, refused
from tests.cli.test_prune import TABLE
from tests.cli.test_snapshot import shown_by
from tests.support.mounted import mounted_volume


def test_a_machine_that_prunes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with mounted_volume(tmp_path / "one", mount=False) as pc:
        pruner = add_spare(pc, "--role", "pruner")
        worker = add_spare(pc, "--role", "pc", label="worker")
        listed = pc.must("key", "list", pc.name)
        assert " read, prune " in listed and " read, write " in listed
        text = pc.config.read_text().replace('name = "b"', 'name = "b"\nappend_only = true')
        pc.config.write_text(text)
        pc.mount()
        (pc.mountpoint / "letter").write_bytes(b"dear colleague")
        pc.umount()

        elsewhere = second_pc(pc, tmp_path / "two")
        name, token = elsewhere.name, ("--token", pruner.uri())
        elsewhere.must("attach", name, *urls(pc), "--yes", *token)
        assert "no [retention]" in refused(elsewhere, "prune", name, "--store", "b", *token, code=2)
        with elsewhere.config.open("a") as config:
            config.write(TABLE)
        assert "a, b" in refused(elsewhere, "prune", name, "--store", "c", *token, code=2)
        said = refused(elsewhere, "prune", name, "--store", "b", "--token", worker.uri(), code=2)
        assert "may not prune stores" in said
        before = sorted(pc.stores["b"].rglob("*"))
        waits = json.loads(shown_by(elsewhere, "prune", name, "--store", "b", *token, "--json"))
        assert (waits["schema"], waits["policy"], waits["waits"]["every_moment"]) == (1, None, 1)
        said = shown_by(elsewhere, "prune", name, "--store", f"file://{pc.stores['b']}", "--confirm", *token)
        assert "every moment for 1 day" in said and "Nothing is deleted yet" in said
        assert sorted(pc.stores["b"].rglob("*")) == before

        # What it remembers cannot be read: it says so, and deletes nothing.
        (elsewhere.state / "prune-ledger").write_text("{")
        assert "begin anew" in refused(elsewhere, "prune", name, "--store", "b", *token, code=5)
