"""What each of many processes does in directories that all share, and what it checks of its own.

Everybody creates, renames, links, appends to and removes names in the same few directories. What a process
may rely on, whatever the others do:
- of all that create one name exclusively, one succeeds;
- a token (a file with its number in it) is in exactly one place, however often it is renamed;
- records appended to a common file are whole, and all there;
- a file of one's own holds what one wrote.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Final

DIRECTORIES: Final = 4
TOKENS: Final = 64
RECORD_SIZE: Final = 64
CLAIMS: Final = 5000


def prepare(root: Path) -> None:
    """What all find when they begin."""
    for number in range(DIRECTORIES):
        (root / f"d{number}").mkdir()
    for token in range(TOKENS):
        (root / f"d{token % DIRECTORIES}" / f"token-{token}").write_bytes(b"%d" % token)
    (root / "claims").mkdir()
    (root / "log").touch()


def work(root: Path, worker: int, seed: int, seconds: float) -> dict[str, int]:
    """Work for so long. Returns how much of what was done. Raises AssertionError."""
    rng = random.Random(seed * 1000 + worker)
    log = os.open(root / "log", os.O_WRONLY | os.O_APPEND)
    counts = {"operations": 0, "records": 0, "claims": 0}
    own: dict[str, bytes] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        counts["operations"] += 1
        directory = root / f"d{rng.randrange(DIRECTORIES)}"
        choice = rng.randrange(7)
        if choice == 0:
            _move_token(rng, root, directory)
        elif choice == 1:
            os.write(log, b"%04d %010d " % (worker, counts["records"]) + b"x" * (RECORD_SIZE - 17) + b"\n")
            counts["records"] += 1
        elif choice == 2:
            counts["claims"] += _claim(root / "claims" / f"{rng.randrange(CLAIMS)}", worker)
        elif choice == 3 and len(own) < 200:
            path = directory / f"own-{worker}-{counts['operations']}"
            own[str(path)] = rng.randbytes(rng.randrange(5000))
            path.write_bytes(own[str(path)])
        elif own:
            _use_own(rng, own, directory, worker, counts["operations"], choice)
    os.close(log)
    for name, data in own.items():
        assert Path(name).read_bytes() == data, f"a file of worker {worker} holds something else"
    return counts


def _move_token(rng: random.Random, root: Path, directory: Path) -> None:
    token = rng.randrange(TOKENS)
    source = root / f"d{rng.randrange(DIRECTORIES)}" / f"token-{token}"
    try:
        os.rename(source, directory / f"token-{token}")
    except FileNotFoundError:
        pass  # it is elsewhere, or somebody was faster


def _claim(path: Path, worker: int) -> int:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return 0
    os.write(fd, b"%d" % worker)
    os.close(fd)
    return 1


def _use_own(
    rng: random.Random, own: dict[str, bytes], directory: Path, worker: int, number: int, choice: int
) -> None:
    name = rng.choice(list(own))
    if choice == 4:
        new = str(directory / f"own-{worker}-{number}")
        os.rename(name, new)
        own[new] = own.pop(name)
    elif choice == 5:
        link = directory / f"link-{worker}-{number}"
        os.link(name, link)
        assert os.stat(name).st_nlink >= 2
        os.unlink(link)
    else:
        assert Path(name).read_bytes() == own[name], f"a file of worker {worker} holds something else"
        os.unlink(name)
        del own[name]


def check(root: Path, counts: list[dict[str, int]]) -> None:
    """What must hold of the whole when all have ended. Raises AssertionError."""
    places: dict[str, int] = {}
    for number in range(DIRECTORIES):
        for path in (root / f"d{number}").glob("token-*"):
            places[path.name] = places.get(path.name, 0) + 1
            assert path.read_bytes() == path.name.removeprefix("token-").encode(), "a token has changed"
    assert places == {f"token-{token}": 1 for token in range(TOKENS)}, "tokens were lost or doubled"
    lines = (root / "log").read_bytes().split(b"\n")[:-1]
    assert all(len(line) == RECORD_SIZE - 1 for line in lines), "records of the log are mixed"
    for worker, count in enumerate(counts):
        mine = [line for line in lines if line.startswith(b"%04d " % worker)]
        numbers = [int(line.split()[1]) for line in mine]
        assert numbers == list(range(count["records"])), f"records of worker {worker} are lost or moved"
    won = [path.read_bytes() for path in (root / "claims").iterdir()]
    for worker, count in enumerate(counts):
        assert won.count(b"%d" % worker) == count["claims"], f"worker {worker} did not get what it claimed"
