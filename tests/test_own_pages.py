"""The pages on a model, an attack and a defense of one's own: their files, as written, run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("your-model", "your-attack", "your-defense")
BLOCK = re.compile(r"```\w+\n# (\S+)\n(.*?)```", re.DOTALL)
RUN = """
import sys, raysweep
for file in sys.argv[1:]:
    rows = raysweep.launch(file, "store", inline=True).rows
    assert rows["status"].eq("ok").all(), rows[["defense", "status", "error"]].to_string()
    print(file, len(rows))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files of the pages, its package installed as pip would."""
    folder = tmp_path_factory.mktemp("own")
    for page in PAGES:
        for name, text in BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text()):
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            assert not file.exists(), f"{name} is shown twice"
            file.write_text(text)
    (folder / "my_package" / "__init__.py").write_text("")
    told = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    facts = folder / f"my_package-{told['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n"
    )
    (facts / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "\n".join(f"{name} = {module}" for name, module in points.items())
            for group, points in told["entry-points"].items()
        )
    )
    return folder


def run(folder: Path, *arguments: str) -> str:
    paths = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_sweep_of_the_pages_runs(project: Path) -> None:
    files = sorted(file.name for file in project.glob("my_*.yaml"))
    told = run(project, "-c", RUN, *files)
    assert told.splitlines() == ["my_attack.yaml 4", "my_defense.yaml 4", "my_model.yaml 6"]


def test_the_inherited_tests_of_the_pages_pass(project: Path) -> None:
    tests = sorted(file.name for file in project.glob("test_*.py"))
    assert tests == ["test_corner.py", "test_feature_length.py"]
    told = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert re.search(r"^3\d passed", told, re.MULTILINE), told
