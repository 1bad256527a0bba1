"""Somebody has the credentials of the practice's PC, or even the account: what was sent comes back."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from tests.cli.machine import Machine, machine, tokens
from tests.support.s3_policy import PolicyServer, policy_server
from tests.support.s3_servers import connect, environment
from tests.support.s3_thief import PREFIX, Thief, policy_of_the_pc, versions

BUCKET = "locked-practice"
"""Of its own: the servers of one process share what they hold."""


def test_the_credentials_of_the_pc_destroy_nothing(tmp_path: Path) -> None:
    with (
        policy_server(policy_of_the_pc(BUCKET)) as server,
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
        good = versions(owner, BUCKET)
        assert {key.partition("/")[0] for key in good} >= {"header", "heads", "instance", "segments"}

        with contextlib.closing(connect(server.as_pc())) as client:
            thief = Thief(client, BUCKET)
            thief.run(good)
        assert thief.done == {"put_object": 1 + 3}, "the lease, and names that nobody has"
        assert {key: found for key, found in versions(owner, BUCKET).items() if key in good} == good
        assert restored(tmp_path / "first", url, server) == written

        # And now somebody who has the account, whom no policy holds back.
        thief = Thief(owner, BUCKET)
        thief.run(good)
        after = versions(owner, BUCKET)
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
