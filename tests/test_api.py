"""The functions of `import raysweep`: lazy, never shadowed, in threads and event loops."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import raysweep
from raysweep.attacks.badnets import BadNets
from raysweep.datasets.digits import Digits
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import SpecError, StoreError
from raysweep.jobs.launch import Conclusion
from raysweep.methods import Recipe
from raysweep.models.linear import Linear
from raysweep.sweep.spec import Track, to_yaml
from raysweep.sweep.tuning import Tune

FUNCTIONS = ("compare", "launch", "load", "load_tuned", "report", "tune")


def sweep(name: str = "front") -> raysweep.Sweep:
    return raysweep.Sweep(
        name=name, dataset=Digits(size=200), model=Linear(), defenses=[SpectralSignatures()],
        attacks=[BadNets(rate=rate) for rate in (0.05, 0.1)], track=Track(wandb="disabled"),
        recipe=Recipe(epochs=1, precision="float32"), tune=Tune(hold_out="rate", trials=4),
    )  # type: ignore[call-arg]  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Conclusion]:
    """A storage and the end of a launch in it, after every submodule was imported."""
    for module in pkgutil.walk_packages(raysweep.__path__, "raysweep."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    storage = str(tmp_path_factory.mktemp("api") / "store")
    return storage, raysweep.launch(sweep(), storage, inline=True)


def test_launch_gives_rows_and_a_page(launched: tuple[str, Conclusion]) -> None:
    _, done = launched
    assert done.rows["status"].eq("ok").all() and len(done.rows) == 2
    assert Path(done.report).read_text().startswith("<!doctype html")
    assert done.warnings == [] and done.ran > 0
    assert repr(done).splitlines()[0] == (
        f"2 of 2 trials finished (.rows); {done.ran} stages ran, 0 were stored already"
    )
    assert f"report: {done.report}" in repr(done)


def test_load_and_report_read_what_was_launched(
    launched: tuple[str, Conclusion], tmp_path: Path
) -> None:
    storage, done = launched
    assert raysweep.load("front", storage)["asr"].tolist() == done.rows["asr"].tolist()
    page = raysweep.report("front", storage, tmp_path / "page.html")
    assert page.where == str(tmp_path / "page.html") and "front" in Path(page.where).read_text()
    for read in (raysweep.load, raysweep.load_tuned, raysweep.report):
        with pytest.raises(StoreError, match=r"nothing.*front"):
            read("nothing", storage)


def test_a_file_is_the_sweep_that_it_describes(
    launched: tuple[str, Conclusion], tmp_path: Path
) -> None:
    storage, done = launched
    file = tmp_path / "front.yaml"
    file.write_text(to_yaml(sweep()))
    again = raysweep.launch(str(file), storage, inline=True)
    assert (again.ran, again.cached) == (0, done.ran)
    with pytest.raises(SpecError, match=r"nowhere\.yaml"):
        raysweep.launch(tmp_path / "nowhere.yaml", storage, inline=True)
    with pytest.raises(
        SpecError, match=r"must be a raysweep\.Sweep or the path of a sweep file, got"
    ):
        raysweep.launch({"name": "front"}, storage)  # type: ignore[arg-type]
    for job in (raysweep.launch, raysweep.tune):
        with pytest.raises(SpecError, match="inline=True runs in this process and address='auto'"):
            job(sweep(), storage, inline=True, address="auto")  # type: ignore[operator]


def test_tune_leaves_a_table(launched: tuple[str, Conclusion]) -> None:
    storage, _ = launched
    with pytest.raises(StoreError, match="sweep 'front' has no tuned parameters in"):
        raysweep.load_tuned("front", storage)
    found = raysweep.tune(sweep(), storage, inline=True)
    table = raysweep.load_tuned("front", storage)
    assert found.tuned is not None and len(table) == len(found.tuned.rows) > 0
    assert set(table["defense"]) == {"spectral_signatures"}
    assert "fraction" in repr(found) and f"table: {found.where}" in repr(found)


def test_jobs_run_beside_the_main_thread_and_in_an_event_loop(
    launched: tuple[str, Conclusion],
) -> None:
    storage, _ = launched
    ends: list[Any] = []

    def work(name: str) -> None:
        ends.append(raysweep.launch(sweep(name), storage, inline=True))

    thread = threading.Thread(target=work, args=("threaded",))
    thread.start()
    thread.join()

    async def cell() -> None:
        work("notebook")

    asyncio.run(cell())
    assert [end.unfinished for end in ends] == [0, 0] and [end.interrupted for end in ends] == [
        0,
        0,
    ]


def test_functions_are_documented_with_every_argument() -> None:
    for name in FUNCTIONS:
        function = getattr(raysweep, name)
        text = inspect.getdoc(function) or ""
        for argument in inspect.signature(function).parameters:
            assert f"\n    {argument}: " in text, (name, argument)
        assert "Raises:\n" in text, name


def test_nothing_is_imported_before_the_first_use() -> None:
    code = (
        "import sys, raysweep; listed = dir(raysweep); "
        "assert set(raysweep.__all__) <= set(listed), listed; "
        "heavy = {'torch', 'ray', 'pandas', 'pydantic', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "import raysweep.jobs.launch, raysweep.reports; "
        "import raysweep.cli.looking, raysweep.cli.running; "
        "import raysweep.jobs.tune, raysweep.tuning, raysweep.tuning.forecast; "
        "assert 'torch' not in sys.modules, 'what plans and looks waits for no torch'; "
        "assert all(callable(getattr(raysweep, name)) for name in raysweep.__all__); "
        "raysweep.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("AttributeError: module 'raysweep' has no attribute 'nothing'\n")


def test_editors_know_each_public_name() -> None:
    text = inspect.getsource(raysweep)
    block = text.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    assert set(raysweep.__all__) == {"Sweep", *FUNCTIONS} == set(raysweep._HOMES)
    for name, home in raysweep._HOMES.items():
        assert any(
            line.strip().startswith(f"from {home} import") and name in line
            for line in block.splitlines()
        ), name
        assert getattr(raysweep, name) is getattr(importlib.import_module(home), name)


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", "--help"], capture_output=True, text=True, check=True
    )
    assert "launch" in done.stdout


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_show_values_and_no_addresses(name: str) -> None:
    assert " at 0x" not in str(inspect.signature(getattr(raysweep, name)))
