"""Faults of datamodels, their search, strengths and controls, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

SEARCH = "defenses/_datamodels.py"
TESTS = "numerics/test_datamodels.py::test_"
CURVES = "defenses/feature_strength.py"
STRENGTH = "numerics/test_strength.py::test_"
BENIGN = "attacks/planted_feature.py"
PLANTED = "numerics/test_triggers.py::test_the_planted_feature_is_"
LAST = "    return weights\n\n\ndef ridge"
MEASURED = "defenses/datamodels.py"

FAULTS = (
    Fault(
        "sign of the diagonal", SEARCH,
        "matrix, -size / len(matrix) *", "matrix, size / len(matrix) *",
        (TESTS + "the_matrix_form_is_the_definition",
         TESTS + "a_constant_added_to_all_effects_changes_nothing"),
    ),
    Fault(
        "diagonal left out", SEARCH,
        "np.fill_diagonal(matrix, -size / len(matrix) * matrix.sum(1))", "pass",
        (TESTS + "the_matrix_form_is_the_definition",
         TESTS + "a_constant_added_to_all_effects_changes_nothing"),
    ),
    Fault(
        "effects of samples on themselves in the search", SEARCH,
        "    np.fill_diagonal(matrix, 0)\n", "",
        (TESTS + "the_matrix_form_is_the_definition",),
    ),
    Fault(
        "predictions without a sample's effect on itself", SEARCH,
        "masks_MN.mean(0)).astype(np.float32) @ weights.T",
        "masks_MN.mean(0)).astype(np.float32) @ (weights - np.diag(np.diag(weights))).T",
        (TESTS + "a_run_tells_how_well_models_left_out_are_predicted",),
    ),
    Fault(
        "own effects of models without the sample", SEARCH,
        "weights[rows, rows] = seen - unseen", "weights[rows, rows] = 0",
        (TESTS + "held_out_rows_use_models_without_the_row",
         TESTS + "a_run_tells_how_well_models_left_out_are_predicted"),
    ),
    Fault(
        "correlation over all models instead of those without the sample", SEARCH,
        "(~masks_MN if unseen else", "(~masks_MN if False else",
        (TESTS + "a_run_tells_how_well_models_left_out_are_predicted",),
    ),
    Fault(
        "effects of the models that they are judged on", MEASURED,
        'self._effects({"margins": margins[:cut]}, masks[:cut])',
        'self._effects({"margins": margins}, masks)',
        (TESTS + "a_run_that_has_only_noise_says_so",),
    ),
    Fault(
        "the strongest set measured where it was found", MEASURED,
        'self._effects({"margins": margins[1::2]}, masks[1::2])',
        'self._effects({"margins": margins[::2]}, masks[::2])',
        (TESTS + "a_run_that_has_only_noise_says_so",),
    ),
    Fault(
        "sizes of whole blocks", MEASURED,
        "<= len(rows) // 2)", "< len(rows))",
        (TESTS + "sizes_above_half_of_a_block_are_left_out_and_the_facts_say_so",),
    ),
    Fault(
        "the largest size given instead of searched", MEASURED,
        "float(searched.max())", "float(max(self.sizes))",
        (TESTS + "sizes_above_half_of_a_block_are_left_out_and_the_facts_say_so",),
    ),
    Fault(
        "models needed as if subsets were halves", MEASURED,
        "models_needed(together, variance, effect, self.alpha)",
        "models_needed(together, variance, effect)",
        (TESTS + "the_models_needed_grow_with_what_is_searched_together",),
    ),
    Fault(
        "models needed as if all were searched together", MEASURED,
        "models_needed(together, variance, effect, self.alpha)",
        "models_needed(len(masks.T), variance, effect, self.alpha)",
        (TESTS + "the_models_needed_grow_with_what_is_searched_together",),
    ),
    Fault(
        "column sums on the diagonal", SEARCH, "* matrix.sum(1))", "* matrix.sum(0))",
        (TESTS + "the_matrix_form_is_the_definition",),
    ),
    Fault(
        "values not scaled by the size", SEARCH,
        "samples / ((samples - size) * size**2)", "samples / ((samples - size) * size)",
        (TESTS + "a_planted_block_is_found",),
    ),
    Fault(
        "pair of a swap left out", SEARCH, " + diagonal[add] - both[out, add]", " + diagonal[add]",
        (TESTS + "every_gain_is_the_change_of_the_objective",),
    ),
    Fault(
        "diagonal of what is added subtracted", SEARCH,
        "sums[add] + diagonal[add] - both[out, add]", "sums[add] - diagonal[add] - both[out, add]",
        (TESTS + "every_gain_is_the_change_of_the_objective",),
    ),
    Fault(
        "sums not updated after a swap", SEARCH, "        sums += both[add] - both[out]\n", "",
        (TESTS + "every_gain_is_the_change_of_the_objective",),
    ),
    Fault(
        "search stops at its start", SEARCH,
        "if not gains or gains[best] <= 1e-9:", "if not gains or gains[best] <= 1e9:",
        (TESTS + "the_search_is_at_least_as_good_as_brute_force_swaps",
         TESTS + "a_planted_block_is_found",
         TESTS + "of_all_starts_sixty_percent_find_a_planted_block_and_of_twenty_always_one"),
    ),
    Fault(
        "passes of one swap", SEARCH, "PASSES, SWAPS = 100, 100", "PASSES, SWAPS = 3, 1",
        (TESTS + "a_planted_block_is_found",
         TESTS + "of_all_starts_sixty_percent_find_a_planted_block_and_of_twenty_always_one"),
    ),
    Fault(
        "one start for all searches", SEARCH,
        "local_search(matrix, size, generator(size, restart))",
        "local_search(matrix, size, generator(size, 5))",
        (TESTS + "a_planted_block_is_found",
         TESTS + "more_restarts_keep_the_first_and_never_lower_the_best"),
    ),
    Fault(
        "starts that depend on how many there are", SEARCH,
        "local_search(matrix, size, generator(size, restart))",
        "local_search(matrix, size, generator(size, 100 * restarts + restart))",
        (TESTS + "more_restarts_keep_the_first_and_never_lower_the_best",),
    ),
    Fault(
        "the last of the values found for the best", MEASURED,
        "best[at] = np.maximum(best[at], values.max(1))",
        "best[at] = np.maximum(best[at], values[:, -1])",
        (TESTS + "more_restarts_keep_the_first_and_never_lower_the_best",),
    ),
    Fault(
        "scores of all but the last sample", MEASURED,
        "c @ found for c, found in zip(counted, sets, strict=True))",
        "c @ (found & (np.arange(len(rows)) < len(rows) - 1))"
        " for c, found in zip(counted, sets, strict=True))",
        (TESTS + "permuting_samples_permutes_scores",),
    ),
    Fault(
        "first sample never added", SEARCH,
        "    total, gains, swaps = 0.0, [], []\n",
        "    total, gains, swaps = 0.0, [], []\n    entering[0] = -np.inf\n",
        (TESTS + "permuting_samples_permutes_the_search",
         TESTS + "permuting_samples_permutes_scores"),
    ),
    Fault(
        "effects of the first sample left out", SEARCH, LAST,
        "    weights[:, 0] = 0\n" + LAST,
        (TESTS + "permuting_samples_permutes_effects",),
    ),
    Fault(
        "rows are what is trained on", SEARCH, LAST,
        LAST.replace("return weights", "return np.ascontiguousarray(weights.T)"),
        (TESTS + "differences_of_means_are_unbiased",),
    ),
    Fault(
        "mean of all instead of those without", SEARCH,
        "        weights[cut] += np.divide(", "        weights[cut] -= 0 * np.divide(",
        (TESTS + "differences_of_means_are_unbiased",),
    ),
    Fault(
        "half of the models", SEARCH,
        "    models, samples = margins_MN.shape\n",
        "    margins_MN, masks_MN = margins_MN[::2], masks_MN[::2]\n"
        "    models, samples = margins_MN.shape\n",
        (TESTS + "differences_of_means_are_unbiased",),
    ),
    Fault(
        "outputs not centered", SEARCH,
        "((exact - mean) * used)", "(exact * used)",
        (TESTS + "differences_of_means_are_unbiased",
         TESTS + "outputs_may_be_shifted_per_sample"),
    ),
    Fault(
        "held-out rows of models with the row", SEARCH,
        "used = (1 - masks[:, cut]) if held_out", "used = masks[:, cut] if held_out",
        (TESTS + "held_out_rows_use_models_without_the_row",),
    ),
    Fault(
        "the mean of chance's finds instead of the best", SEARCH,
        "chance.max(1, keepdims=True)", "chance.mean(1, keepdims=True)",
        (TESTS + "a_set_counts_by_how_far_it_exceeds_chance",),
    ),
    Fault(
        "chance that is not shuffled", SEARCH,
        "(outputs - own)[order]", "(outputs - own)",
        (TESTS + "small_chance_finds_do_not_hide_a_larger_group",
         TESTS + "effects_are_taken_from_outputs_but_those_of_samples_on_themselves"),
    ),
    Fault(
        "chance without samples' effects on themselves", SEARCH,
        "own + (outputs - own)[order]", "outputs[order]",
        (TESTS + "effects_are_taken_from_outputs_but_those_of_samples_on_themselves",),
    ),
    Fault(
        "samples that score nothing agree", SEARCH,
        "if scores[i] > 0}", "if scores[i] >= 0}",
        (TESTS + "agreement_is_intersection_over_union",),
    ),
    Fault(
        "sets weighed by size whatever is asked", "defenses/datamodels.py",
        "            if by_chance is not None:\n", "            if not len(at):\n",
        (TESTS + "small_chance_finds_do_not_hide_a_larger_group",),
    ),
    Fault(
        "margin over all labels", "defenses/_subset_models.py",
        "    others[:, rows, labels] = -np.inf\n", "",
        (TESTS + "margins_are_of_the_given_label",),
    ),
    Fault(
        "covers wear the trigger", BENIGN,
        'if part == "cover":', 'if part == "nothing":',
        (PLANTED + "another_corner_of_the_same_size_and_keeps_its_label",),
    ),
    Fault(
        "test inputs wear the benign feature", BENIGN,
        'if part == "cover":', 'if part != "poison":',
        (PLANTED + "another_corner_of_the_same_size_and_keeps_its_label",),
    ),
    Fault(
        "any class bears the feature", BENIGN,
        "return np.equal(labels, bearer)", "return np.not_equal(labels, self.target)",
        (PLANTED + "another_corner_of_the_same_size_and_keeps_its_label",),
    ),
    Fault(
        "k drawn around the middle", CURVES,
        "[: draw.integers(len(rows))]", "[: draw.binomial(len(rows) - 1, 0.5)]",
        (STRENGTH + "every_k_from_none_to_all_but_one_is_drawn_as_often_and_any_sample",),
    ),
    Fault(
        "one k for all groups", CURVES, "        draw = generator(name)\n",
        '        draw = generator("poison")\n',
        (STRENGTH + "every_k_from_none_to_all_but_one_is_drawn_as_often_and_any_sample",),
    ),
    Fault(
        "margins of samples that were trained on", CURVES,
        ".astype(np.float64) * out).sum(1)", ".astype(np.float64)).sum(1)",
        (STRENGTH + "means_are_of_held_out_samples_of_the_group",
         STRENGTH + "a_planted_line_is_recovered_with_its_slope"),
    ),
    Fault(
        "k counts what is held out", CURVES,
        "return len(rows) - out.sum(1), means", "return out.sum(1), means",
        (STRENGTH + "means_are_of_held_out_samples_of_the_group",
         STRENGTH + "a_planted_line_is_recovered_with_its_slope"),
    ),
    Fault(
        "level at the middle of the window", CURVES,
        "values.mean() - slope * away.mean(), slope, error", "values.mean(), slope, error",
        (STRENGTH + "a_planted_line_is_recovered_with_its_slope",),
    ),
    Fault(
        "poison among the natural groups", CURVES,
        "np.flatnonzero((data.labels == label) & ~stamped)",
        "np.flatnonzero(data.labels == label)",
        (STRENGTH + "natural_groups_are_the_clean_images_nearest_to_their_class_mean",),
    ),
    Fault(
        "what gives nothing is not run", "plan/planner.py",
        "if not defense.gives() | defense.needs():", "if not defense.gives():",
        (STRENGTH + "a_sweep_stores_the_curves_and_evaluates_the_victim",),
    ),
    Fault(
        "a changed run that finds its old results", "plan/planner.py",
        "if defense.RUN_VERSION > 1 else", "if defense.RUN_VERSION > 9 else",
        ("test_plan.py::test_a_changed_run_keeps_its_shards",),
    ),
    Fault(
        "curves of one name alone", "reports/internals.py",
        "            groups.setdefault(axes, []).append(line)",
        "            groups[axes] = [line]",
        ("test_report.py::test_curves_of_the_same_axes_are_drawn_together_a_line_for_each_name_and_seed",),
    ),
)  # fmt: skip
