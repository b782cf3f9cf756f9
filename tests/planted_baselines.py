"""Faults of baselines, metrics and the unified detectors, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

METRICS = "metrics/rates.py"
PRUNING, CLEANSE, NAD = (
    f"defenses/{name}.py" for name in ("fine_pruning", "neural_cleanse", "nad")
)
MUTATION = "defenses/model_mutation.py"
DEFENSES = "numerics/test_defenses.py::test_"
BASELINES = "numerics/test_baselines.py::test_"
REPAIRS = "numerics/test_repairs.py::test_"
NOISE = "numerics/test_noise.py::test_"
MEASURES = "test_metrics.py::test_"
TRIGGERS = "numerics/test_triggers.py::test_"
EVADING = "numerics/test_evasion.py::test_"
UNIFIED = "numerics/test_unified.py::test_"
ATTACKS = "contracts/test_attacks.py::TestAttacks::test_"
STORED = "contracts/test_attacks.py::test_"
COUNTED = ATTACKS + "as_many_are_chosen_as_were_counted"
PLANTED = "numerics/test_unified_planted.py::test_"

COMPARED = (
    Fault(
        "no cap at half a class", "defenses/_removal.py",
        "min(count_of(self.multiplier, assumed), len(rows) // 2)",
        "count_of(self.multiplier, assumed)",
        (DEFENSES + "spectral_removals_are_those_of_the_rules",),
    ),
    Fault(
        "rate of the class instead of the set", "defenses/_removal.py",
        "del size\n        return Fraction(round(rate * total))",
        "return Fraction(round(rate * size))",
        (DEFENSES + "spectral_removals_are_those_of_the_rules",),
    ),
    Fault(
        "nothing assumed without poison", "defenses/_removal.py",
        " or exactly(0.01, total)", "",
        (DEFENSES + "spectral_removals_are_those_of_the_rules",),
    ),
    Fault(
        "no cap for small classes", "defenses/spectre.py",
        "0.1 if size < 500 else 0.33, size", "0.33, size",
        (BASELINES + "spectre_by_the_rate_follows_the_caps_of_the_released_code",),
    ),
    Fault(
        "a covariance that is not told the rate", "defenses/spectre.py",
        'if self.removal == "rate":', "if False:",
        (BASELINES + "spectre_by_the_rate_follows_the_caps_of_the_released_code",),
    ),
    Fault(
        "spectral features not centered", "defenses/spectral_signatures.py",
        "around if centered else values", "values if centered else around",
        (DEFENSES + "projections_on_planted_rank_one_features",),
    ),
    Fault(
        "raw features without their mean's axis removed", "defenses/spectral_signatures.py",
        "np.linalg.eigh(around.T @ around)",
        "np.linalg.eigh((around if centered else values).T @ (around if centered else values))",
        (DEFENSES + "uncentered_projections_find_what_stands_out_beside_a_mean_that_is_far",),
    ),
    Fault(
        "a trimmed covariance that is not made consistent", "defenses/spectre.py",
        "covariance / _trimmed(size, count / len(points_ND))", "covariance",
        (BASELINES + "the_robust_covariance_is_the_covariance_of_a_gaussian",),
    ),
    Fault(
        "the fewest axes that tell anything", "defenses/spectre.py",
        "if scores.mean() > best[1]:", "if not best[1]:",
        (BASELINES + "the_number_of_axes_is_no_artefact_of_trimmed_tails",),
    ),
    Fault(
        "threshold at the wrong end", "defenses/_scored.py",
        "math.floor(exactly(fpr, count + 1))", "math.floor(exactly(1 - fpr, count + 1))",
        (DEFENSES + "strip_rejects_its_nominal_share_of_fresh_inputs",
         DEFENSES + "strip_rejects_its_nominal_share_of_clean_inputs",
         NOISE + "random_scores_flag_poison_as_often_as_the_rest"),
    ),
    Fault(
        "threshold at twice the rate", "defenses/_scored.py",
        "math.floor(exactly(fpr, count + 1))", "math.floor(exactly(2 * fpr, count + 1))",
        (DEFENSES + "strip_rejects_its_nominal_share_of_fresh_inputs",
         NOISE + "of_random_images_the_nominal_share_is_flagged"),
    ),
    Fault(
        "balanced clusters flagged", "defenses/activation_clustering.py",
        "chosen = share < self.size", "chosen = share >= self.size",
        (DEFENSES + "activation_clustering_flags_small_clusters_alone",
         NOISE + "noise_has_no_poisoned_samples_for_filters_of_features"),
    ),
    Fault(
        "the larger cluster flagged", "defenses/activation_clustering.py",
        "smaller = int(members.mean() <= 0.5)", "smaller = int(members.mean() > 0.5)",
        (DEFENSES + "activation_clustering_flags_small_clusters_alone",),
    ),
    Fault(
        "index of unusually even classes", "defenses/scan.py",
        "index[present] = (found - middle)", "index[present] = (middle - found)",
        (BASELINES + "only_the_class_of_two_groups_stands_out",),
    ),
    Fault(
        "classes without a second group flagged", "defenses/scan.py",
        'evidence.statistics["index"] > self.cut', 'evidence.statistics["index"] < self.cut',
        (NOISE + "noise_has_no_poisoned_samples_for_filters_of_features",
         NOISE + "scan_flags_the_second_group_of_the_only_class_that_has_two"),
    ),
    Fault(
        "the group that clean samples are in flagged", "defenses/scan.py",
        "    if flipped:\n", "    if not flipped:\n",
        (NOISE + "scan_flags_the_second_group_of_the_only_class_that_has_two",),
    ),
    Fault(
        "the lower side of the split flagged", "defenses/asset.py",
        "flags=scores > split(scores)", "flags=scores < split(scores)",
        (NOISE + "asset_cuts_between_two_groups_of_losses",),
    ),
    Fault(
        "calibrated by what it is not scored with", "defenses/_scored.py",
        '"reference": in_batches(score, clean.images, rows, ctx)}',
        '"reference": in_batches(score, clean.images // 2, rows, ctx)}',
        (NOISE + "of_random_images_the_nominal_share_is_flagged",),
    ),
    Fault(
        "area of both halves", "metrics/ranking.py",
        "auroc=doubled / (2 * negatives * positives)", "auroc=doubled / (negatives * positives)",
        (NOISE + "random_scores_flag_poison_as_often_as_the_rest",
         NOISE + "noise_has_no_poisoned_samples_for_filters_of_features"),
    ),
    Fault(
        "covers left out of the false positives", METRICS,
        "tpr, fpr = tpr_and_fpr(flags, poison)", "tpr, fpr = tpr_and_fpr(flags & ~cover, poison)",
        (MEASURES + "covers_are_negatives_and_counted_apart",),
    ),
    Fault(
        "false positives of all samples", METRICS,
        "flagged - hits, len(flags) - positives)", "flagged - hits, len(flags))",
        (MEASURES + "all_flagged_and_none_flagged",),
    ),
    Fault(
        "covers are hits", METRICS,
        "tpr, fpr = tpr_and_fpr(flags, poison)", "tpr, fpr = tpr_and_fpr(flags, poison | cover)",
        (MEASURES + "covers_are_negatives_and_counted_apart",),
    ),
    Fault(
        "what is kept counts as removed", METRICS,
        "np.count_nonzero(flags & poison)", "np.count_nonzero(~flags & poison)",
        (MEASURES + "all_flagged_and_none_flagged",),
    ),
    Fault(
        "undefined rates are 0", METRICS,
        "value=hits / n if n else math.nan", "value=hits / max(n, 1)",
        (MEASURES + "without_poison_tpr_is_undefined",),
    ),
)  # fmt: skip

REVERSED = (
    Fault(
        "a poisoned sample more than planned", "attacks/__init__.py",
        "[: counts.poison]\n", "[: counts.poison + 1]\n",
        (COUNTED, STORED + "the_rows_of_a_count_and_a_seed_stay_the_same"),
    ),
    Fault(
        "a cover fewer than planned", "attacks/__init__.py",
        "rest[len(rest) - counts.cover :]", "rest[len(rest) - counts.cover + 1 :]",
        (COUNTED,),
    ),
    Fault(
        "a default rate where the key holds none", "methods/registry.py",
        "return method.without(kind.INSTEAD.keys() - params.keys())", "return method",
        (ATTACKS + "where_no_rate_is_held_none_can_be_read",
         STORED + "a_stage_holds_the_rate_that_is_in_its_key_or_none"),
    ),
    Fault(
        "saturated pixels wrap", "attacks/additive.py",
        "(images_BCHW + v).clamp(0, 1)", "((images_BCHW + v) * 255).round() % 256 / 255",
        (TRIGGERS + "additive_patterns_are_clipped_before_they_are_rounded",),
    ),
    Fault(
        "norms of inputs that stayed as they were, too", "attacks/_evasion.py",
        "        change = change[moved]\n", "",
        (EVADING + "norms_are_of_the_inputs_that_were_changed",),
    ),
    Fault(
        "no record of what the attack measured", "results/rows.py",
        'tested.get("artifact")', "None",
        (EVADING + "a_record_holds_the_norms_that_were_reached",),
    ),
    Fault(
        "a constant that is not searched", "attacks/carlini_wagner.py",
        "        9, ge=1, le=50", "        1, ge=1, le=50",
        (EVADING + "the_constants_of_the_authors_come_nearer_than_one_that_is_not_searched",),
    ),
    Fault(
        "the opacity of a patch that was laid on the poison", "attacks/feature_collision.py",
        "way = self._patched(base) - base", "way = self._patched(poison) - poison",
        (TRIGGERS + "the_patch_shows_in_a_collision_as_much_as_its_facts_say",),
    ),
)  # fmt: skip

DETECTORS = (
    Fault(
        "sign of the label change rate", MUTATION,
        'rates if self.sign == "adversarial" else -rates',
        '-rates if self.sign == "adversarial" else rates',
        (UNIFIED + "low_rates_mean_a_backdoor_and_high_rates_an_adversary",
         PLANTED + "few_changes_of_label_find_a_backdoor_in_hidden_dense_layers"),
    ),
    Fault(
        "largest magnitude instead of largest weight", MUTATION,
        "given.max().clamp(min=0)", "given.abs().max()",
        (UNIFIED + "mutants_have_the_noise_of_the_definition",),
    ),
    Fault(
        "noise without the mean of the weights", MUTATION,
        "given + drawn * scale + mean if", "given + drawn * scale if",
        (UNIFIED + "mutants_have_the_noise_of_the_definition",),
    ),
    Fault(
        "inputs of one rate tie", MUTATION,
        "changes_MB.mean(0) + 0.49 / self.mutants * (1 - certainty_B)", "changes_MB.mean(0)",
        (UNIFIED + "inputs_of_one_rate_are_ordered_by_certainty_and_none_passes_a_cut",),
    ),
    Fault(
        "certainty moves an input past a cut", MUTATION,
        "0.49 / self.mutants * (1 - certainty_B)", "(1 - certainty_B)",
        (UNIFIED + "inputs_of_one_rate_are_ordered_by_certainty_and_none_passes_a_cut",),
    ),
    Fault(
        "mutation at a variance of 0", MUTATION,
        "given + drawn * scale + mean if self.variance else given",
        "given + drawn * scale + mean",
        (UNIFIED + "without_noise_or_with_one_class_nothing_changes",),
    ),
    Fault(
        "dense layers of nested sequences stay", MUTATION,
        "for pair in _flattened(layer, prefix + inner)", "for pair in [(prefix + inner, layer)]",
        (UNIFIED + "every_trailing_dense_layer_mutates_in_nested_sequences_too",
         UNIFIED + "a_large_networks_dense_layers_are_found_up_to_what_is_not_elementwise"),
    ),
    Fault(
        "all mutants held whatever their size", MUTATION,
        "        if size <= KEPT:", "        if size >= 0:",
        (UNIFIED + "mutants_beyond_a_bound_are_drawn_again_one_at_a_time",),
    ),
    Fault(
        "mutants without biases", MUTATION,
        "bias = None if layer.bias is None else layer.bias.to(kind)", "bias = None",
        (UNIFIED + "without_noise_or_with_one_class_nothing_changes",
         UNIFIED + "cached_features_give_what_a_whole_forward_gives"),
    ),
    Fault(
        "sequential test looks before it counts", MUTATION,
        "ratios = np.cumsum(steps, 0)", "ratios = np.cumsum(steps, 0) - steps",
        (UNIFIED + "the_sequential_test_is_a_fixed_cut",
         UNIFIED + "the_operating_curve_is_binomial"),
    ),
    Fault(
        "the sequential test's bound is not asked", MUTATION,
        'self.on == "training_set" or (self.rule == "rate" and self.tau is None)',
        'self.on == "training_set" or self.tau is None',
        (UNIFIED + "the_operating_curve_is_binomial",),
    ),
    Fault(
        "margin of the sequential test on one side", MUTATION,
        "kappa * (1 + margin), kappa * (1 - margin)", "kappa * (1 + margin), kappa",
        (UNIFIED + "the_sequential_test_is_a_fixed_cut",
         UNIFIED + "the_operating_curve_is_binomial"),
    ),
    Fault(
        "dimension by binary logarithms", "defenses/lid.py",
        "logs = np.log(safe /", "logs = np.log2(safe /", (UNIFIED + "balls_have_their_dimension",),
    ),
    Fault(
        "duplicates are neighbors", "defenses/lid.py",
        "distances[distances <= 1e-12] = np.inf", "distances[distances < 0] = np.inf",
        (UNIFIED + "duplicates_and_small_bases_are_met",),
    ),
    Fault(
        "clean parts drawn whatever the class", "defenses/_scored.py",
        'order = order[np.argsort(clean.labels[order], kind="stable")]', "order = order.copy()",
        (UNIFIED + "a_rare_class_is_in_the_part_that_others_are_compared_with",),
    ),
    Fault(
        "bandwidth not squared", "defenses/kernel_density.py",
        '"sqeuclidean") / bandwidth**2', '"sqeuclidean") / bandwidth',
        (UNIFIED + "densities_are_kernel_means",),
    ),
    Fault(
        "bandwidth bounded", "defenses/kernel_density.py",
        'cdist(points_BD, group_ND, "sqeuclidean") / bandwidth**2',
        'cdist(points_BD, group_ND, "sqeuclidean") / min(bandwidth, 1.2) ** 2',
        (UNIFIED + "densities_are_kernel_means",),
    ),
    Fault(
        "samples are their own neighbors", "defenses/kernel_density.py",
        "np.fill_diagonal(squares, np.inf)", "np.fill_diagonal(squares, 0)",
        (UNIFIED + "the_bandwidth_of_a_normal_sample_is_near_the_best",),
    ),
    Fault(
        "density of one class for all", "defenses/kernel_density.py",
        "groups.get(int(label), raw / spread)", "groups.get(0, raw / spread)",
        (PLANTED + "the_density_is_that_of_the_predicted_class",),
    ),
    Fault(
        "bandwidth that tells nothing apart", "defenses/kernel_density.py",
        "self.bandwidth or best_bandwidth(", "1e9 or best_bandwidth(",
        (PLANTED + "the_density_is_that_of_the_predicted_class",),
    ),
    Fault(
        "grid of bandwidths ends too early", "defenses/kernel_density.py",
        "np.geomspace(5e-4, 5, 29)", "np.geomspace(5e-2, 5, 15)",
        (PLANTED + "the_bandwidth_is_inside_the_grid_where_classes_have_collapsed",),
    ),
    Fault(
        "idle features are dimensions", "defenses/kernel_density.py",
        "alive = (np.ptp(values_ND, axis=0) > 0)", "alive = (np.ptp(values_ND, axis=0) >= 0)",
        (PLANTED + "units_are_spreads_and_their_median_for_what_idles",),
    ),
    Fault(
        "idle features choose the bandwidth", "defenses/kernel_density.py",
        "[g[:, alive] for g in groups.values()]", "list(groups.values())",
        (PLANTED + "features_that_do_not_vary_change_nothing_until_they_do",),
    ),
    Fault(
        "sequence without its last label", "defenses/activation_sequence.py",
        "np.concatenate([labeled, last[None]])", "np.concatenate([labeled, labeled[-1:]])",
        (PLANTED + "the_sequence_ends_with_the_prediction",),
    ),
    Fault(
        "dimensions not centered", "defenses/lid.py",
        "moved = values - center", "moved = values",
        (PLANTED + "dimensions_below_and_above_the_usual_are_both_unusual",),
    ),
    Fault(
        "the farthest of all is a neighbor", "defenses/lid.py",
        "min(neighbors, len(base_ND) - 1)", "min(neighbors, len(base_ND))",
        (UNIFIED + "as_many_neighbors_as_there_are_leave_one_out",),
    ),
    Fault(
        "changes from the own prediction in a filter", MUTATION,
        "found.mutated_MB != data.labels[ids][None]",
        "found.mutated_MB != found.own_B[None]",
        (PLANTED + "a_filter_counts_changes_from_the_given_label",),
    ),
    Fault(
        "nothing is ever flagged", "defenses/_scored.py",
        "return float(np.partition(reference, place)[place])",
        'return float("inf")',
        (UNIFIED + "the_nominal_rate_holds_on_clean_inputs",
         UNIFIED + "as_filters_they_are_badged_and_calibrated"),
    ),
    Fault(
        "usual switches surprise", "defenses/activation_sequence.py",
        "np.log(rates), np.log(1 - rates)", "np.log(1 - rates), np.log(rates)",
        (UNIFIED + "rare_switches_surprise",),
    ),
)  # fmt: skip

REPAIRED = (
    Fault(
        "pruned channels regrow", PRUNING, "lambda gradient: gradient * mask", "lambda _: None",
        (REPAIRS + "pruned_channels_are_zero_in_every_step_of_the_fine_tuning",),
    ),
    Fault(
        "nothing pruned", PRUNING, "mask[order[:count]] = 0", "mask[order[:0]] = 0",
        (REPAIRS + "pruned_channels_are_zero_in_every_step_of_the_fine_tuning",),
    ),
    Fault(
        "no distillation", NAD, "loss + self.beta *", "loss + 0 *",
        (REPAIRS + "distillation_brings_the_students_attention_to_the_teachers",
         REPAIRS + "distillation_forgets_the_trigger_that_fine_tuning_keeps"),
    ),
    Fault(
        "attention driven apart", NAD, "loss + self.beta *", "loss - self.beta *",
        (REPAIRS + "distillation_brings_the_students_attention_to_the_teachers",),
    ),
    Fault(
        "unlearning by the recipe's optimizer", CLEANSE,
        '                "optimizer": "sgd",\n', "",
        (REPAIRS + "unlearning_is_by_sgd_whatever_trained_the_victim",),
    ),
)  # fmt: skip

FAULTS = (*COMPARED, *REPAIRED, *REVERSED, *DETECTORS)
