"""Faults of tuning that cost a user silently, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

SEARCH, RANKING, FOLDS, SPACE, STUDY, STORED = (
    f"tuning/{name}.py" for name in ("search", "ranking", "folds", "space", "study", "stored")
)
RANGES, SECTION, SEARCHING = (f"sweep/{name}.py" for name in ("ranges", "tuning", "searching"))
TUNE = "test_tune.py::test_"
SPACES, SPLITS = "test_tune_spaces.py::test_", "test_tune_splits.py::test_"
BETTER = "test_engine_tuning.py::test_what_is_better_keeps_constraints_first_and_knows_what_is_"

TUNED = (
    Fault(
        "the truth of held-out places is not sealed", SEARCH,
        "else instance.closed()", "else instance",
        (TUNE + "a_planted_leak_fails",),
    ),
    Fault(
        "a search of clean data reads the truth", SEARCH,
        ' and self.knows != "clean_only" else', " else",
        ("test_engine_tuning.py::test_" + "a_search_that_may_see_clean_data_alone_reads_no_truth",),
    ),
    Fault(
        "a transfer that sees what it leaves out", FOLDS,
        'seen = {"transfer": rest}', 'seen = {"transfer": tuple(trials)}',
        (TUNE + "transfer_never_looks_at_what_it_leaves_out",),
    ),
    Fault(
        "objectives before constraints", RANKING,
        "return excess(metrics, tune), *losses(metrics, tune)",
        "return *losses(metrics, tune), excess(metrics, tune)",
        (TUNE + "constraints_hold_where_they_can",),
    ),
    Fault(
        "the worst is the best", RANKING,
        'max(known) if better(metric, tune.who) == "minimize" else min(known)',
        'min(known) if better(metric, tune.who) == "minimize" else max(known)',
        (TUNE + "worst_case_and_mean_differ",),
    ),
)  # fmt: skip

WRITTEN = (
    Fault(
        "multiples of q below the range", RANGES,
        "low = self._multiple(math.ceil(", "low = self._multiple(math.floor(",
        (SPACES + "quantized_ranges_hold_multiples_alone",),
    ),
    Fault(
        "a tuple comes back from a study as text", SPACE,
        "return known.get(held, held) if isinstance(held, str) else held", "return held",
        (SPACES + "tuples_and_constants_are_searched_as_they_are_written",),
    ),
    Fault(
        "conditions are ignored in grids", SPACE,
        "kept = (within(space, one, known) for one in every)", "kept = every",
        (SPACES + "a_parameter_is_searched_only_where_its_condition_holds",),
    ),
    Fault(
        "conditions are ignored in studies", STUDY,
        "if self.space[name].applies(standing):", "if True:",
        (SPACES + "a_parameter_is_searched_only_where_its_condition_holds",),
    ),
    Fault(
        "an invalid combination is no broken constraint", STUDY,
        "constraints = {ALLOWED: 1.0} if invalid else {}", "constraints = {}",
        (SPACES + "an_invalid_combination_is_an_infeasible_candidate",),
    ),
    Fault(
        "an undefined objective is searched", SEARCHING,
        "if metric not in known:", "if False:",
        (SPACES + "an_objective_that_a_defense_cannot_have_is_refused",),
    ),
    Fault(
        "the exponents of W&B are taken for values", RANGES,
        'if word in ("log_uniform", ', "if word in (",
        (TUNE + "a_wrong_range_is_said_with_its_line",),
    ),
)  # fmt: skip

COVERED = (
    Fault(
        "a grid is the first candidates of a fine one", STUDY,
        "covering(self.space, self.tune.trials, self.known)",
        "covering(self.space, 2000, self.known)[: self.tune.trials]",
        (SPACES + "a_grid_covers_its_space_with_the_candidates_given",),
    ),
    Fault(
        "what is unknown keeps a constraint", SECTION,
        "            return math.inf\n        return value - self.bound",
        "            return 0.0\n        return value - self.bound",
        (BETTER + "undefined", SPACES + "an_unknown_constraint_is_told_to_the_study_as_broken"),
    ),
    Fault(
        "a search goes on after its end", STUDY,
        "if done + out >= self.trials or self.stopped:", "if done + out >= self.trials:",
        (SPACES + "patience_and_gpu_hours_hold_after_a_restart",),
    ),
    Fault(
        "a pruner knows no constraints", SEARCH,
        "if broken > 0:", "if False:",
        (SPACES + "a_candidate_that_breaks_constraints_is_stopped_although_its_objective_is_good",),
    ),
    Fault(
        "a pruner meets instances in the order of the file", SEARCH,
        'if self.tune.pruner == "none":\n            return self.settings',
        "if True:\n            return self.settings",
        (SPACES + "a_pruner_meets_the_instances_in_an_order_that_is_drawn",),
    ),
)  # fmt: skip

SPLIT = (
    Fault(
        "the third split is searched on", FOLDS,
        "trials = [trial for trial in every if not _reported_on(trial, tune)]",
        "trials = list(every)",
        (SPLITS + "a_third_split_is_seen_by_no_search_and_reported_on_alone",),
    ),
    Fault(
        "attacks of one family are held out apart", FOLDS,
        "return trial.attack.family if attacks", "return trial.attack.name if attacks",
        (TUNE + "forms_of_one_attack_and_attacks_of_one_family_are_held_out_together",),
    ),
    Fault(
        "false alarms are those of attacked trials", STORED,
        "    if findings.clean:\n        metrics", "    if True:\n        metrics",
        (SPACES + "false_alarms_are_those_of_clean_trials",),
    ),
    Fault(
        "searches that all failed end well", "jobs/tune.py",
        "failed = failed_searches(searches, measurements) if tuned else []",
        "failed: list[str] = []",
        (TUNE + "a_setting_that_fails_is_a_note_and_costs_nothing_else",),
    ),
)  # fmt: skip

FAULTS = (*TUNED, *WRITTEN, *COVERED, *SPLIT)
