"""Faults of RED: inference, search, cleaning, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

RED, PATTERNS, LEFT, DESCENT, EFFECTS = (
    f"defenses/{name}.py" for name in ("_red", "red", "_subtraction", "_descent", "_effects")
)
SEARCH, JOINT, CLEANING, TABLES = (
    f"numerics/test_{name}.py::test_"
    for name in ("red", "red_search", "red_cleaning", "red_effects")
)

FAULTS = (
    Fault(
        "rises of the posterior count as falls", LEFT,
        "(before[:, target] - after[:, target]).clip(min=0)",
        "abs(before[:, target] - after[:, target])",
        (CLEANING + "the_scores_are_those_of_the_victim_without_the_pattern",),
    ),
    Fault(
        "the cut from each sample's own posterior whatever is asked", LEFT,
        'elif reference == "target":', "elif not reference:",
        (CLEANING + "the_scores_are_those_of_the_victim_without_the_pattern",),
    ),
    Fault(
        "K - 1 exponent dropped", RED,
        "-np.expm1((classes - 1) * np.log1p(-tail))", "-np.expm1(np.log1p(-tail))",
        (SEARCH + "p_values_are_the_two_level_order_statistic",),
    ),
    Fault(
        "upper level dropped", RED,
        "return own, -np.expm1(classes * np.log1p(-first))", "return own, first",
        (SEARCH + "p_values_are_the_two_level_order_statistic",
         SEARCH + "calibrated_false_alarms_are_as_many_as_asked_for"),
    ),
    Fault(
        "location of the Gamma left free", RED,
        "stats.gamma.sf(highest, shape, scale=means / shape)",
        "stats.gamma.sf(highest, shape, loc=values[values > 0].min(), scale=means / shape)",
        (SEARCH + "p_values_are_the_two_level_order_statistic",),
    ),
    Fault(
        "shape by the first guess", RED, "for _ in range(6):", "for _ in range(0):",
        (SEARCH + "gamma_shapes_are_those_of_the_likelihood",),
    ),
    Fault(
        "null of the target's own pairs", RED,
        "counts, sums, log_sums = used.sum(-2), values.sum(-2), logs.sum(-2)",
        "counts, sums, log_sums = used.sum(-1), values.sum(-1), logs.sum(-1)",
        (SEARCH + "p_values_are_the_two_level_order_statistic",),
    ),
    Fault(
        "sources for targets", RED, "highest = reciprocals_KK.max(-2)",
        "highest = reciprocals_KK.max(-1)",
        (SEARCH + "a_planted_pair_is_found_with_its_target",),
    ),
    Fault(
        "the largest pairs stay in the null", RED,
        "[..., : -(classes - 1)]", "[..., :]",
        (SEARCH + "the_largest_are_dropped_however_many_pairs_were_reached",),
    ),
    Fault(
        "calibration of another null", RED,
        "p_values(some, null)[1]", "p_values(some)[1]",
        (SEARCH + "calibrated_false_alarms_are_as_many_as_asked_for",),
    ),
    Fault(
        "calibration at the wrong end", RED,
        'np.searchsorted(simulated, p_value, "right")', '(simulated > p_value).sum()',
        (SEARCH + "a_planted_pair_is_found_with_its_target",),
    ),
    Fault(
        "a simulation for every p-value", RED,
        "@lru_cache(64)\ndef _simulated", "def _simulated",
        (SEARCH + "the_same_pairs_are_simulated_once",),
    ),
    Fault(
        "calibration by pairs that were not reached", RED,
        "min(TOGETHER, trials - start), classes, classes)) * mask",
        "min(TOGETHER, trials - start), classes, classes)) * ~np.eye(classes, dtype=bool)",
        (SEARCH + "the_same_pairs_are_simulated_once",),
    ),
    Fault(
        "a p-value that is told and another that decides", PATTERNS,
        "p_value=None if by_mads else p_value",
        'p_value=None if by_mads else float(found["p_value"])',
        (SEARCH + "the_p_that_is_compared_with_theta_is_the_one_that_is_told",),
    ),
    Fault(
        "theta not calibrated", PATTERNS, '"p_calibrated" if self.calibrated',
        '"p_calibrated" if not self.calibrated',
        (SEARCH + "the_p_that_is_compared_with_theta_is_the_one_that_is_told",),
    ),
    Fault(
        "pattern subtracted from the sources", DESCENT,
        "block + tried[:, None])", "block - tried[:, None])",
        (SEARCH + "the_search_on_a_linear_model_goes_along_the_weights",),
    ),
    Fault(
        "no gradient where an image lies on a bound of the box", DESCENT,
        "images.masked_fill(images < 0, 0.0).masked_fill(images > 1, 1.0)",
        "images.masked_fill(images <= 0, 0.0).masked_fill(images >= 1, 1.0)",
        (JOINT + "a_pixel_that_is_black_or_white_in_all_images_can_change",),
    ),
    Fault(
        "second term keeps the target's images", DESCENT,
        "loss = -part * others", "loss = part * others",
        (JOINT + "the_search_descends_the_objective_of_both_terms",),
    ),
    Fault(
        "pattern added to the target's images", DESCENT,
        "block[None] - tried[:, None])", "block[None] + tried[:, None])",
        (JOINT + "the_search_descends_the_objective_of_both_terms",),
    ),
    Fault(
        "milestones of the search ignored", PATTERNS,
        "rate = self.learning_rate * 0.1 ** sum(step >= m for m in self.milestones)",
        "rate = self.learning_rate",
        (JOINT + "the_search_descends_the_objective_of_both_terms",),
    ),
    Fault(
        "search without momentum", PATTERNS,
        "velocity[active] = self.momentum * velocity[active] + gradient",
        "velocity[active] = gradient",
        (JOINT + "the_search_descends_the_objective_of_both_terms",),
    ),
    Fault(
        "final estimate with the scan's weight", PATTERNS,
        "again, done = self._search(inputs, ctx, target, self.weight)",
        "again, done = self._search(inputs, ctx, target, self.scan_weight)",
        (JOINT + "the_final_estimate_has_its_own_weight",),
    ),
    Fault(
        "as many images of each source as the scarcest has", PATTERNS,
        "        removed = self._drawn(data, target, ctx)",
        "        least = min(len(group) for group in groups.values())\n"
        "        groups = {source: group[:least] for source, group in groups.items()}\n"
        "        removed = self._drawn(data, target, ctx)",
        (JOINT + "a_scarce_class_leaves_the_other_sources_their_images",),
    ),
    Fault(
        "search ends when half are sent", PATTERNS,
        "share >= self.pi", "share >= self.pi / 2",
        (SEARCH + "the_search_on_a_linear_model_goes_along_the_weights",),
    ),
    Fault(
        "norms instead of their reciprocals", RED,
        "ratios = 1 / np.where(positive, np.maximum(norms_KK, 1e-12), 1)",
        "ratios = np.where(positive, norms_KK, 1)",
        (SEARCH + "a_weak_pattern_is_found_and_its_samples_removed",
         SEARCH + "a_pattern_of_norm_two_is_beyond_doubt_and_none_is_not"),
    ),
    Fault(
        "pattern added where it should be removed", LEFT,
        "(x - v).clamp(0, 1)", "(x + v).clamp(0, 1)",
        (SEARCH + "a_weak_pattern_is_found_and_its_samples_removed",
         SEARCH + "a_pattern_of_norm_two_is_beyond_doubt_and_none_is_not"),
    ),
    Fault(
        "patterns that do not reach pi count", RED,
        "used = reached_KK & positive", "used = positive",
        (JOINT + "patterns_that_do_not_reach_pi_count_for_nothing",),
    ),
    Fault(
        "an estimate that does not reach pi", PATTERNS,
        "np.where(reached & (norms > 0), norms, np.inf)", "np.where(norms > 0, norms, np.inf)",
        (JOINT + "patterns_that_do_not_reach_pi_count_for_nothing",),
    ),
    Fault(
        "target of the smallest pattern", PATTERNS,
        'tested["anomaly"].argmax()', 'tested["reciprocals"].max(0).argmax()',
        (JOINT + "the_target_is_that_of_the_smallest_p_not_of_the_smallest_pattern",),
    ),
    Fault(
        "no verdict where the fit is not finite", PATTERNS,
        "by_mads = bool(np.isnan(p_value))", 'by_mads = self.null == "mad"',
        (JOINT + "fits_are_finite_and_deviations_stand_in_for_one_that_is_not",),
    ),
    Fault(
        "the plain flip whatever is asked", PATTERNS,
        'if self.rule == "flip":', "if self.rule:",
        (JOINT + "each_rule_flags_its_own_samples",),
    ),
    Fault(
        "removal without significance", PATTERNS,
        "if significant else np.zeros(len(evidence.labels), bool)", "",
        (SEARCH + "without_a_pattern_nothing_is_flagged",),
    ),
    Fault(
        "flips in place of a quantile of nothing", PATTERNS,
        'if self.rule == "flip":', 'if self.rule == "flip" or not len(found["reference"]):',
        (CLEANING + "a_quantile_of_nothing_is_an_error_and_no_other_rule",),
    ),
    Fault(
        "deviations stand in for a fit unsaid", PATTERNS,
        'facts={"MADs decide": 1.0} if by_mads and self.null != "mad" else {},', "",
        (JOINT + "fits_are_finite_and_deviations_stand_in_for_one_that_is_not",),
    ),
    Fault(
        "the scan's pattern stands in unsaid", PATTERNS,
        "            facts=facts,\n", "",
        (CLEANING + "a_scan_whose_pattern_stands_in_is_a_fact",),
    ),
    Fault(
        "a source for a pattern that was never reached", PATTERNS,
        "if not np.isfinite(norms).any():", "if False:",
        (CLEANING + "a_pattern_that_is_never_reached_is_an_error_and_no_source",),
    ),
    Fault(
        "the target's likelihood for the source's", LEFT,
        "values = compared = after[:, source]", "values = compared = -after[:, target]",
        (CLEANING + "the_scores_are_those_of_the_victim_without_the_pattern",),
    ),
    Fault(
        "an estimate where the pattern is told", PATTERNS,
        'if self.knows == "pattern":\n            return', 'if False:\n            return',
        (CLEANING + "what_is_told_is_declared_and_used",),
    ),
    Fault(
        "an oracle that is not declared", PATTERNS,
        'needs |= {"target_class"}', "pass",
        (CLEANING + "what_is_told_is_declared_and_used",),
    ),
    Fault(
        "the source that the trigger looks like", LEFT,
        "_source_of_minority(after[inside], target)", "_source_of_minority(before[inside], target)",
        (CLEANING + "the_source_is_found_once_the_pattern_is_gone",),
    ),
    Fault(
        "the source of a majority", LEFT,
        "return int(skewness.argmax())", "return int(skewness[:target].argmin())",
        (CLEANING + "the_source_is_the_class_that_the_poison_goes_back_to",),
    ),
    Fault(
        "the source of the smallest pattern by likelihood", PATTERNS,
        'smallest if self.score == "fall" else None', "smallest",
        (CLEANING + "a_likelihood_finds_its_own_source",),
    ),
    Fault(
        "all images of a source at once", DESCENT,
        "images.split(count, 1)", "images.split(images.shape[1], 1)",
        (CLEANING + "no_more_images_at_once_than_there_is_room_for",
         CLEANING + "a_search_of_many_images_keeps_within_the_room"),
    ),
    Fault(
        "all images of the target at once", DESCENT,
        "removed.split(count)", "removed.split(len(removed))",
        (CLEANING + "no_more_images_at_once_than_there_is_room_for",),
    ),
    Fault(
        "the room is not asked for", PATTERNS,
        "target, weight, ctx, at_once)\n                for",
        "target, weight, ctx, 10**9)\n                for",
        (CLEANING + "a_search_of_many_images_keeps_within_the_room",),
    ),
    Fault(
        "target effects left out", EFFECTS,
        "design = np.concatenate([np.eye(classes)[s], np.eye(classes)[t]], 1)",
        "design = np.concatenate([np.eye(classes)[s], 0 * np.eye(classes)[t]], 1)",
        (TABLES + "residuals_and_effects_are_studentized_as_in_a_regression",),
    ),
    Fault(
        "source effects left out", EFFECTS,
        "design = np.concatenate([np.eye(classes)[s], np.eye(classes)[t]], 1)",
        "design = np.concatenate([0 * np.eye(classes)[s], np.eye(classes)[t]], 1)",
        (TABLES + "residuals_and_effects_are_studentized_as_in_a_regression",),
    ),
    Fault(
        "pairs that never reach pi are taken at their bound", EFFECTS,
        "        if hit.all():\n", "        if True:\n",
        (TABLES + "pairs_that_never_reach_pi_are_bounded_and_not_left_out",),
    ),
    Fault(
        "pairs that never reach pi are left out", RED,
        "used, positive & ~used)", "used, used & ~used)",
        (TABLES + "red_takes_the_null_of_effects_and_bounds_what_it_did_not_reach",),
    ),
    Fault(
        "a target's effect stands out for nothing", EFFECTS,
        "own[targets] = _least(np.minimum(own[targets], ease), 2)", "pass",
        (TABLES + "a_pair_or_a_target_that_stands_out_is_found",
         TABLES + "residuals_and_effects_are_studentized_as_in_a_regression"),
    ),
    Fault(
        "no bound for many targets", EFFECTS,
        "_least(own.min(), int(targets.sum()))", "own.min()",
        (TABLES + "classes_that_differ_raise_no_false_alarms",),
    ),
)  # fmt: skip
