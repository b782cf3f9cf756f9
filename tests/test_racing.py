"""A sweep with a race: the trials that it asks for, whoever looks and whatever was interrupted."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from raysweep.defenses.random_filter import RandomFilter
from raysweep.errors import PlanError, SpecError
from raysweep.jobs.launch import Conclusion, launch
from raysweep.plan.planner import Planner
from raysweep.plan.race import RacingPlanner, planner_of
from raysweep.reports import race
from raysweep.reports.html import render
from raysweep.reports.material import gather
from raysweep.results.arrivals import Arrivals
from raysweep.results.description import Description
from raysweep.results.race import pairs_table, races, rules_of, summary
from raysweep.results.records import load, read
from raysweep.results.rows import Collector
from raysweep.run.preview import preview
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.sweep.differences import differences
from raysweep.sweep.loading import from_text
from raysweep.sweep.schema import json_schema
from raysweep.sweep.spec import Sweep, restored, to_plain, to_yaml
from raysweep.sweep.yaml import parse

TEXT = """
name: raced
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 2, batch_size: 64, learning_rate: 0.1}
attacks: [badnets: {rate: [0, 0.2]}]
defenses: [none, perfect_filter, spectral_signatures, random_filter]
seeds: {max: 9, until: separated}
track: {wandb: disabled}
"""


def sweep_of(text: str = TEXT) -> Sweep:
    return from_text(parse("race.yaml", text))


def seeds_of(rows: pd.DataFrame) -> dict[tuple[float, str], list[int]]:
    """Return rate and defense → seeds, in the order of the rows."""
    groups = rows.groupby(["rate", "defense"], sort=False)
    return {(float(r), str(d)): part["seed"].tolist() for (r, d), part in groups}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Conclusion]:
    storage = str(tmp_path_factory.mktemp("race"))
    return storage, launch(sweep_of(), TEXT, storage, inline=True)


@pytest.mark.further
def test_rows_are_the_trials_that_the_race_asked_for(ended: tuple[str, Conclusion]) -> None:
    rows = ended[1].rows
    found, rules = seeds_of(rows), rules_of(Description(sweep=to_plain(sweep_of())))
    assert rules is not None and set(rows["status"]) == {"ok"}
    (end,) = races(rows, rules)
    spent = dict(zip(end.defenses, end.standing.spent, strict=True))
    assert end.standing.over
    for (rate, defense), seeds in found.items():
        # Nothing is raced for where nothing was attacked.
        assert seeds == list(range(spent[defense] if rate else rules.min))
    pairs = pairs_table([end]).set_index(["one", "other"])
    assert pairs.loc["none", "perfect_filter"]["verdict"] == "perfect_filter below none"
    assert pairs.loc["none", "random_filter"]["verdict"].startswith("too alike")
    assert "Race on badnets @ 20 %" in summary([end], rules)[0]
    assert len(rows) < preview(sweep_of(), Store(ended[0])).trials + 1 < 2 * 4 * 9


def test_the_page_tells_of_every_pair(ended: tuple[str, Conclusion]) -> None:
    rules = sweep_of().race
    assert rules is not None
    said, ends = race.ended(material := gather("raced", ended[0]))
    (sheet,) = race.sheets(ends)
    assert len(sheet.columns[0].values) == 6 and said.startswith("Race on badnets @ 20 %")
    assert "Race over seeds" in (page := render(material)) and said in html.unescape(page)


def test_attacks_share_the_chance_of_a_false_separation(ended: tuple[str, Conclusion]) -> None:
    two = sweep_of(TEXT.replace("[badnets:", "[blend: {rate: 0.1}, badnets:"))
    planned = planner_of(two)
    assert isinstance(planned, RacingPlanner) and planned.level == 0.025
    assert len(planned.races) == 3, "one is of rate 0, where nothing is raced for"
    rules, rows = two.race, ended[1].rows
    assert rules is not None
    again = pd.concat([rows, rows.assign(attack="blend", attack_name="blend")])
    alone, together = (
        [pair.state for end in races(some, rules) for pair in end.standing.pairs]
        for some in (rows, again)
    )
    # Eight seeds of one sign separate these pairs at 5 %, and are too few at 2.5 %.
    assert alone.count("separated") == 4
    assert len(together) == 12 and "separated" not in together


def test_a_sweep_that_is_over_runs_nothing_again(ended: tuple[str, Conclusion]) -> None:
    again = launch(sweep_of(), TEXT, ended[0], inline=True)
    assert again.ran == 0
    assert seeds_of(again.rows) == seeds_of(ended[1].rows)
    plan = preview(sweep_of(), Store(ended[0]))
    assert sum(kind.run for kind in plan.kinds) == 0
    assert "0 of 1 attacks still ask for seeds" in " ".join(plan.forecasts)


def test_a_plan_of_an_empty_store_knows_the_first_seeds_and_says_the_most(tmp_path: Path) -> None:
    plan = preview(sweep_of(), Store(str(tmp_path)))
    assert plan.trials == 2 * 4 * 3
    assert "24 trials so far, 72 at most" in " ".join(plan.forecasts)


@pytest.mark.further
def test_a_killed_race_goes_on_to_the_same_trials_and_values(
    ended: tuple[str, Conclusion], tmp_path: Path
) -> None:
    def stop(run: Run) -> None:
        run.schedule.stopping |= len(run.schedule.ran) >= 60

    first = launch(sweep_of(), TEXT, str(tmp_path), inline=True, watch=stop)
    assert first.interrupted and 60 <= first.ran < ended[1].ran
    derived = load("raced", str(tmp_path))
    assert set(derived["trial"]) < set(ended[1].rows["trial"])
    second = launch(sweep_of(), TEXT, str(tmp_path), inline=True)
    assert first.ran + second.ran == ended[1].ran
    columns = ["trial", "defense", "seed", "asr", "ca"]
    assert second.rows[columns].equals(ended[1].rows[columns])


def test_whoever_reads_the_store_finds_the_same_trials(ended: tuple[str, Conclusion]) -> None:
    store, sweep = Store(ended[0]), sweep_of()
    derived = Collector(planner_of(sweep), store, {}, {}).rows("raced")
    assert derived["trial"].tolist() == ended[1].rows["trial"].tolist()
    arrivals = Arrivals(store, "raced", lambda trial: False)
    arrived = [row["trial"] for row in arrivals.take(1000)]
    assert sorted(map(str, arrived)) == sorted(ended[1].rows["trial"])
    assert arrivals.total == len(arrived)
    kept = read(store, "raced")
    assert rules_of(kept.sweep) == sweep.race


@pytest.mark.further
def test_a_defense_that_fails_says_nothing_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, *given: object) -> object:
        raise ValueError("planted")

    monkeypatch.setattr(RandomFilter, "decide", broken)
    rows = launch(sweep_of(), TEXT, str(tmp_path), inline=True).rows
    raced = rows[rows["rate"] > 0]
    counts = raced.groupby("defense").size()
    assert counts["random_filter"] < counts["none"], "given up, for it has no values"
    assert set(raced[raced["defense"] == "random_filter"]["status"]) == {"failed"}


def test_the_rules_survive_every_form_of_the_sweep() -> None:
    sweep = sweep_of()
    assert sweep.race is not None and sweep.seeds == tuple(range(9))
    assert restored(json.loads(json.dumps(to_plain(sweep)))) == sweep
    assert sweep_of(to_yaml(sweep)) == sweep
    given = {name: getattr(sweep, name) for name in Sweep.model_fields if name != "race"}
    assert Sweep(**{**given, "seeds": {"max": 9, "until": "separated"}}) == sweep
    plain = sweep_of(TEXT.replace("{max: 9, until: separated}", "9"))
    assert type(planner_of(plain)) is Planner and type(planner_of(sweep)) is RacingPlanner
    shown = json_schema()["properties"]["seeds"]["anyOf"][2]
    assert shown["properties"]["until"]["const"] == "separated"


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("{max: 9}", "until"),
        ("{max: 9, until: bored}", "separated"),
        ("{min: 10, max: 9, until: separated}", "min must be at most max"),
        ("{max: 500, until: separated}", "200"),
        ("{max: 9, until: separated, metric: f1}", "asr"),
        ("{max: 9, until: separated, most: 3}", "unknown field"),
        ("{max: 9, until: separated}\nexclude: [{seed: 1}]", "exclude.seed"),
    ],
)
def test_wrong_rules_are_refused_with_their_line(seeds: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        sweep_of(TEXT.replace("{max: 9, until: separated}", seeds))
    assert re.match(r"race\.yaml:(8|9): ", str(error.value))


def test_seeds_that_cannot_separate_anything_are_refused() -> None:
    with pytest.raises(PlanError, match="give at least 6"):
        planner_of(sweep_of(TEXT.replace("max: 9", "max: 5")))


def test_a_race_in_place_of_a_number_of_seeds_is_told_as_a_difference() -> None:
    plain = sweep_of(TEXT.replace("{max: 9, until: separated}", "4"))
    (line,) = differences(to_plain(plain), sweep_of())
    assert line.startswith("seeds: was 4, is {min: 3, max: 9, until: separated")
    assert differences(to_plain(sweep_of()), sweep_of()) == []
