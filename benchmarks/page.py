"""The report of thousands of synthetic trials: seconds to make it, its size, and how it opens.

The page is opened in chromium beside a bare page of one figure, as Plotly's `to_html` writes it, in
turns. Printed: seconds of CPU and of the clock to render, bytes, elements and height of
the page as opened, and the ratio of the medians of the seconds until it can be used.

    python -m benchmarks.page [--seeds 2 5 10] [--turns 5]

One seed is 1,008 trials; `--store FOLDER NAME` times the reading of a real sweep's artifacts too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from raysweep.reports.html import render
from raysweep.reports.material import gather
from tests.material import many

READY = "document.documentElement.dataset.ready = 'yes';"


def browser(folder: Path) -> Any:
    """Return a chromium of its own profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800",
                 f"--user-data-dir={folder}"):  # fmt: skip
        options.add_argument(word)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def opened(driver: Any, page: Path) -> float:
    """Return the milliseconds from the navigation to a page that can be used."""
    driver.get("about:blank")
    driver.get(page.as_uri())
    while not driver.execute_script("return document.documentElement.dataset.ready"):
        time.sleep(0.01)
    return float(driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() =>"
        " done(window.readyAt ?? performance.now())))"
    ))  # fmt: skip


def watched(text: str) -> str:
    """Return a page that notes when it says that it is ready."""
    watch = (
        "<script>new MutationObserver(() => { window.readyAt ??= performance.now(); })"
        ".observe(document.documentElement, {attributes: true, attributeFilter: ['data-ready']});"
        "</script>"
    )
    return text.replace("<head>", f"<head>{watch}", 1)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--store", nargs=2, metavar=("FOLDER", "NAME"))
    given = parser.parse_args()
    if given.store:
        started = time.perf_counter()
        gather(given.store[1], given.store[0])
        print(f"reading {given.store[1]}: {time.perf_counter() - started:.1f} s")
    with tempfile.TemporaryDirectory() as held:
        bare = Path(held) / "bare.html"
        figure = go.Figure(go.Scatter(x=[1, 2, 3], y=[2, 1, 3]))
        bare.write_text(watched(figure.to_html(post_script=READY)))
        driver = browser(Path(held) / "profile")
        try:
            for seeds in given.seeds:
                material = many(seeds)
                started, spent = time.perf_counter(), time.process_time()
                text = render(material)
                seconds = time.perf_counter() - started
                spent = time.process_time() - spent
                page = Path(held) / "page.html"
                page.write_text(watched(text))
                pairs = [(opened(driver, bare), opened(driver, page)) for _ in range(given.turns)]
                alone, ours = (statistics.median(own) for own in zip(*pairs, strict=True))
                elements, height = driver.execute_script(
                    "return [document.querySelectorAll('*').length,"
                    " document.documentElement.scrollHeight]"
                )
                print(
                    f"{len(material.rows):,} trials: rendered in {seconds:.1f} s ({spent:.1f} s of "
                    f"CPU), {len(text.encode()) / 1e6:.1f} MB, {elements:,} elements, "
                    f"{height:,} px; opens in {ours:.0f} ms, a bare Plotly page in {alone:.0f} ms: "
                    f"ratio {ours / alone:.2f}"
                )
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
