"""One target under atheris, which sees the branches an input takes: fuzz_guided.py TARGET OPTIONS... CORPUS

Started by `scripts/fuzz --guided`. The options are libFuzzer's, as are the limits of time and memory; a fault
is otherwise what it is for the rest of the fuzzer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import atheris  # `pip install mirrorfs[fuzz]`

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["mirrorfs"]):
    from scripts.fuzz_oracle import check_message
    from scripts.fuzz_targets import TARGETS


def main() -> None:
    """Run until the options say that it is enough; libFuzzer ends the process."""
    target = TARGETS[sys.argv.pop(1)]
    seeds = list(target.seeds())

    def one_input(data: bytes) -> None:
        try:
            target.parse(data)
        except target.documented as error:
            check_message(error)

    def mutated(data: bytes, size_max_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.1:
            changed: bytes = atheris.Mutate(data, size_max_bytes)
            return changed
        return target.mutate(random, data, random.choice(seeds))[:size_max_bytes]

    atheris.Setup(sys.argv, one_input, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
