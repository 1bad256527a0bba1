"""`mirrorfs prune --store` by the real command line, on a machine with a token and a policy of its own."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorfs.cli import prune_store
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.core.retention import Policy, PolicyState
from mirrorfs.engine.store_deletion import StorePruneReport
from tests.cli.test_attach import second_pc, urls
from tests.cli.test_key import add_spare, refused
from tests.cli.test_key_events import change, events, lines_of, told
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
        out = told(elsewhere, tmp_path)
        assert "a, b" in refused(elsewhere, "prune", name, "--store", "c", *token, code=2)
        said = refused(elsewhere, "prune", name, "--store", "b", "--token", worker.uri(), code=2)
        assert "may not prune stores" in said
        before = sorted(pc.stores["b"].rglob("*"))
        waits = json.loads(shown_by(elsewhere, "prune", name, "--store", "b", *token, "--json"))
        assert (waits["schema"], waits["policy"], waits["waits"]["every_moment"]) == (1, None, 1)
        said = shown_by(elsewhere, "prune", name, "--store", f"file://{pc.stores['b']}", "--confirm", *token)
        assert "every moment for 1 day" in said and "Nothing is deleted yet" in said
        (attached, confirmed) = events(elsewhere)
        assert (attached["command"], confirmed["command"]) == ("attach", "prune --store --confirm")
        assert confirmed["changes"] == [change("policy-confirmed", "every moment for 1 day")]
        assert [line["event"] for line in lines_of(elsewhere, out, 1)] == ["retention-changed"]
        assert sorted(pc.stores["b"].rglob("*")) == before

        # What it remembers cannot be read: it says so, and deletes nothing.
        (elsewhere.state / "prune-ledger").write_text("{")
        assert "begin anew" in refused(elsewhere, "prune", name, "--store", "b", *token, code=5)


def test_the_alarms_of_a_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[Mapping[str, Any]] = []

    def start(alarm: AlarmConfig, message: Mapping[str, Any]) -> bool:
        messages.append(message)
        return True

    report = StorePruneReport(PolicyState(Policy(1)), alarms=["The first.", "The second."])
    monkeypatch.setattr(prune_store, "_run", lambda *_: report)
    monkeypatch.setattr(prune_store, "start_command", start)
    config: Any = SimpleNamespace(stores=[], alarm=AlarmConfig())
    paths: Any = SimpleNamespace(name="practice")
    for dry_run in (True, False):
        arguments = Namespace(store=[], confirm=False, dry_run=dry_run, json=True)
        assert prune_store.run(arguments, {}, paths, config, Policy(1)) == 1
    (message,) = messages
    assert (message["volume"], message["event"]) == ("practice", "prune-alarm")
    assert message["reason"] == "The first. The second."
