"""Feed damaged inputs to everything that reads bytes before they are authenticated, and judge what happens.

    scripts/fuzz                                     10,000,000 inputs, shared among all targets
    scripts/fuzz --first 3000000 --inputs 7000000    go on where a run of 3,000,000 ended
    scripts/fuzz --target header --first 17 --inputs 1    replay one input by its number
    scripts/fuzz --replay FILE...                    replay kept inputs
    scripts/fuzz --guided --target header --seconds 600   by coverage (needs `pip install mirrorfs[fuzz]`)
    scripts/fuzz --collect --inputs 100000           keep inputs that take new paths

Input N of a target follows from --seed, N and the corpus of that commit. A fault is written to the corpus as
failure-SEED-NUMBER. The last line is `N inputs: 0 crashes, 0 hangs` and the exit code 0, or it is 1; a crash
stands for every fault but a hang: a foreign exception, too much time or memory, bytes wrongly accepted.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import fuzz_corpus
from scripts.fuzz_mutations import INPUT_SIZE_MAX_BYTES
from scripts.fuzz_oracle import Finding, Judge
from scripts.fuzz_targets import TARGETS, Target

INPUTS = 10_000_000
REPORT_EVERY_S = 20.0
_BATCH = 2048
STUCK_S = 600
"""Without a batch done in this time the process ends with its stack: a loop inside a C library."""
GROWTH_MAX_KIB = 64 * 1024
"""By how much memory may grow over a run, once it is warm: more is a leak."""
_WARM = 20_000
MEMORY_MAX_BYTES = 4 << 30


class Inputs:
    """The inputs of a target, each made anew from its number."""

    def __init__(self, target: Target, *, seed: int, corpus: Path) -> None:
        self._target = target
        kept = [data for path, data in fuzz_corpus.stored(target, corpus=corpus)]
        self._valid = list(target.seeds())
        self.bases = [*self._valid, *kept]
        self._start = (seed << 32 | zlib.crc32(target.name.encode())) << 40
        self._random = Random()

    def __getitem__(self, number: int) -> bytes:
        self._random.seed(self._start | number)
        # Half of them from valid ones: most of the corpus is refused early, and what comes of it too.
        base = self._random.choice(self._valid if self._random.random() < 0.5 else self.bases)
        other = self._random.choice(self.bases)
        return self._target.mutate(self._random, base, other)


class Run:
    """The inputs of one target that were run, and what came of them."""

    def __init__(
        self, target: Target, *, seed: int, corpus: Path, alive: Callable[[], object] = lambda: None
    ) -> None:
        """`alive` is called every now and then."""
        self.target = target
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.took_s = 0.0
        self.slowest_s = 0.0
        self._seed = seed
        self._corpus = corpus
        self._inputs = Inputs(target, seed=seed, corpus=corpus)
        self._seen: set[str] = set()
        self._alive = alive

    @property
    def count(self) -> int:
        return self.outcomes.total() + self.faults.total()

    def run(self, first: int, count: int, *, deadline_s: float, hang_s: float = 2.0) -> None:
        """Run inputs first.. of the target, until a deadline of the monotonic clock."""
        started_s = said_s = time.monotonic()
        warm_kib = 0
        with Judge(self.target, hang_s=hang_s) as judge:
            for number in range(first, first + count):
                if self.count % _BATCH == 0:
                    self._alive()
                    now_s = time.monotonic()
                    if now_s >= deadline_s:
                        break
                    if now_s - said_s >= REPORT_EVERY_S:
                        said_s = now_s
                        self._say(number, self.count / (now_s - started_s))
                if self.count == _WARM:
                    warm_kib = _resident_kib()
                self._one(judge, number)
            self.slowest_s = judge.slowest_s
        self.took_s = time.monotonic() - started_s
        grown_kib = _resident_kib() - warm_kib
        if warm_kib and grown_kib > GROWTH_MAX_KIB:
            self.faults["leak"] += 1
            print(f"{self.target.name}: memory grew by {grown_kib} KiB over {self.count} inputs")

    def _one(self, judge: Judge, number: int) -> None:
        data = self._inputs[number]
        try:
            self.outcomes[judge.run(data)] += 1
        except Finding as finding:
            self.faults[finding.kind] += 1
            if str(finding) not in self._seen:
                self._seen.add(str(finding))
                name = f"failure-{self._seed}-{number}"
                path = fuzz_corpus.keep(self.target, data, name=name, corpus=self._corpus)
                again = f"--target {self.target.name} --seed {self._seed} --first {number} --inputs 1"
                print(
                    f"{finding.details}\n{self.target.name}: {finding}\n  {again}; kept as {path}", flush=True
                )

    def _say(self, number: int, rate: float) -> None:
        print(
            f"{self.target.name}: {self.count:,} inputs, up to number {number:,}, {rate:,.0f}/s,"
            f" {len(self._inputs.bases)} in the corpus, {self.faults.total()} faults",
            flush=True,
        )


def _resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def _watch() -> None:
    faulthandler.dump_traceback_later(STUCK_S, exit=True)


def shares(count: int, targets: list[Target]) -> dict[str, int]:
    """How many of `count` inputs each target gets."""
    total = sum(target.weight for target in targets)
    shared = {target.name: count * target.weight // total for target in targets}
    shared[targets[0].name] += count - sum(shared.values())
    return shared


def report(runs: list[Run], *, seed: int) -> int:
    """Print the table and the last line. Returns the exit code."""
    print(f"{'target':15} {'inputs':>11} {'accepted':>9} {'per s':>8} {'slowest ms':>10} {'faults':>6}")
    for run in runs:
        rate = run.count / run.took_s if run.took_s else 0.0
        print(f"{run.target.name:15} {run.count:11,} {run.outcomes['accepted']:9,} {rate:8,.0f}"
              f" {1000 * run.slowest_s:10.1f} {run.faults.total():6}")  # fmt: skip
    count = sum(run.count for run in runs)
    hangs = sum(run.faults["hang"] for run in runs)
    others = sum(run.faults.total() for run in runs) - hangs
    took_s = sum(run.took_s for run in runs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=fuzz_corpus.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(f"seed {seed}, commit {commit or 'unknown'}, {took_s:.0f} s")
    print(f"{count:,} inputs: {others} crashes, {hangs} hangs")
    return 1 if hangs or others else 0


def replay(files: list[Path]) -> int:
    """Run kept inputs again; the folder names the target."""
    faults = 0
    for path in files:
        with Judge(TARGETS[path.resolve().parent.name]) as judge:
            try:
                print(f"{path}: {judge.run(path.read_bytes())}")
            except Finding as finding:
                faults += 1
                print(f"{finding.details}\n{path}: {finding}")
    return 1 if faults else 0


def collect(targets: list[Target], arguments: argparse.Namespace) -> int:
    """Replace the corpus of each target by inputs of it and of this run that take different paths.

    A path that an input of one target takes is not kept again for the next: several read headers.
    """
    seen: set[fuzz_corpus.Step] = set()
    for target, count in zip(targets, shares(arguments.inputs, targets).values(), strict=True):
        inputs = Inputs(target, seed=arguments.seed, corpus=arguments.corpus)
        old = fuzz_corpus.stored(target, corpus=arguments.corpus)
        numbers = range(arguments.first, arguments.first + count)
        offered = _and_found(old, arguments.found, target, inputs, numbers)
        found = fuzz_corpus.distilled(target, offered, seen=set(seen))
        kept = fuzz_corpus.distilled(target, sorted(found, key=lambda data: (len(data), data)), seen=seen)
        for path, _ in old:
            if not path.name.startswith("failure-"):
                path.unlink()
        for data in kept:
            fuzz_corpus.keep(target, data, corpus=arguments.corpus)
        print(f"{target.name}: {len(kept)} inputs, {sum(map(len, kept)):,} bytes", flush=True)
    return 0


def _and_found(
    old: list[tuple[Path, bytes]], found: Path | None, target: Target, inputs: Inputs, numbers: range
) -> Iterator[bytes]:
    yield from (data for _, data in old)
    if found is not None:
        yield from (data for _, data in fuzz_corpus.stored(target, corpus=found))
    yield from map(inputs.__getitem__, numbers)


def guided(target: Target, arguments: argparse.Namespace) -> int:
    """Let atheris choose what to change, with our mutations. Returns its exit code."""
    found = (arguments.found or Path(tempfile.mkdtemp(prefix="mirrorfs-fuzz-"))) / target.name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (found / f"seed-{number}").write_bytes(seed)
    for path, _ in fuzz_corpus.stored(target, corpus=arguments.corpus):
        shutil.copy(path, found)
    failures = arguments.corpus / target.name
    failures.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("fuzz_guided.py")
    options = [
        f"-runs={arguments.inputs}",
        f"-max_total_time={int(arguments.seconds)}",
        f"-seed={arguments.seed}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        f"-max_len={INPUT_SIZE_MAX_BYTES}",
        f"-artifact_prefix={failures}/failure-",
    ]
    print(f"{target.name}: inputs go to {found}", flush=True)
    return subprocess.run(
        [sys.executable, str(program), target.name, *options, str(found)], check=False
    ).returncode


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", action="append", choices=[*TARGETS], help="may be repeated; all by default"
    )
    parser.add_argument("--inputs", type=int, default=INPUTS, help="over all targets, by their weights")
    parser.add_argument("--first", type=int, default=0, help="so many, over all targets, are done already")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop each target after its share of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=fuzz_corpus.CORPUS)
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--guided", action="store_true")
    parser.add_argument(
        "--found", type=Path, help="where --guided puts what it finds, and --collect takes it"
    )
    return parser.parse_args()


def main() -> int:
    """Run what the command line says."""
    arguments = parsed_arguments()
    targets = [TARGETS[name] for name in arguments.target or TARGETS]
    if arguments.replay:
        return replay(arguments.replay)
    if arguments.collect:
        return collect(targets, arguments)
    if arguments.guided:
        return max(guided(target, arguments) for target in targets)
    # More is refused to the parser, and seen as its fault, instead of getting this process killed.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
    runs = []
    firsts, counts = shares(arguments.first, targets), shares(arguments.inputs, targets)
    weights = sum(target.weight for target in targets)
    for target in targets:
        run = Run(target, seed=arguments.seed, corpus=arguments.corpus, alive=_watch)
        share_s = arguments.seconds * target.weight / weights
        deadline_s = time.monotonic() + share_s if share_s else float("inf")
        run.run(firsts[target.name], counts[target.name], deadline_s=deadline_s)
        runs.append(run)
    return report(runs, seed=arguments.seed)


if __name__ == "__main__":
    raise SystemExit(main())
