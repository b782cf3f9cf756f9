"""Confusion training: a model that unlearns the clean task in rounds remembers the poison alone.

X. Qi, T. Xie, J. T. Wang, T. Wu, S. Mahloujifar, P. Mittal: Towards a Proactive ML Approach for
Detecting Backdoor Poison Samples, USENIX Security 2023, arXiv:2205.13616: pretrain on the data that
fit best so far, then train on them and on clean images with wrong labels at once; what is still fit
well is distilled for the next round. In the last round, classes whose well-fit samples form a group
of their own in feature space are held to be poisoned, and that group is flagged.

Where we differ: loops run for whole passes over the clean set, so that iterations are rounded up
(by less than a pass); all randomness is seeded; principal axes are exact; the covariances get a
ridge instead of a constant in every entry (`covariance: constant` is the released code's). A class
splits by the released simplified gate, or by the older constrained mixture (`rule: mixture`), which
passes no class of fewer than 20 samples.
`rule: lowest` flags the 4 % of lowest loss, as the code does on Ember, whose sigmoid is here a
network with two outputs. `schedule: small` is ours, for two cores. The confusing labels come from
the sweep's victim, whose architecture all rounds train, where the authors take narrow networks on
ImageNet and Ember. `spaces` are the first eight principal axes of each class, before and after, of
which the gate takes two. Reference: Unispac/Fight-Poison-With-Poison at f2f02c2.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep.counts import count_of, exactly
from raysweep.datasets import ImageSet, IntArray
from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    Flags,
    FloatArray,
    Gift,
    Need,
)
from raysweep.defenses._confusion import (
    SCHEDULES,
    Confusion,
    Schedule,
    class_weights,
    distilled,
    log_ratio,
    median_chunklet,
    mixture_log_ratio,
    passed,
    principal,
    whitened,
)
from raysweep.methods import decision, log_range
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from torch import nn


AXES = 8


class ConfusionTraining(Defense):
    """Scores are minus the confused model's loss; decisions gate classes by their log R."""

    VERSION = 2
    TOY: ClassVar = {"scale": 0.01, "learning_rate": 0.05}

    schedule: Literal["cifar10", "gtsrb", "imagenet", "ember", "small"] = Field(
        "cifar10", description="hyperparameters of all rounds"
    )
    scale: float = Field(1.0, gt=0, le=100, description="times the iterations and the epochs")
    weight: float | None = Field(None, gt=1, description="lambda of all rounds")
    every: int | None = Field(None, ge=1, description="iterations per inspected batch, all rounds")
    learning_rate: float | None = Field(None, gt=0, description="of the confusion, all rounds")
    momentum: float | None = Field(None, ge=0, lt=1, description="of the confusion, all rounds")
    rule: Literal["gate", "mixture", "lowest"] = decision("gate", description="see 'differ'")
    high: float | None = decision(
        None,
        gt=1,
        description="R of a class; gate: 2, mixture: 5",
        search=log_range(1.05, 100.0),
    )
    highest: float | None = decision(
        None, gt=1, description="R of the class with the largest; gate: 1.5, mixture: 2"
    )
    rank: int = decision(2, ge=1, le=AXES, description="principal axes per class")
    covariance: Literal["ridge", "constant"] = decision("ridge", description="what is added")
    epsilon: float = decision(1e-3, gt=0, description="how much is added to covariances")
    fraction: float = decision(0.04, gt=0, lt=1, description="share that `lowest` flags")

    def needs(self) -> frozenset[Need]:
        """Return training set, victim and clean set."""
        return frozenset({"training_set", "victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def _rounds(self) -> Schedule:
        import dataclasses
        import math

        base = SCHEDULES[self.schedule]
        changed: dict[str, Any] = {
            "iterations": tuple(math.ceil(exactly(self.scale, n)) for n in base.iterations),
            "epochs": tuple(math.ceil(exactly(self.scale, n)) for n in base.epochs),
        }
        mine_of_all = {
            "weights": self.weight, "every": self.every, "learning_rates": self.learning_rate,
            "momenta": self.momentum,
        }  # fmt: skip
        for field, mine in mine_of_all.items():
            if mine is not None:
                changed[field] = (mine,) * base.rounds
        return dataclasses.replace(base, **changed)

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of all rounds."""
        del epochs, num_classes
        return self._rounds().passes(samples)

    def least_clean(self) -> int:
        """Return 2: one image alone is no batch that normalization works with."""
        return 2

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Run all rounds; a killed run goes on within the round that it had come to."""
        from raysweep import training
        from raysweep.training import weights

        schedule, data, clean = self._rounds(), inputs.training_set, inputs.clean_set
        if len(clean) < self.least_clean():
            raise ValueError(
                f"confusion training needs at least 2 reserved clean images, got {len(clean)}; "
                f"set clean_size of the dataset"
            )
        logits = training.predict(inputs.victim, clean.images, inputs.recipe, ctx.device)
        guessed = logits.argmax(1).to(ctx.device)
        network = training.build(inputs.model, inputs.shape, ctx)
        before = _seen(inputs.victim, inputs, ctx, "victim's")[0]
        kept, losses, first = np.arange(len(data)), [], 0
        if ctx.restored:
            first, kept = int(ctx.restored["round"]) + 1, np.array(ctx.restored["kept"])
            losses = list(ctx.restored["losses"])
            network.load_state_dict(weights.unpacked(ctx.restored))
        confused = network
        for number in range(first, schedule.rounds):
            rounds = _Round(self, schedule, number, inputs, ctx)
            if schedule.afresh:
                network = training.build(inputs.model, inputs.shape, ctx, number)
            confused = rounds.train(network, data.take(kept), guessed)
            losses.append(
                training.per_sample_losses(confused, data, inputs.recipe, ctx.device).numpy()
            )
            if number < schedule.rounds - 1:
                share = 50 if number <= schedule.rounds - 3 else 100
                kept = distilled(
                    losses[-1], data.labels, schedule.ratios[number], share,
                    inputs.shape.num_classes,
                )  # fmt: skip
                ctx.checkpoint(partial(_state, number, kept, losses, network))
            ctx.progress((number + 1) / schedule.rounds, f"round {number + 1}")
        return self._found(confused, before, np.stack(losses), inputs, ctx)

    def _found(
        self, confused: nn.Module, before: FloatArray, losses: FloatArray, inputs: DefenseInputs,
        ctx: Context,
    ) -> Findings:  # fmt: skip
        """Return the findings that `decide` reads; `before`: features in the victim, (N, D)."""
        after, logits = _seen(confused, inputs, ctx, "confused model's")
        labels, predicted = inputs.training_set.labels, logits.argmax(1).numpy()
        axes = np.zeros((2, len(labels), AXES))
        white, chunklet = np.zeros((len(labels), 2)), np.zeros(len(labels), bool)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            axes[:, rows] = [principal(space[rows], AXES) for space in (before, after)]
            if len(rows) > 1:
                chunklet[rows] = median_chunklet(losses[-1][rows])
                white[rows] = whitened(after[rows], chunklet[rows])
        return Findings(
            train_scores=-losses[-1],
            statistics={
                "predicted": predicted, "axes": axes[1], "whitened": white, "chunklet": chunklet,
            },
            losses=losses.astype(np.float32),
            spaces={"victim_axes": axes[0], "confused_axes": axes[1]},
            facts={"training samples that the confused model fits": (predicted == labels).mean()},
        )  # fmt: skip

    def decide(self, evidence: Evidence) -> Decision:
        """Flag, in classes that pass the gate, the samples that the confused model gets right."""
        labels = evidence.labels
        if self.rule == "lowest":
            flags = np.zeros(len(labels), bool)
            order = np.argsort(-evidence.train_scores, kind="stable")
            flags[order[: count_of(self.fraction, len(labels))]] = True
            return Decision(flags=flags)
        high, highest = (5.0, 2.0) if self.rule == "mixture" else (2.0, 1.5)
        over = passed(self.log_ratios(evidence), self.high or high, self.highest or highest)
        isolated: Flags = evidence.statistics["predicted"] == labels
        return Decision(flags=isolated & over[labels])

    def log_ratios(self, evidence: Evidence) -> FloatArray:
        """Return log R of each class by the rule, (K,); 0 for a class without samples."""
        labels, found = evidence.labels, evidence.statistics
        isolated: Flags = found["predicted"] == labels
        ratios = np.zeros(evidence.num_classes)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            if self.rule == "mixture":
                ratios[label] = mixture_log_ratio(found["whitened"][rows], found["chunklet"][rows])
            else:
                points = found["axes"][rows][:, : self.rank]
                ratios[label] = log_ratio(points, isolated[rows], self.epsilon, self.covariance)
        return ratios


def _state(number: int, kept: IntArray, losses: list[FloatArray], network: nn.Module) -> Arrays:
    """Return the state of `run` after a round."""
    from raysweep.training import weights

    state = {"round": np.array(number), "kept": kept, "losses": np.stack(losses)}
    return {**state, **weights.packed(network.state_dict())}


class _Round:
    """One round: pretraining on the distilled set, then confusion."""

    def __init__(
        self, method: ConfusionTraining, schedule: Schedule, number: int, inputs: DefenseInputs,
        ctx: Context,
    ) -> None:  # fmt: skip
        self.schedule, self.number, self.inputs, self.ctx = schedule, number, inputs, ctx
        self.classes = inputs.shape.num_classes
        self.last = number == schedule.rounds - 1

    def train(
        self, network: nn.Module, distilled_set: ImageSet, guessed: torch.Tensor
    ) -> nn.Module:
        """Pretrain `network` in place; return a confused copy of it."""
        import copy

        from raysweep import training

        schedule, number = self.schedule, self.number
        plain = self.inputs.recipe.model_copy(
            update={
                "optimizer": "sgd", "nesterov": False, "schedule": "constant", "augment": (),
                "label_smoothing": 0.0, "weight_decay": schedule.weight_decay,
            }
        )  # fmt: skip
        pretraining = plain.model_copy(
            update={
                "epochs": schedule.epochs[number], "learning_rate": schedule.pretrain_rate,
                "batch_size": schedule.pretrain_batch, "momentum": 0.9,
            }
        )  # fmt: skip
        training.fit(
            network, self._mixed(distilled_set), pretraining, self.ctx, phase=f"pretrain {number}"
        )
        confused = copy.deepcopy(network)
        clean = self.inputs.clean_set
        passes = -(-schedule.iterations[number] // -(-len(clean) // schedule.batch_size))
        recipe = plain.model_copy(
            update={
                "epochs": passes, "learning_rate": schedule.learning_rates[number],
                "batch_size": schedule.batch_size, "momentum": schedule.momenta[number],
            }
        )  # fmt: skip
        streams = {
            "clean": training.Stream(data=clean),
            "inspected": training.Stream(data=distilled_set, every=schedule.every[number]),
        }
        objective = Confusion(
            guessed, self._class_weights(distilled_set), schedule.weights[number], self.classes
        )
        training.fit(
            confused, streams, recipe, self.ctx, objective=objective, phase=f"confuse {number}"
        )
        return confused

    def _mixed(self, distilled_set: ImageSet) -> ImageSet:
        """Return the set, in later rounds with clean images of the next class's label."""
        import torch

        if not self.last and self.number < self.schedule.confused_from:
            return distilled_set
        clean = self.inputs.clean_set
        return ImageSet(
            images=torch.cat([distilled_set.images, clean.images]),
            labels=np.concatenate([distilled_set.labels, (clean.labels + 1) % self.classes]),
        )

    def _class_weights(self, distilled_set: ImageSet) -> torch.Tensor:
        import torch

        weights: FloatArray = np.ones(self.classes)
        if self.schedule.frequency_weights and not self.last:
            weights = class_weights(distilled_set.labels, self.classes)
        return torch.from_numpy(weights).float().to(self.ctx.device)


def _seen(
    network: nn.Module, inputs: DefenseInputs, ctx: Context, whose: str
) -> tuple[FloatArray, torch.Tensor]:
    """Return the head's inputs (N, D) and logits (N, K) for the training samples."""
    from raysweep import training

    head = inputs.model.HEAD
    features, logits = training.features(
        network, inputs.training_set.images, head, head, inputs.recipe, ctx.device
    )
    values = features.numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"the {whose} features are not finite; lower learning_rate, or set precision: float32 "
            f"in the recipe"
        )
    return values, logits
