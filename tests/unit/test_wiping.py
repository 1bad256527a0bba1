"""Overwriting secrets: the garbage of a process, which a collection gives away, is searched as well."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import gc, os, sys
from mirrorfs.drivers.wiping import wipe

gc.disable()
secret = os.urandom(32)
secrets = [secret]
for _ in range(200_000):
    cycle = [bytes(64)]
    cycle.append(cycle)
cycle = [secret + os.urandom(1)]
cycle.append(cycle)
del cycle
gc.set_threshold(gc.get_count()[0] + int(sys.argv[1]))  # it is due so many objects later
gc.enable()
count = wipe(secrets)
print(count, any(secret), gc.isenabled())
"""


@pytest.mark.parametrize("later", [4, 6, 8, 10, 12])
def test_nothing_is_collected_while_memory_is_searched(later: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(later)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended
    count, is_left, is_collecting = ended.stdout.split()
    assert int(count) >= 2
    assert (is_left, is_collecting) == ("False", "True")
