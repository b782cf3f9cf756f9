"""Intervals by the unit that was drawn, paired comparisons, and what a sweep may say of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import coverage
from raysweep.metrics.intervals import (
    difference,
    mean_interval,
    of_attacks,
    of_model,
    of_seeds,
    t_interval,
    wilson,
)
from raysweep.metrics.pairs import holm, mcnemar, ranked, sign_flips
from raysweep.reports.tables import aggregate, interval_text, percent, spread, text_table
from raysweep.results.cells import cells, estimate, with_arena
from raysweep.results.comparison import contrast, contrasts, pairs, ranks
from raysweep.results.findings import findings, overall
from raysweep.results.grouping import failed_attacks, failed_mask, setting_column
from tests.material import row

KINDS = {"none": "control", "perfect_filter": "control", "random_filter": "control"}


def trial(defense: str, asr: float, **given: Any) -> dict[str, Any]:
    """Return one finished trial of a defense; shares are of 300 inputs."""
    named = {
        "defense": defense, "defense_name": defense, "kind": KINDS.get(defense, "filter"),
        "asr": asr, "asr_n": 300, "ca": 0.9, "ca_n": 3000,
    }  # fmt: skip
    at = {**row(), **named, **given}
    return {**at, "trial": f"{at['attack']}-{at['rate']}-{defense}-{at['seed']}"}


def sweep(asr: dict[str, list[float]], attacks: int = 2, **given: Any) -> pd.DataFrame:
    """Return a sweep of some attacks, where each defense has an ASR for each seed."""
    return pd.DataFrame([
        trial(defense, value, attack=f"a{n}", attack_name=f"a{n}", seed=seed, **given)
        for n in range(attacks)
        for defense, values in asr.items() for seed, value in enumerate(values)
    ])  # fmt: skip


# Intervals


@pytest.fixture(scope="module")
def simulated() -> list[coverage.Coverage]:
    return coverage.table(sims=1500, seed=0)


def test_every_printed_interval_covers_the_truth_as_often_as_it_says(
    simulated: list[coverage.Coverage],
) -> None:
    printed = [line for line in simulated if line.printed]
    bad = [line for line in printed if not coverage.LEAST <= line.covered <= coverage.MOST]
    assert bad == [], "1,500 simulations: a share of 95 % is known to 1.1 points"
    assert {line.n for line in printed if line.interval == "seeds of a cell"} >= {3, 5, 10}
    assert {line.n for line in printed if line.interval == "families of attacks"} >= {10}


def test_trials_of_one_attack_are_no_independent_draws_of_attacks() -> None:
    rng = np.random.default_rng(0)
    attacks = rng.normal(0.5, 0.15, (2000, 4))
    trials = (attacks[:, :, None] + rng.normal(0, 0.02, (2000, 4, 9))).reshape(2000, 36)
    pooled = np.array([t_interval(line) for line in trials])
    assert np.mean((pooled[:, 0] <= 0.5) & (pooled[:, 1] >= 0.5)) < 0.6


def test_models_that_all_score_alike_still_have_an_interval() -> None:
    found = of_seeds([1.0] * 5, [300] * 5)
    assert found.high == 1.0 and 0.98 < found.low < 0.999, "five times 300 of 300"
    assert (found.value, found.n, found.unit, found.values) == (1.0, 5, "seeds", (1.0,) * 5)
    assert of_seeds([0.0] * 3, [300] * 3).high > 0.001


def test_one_model_has_the_interval_of_its_inputs() -> None:
    found = of_seeds([math.nan, 0.5], [20, 20])
    assert (found.low, found.high) == wilson(10, 20) and (found.n, found.unit) == (20, "inputs")
    unknown = of_model(0.5, math.nan)
    assert math.isnan(unknown.low) and (unknown.n, unknown.unit) == (1, "seeds")


def test_two_models_show_both_values_and_no_interval() -> None:
    rows = pd.DataFrame({"d": "x", "ca": [0.98, 0.99], "ca_n": [300, 300]})
    entry = aggregate(rows, ["d"], ["ca"]).iloc[0]
    assert math.isnan(entry["ca_low"]) and (entry["ca_n"], entry["ca_unit"]) == (2, "seeds")
    assert spread(entry, "ca") == "98.5 (98.0, 99.0)"


def test_nothing_outside_0_to_100_is_printed() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 4, 5, 9) * 30:
        values = np.round(rng.beta(0.2, 3, size) * 40) / 40
        for found in (of_seeds(values.tolist(), [40] * size), of_attacks(values.tolist())):
            if found.bounded:
                assert 0 <= found.low <= found.value <= found.high <= 1
            assert "±" not in interval_text(found.value, found.low, found.high, found.values)


def test_a_group_of_several_attacks_is_a_mean_of_families() -> None:
    rows = sweep({"x": [0.1, 0.2, 0.3]}, attacks=1)
    rows = pd.concat([rows, sweep({"x": [0.8]}, attacks=2).iloc[1:]], ignore_index=True)
    found = estimate(rows, "asr")
    assert found.unit == "attacks" and found.n == 2, "forms and rates of one are one"
    assert found.value == pytest.approx(0.5) and found.values == pytest.approx((0.2, 0.8))
    rates = pd.concat([rows.iloc[:3], rows.iloc[:3].assign(rate=0.1, asr=0.6)])
    several = estimate(rates, "asr")
    assert (several.unit, several.n) == ("rates", 2) and math.isnan(several.low)


def test_cells_hold_every_column_whatever_failed() -> None:
    rows = sweep({"none": [1.0, 1.0, 0.99], "x": [0.0, 0.1, 0.02]}, attacks=1)
    rows.loc[5, ["status", "asr", "ca"]] = ["failed", None, None]
    table = cells(rows, ["asr", "der"]).set_index("defense")
    assert table.loc["x", ["n_trials", "n_finished", "asr_n", "asr_unit"]].tolist() == [
        3, 2, 2, "seeds",
    ]  # fmt: skip
    assert table.loc["x", "asr_values"] == (0.0, 0.1) and math.isnan(table.loc["x", "asr_low"])
    assert 0 <= table.loc["none", "asr_low"] <= table.loc["none", "asr_high"] <= 1
    assert list(cells(rows.iloc[:0], ["asr"])) == list(cells(rows, ["asr"]))


def test_der_is_half_of_what_the_attack_loses_less_what_accuracy_costs() -> None:
    rows = pd.DataFrame([
        trial("none", 0.9, ca=0.9), trial("x", 0.1, ca=0.8), trial("y", 0.98, ca=0.95),
        trial("z", 0.1, seed=7),
    ])  # fmt: skip
    der = with_arena(rows).set_index("defense")["der"]
    assert der["x"] == pytest.approx((0.8 - 0.1 + 1) / 2) and der["none"] == 0.5
    assert der["y"] == 0.5, "neither a rise of ASR nor one of CA counts"
    assert math.isnan(der["z"]), "its undefended trial is not there"


# Tests


def test_sign_flips_count_every_way() -> None:
    differences = np.array([0.3, 0.1, 0.4, -0.05, 0.2, 0.6])
    exact = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=10_000
    )
    assert sign_flips(differences) == pytest.approx(exact.pvalue)
    assert sign_flips(np.full(5, 0.1)) == pytest.approx(2 / 2**5)
    many = np.random.default_rng(0).normal(0.3, 1, 60)
    drawn = sign_flips(many)
    assert drawn == sign_flips(many) > 0
    assert drawn == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert sign_flips(np.zeros(4)) == 1.0 and math.isnan(sign_flips(np.array([])))


def test_holm_and_mcnemar_agree_with_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    p_values = [0.01, 0.04, 0.03, 0.9, 0.011]
    expected = multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist())
    with_unknown = holm([math.nan, *p_values])
    assert math.isnan(with_unknown[0]) and with_unknown[1:] == pytest.approx(expected.tolist())
    rng = np.random.default_rng(0)
    one, other = rng.random(200) < 0.5, rng.random(200) < 0.6
    counts = [[(one & other).sum(), (one & ~other).sum()],
              [(~one & other).sum(), (~one & ~other).sum()]]  # fmt: skip
    assert mcnemar(one, other) == pytest.approx(tables.mcnemar(counts, exact=True).pvalue)
    assert mcnemar(one, one) == 1.0


def test_ranks_agree_with_scikit_posthocs() -> None:
    posthocs = pytest.importorskip("scikit_posthocs")
    values = np.random.default_rng(0).random((12, 4)) + np.array([0, 0.2, 0.5, 0.9])
    found = ranked(values)
    assert found.p == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)
    assert np.argmin(found.ranks) == 3 and sum(found.ranks) == pytest.approx(10)
    nemenyi = posthocs.posthoc_nemenyi_friedman(values).to_numpy()
    apart = np.abs(np.subtract.outer(found.ranks, found.ranks)) > found.critical
    assert (apart == (nemenyi < 0.05)).all()


def test_the_difference_of_two_models_is_newcombes() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339.
    low, high = difference(of_model(56 / 70, 70), of_model(48 / 80, 80))
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_defenses_are_paired_by_setting() -> None:
    rows = sweep({"none": [0.9, 0.5, 0.7], "x": [0.8, 0.4, 0.6]}, attacks=1)
    rows.loc[len(rows)] = trial("x", 0.0, attack="a0", attack_name="a0", seed=9)
    paired = pairs(with_arena(rows), "x", "none", "asr")
    assert paired["difference"].tolist() == pytest.approx([-0.1] * 3), "seed 9 has no pair"
    found = contrast(with_arena(rows), "x", "none", "asr")
    assert found.n == 3 and found.unit == "settings" and found.value == pytest.approx(-0.1)
    table = contrasts(sweep({"none": [0.9] * 2, "x": [0.1] * 2}, attacks=8), ["none"])
    asr = table[table["metric"] == "asr"].iloc[0]
    assert (asr["n"], asr["unit"]) == (8, "attacks") and asr["holm"] == pytest.approx(2 / 2**8)


def test_ranks_over_settings_and_how_stable_they_are() -> None:
    rows = sweep({"none": [0.9, 0.91, 0.92], "x": [0.1, 0.2, 0.15], "y": [0.5, 0.4, 0.45]}, 5)
    found = ranks(rows).set_index("defense")
    assert found["rank"].tolist() == [3.0, 1.0, 2.0] and set(found["n"]) == {15}
    assert found.loc["x", "first"] == 1.0 and found["p"].iloc[0] < 0.01


# Findings


def test_an_attack_that_fools_clean_models_too_has_failed() -> None:
    rows = pd.DataFrame([
        trial("none", 1.0), trial("none", 0.558, rate=0.0), trial("x", 0.5),
        trial("none", 1.0, attack="b", attack_name="b"),
        trial("none", 0.02, attack="b", attack_name="b", rate=0.0),
    ])  # fmt: skip
    assert failed_mask(rows, setting_column(rows)).tolist() == [True, False, True, False, False]
    said = "the trigger fools a clean model too: undefended ASR 100 %, ASR₀ 56 %"
    assert failed_attacks(rows) == {"badnets @ 5 %": said}
    assert any(title.endswith(said) for title, _, _ in text_table(rows))


def test_findings_name_what_holds_and_what_cannot_be_told_from_no_defense() -> None:
    asr = {
        "none": [1.0, 0.98, 0.99], "holding": [0.01, 0.0, 0.02], "weak": [0.5, 0.52, 0.48],
        "idle": [0.99, 0.97, 1.0], "costly": [0.0, 0.01, 0.0],
    }  # fmt: skip
    rows = sweep(asr, attacks=1)
    rows.loc[rows["defense"] == "costly", "ca"] = 0.8
    rows.loc[len(rows)] = trial("late", math.nan, attack="a0", attack_name="a0", status="pending")
    (found,) = findings(rows)
    assert (found.holds, found.indistinct, found.untested) == (("holding",), ("idle",), ("late",))
    assert found.worse == () and found.failed == "" and found.attack == "a0"
    assert found.undefended is not None and found.undefended.value == pytest.approx(0.99)
    low = sweep({"none": [0.6, 0.61, 0.59], "x": [0.9, 0.92, 0.91]}, attacks=1)
    assert findings(low)[0].worse == ("x",)


def test_a_defense_holds_an_attack_at_every_rate_or_not() -> None:
    rows = sweep({"none": [1.0] * 3, "x": [0.0, 0.01, 0.0]}, attacks=1)
    harder = sweep({"none": [1.0] * 3, "x": [0.4, 0.3, 0.5]}, attacks=1, rate=0.1)
    assert findings(rows)[0].holds == ("x",)
    assert findings(pd.concat([rows, harder]))[0].holds == ()


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_models_are_judged_by_their_inputs(seeds: int) -> None:
    rows = sweep({"none": [1.0] * seeds, "x": [0.0] * seeds, "y": [0.99] * seeds}, attacks=1)
    (found,) = findings(rows)
    assert (found.holds, found.indistinct) == (("x",), ("y",))
    few = sweep({"none": [1.0] * seeds, "x": [0.0] * seeds}, attacks=1, asr_n=10)
    assert findings(few)[0].holds == (), "0 of 10 may be 28 %"


def test_the_best_has_met_every_attack_and_is_named_with_its_test() -> None:
    rows = sweep({"none": [1.0] * 3, "x": [0.01, 0.0, 0.02], "y": [0.3, 0.35, 0.4]}, attacks=4)
    (found,) = overall(rows)
    assert found.best == "x" and found.among == ("x",)
    assert "sign-flip" in found.test and "12 settings" in found.test and "Holm" in found.test
    lucky = rows[~((rows["defense"] == "x") & (rows["attack"] == "a3"))]
    (without,) = overall(lucky)
    assert without.best == "y", "x has not met the last attack"
    failed = rows.assign(status=np.where(
        (rows["defense"] == "x") & (rows["attack"] == "a3"), "failed", "ok"
    ))  # fmt: skip
    assert overall(failed)[0].best == "y"


def test_no_best_is_named_where_two_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(0)
    rows = sweep({"none": [1.0] * 4, "x": [0.1] * 4, "y": [0.1] * 4}, attacks=4)
    rows["asr"] = np.clip(rows["asr"] + rng.normal(0, 0.03, len(rows)), 0, 1)
    (found,) = overall(rows)
    assert found.best == "" and set(found.among) == {"x", "y"}
    few = sweep({"none": [1.0], "x": [0.0]}, attacks=2)
    assert overall(few)[0].best == "" and "2 are too few to reach 5 %" in overall(few)[0].test


def test_controls_are_never_the_best() -> None:
    rows = sweep({"none": [1.0] * 3, "perfect_filter": [0.0] * 3, "x": [0.2] * 3}, attacks=4)
    assert overall(rows)[0].best == "x"
    assert overall(rows[rows["defense"] != "x"])[0].among == ()


def test_percentages_of_an_interval_are_those_of_its_bounds() -> None:
    low, high = mean_interval(np.array([0.2, 0.3, 0.4]), 900)
    assert interval_text(0.3, low, high, ()) == f"30.0 [{percent(low)}–{percent(high)}]"
