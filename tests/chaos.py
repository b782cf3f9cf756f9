"""Disturbs one sweep by many faults, and judges what has become of it.

    python -m tests.chaos --faults 50 --seed 1

Workers, hosts, drivers and the head are killed, frozen and drained; the storage, a file system of
its own, fills up and breaks; artifacts are damaged. After each death the sweep is launched again,
by the same command. In the end its records and artifacts must equal those of the same sweep that
nothing has disturbed. Needs root, for hosts and file systems of its own.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests import hosts
from tests.chaos_faults import Fault, kinds
from tests.chaos_judge import Struck, Verdict, judge
from tests.chaos_launch import wait
from tests.chaos_world import NAMES, SWEEP, World

REACH = 0.85  # share of the stages by which all faults have struck
SETTLED = 4  # launches after the last fault


def deck(names: Sequence[str], number: int, seed: int) -> list[Fault]:
    """Return faults of these kinds by their shares, as far as `number` goes, in a drawn order."""
    known, order = kinds(), Random(f"deck-{seed}")
    total = sum(known[name].SHARE for name in names)
    exact = {name: number * known[name].SHARE / total for name in names}
    counts = {name: int(share) for name, share in exact.items()}
    rest = sorted(names, key=lambda name: (counts[name] - exact[name], name))
    for name in rest[: number - sum(counts.values())]:
        counts[name] += 1
    faults = [known[name]() for name in names for _ in range(counts[name])]
    order.shuffle(faults)
    return faults


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  a tool of the command line


@contextmanager
def world_of(sweep: str, names: Sequence[str] = NAMES, *, keep: bool = False) -> Iterator[World]:
    """Make hosts and a storage; in the end, take every trace of them away."""
    root = Path(tempfile.mkdtemp(prefix="x", dir="/tmp"))  # short: sockets lie below it
    world = World(root, sweep, names)
    try:
        world.begin()
        yield world
    finally:
        if keep:
            shutil.copytree(world.whole, root / "kept")
        world.close()
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def disturb(world: World, faults: Sequence[Fault], seed: int) -> list[Struck]:
    """Let the faults strike one after the other while the sweep runs; then let it end.

    Nobody waits for a host that starts while the sweep goes on without it.
    """
    calm = world.launches[0]
    world.gate.touch()
    world.go_on()
    wait(lambda: calm.ended, "the undisturbed sweep")
    assert not calm.faults(), calm.said
    stages = len(list(world.calm.joinpath("manifests").rglob("*.json")))
    struck: list[Struck] = []
    start = time.monotonic()
    for number, fault in enumerate(faults, 1):
        draw = Random(f"fault-{seed}-{number}")
        world.reach(1 + int(REACH * stages * (number - 1) / len(faults)))
        time.sleep(draw.uniform(0, 0.3))
        if fault.SHUT:
            world.gate.touch()
        world.go_on().because.append(fault.NAME)
        began = time.time()
        said = fault.strike(world, draw)
        world.gate.touch()
        struck.append(Struck(fault=fault, said=said, began=began, ended=time.time()))
        world.go_on()
        say(
            f"{time.monotonic() - start:5.0f} s  {number:2d}  {world.progress():3d} of {stages} "
            f"stages  {fault.NAME}: {said}"
        )
    world.settle(SETTLED, again=any(fault.hit for fault in faults))
    return struck


def verdict_on(world: World, faults: Sequence[Fault], seed: int) -> Verdict:
    """Disturb the sweep of a world; return what has become of it, and what its launches said."""
    found = judge(world.calm, world.whole, disturb(world, faults, seed))
    found.faults[:0] = [fault for launch in world.launches for fault in launch.faults()]
    return found


def told(verdict: Verdict) -> str:
    """Return a verdict as text: waste by kind of fault, facts, faults."""
    heads = ("faults", "stages again", "their seconds", "most of one")
    lines = [f"{'kind of fault':16s}" + "".join(f"{head:>15s}" for head in heads)]
    for name, row in sorted(verdict.waste.items()):
        counts = f"{name:16s}{row.struck:15d}{row.stages:15d}"
        lines.append(f"{counts}{row.seconds:15.2f}{row.longest:15.2f}")
    return "\n".join([*lines, *verdict.facts, *(f"FAULT: {fault}" for fault in verdict.faults)])


def main() -> int:
    """Run from the command line; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, help="of the sweep; by default enough for the faults")
    parser.add_argument("--kinds", default=",".join(kinds()), help="of faults, joined by commas")
    parser.add_argument("--keep", action="store_true", help="keep store and logs to look at")
    given = parser.parse_args()
    if reason := hosts.lacking():
        sys.exit(reason)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's `&` has the first one ignored
        signal.signal(number, signal.default_int_handler)
    faults = deck(given.kinds.split(","), given.faults, given.seed)
    sweep = SWEEP % (given.seeds or 1 + given.faults // 12)
    with world_of(sweep, keep=given.keep) as world:
        say(f"below {world.root}")
        verdict = verdict_on(world, faults, given.seed)
        say(told(verdict))
    return bool(verdict.faults)


if __name__ == "__main__":
    sys.exit(main())
