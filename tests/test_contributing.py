"""CONTRIBUTING's methods, as written there, in a package of their own: found, checked and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_rules import prints, too_long, unsafe

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```python\n# raysweep/(\w+)/(\w+)\.py\n(.*?)```", re.DOTALL)
SWEEP = """
name: contributed
question: Do the methods of CONTRIBUTING.md work as they stand there?
dataset: digits
model: tiny_cnn
recipe: {epochs: 8, batch_size: 64}
attacks:
  - bright_row: {rate: 0.1, rows: 2}
defenses:
  - none
  - feature_norm: {fraction: 0.1}
  - feature_norm: {fraction: 0.2}
"""
ASK = """
import json
from raysweep.results.records import load
rows = load("contributed", "store")
print(json.dumps(rows[["defense", "status", "asr", "ca", "tpr", "fpr", "auroc", "removed"]]
                 .astype(object).where(rows.notna(), None).to_dict("records")))
"""


def blocks() -> dict[tuple[str, str], str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return {(role, name): code for role, name, code in BLOCK.findall(text)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the methods as a third party would: modules and entry points, nothing of ours."""
    folder = tmp_path_factory.mktemp("third_party")
    (folder / "extra_methods").mkdir()
    (folder / "extra_methods" / "__init__.py").write_text("")
    facts = folder / "extra_methods-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-methods\nVersion: 1.0\n")
    points = []
    for (role, name), code in blocks().items():
        (folder / "extra_methods" / f"{name}.py").write_text(code)
        points.append(f"[raysweep.{role}]\n{name} = extra_methods.{name}\n")
    (facts / "entry_points.txt").write_text("\n".join(points))
    return folder


def run(package: Path, *arguments: str) -> str:
    paths = os.pathsep.join([str(package), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=package, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_whole_attack_and_one_whole_defense_are_shown() -> None:
    assert sorted(role for role, _ in blocks()) == ["attacks", "defenses"]


@pytest.mark.parametrize("code", blocks().values(), ids=[name for _, name in blocks()])
def test_the_examples_keep_the_house_rules(code: str) -> None:
    assert unsafe(code) == [] and too_long(code) == [] and not prints(code)
    assert "Where we differ" in code
    for line in code.splitlines():
        assert len(line) <= 100
        assert not re.match(r"(import|from) (torch|sklearn|scipy)", line)


def test_entry_points_make_them_known(package: Path) -> None:
    listed = run(package, "-m", "raysweep", "list")
    assert all(name in listed for _, name in blocks())


@pytest.mark.slow
def test_they_run_in_a_sweep_and_do_what_they_say(package: Path) -> None:
    (package / "sweep.yaml").write_text(SWEEP)
    storage = ("--storage", str(package / "store"))
    run(package, "-m", "raysweep", "launch", "sweep.yaml", "--inline", *storage)
    rows = json.loads(run(package, "-c", ASK).splitlines()[-1])
    assert [row["status"] for row in rows] == ["ok"] * 3
    undefended, mild, strong = rows
    assert undefended["asr"] > 0.9 and undefended["ca"] > 0.8  # a bright bar is easily learned
    # One set of scores, two decisions; `fraction` of 1,297 images each.
    assert mild["auroc"] == strong["auroc"]
    assert mild["removed"] == pytest.approx(130, abs=2)
    assert strong["removed"] == pytest.approx(259, abs=2)
    assert strong["tpr"] >= mild["tpr"]
    again = run(package, "-m", "raysweep", "launch", "sweep.yaml", "--inline", *storage)
    assert "0 stages ran" in again
