"""Random inputs to everything that reads files: `python -m tests.fuzz --examples 100000 --seed 1`.

Each tests/fuzz_*.py has TARGETS: name → (strategy, check). A check builds its example in a folder
and calls the product: either it works and means what the example says, or it raises raysweep's own
error, whose message names the file. Anything else is a finding.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

Check = Callable[[Any, Path], None]


def targets(chosen: str = "") -> dict[str, tuple[SearchStrategy[Any], Check]]:
    """Return the targets of all tests/fuzz_*.py whose names contain a word."""
    found: dict[str, tuple[SearchStrategy[Any], Check]] = {}
    for file in sorted(Path(__file__).parent.glob("fuzz_*.py")):
        module = importlib.import_module(f"tests.{file.stem}")
        prefix = file.stem.removeprefix("fuzz_")
        found |= {f"{prefix}.{name}": target for name, target in module.TARGETS.items()}
    return {name: target for name, target in found.items() if chosen in name}


def run(strategy: SearchStrategy[Any], check: Check, examples: int, number: int | None) -> int:
    """Try a target with examples of a seed, None: the same ones always; return how many ran."""
    count = 0

    def one(example: Any) -> None:
        nonlocal count
        count += 1
        with tempfile.TemporaryDirectory() as folder:
            check(example, Path(folder))

    trying = settings(
        max_examples=examples, deadline=None, database=None, derandomize=number is None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )(given(strategy)(one))  # fmt: skip
    (trying if number is None else seed(number)(trying))()
    return count


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="over all targets")
    parser.add_argument("--seed", type=int, help="of the examples; without one, the same always")
    parser.add_argument("--only", default="", help="targets whose names contain it")
    asked = parser.parse_args(argv)
    chosen = targets(asked.only)
    share = max(1, asked.examples // len(chosen))
    total = findings = 0
    for name, (strategy, check) in chosen.items():
        try:
            count = run(strategy, check, share, asked.seed)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            findings, count = findings + 1, share
            _say(f"{name}: FINDING")
            traceback.print_exception(error, limit=-6)
            _say("\n".join(getattr(error, "__notes__", [])))
        total += count
        _say(f"{name}: {count} examples, seed {asked.seed}")
    _say(f"{total} examples over {len(chosen)} targets, {findings} findings, seed {asked.seed}")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
