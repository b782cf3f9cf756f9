"""The commands that look at sweeps: status, sweeps, logs, results; and rm, which removes one."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import pytest
import yaml

import raysweep
from raysweep.cli.app import app
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import SpecError, StoreError
from raysweep.results.records import load_tuned
from raysweep.results.status import all_sweeps, status
from raysweep.results.text import visible
from raysweep.store import Store
from raysweep.store.files import Folder
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests.test_history import Lost, dying, run, sweep

HOSTILE = "[bold red]\x1b[31mred\x1b[0m"
TUNED = "name: tuned\n" + sweep(rate="[0.1, 0.2]").replace("name: mine\n", "") + (
    "tune: {hold_out: rate, metric: tpr}\n"
)  # fmt: skip


def broken(self: object, inputs: object, ctx: object) -> NoReturn:
    raise ValueError(HOSTILE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a storage with a failing sweep of two versions, a killed one, and a tuned one."""
    store = tmp_path_factory.mktemp("looking") / "store"
    run(sweep(rate="0.2"), store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpectralSignatures, "run", broken)
        run(sweep(), store)
    with pytest.raises(Lost):
        run(sweep().replace("mine", "killed"), store, watch=dying())
    file = store.parent / "tuned.yaml"
    file.write_text(TUNED)
    app(["tune", str(file), "--inline", "--storage", str(store)], standalone_mode=False)
    return store


@pytest.fixture
def said(made: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a command line on that storage, which returns what it prints."""

    def command(*words: str, store: Path = made) -> str:
        capsys.readouterr()
        app([*words, "--storage", str(store)], standalone_mode=False)
        return capsys.readouterr().out

    return command


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Counter[str]]:
    """Count the requests to a store of this test; threads of earlier ones may still ask theirs."""
    counts: Counter[str] = Counter()
    for name in ("read", "list"):
        real = getattr(Folder, name)

        def counting(self: Folder, path: str, name: str = name, real: Any = real) -> Any:
            counts[name] += self.root.is_relative_to(tmp_path)
            return real(self, path)

        monkeypatch.setattr(Folder, name, counting)
    yield counts


def test_all_sweeps_of_a_storage(made: Path, said: Callable[..., str]) -> None:
    by_name = {one.name: one for one in all_sweeps(Store(str(made)))}
    assert list(by_name) == ["killed", "mine", "tuned"]
    mine, killed, tuned = by_name["mine"], by_name["killed"], by_name["tuned"]
    assert (mine.state, mine.trials, mine.ok, mine.failed) == ("incomplete", 2, 1, 1)
    assert (mine.versions, mine.tuning) == (2, None) and mine.launched
    assert (killed.state, killed.trials, killed.ok) == ("dead", 2, None)
    assert (tuned.state, tuned.versions, tuned.tuning) == ("only tuned", 0, "tuned")
    lines = said("sweeps").splitlines()
    assert [line.split()[0] for line in lines] == ["name", *by_name]
    assert json.loads(said("sweeps", "--json"))[1]["failed"] == 1
    assert "no sweep in" in said("sweeps", store=made / "nowhere")


def test_two_listings_cost_two_requests_a_sweep(
    made: Path, requests: Counter[str], tmp_path: Path
) -> None:
    many = tmp_path / "store"
    for number in range(20):
        shutil.copytree(made / "sweeps/mine", many / f"sweeps/s{number}")
        shutil.copytree(made / "sweeps/killed", many / f"sweeps/k{number}")
    assert len(all_sweeps(Store(str(many)))) == 40
    assert requests == {"list": 2, "read": 2 * 40}


def test_status_as_json_and_after_a_tuning(made: Path, said: Callable[..., str]) -> None:
    told = json.loads(said("status", "mine", "--json"))
    assert told["launch"]["state"] == "ended" and told["tuning"] is None
    assert "red" in told["launch"]["failures"][0]["error"]
    assert [one["ok"] for one in told["versions"]] == [2, 1]
    before = said("status", "mine")
    file = made.parent / "mine.yaml"
    file.write_text(sweep() + "tune: {labels: oracle}\n")
    copy = made.parent / "copy"
    shutil.copytree(made, copy)
    app(["tune", str(file), "--inline", "--storage", str(copy)], standalone_mode=False)
    after = status(Store(str(copy)), "mine")
    assert after.launch is not None and after.tuning is not None
    lines = said("status", "mine", store=copy).splitlines()
    rest = [line for line in lines if not line.startswith("tuning of mine: ")]
    assert len(rest) == len(lines) - 1
    assert "\n".join(rest).replace(str(copy), str(made)) == before.rstrip("\n")


def test_logs_of_a_sweep_and_of_one_trial(made: Path, said: Callable[..., str]) -> None:
    name = "badnets @ 10 % · spectral_signatures · seed 0"
    whole = said("logs", "mine")
    assert "Traceback" in whole and "in broken" in whole and f"trials: {name}" in whole
    assert "\x1b" not in whole and r"[bold red]\x1b[31mred\x1b[0m" in whole, "text, no markup"
    rows = raysweep.load("mine", str(made)).set_index("defense_name")
    for trial in (name, "spectral", rows.loc["spectral_signatures", "trial"][:8]):
        assert said("logs", "mine", trial) == whole
    assert said("logs", "mine", "none") == "no stage of none failed\n"
    assert said("logs", "tuned") == "no stage of tuned failed\n"
    (told,) = json.loads(said("logs", "mine", "--json"))
    assert told["trials"] == [name] and told["stage"].startswith("defend-")
    with pytest.raises(StoreError, match=f"no trial 'spectrum'.*the nearest: {name}"):
        said("logs", "mine", "spectrum")


def test_results_in_every_format(made: Path, said: Callable[..., str], tmp_path: Path) -> None:
    rows = raysweep.load("mine", str(made))
    csv = pd.read_csv(io.StringIO(said("results", "mine", "--format", "csv")))
    assert list(csv) == list(rows) and csv["trial"].tolist() == rows["trial"].tolist()
    listed = json.loads(said("results", "mine", "--format", "json"))
    assert [one["ca"] for one in listed] == [rows["ca"][0], None], "exact; undefined is null"
    file = tmp_path / "rows.parquet"
    assert said("results", "mine", "--format", "parquet", "--output", str(file)) == f"{file}\n"
    pd.testing.assert_frame_equal(pd.read_parquet(file), pd.DataFrame(rows))
    table = said("results", "mine")
    assert "badnets @ 10 %" in table and "0/1" in table
    markdown = said("results", "mine", "--format", "markdown")
    assert r"| spectral\_signatures | filter | – |" in markdown
    latex = said("results", "mine", "--format", "latex")
    assert r"spectral\_signatures & filter & -- &" in latex and r"10 \% $\cdot$" in latex
    earlier = said("results", "mine", "--version", "1", "--format", "csv")
    assert set(pd.read_csv(io.StringIO(earlier))["rate"]) == {0.2}
    for words, message in (
        (["--format", "parquet"], "--output"), (["--format", "xlsx"], "must be one of table, csv"),
        (["--output", "x"], "give --format"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=message):
            said("results", "mine", *words)


def test_a_tuning_is_loaded_and_said(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = load_tuned("tuned", str(made))
    assert frame["held_out"].tolist() == ["0.1", "0.2", "nothing"]
    assert {"tuned_tpr", "default_tpr", "oracle_fpr", "tuned_tpr_low"} <= set(frame)
    assert frame["parameters"][2].keys() == {"fraction"} and frame.attrs["tune"]["trials"] == 200
    with pytest.raises(StoreError, match=r"no tuned parameters in .*; tune it first"):
        load_tuned("mine", str(made))
    with pytest.raises(StoreError, match="there are: killed, mine, tuned"):
        load_tuned("nothing", str(made))
    capsys.readouterr()
    words = ["tune", str(made.parent / "tuned.yaml"), "--inline", "--storage", str(made)]
    app(words, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    below = lines[[line.startswith("tuned: ") for line in lines].index(True) :]
    starts = ["tuned", "held out", "spectral_signatures", "use these", "0 stages ran"]
    assert [line[: len(start)] for line, start in zip(below, starts, strict=False)] == starts
    kept = sum(frame["tuned_fpr"][:2] <= 0.05)
    assert any(f"fpr <= 0.05 holds for {kept} of 2 held out as tuned" in line for line in lines)
    (use,) = (line.removeprefix("use these: ") for line in lines if line.startswith("use these"))
    pasted = yaml.safe_load(TUNED) | {"defenses": [yaml.safe_load(use)]}
    (defense,) = from_text(parse("s.yaml", yaml.safe_dump(pasted))).defenses
    assert isinstance(defense, SpectralSignatures)
    assert defense.fraction == float(f"{frame['parameters'][2]['fraction']:.4g}")


# Removal


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the storage, of which something may be removed."""
    return shutil.copytree(made, tmp_path / "store", symlinks=True)


def files(store: Path, *without: str) -> set[str]:
    every = (str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())
    return {path for path in every if not path.startswith(without or ("none",))}


def test_a_sweep_is_removed_and_nothing_else(copy: Path, said: Callable[..., str]) -> None:
    outside = copy.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (copy / "sweeps/mine/logs/link").symlink_to(outside)
    others = files(copy, "sweeps/mine/")
    told = said("rm", "mine", "--yes", store=copy)
    assert "the records of mine, versions: 2 (" in told and "1 logs of failures" in told
    assert "all artifacts are kept" in told
    assert not (copy / "sweeps/mine").exists() and files(copy) == others
    assert (outside / "kept").exists(), "a link is removed, and not what it leads to"
    said("rm", "tuned", "--yes", store=copy)
    assert [one.name for one in all_sweeps(Store(str(copy)))] == ["killed"]


def test_removal_asks_first(
    copy: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(copy)
    for answer in ("n\n", ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert "nothing was removed" in said("rm", "mine", store=copy)
        assert files(copy) == before
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    said("rm", "mine", store=copy)
    assert not (copy / "sweeps/mine").exists()


def test_a_run_without_an_end_is_removed_by_force_alone(
    copy: Path, said: Callable[..., str]
) -> None:
    with pytest.raises(StoreError, match="'killed' may be running: its last launch has no end"):
        said("rm", "killed", "--yes", store=copy)
    assert (copy / "sweeps/killed/sweep.json").exists()
    said("rm", "killed", "--yes", "--force", store=copy)
    assert not (copy / "sweeps/killed").exists()


@pytest.mark.parametrize("name", ["../store", "mine/versions/1", "..", "", "a" * 65, "mine/"])
def test_only_a_name_can_be_removed(copy: Path, said: Callable[..., str], name: str) -> None:
    before = files(copy)
    with pytest.raises(SpecError, match="a sweep's name is 1 to 64 letters"):
        said("rm", name, "--yes", store=copy)
    assert files(copy) == before


def test_a_link_in_place_of_a_sweep_is_left_alone(copy: Path, said: Callable[..., str]) -> None:
    there = copy.parent / "there"
    (copy / "sweeps/mine").rename(there)
    (copy / "sweeps/mine").symlink_to(there)
    with pytest.raises(StoreError, match="is a link to"):
        said("rm", "mine", "--yes", store=copy)
    assert (there / "records.parquet").exists()


def test_control_characters_are_written_out() -> None:
    assert visible("a\x1b[2J\rb\x07\u202ec\td\n") == r"a\x1b[2J\rb\x07\u202ec" + "\td\n"
