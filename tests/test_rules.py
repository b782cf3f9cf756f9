"""Rules that matter, as tests; each checker is also run on a planted fault."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep import methods

ROOT = Path(__file__).parent.parent / "raysweep"
FILES = sorted(ROOT.rglob("*.py"))
METHOD_FILES = [f for f in FILES if f.parent.name in methods.ROLES and f.name[0] != "_"]
ONLY_IN = {
    "ray": "run.cluster",
    "optuna": "tuning",
    "wandb": "results",
    "wandb_workspaces": "results",
}
# A package imports itself and packages of lower floors.
FLOORS = [
    {"testing"}, {"cli"}, {"jobs"}, {"tuning", "exchange"}, {"run", "reports"}, {"results"},
    {"plan"},
    {"stages", "sweep"}, {"defenses", "attacks"}, {"training"}, {"models"}, {"datasets"},
    {"methods", "metrics", "store"},
    {"provenance", "identity"}, {"rng", "arrays", "counts", "environment"}, {"paths"}, {"errors"},
    {"raysweep"},
]  # fmt: skip
ROOT_FILES = {"__init__", "__main__"} | FLOORS[-5] | FLOORS[-4] | FLOORS[-3] | FLOORS[-2]
PICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
RUNNERS |= {"yaml.unsafe_load", "yaml.full_load"}
HIDDEN = {"torch": {"load"}, "os": {"system", "popen"}, "yaml": {"load", "unsafe_load"}}


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


def package_of(file: Path) -> str:
    """Return the package that a file lies in, or its own name where it lies in the root."""
    inside = file.relative_to(ROOT).with_suffix("").parts
    return "raysweep" if inside == ("__init__",) else inside[0]


def foreign(folder: str, text: str) -> list[str]:
    """Return the libraries that a file of a folder ("run.cluster") imports and may not."""
    tops = {module.split(".")[0] for module in imports(text)}
    inside = tuple(f"{folder}."[:n] for n, letter in enumerate(f"{folder}.") if letter == ".")
    return [name for name, home in ONLY_IN.items() if name in tops and home not in inside]


def floor(package: str) -> int:
    return next((n for n, names in enumerate(FLOORS) if package in names), -1)


def against_the_flow(package: str, text: str) -> list[str]:
    """Return imports that point to the same floor or up; an unknown package is above all."""
    inside = [m.split(".") for m in imports(text) if m.split(".")[0] == "raysweep"]
    to = {
        parts[1] if len(parts) > 1 and parts[1] != "__version__" else "raysweep" for parts in inside
    }
    return sorted(name for name in to - {package} if floor(name) <= floor(package))


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


TEXTS = {"read_text": 0, "write_text": 1}  # arguments that stand before the encoding


def of_the_locale(text: str) -> list[str]:
    """Return calls that read or write text in the encoding of whoever runs them."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and "encoding" not in {one.arg for one in node.keywords}:
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            words = {one.arg for one in node.keywords if ast.unparse(one.value) == "True"}
            given = [*node.args, *(one.value for one in node.keywords if one.arg == "mode")]
            modes = [
                one.value for one in given
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
                and set(one.value) <= set("rwaxbt+")
            ]  # fmt: skip
            opens = last in ("open", "fdopen") and not any("b" in mode for mode in modes)
            # Of other libraries' open, such as Image.open, a mode tells that it gives text.
            opens = opens and bool(modes or not node.args or name == "open")
            texts = last in TEXTS and len(node.args) <= TEXTS[last]
            if opens or texts or last == "TextIOWrapper" or words & {"text", "universal_newlines"}:
                found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("p.read_text('utf-8')", "p.read_text()"),
        ("p.read_text(encoding='utf-8', errors='replace')", "p.read_text(errors='replace')"),
        ("p.write_text(t, 'utf-8')", "p.write_text(t)"), ("open(p, 'rb')", "open(p)"),
        ("p.open(encoding='utf-8')", "p.open()"), ("p.open('wb')", "p.open('w')"),
        ("Image.open(p)", "gzip.open(p, 'rt')"), ("os.open(p, os.O_RDONLY)", "p.open(mode='a')"),
        ("os.fdopen(n, 'wb')", "os.fdopen(n, 'w')"),
        ("run(a, encoding='utf-8')", "run(a, text=True)"),
    ],
)  # fmt: skip
def test_text_of_the_locale_is_noticed(good: str, bad: str) -> None:
    assert of_the_locale(bad) and not of_the_locale(good)


def prints(text: str) -> bool:
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        for node in ast.walk(ast.parse(text))
    )


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_house_rules(file: Path) -> None:
    text = file.read_text()
    package = package_of(file)
    folder = ".".join(file.relative_to(ROOT).parent.parts)
    assert foreign(folder, text) == []
    assert unsafe(text) == []
    assert undocumented(text) == []
    assert of_the_locale(text) == []
    assert too_long(text) == []
    assert package == "cli" or not prints(text)
    if file.parent != ROOT or package not in ("raysweep", "__main__"):
        assert against_the_flow(package, text) == []


def test_the_root_holds_foundations_alone() -> None:
    assert {file.stem for file in ROOT.glob("*.py")} == ROOT_FILES
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} | ROOT_FILES == (
        set().union(*FLOORS, ROOT_FILES) - {"raysweep"}
    )


@pytest.mark.parametrize("file", METHOD_FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_method_files_open_with_idea_citation_and_differences(file: Path) -> None:
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert "Where we differ" in doc
    control = file.stem in ("none", "matched_filter", "perfect_filter", "random_filter")
    layout = file.stem in ("parquet", "imagefolder", "npz")
    assert control or layout or re.search(r"\b(19|20)\d\d\b", doc), "no citation with a year"


def test_checkers_see_planted_faults() -> None:
    assert foreign("plan", "import ray") == foreign("run", "import ray") == ["ray"]
    assert foreign("run.cluster", "import ray") == foreign("results.entries", "import wandb") == []
    assert foreign("plan", "from wandb import init") == ["wandb"]
    assert against_the_flow("plan", "from raysweep.run.inline import run_inline")
    assert against_the_flow("store", "from raysweep import cli")
    assert against_the_flow("store", "from raysweep.metrics import rates")
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
        "import sys; import raysweep.plan.planner, raysweep.sweep.loading, raysweep.sweep.schema; "
        "import raysweep.store; "
        "from raysweep import methods; "
        "[methods.load(r, n) for r in methods.ROLES for n in methods.available(r)]; "
        "print(sorted({'torch', 'ray', 'pandas', 'sklearn', 'scipy', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
