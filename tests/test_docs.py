"""The documentation: its sweep files are planned, its commands parsed, its short examples run."""

from __future__ import annotations

import ast
import html
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import raysweep
from raysweep import methods
from raysweep.cli.app import app
from raysweep.run.preview import preview
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep
from raysweep.sweep.tuning import Tune
from tests.pages import PAGES, ROOT, Block, blocks, commands, parsed

BLOCKS = blocks()
# Sweep files of what their page makes: data, a model, an attack, a defense.
MADE = [one for one in BLOCKS if one.title and re.search(r"path: |\b(my|own)_|_file\b", one.text)
        and one.is_sweep]  # fmt: skip
SWEEPS = [one for one in BLOCKS if one.language == "yaml" and one not in MADE]
PYTHON = [one for one in BLOCKS if one.language == "python"]
RUN = sorted({one.page for one in BLOCKS if one.run})
FIRST = ("docs/start.md",)  # of those that are run, without WHOLE=1
# What every launch publishes by default is published by the first page's alone.
PUBLISHED, UNPUBLISHED = "docs/start.md", ("--set", "track.wandb=disabled")
# A page's own sweep, with less of the same.
SMALLER = {"docs/start.md": ("--set", "seeds=1")}
# A page's address of something that a browser would fetch, not of a link that a reader follows.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?https?:|<link\b[^>]*\bhref=\"?https?:"
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def name(one: Block) -> str:
    return f"{one.page}:{one.title or one.text.splitlines()[0]}"


@pytest.fixture(scope="module")
def group() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize(("page", "line"), sorted({*commands()}))
def test_every_command_line_is_one(group: Any, page: str, line: str) -> None:
    del page
    parsed(group, line)


@pytest.mark.parametrize("block", SWEEPS, ids=name)
def test_every_sweep_file_is_planned(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(block.as_sweep())
    plan = preview(load_sweep(file), Store(str(tmp_path / "store")))
    assert plan.trials and plan.kinds


def test_sweep_files_of_what_a_page_makes_are_run_with_it() -> None:
    run = " ".join(line for one in BLOCKS if one.run for line in one.lines)
    assert MADE and [one.title for one in MADE if f"launch {one.title}" not in run] == []


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in an empty folder, as a reader does who follows one page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable in ("RAYSWEEP_STORAGE", "RAYSWEEP_STUDIES"):
        monkeypatch.delenv(variable, raising=False)
    forget()
    yield tmp_path
    written = {file.stem for file in tmp_path.rglob("*.py")}
    for module in [one for one in sys.modules if one.split(".")[0] in written | {"my_models"}]:
        del sys.modules[module]
    for module in [one for one in sys.modules if one.startswith(("my_attacks", "my_defenses"))]:
        del sys.modules[module]
    forget()


def forget() -> None:
    methods.available.cache_clear()
    methods.load.cache_clear()


def install(folder: Path) -> None:
    """Do what `pip install .` does for a package of methods: make its entry points known."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    facts = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (facts / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{point} = {module}\n" for point, module in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    importlib.invalidate_caches()
    forget()


def follow(line: str, folder: Path, *more: str) -> None:
    """Do what a line of a page says; sweeps are run with `more` options."""
    match shlex.split(line):
        case ["raysweep", "launch" | "tune" as verb, *words]:
            app([verb, *words, *more], standalone_mode=False)
        case ["raysweep", *words]:
            app(words, standalone_mode=False)
        case ["python", script]:
            exec(compile((folder / script).read_text(), script, "exec"), {"__name__": "__main__"})
        case ["pip", "install", "."]:
            install(folder)
        case ["export", "PYTHONPATH=$PWD"]:
            assert str(folder) in sys.path
        case other:
            raise AssertionError(f"a page runs what its test does not know: {other}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page if page in FIRST else pytest.param(page, marks=pytest.mark.further) for page in RUN],
)
def test_a_page_does_what_it_says(
    page: str, reader: Path, group: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [one for one in BLOCKS if one.page == page]
    for one in mine:
        if one.title:
            (reader / one.title).parent.mkdir(exist_ok=True, parents=True)
            (reader / one.title).write_text(one.text)
    for line in (line for one in mine if one.run for line in one.lines):
        follow(line, reader, *SMALLER.get(page, ()), *(() if page == PUBLISHED else UNPUBLISHED))
    capsys.readouterr()
    whole = [one for one in mine if one.is_sweep and one.title]
    launched = [load_sweep(reader / one.title) for one in whole]
    for sweep in launched:
        if sweep.tune is None:
            rows = raysweep.load(sweep.name)
            assert len(rows) and set(rows["status"]) == {"ok"}
            assert rows["asr"].max() > 0.5, "the page's attack works"
            assert rows["ca"].min() > 0.8, "the page's models have learned"
        else:
            assert (reader / f"raysweep-store/sweeps/{sweep.name}/tuned.json").exists()
        published = [*(reader / f"raysweep-store/sweeps/{sweep.name}").glob("wandb/*")]
        assert bool(published) == (page == PUBLISHED)


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_names_what_is_there(block: Block) -> None:
    """Every name that an example takes from raysweep exists; the files are run with their pages."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raysweep"):
            module = __import__(str(node.module), fromlist=["_"])
            assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "raysweep":
            assert hasattr(raysweep, node.attr), ast.unparse(node)


@pytest.mark.further
@pytest.mark.slow
def test_the_sweep_in_python_is_run(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (one for one in BLOCKS if one.title == "first_sweep.py")
    # What it publishes by default is published by the first page's sweep.
    alone = block.text.replace("seeds=1,", "seeds=1, track={'wandb': 'disabled'},")
    assert alone != block.text
    (reader / block.title).write_text(alone)
    follow("python first_sweep.py", reader)
    follow("raysweep plan first_sweep.py", reader)
    assert "Does activation clustering find a patch?" in capsys.readouterr().out
    assert (reader / "from_python.html").stat().st_size > 10_000


def test_tables_of_fields_are_complete() -> None:
    sweep_files = (ROOT / "docs/sweep-files.md").read_text()
    for field in Sweep.model_fields.keys() - {"race"}:  # it is written as `seeds`
        assert re.search(rf"`{field}`|`{field.removesuffix('s')}`", sweep_files), field
    tuning = (ROOT / "docs/tuning.md").read_text()
    assert [field for field in Tune.model_fields if f"| `{field}` |" not in tuning] == []


def test_methods_are_counted() -> None:
    counts = {role: len(methods.available(role)) for role in methods.ROLES}
    for file in ("README.md", "docs/comparison.md"):
        text = (ROOT / file).read_text().replace("**", "")
        assert re.search(rf"\b{counts['attacks']}( attacks and|,) {counts['defenses']} ", text), (
            file
        )


def test_links_of_the_readme_lead_somewhere() -> None:
    """Links between pages are checked where the site is built."""
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in LINK.findall(file.read_text()):
            assert (ROOT / target).exists(), f"{file.name}: {target}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "docs/images/report.png").stat().st_size < 300_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"`make setup` installs mkdocs-material\n{done.stderr}"
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.further
def test_the_site_needs_no_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        assert FETCHED.search(page.read_text()) is None, page.name
    for style in site.rglob("*.css"):
        assert re.search(r"url\(\"?https?:|@import", style.read_text()) is None, style.name


def test_pages_say_what_the_code_says(site: Path, group: Any) -> None:
    shown = html.unescape((site / "methods.html").read_text())
    for role in methods.ROLES:
        for method in methods.available(role):
            assert f"<code>{method}</code>" in shown, method
    listed = html.unescape((site / "commands.html").read_text())
    for command, known in group.commands.items():
        assert f"raysweep {command}" in listed
        for option in (one for one in known.params if one.param_type_name == "option"):
            assert option.opts[0] in listed
    assert "<!-- " not in re.sub(r"<!-- (no)?index -->", "", shown + listed)


def test_one_version_and_date() -> None:
    cited = (ROOT / "CITATION.cff").read_text()
    version = re.search(r"^version: (.+)$", cited, re.MULTILINE)
    date = re.search(r"^date-released: (.+)$", cited, re.MULTILINE)
    assert version and date
    assert version[1] == raysweep.__version__
    assert f"\n## [{version[1]}] - {date[1]}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"{{{version[1]}}}" in (ROOT / "docs/citing.md").read_text()


REPORT = """
import sys
from pathlib import Path
import raysweep
from raysweep.cli.app import app
from raysweep.methods.recipe import RECIPES
assert Path(raysweep.__file__).is_relative_to(sys.argv[1]), raysweep.__file__
assert "fast" in RECIPES
app(["launch", "sweep.yaml", "--inline"], standalone_mode=False)
app(["report", "fresh", "--output", "page.html"], standalone_mode=False)
"""


@pytest.mark.further
@pytest.mark.slow
def test_a_built_wheel_renders_a_report(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "raysweep", source / "raysweep", ignore=shutil.ignore_patterns("__pycache__")
    )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index"]
    build = ["wheel", *alone, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("raysweep-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    reports = ROOT / "raysweep" / "reports"
    assets = [
        file for file in reports.rglob("*") if file.suffix in {".css", ".js", ".html", ".txt"}
    ]
    assert {"raysweep/py.typed", *(str(file.relative_to(ROOT)) for file in assets)} <= {*names}
    assert len(assets) > 10
    assert not [one for one in names if one.startswith(("tests/", "docs/"))]
    target = tmp_path / "target"
    subprocess.run([*pip, "install", *alone, "--target", str(target), str(wheel)], check=True)
    (tmp_path / "sweep.yaml").write_text(
        "{name: fresh, dataset: digits, model: linear, recipe: {epochs: 1}, attacks: [badnets],"
        " defenses: [none], track: {wandb: disabled}}"
    )
    subprocess.run(
        [sys.executable, "-c", REPORT, str(target)], check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    assert (ROOT / "raysweep/reports/page/page.css").read_text() in page
