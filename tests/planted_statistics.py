"""Faults of intervals, tests and findings, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

INTERVALS, PAIRS = "metrics/intervals.py", "metrics/pairs.py"
CELLS, GROUPING, COMPARISON = (f"results/{n}.py" for n in ("cells", "grouping", "comparison"))
FINDINGS, CHANGES = "results/findings.py", "results/changes.py"
SAID = "test_statistics.py::test_"
COMPARED = "test_compare.py::test_"
METRICS = "test_metrics.py::test_"

FAULTS = (
    Fault(
        "a normal quantile for the variance between few models", INTERVALS,
        "_score(mean, room / between, _student(level, n - 1))",
        "_score(mean, room / between, _normal(level))",
        (SAID + "every_printed_interval_covers_the_truth_as_often_as_it_says",),
    ),
    Fault(
        "the error of skewed differences is forgotten", INTERVALS, "T_ERROR = 0.6", "T_ERROR = 2.5",
        (SAID + "every_printed_interval_covers_the_truth_as_often_as_it_says",),
    ),
    Fault(
        "models that score alike are certain", INTERVALS,
        "return _score(mean, cases, _normal(level)) if cases > 0 else NONE",
        "return (mean, mean) if cases > 0 else NONE",
        (SAID + "models_that_all_score_alike_still_have_an_interval",),
    ),
    Fault(
        "two models have an interval", INTERVALS, "FEWEST = 3 ", "FEWEST = 2 ",
        (SAID + "two_models_show_both_values_and_no_interval",),
    ),
    Fault(
        "Newcombe's ends are mixed up", INTERVALS,
        "math.hypot(one.value - one.low, other.high - other.value)",
        "math.hypot(one.high - one.value, other.value - other.low)",
        (SAID + "the_difference_of_two_models_is_newcombes",),
    ),
    Fault(
        "rates and forms of an attack are attacks of their own", CELLS,
        "families.setdefault(family, [])", "families.setdefault(len(families), [])",
        (SAID + "a_group_of_several_attacks_is_a_mean_of_families",),
    ),
    Fault(
        "a gain of accuracy counts for the DER", CELLS,
        "np.where(np.isnan(fall), np.nan, np.maximum(fall, 0))", "fall",
        (SAID + "der_is_half_of_what_the_attack_loses_less_what_accuracy_costs",),
    ),
    Fault(
        "drawn flips leave out the observed one", PAIRS,
        "(reached.sum() + 1) / (FLIPS + 1)", "0 * reached.mean()",
        (SAID + "sign_flips_count_every_way",),
    ),
    Fault(
        "a one-sided test of signs", PAIRS,
        "sums = np.abs((1 - 2 * ways) @ differences)", "sums = (1 - 2 * ways) @ differences",
        (SAID + "sign_flips_count_every_way",),
    ),
    Fault(
        "Holm without the largest so far", PAIRS,
        "largest = max(largest, min(1.0, p_values[n] * (len(known) - turn)))",
        "largest = min(1.0, p_values[n] * (len(known) - turn))",
        (SAID + "holm_and_mcnemar_agree_with_statsmodels",),
    ),
    Fault(
        "Nemenyi's distance without its root of two", PAIRS,
        "critical=studentized / math.sqrt(2)", "critical=studentized",
        (SAID + "ranks_agree_with_scikit_posthocs",),
    ),
    Fault(
        "the clean model's ASR is not looked at", GROUPING,
        "(asr < FAILED_BELOW) | (asr - floor < FAILED_BELOW)", "asr < FAILED_BELOW",
        (SAID + "an_attack_that_fools_clean_models_too_has_failed",),
    ),
    Fault(
        "pairs of other seeds", COMPARISON,
        "    settings = zip(*(own[name].tolist() for name in SETTING), strict=True)",
        "    settings = zip(*(own[name].tolist()[::-1] for name in SETTING), strict=True)",
        (SAID + "defenses_are_paired_by_setting",),
    ),
    Fault(
        "settings of one attack pass for attacks", COMPARISON,
        "if paired[FAMILY].nunique() < FAMILIES:", "if True:",
        (SAID + "defenses_are_paired_by_setting",),
    ),
    Fault(
        "what accuracy costs is forgotten", FINDINGS,
        "<= HELD_ASR and lost <= HELD_LOSS", "<= HELD_ASR",
        (SAID + "findings_name_what_holds_and_what_cannot_be_told_from_no_defense",),
    ),
    Fault(
        "a mean holds an attack", FINDINGS, "return found.high", "return found.value",
        (SAID + "one_or_two_models_are_judged_by_their_inputs",),
    ),
    Fault(
        "one rate is enough to hold an attack", FINDINGS,
        "if found == wanted)", "if found & wanted)",
        (SAID + "a_defense_holds_an_attack_at_every_rate_or_not",),
    ),
    Fault(
        "the best may have met fewer attacks", FINDINGS,
        'own.groupby(["attack", "rate"]).ngroups == every', "len(own)",
        (SAID + "the_best_has_met_every_attack_and_is_named_with_its_test",),
    ),
    Fault(
        "a best is named without its test", FINDINGS,
        "best=top if named else \"\"", "best=top",
        (SAID + "no_best_is_named_where_two_cannot_be_told_apart",),
    ),
    Fault(
        "a control is the best", FINDINGS,
        'done[done["kind"] != CONTROL]', 'done[done["seed"] >= 0]',
        (SAID + "controls_are_never_the_best",),
    ),
    Fault(
        "a verdict on the wrong class is right", "metrics/judgment.py",
        "correct=not classes if found is None else found",
        "correct=bool(classes) == bool(truth.targets)",
        (METRICS + "a_verdict_on_a_backdoored_model_must_name_a_true_target",),
    ),
    Fault(
        "what was rejected is a hit", "metrics/judgment.py",
        '"ca": hits(outputs.clean, truth.labels, no_clean)',
        '"ca": hits(outputs.clean, truth.labels)',
        (METRICS + "a_judgment_is_what_was_packed",),
    ),
    Fault(
        "all seeds draw the same data", "sweep/trials.py",
        "dataset=dataset.of_seed(seed)", "dataset=dataset",
        (COMPARED + "each_seed_draws_its_own_data_where_that_is_asked_for",
         COMPARED + "what_a_seed_drew_is_recorded"),
    ),
    Fault(
        "drawn seeds make each trial an arena of its own", "datasets/__init__.py",
        "drawn = SEEDS if self.resample else frozenset()", "drawn = frozenset()",
        (COMPARED + "each_seed_draws_its_own_data_where_that_is_asked_for",),
    ),
    Fault(
        "trials of two recipes pass for one", CHANGES,
        "and any(texts(rows, column).nunique() > 1 for rows in (first, second))", "and False",
        (COMPARED + "a_parameter_that_varies_within_a_sweep_tells_its_trials_apart",),
    ),
    Fault(
        "the change is told backwards", CHANGES,
        "for side in (second, first)", "for side in (first, second)",
        (COMPARED + "likes_are_paired_and_the_others_are_named",),
    ),
)  # fmt: skip
