"""The report: aggregation by closed forms, escaping, empty cases, and a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
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
from raysweep.reports import internals, tuning
from raysweep.reports.figures import heat_maps, rate_lines
from raysweep.reports.html import render
from raysweep.reports.html_elements import picture, table
from raysweep.reports.material import Material, gather
from raysweep.reports.pictures import factor, magnified
from raysweep.reports.tables import METRICS, aggregate, failed_attacks, floors, spread, text_table
from raysweep.results.description import Description
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests.material import generated, row

SWEEP = """
name: shown
question: is <b>this</b> & that shown?
dataset: {digits: {size: 400}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 6, batch_size: 64}
attacks: [{badnets: {rate: [0, 0.05, 0.1]}}]
defenses:
  - none
  - perfect_filter
  - {strip: {overlays: 4}}
  - {neural_cleanse: {steps: 10}}
  - {abl: {isolation_epochs: 3, tuning_epochs: 1, unlearning_steps: 4}}
seeds: 2
track: {wandb: disabled}
"""


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


def test_attacks_that_fail_are_said_and_left_out() -> None:
    failing = row(asr=0.4)
    rows = pd.DataFrame([failing, row(attack="blend", attack_name="blend", asr=0.8, trial="u")])
    found = "the trigger was not learned: undefended ASR 40 %"
    assert failed_attacks(rows) == {"badnets @ 5 %": found}
    titles = [title for title, _, _ in text_table(rows)]
    setting = "digits · tiny_cnn"
    assert titles == [f"badnets @ 5 % · {setting}; {found}", f"blend @ 5 % · {setting}"]
    page = page_of(rows)
    assert f"left out of averages: badnets @ 5 % ({found})." in page
    assert f"badnets @ 5 % · {setting}; {found}" in page
    assert "ttack failed" not in page, "a finding is no crash"
    assert "attacks succeed on 80.0" in page, "of blend alone"


def test_an_attack_may_fail_on_one_dataset_and_work_on_another() -> None:
    rows = pd.DataFrame([row(asr=0.1), row(dataset="gtsrb", asr=0.9, trial="u")])
    assert set(failed_attacks(rows)) == {"badnets @ 5 % (digits · tiny_cnn)"}


def test_only_seeds_are_averaged() -> None:
    kinds = [{"dataset": "gtsrb"}, {"model": "resnet18"}, {"recipe.epochs": 9}, {}]
    base = {"recipe.epochs": 8}
    rows = pd.DataFrame([row(trial=str(n), **{**base, **k}) for n, k in enumerate(kinds)])
    assert [line[9] for _, _, (line,) in text_table(rows)] == ["1"] * 4
    assert "epochs 9" in page_of(rows)


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
    maps = dict(heat_maps(rows))
    for name in ("TPR", "TPR of inputs"):
        assert f"{name} in percent, mean over seeds" in maps


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


def test_long_names_break_between_words() -> None:
    made = table("c", ["d", "n"], [["fine_tuning(steps=9)", "1"]])
    assert ">fine_<wbr>tuning(<wbr>steps=<wbr>9)</th>" in made


def test_the_floor_of_a_trigger_is_shown() -> None:
    rows = pd.DataFrame([row(), row(trial="u", rate=0.0, asr=0.125)])
    assert floors(rows) == {("digits · tiny_cnn", "badnets"): 0.125}
    page = page_of(rows)
    assert "(rate 0): badnets 12.5 %" in page and "; ASR₀ 12.5 %" in page


def test_evasions_are_attacks_of_their_own_kind_and_no_floors() -> None:
    evading = {"attack": "pgd", "attack_name": "pgd", "rate": 0.0, "evades": True}
    backdoor = row(asr=0.9, evades=False)
    rows = pd.DataFrame([
        backdoor, row(trial="u", rate=0.0, asr=0.125, evades=False),
        row(trial="v", asr=0.75, **evading),
    ])  # fmt: skip
    assert floors(rows) == {("digits · tiny_cnn", "badnets"): 0.125}
    titles = [title for title, _, _ in text_table(rows)]
    assert titles[-1] == "pgd · digits · tiny_cnn · adversarial examples"
    page = page_of(rows)
    assert "attacks succeed on 90.0" in page and "attacks succeed on 75.0" in page
    weak = pd.DataFrame([backdoor, row(trial="v", asr=0.25, **evading)])
    found = failed_attacks(weak)
    assert list(found) == ["pgd (digits · tiny_cnn · adversarial examples)"]
    assert found.popitem()[1].startswith("the changed inputs seldom fool the model: undefended")
    older = pd.DataFrame([row(asr=0.9)])
    assert "evades" not in older and "attacks succeed on 90.0" in page_of(older)


def defended(name: str, **given: Any) -> dict[str, Any]:
    return row(trial=name, defense=name, defense_name=name, kind="filter", **given)


@pytest.mark.parametrize(
    ("rivals", "said"),
    [
        ([defended("a", asr=0.88)], "That is no better than no defense, within 5 points."),
        ([defended("a", asr=0.1), defended("b", asr=0.14)], "at no loss of accuracy: b."),
        ([defended("a", asr=0.0, ca=0.5)], "That costs 40.0 points of clean accuracy. No defense"),
        ([defended("a", asr=0.0, ca=0.5), defended("b", asr=0.3)],
         "within 2 points, <strong>b</strong> leaves the lowest ASR: 30.0"),
        ([row(trial="p", defense="perfect_filter", defense_name="perfect_filter", asr=0.0)],
         "No defense was measured against them."),
        ([defended("a", asr=0.1, badges="oracle: poison rate")],
         "<strong>a</strong> (oracle: poison rate) leaves the lowest ASR"),
    ],
    ids=["useless", "equal", "costly", "costly but", "control", "badge"],
)  # fmt: skip
def test_the_answer_follows_from_the_numbers(rivals: list[dict[str, Any]], said: str) -> None:
    assert said in page_of(pd.DataFrame([row(), *rivals]))


def test_without_undefended_trials_the_answer_says_so() -> None:
    assert "whether the attacks worked is not known" in page_of(pd.DataFrame([defended("a")]))


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
    page = page_of(rows)
    shown = page[page.index('id="failures"') : page.index('id="provenance"')]
    assert shown.count("<tr>") == 1 + 2
    assert "1 failed, 1 upstream_failed" in shown and "/l/1" in shown and "1 pending" in shown


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
    assert not re.search(r">[^<]*\bnan\b", page[page.index("<main") : page.index("</main>")], re.I)


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
    drawn = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    assert len(drawn) > 10
    for figure in drawn:
        assert "<a href" not in json.dumps(json.loads(figure)), "Plotly reads pseudo-HTML"


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


def test_figures_say_what_the_rows_say() -> None:
    rows = generated().rows
    title, figure = heat_maps(rows)[0]
    measured = figure.data[1]
    assert title.startswith("CA")
    column, line = list(measured.x).index("badnets @ 5 %"), list(measured.y).index("abl")
    cell = rows[(rows["attack"] == "badnets") & (rows["rate"] == 0.05) & (rows["defense"] == "abl")]
    assert measured.z[line][column] == pytest.approx(100 * cell["ca"].mean())
    maps = {title.partition(" in ")[0]: figure for title, figure in heat_maps(rows)}
    undefined = np.isnan(np.asarray(maps["TPR"].data[1].z, float))
    assert undefined.any() and np.array_equal(
        ~undefined, np.isnan(np.asarray(maps["TPR"].data[0].z, float))
    )
    assert len(rate_lines(rows)) == 3 * 6
    assert rate_lines(rows[rows["rate"] == 0.05]) == []


def test_of_two_seeds_the_points_are_drawn_and_no_interval() -> None:
    def error_bars(seeds: int) -> bool:
        return bool(rate_lines(generated(seeds).rows)[0][1].data[0].error_y.visible)

    assert not error_bars(2) and error_bars(3)
    points = rate_lines(generated(2).rows)[0][1].data[1]
    assert len(points.x) == 3 * 2


@pytest.mark.slow
def test_the_page_of_a_real_sweep_holds_everything(tmp_path: Path) -> None:
    conclusion = launch(from_text(parse("f", SWEEP)), SWEEP, str(tmp_path), inline=True)
    assert (conclusion.rows["status"] == "ok").all()
    text = Path(conclusion.report).read_text()
    for section in ("answer", "headline", "results", "maps", "rates", "roc", "verdicts",
                    "pictures", "cost", "failures", "provenance"):  # fmt: skip
        assert f'<section id="{section}"' in text, section
    assert "is &lt;b&gt;this&lt;/b&gt; &amp; that shown?" in text
    assert "what a trigger achieves on the clean model" in text
    assert text.count("data:image/png;base64,") >= 3 * 3 + 10
    material = gather("shown", str(tmp_path))
    assert '<section id="insides"' in text
    assert len(material.losses) == 6, "ABL, at three rates and two seeds"
    poisoned = [losses for losses in material.losses.values() if losses.poison is not None]
    assert len(poisoned) == 4 and all(losses.poison.shape == (3, 3) for losses in poisoned)
    assert all(losses.auroc.shape == (3,) for losses in poisoned)
    areas = [figure for _, figure in internals.auroc_lines(material)]
    assert sum(len(figure.data) for figure in areas) == 4, "a line per rate and seed"
    assert all(min(line.y) >= 0 and max(line.y) <= 1 for figure in areas for line in figure.data)
    drawn = sorted(tuple(line.y) for figure in areas for line in figure.data)
    assert drawn == sorted(tuple(losses.auroc) for losses in poisoned)
    assert "AUROC by step" in text
    assert all((np.diff(losses.rest, axis=0) >= 0).all() for losses in material.losses.values())
    assert render(material) == render(material), "pure"


def test_the_page_names_no_address_but_those_of_the_library(page: Path) -> None:
    text = page.read_text()
    library = max(re.findall(r"<script>.*?</script>", text, flags=re.S), key=len)
    assert "plotly.js" in library[:200]
    assert "http" not in text.replace(library, "").replace('http-equiv="Content-Security', "")


def test_what_defenses_say_of_themselves_is_shown() -> None:
    shown = internals.section(generated())
    assert "&lt;i&gt;models&lt;/i&gt;" in shown and "<i>models" not in shown
    assert shown.count("500 to 500") == 9, "each attack at each rate"
    assert shown.count(">features<") == 6, "where poison lies, and where there is some"
    figures = re.findall(r"<figcaption>(.*?)</figcaption>", shown)
    assert figures == [
        *(f"abl, {attack} @ 5 %: loss by step" for attack in ("badnets", "blend", "sig")),
        "abl, blend @ 5 %: g(k), &lt;i&gt;margin&lt;/i&gt;",
        "abl, blend @ 5 %: s(k), per sample",
    ]
    ((_, figure), *_) = internals.loss_lines(generated())
    lines = {(trace.legendgroup, trace.showlegend): trace for trace in figure.data}
    assert {name for name, _ in lines} == {"poison", "rest"}
    poison = lines["poison", True]
    assert poison.name == "poisoned" and poison.y[-1] < 0.01 and len(poison.x) == 8
    assert internals.section(page_material(pd.DataFrame([row()]))) == ""


def test_curves_of_the_same_axes_are_drawn_together_a_line_for_each_name_and_seed() -> None:
    (_, levels), (_, strengths) = internals.curve_lines(generated())
    assert len(levels.data) == 2 * 3 and len(strengths.data) == 3
    assert levels.layout.xaxis.title.text == "k, samples"
    assert levels.layout.yaxis.title.text == "g(k), &lt;i&gt;margin&lt;/i&gt;"
    assert strengths.layout.yaxis.title.text == "s(k), per sample"
    poison = [line for line in levels.data if line.name == "g of poison"]
    assert [line.showlegend for line in poison] == [True, False, False]
    assert [line.hovertext for line in poison] == [f"g of poison, seed {s}" for s in range(3)]
    assert [list(line.y) for line in poison] == [[s, s + 1, s + 2, s + 3, s + 4] for s in range(3)]
    assert len({line.line.color for line in levels.data}) == 2
    alone = replace(generated(), measured={"unknown": generated().measured.popitem()[1]})
    assert internals.curve_lines(alone) == []


def test_tuning_is_shown_with_what_it_saw() -> None:
    shown = tuning.section(generated())
    assert "transfer: tuned on the labels of other attacks alone" in shown
    assert "80.0 [72.0–88.0]" in shown and "72.0" in shown and "96.0" in shown
    assert "3.0 [2.7–3.3]" in shown and "300.0" not in shown, "seconds are no shares"
    assert "<b>blend" not in shown
    figures = re.findall(r"<figcaption>(.*?)</figcaption>", shown)
    assert len(figures) == 1 + 3 + 1 + 1 + 3, figures
    assert tuning.section(replace(generated(), tuned=None)) == ""
    tuned = generated().tuned
    assert tuned is not None
    settings = tuned.settings.model_copy(update={"labels": "oracle"})
    blind = replace(generated(), tuned=replace(tuned, settings=settings))
    assert "the labels of the very attack" in tuning.section(blind)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render(generated()))
    return file


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


def show(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def scroll_through(browser: Any) -> int:
    """Scroll to every figure, wait until it is drawn, and return how many there are."""
    from selenium.webdriver.support.ui import WebDriverWait

    plots = browser.find_elements("css selector", ".plot")
    for plot in plots:
        browser.execute_script("arguments[0].scrollIntoView()", plot)
        WebDriverWait(browser, 20).until(
            lambda _, plot=plot: plot.find_elements("css selector", ".main-svg")
        )
    return len(plots)


@pytest.mark.slow
def test_opens_offline_without_errors_or_requests(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, page)
    early = browser.execute_script("return document.querySelectorAll('.js-plotly-plot').length")
    assert early < scroll_through(browser), "figures are drawn when they come into view"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    # chrome:// is the browser's own start page.
    own = ("data:", "blob:", "chrome://", page.as_uri())
    assert page.as_uri() in asked and {url for url in asked if not url.startswith(own)} == set()


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_reads_on_a_phone(browser: Any, page: Path, scheme: str) -> None:
    show(browser, page, width=360, scheme=scheme)
    scroll_through(browser)
    for fold in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", fold)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
    ), "wide tables scroll inside their own region"
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('td, th, p, a, li, summary, figcaption, .badge')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


# Relative luminance and contrast as WCAG 2 defines them.
CONTRAST = """
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (color !== "rgba(0, 0, 0, 0)") return color;
  }
};
return [...document.querySelectorAll("p, a:not(.modebar-btn), th, td, caption, summary, .badge")]
  .map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
  }).sort((x, y) => x[0] - y[0])[0];
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_color_scheme_legibly(browser: Any, page: Path, scheme: str) -> None:
    show(browser, page, scheme=scheme)
    scroll_through(browser)
    least, where = browser.execute_script(CONTRAST)
    assert least >= 4.5, where
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    figure = browser.execute_script(
        "return getComputedStyle(document.querySelector('.js-plotly-plot .main-svg')).background"
    )
    assert paper in figure, "figures follow"


@pytest.mark.slow
def test_everything_has_a_name(browser: Any, page: Path) -> None:
    show(browser, page)
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('table')].filter(t => !t.caption.textContent ||"
        " [...t.tHead.querySelectorAll('th')].some(h => h.scope !== 'col') ||"
        " [...t.tBodies[0].rows].some(r => r.cells[0].scope !== 'row')).length +"
        "[...document.querySelectorAll('img')].filter(i => !i.alt).length +"
        "[...document.querySelectorAll('[role=region]')].filter(r => !r.ariaLabel).length"
    )
    assert nameless == 0
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert browser.execute_script(
        "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        "return ids.length === new Set(ids).size"
    )


@pytest.mark.slow
def test_is_reached_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the results"
    reached = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.get_attribute("role") or "")
        if browser.switch_to.active_element.tag_name == "button":
            break
    assert "region" in reached, "scroll regions take the focus"

    def column(number: int) -> list[str]:
        cells = browser.find_elements("css selector", f"#headline tbody tr > :nth-child({number})")
        return [cell.text for cell in cells]

    button = browser.switch_to.active_element
    assert button.text == "defense"
    button.send_keys(Keys.ENTER)
    assert column(1) == sorted(column(1))
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert column(1) == sorted(column(1), reverse=True)
    header = browser.find_element("css selector", "#headline th")
    assert header.get_attribute("aria-sort") == "descending"
    for _ in range(4):
        browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "TPR"
    for up in (True, False):
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        cells = column(5)
        numbers = [float(cell.split()[0]) for cell in cells if cell != "–"]
        assert numbers == sorted(numbers, reverse=not up) and len(numbers) > 3
        assert cells[len(numbers) :] == ["–"] * (len(cells) - len(numbers)), "undefined last"


@pytest.mark.slow
def test_prints_whole(browser: Any, page: Path) -> None:
    show(browser, page, scheme="dark")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 3
    drawn = browser.execute_script("return document.querySelectorAll('.main-svg').length")
    assert drawn > 0
