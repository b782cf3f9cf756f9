"""Faults of attackers who search that cost a user silently, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

HERE = "test_adaptive.py::test_"
FOLDS, STORED, FEED = (f"tuning/{name}.py" for name in ("folds", "stored", "feed"))
WINDOWS = (HERE + "similarity_is_that_of_the_windows_one_by_one",)

FAULTS = (
    Fault(
        "an attacker wants what a defender wants", "sweep/tuning.py",
        'better(objective.get("name"), "attack")', 'better(objective.get("name"), "defense")',
        (HERE + "every_metric_has_the_attackers_direction_unless_one_is_given",),
    ),
    Fault(
        "a defender's studies are tied to an attacker's fields", "sweep/tuning.py",
        '"who", "against", "budget")', ")",
        (HERE + "a_defenders_section_is_packed_as_ever",),
    ),
    Fault(
        "poison that does not work may evade", "sweep/searching.py",
        'if not any((bound.metric, bound.sign) == ("victim_asr", ">=")', 'if not any(True',
        (HERE + "what_an_attacker_cannot_be_judged_by_is_refused_when_the_file_is_loaded",),
    ),
    Fault(
        "an attacker who knows a defense has met the others", FOLDS,
        '{"adaptive": held, "transferred": rest}', '{"adaptive": rest, "transferred": held}',
        (HERE + "one_search_knows_the_defense_and_another_all_but_it",),
    ),
    Fault(
        "a study of an attack outlives the defenses that it met", FOLDS,
        "parts.append([_identity(setting.defense) for setting in split.settings])",
        "parts.append([])",
        (HERE + "studies_are_tied_to_the_defenses_that_an_attack_meets",),
    ),
    Fault(
        "a defense that answers stays as written", "tuning/measurements.py",
        'if self.tune.against == "own":', "if True:",
        (HERE + "a_defense_that_answers_has_the_best_decision_on_each_attack",),
    ),
    Fault(
        "the answer of a defense spends no budget", "tuning/answer.py",
        "constraints=(f\"fpr <= {budget!r}\",)", "constraints=('fpr <= 1e-09',)",
        (HERE + "a_defense_that_answers_has_the_best_decision_on_each_attack",),
    ),
    Fault(
        "the victim is judged behind the defense", STORED,
        "victim = store.outcome(route.undefended) or {}",
        'victim = store.outcome(route.evaluate or "") or {}',
        (HERE + "a_default_row_is_that_of_the_records",),
    ),
    Fault(
        "a candidate is judged before its victim is", FEED,
        "filter(None, (last, route.undefended, route.visibility))", "filter(None, (last,))",
        (HERE + "a_candidate_waits_for_its_victim_and_its_trigger",),
    ),
    Fault(
        "a rate that no dataset allows ends a search", FEED,
        "return replace(candidate, trials=(), invalid=why) if why else candidate",
        "return candidate",
        (HERE + "rows_say_what_was_known_and_what_it_cost",),
    ),
    Fault(
        "an attacker's constraints are no constraints", "tuning/ranking.py",
        "return sum(max(bound.excess(metrics), 0.0) for bound in tune.bounds)", "return 0.0",
        (HERE + "each_constraint_is_kept", HERE + "the_faintest_trigger_that_works_is_found"),
    ),
    Fault(
        "the worst case breaks the constraints", "reports/adaptive.py",
        'if kept(row, settings) == "kept" and not', "if not",
        (HERE + "the_worst_case_keeps_the_constraints",),
    ),
    Fault(
        "similarity takes moments for variances", "metrics/visibility.py",
        "_windowed(x * x) - mean_x**2", "_windowed(x * x)", WINDOWS,
    ),
    Fault(
        "the windows of similarity are even", "metrics/visibility.py",
        "weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / DEVIATION) ** 2)",
        "weights = np.ones(2 * reach + 1)", WINDOWS,
    ),
    Fault(
        "the largest change is the mean change", "metrics/visibility.py",
        ".max(axis=1).mean()", ".mean(axis=1).mean()",
        (HERE + "distances_of_images_are_those_of_the_definition",),
    ),
)  # fmt: skip
