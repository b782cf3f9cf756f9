"""A real browser for tests of pages: headless Chromium, driven by Selenium."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = "4.14.1"
WORDS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def opened(profile: Path) -> Iterator[Any]:
    """Open a browser that keeps its log and its requests; without Chromium, skip the test.

    Args:
        profile: an empty folder of its own.
    """
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in (*WORDS, f"--user-data-dir={profile}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the browser keeps files."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Any]:
    """The browser that all tests of a worker share."""
    with opened(tmp_path_factory.mktemp("chromium")) as made:
        made.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
        )
        yield made


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the script of axe-core, which npm keeps in a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raysweep-tests"
    script = cache / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed, which brings axe-core")
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(cache), "--no-save", f"axe-core@{AXE}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not bring axe-core within a minute")
        if done.returncode:
            pytest.skip(f"npm cannot install axe-core: {done.stderr.strip()[-200:]}")
    return script.read_text()


def violations(browser: Any, axe: str) -> list[list[Any]]:
    """Return what axe finds serious or critical on the page that is open."""
    browser.execute_script(axe)
    found: list[list[Any]] = browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then((r) => done(r.violations.map((v) =>"
        " [v.impact, v.id, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160))])))"
    )
    return [one for one in found if one[0] in ("serious", "critical")]


def wait(browser: Any, condition: Callable[[], object]) -> None:
    """Wait until a condition holds, a minute at most."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def show(
    browser: Any, page: Path, *, width: int = 1280, scheme: str = "light", link: str = ""
) -> None:
    """Open a page, as `view` does, and wait until its data are read."""
    view(browser, page, width=width, scheme=scheme, link=link)
    ready = "return document.documentElement.dataset.ready === 'yes'"
    wait(browser, lambda: browser.execute_script(ready))


def view(
    browser: Any, page: Path, *, width: int = 1280, scheme: str = "light", link: str = ""
) -> None:
    """Open a page in a window of its own size, in pixels, light or dark."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get(page.as_uri() + link)


def drawn(browser: Any, section: str) -> None:
    """Scroll to a section, and wait until its tables and figures are drawn."""
    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", section)
    own = f"document.querySelectorAll('#{section} "
    for place in browser.execute_script(
        f"return [...{own}.sheet, #{section} .plot, #{section} [id$=-drawn]')]"
    ):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
        wait(
            browser,
            lambda place=place: browser.execute_script(
                "const one = arguments[0]; return !one.isConnected || one.querySelector("
                "'.tabulator-row, .tabulator-placeholder, .main-svg, .map')", place
            ),
        )  # fmt: skip


def everything(browser: Any) -> None:
    """Draw all tables and figures of a page."""
    sections = "return [...document.querySelectorAll('main section')].map(e => e.id)"
    for section in browser.execute_script(sections):
        drawn(browser, section)


def rows(browser: Any, section: str) -> list[list[str]]:
    """Return the cells of the rows of a table that are elements now."""
    found: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} .tabulator-row`)].map(r =>"
        " [...r.querySelectorAll('.tabulator-cell')].filter(c => c.style.display !== 'none')"
        ".map(c => c.innerText.replace(/\\s+/g, ' ').trim()))",
        section,
    )
    return found


def click(browser: Any, selector: str) -> None:
    """Press what a selector finds first."""
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)
