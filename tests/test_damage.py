"""Damaged files of a finished sweep: nothing is a traceback, and the next launch repairs it."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna
import pandas as pd
import pytest
from rich.console import Console

from raysweep import identity
from raysweep.cli.app import app
from raysweep.cli.terminal import print_preview, print_status
from raysweep.errors import HostError, PlanError
from raysweep.exchange import poisoned_sets
from raysweep.jobs.launch import Conclusion, launch
from raysweep.jobs.tune import tune
from raysweep.plan.costs import FILE, Costs
from raysweep.plan.planner import Planner
from raysweep.plan.route import followed
from raysweep.reports.html import render
from raysweep.reports.material import gather
from raysweep.results import history, records
from raysweep.results.status import status
from raysweep.run.preview import preview
from raysweep.run.run import Run
from raysweep.stages.perform import perform
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep
from raysweep.tuning.storage import open_storage

SWEEP = """
name: hurt
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: %s}}, {blend: {rate: 0.1}}]
defenses: [none, spectral_signatures, strip: {overlays: 2}]
track: {wandb: disabled}
tune: {trials: 2, metric: tpr, parameters: {strip: {overlays: {min: 2, max: 4}, fpr: {}}}}
"""
OTHER = (
    b'{"event": "start", "t": "x", "sweep": {"seeds": 5}, "rows": 3, "name": {}, "settings": {}}\n'
)
DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "other": lambda data: OTHER,
}
VARYING = ("seconds", "host", "finished_at", "git_commit", "log")


def write_sweep(folder: Path, rate: float) -> Path:
    file = folder / f"hurt-{rate}.yaml"
    file.write_text((SWEEP % rate).replace("strip: {overlays: 2}]", "{strip: {overlays: 2}}]"))
    return file


def run(file: Path, store: Path) -> Conclusion:
    return launch(load_sweep(file), file.read_text(), str(store), inline=True)


def values(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is the same however a sweep came to its end."""
    kept = [c for c in rows.columns if not any(word in c for word in VARYING)]
    return rows[sorted(kept)].reset_index(drop=True)


def form(path: str) -> str:
    """Return a path without keys and dates: what kind of file it is."""
    return re.sub(r"[0-9a-f]{32}|\d{8}-\d{6}-\d+", "*", path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pd.DataFrame]:
    """A sweep that was launched, changed, launched again, and tuned: file, store, rows."""
    folder = tmp_path_factory.mktemp("finished")
    run(write_sweep(folder, 0.05), folder / "store")
    file = write_sweep(folder, 0.1)
    run(file, folder / "store")
    words = ["tune", str(file), "--inline", "--storage", str(folder / "store")]
    app(words, standalone_mode=False)
    return file, folder / "store", records.load("hurt", str(folder / "store"))


def forms(store: Path) -> Iterator[Path]:
    """Yield a file of every kind below sweeps, manifests, and beside them."""
    seen = set()
    for file in sorted(store.rglob("*")):
        kind = form(str(file.relative_to(store)))
        if file.is_file() and not kind.startswith("objects/") and kind not in seen:
            seen.add(kind)
            yield file


def look_at_everything(file: Path, store: Path, console: Console) -> pd.DataFrame:
    sweep = load_sweep(file)
    print_preview(console, sweep, preview(sweep, Store(str(store))))
    print_status(console, status(Store(str(store)), "hurt"))
    gather("hurt", str(store))
    for version in history.versions(Store(str(store)), "hurt"):
        records.load("hurt", str(store), version=version.number)
    return records.load("hurt", str(store))


@pytest.mark.long
@pytest.mark.slow
def test_no_damaged_file_stops_a_look(
    finished: tuple[Path, Path, pd.DataFrame], tmp_path: Path
) -> None:
    file, store, before = finished
    shutil.copytree(store, copy := tmp_path / "store")
    kinds, mine = list(forms(copy)), stages(store)
    assert len(kinds) >= 20, "every kind of file is found"
    for number, path in enumerate(kinds):
        data = path.read_bytes()
        every = [*DAMAGE.values()] if "sweeps" in path.parts else [[*DAMAGE.values()][number % 3]]
        for damage in every:
            path.write_bytes(damage(data))
            said = io.StringIO()
            rows = look_at_everything(file, copy, Console(file=said, width=400))
            shown = ["trial", "status", "ca", "asr", "key_evaluate"]
            pd.testing.assert_frame_equal(rows[shown], before[shown], obj=str(path))
            if path.stem in mine:
                assert f"until the next launch: {path.stem}" in said.getvalue(), path
            elif path.parent == copy / "sweeps/hurt" and path.suffix == ".parquet":
                assert f"{path} is damaged" in said.getvalue()
        if path.parent == copy / "sweeps/hurt":
            render(gather("hurt", str(copy)))
        path.write_bytes(data)


@pytest.mark.further
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_launch_and_a_tuning_repair_all_damage_at_once(
    finished: tuple[Path, Path, pd.DataFrame], damage: str, tmp_path: Path
) -> None:
    file, store, before = finished
    shutil.copytree(store, copy := tmp_path / "store")
    for path in sorted(copy.rglob("*")):
        if path.is_file() and path.parts[len(copy.parts)] != "objects":
            path.write_bytes(DAMAGE[damage](path.read_bytes()))
    again = run(file, copy)
    assert again.ran == len(stages(store)) and not again.unfinished
    assert "damaged and run again" in " ".join(again.notes)
    pd.testing.assert_frame_equal(
        values(records.load("hurt", str(copy))), values(before), check_exact=True
    )
    open_storage.cache_clear()
    app(["tune", str(file), "--inline", "--storage", str(copy)], standalone_mode=False)
    assert tuned(copy) == tuned(store)


@pytest.mark.parametrize("kind", ["prepare", "train", "decide", "evaluate"])
def test_an_empty_manifest_of_any_kind_blocks_nothing(
    finished: tuple[Path, Path, pd.DataFrame], kind: str, tmp_path: Path
) -> None:
    file, store, before = finished
    shutil.copytree(store, copy := tmp_path / "store")
    key = min(key for key in stages(store) if key.startswith(kind))
    (copy / f"manifests/{kind}/{key}.json").write_bytes(b"")
    again = run(file, copy)
    assert again.ran == 1 and not again.unfinished
    pd.testing.assert_frame_equal(values(records.load("hurt", str(copy))), values(before))


def test_a_damaged_input_of_a_replay_is_computed_again(
    finished: tuple[Path, Path, pd.DataFrame], tmp_path: Path
) -> None:
    file, store, before = finished
    shutil.copytree(store, copy := tmp_path / "store")
    keys = [before["key_data"].iloc[0], *before["key_poison"], *before["key_defend"].dropna()]
    hurt = [path for key in dict.fromkeys(keys) for path in copy.glob(f"objects/*/*/{key}-*")]
    assert len(hurt) >= 7
    for path in hurt:
        path.write_bytes(path.read_bytes()[:-1])
    open_storage.cache_clear()
    app(["tune", str(file), "--inline", "--storage", str(copy)], standalone_mode=False)
    assert tuned(copy) == tuned(store)


def test_an_outcome_that_is_gone_is_damage(tmp_path: Path) -> None:
    file, store = tmp_path / "s.yaml", Store(str(tmp_path / "store"))
    file.write_text(
        re.sub(
            "defenses: .*", "defenses: [random_filter, spectral_signatures]", SWEEP % 0.1
        ).replace("strip: {overlays: {min: 2, max: 4}, fpr: {}}", "")
    )
    row = run(file, Path(store.uri)).rows.iloc[0]
    planner = Planner(load_sweep(file))
    for trial in planner.trials:
        followed(partial(planner.route, trial), store.outcome)
    store.discard(row["key_reference"])
    result = perform(planner.stages[row["key_decide"]].packed(), store, {}, 0)
    assert (result.status, result.damaged) == ("damaged", row["key_reference"])


def test_a_tuning_that_fails_leaves_no_study_open(tmp_path: Path) -> None:
    """A heartbeat that goes on would keep its candidates from every other driver."""

    def watch(run: Run) -> None:
        if run.schedule.ran:
            raise HostError("no host is left")

    file = write_sweep(tmp_path, 0.1)
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    store = str(tmp_path / "store")
    with pytest.raises(HostError):
        tune(load_sweep(file), "", store, inline=True, studies=url, watch=watch)
    beating = [one for one in threading.enumerate() if one.name.startswith("heartbeat hurt/")]
    for one in beating:
        one.join(10)
    assert beating and not any(one.is_alive() for one in beating)


def test_an_export_discards_what_is_damaged_so_that_a_launch_repairs_it(
    finished: tuple[Path, Path, pd.DataFrame], tmp_path: Path
) -> None:
    file, store, before = finished
    shutil.copytree(store, copy := tmp_path / "store")
    victim = before["key_victim"].iloc[0]
    (path,) = copy.glob(f"objects/train/*/{victim}-*")
    path.write_bytes(b"")
    with pytest.raises(PlanError, match=f"{victim} was damaged .* launch the sweep again"):
        list(poisoned_sets(load_sweep(file), Store(str(copy))))
    assert run(file, copy).ran == 1
    assert len(list(poisoned_sets(load_sweep(file), Store(str(copy))))) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"7", b'"start"', b"{}", b'{"event": 3}', b'{"event": "start"}', b"\xff\xfe", b"{",
        b'{"t": 1, "event": "start", "trials": "many", "stages": 1, "cached": 0}',
        b'{"t": NaN, "event": "end", "complete": true}', b'{"event": "end", "complete": true}',
        b'{"t": 1, "event": "grow", "key": "", "stages": 2, "cached": "all"}',
        b'{"t": 1, "event": "of a later raysweep", "key": "train-1"}',
        b'{"t": 1, "event": "done", "key": 4}',
        b'{"t": 1, "event": "dispatch", "keys": [[]], "ready": 0}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_ledger_lines_that_are_no_events_are_passed_over(tmp_path: Path, line: bytes) -> None:
    store = Store(str(tmp_path))
    good = b'{"t": 1, "event": "start", "trials": 2, "stages": 5, "cached": 1}'
    store.write("sweeps/s/ledger/1.jsonl", b"\n".join([good, line, b""]))
    assert [event.event for event in ledger.read(SweepFolder(store, "s"))] == ["start"]
    said = io.StringIO()
    print_status(Console(file=said, width=400), status(store, "s"))
    assert "s: 2 trials; 1 of 5 stages stored" in said.getvalue()


@pytest.mark.parametrize(
    "entry", ['[NaN, 3]', '[1e999, 3]', '[1, 1e999]', '[1]', '{}', 'null', '[-1, 2]', '["1", 2]']
)  # fmt: skip
def test_a_damaged_pace_costs_no_other(tmp_path: Path, entry: str) -> None:
    store = Store(str(tmp_path))
    store.write(FILE, f'{{"bad": {entry}, "good": [2.0, 3]}}'.encode())
    sweep = load_sweep(write_sweep(tmp_path, 0.1))
    assert Costs(Planner(sweep), store).recorded == {"good": 2.0}


@pytest.mark.parametrize(
    "memory",
    [
        "[]", "7", "{", '{"%s": 7}', '{"%s": "xyz"}', "null", "[" * 9999, '{"%s": [7, "xyz"]}',
        '{"%s": [[7], 7]}', '{"%s": [null, null, null]}', '{"%s": [[[]], "' + "0" * 64 + '"]}',
        "\0", '"\\ud800"',
    ],
)  # fmt: skip
def test_a_damaged_memory_of_digests_is_made_anew(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "RECENT_NS", -1)
    file = tmp_path / "data"
    file.write_bytes(b"data")
    right = identity.files_digest([file])
    memory_file = tmp_path / "cache/digests.json"
    (entry,) = json.loads(memory_file.read_text())
    memory_file.write_text(memory.replace("%s", entry))
    assert identity.files_digest([file]) == right
    assert list(json.loads(memory_file.read_text())) == [entry]


def test_a_memory_of_digests_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "RECENT_NS", -1)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"data")
    right = identity.files_digest([first])
    parsed = list[str]()
    whole = json.loads
    monkeypatch.setattr(identity.json, "loads", lambda text: parsed.append(text) or whole(text))
    assert {identity.files_digest([first]) for _ in range(3)} == {right} and len(parsed) == 1
    second.write_bytes(b"more")
    identity.files_digest([second])  # as another process does
    assert len(parsed) == 1
    assert identity.files_digest([first]) == right and len(parsed) == 2
    assert set(whole(parsed[1])) == {str(first), str(second)}
    monkeypatch.setattr(identity, "KEPT_BYTES", 0)
    second.write_bytes(b"again")
    identity.files_digest([second])
    for count in (3, 4):
        identity.files_digest([first])
        assert len(parsed) == count, "a large one is not kept"


@pytest.mark.parametrize("content", [b"[]\n", b"{}\n", b'{"op_code": 99}\n', b"{\n", b"\xff\n"])
def test_a_journal_that_optuna_cannot_read_is_left_aside(tmp_path: Path, content: bytes) -> None:
    journal = tmp_path / "journal.log"
    journal.write_bytes(content)
    optuna.create_study(storage=open_storage(journal), study_name="s")
    assert (tmp_path / "journal.log.damaged").read_bytes() == content


def stages(store: Path) -> list[str]:
    """Return the keys of all stages of the sweep."""
    return [str(key) for key in pd.read_parquet(store / "sweeps/hurt/stages.parquet")["key"]]


def tuned(store: Path) -> list[tuple[object, ...]]:
    """Return what a tuning found."""
    rows = json.loads((store / "sweeps/hurt/tuned.json").read_text())["rows"]
    return [(r["defense"], r["held_out"], r["parameters"], repr(r.get("tuned_tpr"))) for r in rows]
