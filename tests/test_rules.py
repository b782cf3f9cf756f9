"""Rules that matter, as tests; each checker is also run on a planted fault."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep import methods
from tests import versions

ROOT = Path(__file__).parent.parent / "raysweep"
FILES = sorted(ROOT.rglob("*.py"))
METHOD_FILES = [f for f in FILES if f.parent.name in methods.ROLES and f.name[0] != "_"]
ONLY_IN = {"ray": {"execute.py", "feed.py", "cluster.py", "worker.py"}}
ONLY_IN |= {"wandb": {"wandb_runs.py"}}
ONLY_IN |= {"optuna": {"space.py", "study.py"}}
# A module may import those of its own layer and of layers to its right.
LAYERS = [
    {"cli"}, {"tune"}, {"launch", "screen"}, {"preview", "catalog", "exchange", "replay"},
    {"track", "report"}, {"wandb_runs"}, {"entries"},
    {"records", "schema"}, {"collect"},
    {"execute"}, {"feed"}, {"driver", "worker", "interruption"}, {"history"},
    {"ledger", "stages", "differences"}, {"knowledge"},
    {"desk", "loading"}, {"costs"}, {"schedule", "judging"},
    {"plan", "cluster"}, {"graph", "spec", "store", "sweepfile", "metrics"},
    {"artifact", "filesystem", "goals", "resources"}, {"attacks", "defenses"},
    {"ensemble"}, {"training", "room"}, {"resume", "step"}, {"streams"},
    {"models", "augmentation", "resident"}, {"datasets", "device"},
    {"context", "recipe", "methods", "value"},
    {"identity", "rng", "provenance", "counts"}, {"environment"}, {"paths"}, {"errors"},
    {"raysweep"},
]  # fmt: skip
PICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
RUNNERS |= {"yaml.unsafe_load", "yaml.full_load"}
HIDDEN = {"torch": {"load"}, "os": {"system", "popen"}, "yaml": {"load", "unsafe_load"}}
# Methods may train; records are made for reports out of the report's own material.
ALLOWED = {("defenses", "training"), ("attacks", "training"), ("records", "report")}
ALLOWED |= {("defenses", "ensemble")}


def imports(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "raysweep":
                found |= {f"raysweep.{alias.name}" for alias in node.names}
    return found


def foreign(name: str, text: str) -> list[str]:
    tops = {module.split(".")[0] for module in imports(text)}
    return [library for library, files in ONLY_IN.items() if library in tops and name not in files]


def layer(module: str) -> int:
    return next(n for n, names in enumerate(LAYERS) if module in names)


def against_the_flow(module: str, text: str) -> list[str]:
    bad = []
    for imported in imports(text):
        parts = imported.split(".")
        outside = parts[0] != "raysweep" or len(parts) < 2 or parts[1] == "__version__"
        if outside or (module, parts[1]) in ALLOWED:
            continue
        if not any(parts[1] in names for names in LAYERS):
            bad.append(f"{imported} (not in LAYERS)")
        elif layer(parts[1]) < layer(module):
            bad.append(imported)
    return bad


def unsafe(text: str) -> list[str]:
    """Return whatever could run bytes that were read, or hide an import from these tests."""
    found = [m for m in imports(text) if m.split(".")[0] in PICKLERS]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found += [f"from {'.' * node.level}{node.module or ''}"] if node.level else []
            names = {alias.name for alias in node.names}
            found += [
                f"from {node.module} import {n}" for n in names & HIDDEN.get(node.module, set())
            ]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in RUNNERS or name.rpartition(".")[2] == "read_pickle":
            found.append(name)
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(name)
        if given.get("shell") == "True" or given.get("allow_pickle") == "True":
            found.append(name)
    return found


def undocumented(text: str) -> list[str]:
    """Return public modules, classes and functions without a docstring; overloads of it too."""
    tree = ast.parse(text)
    missing = [] if ast.get_docstring(tree) else ["module"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                if not ast.get_docstring(node):
                    missing.append(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return missing


def too_long(text: str) -> list[str]:
    bad = [] if text.count("\n") <= 350 else [f"{text.count(chr(10))} lines"]
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno >= 60
        ):
            bad.append(node.name)
    return bad


def prints(text: str) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        for node in ast.walk(ast.parse(text))
    )


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_house_rules(file: Path) -> None:
    text = file.read_text()
    parts = file.relative_to(ROOT).with_suffix("").parts
    module = "raysweep" if parts == ("__init__",) else parts[0]
    assert foreign(file.name, text) == []
    assert unsafe(text) == []
    assert undocumented(text) == []
    assert too_long(text) == []
    assert file.name == "cli.py" or not prints(text)
    if module != "raysweep":
        assert against_the_flow(module, text) == []


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_method_files_open_with_idea_citation_and_differences(file: Path) -> None:
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert "Where we differ" in doc
    control = file.stem in ("none", "matched_filter", "perfect_filter", "random_filter")
    layout = file.stem in ("parquet", "imagefolder", "npz")
    assert control or layout or re.search(r"\b(19|20)\d\d\b", doc), "no citation with a year"


def test_checkers_see_planted_faults() -> None:
    assert foreign("plan.py", "import ray") == ["ray"]
    assert foreign("plan.py", "from wandb import init") == ["wandb"]
    assert against_the_flow("plan", "from raysweep.execute import run_inline")
    assert against_the_flow("store", "from raysweep import cli")
    assert unsafe("import pickle") and unsafe("torch.load(f)") and unsafe("eval('1')")
    assert not unsafe("torch.load(f, weights_only=True)")
    for fault in (
        "torch.load(f, weights_only=False)", "from torch import load", "from . import execute",
        "from ..x import y", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)",
        "subprocess.run(c, shell=True)", "__import__('pickle')", "import joblib", "yaml.load(f)",
    ):  # fmt: skip
        assert unsafe(fault), fault
    assert against_the_flow("plan", "import raysweep.something_new")
    assert undocumented("x = 1") == ["module"]
    whole = '"""M."""\nclass C:\n    """C."""\n    def f(self):\n        %s\n'
    assert undocumented(whole % "pass") == ["C.f"] and not undocumented(whole % "'d'")
    assert too_long("x = 1\n" * 400)
    assert too_long("def f():\n" + "    x = 1\n" * 60) == ["f"]
    assert prints("print(1)")


def test_planning_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import raysweep.plan, raysweep.loading, raysweep.schema, raysweep.store; "
        "from raysweep import methods; "
        "[methods.load(r, n) for r in methods.ROLES for n in methods.available(r)]; "
        "print(sorted({'torch', 'ray', 'pandas', 'sklearn', 'scipy', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_versions_are_pinned_to_sources() -> None:
    pinned = json.loads(versions.PINS.read_text())
    names = versions.stale(pinned, versions.current())
    assert names == [], (
        f"the source of {names} changed: raise VERSION (or STAGE_VERSIONS) if results change, then "
        f"run `python -m tests.versions`"
    )


def test_a_changed_source_under_an_old_version_is_seen() -> None:
    text = (ROOT / "attacks" / "badnets.py").read_text()
    before = {"x": {"version": 1, "digest": versions.source_digest(text)}}
    faulty = text.replace("odd = (row", "odd = 1 - (row")
    assert faulty != text
    after = {"x": {"version": 1, "digest": versions.source_digest(faulty)}}
    assert versions.stale(before, after) == ["x"]
    assert versions.stale(before, {"x": {**after["x"], "version": 2}}) == []
    commented = text + "# a comment changes nothing\n"
    assert versions.source_digest(commented) == versions.source_digest(text)
