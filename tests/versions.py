"""Pins every method's VERSION to a digest of its source: `python -m tests.versions` refreshes."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

from raysweep import methods
from raysweep.plan import planner as planner  # every stage kind
from raysweep.stages.stage import Work

ROOT = Path(__file__).parent.parent / "raysweep"
PINS = Path(__file__).with_name("versions.json")
# What stages of every method compute with; base classes among them.
STAGE_VERSIONS = {kind: forms[0].VERSION for kind, forms in Work._forms.items()}
SHARED = ("stages/perform", "stages/knowledge", "stages/inputs", "metrics/judgment")
SHARED += ("metrics/rates", "metrics/ranking", "metrics/intervals", "rng", "methods/context")
SHARED += tuple(
    f"training/{name}"
    for name in (
        "loop", "inference", "network", "optimizer", "streams", "augmentation", "resume", "step",
        "resident", "device", "ensemble",
    )
)  # fmt: skip
SHARED += methods.ROLES


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


def current() -> dict[str, dict[str, Any]]:
    """Return version and digest of every method file, of what they share, and of the stages."""
    found: dict[str, dict[str, Any]] = {}
    for role in methods.ROLES:
        for name in methods.available(role):
            text = (ROOT / role / f"{name}.py").read_text()
            method = methods.load(role, name)
            entry = {"version": method.VERSION, "digest": source_digest(text)}
            if (of_run := getattr(method, "RUN_VERSION", 1)) > 1:
                entry["version"] = [method.VERSION, of_run]
            found[f"{role}/{name}"] = entry
        for file in sorted((ROOT / role).glob("_[!_]*.py")):
            digest = source_digest(file.read_text())
            found[f"{role}/{file.stem}"] = {"version": dict(STAGE_VERSIONS), "digest": digest}
    for module in SHARED:
        file = ROOT / f"{module}.py"
        text = (file if file.is_file() else ROOT / module / "__init__.py").read_text()
        found[module] = {"version": dict(STAGE_VERSIONS), "digest": source_digest(text)}
    return found


def stale(pinned: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names whose source changed under an unchanged version, or that are not pinned."""
    return [
        name
        for name, entry in now.items()
        if name not in pinned
        or (
            entry["digest"] != pinned[name]["digest"]
            and entry["version"] == pinned[name]["version"]
        )
    ]


if __name__ == "__main__":
    PINS.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
