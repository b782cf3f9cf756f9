"""Anti-Backdoor Learning: poison is learned fastest; isolate it early, then unlearn it.

Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma: Anti-Backdoor Learning: Training Clean Models on
Poisoned Data, NeurIPS 2021, arXiv:2110.11571. Stage 1, local gradient ascent: minimize
sign(l - gamma) * l, which holds clean samples at gamma while the poison's loss falls through;
isolate the share p of lowest loss. Stage 2, global gradient ascent:
minimize E_rest[l] - E_isolated[l].

Where we differ: `isolation_loss` offers the paper's loss per sample (`lga_sample`), the released
code's loss on the batch mean (`lga_batch`) and its default (`flooding`), and `cross_entropy`; the
default is `flooding`, because the per-sample form's precision swings from epoch to epoch. Between
the stages the model is trained on with the rest, as the released code does. `ascent: joint` is the
paper's second stage with the isolated samples' loss capped, for all of `unlearning_steps`, which
are far fewer than the paper's 80 epochs and faster than the code's: once the cap is met the rest
alone pulls, and accuracy comes back. Few isolated samples are in each batch (`isolated_batch`),
since more of them would own its batch statistics. `separate` ascends on the isolated samples alone,
as the code does, and ends after a pass whose last batch has a mean loss at the cap. Ascent pulls as
hard on a label that is improbable already, and the target class is unlearned with the trigger.
`unlearning: unlikelihood` (S. Welleck et al., ICLR 2020, arXiv:1908.04319) minimizes -log(1 - p) of
the given label instead, and `relabel` the loss of the likeliest other one: they let go where the
label is improbable, the later the larger `isolated_weight` is, and are badged as extensions. No
form looks at the trigger, which a defender does not have; `selection: test_asr`, an oracle, gives
the model after the pass over the isolated samples that leaves the lowest test ASR, as results of
the released code are chosen. The isolation's batches are shuffled, each stage begins with a new
optimizer, and the statistics of batch normalization move in all, which Confusion Training's port
freezes in the last.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep.counts import count_of
from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    Flags,
    Gift,
    Need,
)
from raysweep.methods import decision, log_range, searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from raysweep.datasets import ImageSet
    from raysweep.training import Batch, Objective

# The released code trains on for 60 epochs, from the 40th at a tenth of the learning rate.
TUNING_MILESTONES = (2 / 3,)
Loss = Literal["lga_sample", "lga_batch", "flooding", "cross_entropy"]
Unlearning = Literal["ascent", "unlikelihood", "relabel"]


class ABL(Defense):
    """Isolation → decision (`ratio`) → fine-tuning and unlearning, keyed by what was isolated."""

    REPAIRS = True
    VERSION = 4
    TOY: ClassVar = {"unlearning_steps": 20, "tuning_epochs": 2}

    isolation_epochs: int = Field(4, ge=1, le=1000, description="epochs of stage 1")
    isolation_loss: Loss = Field("flooding", description="see 'Where we differ'")
    gamma: float = Field(0.5, ge=0, le=10, description="loss that clean samples are held at")
    tuning_epochs: int = Field(12, ge=0, le=1000, description="epochs on the rest, in between")
    ascent: Literal["joint", "separate"] = Field("joint", description="form of stage 2")
    unlearning: Unlearning = Field("ascent", description="what isolated samples are moved by")
    isolated_batch: int = Field(8, ge=1, le=65_536, description="isolated samples per joint step")
    isolated_weight: float = Field(1.0, gt=0, le=1e3, description="weight of their loss, if joint")
    unlearning_steps: int = Field(120, ge=0, le=100_000, description="steps of stage 2")
    unlearning_rate: float = searched(
        0.01, log_range(1e-4, 0.05), gt=0, le=10, description="learning rate of stage 2"
    )
    cap: float = Field(100.0, gt=1, description="an isolated sample's loss counts up to log(cap)")
    ratio: float = decision(
        0.01,
        gt=0,
        lt=1,
        description="share p that is isolated",
        search=log_range(0.001, 0.2),
    )

    selection: Literal["last", "test_asr"] = Field(
        "last", description="unlearning epoch that is given; test_asr: of lowest ASR, an oracle"
    )

    def needs(self) -> frozenset[Need]:
        """Return the training set, and nothing clean; with `selection: test_asr` the ASR."""
        if self.selection == "test_asr":
            return frozenset({"training_set", "test_success"})
        return frozenset({"training_set"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples, and a model."""
        return frozenset({"train_scores", "model"})

    def badges(self) -> tuple[str, ...]:
        """Return the badges; what is not the paper's ascent is an extension."""
        ours = self.unlearning != "ascent"
        return (
            *super().badges(),
            *((f"extension: unlearning by {self.unlearning}",) if ours else ()),
        )

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of isolation and of training on the rest."""
        del epochs, num_classes
        return samples * (self.isolation_epochs + self.tuning_epochs)

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Stage 1: train with the isolation loss; score minus the loss of each sample."""
        from raysweep import training

        recipe = inputs.recipe.model_copy(
            update={"epochs": self.isolation_epochs, "schedule": "constant", "augment": ()}
        )
        network = training.build(inputs.model, inputs.shape, ctx)
        data = inputs.training_set
        objective = isolation_objective(self.isolation_loss, self.gamma)
        dynamics = training.Dynamics(data, recipe, ctx.device)
        training.fit(
            network, data, recipe, ctx, objective=objective, phase="isolate", on_epoch=dynamics
        )
        weights = {name: t.detach().cpu().numpy() for name, t in network.state_dict().items()}
        losses = dynamics.losses.numpy()
        return Findings(train_scores=-losses[-1], kept=weights, losses=losses)

    def decide(self, evidence: Evidence) -> Decision:
        """Isolate floor(p * N) samples, at least one."""
        scores = evidence.train_scores
        count = max(1, count_of(self.ratio, len(scores)))
        flags: Flags = np.zeros(len(scores), bool)
        flags[np.argsort(-scores, kind="stable")[:count]] = True
        return Decision(flags=flags)

    def repair(self, inputs: DefenseInputs, ctx: Context) -> dict[str, torch.Tensor]:
        """Train on with the rest, then unlearn the isolated samples."""
        import torch

        from raysweep import training

        network = training.build(inputs.model, inputs.shape, ctx)
        network.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in inputs.found.items()})
        assert inputs.decision.flags is not None
        isolated = inputs.training_set.take(np.flatnonzero(inputs.decision.flags))
        rest = inputs.training_set.take(np.flatnonzero(~inputs.decision.flags))
        self.tuned(network, rest, inputs, ctx)
        return self.unlearned(network, isolated, rest, inputs, ctx)

    def tuned(
        self, network: nn.Module, rest: ImageSet, inputs: DefenseInputs, ctx: Context
    ) -> None:
        """Train the network of stage 1 on with the samples that were not isolated, in place."""
        from raysweep import training

        tuning = {"epochs": self.tuning_epochs, "milestones": TUNING_MILESTONES}
        recipe = inputs.recipe.model_copy(update=tuning)
        training.fit(network, rest, recipe, ctx, phase="tune")

    def unlearned(
        self,
        network: nn.Module,
        isolated: ImageSet,
        rest: ImageSet,
        inputs: DefenseInputs,
        ctx: Context,
    ) -> dict[str, torch.Tensor]:
        """Ascend on the isolated samples; return the weights that `selection` gives.

        Args:
            network: what stage 1 and the training on the rest left; changed in place.
            isolated: the samples that were isolated.
            rest: all other samples.
            inputs: the recipe, and with `selection: test_asr` the ASR.
            ctx: of the stage.
        """
        from raysweep import training

        streams = {"isolated": training.Stream(data=isolated)}
        size = inputs.recipe.batch_size
        if self.ascent == "joint":
            size = min(self.isolated_batch, size)
            streams = {
                "isolated": training.Stream(data=isolated, batch_size=size),
                "rest": training.Stream(data=rest),
            }
        recipe = inputs.recipe.model_copy(
            update={
                "learning_rate": self.unlearning_rate,
                "optimizer": "sgd",
                "schedule": "constant",
                "augment": (),
            }
        )
        ascent = Ascent(math.log(self.cap), self.unlearning, self.isolated_weight)
        measure = inputs.test_success if self.selection == "test_asr" else None
        after = _Selection(ascent, measure)
        training.fit(
            network, streams, recipe, ctx, objective=ascent, phase="unlearn",
            steps=self.unlearning_steps, on_epoch=after,
        )  # fmt: skip
        return dict(after.given or network.state_dict())


def isolation_objective(loss: Loss, gamma: float) -> Objective:
    """Return the objective of stage 1 over the only stream.

    lga_sample: mean of sign(l - gamma) * l per sample (paper, equation 2); lga_batch: the same on
    the batch mean; flooding: |mean l - gamma| + gamma.
    """
    import torch.nn.functional as F

    from raysweep.training import capturable

    @capturable
    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        (batch,) = batches.values()
        reduction = "none" if loss == "lga_sample" else "mean"
        value = F.cross_entropy(model(batch.images).float(), batch.labels, reduction=reduction)
        if loss == "cross_entropy":
            return value
        if loss == "flooding":
            return (value - gamma).abs() + gamma
        return ((value - gamma).detach().sign() * value).mean()

    return objective


def unlearning_loss(
    logits_BK: torch.Tensor, labels: torch.Tensor, unlearning: Unlearning, cap: float
) -> torch.Tensor:
    """Return the losses (B,) by which a network forgets isolated samples.

    ascent: minus the cross-entropy up to the cap; unlikelihood: -log(1 - p) of the given label's
    probability p; relabel: the cross-entropy of the label that the network finds likeliest beside
    the given one.
    """
    import torch
    import torch.nn.functional as F

    if unlearning == "ascent":
        return -F.cross_entropy(logits_BK, labels, reduction="none").clamp(max=cap)
    given = torch.zeros_like(logits_BK, dtype=torch.bool).scatter_(1, labels[:, None], True)
    others = logits_BK.masked_fill(given, -torch.inf)
    if unlearning == "unlikelihood":
        return logits_BK.logsumexp(1) - others.logsumexp(1)
    return F.cross_entropy(logits_BK, others.detach().argmax(1), reduction="none")


class Ascent:
    """Stage 2's objective; an isolated sample's ascent counts up to the cap."""

    def __init__(self, cap: float, unlearning: Unlearning = "ascent", weight: float = 1.0) -> None:
        self.cap, self.unlearning, self.weight = cap, unlearning, weight
        self.latest: Any = None
        self.joint = False

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return E_rest[l] + weight * E_isolated[the loss of unlearning], or the latter alone."""
        import torch
        import torch.nn.functional as F

        names = list(batches)
        logits = model(torch.cat([batches[n].images for n in names])).float()
        parts = dict(zip(names, logits.split([len(batches[n].labels) for n in names]), strict=True))
        isolated, labels = parts["isolated"], batches["isolated"].labels
        self.latest = F.cross_entropy(isolated.detach(), labels)
        loss = unlearning_loss(isolated, labels, self.unlearning, self.cap).mean()
        self.joint = "rest" in parts
        if self.joint:
            loss = self.weight * loss + F.cross_entropy(parts["rest"], batches["rest"].labels)
        return loss

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all that is remembered of the last step."""
        import torch

        if self.latest is None:
            return {}
        return {"latest": self.latest, "joint": torch.tensor(self.joint)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Remember the last step before a kill."""
        if state:
            self.latest, self.joint = state["latest"], bool(state["joint"])

    def finished(self) -> bool:
        """Return whether ascent on the isolated samples alone has reached the cap."""
        return not self.joint and bool(self.latest >= self.cap)


class _Selection:
    """Ends stage 2 where it is finished, and keeps the weights of lowest ASR if that is measured.

    Attributes:
        given: the weights of lowest ASR so far.
    """

    def __init__(self, ascent: Ascent, measure: Callable[[nn.Module], float] | None) -> None:
        self.ascent, self.measure = ascent, measure
        self.lowest, self.given = math.inf, dict[str, "torch.Tensor"]()

    def __call__(self, epoch: int, model: nn.Module) -> bool:
        """Measure the model after an epoch; return whether ascent is finished."""
        del epoch
        if self.measure is not None and (asr := self.measure(model)) < self.lowest:
            self.lowest, self.given = asr, copy.deepcopy(model.state_dict())
        model.train()
        return self.ascent.finished()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the lowest ASR, and the weights that have it."""
        import torch

        lowest = torch.tensor(self.lowest, dtype=torch.float64)
        return {"lowest": lowest} | {f"given.{n}": t for n, t in self.given.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what was measured before a kill."""
        self.lowest = float(state["lowest"])
        self.given = {n.removeprefix("given."): t for n, t in state.items() if n != "lowest"}
