"""The report in a real browser: what a reader sees, presses, prints and takes away."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.reports.drawings import MOST as MOST_LINES
from raysweep.reports.html import render
from raysweep.reports.material import Material
from tests.browser import click, drawn, everything, rows, show, violations, wait
from tests.material import generated, many

SCRIPTS = Path(__file__).parent.parent / "raysweep" / "reports" / "page"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Material], Path]:
    def make(material: Material) -> Path:
        file = tmp_path_factory.mktemp("report") / "report.html"
        file.write_text(render(material))
        return file

    return make


@pytest.fixture(scope="module")
def page(make_page: Callable[[Material], Path]) -> Path:
    return make_page(generated())


def show_whole(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Show a page with everything drawn; where it already is, it is not drawn again."""
    known = f"{page} {width} {scheme}"
    if browser.execute_script("return document.documentElement.dataset.whole") == known:
        browser.execute_script("scrollTo(0, 0)")
        return
    show(browser, page, width=width, scheme=scheme)
    everything(browser)
    browser.execute_script("document.documentElement.dataset.whole = arguments[0]", known)


def test_opens_offline_without_errors_or_requests(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, page)
    assert browser.execute_script("return typeof Plotly") == "undefined", "nothing is drawn yet"
    show_whole(browser, page, 1280, "light")
    assert browser.execute_script("return document.querySelectorAll('.main-svg').length") > 10
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    # chrome:// is the browser's own start page.
    own = ("data:", "blob:", "chrome://", "about:", page.as_uri())
    assert page.as_uri() in asked and {url for url in asked if not url.startswith(own)} == set()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.further)]
)
def test_everything_is_reached_and_read(
    browser: Any, page: Path, axe: str, width: int, scheme: str
) -> None:
    show_whole(browser, page, width, scheme)
    assert violations(browser, axe) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(
        "return [...document.querySelectorAll('.tabulator, .scroll')].every(e =>"
        " e.getBoundingClientRect().right <= innerWidth)"
    ), "no table is wider than its box"
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('td, th, p, a, li, summary, figcaption, .badge,"
        " .tabulator-cell')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
    right = browser.execute_script(
        "return document.querySelector('#results [tabulator-field=\"m asr\"]')"
        ".getBoundingClientRect().right"
    )
    assert right <= width, "ASR is seen without scrolling"
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    figure = browser.execute_script(
        "return getComputedStyle(document.querySelector('.js-plotly-plot .main-svg')).background"
    )
    assert paper in figure, "figures follow"


@pytest.mark.further
def test_prints_whole_maps_and_badges(browser: Any, page: Path) -> None:
    show_whole(browser, page, 390, "dark")
    metrics = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_script("delete document.documentElement.dataset.whole")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 3
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    maps = browser.execute_script(
        "return [...document.querySelectorAll('.paper .map')].map(m => [m.dataset.metric,"
        " m.tBodies[0].rows.length, m.tBodies[0].rows[0].cells.length - 1,"
        " m.querySelectorAll('.badge').length,"
        " m.closest('.scroll').scrollWidth <= m.closest('.scroll').clientWidth])"
    )
    assert maps == [["asr", 7, 9, 2, True], ["lost", 7, 9, 2, True]]
    printed = browser.execute_script(
        "return document.querySelectorAll('#results .paper tbody tr').length"
    )
    assert printed == 3 * 3 * 7
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelector('.paper')") is None


@pytest.mark.further
def test_what_nobody_scrolled_to_is_printed_whole(browser: Any, page: Path) -> None:
    show(browser, page)
    assert browser.execute_script("return document.querySelectorAll('.main-svg').length") == 0
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    # Before the window has the width of paper: figures follow a window, and a printer has none.
    figures = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => [p.querySelectorAll("
        "'.scatterlayer .trace, .barlayer .trace').length,"
        " p.querySelector('.main-svg').getBoundingClientRect().width])"
    )
    assert len(figures) > 10 and all(lines and width <= 340 for lines, width in figures), figures
    paper = {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # of A4
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    columns, tables, sheets, width = browser.execute_script(
        "const box = (e) => e.getBoundingClientRect();"
        "return [[...document.querySelectorAll('.plot')].map(p => box(p).width),"
        " [...document.querySelectorAll('.paper table')].map(t => box(t).right),"
        " document.querySelectorAll('.sheet').length, document.documentElement.scrollWidth]"
    )
    assert min(columns) >= 340, "a figure has room in its column"
    assert len(tables) > sheets > 0 and max(tables) <= width <= 718, "no column is cut"
    browser.execute_script("dispatchEvent(new Event('afterprint'))")


@pytest.mark.further
def test_columns_without_room_are_hidden_and_counted(browser: Any, page: Path) -> None:
    show(browser, page)
    for section in ("results", "trials"):
        drawn(browser, section)
        state = (
            f"const own = document.querySelector('#{section}-drawn'),"
            " holder = own.querySelector('.tabulator-tableholder');"
            "return [holder.scrollWidth <= holder.clientWidth,"
            " own.querySelector('.columns summary').innerText,"
            " [...own.querySelectorAll('.tabulator-col')].filter(c => c.offsetWidth).length,"
            " own.querySelectorAll('.columns input').length + 1,"
            " own.querySelectorAll('.columns input:checked').length + 1]"
        )
        fits, said, seen, every, checked = browser.execute_script(state)
        assert fits and seen == checked < every and said == f"columns ({seen} of {every})"
        hidden = f"document.querySelector('#{section} .columns input:not(:checked)')"
        browser.execute_script(f"{hidden}.click()")
        fits, said, *_ = browser.execute_script(state)
        assert not fits and said == f"columns ({seen + 1} of {every})"


@pytest.mark.further
def test_figures_keep_their_height_when_the_window_changes(browser: Any, page: Path) -> None:
    show(browser, page)
    drawn(browser, "roc")
    heights = (
        "return [...document.querySelectorAll('#roc .drawing')].map(d =>"
        " [d.clientHeight, d.scrollHeight, d.querySelector('.main-svg').clientHeight])"
    )
    before = browser.execute_script(heights)
    assert all(box == content == drawing for box, content, drawing in before), "nothing is cut"
    metrics = {"width": 1100, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait(browser, lambda: browser.execute_script(
        "return [...document.querySelectorAll('#roc .drawing')].every(d =>"
        " d.querySelector('.main-svg').clientWidth <= d.clientWidth)"))  # fmt: skip
    assert browser.execute_script(heights) == before


def test_the_page_may_not_load_anything(browser: Any, page: Path) -> None:
    """Were something on the page to ask for a file, the page's own policy would refuse."""
    show(browser, page)
    refused = browser.execute_async_script(
        "const done = arguments[0], refused = [];"
        "document.addEventListener('securitypolicyviolation', (e) => {"
        "  if (refused.push(e.blockedURI) === 2) done(refused); });"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);"
        "fetch('http://127.0.0.1:9/y').catch(() => 0);"
    )
    assert sorted(refused) == ["http://127.0.0.1:9/x.png", "http://127.0.0.1:9/y"]
    browser.get_log("browser")


def test_the_first_screen_holds_the_answer_and_both_maps(browser: Any, page: Path) -> None:
    show(browser, page)
    seen = browser.execute_script(
        "return ['#answer h2', '.answers', '#filters', '[data-metric=asr] tbody tr:last-child',"
        " '[data-metric=lost] tbody tr:last-child'].map(s =>"
        " document.querySelector(s).getBoundingClientRect().bottom)"
    )
    assert max(seen) <= 800
    inside = browser.execute_script(
        "const e = document.querySelector('.answers'); return e.scrollHeight <= e.clientHeight"
    )
    assert inside, "the answer on every attack is seen without scrolling"
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.map')].filter(e =>"
        " e.offsetWidth > e.closest('.scroll').clientWidth).length"
    )
    assert wide == 0


@pytest.mark.further
def test_a_sweep_of_which_nothing_has_finished_is_shown(
    browser: Any, make_page: Callable[[Material], Path]
) -> None:
    """Rows that are derived while a sweep runs have no metrics before the first trial finishes."""
    material = generated(1)
    known = ["trial", "dataset", "model", "attack", "attack_name", "rate", "defense",
             "defense_name", "kind", "badges", "seed", "error_stage", "log"]  # fmt: skip
    pending = material.rows[known].assign(status="pending", error="")
    browser.get_log("browser")
    show(browser, make_page(replace(material, rows=pending, curves={}, triggers={}, losses={})))
    drawn(browser, "results")
    drawn(browser, "trials")
    assert len(rows(browser, "results")) > 3 and len(rows(browser, "trials")) > 3
    assert "Nothing in view was measured." in browser.find_element("id", "maps-drawn").text
    assert browser.get_log("browser") == []


@pytest.mark.long
def test_elements_and_height_do_not_grow_with_trials(
    browser: Any, make_page: Callable[[Material], Path]
) -> None:
    sizes, most = [], 0
    for seeds in (2, 54):
        show(browser, make_page(generated(seeds)))
        everything(browser)
        outside, height, lines = browser.execute_script(
            "const count = (own) => document.querySelectorAll(own).length;"
            "return [count('*') - count('.plot *'), document.documentElement.scrollHeight,"
            " [...document.querySelectorAll('.plot')].map(plot => plot.drawing.lines.length)]"
        )
        sizes.append((outside, height))
        most = max(most, *lines)
    (few, low), (many, high) = sizes
    assert many < 1.1 * few and high < 1.1 * low, "27 times the trials"
    assert 100 < most <= MOST_LINES, "a figure draws a line for each seed, up to this many"


@pytest.mark.further
def test_a_map_is_read_and_opened_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the results"
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.get_attribute("data-cell"):
            break
    tip = browser.find_element("id", "tip")
    assert tip.text.startswith("none, badnets @ 0 %: ASR ")
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    said = r"perfect_filter \(oracle: poison mask\), badnets @ 1 %: ASR [\d.]+ \[[\d.–]+\] %, of 3"
    assert re.match(said, tip.text), tip.text
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    drawn(browser, "trials")
    assert [row[:4] for row in rows(browser, "trials")] == [
        ["perfect_filter", "badnets", "0.01", str(seed)] for seed in range(3)
    ]


def test_tables_sort_by_keyboard_and_what_is_undefined_goes_last(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page, link="#attack=badnets&rate=0.05&view=results")
    drawn(browser, "results")
    head = browser.find_element("css selector", "#results [tabulator-field='m tpr']")
    names = [cell[0] for cell in rows(browser, "results")]
    assert len(names) == 7
    for up in (True, False):
        head.find_element("tag name", "button").send_keys(Keys.ENTER)
        want = "ascending" if up else "descending"
        wait(browser, lambda want=want: head.get_attribute("aria-sort") == want)
        cells = [row[6] for row in rows(browser, "results")]
        numbers = [float(cell.split()[0]) for cell in cells if cell != "–"]
        assert numbers == sorted(numbers, reverse=not up) and len(numbers) == 4
        assert cells[len(numbers) :] == ["–"] * 3, "undefined last"


def test_header_and_first_column_stay_in_place(browser: Any, page: Path) -> None:
    show(browser, page, link="#view=trials")
    drawn(browser, "trials")
    holder = browser.find_element("css selector", "#trials .tabulator-tableholder")
    places = []
    for left, top in ((0, 0), (300, 900)):
        browser.execute_script(
            "arguments[0].scrollTo(arguments[1], arguments[2])", holder, left, top
        )
        wait(browser, lambda top=top: browser.execute_script(
            "return arguments[0].scrollTop", holder) == top)  # fmt: skip
        places.append(
            browser.execute_script(
                "return ['.tabulator-header', '.tabulator-row .first'].map(s => {"
                " const b = document.querySelector('#trials ' + s).getBoundingClientRect();"
                " return [Math.round(b.left), s.includes('row') ? 0 : Math.round(b.top)]; })"
            )
        )
    assert places[0] == places[1]


def test_which_defense_keeps_badnets_low_without_losing_accuracy(browser: Any, page: Path) -> None:
    """'... at 5 % poison without losing 2 points?': a click on a heading, and a number."""
    show(browser, page)
    click(browser, "[data-metric=asr] thead tr:last-child th:nth-child(3) button")
    field = browser.find_element("css selector", "[data-limit=lost]")
    field.send_keys("2")
    drawn(browser, "results")
    material = generated().rows
    cell = material[(material["attack"] == "badnets") & (material["rate"] == 0.05)]
    means = cell.groupby("defense")[["ca", "asr"]].mean()
    good = means[means["ca"] > means.loc["none", "ca"] - 0.02].sort_values("asr")
    assert [row[2].split()[0] for row in rows(browser, "results")] == [
        f"{100 * asr:.1f}" for asr in good["asr"]
    ]
    assert "attack=badnets" in browser.current_url and "lost-most=2" in browser.current_url
    view = browser.current_url.partition("#")[2]
    show(browser, page, link=f"#{view}")
    drawn(browser, "results")
    assert len(rows(browser, "results")) == len(good), "a link keeps the view"


def test_which_defenses_need_no_oracle_and_which_trials_failed(browser: Any, page: Path) -> None:
    show(browser, page)
    click(browser, "[data-part=badge] summary")
    click(browser, "[data-part=badge] input[value='no badge']")
    names = browser.execute_script(
        "return [...document.querySelectorAll('[data-metric=asr] tbody th')].map(e => e.innerText)"
    )
    assert names == ["none", "activation_clustering", "strip", "abl", "neural_cleanse"]
    assert "135 of 189 trials" in browser.find_element("id", "filters").text
    click(browser, "nav a[href='#failures']")
    drawn(browser, "failures")
    assert rows(browser, "failures")[0][:2] == [
        "NonFiniteLoss: step 7", "1 failed, 1 upstream_failed"
    ]  # fmt: skip


def test_which_defense_is_best_over_all_attacks(browser: Any, page: Path) -> None:
    show(browser, page, link="#view=results&by=defense")
    drawn(browser, "results")
    found = rows(browser, "results")
    material = generated().rows
    done = material[(material["status"] == "ok") & (material["rate"] > 0)]
    means = done[done["attack"] != "sig"].groupby(["defense", "attack"])["asr"].mean()
    want = means.groupby("defense").mean().sort_values()
    assert [row[2].split()[0] for row in found] == [f"{100 * asr:.1f}" for asr in want]


@pytest.mark.further
def test_from_which_rate_on_an_attack_works(browser: Any, page: Path) -> None:
    """A click on the attack's heading, and one on the section."""
    show(browser, page)
    (heading,) = [
        button
        for button in browser.find_elements("css selector", "[data-metric=asr] thead th button")
        if button.text == "blend"
    ]
    heading.click()
    click(browser, "nav a[href='#rates']")
    drawn(browser, "rates")
    title, line = browser.execute_script(
        "const plot = document.querySelector('#rates .plot');"
        "const {x, y} = plot.drawing.lines.find(l => l.name === 'none' && l.shape === 'both');"
        "return [plot.querySelector('figcaption').innerText, [x, y]]"
    )
    material = generated().rows
    own = material[(material["attack"] == "blend") & (material["defense"] == "none")]
    means = own.groupby("rate")["asr"].mean()
    assert title == "blend: ASR against poison rate"
    np.testing.assert_allclose(line, [100 * means.index, 100 * means], rtol=1e-4)


@pytest.mark.further
def test_what_a_defense_costs_on_another_model(
    browser: Any, make_page: Callable[[Material], Path]
) -> None:
    material = many(1)
    show(browser, make_page(material))
    setting = "gtsrb · vgg16"
    browser.find_element("css selector", f"#maps option[value='{setting}']").click()
    shown = browser.execute_script(
        "const map = document.querySelector('.map[data-metric=lost]');"
        "const row = [...map.tBodies[0].rows].find(r => r.cells[0].innerText === 'abl');"
        "return [...row.cells].slice(1).map(cell => cell.innerText)"
    )
    rows = material.rows[material.rows["dataset"] + " · " + material.rows["model"] == setting]
    accuracy = rows.set_index(["attack", "rate", "defense"])["ca"].unstack()
    lost = 100 * (accuracy["none"] - accuracy["abl"])
    assert sorted(shown) == sorted(f"{points:.1f}" for points in lost) and len(shown) > 10


@pytest.mark.further
def test_a_command_breaks_between_words_alone(browser: Any, page: Path) -> None:
    show(browser, page, width=390)
    drawn(browser, "trials")
    words, lines = browser.execute_script(
        "const code = document.querySelector('#trials code'); const range = new Range();"
        "const found = code.textContent.split(' '); let at = 0; const texts = [];"
        "const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);"
        "while (walker.nextNode()) for (let n = 0; n < walker.currentNode.length; n += 1) {"
        "  range.setStart(walker.currentNode, n); range.setEnd(walker.currentNode, n + 1);"
        "  texts.push(Math.round(range.getBoundingClientRect().bottom)); }"
        "return [found.join(' '), found.map(word => {"
        "  const own = new Set(texts.slice(at, at + word.length)); at += word.length + 1;"
        "  return own.size; })]"
    )
    assert words == (
        "raysweep results generated --format parquet --output generated.parquet"
    ) and set(lines) == {1}


def test_filters_open_within_the_width_of_a_phone(browser: Any, page: Path) -> None:
    show(browser, page, width=390)
    ends = browser.execute_script(
        "return [...document.querySelectorAll('#filters details')].map(d => { d.open = true;"
        " const box = d.querySelector('fieldset').getBoundingClientRect(); d.open = false;"
        " return [box.left, box.right]; })"
    )
    assert len(ends) >= 4 and all(0 <= left < right <= 390 for left, right in ends)


def test_an_interval_stands_under_its_mean_and_rows_are_of_one_height(
    browser: Any, page: Path
) -> None:
    show(browser, page)
    drawn(browser, "results")
    found = browser.execute_script(
        "return [...document.querySelectorAll('#results .tabulator-row')].slice(0, 5).map(row =>"
        " { const one = row.querySelector('.interval'), range = document.createRange();"
        " range.selectNode(one.parentElement.firstChild);"
        " return [range.getBoundingClientRect().bottom, one.getBoundingClientRect().top,"
        " row.clientHeight, row.querySelector('.first').getBoundingClientRect().height]; })"
    )
    for mean, interval, row, first in found:
        assert mean <= interval + 1 and abs(row - first) <= 1
    heads = browser.execute_script(
        "return [...document.querySelectorAll('.map[data-metric=lost] thead tr:last-child th')]"
        ".map(e => e.innerText)"
    )
    assert heads[0] == "0 %" and "all" not in heads, "the clean model's column names its rate"


@pytest.mark.further
def test_the_view_is_taken_away_as_csv_and_latex(browser: Any, page: Path, downloads: Path) -> None:
    show(browser, page, link="#attack=blend&rate=0.05&defense=abl&view=trials")
    drawn(browser, "trials")
    click(browser, "#trials .csv")
    file = downloads / "generated.csv"
    wait(browser, file.exists)
    lines = list(csv.DictReader(io.StringIO(file.read_text())))
    material = generated().rows
    own = material[(material["attack"] == "blend") & (material["rate"] == 0.05)]
    own = own[own["defense"] == "abl"]
    assert list(lines[0]) == list(material.columns)
    assert [line["trial"] for line in lines] == own["trial"].tolist()
    assert [float(line["asr"]) for line in lines] == pytest.approx(own["asr"].tolist(), abs=1e-9)
    said = browser.find_element("css selector", "#trials code").text
    assert said.startswith("raysweep results generated --format parquet")
    drawn(browser, "results")
    click(browser, "#results .latex")
    tex = downloads / "generated.tex"
    wait(browser, tex.exists)
    assert r"\multicolumn" in tex.read_text() and r"blend @ 5 \%" in tex.read_text()


def test_figures_obey_the_filters(browser: Any, page: Path) -> None:
    show(browser, page, link="#attack=badnets&rate=0.05&defense=strip&view=roc")
    drawn(browser, "roc")
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#roc figcaption')].map(e => e.innerText)"
    )
    assert titles == ["badnets @ 5 %: scores of test inputs, a line per seed"]
    names = browser.execute_script(
        "return document.querySelector('#roc .drawing').data.map(t => t.name)"
    )
    assert set(names) == {"chance", "strip"}
    dashes = browser.execute_script(
        "return document.querySelector('#roc .drawing').data.map(t => [t.name, t.line?.dash])"
    )
    assert ["chance", None] in dashes, "no detector that is drawn in dots is taken for chance"


@pytest.mark.further
def test_a_defense_has_one_color_everywhere(browser: Any, page: Path) -> None:
    show(browser, page)
    looks: dict[str, set[tuple[str, str]]] = {}
    for section in ("rates", "roc"):
        drawn(browser, section)
        for name, color, dash in browser.execute_script(
            "return [...document.querySelectorAll(`#${arguments[0]} .drawing`)].flatMap(d =>"
            " d.data.filter(t => t.mode.includes('lines')).map(t =>"
            " [t.name, t.line.color, t.line.dash]))", section,
        ):  # fmt: skip
            looks.setdefault(name, set()).add((color, dash))
    assert {"none", "strip", "abl"} <= set(looks)
    assert all(len(own) == 1 for own in looks.values())


# Linear RGB as it is seen with one kind of cones missing: G. M. Machado, M. M. Oliveira, L. A. F.
# Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009.
SIGHT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
NORMAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color: str, sight: Sequence[Sequence[float]] = NORMAL) -> np.ndarray:
    """Return a color's CIE L*, a* and b*, as an eye sees it."""
    parts = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    ratios = XYZ @ np.clip(np.array(sight) @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_twelve_defenses_are_told_apart_in_color_in_gray_and_by_the_color_blind() -> None:
    """Lines of one dash by their color alone; all others by color, dash and symbol."""
    text = (SCRIPTS / "names.js").read_text()

    def names(constant: str) -> list[str]:
        found = re.search(rf"const {constant} = \[(.*?)\];", text, re.DOTALL)
        assert found
        return re.findall(r'"([^"]+)"', found[1])

    colors, symbols, dashes = names("COLORS"), names("SYMBOLS"), names("DASHES")
    assert len(set(colors)) == len(set(symbols)) == 12 and len(set(dashes)) == 5
    for one, other in combinations(range(12), 2):
        pair = colors[one], colors[other]
        assert np.linalg.norm(np.subtract(*map(lab, pair))) > 20, pair
        if one % len(dashes) != other % len(dashes):
            continue
        assert abs(np.subtract(*(lab(color)[0] for color in pair))) > 12, pair
        for sight, seen in SIGHT.items():
            apart = np.subtract(*(lab(color, seen) for color in pair))
            assert np.linalg.norm(apart) > 20, (sight, pair)


EVIL = "<img src=x onerror=\"document.title='broken'\"><a href='https://evil.example'>x</a>"


@pytest.mark.further
def test_hostile_text_stays_text(browser: Any, make_page: Callable[[Material], Path]) -> None:
    material = generated(seeds=1)
    rows = material.rows.copy()
    names = ["dataset", "attack", "defense", "kind", "badges", "host"]
    rows[names] = rows[names].map(lambda value: EVIL + str(value))
    rows.loc[:5, ["status", "error", "log"]] = ["failed", EVIL, EVIL]
    curves = material.curves
    page = make_page(
        Material(sweep=material.sweep, rows=rows, stages=material.stages, curves=curves)
    )
    show(browser, page)
    everything(browser)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.title.startswith("generated")
    assert browser.execute_script(
        "return document.querySelectorAll('a[href*=evil], img[src=x]').length"
    ) == 0  # fmt: skip
