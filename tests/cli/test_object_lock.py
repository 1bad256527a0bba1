"""Somebody has the credentials of the practice's PC, or even the account: what was sent comes back."""

from __future__ import annotations

import contextlib
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.cli.machine import REPOSITORY, Machine, machine, tokens
from tests.support.s3_policy import PolicyServer, policies_in, policy_server
from tests.support.s3_servers import connect, environment

BUCKET, PREFIX = "practice", "volume"
MUTABLE = ("lease", "scratch/")
GARBAGE = b"garbage"


def policy_of_the_pc() -> dict[str, Any]:
    text = (REPOSITORY / "docs/operations.md").read_text()
    found: dict[str, Any] = json.loads(
        json.dumps(policies_in(text)[0]).replace("BUCKET", BUCKET).replace("PREFIX", PREFIX)
    )
    return found


def versions(client: Any) -> dict[str, list[tuple[str, str]]]:
    """Of every immutable object (version, entity tag), the newest first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for page in client.get_paginator("list_object_versions").paginate(Bucket=BUCKET):
        for one in page.get("Versions", []):
            key = one["Key"].removeprefix(f"{PREFIX}/")
            if not key.startswith(MUTABLE):
                found.setdefault(key, []).append((one["VersionId"], one["ETag"]))
    return found


class Thief:
    """Tries everything that a client can ask for."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.done: dict[str, int] = {}

    def attempt(self, call: str, **arguments: Any) -> None:
        with contextlib.suppress(ClientError):
            getattr(self.client, call)(Bucket=BUCKET, **arguments)
            self.done[call] = self.done.get(call, 0) + 1

    def run(self, known: dict[str, list[tuple[str, str]]]) -> None:
        soon = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(seconds=1)}
        late = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=36500)}
        self.attempt("put_bucket_versioning", VersioningConfiguration={"Status": "Suspended"})
        self.attempt("put_object", Key=f"{PREFIX}/lease", Body=GARBAGE)
        for key, of_key in known.items():
            name = f"{PREFIX}/{key}"
            for version, _ in of_key:
                place = {"Key": name, "VersionId": version}
                self.attempt("put_object_retention", **place, Retention=soon, BypassGovernanceRetention=True)
                self.attempt("put_object_retention", **place, Retention=soon)
                self.attempt("put_object_retention", **place, Retention=late)
                self.attempt("delete_object", **place, BypassGovernanceRetention=True)
                self.attempt("delete_object", **place)
            self.attempt("put_object", Key=name, Body=GARBAGE)
            self.attempt("put_object", Key=name, Body=GARBAGE, IfNoneMatch="*")
            if len(key) % 2:
                self.attempt("delete_object", Key=name)
            delete = {"Objects": [{"Key": name, "VersionId": of_key[-1][0]}]}
            self.attempt("delete_objects", Delete=delete, BypassGovernanceRetention=True)
        for planted in ("segments/0000000000000001-00000001-ffffffffffffffff",
                        "heads/7fffffffffffffff-ffffffff-ffffffffffffffff",
                        f"header/fffffff0-{'f' * 32}"):  # fmt: skip
            self.attempt("put_object", Key=f"{PREFIX}/{planted}", Body=GARBAGE, IfNoneMatch="*")


def test_the_credentials_of_the_pc_destroy_nothing(tmp_path: Path) -> None:
    with (
        policy_server(policy_of_the_pc()) as server,
        machine(tmp_path / "practice") as pc,
        contextlib.closing(connect(server)) as owner,
    ):
        owner.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        pc.environment |= environment(server.as_pc())
        url = f"s3://{BUCKET}/{PREFIX}?endpoint={server.endpoint}"
        cloud = f"--store=cloud={url}&lock=compliance&lock_days=60"
        options = (f"--token={tokens().token.uri()}", "--kdf-memory-mib=64")
        pc.run("init", pc.name, f"--store=disk=file://{pc.stores['a']}", cloud, *options)
        written = write(pc)
        good = versions(owner)
        assert {key.partition("/")[0] for key in good} >= {"header", "heads", "instance", "segments"}

        with contextlib.closing(connect(server.as_pc())) as client:
            thief = Thief(client)
            thief.run(good)
        assert thief.done == {"put_object": 1 + 3}, "the lease, and names that nobody has"
        assert {key: found for key, found in versions(owner).items() if key in good} == good
        assert restored(tmp_path / "first", url, server) == written

        # And now somebody who has the account, whom no policy holds back.
        thief = Thief(owner)
        thief.run(good)
        after = versions(owner)
        assert all(after[key][-1] == good[key][-1] for key in good), "a lock was lifted"
        assert all(after[key][0] != good[key][0] for key in good), "nothing was put over something"
        assert restored(tmp_path / "second", url, server) == written


def write(pc: Machine) -> dict[str, bytes]:
    """Write some files and send them; returns what was written."""
    rng = random.Random(7)
    written = {f"letter {number}.odt": rng.randbytes(rng.randrange(40_000)) for number in range(30)}
    pc.mount()
    for name, data in written.items():
        (pc.mountpoint / name).write_bytes(data)
    pc.run("flush", pc.name)
    status = pc.status()
    assert status["light"] == "protected", status
    disk, cloud = status["stores"]
    assert (disk["can_delete"], disk["lock"]) == (True, None)
    assert cloud["can_delete"] is False
    assert cloud["lock"] == {
        "mode": "compliance", "days": 60, "until": None, "behind_count": 0, "error": None,
    }  # fmt: skip
    assert "; credentials here cannot delete" in pc.run("status", pc.name).out
    pc.umount()
    return written


def restored(folder: Path, url: str, server: PolicyServer) -> dict[str, bytes]:
    """What comes back on a new PC, from the bucket alone."""
    with machine(folder) as bare:
        bare.environment |= environment(server)
        token = f"--token={tokens().token.uri()}"
        destination = str(folder / "restored")
        done = bare.run("restore", f"--store={url}", token, "--yes", destination, check=False)
        # A segment that he planted behind the last one may be one that was damaged: that is said.
        assert done.exit_code == 5 and "There are newer commits" in done.err.splitlines()[-1], done
        assert "No good copy" not in done.err
    return {path.name: path.read_bytes() for path in (folder / "restored").iterdir()}
