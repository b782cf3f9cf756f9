"""Changes one place after another in a copy of the engine: `python -m tests.mutants [PACKAGE ...]`.

A mutant is a copy with one change: a comparison turned, a number moved, a statement removed. Each
must make a test fail. cosmic-ray makes the changes; this command draws a sample of the places,
takes the tests that cover each module (`mutants.toml`), and prints a table and what survived.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import difflib
import fnmatch
import importlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import use_mutation
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.work_item import MutationSpec

from tests.faults import ROOT, copied, say

PACKAGES = ("plan", "stages", "run", "store", "results", "tuning")
LEAST_CAUGHT = 0.9
MARKS = "not ray and not device_rules and not dry_run"
PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-m", MARKS)
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "tests/mutants.toml").read_text())


class RemoveStatement(Operator):
    """Takes away a call, an assignment in place, or one to an attribute or an entry."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield the place of a statement that can be taken away."""
        if node.type == "simple_stmt" and _acts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Put `pass` in the place of the statement."""
        nothing = get_ast("pass").get_first_leaf()
        nothing.prefix = node.get_first_leaf().prefix
        node.children[0] = nothing
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Return what it does to a few lines."""
        return (Example("f(x)\n", "pass\n"), Example("x += 1\n", "pass\n"))


def _acts(node: Any) -> bool:
    """Return whether a statement does something other than giving a value its name."""
    if node.type == "atom_expr":
        last = node.children[-1]
        return bool(last.type == "trailer" and last.children[0] == "(")
    if node.type != "expr_stmt":
        return False
    if node.children[1].type == "annassign" or node.children[1] != "=":
        return node.children[1].type != "annassign"
    function = node.search_ancestor("funcdef")
    beginning = function is not None and function.name.value == "__init__"
    return node.children[0].type == "atom_expr" and not beginning


class Provider:
    """The operators that cosmic-ray lacks."""

    def __iter__(self) -> Iterator[str]:
        return iter(("RemoveStatement",))

    def __getitem__(self, name: str) -> type[Operator]:
        return {"RemoveStatement": RemoveStatement}[name]


plugins.OPERATOR_PROVIDERS["raysweep"] = Provider()


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one file, and what became of it.

    Attributes:
        file: below raysweep/.
        spec: the change, in cosmic-ray's words.
        tests: that cover the file.
        fate: `caught`, `survived`, `timeout`, or `same` if it changes no behaviour.
        old, new: the lines that differ.
        seconds: that its tests took.
    """

    file: str
    spec: MutationSpec
    tests: tuple[str, ...]
    fate: str = ""
    old: str = ""
    new: str = ""
    seconds: float = 0.0

    @property
    def package(self) -> str:
        """The package of the file."""
        return self.file.partition("/")[0]

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.file}:{self.spec.start_pos[0]}"


# What can be changed


def outside(text: str) -> set[int]:
    """Return the lines that never act when the package runs: of Protocols and of type checking."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        protocol = isinstance(node, ast.ClassDef) and any(
            "Protocol" in ast.unparse(b) for b in node.bases
        )
        checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if protocol or checking:
            found |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return found


def silent_spans(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations, which nothing evaluates, and the flags of dataclasses lie.

    The flags (frozen, slots, keywords alone) refuse wrong code; right code does not notice them.
    """
    every: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            every.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            every.append(node.returns)
        elif isinstance(node, ast.ClassDef):
            every += [one for one in node.decorator_list if "dataclass(" in ast.unparse(one)]
    return [
        ((one.lineno, one.col_offset), (one.end_lineno or 0, one.end_col_offset or 0))
        for one in every
        if one is not None
    ]


def places(file: str, text: str) -> dict[Any, list[MutationSpec]]:
    """Return every change of a file, grouped by place: where it begins and ends."""
    silent, spans = outside(text), silent_spans(text)
    nodes = list(ast_nodes(get_ast(text)))
    found: dict[Any, list[MutationSpec]] = collections.defaultdict(list)
    for name in SETTINGS["operators"]:
        operator = plugins.get_operator(name)()
        spots = (spot for node in nodes for spot in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(spots):
            if start[0] in silent or any(low <= start < high for low, high in spans):
                continue
            spec = MutationSpec(
                module_path=f"raysweep/{file}", operator_name=name, occurrence=occurrence,
                start_pos=start, end_pos=end,
            )  # fmt: skip
            found[start, end].append(spec)
    return found


def files_of(package: str) -> list[str]:
    """Return the files of a package, below raysweep/."""
    root = ROOT / "raysweep"
    return sorted(str(path.relative_to(root)) for path in (root / package).rglob("*.py"))


def tests_of(file: str, *, quick: bool = False) -> tuple[str, ...]:
    """Return the tests that cover a file, or the first, quickest of them alone.

    Raises:
        KeyError: if no pattern of mutants.toml fits it.
    """
    for pattern, tests in SETTINGS["tests"].items():
        if fnmatch.fnmatch(file, pattern):
            return tuple(tests[:1] if quick else tests)
    raise KeyError(f"mutants.toml names no tests for {file}")


def sample(files: Iterable[str], count: int, seed: int, *, quick: bool) -> list[Mutant]:
    """Return mutants at places that are drawn without replacement; one change at each place."""
    draw = random.Random(seed)
    every = [
        (file, specs)
        for file in files
        for _, specs in sorted(places(file, (ROOT / "raysweep" / file).read_text()).items())
    ]
    chosen = draw.sample(every, min(count, len(every)))
    return [
        Mutant(file=file, spec=draw.choice(specs), tests=tests_of(file, quick=quick))
        for file, specs in chosen
    ]


# Running


def begin(root: Path, preloaded: Sequence[str]) -> None:
    """Make the copy of a worker process, stay in it, and import what is costly, once for all."""
    folder = Path(tempfile.mkdtemp(dir=root))
    copied(folder)
    # Where files of the user and of raysweep's cache lie, for the tests and what they start.
    os.environ |= {"PYTHONPATH": str(folder), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    for name in preloaded:
        importlib.import_module(name)


def failed(tests: Sequence[str], limit: float) -> str:
    """Run tests of the copy in a fork of this process, which has imported everything else.

    Returns:
        What pytest said if one of them failed, `timeout` if they took longer, else nothing.
    """
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _test(tests, output.fileno())
        ends, status = time.monotonic() + limit, None
        while status is None and time.monotonic() < ends:
            done, code = os.waitpid(child, os.WNOHANG)
            status = code if done else None
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests started goes with them
        if status is None:
            os.waitpid(child, 0)
            return "timeout"
        output.seek(0)
        return output.read().decode(errors="replace") + f"\nexit {status}" if status else ""


def _test(tests: Sequence[str], output: int) -> NoReturn:
    """Run pytest in this process and end it."""
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        # The copy's own modules, not those that this command has imported.
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        os._exit(int(pytest.main([*PYTEST, *(f"tests/{test}" for test in tests)])))
    except BaseException:  # noqa: BLE001  a fork must never go on as its parent
        traceback.print_exc()
        os._exit(99)


def baseline(tests: tuple[str, ...]) -> float:
    """Return the seconds that tests take on the unchanged copy.

    Raises:
        RuntimeError: if they fail.
    """
    start = time.monotonic()
    if said := failed(tests, 900):
        raise RuntimeError(f"{', '.join(tests)} must pass before anything is changed:\n{said}")
    return time.monotonic() - start


def tried(mutant: Mutant, limit: float) -> Mutant:
    """Return the mutant with its fate."""
    start = time.monotonic()
    operator = plugins.get_operator(mutant.spec.operator_name)()
    path = mutant.spec.module_path
    with use_mutation(path, operator, mutant.spec.occurrence) as (before, after):
        said = failed(mutant.tests, limit)
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    old, new = (
        " ".join(line[2:].strip() for line in lines if line[:2] == sign) for sign in ("- ", "+ ")
    )
    fate = "timeout" if said == "timeout" else "caught" if said else "survived"
    found = replace(mutant, fate=fate, old=old, new=new, seconds=time.monotonic() - start)
    none = fate == "survived" and known(found).get("same", False)
    return replace(found, fate="same") if none else found


def known(mutant: Mutant) -> dict[str, Any]:
    """Return what mutants.toml says of a change that is not caught; empty if it says nothing."""
    changed = (mutant.old, mutant.new)
    mine = (one for one in SETTINGS["known"] if (one["old"], one["new"]) == changed)
    return next((one for one in mine if fnmatch.fnmatch(mutant.file, one["file"])), {})


def run(
    mutants: Sequence[Mutant], jobs: int, ends: float, preloaded: Sequence[str] = ()
) -> Iterator[Mutant]:
    """Yield mutants with their fates as they come, until a time of the monotonic clock."""
    groups = dict.fromkeys(one.tests for one in mutants)
    fork = multiprocessing.get_context("fork")
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(jobs, fork, begin, (Path(name), preloaded)) as pool,
    ):
        took = {}
        for tests, seconds in zip(groups, pool.map(baseline, groups), strict=True):
            took[tests] = seconds
            say(f"{seconds:6.1f} s unchanged: {', '.join(tests)}")
        waiting, out = collections.deque(mutants), set[Future[Mutant]]()
        while waiting or out:
            while waiting and len(out) < jobs and time.monotonic() < ends:
                one = waiting.popleft()
                limit = 60 + 5 * took[one.tests]
                out.add(pool.submit(tried, one, limit))
            if not out:
                return
            done = next(as_completed(out))
            out.discard(done)
            yield done.result()


# Telling


def table(found: Sequence[Mutant]) -> list[str]:
    """Return a Markdown table: for each package how many mutants were caught."""
    lines = [
        "| package | mutants | change behaviour | caught | of them by time | share |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for package in (*dict.fromkeys(one.package for one in found), "all"):
        mine = [one.fate for one in found if package in (one.package, "all")]
        real = len(mine) - mine.count("same")
        caught = mine.count("caught") + mine.count("timeout")
        share = f"{caught / real:.2f}" if real else "-"
        lines.append(
            f"| {package} | {len(mine)} | {real} | {caught} | {mine.count('timeout')} | {share} |"
        )
    return lines


def told(found: Sequence[Mutant], asked: int, seed: int, minutes: float) -> str:
    """Return the text of docs/results/mutants.md."""
    lines = [
        "# Mutants of the engine", "",
        f"Written by `make mutants`: {len(found)} of {asked} sampled changes in {minutes:.0f} "
        f"minutes, seed {seed}. A place in the code is drawn, then one change there; it is caught "
        f"if a test that covers the module fails (`tests/mutants.toml`). Changes that change no "
        f"behaviour do not count; each is listed with its reason.", "",
        *table(found), "",
    ]  # fmt: skip
    for fate, title in (("survived", "Survivors"), ("same", "No change of behaviour")):
        mine = [one for one in found if one.fate == fate]
        if mine:
            lines += [f"## {title}", ""]
        for one in mine:
            lines.append(f"- `{one.where}`: `{one.old}` → `{one.new}`")
            why = known(one).get("reason", "not caught by the tests that mutants.toml names")
            lines.append(f"  {why}")
        lines += [""] if mine else []
    return "\n".join(lines)


def good_enough(found: Sequence[Mutant]) -> bool:
    """Return whether nine of ten mutants that change behaviour were caught in every package."""
    counts = collections.Counter(
        (one.package, one.fate == "survived") for one in found if one.fate != "same"
    )
    packages = {package for package, _ in counts}
    return all(
        counts[name, False] >= LEAST_CAUGHT * (counts[name, False] + counts[name, True])
        for name in packages
    )


def drawn(names: Iterable[str], count: int, seed: int, *, quick: bool = False) -> list[Mutant]:
    """Return the samples of packages or files in turns, so that a limit of time cuts evenly."""
    samples = [
        sample(files_of(name) if name in PACKAGES else [name], count, seed, quick=quick)
        for name in names
    ]
    longest = max(map(len, samples), default=0)
    return [one[n] for n in range(longest) for one in samples if n < len(one)]


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if too many mutants survive in a package."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="packages, or files below raysweep/; default all")
    parser.add_argument("--count", type=int, default=25, help="mutants of each")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no mutant after them")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--quick", action="store_true", help="the quickest tests of a module alone")
    parser.add_argument("--write", type=Path, help="where to write the table and the survivors")
    given = parser.parse_args(arguments)
    known = {*PACKAGES, *(file for package in PACKAGES for file in files_of(package))}
    if unknown := sorted({*given.names} - known):
        parser.error(f"{unknown[0]} is none of {', '.join(PACKAGES)}, nor a file of them")
    start = time.monotonic()
    mutants = drawn(given.names or PACKAGES, given.count, given.seed, quick=given.quick)
    preloaded = [] if given.quick else SETTINGS["preloaded"]
    found = []
    for one in run(mutants, given.jobs, start + 60 * given.minutes, preloaded):
        found.append(one)
        change = "" if one.fate == "caught" else f": {one.old} → {one.new}"
        name = one.spec.operator_name.partition("/")[2]
        say(f"{one.seconds:6.1f} s {one.fate:8} {one.where} {name}{change}")
    text = told(found, len(mutants), given.seed, (time.monotonic() - start) / 60)
    say("\n" + text)
    if given.write:
        given.write.write_text(text)
    return int(not good_enough(found))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
