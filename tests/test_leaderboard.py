"""The leaderboard: cells of real sweeps as a static site, and as BackdoorBench's table."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

import raysweep
from raysweep.cli.app import app
from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.errors import PlanError, SpecError, StoreError
from raysweep.exchange.leaderboard import to_csv
from raysweep.reports.leaderboard import Leaderboard, gather, render, to_json
from raysweep.store import Store
from tests.browser import view

HOSTILE = "</script><script>document.title='owned'</script>"
TEXT = """
name: first
question: "%s"
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 2, batch_size: 32, precision: float32}
attacks: [none, {badnets: {rate: [0.05, 0.1]}}]
defenses: [none, spectral_signatures, {strip: {overlays: 4}}]
seeds: 2
track: {wandb: disabled}
"""
FIRST = TEXT % HOSTILE
SECOND = """
name: second
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 2, batch_size: 32, precision: float32}
attack: {badnets: {rate: 0.1}}
defenses: [none, perfect_filter]
track: {wandb: disabled}
"""


def broken(self: object, inputs: object, ctx: object) -> NoReturn:
    raise ValueError("no clusters today")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with two sweeps that share a cell, one of another recipe, and one that failed."""
    folder = tmp_path_factory.mktemp("leaderboard")
    longer = SECOND.replace("second", "longer").replace("epochs: 2", "epochs: 3")
    for text in (FIRST, SECOND, longer):
        (folder / "sweep.yaml").write_text(text)
        raysweep.launch(folder / "sweep.yaml", str(folder / "store"), inline=True)
    lost = SECOND.replace("second", "lost").replace("none, perfect_filter", "activation_clustering")
    (folder / "sweep.yaml").write_text(lost)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationClustering, "run", broken)
        raysweep.launch(folder / "sweep.yaml", str(folder / "store"), inline=True)
    return str(folder / "store")


@pytest.fixture(scope="module")
def board(storage: str) -> Leaderboard:
    return gather(Store(storage), ["first", "second"])


@pytest.fixture(scope="module")
def site(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "made"
    words = ["leaderboard", "first", "second", "--output", str(folder), "--storage", storage]
    app(words, standalone_mode=False)
    return folder


@pytest.mark.further
def test_cells_are_those_of_each_sweep(board: Leaderboard, storage: str) -> None:
    cells = board.cells
    assert len(cells) == 3 * 3 + 2
    rows = raysweep.load("first", storage)
    for cell in cells[cells["sweep"] == "first"].to_dict("records"):
        own = rows[(rows["attack"] == cell["attack"]) & (rows["rate"] == cell["rate"])]
        own = own[own["defense"] == cell["defense"]]
        assert cell["n_trials"] == cell["n_finished"] == len(own) == 2
        assert cell["ca"] == pytest.approx(own["ca"].mean())
        assert cell["ca_n"] == 2 and cell["ca_unit"] == "seeds"
    alone = cells[cells["sweep"] == "second"]
    assert (alone["ca_unit"] == "inputs").all() and (alone["ca_low"] < alone["ca"]).all()


@pytest.mark.further
def test_cells_of_two_sweeps_are_shown_twice_and_never_averaged(board: Leaderboard) -> None:
    both = board.cells[board.cells["others"].map(len) > 0]
    assert both[["sweep", "others"]].values.tolist() == [
        ["first", ("second",)],
        ["second", ("first",)],
    ]
    assert set(both["defense"]) == {"none"} and set(both["rate"]) == {0.1}


def test_sweeps_of_other_recipes_are_other_arenas(storage: str) -> None:
    mixed = gather(Store(storage), ["second", "longer"])
    assert set(mixed.cells["arena"].str.partition(" · epochs ")[2]) == {"2", "3"}
    assert mixed.cells["others"].map(len).sum() == 0


def test_what_failed_is_a_cell_without_numbers(storage: str) -> None:
    board = gather(Store(storage), ["lost"])
    assert board.cells[["n_trials", "n_finished"]].values.tolist() == [[1, 0]]
    row = re.findall(r"<tr role=\"row\" data-arena.*?</tr>", render(board), re.DOTALL)[0]
    assert re.findall(r"data-label=\"(\w+)\" data-value=\"\">–</td>", row) == [
        "ASR", "CA", "DER", "TPR", "FPR",
    ]  # fmt: skip
    assert "0 of 1" in row and "0 of 1 trials finished" in render(board)
    assert to_csv(board.cells).splitlines()[1] == "digits(size=300),linear,badnet,ac,0.1,,,"


def test_the_same_records_give_the_same_site(board: Leaderboard, storage: str) -> None:
    again = gather(Store(storage), ["first", "second", "first"])
    assert render(board) == render(again) and to_json(board) == to_json(again)


def test_json_holds_every_cell_and_no_nan(site: Path, board: Leaderboard) -> None:
    def refused(word: str) -> None:
        raise AssertionError(word)

    text = (site / "leaderboard.json").read_text()
    content = json.loads(text, parse_constant=refused)
    assert len(content["cells"]) == len(board.cells)
    first = content["cells"][0]
    assert first["attack"] == "none" or first["attack"] == "badnets"
    assert isinstance(first["ca_values"], list) and "ca_low" in first
    assert content["sources"][0]["text"] == FIRST
    assert content["sources"][0]["command"] == "raysweep launch first.yaml"


def test_every_number_has_its_n_and_the_file_that_makes_it(site: Path) -> None:
    page = (site / "index.html").read_text()
    rows = re.findall(r"<tr role=\"row\" data-arena.*?</tr>", page, re.DOTALL)
    assert len(rows) == 11
    for row in rows:
        numbers = re.findall(
            r"data-label=\"(\w+)\" data-value=\"([\d.e-]+)\">(.*?)</td>", row, re.DOTALL
        )
        assert {"rate", "CA"} <= {name for name, *_ in numbers}
        for name, value, shown in numbers:
            assert name == "rate" or re.search(r"\d (input|seed)", shown), (name, shown)
            assert f"{100 * float(value):.1f}" in shown or name == "rate"
        assert re.search(r"<a href=\"#sweep-[01]\">(first|second)</a>", row)
    assert "raysweep launch second.yaml" in page and "recipe: {epochs: 2" in page
    assert page.count('<span class="badge">oracle: poison mask</span>') == 1


def test_hostile_text_stays_text(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert HOSTILE not in page and page.count("<script>") == 1
    assert "&lt;/script&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_sweep_that_is_not_there_is_named(storage: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no sweep 'nothing'.*first"):
        gather(Store(storage), ["first", "nothing"])
    with pytest.raises(SpecError, match="--format must be one of site, backdoorbench, got 'csv'"):
        app(
            ["leaderboard", "first", "--format", "csv", "--storage", storage], standalone_mode=False
        )


# BackdoorBench's table


def test_backdoorbench_names_and_fractions(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["leaderboard", "first", "--format", "backdoorbench", "--storage", storage]
    capsys.readouterr()
    app(words, standalone_mode=False)
    said = capsys.readouterr()
    lines = list(csv.DictReader(io.StringIO(said.out)))
    assert list(lines[0]) == [
        "dataset", "backbone", "attack_name", "defense_name", "ratio", "test_acc", "test_asr",
        "test_ra",
    ]  # fmt: skip
    assert "3 cells of attacks without poison are left out" in said.err
    assert len(lines) == 6 and {one["attack_name"] for one in lines} == {"badnet"}
    names = {one["defense_name"] for one in lines}
    assert names == {"no defense", "spectral", "strip(overlays=4)"}
    rows = raysweep.load("first", storage)
    table = rows.query("rate == 0.05").pivot(["ca", "asr", "ra"])
    own = next(o for o in lines if o["defense_name"] == "no defense" and o["ratio"] == "0.05")
    for metric, column in (("ca", "test_acc"), ("asr", "test_asr"), ("ra", "test_ra")):
        assert float(own[column]) == pytest.approx(table.loc["none", (metric, "badnets")])


def test_what_the_table_cannot_tell_apart_is_refused(storage: str, board: Leaderboard) -> None:
    with pytest.raises(PlanError, match=r"badnets @ 0\.1 with none .* of first, .* of second"):
        to_csv(board.cells)
    mixed = gather(Store(storage), ["second", "longer"])
    with pytest.raises(PlanError, match=r"epochs 2 of second, .* epochs 3 of longer"):
        to_csv(mixed.cells)


def test_what_was_not_measured_is_empty(board: Leaderboard) -> None:
    one = board.cells[board.cells["rate"] == 0.05].head(1).assign(asr=float("nan"))
    line = next(csv.DictReader(io.StringIO(to_csv(one))))
    assert line["test_asr"] == "" and line["test_acc"] != ""


# In a browser


def visible(browser: Any, column: int) -> list[str]:
    """Return the words of a column in the rows that are shown, without what stands beside them."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('tbody tr:not([hidden])')].map(r => "
        "[...r.cells[arguments[0]].childNodes].find(n => n.textContent.trim()).textContent.trim())",
        column,
    )
    return found


@pytest.mark.slow
def test_filters_search_and_addresses(browser: Any, site: Path) -> None:
    from selenium.webdriver.support.ui import Select

    page = site / "index.html"
    view(browser, page)
    assert browser.title == "Leaderboard · raysweep" and browser.get_log("browser") == []
    count = browser.find_element("id", "count")
    assert count.text == "11 of 11 cells"
    Select(browser.find_element("css selector", "[data-filter=rate]")).select_by_visible_text(
        "10 %"
    )
    Select(browser.find_element("css selector", "[data-filter=sweep]")).select_by_visible_text(
        "first"
    )
    assert count.text == "3 of 11 cells" and set(visible(browser, 1)) == {"10 %"}
    behind = browser.execute_script("return location.hash")
    browser.find_element("css selector", "[data-search]").send_keys("STRIP")
    assert count.text == "1 of 11 cells"
    view(browser, page, link=behind)
    assert browser.find_element("id", "count").text == "3 of 11 cells"
    browser.find_element("css selector", "[data-clear]").click()
    assert browser.find_element("id", "count").text == "11 of 11 cells"


@pytest.mark.slow
def test_columns_sort_by_their_numbers(browser: Any, site: Path) -> None:
    view(browser, site / "index.html")
    header = browser.find_elements("css selector", "thead button")[3]
    assert header.text == "ASR"
    header.click()
    shown = visible(browser, 3)
    defined = [float(text) for text in shown if text != "–"]
    assert defined == sorted(defined) and shown[len(defined) :] == ["–"] * (11 - len(defined))
    header.click()
    assert [float(text) for text in visible(browser, 3)[: len(defined)]] == defined[::-1]


@pytest.mark.slow
def test_reads_on_a_phone(browser: Any, site: Path) -> None:
    view(browser, site / "index.html", width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    cell = browser.find_element("css selector", "tbody td[data-label=ASR]")
    assert cell.is_displayed() and cell.rect["x"] + cell.rect["width"] <= 390


@pytest.mark.slow
def test_long_tables_are_shown_in_parts(browser: Any, board: Leaderboard, tmp_path: Path) -> None:
    import pandas as pd

    page = tmp_path / "long.html"
    many = pd.concat([board.cells] * 30, ignore_index=True)
    page.write_text(render(replace(board, cells=many)))
    view(browser, page)
    assert browser.find_element("id", "count").text == "330 of 330 cells, 130 not shown"
    assert len(visible(browser, 0)) == 200
    browser.find_element("id", "more").click()
    assert len(visible(browser, 0)) == 330
