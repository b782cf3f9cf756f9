"""CONTRIBUTING's methods, as written there, in a package of their own: found, checked and run."""

from __future__ import annotations

import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep import methods, stages
from raysweep.attacks.none import NoAttack
from raysweep.cli.app import main
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.methods import ROLES, Recipe
from raysweep.models.linear import Linear
from raysweep.plan.planner import Planner
from raysweep.results.records import load
from raysweep.stages.perform import perform
from raysweep.stages.stage import Work
from raysweep.store import Store
from raysweep.sweep.spec import Sweep
from tests.test_rules import prints, too_long, undocumented, unsafe

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```python\n# raysweep/(\w+)/(\w+)\.py\n(.*?)```", re.DOTALL)
SWEEP = """
name: contributed
question: Do the methods of CONTRIBUTING.md work as they stand there?
dataset: {digits: {size: 800}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 8, batch_size: 32, learning_rate: 0.1}
attacks:
  - bright_row: {rate: 0.1, rows: 2}
defenses:
  - none
  - feature_norm: {fraction: 0.1}
  - feature_norm: {fraction: 0.2}
track: {wandb: disabled}
"""


def examples() -> dict[tuple[str, str], str]:
    """Return the text of every whole file that is shown, by its folder and name."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return {(folder, name): code for folder, name, code in BLOCK.findall(text)}


def blocks() -> dict[tuple[str, str], str]:
    """Return the examples that are methods, by role and name."""
    return {where: code for where, code in examples().items() if where[0] in ROLES}


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


@pytest.fixture
def here(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process, with the package installed and in its folder."""
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.chdir(package)
    forget = (methods.available.cache_clear, methods.load.cache_clear)
    for clear in forget:
        clear()
    yield
    for clear in forget:
        clear()
    for name in [name for name in sys.modules if name.startswith("extra_methods")]:
        del sys.modules[name]


def run(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command line in this process; return what it said."""
    patch.setattr(sys, "argv", ["raysweep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert not ended.value.code, said.out + said.err
    return said.out


def test_one_whole_attack_defense_and_stage_kind_are_shown() -> None:
    assert sorted(folder for folder, _ in examples()) == ["attacks", "defenses", "stages"]


@pytest.mark.parametrize("where", examples(), ids=lambda where: where[1])
def test_the_examples_keep_the_house_rules(where: tuple[str, str]) -> None:
    code = examples()[where]
    assert unsafe(code) == [] and too_long(code) == [] and not prints(code)
    assert undocumented(code) == []
    assert where[0] not in ROLES or "Where we differ" in code
    for line in code.splitlines():
        assert len(line) <= 100
        assert not re.match(r"(import|from) (torch|sklearn|scipy)", line)


@pytest.mark.usefixtures("here")
def test_entry_points_make_them_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = run(monkeypatch, capsys, "list")
    assert all(name in listed for _, name in blocks())


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_they_run_in_a_sweep_and_do_what_they_say(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "sweep.yaml").write_text(SWEEP)
    launch = ("launch", "sweep.yaml", "--inline", "--storage", str(package / "store"))
    run(monkeypatch, capsys, *launch)
    rows = load("contributed", str(package / "store")).to_dict("records")
    assert [row["status"] for row in rows] == ["ok"] * 3
    undefended, mild, strong = rows
    assert undefended["asr"] > 0.9 and undefended["ca"] > 0.8  # a bright bar is easily learned
    # One set of scores, two decisions; `fraction` of 800 images each.
    assert mild["auroc"] == strong["auroc"]
    assert mild["removed"] == pytest.approx(80, abs=2)
    assert strong["removed"] == pytest.approx(160, abs=2)
    assert strong["tpr"] >= mild["tpr"]
    assert "0 stages ran" in run(monkeypatch, capsys, *launch)


def test_the_stage_kind_is_planned_and_done_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = examples()["stages", "confidence"]
    (tmp_path / "confidence.py").write_text(code)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    monkeypatch.setattr(Work, "_forms", defaultdict(list, Work._forms))
    monkeypatch.setitem(sys.modules, "raysweep.stages.confidence", None)  # forgotten at the end
    del sys.modules["raysweep.stages.confidence"]
    kind = importlib.import_module("raysweep.stages.confidence").Confidence
    sweep = Sweep(
        name="kinds", dataset=Digits(size=200), model=Linear(), attacks=[NoAttack()],
        defenses=[NoDefense()], seeds=1, recipe=Recipe(epochs=1, precision="float32"),
    )  # fmt: skip
    planner = Planner(sweep)
    (trial,) = planner.trials
    setting = planner.setting(trial)
    added = kind(model=trial.model, recipe=planner.resolved(trial.recipe))
    key = planner.add(added, data=setting.data, weights=setting.victim)
    assert key.startswith("confidence-") and planner.add(added, **planner.stages[key].inputs) == key
    store = Store(str(tmp_path / "store"))
    for needed in (setting.data, setting.victim, key):
        done = perform(planner.stages[needed].packed(), store, {}, 0)
        assert done.status == "done", done.error
    largest = store.arrays(key)["confidence"]
    assert (largest >= 0.1).all() and (largest <= 1).all()
    assert (store.outcome(key) or {})["mean"] == pytest.approx(largest.mean())
