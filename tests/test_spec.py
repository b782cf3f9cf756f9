"""Sweep files: what is right is read, what is wrong is named with line and remedy."""

from __future__ import annotations

import functools
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
import yaml

from raysweep.attacks.badnets import BadNets
from raysweep.attacks.blend import Blend
from raysweep.attacks.none import NoAttack
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import SpecError
from raysweep.methods.recipe import RECIPES, Recipe
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.sweep.loading import from_text, load_sweep
from raysweep.sweep.schema import json_schema
from raysweep.sweep.spec import Sweep, to_plain, to_yaml
from raysweep.sweep.trials import trials
from raysweep.sweep.yaml import parse

ROOT = Path(__file__).parent.parent
GOOD = """name: x
question: does it hold?
dataset: digits
model: {tiny_cnn: {width: 8}}
recipe: {epochs: [1, 2]}
attacks:
  - badnets: {rate: [0.01, 0.05]}
  - blend: {rate: 0.05, alpha: [0.1, 0.2]}
defenses: [none, spectral_signatures]
seeds: 3
exclude:
  - {attack: badnets, rate: 0.01, defense: spectral_signatures}
  - where: {seed: 2, recipe.epochs: 2}
resources:
  gpu: {gpu: 0.25, memory: 4GiB}
track: {wandb: disabled}
"""


@functools.cache
def schema() -> jsonschema.Draft202012Validator:
    """Return the schema of sweep files, itself checked, as a validator."""
    made = json_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def load(text: str) -> Sweep:
    return from_text(parse("f.yaml", text))


def fault(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(text)
    return str(caught.value)


def test_lists_are_axes_and_exclusions_remove() -> None:
    sweep = load(GOOD)
    assert [a.rate for a in sweep.attacks] == [0.01, 0.05, 0.05, 0.05]
    assert sweep.seeds == (0, 1, 2) and len(sweep.recipes) == 2
    found = trials(sweep)
    # 2 recipes x 4 attacks x 2 defenses x 3 seeds = 48; less 1 x 6; less seed 2 at 2 epochs.
    assert len(found) == 48 - 6 - 7
    assert not any(t.attack.rate == 0.01 and t.defense.name != "none" for t in found)
    assert not any(t.seed == 2 and t.recipe.epochs == 2 for t in found)
    assert sweep.resources.gpu.memory_bytes == 4 << 30


def test_python_and_yaml_say_the_same() -> None:
    python = Sweep(  # type: ignore[call-arg]
        name="x", question="does it hold?", dataset=Digits(), model=TinyCNN(width=8),
        attacks=[BadNets(rate=0.01), BadNets(rate=0.05), Blend(alpha=0.1), Blend(alpha=0.2)],
        defenses=[NoDefense(), SpectralSignatures()], seeds=3,
        recipe=[load(GOOD).recipes[0], load(GOOD).recipes[1]],
        exclude=[
            {"attack": "badnets", "rate": 0.01, "defense": "spectral_signatures"},
            {"seed": 2, "recipe.epochs": 2},
        ],
        resources={"gpu": {"gpu": 0.25, "memory": "4GiB"}}, track={"wandb": "disabled"},
    )  # fmt: skip
    assert python == load(GOOD)
    assert to_plain(python) == to_plain(load(GOOD))
    assert load(to_yaml(python)) == python


def test_recipes_have_names_that_stand_for_their_values() -> None:
    where = GOOD.replace("\n  - where: {seed: 2, recipe.epochs: 2}", "")

    def recipes(given: str) -> list[Recipe]:
        text = where.replace("{epochs: [1, 2]}", given)
        schema().validate(yaml.safe_load(text))
        sweep = load(text)
        assert load(to_yaml(sweep)) == sweep
        assert all("base" not in recipe for recipe in to_plain(sweep)["recipes"])
        return list(sweep.recipes)

    ct = RECIPES["ct"]
    assert recipes("fast") == [RECIPES["fast"]]
    assert recipes("{base: ct, epochs: 20}") == [ct.model_copy(update={"epochs": 20})]
    assert recipes("[fast, {base: [ct, red], epochs: [1, 2]}]") == [
        RECIPES["fast"],
        *(RECIPES[n].model_copy(update={"epochs": e}) for n in ("ct", "red") for e in (1, 2)),
    ]
    assert recipes("{milestones: [[0.3], [0.2, 0.9]]}") == [
        Recipe(milestones=(0.3,)), Recipe(milestones=(0.2, 0.9)),
    ]  # fmt: skip
    python = Sweep(  # type: ignore[call-arg]
        name="x", dataset=Digits(), model=TinyCNN(), attack=NoAttack(), defense=NoDefense(),
        recipes=["fast", {"base": "ct", "epochs": 20}],  # type: ignore[list-item]
    )  # fmt: skip
    assert python.recipes == (RECIPES["fast"], ct.model_copy(update={"epochs": 20}))
    with pytest.raises(ValueError, match="did you mean 'ct'"):
        Sweep(  # type: ignore[call-arg]
            name="x", dataset=Digits(), model=TinyCNN(), attack=NoAttack(), defense=NoDefense(),
            recipe="ctt",  # type: ignore[call-arg]
        )  # fmt: skip


@pytest.fixture(params=sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda f: f.name)
def shipped(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A shipped sweep file, beside folders for the data that it names."""
    for name in ("imagenet", "ember"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "sweeps").mkdir()
    return Path(shutil.copy(request.param, tmp_path / "sweeps"))


def test_every_shipped_sweep_loads_and_fits_the_schema(shipped: Path) -> None:
    sweep = load_sweep(shipped)
    assert trials(sweep) and sweep.question
    schema().validate(parse(shipped.name, shipped.read_text()).values)
    assert load(to_yaml(sweep)) == sweep


def test_a_sweep_for_a_gpu_asks_for_one(shipped: Path) -> None:
    told = re.search(r"^# .*For a GPU", shipped.read_text(), re.MULTILINE)
    assert (load_sweep(shipped).resources.gpu.gpu > 0) == bool(told)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("- badnets:", "- badnet:", ["f.yaml:7: attacks.0: unknown attack 'badnet'", "did you mean 'badnets'?"]),
        ("rate: 0.05, alpha", "rat: 0.05, alpha", ["f.yaml:8: attacks.1.blend.rat: unknown field, got 0.05", "did you mean 'rate'?"]),
        ("rate: 0.05,", "rate: lots,", ["f.yaml:8: attacks.1.blend.rate", "valid number", "got 'lots'"]),
        ("rate: 0.05,", "rate: 5%,", ["attacks.1.blend.rate: must be a valid number: a fraction", "0.05, got '5%'"]),
        ("rate: 0.05,", "rate: 1.5,", ["attacks.1.blend.rate: must be at most 1, got 1.5"]),
        ("[0.01, 0.05]", "[0.01, -1]", ["f.yaml:7: attacks.0.badnets.rate: must be at least 0, got -1"]),
        ("[0.01, 0.05]", "[]", ["f.yaml:7: attacks.0.badnets.rate: is an empty axis"]),
        ("[0.01, 0.05]", "[0.05, 0.05]", ["duplicate: badnets"]),
        ("defenses: [none, spectral_signatures]", "defenses: []", ["f.yaml:9: defenses: is an empty axis"]),
        ("[none, spectral_signatures]", "[none, none]", ["f.yaml:9: defenses.1: duplicate: none is on line 9"]),
        ("[none, spectral_signatures]", "[{strip: null, fpr: 0.1}]", ["defenses.0", "parameters stand deeper than the name: strip: {fpr: 0.1}"]),
        ("[none, spectral_signatures]", "[null]", ["defenses.0", "got None; write none"]),
        ("seeds: 3", "seeds: 0", ["f.yaml:10: seeds: must be a number of seeds or a list"]),
        ("seeds: 3", "seeds: true", ["seeds: must be a number"]),
        ("seeds: 3", "sedes: 3", ["f.yaml:10: sedes: unknown field; did you mean 'seeds'?"]),
        ("name: x", "name: a/b", ["f.yaml:1: name: must be 1 to 64 letters", "got 'a/b'"]),
        ("name: x\n", "", ["name: must be given"]),
        ("dataset: digits\n", "", ["datasets must be given"]),
        ("model: {tiny_cnn: {width: 8}}", "model: tiny_cnn\nmodels: [resnet18]", ["model and models are both given"]),
        ("attack: badnets, rate", "attack: badnet, rate", ["f.yaml:12: exclude.0: attack: no combination", "did you mean 'badnets'?"]),
        ("attack: badnets, rate", "atack: badnets, rate", ["exclude.0: atack: unknown axis"]),
        ("wandb: disabled", "wandb: maybe", ["f.yaml:16: track.wandb: must be 'online', 'offline' or 'disabled', got 'maybe'"]),
        ("gpu: 0.25", "gpu: 1.5", ["resources.gpu.gpu: must be a fraction up to 1, or a whole number"]),
        ("memory: 4GiB", "memory: lots", ["resources.gpu.memory: must be bytes or text such as"]),
        ("epochs: [1, 2]", "epochs: [1, 2.5]", ["recipe.epochs", "got 2.5"]),
        ("epochs: [1, 2]", "epoch: 1", ["recipe.epoch: unknown field", "did you mean 'epochs'?"]),
        ("{epochs: [1, 2]}", "fsat", ["f.yaml:5: recipe.base: unknown recipe 'fsat'; did you mean 'fast'?"]),
        ("epochs: [1, 2]", "base: ct, epoch: 1", ["recipe.epoch: unknown field", "did you mean 'epochs'?"]),
        ("epochs: [1, 2]", "milestones: [0.5, 1]", ["recipe.milestones: must be fractions"]),
        ("{epochs: [1, 2]}", "3", ["f.yaml:5: recipe: must be a name or {base: name, parameters}, got 3"]),
        ("seeds: 3", "seeds: 3\nseeds: 4", ["f.yaml:11: duplicate key 'seeds', first on line 10"]),
        ("seeds: 3", "seeds: [3", ["is not valid YAML"]),
        ("name: x", "name: !!python/object:os.system x", ["tag", "not allowed"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_one_clear_message_for_each_fault(old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    message = fault(GOOD.replace(old, new, 1))
    for word in words:
        assert word in message, message
    assert "Traceback" not in message and "pydantic" not in message


def test_all_faults_are_told_at_once() -> None:
    text = GOOD.replace("- badnets:", "- badnet:").replace("seeds: 3", "sedes: 3")
    assert len(fault(text).splitlines()) == 2


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "a: b: c", "\x00", "{", "&a [*a]"])
def test_what_is_no_sweep_is_refused(text: str) -> None:
    assert fault(text).startswith("f.yaml:")


def test_random_text_never_gives_anything_but_a_spec_error() -> None:
    rng = random.Random(0)
    alphabet = "abc: -[]{}&*!|>'\"\n\t#%@`0.5\\\x07é" + GOOD[:80]
    refused = 0
    for _ in range(600):
        text = "".join(rng.choices(alphabet, k=rng.randrange(60)))
        cut = rng.randrange(len(GOOD))
        for candidate in (text, GOOD[:cut] + text + GOOD[cut + len(text) :]):
            try:
                load(candidate)
            except SpecError as error:
                assert str(error)
                refused += 1
    assert refused > 600, "most of it is no sweep"


def _one_gibibyte() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))


PLANS = """
import sys
from raysweep.cli.app import main
for path in sys.argv[1:]:
    sys.argv = ["raysweep", "plan", path]
    try:
        main()
    except SystemExit as ended:
        print(ended.code, flush=True)
"""


def planned(paths: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Plan files by the command line, one after another in one process of one GiB."""
    return subprocess.run(
        [sys.executable, "-c", PLANS, *map(str, paths)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, preexec_fn=_one_gibibyte,
    )  # fmt: skip


def hostile(folder: Path) -> dict[str, Path]:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    files = {name: folder / f"{name}.yaml" for name in ("binary", "huge", "bomb", "utf16")}
    files["binary"].write_bytes(bytes(range(256)) * 10)
    files["huge"].write_text("a: &a [1]\nb: [" + "*a, " * 25_000_000 + "*a]\n")
    files["bomb"].write_text(bomb)
    files["utf16"].write_bytes("name: x".encode("utf-16"))
    return {**files, "folder": folder, "missing": folder / "nothing.yaml"}


@pytest.mark.slow
def test_hostile_files_get_one_message_and_exit_code_2(tmp_path: Path) -> None:
    paths = list(hostile(tmp_path).values())
    done = planned(paths)
    assert done.stdout.split() == ["2"] * len(paths), done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(paths), done.stderr
    for path, line in zip(paths, said, strict=True):
        assert line.startswith(f"error: {path}"), done.stderr


def test_python_sweep_files(tmp_path: Path) -> None:
    yaml_form, python_form = load_sweep(ROOT / "sweeps" / "quickstart.yaml"), load_sweep(
        ROOT / "sweeps" / "quickstart.py"
    )  # fmt: skip
    assert yaml_form == python_form
    file = tmp_path / "s.py"
    for text, words in (
        ("x = 1\ny = 1 / 0\n", "s.py:2: ZeroDivisionError"),
        ("x = (\n", "s.py:1: SyntaxError"),
        ("sweep = 3\n", "must define `sweep`, a raysweep.Sweep, got int"),
        ("from raysweep.attacks.badnets import BadNets\nBadNets(rate=2.0)\n", "s.py:2: BadNets.rate: must be at most 1, got 2.0"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(SpecError) as caught:
            load_sweep(file)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [("- badnets:", "- badnet:"), ("rate: 0.05,", "rate: lots,"), ("rate: 0.05,", "rate: 1.5,"),
     ("rate: 0.05, alpha", "rat: 0.05, alpha"), ("seeds: 3", "seeds: 0"), ("seeds: 3", "sedes: 3"),
     ("wandb: disabled", "wandb: maybe"), ("dataset: digits\n", "")],
)  # fmt: skip
def test_the_json_schema_agrees_with_the_loader(old: str, new: str) -> None:
    schema().validate(yaml.safe_load(GOOD))
    with pytest.raises(jsonschema.ValidationError):
        schema().validate(yaml.safe_load(GOOD.replace(old, new, 1)))


def test_on_is_a_word_and_no_boolean(tmp_path: Path) -> None:
    file = tmp_path / "on.yaml"
    file.write_text(
        "name: on\ndataset: digits\nmodel: tiny_cnn\nattacks: [none]\nseeds: 1\n"
        "defenses: [{strip: {on: training_set}}]\n"
    )
    (strip,) = load_sweep(file).defenses
    assert strip.on == "training_set"  # type: ignore[attr-defined]
    for word, value in (("on", "on"), ("No", "No"), ("true", True), ("False", False)):
        assert parse("t.yaml", f"a: {word}").values == {"a": value}
