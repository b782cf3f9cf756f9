"""What every stage kind keeps to, found by scanning; and what artifacts hold, there and back."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.attacks.badnets import BadNets
from raysweep.datasets import ImageSet, Shape
from raysweep.datasets.digits import Digits
from raysweep.defenses import Decision
from raysweep.defenses.none import NoDefense
from raysweep.errors import StageError
from raysweep.identity import kind_of, stage_key
from raysweep.methods import Context, Recipe, by_content
from raysweep.models.linear import Linear
from raysweep.plan.planner import Planner
from raysweep.plan.route import remaining
from raysweep.stages import content, knowledge
from raysweep.stages.features import Embed
from raysweep.stages.inputs import Inputs
from raysweep.stages.knowledge import defense_inputs
from raysweep.stages.perform import perform
from raysweep.stages.stage import Packed, Stage, Work, in_order_of_work
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse
from raysweep.testing import toy
from tests.contracts.test_defenses import NAMES, found, make

FOLDER = Path(content.__file__).parent
SWEEP = """
name: kinds
dataset: {digits: {size: 300}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 2, precision: float32}
attacks:
  - badnets: {rate: [0, 0.1]}
  - adaptive_blend: {rate: 0.05, cover_rate: 0.05}
  - label_consistent: {rate: 0.05}
  - dynamic: {rate: 0.1}
  - pgd
defenses:
  - none
  - spectral_signatures
  - random_filter
  - strip
  - neural_cleanse
  - datamodels: {models: 60, first: 20, per_shard: 20, until: 0.5, base: linear, epochs: 1}
seeds: 2
"""
# The form of every parameter, letter for letter: what is hashed into keys of stored artifacts.
FORMS = {
    ("prepare", "dataset source"), ("prepare", "attack model recipe seed"),
    ("poison", "attack cover poison seed"),
    ("train", "kept model recipe seed"),
    ("features", "layer model recipe set"), ("features", "attack model recipe seed set"),
    ("shard", "defense model part recipe seed"),
    ("defend", "defense model part recipe seed"),
    ("defend", "defense model part recipe run_version seed"),
    ("defend", "attack defense model part recipe seed"),
    ("defend", "defense model part produced recipe seed"),
    ("decide", "defense"), ("evaluate", "attack rate"), ("visibility", "attack seed"),
}  # fmt: skip


# The roles of every kind's inputs, beside `poison`, which is there at rates above 0.
ROLES = {
    ("decide", "data defend"),
    ("decide", "data defend reference"),
    ("defend", "artifact data weights"),
    ("defend", "data"),
    ("defend", "data features"),
    ("defend", "data found weights"),
    ("defend", "data shard"),
    ("defend", "data shard weights"),
    ("defend", "data weights"),
    ("evaluate", "data decide defend tested"),
    ("evaluate", "data tested"),
    ("features", "artifact data weights"),
    ("features", "data weights"),
    ("poison", "artifact data"),
    ("poison", "data"),
    ("prepare", ""),
    ("prepare", "data surrogate"),
    ("prepare", "data victim"),
    ("shard", "data"),
    ("shard", "data weights"),
    ("train", "data"),
    ("visibility", "artifact data"),
    ("visibility", "data"),
}
# A kind whose version is raised gets a new key here.
KEYS = {
    "prepare": "prepare-04627290492a406c00be38c70cf94953",
    "poison": "poison-8a194137a4d6803c5797b6fbe36061aa",
    "train": "train-26be3f0dae3e05007d012b021f524ec3",
    "features": "features-4bec9ef88e9e46c341347be42cab117b",
    "shard": "shard-d328d32581d0f9e55e323081fe370560",
    "defend": "defend-960b446f566f8daaa32455007a9fd5ec",
    "decide": "decide-79c24b177b7553baab39c197b3d66f42",
    "evaluate": "evaluate-842394b4b543efed7c54ba66841fdf90",
    "visibility": "visibility-4753ccaba7ce0f9b126be6b831d09c7e",
}


def kinds() -> Iterator[str]:
    """Yield the names of all files of stage kinds: those that set `KIND`."""
    for file in sorted(FOLDER.glob("*.py")):
        assigned = {
            name.id
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Assign)
            for target in node.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        }
        if "KIND" in assigned:
            yield file.stem


@pytest.fixture(scope="module")
def planner() -> Planner:
    """A plan with stages of every kind, grown by made-up outcomes."""
    made = Planner(from_text(parse(Path("kinds.yaml"), SWEEP)))
    outcomes: dict[str, Any] = {}
    for trial in made.trials:
        route = made.route(trial, outcomes)
        while route.waiting is not None:
            outcomes[route.waiting] = {"enough": False, "produced": route.waiting[-8:]}
            route = made.route(trial, outcomes)
        made.visibility(trial)
    return made


@pytest.mark.parametrize("kind", list(kinds()))
def test_a_kind_is_named_by_its_file_and_says_all_of_itself(kind: str, planner: Planner) -> None:
    forms = Work._forms[kind]
    assert forms and {form.KIND for form in forms} == {kind}
    assert {form.__module__ for form in forms} == {f"raysweep.stages.{kind}"}
    assert len({(form.VERSION, form.ORDER) for form in forms}) == 1, "one version for one kind"
    for form in forms:
        assert {entry.name for entry in fields(form)}.isdisjoint(form.FIXED)  # type: ignore[arg-type]
    assert any(stage.kind == kind for stage in planner.stages.values())


def test_kinds_stand_in_the_order_of_work(planner: Planner) -> None:
    order = in_order_of_work(planner.stages.values())
    assert order == (
        "prepare", "poison", "visibility", "train", "features", "shard", "defend", "decide",
        "evaluate",
    )  # fmt: skip
    assert set(order) == set(kinds())


def test_a_decision_goes_before_the_training_that_it_may_add(planner: Planner) -> None:
    stages = planner.stages
    assert {stage.kind for stage in stages.values() if stage.work.GROWS} == {"decide"}
    assert {stage.kind for stage in stages.values() if stage.work.GROWN} == {"train"}
    seconds = {key: 10.0 if stage.work.GROWN else 0.1 for key, stage in stages.items()}
    ranks: dict[str, float] = {}
    remaining(seconds, stages, {}, ranks, grown=10.0)
    decisions = [ranks[key] for key in stages if kind_of(key) == "decide"]
    assert min(decisions) == 10.1, "its own seconds, and those of the training"


def test_parameters_have_the_forms_that_stored_keys_were_made_of(planner: Planner) -> None:
    seen = {(s.kind, " ".join(sorted(s.params))) for s in planner.stages.values()}
    assert seen == FORMS


def test_inputs_have_the_roles_that_stored_keys_were_made_of(planner: Planner) -> None:
    seen = {
        (
            stage.kind,
            " ".join(sorted({role.partition(" ")[0] for role in stage.inputs} - {"poison"})),
        )
        for stage in planner.stages.values()
    }
    assert seen == ROLES


def test_keys_of_given_parameters_and_inputs_never_change() -> None:
    """A key that changed would compute anew, or orphan, all that users have stored."""
    recipe = Recipe(epochs=1, precision="float32")
    model, attack, strip = {"name": "linear"}, {"name": "badnets", "target": 0}, {"name": "strip"}
    params = {
        "prepare": {"dataset": {"name": "digits", "size": 9}, "source": "0" * 32},
        "poison": {"attack": attack, "poison": 3, "cover": 1, "seed": 0},
        "train": {"model": model, "recipe": {"epochs": recipe.epochs}, "seed": 0, "kept": "all"},
        "features": {"set": "train", "layer": "head", "model": model, "recipe": {}},
        "shard": {"defense": strip, "model": model, "recipe": {}, "seed": 0, "part": "0"},
        "defend": {"defense": strip, "model": model, "recipe": {}, "seed": 0, "part": "run"},
        "decide": {"defense": strip},
        "evaluate": {"attack": attack, "rate": 0.05},
        "visibility": {"attack": attack, "seed": 0},
    }
    inputs = {"data": "prepare-0"}
    keys = {
        kind: stage_key(kind, Work._forms[kind][0].VERSION, by_content(given), inputs)
        for kind, given in params.items()
    }
    assert keys == KEYS


def test_a_worker_restores_the_work_that_was_planned(planner: Planner) -> None:
    for stage in planner.stages.values():
        sent = json.loads(json.dumps(asdict(stage.packed())))
        work = Packed(**sent).unpacked()
        assert type(work) is type(stage.work)
        assert work.params() == stage.params
        again = Stage.of(work, stage.inputs, stage.reads)
        assert (again.key, again.resource, again.method) == (
            stage.key,
            stage.resource,
            stage.method,
        )
        assert work.threads == stage.work.threads
        planned = stage.work.network
        assert (work.network and work.network.label) == (planned and planned.label)


def test_only_what_is_hashed_reaches_the_worker(planner: Planner) -> None:
    for stage in planner.stages.values():
        attack = getattr(stage.packed().unpacked(), "attack", None)
        if attack is None:
            continue
        with pytest.raises(StageError, match=r"counts\.poison"):
            _ = attack.rate


def test_parameters_of_no_class_are_refused() -> None:
    with pytest.raises(StageError, match=r"no work of kind train has the parameters epochs"):
        Packed(key="train-0", params={"epochs": 1}, inputs={}, reads={}).unpacked()


def test_keys_name_the_kind_of_their_file(planner: Planner) -> None:
    assert {kind_of(key) for key in planner.stages} == set(kinds())


# Contents: unpacked(packed(x)) == x


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, arrays and tensors by their elements."""
    if isinstance(one, np.ndarray | torch.Tensor):
        return (
            np.array_equal(np.asarray(one), np.asarray(other), equal_nan=one.dtype.kind == "f")
            if isinstance(one, np.ndarray)
            else torch.equal(one, other)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other or (one != one and other != other))


@pytest.mark.parametrize("name", NAMES)
def test_findings_of_every_defense_come_back(name: str) -> None:
    findings = found(name)
    scores: dict[str, Any] = {}
    if findings.score_inputs is not None:
        images = toy.toy().test.images[:20].float() / 255
        scores = {part: np.float32(findings.score_inputs(images, np.arange(20)))
                  for part in content.SCORED}  # fmt: skip
    stored = content.StoredFindings(findings=findings, input_scores=scores)
    product = stored.packed()
    outcome = json.loads(json.dumps(product.outcome))
    again = content.StoredFindings.unpacked(product.arrays, outcome)
    for entry in fields(findings):
        if entry.name in ("score_inputs", "calibration"):
            continue  # a scorer is not stored: its scores are
        one, other = getattr(findings, entry.name), getattr(again.findings, entry.name)
        if entry.name in ("train_scores", "trigger", "losses") and one is not None:
            one = np.asarray(one, np.float32)
        elif entry.name == "spaces":
            one = {space: np.asarray(points, np.float32) for space, points in one.items()}
        elif entry.name == "curves":
            one = {n: np.stack([c.x, c.y], dtype=np.float32) for n, c in one.items()}
            other = {n: np.stack([c.x, c.y]) for n, c in other.items()}
        elif entry.name in ("statistics", "kept"):
            one = {array: np.asarray(values) for array, values in one.items()}
        assert same(one, other), entry.name
    assert same(dict(again.input_scores), scores)
    assert same(dict(again.packed().arrays), dict(product.arrays))
    assert json.loads(json.dumps(again.packed().outcome)) == outcome


@pytest.mark.parametrize("name", NAMES)
def test_decisions_of_every_defense_come_back(name: str) -> None:
    defense = make(name)
    decision = defense.decide(toy.evidence(defense, toy.toy(), found(name)))
    stored = content.Decided(decision=decision)
    product = stored.packed()
    again = content.Decided.unpacked(product.arrays, json.loads(json.dumps(product.outcome)))
    assert again.produced == stored.produced and again.removed == stored.removed
    assert same(again.flags, stored.flags) and again.classes == stored.classes
    assert same(dict(again.packed().arrays), dict(product.arrays))
    assert again.packed().outcome == product.outcome


def test_what_a_decision_produced_tells_flags_and_classes_apart() -> None:
    def produced(**given: Any) -> str:
        return content.Decided(decision=Decision(**given)).produced

    none, some = np.zeros(9, bool), np.arange(9) < 2
    assert produced() == produced(flags=none) == produced(classes=()) == "nothing"
    assert produced(threshold=1.0) == "nothing", "an input detector removes nothing"
    different = {produced(flags=some), produced(flags=~some), produced(classes=(1,)),
                 produced(flags=some, classes=(1,))}  # fmt: skip
    assert len(different) == 4
    assert produced(classes=(2, 1)) == produced(classes=(1, 2))


def test_datasets_poison_and_predictions_come_back() -> None:
    rng = np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = torch.from_numpy(rng.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8))
        return ImageSet(images=pixels, labels=rng.integers(0, 3, count))

    train = images(30)
    data = content.Data(
        train=train, clean=images(5), test=images(7), train_rows=np.arange(30),
        test_rows=np.arange(7) * 2, shape=Shape.of(train.images, 3), classes=("a", "b", "c"),
    )  # fmt: skip
    product = data.packed()
    assert same(
        content.Data.unpacked(product.arrays, json.loads(json.dumps(product.outcome))), data
    )
    poison = content.Poison(
        poison_rows=np.array([1, 4]), cover_rows=np.array([7]),
        poison_images=np.full((2, 1, 4, 4), 9, np.uint8),
        cover_images=np.full((1, 1, 4, 4), 8, np.uint8), poison_labels=np.array([2, 2]),
    )  # fmt: skip
    held = poison.packed(train.labels[[1, 4]])
    assert same(content.Poison.unpacked(held.arrays), poison)
    assert held.outcome["relabeled"] == (train.labels[[1, 4]] != 2).sum()
    given = poison.applied(train)
    assert (given.images[[1, 4]] == 9).all() and (given.images[7] == 8).all()
    assert given.labels[[1, 4]].tolist() == [2, 2] and given.labels[7] == train.labels[7]
    untouched = np.setdiff1d(np.arange(30), [1, 4, 7])
    assert torch.equal(given.images[untouched], train.images[untouched])
    assert (train.images[[1, 4]] != 9).any(), "the clean set is left as it was"
    for pictures in (None, (np.zeros((2, 1, 4, 4), np.uint8), np.ones((2, 1, 4, 4), np.uint8))):
        told = content.Predictions(
            clean=np.arange(7), triggered=np.arange(7)[::-1], pictures=pictures
        )
        again = content.Predictions.unpacked(told.packed().arrays)
        assert same(again.clean, told.clean) and same(again.triggered, told.triggered)
        assert (again.pictures is None) == (pictures is None)


# What a defense is told

CASE = Sweep.model_validate(
    {"name": "told", "dataset": Digits(size=120), "model": Linear(), "attacks": [BadNets(rate=0.1)],
     "defenses": [NoDefense()], "seeds": 1, "recipe": Recipe(epochs=1, precision="float32")}
)  # fmt: skip
ALWAYS = {"model", "shape", "recipe", "shards"}
GIVEN = {
    "training_set": {"training_set", "labels"}, "features": {"features", "labels"},
    "victim": {"victim"}, "clean_set": {"clean_set"}, "poison_rate": {"poison_rate"},
    "poison_mask": {"poison_mask"}, "cover_mask": {"cover_mask"},
    "target_class": {"target_class"}, "trigger": {"trigger"}, "test_success": {"test_success"},
}  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The inputs of a stage with everything that any defense may declare."""
    planner, store = Planner(CASE), Store(str(tmp_path_factory.mktemp("told")))
    (trial,) = planner.trials
    made = planner.setting(trial)
    embed = Embed(layer="head", model=trial.model, recipe=trial.recipe)
    keys = {"data": made.data, "poison": made.poison or "", "weights": made.victim}
    keys["features"] = planner.add(embed, **keys)
    for key in keys.values():
        done = perform(planner.stages[key].packed(), store, {}, 0)
        assert done.status == "done", done.error
    return Inputs(keys, store, Context(seed=0))


@pytest.mark.parametrize("needed", [set(), *({need} for need in GIVEN)], ids=lambda needed: str(
    next(iter(needed), "nothing")))  # fmt: skip
def test_a_defense_is_told_what_it_declares_and_nothing_else(
    setting: Inputs, needed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoDefense, "needs", lambda self: frozenset(needed))
    inputs = defense_inputs(
        setting, NoDefense(), model=Linear(), recipe=CASE.recipes[0], seed=0,
        attack=BadNets(rate=0.1),
    )  # fmt: skip
    told = ALWAYS.union(*(GIVEN[need] for need in needed))
    assert inputs._values.keys() == told
    evidence = knowledge.evidence(
        Inputs({**setting.keys}, setting.store, Context(seed=0)), NoDefense()
    )
    truth = {"poison_rate", "poison_mask", "cover_mask"}
    assert evidence._values.keys() == {"labels", "num_classes", "statistics"} | needed & truth
