"""Pins each method and each stage kind to all the source in this package that it computes with.

`versions.json` holds the digest of every module once, and the versions under which results of that
source are stored. A method computes with its *closure*: its file and all modules that it imports,
at the top or inside functions, and that those import. A module that changes is reported with every
method and kind in whose closure it lies, until one of two commands says why that is right:

    python -m tests.versions NAME --raised               its VERSION was raised: results change
    python -m tests.versions MODULE --same-results WHY   results are the same, and why

Each pins what it names and nothing else. Without arguments the command prints what is not pinned.
What methods find is pinned too (`tests/results.py`): `--raised` pins it anew, and so does
`NAME --numbers WHY` where a method finds something else because its input has changed.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raysweep import methods
from tests import results

ROOT = Path(__file__).parent.parent / "raysweep"
PINS = Path(__file__).with_name("versions.json")
# Modules that no number passes through; each has tests of its own.
CUT = {
    "errors": "what it makes ends a stage, so no result comes of it",
    "environment": "words of an error that a host caused",
    "provenance": "recorded beside results, never among them",
    "paths": "where files lie; what they hold is in keys",
    "store": "gives back the bytes it was given, or refuses",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The package as it is now.

    Attributes:
        digests: module → digest of its code.
        closures: method or stage kind → the modules that it computes with.
        versions: method or stage kind → its version; a defense's `RUN_VERSION` is a second number.
    """

    digests: Mapping[str, str]
    closures: Mapping[str, frozenset[str]]
    versions: Mapping[str, list[int]]


@dataclass(kw_only=True)
class Pins:
    """The package as it was accepted.

    Attributes:
        modules: module → digest, that of all names but those in `ahead`.
        versions: method or stage kind → version.
        ahead: a name whose version was raised → digests of shared modules that other names have
            not accepted yet; empty when nothing is in between.
        reasons: module → why its last change left results alone.
    """

    modules: dict[str, str] = field(default_factory=dict)
    versions: dict[str, list[int]] = field(default_factory=dict)
    ahead: dict[str, dict[str, str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def digest(self, name: str, module: str) -> str | None:
        """Return the digest of a module under which a method or kind is pinned."""
        return self.ahead.get(name, {}).get(module, self.modules.get(module))


# ------------------------------------------------------------------ the package as it is now


def source_digest(text: str) -> str:
    """Return a digest of code without docstrings, comments and layout; one for all Pythons."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(_plain(tree).encode()).hexdigest()[:16]


def _plain(node: object) -> str:
    # `ast.dump` and `ast.unparse` differ from one Python to the next, in empty fields and quotes.
    if isinstance(node, ast.AST):
        fields = [(n, v) for n, v in ast.iter_fields(node) if v is not None and v != []]
        inside = ",".join(f"{name}={_plain(value)}" for name, value in fields)
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        return "[" + ",".join(map(_plain, node)) + "]"
    return repr(node)


def imported(text: str, modules: Iterable[str]) -> frozenset[str]:
    """Return the modules of this package that code imports when it runs.

    Args:
        text: the code.
        modules: the names of all modules of the package, as `defenses/strip`; a package's own
            `__init__` has the package's name.
    """
    known, found = set(modules), set()
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if _module(n) in known else node.module for n in inside]
        found |= {_module(name) for name in names} & known
    return frozenset(found)


def _module(name: str) -> str:
    return name.removeprefix("raysweep.").replace(".", "/")


def closure(start: Iterable[str], imports: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Return modules and all that they import, on and on, without what is `CUT`."""
    found: set[str] = set()
    left = list(start)
    while left:
        module = left.pop()
        if module not in found and module.partition("/")[0] not in CUT:
            found.add(module)
            left += imports[module]
    return frozenset(found)


@functools.cache
def _of_text(text: str, modules: frozenset[str]) -> tuple[str, frozenset[str]]:
    return source_digest(text), imported(text, modules)


def texts() -> dict[str, str]:
    """Return module → code of the whole package."""
    files = {file.relative_to(ROOT): file for file in ROOT.rglob("*.py")}
    return {
        str((p.parent if p.stem == "__init__" else p).with_suffix("")): file.read_text()
        for p, file in files.items()
        if str(p) != "__init__.py"
    }


def kinds() -> dict[str, tuple[list[int], tuple[str, ...]]]:
    """Return stage kind → its version, and the modules that do its work: its file and `perform`."""
    found = {}
    for file in sorted((ROOT / "stages").glob("[!_]*.py")):
        module = importlib.import_module(f"raysweep.stages.{file.stem}")
        for form in vars(module).values():
            mine = isinstance(form, type) and form.__module__ == module.__name__
            if mine and hasattr(form, "KIND"):
                name = f"stages/{form.KIND}"
                found[name] = [form.VERSION], (name, "stages/perform")
    return found


def starts() -> dict[str, tuple[list[int], tuple[str, ...]]]:
    """Return method or stage kind → its version, and the modules that its closure starts from."""
    found = kinds()
    for role in methods.ROLES:
        for name, module in methods.available(role).items():
            if not module.startswith("raysweep."):
                continue  # of another package, which pins its own
            method = methods.load(role, name)
            of_run = getattr(method, "RUN_VERSION", 1)
            version = [method.VERSION, of_run] if of_run > 1 else [method.VERSION]
            found[f"{role}/{name}"] = version, (f"{role}/{name}",)
    return found


def current() -> Source:
    """Return the package as it is now."""
    return source(texts(), starts())


def source(
    code: Mapping[str, str], begin: Mapping[str, tuple[list[int], tuple[str, ...]]]
) -> Source:
    """Return the digests of modules, and the closures of names with their versions.

    Args:
        code: module → text.
        begin: name → its version, and the modules that its closure starts from.
    """
    read = {module: _of_text(text, frozenset(code)) for module, text in code.items()}
    imports = {module: found for module, (_, found) in read.items()}
    closures = {name: closure(modules, imports) for name, (_, modules) in begin.items()}
    used = frozenset().union(*closures.values())
    return Source(
        digests={module: read[module][0] for module in sorted(used)},
        closures=closures,
        versions={name: version for name, (version, _) in begin.items()},
    )


# ------------------------------------------------------------------ what is not pinned


def changed(pins: Pins, now: Source, name: str) -> list[str]:
    """Return the modules of a name's closure that differ from those it is pinned to."""
    return sorted(m for m in now.closures[name] if pins.digest(name, m) != now.digests[m])


def stale(pins: Pins, now: Source) -> dict[str, list[str]]:
    """Return changed module → the methods and kinds that stand under their old version."""
    found: dict[str, list[str]] = {}
    for name in sorted(now.closures):
        if now.versions[name] == pins.versions.get(name):
            for module in changed(pins, now, name):
                found.setdefault(module, []).append(name)
    return dict(sorted(found.items()))


def raised(pins: Pins, now: Source) -> list[str]:
    """Return the methods and kinds that are new, or whose version is not the pinned one."""
    return sorted(n for n, version in now.versions.items() if version != pins.versions.get(n))


def lowered(pins: Pins, now: Source, name: str) -> bool:
    """Return whether a version is below the pinned one, under which other results are stored."""
    before = [*pins.versions.get(name, []), 1, 1][:2]
    return any(new < old for new, old in zip([*now.versions[name], 1][:2], before, strict=True))


def faults(pins: Pins, now: Source) -> list[str]:
    """Return what is not pinned, why, and what to do; empty if all is."""
    found = []
    for module, names in stale(pins, now).items():
        some = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        what = "changed" if module in pins.modules else "is new"
        found.append(
            f"{module} {what}, under an unchanged version of {some}. Raise the VERSION of each "
            f"whose results change, then `python -m tests.versions NAME --raised`; if the results "
            f'of all are the same, `python -m tests.versions {module} --same-results "why"`'
        )
    for name in raised(pins, now):
        have, was = now.versions[name], pins.versions.get(name)
        if lowered(pins, now, name):
            found.append(
                f"{name} has version {have}, below the pinned {was}; never lower a version"
            )
        else:
            before = f"was {was}" if was else "is not pinned"
            remedy = f"`python -m tests.versions {name} --raised`"
            found.append(f"{name} has version {have} and {before}: {remedy}")
    return found


# ------------------------------------------------------------------ pinning


def pin_raised(pins: Pins, now: Source, name: str) -> None:
    """Pin one name, whose version was raised or which is new, to its closure as it is now.

    Raises:
        ValueError: if there is no such name, or its version was not raised.
    """
    _known(name, now.versions, "method or stage kind")
    if name not in raised(pins, now) or lowered(pins, now, name):
        raise ValueError(
            f"{name} has version {now.versions[name]}, pinned {pins.versions[name]}: raise it first"
        )
    pins.versions[name] = now.versions[name]
    pins.ahead[name] = {module: now.digests[module] for module in now.closures[name]}
    _settle(pins, now)


def pin_same(pins: Pins, now: Source, module: str, why: str) -> None:
    """Pin one module for all that compute with it, and keep the reason until its next change.

    Raises:
        ValueError: if there is no such module, it has not changed, there is no reason, or a raised
            version that changes with it is not pinned yet.
    """
    _known(module, now.digests, "module")
    _said(module, why)
    if module not in stale(pins, now):
        raise ValueError(f"{module} is pinned as it is, for all whose version stands")
    for name in raised(pins, now):
        if module in now.closures[name]:
            raise ValueError(f"{module}: first `python -m tests.versions {name} --raised`")
    pins.modules[module] = now.digests[module]
    pins.reasons[module] = why
    for held in pins.ahead.values():
        held.pop(module, None)
    _settle(pins, now)


def _settle(pins: Pins, now: Source) -> None:
    """Move what all users of a module agree on into `modules`; forget what is no more."""
    for module, digest in now.digests.items():
        users = [name for name, modules in now.closures.items() if module in modules]
        if pins.modules.get(module) != digest and all(
            pins.digest(name, module) == digest for name in users
        ):
            pins.modules[module] = digest
            pins.reasons.pop(module, None)
    for held in pins.ahead.values():
        for module in [m for m, digest in held.items() if pins.modules.get(m) == digest]:
            del held[module]
    pins.ahead = {n: held for n, held in pins.ahead.items() if held and n in now.versions}
    pins.modules = {m: digest for m, digest in pins.modules.items() if m in now.digests}
    pins.reasons = {m: why for m, why in pins.reasons.items() if m in now.digests}
    pins.versions = {n: version for n, version in pins.versions.items() if n in now.versions}


def _said(name: str, why: str) -> None:
    if not why.strip():
        raise ValueError(f"{name}: say why, got no reason")


def _known(name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise ValueError(f"no {what} {name!r}; did you mean {near[0] if near else 'another'!r}?")


# ------------------------------------------------------------------ the file and the command


def read(file: Path = PINS) -> Pins:
    """Return the pins of a file."""
    return Pins(**json.loads(file.read_text()))


def lines(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return JSON with a line for each entry of each section, so that diffs are short."""
    parts = []
    for section, entries in sections.items():
        inside = [f"  {json.dumps(n)}: {json.dumps(v)}" for n, v in sorted(entries.items())]
        body = "{\n" + ",\n".join(inside) + "\n }" if inside else "{}"
        parts.append(f" {json.dumps(section)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(
    arguments: Sequence[str],
    file: Path = PINS,
    found: Path = results.FILE,
    now: Source | None = None,
) -> int:
    """Run the command; return its exit status: 1 if something is not pinned, 2 if refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.versions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="methods or kinds; modules for --same-results")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--raised", action="store_true", help="their version was raised")
    given.add_argument("--same-results", metavar="WHY", help="why results of all users stand")
    given.add_argument("--numbers", metavar="WHY", help="why results differ under this version")
    args = parser.parse_args(arguments)
    why = args.same_results if args.same_results is not None else args.numbers
    if bool(args.names) != (args.raised or why is not None):
        parser.error("name what is pinned, and one of the options; or give neither")
    pins, now = read(file), now or current()
    try:
        for name in args.names:
            if args.raised:
                pin_raised(pins, now, name)
            elif args.numbers is None:
                pin_same(pins, now, name, why)
            else:
                _known(name, results.names(), "method with pinned results")
                _said(name, why)
            if args.same_results is None and name in results.names():
                results.pin(name, now.versions[name], why or "", found)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.names:
        file.write_text(lines(asdict(pins)))
        return 0
    left = faults(pins, now)
    sys.stdout.write("".join(f"{line}\n" for line in left or ["all sources are pinned"]))
    return bool(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
