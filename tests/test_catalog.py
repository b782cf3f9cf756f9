"""The catalog of methods: every file is understood, and tables show what the files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep import methods
from raysweep.cli.app import app
from raysweep.errors import SpecError
from raysweep.methods.recipe import RECIPES
from raysweep.plan.planner import Planner
from raysweep.sweep import catalog
from raysweep.sweep.guide import EXAMPLE_PATH, guides
from raysweep.sweep.loading import load_sweep

NAMES = sorted({name for role in methods.ROLES for name in methods.available(role)} | {*RECIPES})
ALL = [(role, name) for role in methods.ROLES for name in methods.available(role)]


@pytest.mark.parametrize(("role", "name"), ALL, ids=str)
def test_every_file_says_what_it_is(role: methods.Role, name: str) -> None:
    one = catalog.entry(role, name)
    assert one.idea.endswith(".") and one.differs
    if role != "datasets" and one.kind != "control":
        assert one.year and one.paper, "authors: title, venue year"
        assert one.venue or one.arxiv
        assert one.kind or role == "models"


def test_a_citation_is_taken_apart() -> None:
    blend = catalog.entry("attacks", "blend")
    assert (blend.kind, blend.venue, blend.year) == ("changes labels", "", "2017")
    assert blend.arxiv == "1712.05526" and blend.paper.startswith("Targeted Backdoor Attacks on")
    wanet = catalog.entry("attacks", "wanet")
    assert (wanet.venue, wanet.year) == ("ICLR", "2021")
    assert wanet.paper == "WaNet, Imperceptible Warping-based Backdoor Attack"
    assert catalog.entry("attacks", "sig").kind == "clean label"
    assert catalog.entry("defenses", "strip").kind == "detector"


@pytest.mark.parametrize("role", methods.ROLES)
def test_a_table_has_a_line_for_each_method(role: methods.Role) -> None:
    """The documentation's page of methods is made of it, see test_docs.py."""
    head, rule, *lines = catalog.markdown(role).splitlines()
    names = [line.split(" | ")[0] for line in lines]
    assert names == [f"| `{name}`" for name in methods.available(role)]
    assert {line.count(" |") for line in (head, *lines)} == {rule.count("|") - 1}


# Guides


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_a_sweep_file_that_plans(name: str, tmp_path: Path) -> None:
    (tmp_path / EXAMPLE_PATH).mkdir()
    for guide in guides(name):
        file = tmp_path / "s.yaml"
        file.write_text(guide.example)
        if name == "imported":  # Its folder is one that `raysweep import` wrote, and is read.
            with pytest.raises(SpecError, match=EXAMPLE_PATH):
                load_sweep(file)
            continue
        sweep = load_sweep(file)
        named = {method.name for role in methods.ROLES for method in getattr(sweep, role)}
        assert name in named or sweep.recipes[0] == RECIPES[name]
        if sweep.datasets[0].name == "digits":
            planner = Planner(sweep)
            assert all(planner.route(trial, {}).keys for trial in planner.trials)


def test_a_guide_says_what_a_parameter_is() -> None:
    (strip,) = guides("strip")
    told = {one.name: one for one in strip.parameters}
    fpr = told["fpr"]
    assert (fpr.type, fpr.range, fpr.default) == ("number", "above 0, below 1", 0.05)
    assert fpr.role == "decision" and fpr.description == "nominal false positive rate"
    assert fpr.search == {"min": 0.001, "max": 0.3, "distribution": "log_uniform_values"}
    assert (told["on"].type, told["on"].role) == ("inputs, training_set", "run")
    assert (strip.needs, strip.gives) == (("clean_set", "victim"), ("input_scores",))
    assert strip.with_parameters["on: training_set"] == (
        "needs training_set", "gives train_scores",
    )  # fmt: skip
    (filtering,) = guides("spectral_signatures")
    assert "badge oracle: poison rate" in filtering.with_parameters["removal: rate"]
    (folder,) = guides("imagefolder")
    assert folder.parameters[0].name == "path" and folder.parameters[0].required
    assert "path/train/<class>" in folder.about, "the layout of its files"
    (red,) = guides("confusion_training")
    assert {one.name: one.type for one in red.parameters}["high"] == "number or none"
    (abl,) = (one for one in guides("abl") if one.entry.role == "recipes")
    assert {one.name: one.default for one in abl.parameters}["epochs"] == 100


def test_a_name_in_two_roles_is_shown_twice_and_an_unknown_one_has_a_hint() -> None:
    assert [one.entry.role for one in guides("none")] == ["attacks", "defenses"]
    assert [one.entry.role for one in guides("abl")] == ["defenses", "recipes"]
    with pytest.raises(SpecError, match="'badnet'; did you mean badnets"):
        guides("badnet")


def test_every_recipe_has_an_idea() -> None:
    assert {*catalog.RECIPE_IDEAS} == {*RECIPES}


def test_the_list_is_a_line_a_method_of_at_most_100_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app(["list"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    assert listed == {*NAMES}
    assert len(lines) < 1.5 * len(ALL), "short"
    assert "defenses · detector" in lines
    for words in (["list", "defenses", "--json"], ["show", "none", "--json"]):
        app(words, standalone_mode=False)
        (first, *_) = json.loads(capsys.readouterr().out)
        assert first.get("name") == "abl" or first["entry"]["name"] == "none"
    app(["list", "models", "--long"], standalone_mode=False)
    assert "where we differ" in capsys.readouterr().out
    app(["show", "strip"], standalone_mode=False)
    shown = capsys.readouterr().out
    for part in (
        "ACSAC 2019",
        "fpr (decision)",
        "0.001 to 0.3, by its logarithm",
        "name: try-strip",
    ):
        assert part in shown
