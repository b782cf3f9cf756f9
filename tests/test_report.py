"""The report: aggregation by closed forms, escaping, empty cases, and a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from raysweep.cli.terminal import print_results
from raysweep.jobs.launch import launch
from raysweep.metrics.intervals import wilson
from raysweep.reports import internals, tuning, verdicts
from raysweep.reports.cells import Cells
from raysweep.reports.curves import roc_curves
from raysweep.reports.drawings import Drawing, Line, shortened, thinned, thinned_roc
from raysweep.reports.html import render
from raysweep.reports.material import Material, gather
from raysweep.reports.pictures import factor, magnified, picture
from raysweep.reports.tables import METRICS, aggregate, spread, text_table
from raysweep.results.description import Description
from raysweep.results.entries.sweep import cost
from raysweep.results.grouping import failed_attacks, floors, setting_column
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests.material import album, column, generated, many, opened, row

SWEEP = """
name: shown
question: is <b>this</b> & that shown?
dataset: {digits: {size: 200, test_size: 100}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: 3, batch_size: 64}
attacks: [{badnets: {rate: [0, 0.05, 0.1]}}]
defenses:
  - none
  - perfect_filter
  - {strip: {overlays: 2}}
  - {neural_cleanse: {steps: 10, batch_size: 8}}
  - {abl: {isolation_epochs: 3, tuning_epochs: 1, unlearning_steps: 4}}
seeds: 2
track: {wandb: disabled}
"""


def test_what_no_inspector_has_told_has_no_column() -> None:
    judged = {"verdict": True, "verdict_classes": "", "verdict_correct": True, "anomaly": 2.5}
    rows = pd.DataFrame([row(trial=str(n), kind="inspector", seed=n, **judged) for n in range(2)])
    found = verdicts.sheet(Cells.read(rows))
    assert found is not None
    titles = [one.title for one in found.columns]
    assert titles[2:] == ["seed", "verdict", "verdict is", "largest anomaly"]


def test_aggregate_gives_means_intervals_and_extremes() -> None:
    rows = pd.DataFrame(
        {"d": ["a"] * 3 + ["b"], "ca": [0.1, 0.2, 0.3, 0.5], "ca_n": [10, 10, 10, 20]}
    )
    summed = aggregate(rows, ["d"], ["ca", "absent"]).set_index("d")
    assert summed.loc["a", "ca"] == pytest.approx(0.2)
    # 10 inputs a model explain more than the variance between the models: 0.16/30 > 0.01/3.
    bounds = summed.loc["a", "ca_low"], summed.loc["a", "ca_high"]
    assert bounds == pytest.approx(wilson(6, 30))
    assert (summed.loc["a", "ca_min"], summed.loc["a", "ca_max"]) == (0.1, 0.3)
    low, high = summed.loc["b", "ca_low"], summed.loc["b", "ca_high"]
    assert (low, high) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))
    assert math.isnan(summed.loc["a", "absent"]) and summed.loc["a", "absent_seeds"] == 0
    assert spread(summed.loc["a"], "ca") == "20.0 [9.5–37.3]"
    assert spread(summed.loc["b"], "ca") == "50.0 [29.9–70.1]"
    assert spread(summed.loc["a"], "absent") == "–"
    five = aggregate(pd.DataFrame({"d": "x", "ca": [0.1, 0.2, 0.3, 0.4, 0.5]}), ["d"], ["ca"])
    # t(0.975, 4) = 2.77645; variance 0.025/5, as of 0.21/0.005 = 42 cases; Wilson's at 2.77645
    assert spread(five.iloc[0], "ca") == "30.0 [14.8–51.4]"


def test_undefined_values_do_not_count() -> None:
    rows = pd.DataFrame({"d": "x", "tpr": [0.4, None, np.nan, np.inf], "tpr_n": [5, 0, 0, 7]})
    entry = aggregate(rows, ["d"], ["tpr"]).iloc[0]
    assert (entry["tpr"], entry["tpr_seeds"]) == (0.4, 1)
    assert entry["tpr_low"] == pytest.approx(0.1176, abs=1e-4), "Wilson of 2 of 5"


def page_material(rows: pd.DataFrame, **sweep: Any) -> Material:
    return Material(sweep=Description(name="s", **sweep), rows=rows, stages=pd.DataFrame())


def page_of(rows: pd.DataFrame, **sweep: Any) -> str:
    return render(page_material(rows, **sweep))


@pytest.fixture(scope="module")
def page() -> str:
    return render(generated())


def test_attacks_that_fail_are_said_and_left_out() -> None:
    failing = row(asr=0.4)
    rows = pd.DataFrame([failing, row(attack="blend", attack_name="blend", asr=0.8, trial="u")])
    found = "the trigger was not learned: undefended ASR 40 %"
    assert failed_attacks(rows) == {"badnets @ 5 %": found}
    titles = [title for title, _, _ in text_table(rows)]
    setting = "digits · tiny_cnn"
    assert titles == [f"badnets @ 5 % · {setting}; {found}", f"blend @ 5 % · {setting}"]
    page = page_of(rows)
    assert f"left out of averages: {found}." in page
    assert re.search(r"80\.0 \[[\d.–]+\] %", page), "of blend"
    assert column(opened(page, "cells")["columns"]["failed"]) == [found, ""]


def test_an_attack_may_fail_on_one_dataset_and_work_on_another() -> None:
    rows = pd.DataFrame([row(asr=0.1), row(dataset="gtsrb", asr=0.9, trial="u")])
    assert set(failed_attacks(rows)) == {"badnets @ 5 % (digits · tiny_cnn)"}


def test_only_seeds_are_averaged() -> None:
    kinds = [{"dataset": "gtsrb"}, {"model": "resnet18"}, {"recipe.epochs": 9}, {}]
    base = {"recipe.epochs": 8}
    rows = pd.DataFrame([row(trial=str(n), **{**base, **k}) for n, k in enumerate(kinds)])
    assert [line[9] for _, _, (line,) in text_table(rows)] == ["1"] * 4
    training = column(opened(page_of(rows), "cells")["columns"]["training"])
    assert training == ["epochs 8", "epochs 8", "epochs 9", "epochs 8"]


def test_trials_that_did_not_finish_are_counted() -> None:
    rows = pd.DataFrame([row(), row(trial="u", seed=1, status="failed", ca=None, asr=None)])
    ((_, _, (line,)),) = text_table(rows)
    assert line[9] == "1/2"


def test_the_columns_are_the_same_whatever_failed_and_rates_are_told_apart() -> None:
    filtered = row(defense="filter", defense_name="filter", kind="filter", tpr=0.8, fpr=0.1)
    seen = row(defense="strip", defense_name="strip", kind="detector", input_tpr=0.7, input_fpr=0.2)
    lost = row(defense="abl", defense_name="abl", kind="repair", status="failed", ca=None, asr=None)
    every = [row(), filtered, seen, lost]
    rows = pd.DataFrame([{**one, "trial": str(n)} for n, one in enumerate(every)])
    columns = [
        "defense", "kind", "CA %", "ASR %", "DER %", "TPR %", "FPR %", "TPR of inputs %",
        "FPR of inputs %", "n", "badges",
    ]  # fmt: skip
    ((_, headers, lines),) = text_table(rows)
    assert headers == columns
    cells = {line[0]: line[5:10] for line in lines}
    assert cells["filter"] == ["80.0", "10.0", "–", "–", "1"]
    assert cells["strip"] == ["–", "–", "70.0", "20.0", "1"]
    assert cells["abl"] == ["–", "–", "–", "–", "0/1"]
    nothing = rows.assign(status="failed").drop(columns=["ca", "asr", "tpr", "fpr"])
    ((_, headers, lines),) = text_table(nothing)
    assert headers == columns and len(lines) == 4
    named = pd.DataFrame([{**one, "trial": str(n)} for n, one in enumerate(every)])
    told = {one["title"] for one in opened(page_of(named), "cells")["metrics"]}
    assert {"TPR", "TPR of inputs"} <= told


@pytest.mark.parametrize("width", [80, 100, 240])
def test_no_number_is_cut_on_a_narrow_terminal(width: int) -> None:
    rows = generated().rows
    rows = rows[(rows["attack"] == "badnets") & (rows["rate"] == 0.05)]
    console = Console(record=True, width=width, markup=False, soft_wrap=True)
    print_results(console, rows)
    said = console.export_text()
    assert "…" not in said and max(map(len, said.splitlines())) <= width
    means = {
        e["defense"]: spread(e, "ca") for _, e in aggregate(rows, ["defense"], ["ca"]).iterrows()
    }
    known = {line.split(" ")[0]: line for line in said.splitlines()}
    for defense in ("none", "strip"):
        mean, _, between = means[defense].partition(" ")
        assert f" {mean}" in known[defense] and (between in known[defense]) == (width == 240)
    assert ("means alone" in said) == (width < 240)


def test_the_floor_of_a_trigger_is_shown() -> None:
    rows = pd.DataFrame([row(), row(trial="u", rate=0.0, asr=0.125)])
    assert floors(rows, setting_column(rows)) == {("digits · tiny_cnn", "badnets"): 0.125}
    assert 'title="on a clean model: 12.5 %"' in page_of(rows)


def test_evasions_are_attacks_of_their_own_kind_and_no_floors() -> None:
    evading = {"attack": "pgd", "attack_name": "pgd", "rate": 0.0, "evades": True}
    backdoor = row(asr=0.9, evades=False)
    rows = pd.DataFrame([
        backdoor, row(trial="u", rate=0.0, asr=0.125, evades=False),
        row(trial="v", asr=0.75, **evading),
    ])  # fmt: skip
    assert floors(rows, setting_column(rows)) == {("digits · tiny_cnn", "badnets"): 0.125}
    titles = [title for title, _, _ in text_table(rows)]
    assert titles[-1] == "pgd · digits · tiny_cnn · adversarial examples"
    page = page_of(rows)
    assert re.search(r"90\.0 \[", page) and re.search(r"75\.0 \[", page)
    weak = pd.DataFrame([backdoor, row(trial="v", asr=0.25, **evading)])
    found = failed_attacks(weak)
    assert list(found) == ["pgd (digits · tiny_cnn · adversarial examples)"]
    assert found.popitem()[1].startswith("the changed inputs seldom fool the model: undefended")
    older = pd.DataFrame([row(asr=0.9)])
    assert "evades" not in older and re.search(r"90\.0 \[", page_of(older))


def defended(name: str, **given: Any) -> dict[str, Any]:
    return row(trial=name, defense=name, defense_name=name, kind="filter", **given)


def test_the_answer_says_what_the_findings_say() -> None:
    seeds = [
        one
        for seed in range(6)
        for one in (
            row(trial=f"n{seed}", seed=seed, asr=0.9 + seed / 100, asr_n=900, ca_n=900),
            defended("a", seed=seed, asr=0.02 + seed / 1000, asr_n=900, ca=0.9 - seed / 1000),
            defended("b", seed=seed, asr=0.9 + (-1) ** seed / 50 + seed / 100, asr_n=900),
        )
    ]
    page = page_of(pd.DataFrame(seeds), question="Which holds?")
    assert '<h2 id="answer-title">Which holds?</h2>' in page
    told = page[page.index('<section id="answer"') : page.index("<noscript>")]
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", told))
    assert 'data-said="holds"><span title="a">a</span></td>' in told
    assert 'data-said="not distinguishable from none"><span title="b">b</span></td>' in told
    assert "worse than none" not in said, "no column without a defense"
    unmeasured = page_of(pd.DataFrame([defended("a")]))
    assert "not measured" in unmeasured, "no undefended trial"


def test_a_rate_of_zero_alone_gives_no_figure_against_rates() -> None:
    rates = [row(trial=f"{rate}", rate=rate) for rate in (0.0, 0.05, 0.1)]
    assert '<section id="rates"' not in page_of(pd.DataFrame(rates[:2]))
    assert '<section id="rates"' in page_of(pd.DataFrame(rates))


def test_the_first_screen_waits_for_no_library_and_no_figure() -> None:
    page = render(generated(seeds=1))
    script = page.index("const start = async")
    assert page.index('id="answer"') < page.index('id="block-cells"') < script
    behind = ["block-rows", "block-plotly", "block-tabulator", "block-cost-0", "drawings-roc"]
    assert min(page.index(f'id="{name}"') for name in behind) > script


def test_stage_kinds_stand_in_the_order_of_work() -> None:
    material = generated(seeds=1)
    shuffled = material.stages.sort_values("key")  # as records hold them
    page = render(replace(material, stages=shuffled))
    order = ["prepare", "poison", "train", "defend", "decide", "evaluate"]
    assert column(opened(page, "cost-0")["columns"][0]) == order
    (figure,) = album(page, "cost").values()
    assert [line["x"] for line in figure["lines"]] == [order, order]
    assert cost(shuffled)["kind"].tolist() == order, "W&B shows the same"


def test_tables_and_titles_have_short_names_and_no_column_of_one_arena() -> None:
    material = generated(seeds=1)
    page = render(material)
    found = opened(page, "insides-0")["columns"]
    assert [one["title"] for one in found[:3]] == ["defense", "attack", "what"]
    assert set(column(found[0])) == {"spectral_signatures"}
    costs = opened(page, "cost-1")["columns"][0]
    assert "spectral_signatures" in column(costs)
    material.rows.loc[0, "dataset"] = "cifar10"
    found = opened(render(material), "insides-0")["columns"]
    assert [one["title"] for one in found[:3]] == ["defense", "attack", "trained on"]


def test_failures_are_grouped_by_cause_and_none_is_lost() -> None:
    bad = {"status": "failed", "ca": None}
    rows = pd.DataFrame(
        [
            row(trial="a", error="boom", error_stage="train-1", log="/l/1", **bad),
            row(trial="b", **{**bad, "status": "upstream_failed"}, error="boom",
                error_stage="train-1", log="/l/1"),
            row(trial="c", **{**bad, "status": "pending"}, error=None, error_stage=None),
        ]
    )  # fmt: skip
    sheet = opened(page_of(rows), "failures-0")
    told = {one["title"]: column(one) for one in sheet["columns"]}
    assert told["error"] == ["boom", ""]
    assert told["trials"] == ["1 failed, 1 upstream_failed", "1 pending"]
    assert told["log"] == ["/l/1", "–"]


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame(columns=list(row())),
        pd.DataFrame([row(status="failed", error="boom", error_stage="train-1", ca=None)]),
        pd.DataFrame([row(ca=np.nan, asr=np.nan)]),
        pd.DataFrame([row(badges=None, host=np.nan)]),
        generated().rows.assign(**dict.fromkeys(METRICS, np.nan)),
    ],
    ids=["empty", "failed", "nan", "one", "all nan"],
)
def test_poor_records_make_a_page(rows: pd.DataFrame) -> None:
    page = page_of(rows)
    assert page.startswith("<!doctype html>") and page.endswith("</html>")
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r">[^<]*\bnan\b", shown[shown.index("<main") :], re.I)
    assert "NaN" not in json.dumps(opened(page, "cells")) + json.dumps(opened(page, "rows"))


EVIL = "<script>alert(1)</script><a href='https://evil.example'>\"'&"


def test_nothing_from_the_data_becomes_markup() -> None:
    material = generated(seeds=1)
    rows = material.rows.copy()
    names = ["dataset", "model", "attack", "defense", "kind", "badges", "host", "key_train"]
    rows[names] = rows[names].map(lambda v: EVIL + str(v))
    rows.loc[:5, ["status", "error", "log", "error_stage"]] = ["failed", EVIL, EVIL, EVIL]
    rows["trial"] = rows["trial"].map(lambda v: EVIL + str(v))
    words = ("name", "question", "text", "storage", "git_commit")
    sweep = Description(**dict.fromkeys(words, EVIL), versions={EVIL: EVIL})
    page = render(
        Material(
            sweep=sweep,
            rows=rows,
            stages=material.stages.assign(key=EVIL, kind=EVIL, error=EVIL, host=EVIL, log=EVIL),
            curves={(EVIL + t, w): curve for (t, w), curve in material.curves.items()},
            pictures={EVIL: material.pictures["badnets"]},
            triggers={EVIL + t: found for t, found in material.triggers.items()},
        )
    )
    assert "<script>alert(1)" not in page and "<a href='https" not in page
    assert page.count("</script>") == page.count("<script"), "no figure ends its script"
    assert len(album(page, "roc")) > 3
    assert EVIL in column(opened(page, "rows")["columns"][0])[0] + EVIL


def test_pictures_are_the_pixels_enlarged() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 2, 2) * 20
    png = base64.b64decode(picture(image, side=8).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert np.array_equal(pixels, image.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1))
    gray = base64.b64decode(picture(image[:1]).partition(",")[2])
    assert Image.open(io.BytesIO(gray)).mode == "L"


def test_differences_are_magnified_by_a_whole_factor() -> None:
    clean = np.full((1, 2, 2), 100, np.uint8)
    triggered = clean.copy()
    triggered[0, 0] = (96, 80)
    assert factor(clean, triggered) == 12
    assert magnified(clean, triggered).tolist() == [[[48, 240], [0, 0]]]
    assert factor(clean, clean) == 1


def test_cells_say_what_the_rows_say(page: str) -> None:
    rows = generated().rows
    held = opened(page, "cells")
    who = {name: column(one) for name, one in held["columns"].items()}
    metrics = {one["name"]: one for one in held["metrics"]}
    wanted = ("badnets", 0.05, "abl")
    (at,) = [
        n for n, one in enumerate(zip(who["attack"], who["rate"], who["defense"], strict=True))
        if one == wanted
    ]  # fmt: skip
    cell = rows[(rows["attack"] == "badnets") & (rows["rate"] == 0.05)]
    own = cell[cell["defense"] == "abl"]
    assert metrics["ca"]["mean"][at] == pytest.approx(own["ca"].mean(), abs=1e-5)
    none = cell[cell["defense"] == "none"].set_index("seed")["ca"]
    lost = none - own.set_index("seed")["ca"]
    assert metrics["lost"]["mean"][at] == pytest.approx(lost.mean(), abs=1e-5)
    assert metrics["lost"]["values"][at] == pytest.approx(lost.tolist(), abs=1e-4)
    assert metrics["asr"]["low"][at] < metrics["asr"]["mean"][at] < metrics["asr"]["high"][at]
    assert (who["trials"][at], who["finished"][at]) == (3, 3)
    assert metrics["tpr"]["mean"][who["defense"].index("none")] is None
    assert len(who["attack"]) == 3 * 3 * 7


def test_every_record_and_column_is_in_the_page(page: str) -> None:
    rows = generated().rows
    held = opened(page, "rows")
    told = {one["name"]: column(one) for one in held["columns"]}
    assert list(told) == list(rows.columns)
    assert told["trial"] == rows["trial"].tolist()
    known = rows["ca"].notna()
    given = [one for one in told["ca"] if one is not None]
    assert given == pytest.approx(rows["ca"][known].tolist(), abs=1e-9)
    assert held["cells"] == Cells.read(rows).of.tolist()


def test_names_are_short_and_told_apart_by_what_differs() -> None:
    def named(label: str, **given: Any) -> dict[str, Any]:
        return row(defense=label, defense_name=label.partition("(")[0], trial=label, **given)

    both = {"defense.fraction": 0.1, "defense.steps": 3}
    rows = pd.DataFrame([
        named("a(fraction=0.1, steps=3)", **both),
        named("a(fraction=0.2, steps=3)", **{**both, "defense.fraction": 0.2}),
        named("b(steps=3)", **{"defense.steps": 3}),
        named("c(x=1)"), named("c(x=2)"),
    ])  # fmt: skip
    names = Cells.read(rows).names["defense"]
    assert list(names.values()) == ["a(fraction=0.1)", "a(fraction=0.2)", "b", "c(x=1)", "c(x=2)"]


def test_there_is_no_figure_against_the_rate_where_there_is_one() -> None:
    several = [row(), row(trial="u", rate=0.1)]
    assert 'id="album-rates"' in page_of(pd.DataFrame(several))
    assert 'id="album-rates"' not in page_of(pd.DataFrame(several[:1]))


def test_a_figure_that_is_too_full_counts_what_it_lacks_and_keeps_every_cell() -> None:
    x = np.arange(2.0)
    lines = [Line(name=str(n), x=x, y=x, cell=n % 100) for n in range(40_000)]
    (short,) = shortened([Drawing(title="t", x_title="", y_title="", lines=lines)])
    assert len(short.lines) + short.fewer == 40_000 and short.fewer > 0
    assert {line.cell for line in short.lines} == set(range(100))
    few = [Drawing(title="t", x_title="", y_title="", lines=lines[:20])]
    assert shortened(few) == few


def test_lines_are_thinned_to_what_a_screen_shows() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x / 1000)
    y[5432] = 9.0
    few_x, few_y = thinned(x, y)
    assert len(few_x) <= 210 and few_y.max() == 9.0
    assert (few_x[0], few_x[-1]) == (0, 9999) and (np.diff(few_x) > 0).all()
    rng = np.random.default_rng(0)
    steps = np.cumsum(np.concatenate([[False], rng.random(5000) < 0.5]))
    fpr = (np.arange(5001) - steps) / (5000 - steps[-1])
    tpr = (steps / steps[-1]) ** 0.3
    short_fpr, short_tpr = thinned_roc(fpr, tpr)
    assert len(short_fpr) <= 130
    assert (short_fpr[0], short_tpr[0], short_fpr[-1], short_tpr[-1]) == (0, 0, 1, 1)
    above = np.abs(np.interp(fpr, short_fpr, short_tpr) - tpr)
    beside = np.abs(np.interp(tpr, short_tpr, short_fpr) - fpr)
    assert np.minimum(above, beside).max() < 1 / 128, "two pixels of a figure of 300"


def test_roc_curves_have_a_mark_where_the_decision_stands() -> None:
    material = generated()
    drawn = {one.title: one for one in roc_curves(material, Cells.read(material.rows))}
    figure = drawn["badnets @ 5 %: scores of training samples, a line per seed"]
    filtered = [line for line in figure.lines if line.name.startswith("spectral")]
    assert [line.shape for line in filtered] == ["line", "points"] * 3
    assert len({line.cell for line in filtered}) == 1
    rows = material.rows
    own = rows[(rows["attack"] == "badnets") & (rows["rate"] == 0.05)]
    own = own[own["defense_name"] == "spectral_signatures"]
    points = [(line.x[0], line.y[0]) for line in filtered if line.shape == "points"]
    # A mean of one number rounds otherwise in some releases of NumPy.
    np.testing.assert_allclose(points, own[["fpr", "tpr"]].to_numpy(float), rtol=1e-12)


def test_what_was_not_read_in_time_is_counted() -> None:
    whole = page_material(pd.DataFrame([row(), row(trial="u"), row(trial="v", attack="blend")]))
    page = render(replace(whole, unread=frozenset(("u", "v"))))
    assert "of 2 finished trials were not read in time" in page
    assert "(badnets: 1, blend: 1)" in page and "not read" not in render(whole)


@pytest.mark.further
@pytest.mark.slow
def test_the_page_of_ten_thousand_trials_is_small() -> None:
    material = many(40, settings=1)
    assert len(material.rows) == 10_080
    page = render(material)
    assert len(page.encode()) < 10e6
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert markup.count("<") < 1000, "what grows with trials is data"
    assert len(column(opened(page, "rows")["columns"][0])) == 10_080


@pytest.mark.further
@pytest.mark.slow
def test_the_page_of_a_real_sweep_holds_everything(tmp_path: Path) -> None:
    conclusion = launch(from_text(parse("f", SWEEP)), SWEEP, str(tmp_path), inline=True)
    assert (conclusion.rows["status"] == "ok").all()
    text = Path(conclusion.report).read_text()
    for section in ("answer", "maps", "results", "trials", "rates", "roc", "verdicts",
                    "pictures", "cost", "failures", "provenance"):  # fmt: skip
        assert f'<section id="{section}"' in text, section
    assert "is &lt;b&gt;this&lt;/b&gt; &amp; that shown?" in text
    assert "on a clean model: " in text, "what a trigger achieves on the clean model"
    assert text.count("data:image/png;base64,") >= 3 * 3 + 10
    material = gather("shown", str(tmp_path))
    assert '<section id="insides"' in text
    assert len(material.losses) == 6, "ABL, at three rates and two seeds"
    poisoned = [losses for losses in material.losses.values() if losses.poison is not None]
    assert len(poisoned) == 4 and all(losses.poison.shape == (3, 3) for losses in poisoned)
    assert all(losses.auroc.shape == (3,) for losses in poisoned)
    areas = internals.auroc_lines(material, Cells.read(material.rows))
    lines = [line for one in areas for line in one.lines]
    assert len(lines) == 4, "a line per rate and seed"
    drawn = sorted(tuple(line.y) for line in lines)
    assert drawn == sorted(tuple(losses.auroc) for losses in poisoned)
    assert "AUROC by step" in text
    assert all((np.diff(losses.rest, axis=0) >= 0).all() for losses in material.losses.values())
    assert render(material) == render(material), "pure"
    assert not material.unread
    late = gather("shown", str(tmp_path), within=-1)
    assert late.unread == set(material.rows["trial"]) and not late.curves and not late.losses


def test_the_page_names_no_address(page: str) -> None:
    text = page.replace('http-equiv="Content-Security', "")
    assert "http" not in re.sub(r">[A-Za-z0-9+/=]{40,}<", "", text)


def test_what_defenses_say_of_themselves_is_shown(page: str) -> None:
    material = generated()
    cells = Cells.read(material.rows)
    facts, apart = internals.sheets(cells)
    told = {one.title: list(one.values) for one in facts.columns}
    models = [n for n, what in enumerate(told["what"]) if what == "<i>models</i>"]
    assert len(models) == 9, "each attack at each rate"
    assert all((told["least"][n], told["most"][n]) == (500.0, 500.0) for n in models)
    assert len(apart.columns[0].values) == 6, "where poison lies, and where there is some"
    assert "<i>models" not in page
    assert list(album(page, "insides")) == [
        *(f"abl, {attack} @ 5 %: loss by step" for attack in ("badnets", "blend", "sig")),
        "abl, blend @ 5 %: g(k), <i>margin</i>",
        "abl, blend @ 5 %: s(k), per sample",
    ]
    (figure, *_) = internals.loss_lines(material, cells)
    medians = [line for line in figure.lines if line.shape == "both"]
    assert {line.name for line in medians} == {"poisoned", "not poisoned"}
    poison = next(line for line in medians if line.name == "poisoned")
    assert poison.y[-1] < 0.01 and len(poison.x) == 8 and figure.y_log
    assert 'id="insides"' not in page_of(pd.DataFrame([row()]))


def test_curves_of_the_same_axes_are_drawn_together_a_line_for_each_name_and_seed() -> None:
    material = generated()
    cells = Cells.read(material.rows)
    levels, strengths = internals.curve_lines(material, cells)
    assert len(levels.lines) == 2 * 3 and len(strengths.lines) == 3
    assert (levels.x_title, levels.y_title) == ("k, samples", "g(k), <i>margin</i>")
    assert strengths.y_title == "s(k), per sample"
    poison = [line for line in levels.lines if line.name == "g of poison"]
    assert [line.label for line in poison] == [f"g of poison, seed {s}" for s in range(3)]
    assert [list(line.y) for line in poison] == [[s, s + 1, s + 2, s + 3, s + 4] for s in range(3)]
    assert len({line.cell for line in levels.lines}) == 1
    alone = replace(material, measured={"unknown": material.measured.popitem()[1]})
    assert internals.curve_lines(alone, cells) == []


def test_tuning_is_shown_with_what_it_saw(page: str) -> None:
    tuned = generated().tuned
    assert tuned is not None
    assert "transfer: tuned on the labels of other attacks alone" in page
    told = {one.title: list(one.values) for one in tuning.sheets(tuned)[0].columns}
    assert told["TPR tuned"][0] == "80.0 [72.0–88.0]"
    assert told["seconds tuned"][0] == "3.0 [2.7–3.3]", "seconds are no shares"
    assert "<b>blend" not in page
    assert len(album(page, "tuning")) == 1 + 3 + 1 + 1 + 3
    assert 'id="tuning"' not in page_of(pd.DataFrame([row()]))
    settings = tuned.settings.model_copy(update={"labels": "oracle"})
    assert "the labels of the very attack" in tuning.sentence(replace(tuned, settings=settings))
