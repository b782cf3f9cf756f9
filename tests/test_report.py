"""The report: aggregation by closed forms, escaping, empty cases, and a real browser."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep import records
from raysweep.launch import launch
from raysweep.loading import from_text
from raysweep.report.html import render
from raysweep.report.material import Material
from raysweep.report.tables import aggregate, failed_attacks, spread, text_table
from raysweep.sweepfile import parse

SWEEP = """
name: shown
question: is <b>this</b> & that shown?
dataset: {digits: {size: 600}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 6, batch_size: 64}
attacks: [{badnets: {rate: [0, 0.05, 0.1]}}]
defenses:
  - none
  - perfect_filter
  - {strip: {overlays: 4}}
  - {neural_cleanse: {steps: 12}}
seeds: 2
track: {wandb: disabled}
"""


def test_aggregate_gives_means_intervals_and_extremes() -> None:
    rows = pd.DataFrame(
        {"d": ["a"] * 3 + ["b"], "ca": [0.1, 0.2, 0.3, 0.5], "ca_n": [10, 10, 10, 20]}
    )
    table = aggregate(rows, ["d"], ["ca", "absent"]).set_index("d")
    assert table.loc["a", "ca"] == pytest.approx(0.2)
    assert table.loc["a", "ca_high"] - 0.2 == pytest.approx(0.24841, abs=1e-4)
    assert (table.loc["a", "ca_min"], table.loc["a", "ca_max"]) == (0.1, 0.3)
    low, high = table.loc["b", "ca_low"], table.loc["b", "ca_high"]
    assert (low, high) == (pytest.approx(0.2993, abs=1e-3), pytest.approx(0.7007, abs=1e-3))
    assert math.isnan(table.loc["a", "absent"]) and table.loc["a", "absent_seeds"] == 0
    assert spread(table.loc["a"], "ca") == "20.0 (10.0–30.0)"
    assert spread(table.loc["a"], "absent") == "–"


def row(**given: Any) -> dict[str, Any]:
    base = {
        "sweep": "s", "trial": "t", "dataset": "d", "model": "m", "attack": "badnets",
        "attack_name": "badnets", "rate": 0.05, "defense": "none", "defense_name": "none",
        "kind": "control", "badges": "", "seed": 0, "status": "ok", "error": "",
        "error_stage": "", "log": "", "ca": 0.9, "ca_n": 100, "asr": 0.4, "asr_n": 90,
    }  # fmt: skip
    return {**base, **given}


def test_attacks_that_fail_are_said_and_left_out() -> None:
    rows = pd.DataFrame([row(), row(attack="blend", attack_name="blend", asr=0.8, trial="u")])
    assert failed_attacks(rows) == {"badnets @ 5 %"}
    titles = [title for title, _, _ in text_table(rows)]
    assert "attack failed" in titles[0] and "attack failed" not in titles[1]
    page = render(Material(sweep={"name": "s"}, rows=rows, stages=pd.DataFrame()))
    assert "left out of averages: badnets @ 5 %" in page


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame(columns=list(row())),
        pd.DataFrame([row(status="failed", error="boom", error_stage="train-1", ca=None)]),
        pd.DataFrame([row(ca=np.nan, asr=np.nan)]),
        pd.DataFrame([row()]),
    ],
    ids=["empty", "failed", "nan", "one"],
)
def test_poor_records_make_a_page(rows: pd.DataFrame) -> None:
    page = render(Material(sweep={"name": "s"}, rows=rows, stages=pd.DataFrame()))
    assert page.startswith("<!doctype html>") and page.endswith("</html>")


def test_nothing_from_the_data_becomes_markup() -> None:
    evil = "<script>alert(1)</script>\"'&"
    rows = pd.DataFrame(
        [row(defense=evil, badges=evil), row(status="failed", error=evil, log=evil, trial="u")]
    )
    sweep = {"name": evil, "question": evil, "text": evil}
    page = render(Material(sweep=sweep, rows=rows, stages=pd.DataFrame()))
    assert "<script>alert(1)" not in page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real sweep."""
    folder = tmp_path_factory.mktemp("shown")
    conclusion = launch(from_text(parse("f", SWEEP)), SWEEP, str(folder), inline=True)
    assert (conclusion.rows["status"] == "ok").all()
    return Path(conclusion.report)


def test_the_page_holds_everything(page: Path) -> None:
    text = page.read_text()
    for section in ("answer", "headline", "results", "maps", "rates", "roc", "verdicts",
                    "pictures", "cost", "failures", "provenance"):  # fmt: skip
        assert f'<section id="{section}"' in text, section
    assert "is &lt;b&gt;this&lt;/b&gt; &amp; that shown?" in text
    assert "ASR of the trigger on the clean model" in text
    assert text.count("data:image/png;base64,") >= 3 + 10
    material = records.gather("shown", str(page.parents[2]))
    assert render(material) == render(material), "pure"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def size(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.slow
def test_opens_offline_without_errors_or_requests(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.execute_script("return document.querySelectorAll('.js-plotly-plot').length") > 5
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    own = (
        "data:",
        "blob:",
        "chrome://",
        page.as_uri(),
    )  # chrome:// is the browser's own start page
    outside = {url for url in asked if not url.startswith(own)}
    assert outside == set()


@pytest.mark.slow
def test_reads_on_a_phone(browser: Any, page: Path) -> None:
    size(browser, 360)
    browser.get(page.as_uri())
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 360, "tables scroll inside their own region"
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('td, th, p')].map(e => parseFloat(getComputedStyle(e).fontSize))"  # noqa: E501
    )
    assert min(sizes) >= 13
    size(browser, 1280)


@pytest.mark.slow
def test_is_reached_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the results"
    reached = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.get_attribute("role") or "")
        if browser.switch_to.active_element.tag_name == "button":
            break
    assert "region" in reached, "scroll regions take the focus"

    def column() -> list[str]:
        cells = browser.find_elements("css selector", "#headline tbody th")
        return [cell.text for cell in cells]

    button = browser.switch_to.active_element
    assert button.text == "defense"
    button.send_keys(Keys.ENTER)
    assert column() == sorted(column())
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert column() == sorted(column(), reverse=True)
