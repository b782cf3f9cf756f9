"""The page of a comparison: its answer, its data, its escaping, its size, and how it is read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.reports.comparison import render
from raysweep.results.changes import Changes, Pairs, of_pairs
from raysweep.results.records import Records
from tests.browser import click, drawn, everything, rows, show, violations, wait
from tests.material import album, column, generated, opened

HOSTILE = "</script><img src=x onerror=alert(1)>"


def compared(first: Records, second: Records) -> tuple[str, Changes]:
    pairs = Pairs.read(first.rows, second.rows)
    found = of_pairs(pairs, (len(first.rows), len(second.rows)), ("before", "after"))
    return render((first, second), pairs, found), found


def sides(seeds: int = 3) -> tuple[Records, Records]:
    """Return a sweep, and one that trains longer: all defenses but `none` let through less.

    Seed 0 is in the first alone, and seed 9 in the second.
    """
    made = generated(seeds)
    rng, before = np.random.default_rng(1), made.rows
    after = before.assign(**{"recipe.epochs": 16, "trial": before["trial"] + "-longer"})
    share = rng.uniform(0.4, 0.6, len(after))
    after["asr"] *= np.where(before["defense_name"] == "none", 1, share)
    after["seed"] = after["seed"].replace(0, 9)
    after["key_evaluate"] += "-longer"
    question = replace(made.sweep, question=f"Does longer training help? {HOSTILE}", text=HOSTILE)
    return (
        Records(rows=before, stages=made.stages, sweep=made.sweep),
        Records(rows=after, stages=made.stages, sweep=question, notes=[f"a note {HOSTILE}"]),
    )


@pytest.fixture(scope="module")
def made() -> tuple[str, Changes]:
    return compared(*sides())


def answer(page: str) -> str:
    """Return the text of the first screen, without tags."""
    text = page.partition('<section id="answer"')[2].partition("</section>")[0]
    return " ".join(re.sub("<[^>]*>", " ", text).split())


def test_the_answer_counts_cells_in_each_direction(made: tuple[str, Changes]) -> None:
    page, found = made
    said = answer(page)
    asr = found.cells.query("metric == 'asr' and rate > 0")
    fell, rose = int((asr["high"] < 0).sum()), int((asr["low"] > 0).sum())
    assert fell > 20 and rose == 0, "the material is as it was meant"
    assert (
        f"ASR fell in {fell} of {len(asr)} cells; no change is shown in {len(asr) - fell}" in said
    )
    ca = found.cells.query("metric == 'ca'")
    assert f"Clean accuracy: no change is shown in any of {len(ca)} cells." in said
    assert "126 trials are in both, of 189 of before and 189 of after" in said
    assert "124 pairs are finished, 0 of them evaluated by the very same artifact" in said
    assert "differs in before after pairs recipe.epochs 8 16 126" in said
    assert "before asks: Which defenses hold against three triggers?" in said


def test_the_table_holds_both_sides_and_the_changes(made: tuple[str, Changes]) -> None:
    page, found = made
    packed = opened(page, "cells")
    who = {name: column(packed["columns"][name]) for name in packed["columns"]}
    metrics = {one["name"]: one for one in packed["metrics"]}
    assert list(metrics)[:3] == ["asr_change", "first_asr", "second_asr"]
    assert metrics["first_asr"]["title"] == "ASR of before" and metrics["asr_change"]["signed"]
    known = found.cells[found.cells["metric"] == "asr"].set_index(["attack", "rate", "defense"])
    places = list(zip(who["attack"], who["rate"], who["defense"], strict=True))
    assert len(places) == 63 and len(known) == 62, "of one cell no pair has finished"
    for place, setting in enumerate(places):
        if setting not in known.index:
            assert metrics["asr_change"]["mean"][place] is None
            continue
        own = known.loc[setting]
        for part, name in (("mean", "difference"), ("low", "low"), ("high", "high")):
            assert metrics["asr_change"][part][place] == pytest.approx(own[name], abs=1e-5)
        assert metrics["first_asr"]["mean"][place] == pytest.approx(own["first"], abs=1e-5)
        assert metrics["second_asr"]["mean"][place] == pytest.approx(own["second"], abs=1e-5)
        said = {-1: "ASR fell", 0: "no change shown", 1: "ASR rose"}
        sign = int(own["low"] > 0) - int(own["high"] < 0)
        assert who["change"][place] == said[sign], setting
    assert set(who["first_n"]) == {3, 1} and packed["counts"]["first_n"] == "n of before"
    pairs = opened(page, "rows")
    by_name = {one["name"]: column(one) for one in pairs["columns"]}
    assert len(pairs["cells"]) == 126 and set(by_name["recipe.epochs_second"]) == {16}
    assert set(by_name["seed"]) == {1, 2}


def test_what_stands_in_one_sweep_alone_is_counted(made: tuple[str, Changes]) -> None:
    page, found = made
    assert "only in before: 63 trials; only in after: 63 trials." in page
    alone = opened(page, "alone-0")["columns"]
    assert sum(column(alone[5])) == len(found.only_first) + len(found.only_second) == 126
    assert set(column(alone[6])) == {"0", "9"}


def test_figures_show_each_change_with_its_interval(made: tuple[str, Changes]) -> None:
    page, found = made
    figures = album(page, "by-attack")
    assert list(figures)[:3] == [
        f"{attack}: change of ASR" for attack in ("badnets", "blend", "sig")
    ]
    drawing = figures["badnets: change of ASR"]
    line = next(one for one in drawing["lines"] if one["name"] == "strip")
    own = found.cells.query("attack == 'badnets' and defense == 'strip' and metric == 'asr'")
    own = own.sort_values("rate")
    assert line["x"] == [0, 1, 5]
    for part, name in (("y", "difference"), ("low", "low"), ("high", "high")):
        assert line[part] == pytest.approx((100 * own[name]).tolist(), abs=1e-3)


def test_hostile_text_stays_text_and_the_same_records_give_the_same_page(
    made: tuple[str, Changes],
) -> None:
    page, _ = made
    assert HOSTILE not in page and page.count("&lt;/script&gt;&lt;img") == 3
    assert page == compared(*sides())[0]


def test_nothing_in_common_and_nothing_changed_are_said() -> None:
    first, second = sides()
    other = replace(second, rows=second.rows.assign(seed=second.rows["seed"] + 100))
    page, found = compared(first, other)
    assert found.both == 0 and "nothing can be compared" in answer(page)
    assert 'id="maps"' not in page and "only in after: 189 trials" in page
    page, found = compared(first, first)
    said = answer(page)
    assert "189 trials are in both" in said and "187 of them evaluated by the very same" in said
    assert "ASR: no change is shown in any of 42 cells." in said
    assert "The trials of a pair have the same parameters throughout." in said
    assert 'id="alone"' not in page
    none = Records(rows=first.rows.iloc[:0], stages=first.stages, sweep=first.sweep)
    assert "nothing can be compared" in answer(compared(none, none)[0])


@pytest.mark.further
def test_pairs_are_data_and_not_elements() -> None:
    """Of 10,080 pairs in 1,008 cells the page has 2.2 MB, of which the libraries are 0.7."""
    sizes = []
    for seeds in (1, 12):
        first, _ = sides(seeds)
        page, found = compared(first, replace(first, rows=first.rows.assign(asr=0.5)))
        assert found.both == 63 * seeds
        sizes.append((len(page), page.count("<td") + page.count("<tr")))
    (few, elements), (many, same) = sizes
    assert many - few < 11 * 63 * 200 and elements == same < 200


# In a browser


@pytest.fixture(scope="module")
def page(made: tuple[str, Changes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("comparison") / "changes.html"
    file.write_text(made[0])
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.further)]
)
def test_everything_is_reached_and_read(
    browser: Any, page: Path, axe: str, width: int, scheme: str
) -> None:
    browser.get_log("browser")
    show(browser, page, width=width, scheme=scheme)
    everything(browser)
    assert browser.get_log("browser") == []
    assert violations(browser, axe) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    right = browser.execute_script(
        "return document.querySelector('#results [tabulator-field=\"m asr_change\"]')"
        ".getBoundingClientRect().right"
    )
    assert right <= width, "the change of ASR is seen without scrolling"


@pytest.mark.slow
def test_cells_are_filtered_by_their_change_and_opened(browser: Any, page: Path) -> None:
    show(browser, page, link="#change=ASR%20fell&attack=badnets&rate=0.05&view=results")
    drawn(browser, "results")
    found = rows(browser, "results")
    assert len(found) > 3 and all(row[2].startswith("-") for row in found)
    assert re.fullmatch(r"-[\d.]+ \[-[\d.]+, -[\d.]+\]", found[0][2])
    click(browser, "[data-metric=asr_change] td[data-cell]")
    drawn(browser, "trials")
    assert [row[3] for row in rows(browser, "trials")] == ["1", "2"], "one pair for each seed"
    tip = browser.find_element("css selector", "[data-metric=asr_change] td[data-cell]")
    assert re.search(
        r"ASR change -[\d.]+ \[.*\] points, of 2 pairs", tip.get_attribute("aria-label")
    )


@pytest.mark.slow
def test_the_pairs_are_taken_away(browser: Any, page: Path, downloads: Path) -> None:
    show(browser, page, link="#defense=strip&rate=0.05")
    drawn(browser, "trials")
    click(browser, "#trials .csv")
    file = downloads / "before_after.csv"
    wait(browser, file.exists)
    taken = pd.read_csv(file)
    assert len(taken) == 3 * 2 and {"asr_first", "asr_second", "trial_second"} <= {*taken}
