"""What a search sees and is reported on, what it leaves behind, and the file that it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from raysweep.attacks._foreign import FILES
from raysweep.attacks.imported import Imported
from raysweep.attacks.none import NoAttack
from raysweep.cli.app import app
from raysweep.cli.terminal import legend, to_use
from raysweep.errors import SpecError
from raysweep.reports.tuning import sentence
from raysweep.results.account import NOTHING
from raysweep.results.tuned import TunedRow
from raysweep.sweep.editing import rewritten
from raysweep.sweep.loading import LoadedSweep, from_text, load_sweep
from raysweep.sweep.ranges import Range
from raysweep.sweep.reading import opened
from raysweep.sweep.tuning import Tune
from raysweep.sweep.yaml import parse
from raysweep.tuning import space
from raysweep.tuning.folds import Studies, _folds, parts_of
from raysweep.tuning.notes import note
from raysweep.tuning.ranking import Evaluated
from raysweep.tuning.recording import record
from raysweep.tuning.search import Search
from raysweep.tuning.storage import open_storage
from raysweep.tuning.study import Study, every_trial
from raysweep.tuning.summary import rounded
from tests.test_tune import LOW, MINE, Cut, Planted, search, setting
from tests.test_tuned import ROW, TUNED

NAMES = ("badnets", "blend", "sig")


def folds(**given: Any) -> dict[str, Search]:
    """Return the searches over three attacks of two seeds, and a trial without any, by part."""
    tune = Tune(parameters=MINE, **given)
    defense = Cut(blur=0.0)
    outer, inner = space.spaces_of(defense, tune)
    alone = [replace(setting("badnets", defense), attack=NoAttack())]
    attacked = [setting(name, defense) for name in NAMES]
    trials = [replace(t, seed=seed) for t in (*attacked, *alone) for seed in (0, 1)]
    if not {"false_alarms"} & {*tune.named_metrics}:
        trials = [trial for trial in trials if trial.attack.rate > 0]
    studies = Studies(None, None)  # type: ignore[arg-type]
    found = _folds(tune, trials, (outer, inner), studies, lambda dataset: dataset.label)
    return {one.part: one for one in found}


def seen(trials: Any) -> list[tuple[str, int]]:
    return sorted((trial.attack.name, trial.seed) for trial in trials)


def test_a_third_split_is_seen_by_no_search_and_reported_on_alone() -> None:
    by = folds(report_on={"seed": [1]})
    assert set(by) == {*NAMES, ""}
    assert seen(by["sig"].settings) == [("badnets", 0), ("blend", 0)]
    assert seen(by["sig"].held_out) == [("sig", 1)]
    assert seen(by[""].settings) == [(name, 0) for name in NAMES]
    assert seen(by[""].held_out) == [(name, 1) for name in NAMES]
    attacks = folds(report_on={"attack": ["sig"]})
    assert set(attacks) == {"badnets", "blend", ""}
    assert all(seen(one.held_out) == [("sig", 0), ("sig", 1)] for one in attacks.values())
    assert all(("sig", 0) not in seen(one.settings) for one in attacks.values())
    for wrong, said in (({"seed": [7]}, "names no trial"), ({"seed": [0, 1]}, "names every tri")):
        with pytest.raises(SpecError, match=f"tune.report_on: .* {said}"):
            folds(report_on=wrong)


@pytest.mark.parametrize(
    ("named", "family", "part"),
    [("badnet", "patch", "badnets+imported(patch)"), ("WaNet", "wanet", "imported(wanet)"),
     ("unheard_of", "unheard_of", "imported(unheard_of)")],
)  # fmt: skip
def test_imported_attacks_are_held_out_with_those_that_they_hold(
    tmp_path: Path, named: str, family: str, part: str
) -> None:
    manifest = {
        "attack": named, "train_total": 100, "poison": 5, "cover": 0, "target": 0, "sources": None,
        "victim": False, "triggered": 5, "format": 1, "dataset": "digits", "mean": None,
        "std": None,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in FILES[:2]:
        (tmp_path / name).touch()
    attack = Imported(path=str(tmp_path))
    assert attack.family == family
    trials = [setting("badnets"), replace(setting("badnets"), attack=attack)]
    assert parts_of(trials, "attack", str)[trials[1]] == part


def test_trials_at_rate_0_are_seen_by_every_search_that_bounds_false_alarms() -> None:
    by = folds(constraints=["false_alarms <= 0.1"])
    assert set(by) == {*NAMES, ""}, "they are no part of their own"
    for part in by:
        assert ("none", 0) in seen(by[part].settings) and ("none", 1) in seen(by[part].held_out)
    assert all(name != "sig" for name, _ in seen(by["sig"].settings))
    assert ("none", 0) not in seen(folds()["sig"].settings)
    split = folds(constraints=["false_alarms <= 0.1"], hold_out="seed")
    assert seen(split["0"].held_out) == sorted((name, 0) for name in (*NAMES, "none"))
    assert ("none", 0) not in seen(split["0"].settings)


# Beside what was found


def test_a_choice_at_the_end_of_its_range_is_said_unless_the_method_ends_there_too() -> None:
    bench = Planted(badnets=(0.6, 1.0))
    narrow = search({"low": Range(min=0.7, max=1.0)}, ["badnets"], constraints=())
    chosen = narrow.chosen(bench)
    assert chosen == [{"low": 0.7}]
    assert "low lies at the lower end of its range: a wider" in note(narrow, chosen, bench)
    for end in (0.0, 1.0):  # where the parameter itself ends
        assert note(search(LOW, ["badnets"]), [{"low": end}], bench) == ""
    inside = search({"low": Range(min=0.5, max=0.9)}, ["badnets"])
    assert note(inside, [{"low": 0.7}], bench) == ""


def test_the_page_and_the_terminal_say_what_all_rows_are_measured_on() -> None:
    split = replace(TUNED, settings=Tune(report_on={"seed": (3, 4)}))
    assert "Measured on seed 3, 4 alone, which no search has seen" in sentence(split)
    assert "all are measured on seed 3, 4 alone" in legend(split)[1]
    assert "alone, which no search" not in sentence(TUNED)


def test_what_was_found_is_to_be_used_whatever_its_note_says() -> None:
    sweep = from_text(parse("t", TEXT.replace("  # few", "")))
    row = replace(
        ROW, defense="strip(overlays=8)", held_out=NOTHING, parameters={"fpr": 0.123456},
        note="fpr lies at the upper end of its range",
    )  # fmt: skip
    assert to_use(replace(TUNED, rows=(row,)), sweep) == [
        "use these: {strip: {fpr: 0.1235, overlays: 8}}"
    ]
    kept = replace(TUNED, rows=(replace(row, kept_own=True, note="nothing tried"),))
    assert to_use(kept, sweep) == ["strip(overlays=8): keep its own values; nothing tried"]
    assert TunedRow.unpack(kept.rows[0].pack()) == kept.rows[0]


def test_an_exact_search_leaves_a_study_that_a_dashboard_opens(tmp_path: Path) -> None:
    journal, tune = tmp_path / "j.log", Tune(constraints=["fpr <= 0.1"])
    found = [
        Evaluated(parameters={"low": n / 400}, metrics={"tpr": n / 400, "fpr": n / 800})
        for n in range(400)
    ]

    def shown() -> optuna.Study:
        return optuna.load_study(study_name="s", storage=open_storage(journal))

    record("s", LOW, tune, journal, "a", found)
    (first,) = [shown().user_attrs["exact"]]
    assert first == 400 and 80 <= len(shown().trials) <= 81
    assert max(t.values[0] for t in shown().trials if t.constraints["fpr <= 0.1"] <= 0) == 0.2
    record("s", LOW, tune, journal, "a", found[:2])
    assert len(shown().trials) >= 80, "the same search is not written twice"
    record("s", LOW, tune, journal, "b", found[:2])
    assert len(shown().trials) == 2, "another search is written anew"
    asked = Study("s", LOW, Tune(trials=3), where=journal, tied="c")
    every_trial(asked, lambda one: {"tpr": 0.5, "fpr": 0.0})
    record("s", LOW, tune, journal, "d", found)
    assert len(shown().trials) == 3, "what candidates were run for is never thrown away"


# The tuned file

TEXT = """\
# What we tried first.
name: mine   # short
dataset: digits
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 1, learning_rate: 1.0e-1}
attacks:
    - badnets: {rate: 0.05}   # the usual one
    - blend
defenses:
    - none
    # A comment above.
    - strip: {overlays: 8}    # few
    - spectral_signatures
    - kernel_density: {fpr: [0.01, 0.02]}
seeds: 2
tune: {constraints: [fpr <= 0.1]}
"""


def loaded_from(text: str) -> LoadedSweep:
    parsed = parse("t", text)
    sweep, origins = opened(parsed)
    return LoadedSweep(sweep=sweep, text=text, parsed=parsed, origins=origins)


def tuned(text: str, **parameters: Any) -> tuple[str, Any]:
    loaded = loaded_from(text)
    sweep = loaded.sweep
    better = [
        space.with_parameters(one, parameters[one.name]) if one.name in parameters else one
        for one in sweep.defenses
    ]
    made = sweep.model_copy(update={"name": "mine-tuned", "defenses": tuple(better), "tune": None})
    return rewritten(loaded, made, Path()), made


def test_a_tuned_file_is_the_authors_own_with_other_parameters() -> None:
    edited, made = tuned(TEXT, strip={"fpr": 0.02}, spectral_signatures={"fraction": 0.1})
    assert from_text(parse("t", edited)) == made
    changed = TEXT.replace("name: mine ", "name: mine-tuned ")
    changed = changed.replace("{overlays: 8}    # few", "{overlays: 8, fpr: 0.02}    # few")
    changed = changed.replace("- spectral_signatures", "- spectral_signatures: {fraction: 0.1}")
    wanted, got = (
        [line.split() for line in text.splitlines()]
        for text in (changed.replace("tune: {constraints: [fpr <= 0.1]}\n", ""), edited)
    )
    assert got == wanted
    assert "    - badnets" in edited, "lists are indented as they were"


@pytest.mark.parametrize(
    "defenses",
    [
        "defense: strip", "defenses: [strip, none]", "defense: {strip: {overlays: 8}}",
        "defenses: [{strip: {overlays: [8, 16]}}, none]", "defenses: [{strip: {overlays: [8]}}]",
        "defenses:\n- strip:\n    overlays: 8\n- none",
    ],
)  # fmt: skip
def test_any_spelling_of_a_file_becomes_its_tuned_form(defenses: str) -> None:
    head = TEXT[: TEXT.index("defenses:")]
    edited, made = tuned(f"{head}{defenses}\n", strip={"fpr": 0.02})
    assert from_text(parse("t", edited)) == made


def test_forms_of_one_defense_are_written_apart() -> None:
    loaded = loaded_from(TEXT)
    sweep = loaded.sweep
    first, second = (one for one in sweep.defenses if one.name == "kernel_density")
    better = [space.with_parameters(first, {"fpr": 0.05}), second]
    rest = [one for one in sweep.defenses if one.name != "kernel_density"]
    made = sweep.model_copy(
        update={"name": "mine-tuned", "defenses": (*rest, *better), "tune": None}
    )
    edited = rewritten(loaded, made, Path())
    assert from_text(parse("t", edited)) == made and "# the usual one" in edited


def test_fractions_are_rounded_where_the_defense_allows_it() -> None:
    assert rounded(Cut(), {"low": 0.123456, "high": 1.0}) == {"low": 0.1235, "high": 1.0}
    assert rounded(Cut(), {"low": True}) == {"low": True}


CLEAN = """
name: alarms
dataset: digits
model: linear
recipe: {epochs: 1, batch_size: 128}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}, none]
defenses: [strip: {overlays: 2}]
seeds: 2
track: {wandb: disabled}
tune:
  constraints: [false_alarms <= 0.1]
  report_on: {seed: [1]}
"""


def test_false_alarms_of_clean_models_bound_a_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = tmp_path / "t.yaml", tmp_path / "store"
    file.write_text(CLEAN)
    assert not app(["tune", str(file), "--inline", "--storage", str(store)], standalone_mode=False)
    assert "false_alarms" in capsys.readouterr().out
    told = json.loads((store / "sweeps/alarms/tuned.json").read_text())
    rows = {row["held_out"]: row for row in told["rows"]}
    assert set(rows) == {"badnets", "blend", "nothing"}
    for row in rows.values():
        assert 0 <= row["tuned_false_alarms"] <= 1 and 0 <= row["tuned_tpr"] <= 1
    assert load_sweep(file).tune.report_on == {"seed": (1,)}  # type: ignore[union-attr]
