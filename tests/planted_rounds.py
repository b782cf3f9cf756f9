"""Faults of Confusion Training and of Anti-Backdoor Learning, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

GATES, CT, ABL = (
    "defenses/_confusion.py",
    "defenses/confusion_training.py",
    "defenses/abl.py",
)
UNIT = "numerics/test_confusion.py::test_"
ROUNDS = "numerics/test_confusion_rounds.py::test_"
STAGES = "numerics/test_abl.py::test_"

CONFUSION = (
    Fault(
        "shift may be 0", GATES,
        "range(1, num_classes)", "range(num_classes)",
        (UNIT + "shifts_take_every_wrong_label_in_turn",
         UNIT + "no_confusing_label_is_what_the_victim_says"),
    ),
    Fault(
        "confusing labels of other rows", GATES,
        "self.guessed[clean.rows] +", "self.guessed[: len(clean.rows)] +",
        (UNIT + "no_confusing_label_is_what_the_victim_says",),
    ),
    Fault(
        "lambda on the wrong loss", GATES,
        "((self.weight - 1) * confusing + inspected)",
        "(confusing + (self.weight - 1) * inspected)",
        (UNIT + "the_loss_weighs_confusion_against_inspection",),
    ),
    Fault(
        "loss not divided by lambda", GATES,
        "confusing + inspected) / self.weight", "confusing + inspected)",
        (UNIT + "the_loss_weighs_confusion_against_inspection",),
    ),
    Fault(
        "inspected loss without class weights", GATES,
        "seen.labels, weight=self.class_weights)", "seen.labels)",
        (UNIT + "the_loss_weighs_confusion_against_inspection",),
    ),
    Fault(
        "inspected data in every step", CT,
        "training.Stream(data=distilled_set, every=schedule.every[number])",
        "training.Stream(data=distilled_set)",
        (UNIT + "inspected_data_take_part_in_every_so_manieth_step",),
    ),
    Fault(
        "f_c without root", GATES, "1 / np.sqrt(share + 0.001)", "1 / (share + 0.001)",
        (UNIT + "class_weights_are_inverse_roots_of_frequency",),
    ),
    Fault(
        "f_c without 0.001", GATES, "np.sqrt(share + 0.001)", "np.sqrt(np.maximum(share, 1e-9))",
        (UNIT + "class_weights_are_inverse_roots_of_frequency",),
    ),
    Fault(
        "f_c in the last round", CT,
        "frequency_weights and not self.last:", "frequency_weights:",
        (UNIT + "rare_classes_weigh_more_in_all_rounds_but_the_last",),
    ),
    Fault(
        "distilled without what classes lack", GATES,
        "if lacking > 0:", "if lacking > len(losses):",
        (UNIT + "distillation_keeps_the_lowest_and_tops_up_classes",
         UNIT + "distilled_sets_have_the_sizes_of_the_schedule"),
    ),
    Fault(
        "highest losses distilled", GATES,
        'order = np.argsort(losses, kind="stable")\n    kept',
        'order = np.argsort(-losses, kind="stable")\n    kept',
        (UNIT + "distillation_keeps_the_lowest_and_tops_up_classes",
         ROUNDS + "each_round_distils_its_share_by_the_losses_of_that_round"),
    ),
    Fault(
        "a fiftieth of each class in all rounds", CT,
        "share = 50 if number <= schedule.rounds - 3 else 100", "share = 50",
        (ROUNDS + "each_round_distils_its_share_by_the_losses_of_that_round",),
    ),
    Fault(
        "own Gaussian for the single group", GATES,
        "for group in (inside, points_ND[~isolated])", "for group in (inside, inside)",
        (UNIT + "the_gate_measures_what_was_simulated",),
    ),
    Fault(
        "single group of all samples", GATES,
        "for group in (inside, points_ND[~isolated])", "for group in (inside, points_ND)",
        (UNIT + "the_gate_measures_what_was_simulated",),
    ),
    Fault(
        "mean gain of the isolated alone", GATES,
        "(own - others).sum() / len(points_ND))", "(own - others).mean())",
        (UNIT + "the_gate_measures_what_was_simulated",
         UNIT + "no_class_passes_where_there_is_no_structure"),
    ),
    Fault(
        "gain of the isolated doubled", GATES,
        "(own - others).sum() / len(points_ND))", "2 * (own - others).sum() / len(points_ND))",
        (UNIT + "the_gate_measures_what_was_simulated",),
    ),
    Fault(
        "a side of one sample has a Gaussian", GATES,
        "int((~isolated).sum())) < 2:", "int((~isolated).sum())) < 1:",
        (UNIT + "no_class_passes_where_there_is_no_structure",),
    ),
    Fault(
        "ridge is a constant in every entry", GATES,
        'np.eye(size) if form == "ridge" else', 'np.ones((size, size)) if form == "ridge" else',
        (UNIT + "the_gate_ignores_rotation_and_scale",),
    ),
    Fault(
        "directions by absolute spread", GATES,
        "1e-10 * max(float(values.max()), 1e-30)", "20.0",
        (UNIT + "the_gate_ignores_rotation_and_scale",),
    ),
    Fault(
        "first features instead of principal axes", GATES,
        "values @ vectors[:, ::-1][:, :rank]", "values[:, :rank]",
        (UNIT + "features_of_a_class_may_be_turned",),
    ),
    Fault(
        "R compared with the logarithm's limit", GATES,
        "over: Flags = ratios > np.log(high)", "over: Flags = ratios > high",
        (UNIT + "which_classes_pass",),
    ),
    Fault(
        "points of another class in the gate", CT,
        'found["axes"][rows][:, : self.rank]', 'found["axes"][: len(rows)][:, : self.rank]',
        (UNIT + "permuting_samples_permutes_what_is_flagged",),
    ),
    Fault(
        "confusion with the victim's labels", GATES,
        "+ shift) % self.num_classes", ") % self.num_classes",
        (ROUNDS + "rounds_concentrate_the_poison",
         ROUNDS + "the_confused_model_remembers_the_trigger_alone"),
    ),
    Fault(
        "distilled by the wrong end in every round", CT,
        "losses[-1], data.labels, schedule.ratios[number]",
        "-losses[-1], data.labels, schedule.ratios[number]",
        (ROUNDS + "the_confused_model_remembers_the_trigger_alone",),
    ),
    Fault(
        "no gate", CT, "Decision(flags=isolated & over[labels])", "Decision(flags=isolated)",
        (ROUNDS + "without_poison_no_class_passes",),
    ),
    Fault(
        "two axes whatever the rank", CT, "[:, : self.rank]", "[:, :2]",
        (UNIT + "a_group_off_the_first_two_axes_takes_a_third",),
    ),
    Fault(
        "lambda of the schedule whatever is asked", CT,
        '"weights": self.weight,', '"weights": None,',
        (ROUNDS + "without_confusion_the_clean_task_stays",
         ROUNDS + "without_confusion_or_with_ten_clean_images_the_rounds_fail"),
    ),
)  # fmt: skip

UNLEARNING = (
    Fault(
        "ascent above gamma", ABL,
        "((value - gamma).detach().sign()", "((gamma - value).detach().sign()",
        (STAGES + "isolation_losses_turn_the_gradient_around_below_gamma",),
    ),
    Fault(
        "flooding without its magnitude", ABL,
        "return (value - gamma).abs() + gamma", "return (value - gamma) + gamma",
        (STAGES + "isolation_losses_turn_the_gradient_around_below_gamma[flooding]",),
    ),
    Fault(
        "gradient ascent on the batch mean only", ABL,
        'reduction = "none" if loss == "lga_sample" else "mean"', 'reduction = "mean"',
        (STAGES + "lga_per_sample_and_per_batch_differ_on_a_mixed_batch",),
    ),
    Fault(
        "gradient ascent on samples only", ABL,
        'reduction = "none" if loss == "lga_sample" else "mean"',
        'reduction = "none" if loss.startswith("lga") else "mean"',
        (STAGES + "lga_per_sample_and_per_batch_differ_on_a_mixed_batch",),
    ),
    Fault(
        "highest losses isolated", ABL,
        'np.argsort(-scores, kind="stable")[:count]', 'np.argsort(scores, kind="stable")[:count]',
        (STAGES + "isolation_takes_exactly_the_lowest_losses",
         STAGES + "abl_isolates_and_unlearns_the_toy"),
    ),
    Fault(
        "one sample too many isolated", ABL,
        "max(1, count_of(self.ratio, len(scores)))", "1 + count_of(self.ratio, len(scores))",
        (STAGES + "isolation_takes_exactly_the_lowest_losses",
         STAGES + "isolation_by_random_scores_is_as_pure_as_the_set"),
    ),
    Fault(
        "isolated samples are learned", ABL,
        "return -F.cross_entropy(logits_BK, labels", "return F.cross_entropy(logits_BK, labels",
        (STAGES + "unlearning_raises_the_isolated_loss_at_every_step",
         STAGES + "abl_isolates_and_unlearns_the_toy"),
    ),
    Fault(
        "isolated samples weigh as one whatever is asked", ABL,
        "self.weight * loss + F.cross_entropy(parts", "loss + F.cross_entropy(parts",
        (STAGES + "the_isolated_weigh_against_the_rest_as_asked",),
    ),
    Fault(
        "the label is made likelier", ABL,
        "return logits_BK.logsumexp(1) - others.logsumexp(1)",
        "return others.logsumexp(1) - logits_BK.logsumexp(1)",
        (STAGES + "isolated_samples_are_forgotten_by_the_loss_that_is_asked_for",
         STAGES + "the_toy_forgets_its_trigger_by_the_bounded_losses"),
    ),
    Fault(
        "the label that is given anew is the likeliest of all", ABL,
        "others.detach().argmax(1)", "logits_BK.detach().argmax(1)",
        (STAGES + "isolated_samples_are_forgotten_by_the_loss_that_is_asked_for",
         STAGES + "the_toy_forgets_its_trigger_by_the_bounded_losses"),
    ),
    Fault(
        "a form of ours without a badge", ABL,
        'ours = self.unlearning != "ascent"', "ours = False",
        (STAGES + "the_toy_forgets_its_trigger_by_the_bounded_losses",),
    ),
    Fault(
        "the rest is unlearned too", ABL,
        "self.weight * loss + F.cross_entropy(parts", "self.weight * loss - F.cross_entropy(parts",
        (STAGES + "abl_isolates_and_unlearns_the_toy",),
    ),
    Fault(
        "unlearning to the end of a pass", "training/loop.py",
        "min(first + per_epoch, total)", "first + per_epoch",
        (STAGES + "unlearning_takes_its_steps_however_many_samples_are_isolated",
         "test_training.py::test_training_takes_the_steps_it_is_given"),
    ),
    Fault(
        "tuning at the victim's milestones", ABL,
        '"milestones": TUNING_MILESTONES', '"milestones": inputs.recipe.milestones',
        (STAGES + "tuning_follows_the_released_milestone_not_the_victims",),
    ),
    Fault(
        "unlearning by the victim's optimizer", ABL,
        '"optimizer": "sgd"', '"optimizer": inputs.recipe.optimizer',
        (STAGES + "unlearning_is_by_sgd_whatever_trained_the_victim",),
    ),
    Fault(
        "accuracy of the target is of the inputs that are attacked", "metrics/judgment.py",
        "np.isin(self.labels, self.mapped[self.eligible])",
        "np.isin(self.labels, self.labels[self.eligible])",
        ("test_metrics.py::test_clean_accuracy_is_of_all_classes_and_success_of_those_without_"
         "the_target",
         "test_metrics.py::test_accuracy_of_targets_is_of_every_class_that_the_attacker_wants"),
    ),
    Fault(
        "no accuracy of the target without poison", "metrics/judgment.py",
        "np.isin(self.labels, self.mapped[self.eligible])",
        "np.isin(self.labels, self.targets)",
        ("test_metrics.py::test_accuracy_of_targets_is_of_every_class_that_the_attacker_wants",),
    ),
    Fault(
        "accuracy on eligible inputs is of all", "metrics/judgment.py",
        'no_clean, truth.eligible)', 'no_clean)',
        ("test_metrics.py::test_clean_accuracy_is_of_all_classes_and_success_of_those_without_"
         "the_target",),
    ),
    Fault(
        "clean accuracy without the target class", "metrics/judgment.py",
        "accuracy(outputs.clean, truth.labels, no_clean)",
        "accuracy(outputs.clean[truth.eligible], truth.labels[truth.eligible])",
        ("test_metrics.py::test_clean_accuracy_is_of_all_classes_and_success_of_those_without_"
         "the_target",),
    ),
    Fault(
        "separability in the order in which arrays are read", "metrics/judgment.py",
        "sorted(outputs.spaces.items())", "outputs.spaces.items()",
        ("test_metrics.py::test_a_judgment_does_not_depend_on_the_order_in_which_arrays_are_read",),
    ),
    Fault(
        "an undefined rate is stored as 0", "metrics/parts.py",
        "return None if math.isnan(value) else float(value)",
        "return 0.0 if math.isnan(value) else float(value)",
        ("test_metrics.py::test_a_judgment_is_what_was_packed",),
    ),
    Fault(
        "whatever has a dot is a parameter", "results/columns.py",
        "return bool(dot) and part in PARAMETERS", "return bool(dot)",
        ("test_columns.py::test_parameters_are_told_from_everything_else",),
    ),
    Fault(
        "a high loss finds poison", "metrics/curves.py",
        "np.where(np.isnan(losses_TN), -np.inf, -losses_TN)", "losses_TN",
        ("test_metrics.py::test_losses_tell_after_each_step_how_well_a_low_one_finds_poison",),
    ),
    Fault(
        "separability from samples of every label", "metrics/ranking.py",
        "points_ND[(labels == label) & who]", "points_ND[(labels == labels) & who]",
        ("test_metrics.py::test_separability_neither_sees_rotation_nor_scale_nor_other_labels",),
    ),
    Fault(
        "separability on the samples that it is fitted on", "metrics/ranking.py",
        "_apart(one, other) + _apart(other, one)", "_apart(one, one) + _apart(other, other)",
        ("test_metrics.py::test_separability_of_noise_is_half_however_few_are_poisoned",),
    ),
    Fault(
        "difference of means for Fisher's direction", "metrics/ranking.py",
        "np.linalg.solve(spread + ridge, fitted[0].mean(0) - fitted[1].mean(0))",
        "fitted[0].mean(0) - fitted[1].mean(0)",
        ("test_metrics.py::test_separability_is_the_auroc_along_fishers_direction",),
    ),
    Fault(
        "the confused model's space is shown for the victim's",
        "defenses/confusion_training.py",
        "for space in (before, after)]", "for space in (after, after)]",
        (ROUNDS + "confusion_moves_poison_apart",),
    ),
)  # fmt: skip

FAULTS = (*CONFUSION, *UNLEARNING)
