"""Neural Cleanse: the smallest patch that sends everything to a class; an outlier is a target.

B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Zhao: Neural Cleanse: Identifying and
Mitigating Backdoor Attacks in Neural Networks, IEEE S&P 2019. For each class, minimize the cross-
entropy to it of (1 - m) x + m p, plus cost * |m|_1; flag classes whose mask norm is more than 2
normalized median absolute deviations below the median; unlearn with the reversed trigger.

Where we differ: the reserved clean set is used for the search and for unlearning (the released code
unlearns on training data). The search runs a fixed number of steps, keeps the smallest mask that
reaches the wanted success, and adapts the cost by the same up and down rule, per batch. Every class
above the cut is flagged and its trigger stamped, not the largest index alone; the repair is 10
epochs by SGD at 0.05 instead of 1 at 0.01 or 0.001. Steps default to a small budget that suits
small images; the paper's scale is some thousands. With few classes of unequal norms the index
cannot pass 2, whatever a mask's size: a fact says what it can reach, and `index: log` takes the
norms' logarithms instead, which has no such bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep.datasets import as_floats
from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    FloatArray,
    Gift,
    Need,
)
from raysweep.methods import decision
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from raysweep.training import Batch


SMALLEST = 1e-6  # a mask's norm in pixels, below which logarithms say nothing more
DRAWN_AT_ONCE = 256  # batches of a search whose rows are uploaded together


class NeuralCleanse(Defense):
    """One part per class; the verdict is the mask norms' outliers."""

    REPAIRS = True
    VERSION = 2
    TOY: ClassVar = {"learning_rate": 0.05, "steps": 40}

    steps: int = Field(300, ge=10, le=1_000_000, description="optimization steps per class")
    batch_size: int = Field(64, ge=1, le=4096, description="clean images per step")
    learning_rate: float = Field(0.1, gt=0, le=10, description="Adam's, betas 0.5 and 0.9")
    cost: float = Field(1e-3, gt=0, description="first weight of the mask norm")
    success: float = Field(0.99, gt=0, le=1, description="wanted share of hits of a trigger")
    patience: int = Field(5, ge=1, description="checks in a row before the cost moves")
    unlearning_epochs: int = Field(10, ge=1, le=1000, description="epochs of the repair")
    unlearning_rate: float = Field(0.05, gt=0, le=10, description="peak learning rate of it")
    stamped: float = Field(0.2, gt=0, le=1, description="share of images stamped in the repair")
    index: Literal["linear", "log"] = decision(
        "linear", description="of mask norms, or of their logarithms (an extension)"
    )
    cut: float = decision(2.0, gt=0, description="anomaly index above which a class is flagged")

    def needs(self) -> frozenset[Need]:
        """Return victim and clean set."""
        return frozenset({"victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return a verdict and a model."""
        return frozenset({"verdict", "model"})

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return one part per class."""
        return tuple(str(label) for label in range(num_classes))

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of the search in every class."""
        del samples, epochs
        return self.steps * self.batch_size * num_classes

    def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Arrays:
        """Search the trigger of one class: mask (H, W) and pattern (C, H, W) in [0, 1]."""
        mask, pattern = self.search(int(part), inputs, ctx)
        return {"mask": mask, "pattern": pattern}

    def search(
        self, target: int, inputs: DefenseInputs, ctx: Context
    ) -> tuple[FloatArray, FloatArray]:
        """Minimize cross-entropy to `target` plus cost * |mask|_1 over the clean set."""
        import torch
        import torch.nn.functional as F

        from raysweep import training
        from raysweep.training.graph import LoopStep, graphs
        from raysweep.training.optimizer import Adam

        shape, victim = inputs.shape, inputs.victim.requires_grad_(False)
        images = as_floats(inputs.clean_set.images.to(ctx.device))
        draw = torch.Generator().manual_seed(ctx.stream("batches", target))
        start = torch.Generator().manual_seed(ctx.stream("start", target))
        raw = torch.rand(shape.channels + 1, shape.height, shape.width, generator=start)
        raw = ((raw - 0.5) * 2).to(ctx.device).requires_grad_(True)
        # A graph counts Adam's steps on the device; so does an eager step there, to equal it.
        there = graphs(ctx.device)
        adam = Adam([raw], lr=self.learning_rate, betas=(0.5, 0.9), capturable=there)
        seen = _Search(self, torch.sigmoid(raw.detach()))
        labels = torch.full((min(self.batch_size, len(images)),), target, device=ctx.device)
        rows = torch.zeros_like(labels)

        def work() -> None:
            trigger = torch.sigmoid(raw)
            mask, pattern = trigger[:1], trigger[1:]
            with training.autocast(inputs.recipe, ctx.device):
                logits = victim((1 - mask) * images[rows] + mask * pattern).float()
            norm = mask.sum()
            loss = F.cross_entropy(logits, labels) + seen.cost.float() * norm
            adam.zero_grad()
            loss.backward()
            adam.step()
            hits = (logits.argmax(1) == target).float().mean().double()
            seen.take_in(trigger.detach(), norm.detach(), hits)

        steps = training.Steps(ctx.part("search", target), raw=raw, adam=adam, seen=seen)
        take = LoopStep(work, ctx, self.steps - steps.first, optimizer=adam, memory=seen.memory)
        for _ in range(steps.first - steps.first % DRAWN_AT_ONCE):
            torch.randperm(len(images), generator=draw)  # as the steps before a kill did
        for step in range(steps.first, self.steps):
            if step % DRAWN_AT_ONCE == 0 or step == steps.first:
                left = min(DRAWN_AT_ONCE, self.steps - step + step % DRAWN_AT_ONCE)
                drawn = [torch.randperm(len(images), generator=draw) for _ in range(left)]
                batches = torch.stack([order[: len(labels)] for order in drawn]).to(ctx.device)
            rows.copy_(batches[step % DRAWN_AT_ONCE])
            take()
            steps.take()
        steps.end()
        last = torch.sigmoid(raw.detach())
        found = torch.where(seen.norm.isfinite(), seen.best, last).cpu().numpy()
        return found[0], found[1:]

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Gather the triggers of all classes."""
        del ctx
        masks = np.stack([shard["mask"] for shard in inputs.shards])
        patterns = np.stack([shard["pattern"] for shard in inputs.shards])
        norms = masks.sum(axis=(1, 2), dtype=np.float64)
        return Findings(
            statistics={"norms": norms},
            trigger=(masks[:, None] * patterns).astype(np.float32),
            kept={"masks": masks, "patterns": patterns},
        )

    def badges(self) -> tuple[str, ...]:
        """Return the badges; an index of logarithms is an extension."""
        return (*super().badges(), *(("extension: log index",) if self.index == "log" else ()))

    def decide(self, evidence: Evidence) -> Decision:
        """Flag classes whose anomaly index is above the cut."""
        norms = evidence.statistics["norms"]
        sizes = np.log(np.maximum(norms, SMALLEST)) if self.index == "log" else norms
        index = anomaly_index(sizes)
        facts = {"class of the smallest mask": float(norms.argmin())}
        if self.index == "linear":  # by logarithms every index can be reached
            facts["index that a mask of no size has"] = reachable(norms)
        return Decision(
            classes=tuple(np.flatnonzero(index > self.cut).tolist()),
            class_scores=index,
            facts=facts,
        )

    def repair(self, inputs: DefenseInputs, ctx: Context) -> dict[str, torch.Tensor]:
        """Fine-tune on clean images, a share of them stamped with a found trigger, labels right."""
        import torch
        import torch.nn.functional as F

        from raysweep import training

        assert inputs.decision.classes
        masks = torch.from_numpy(inputs.found["masks"].copy()).to(ctx.device)
        patterns = torch.from_numpy(inputs.found["patterns"].copy()).to(ctx.device)
        chosen = torch.tensor(inputs.decision.classes, device=ctx.device)
        noise = ctx.torch_generator("stamped")

        def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            (batch,) = batches.values()
            size = len(batch.labels)
            device = batch.images.device
            which = chosen[torch.randint(len(chosen), (size,), generator=noise, device=device)]
            stamp = torch.rand(size, generator=noise, device=device) < self.stamped
            mask = masks[which][:, None] * stamp[:, None, None, None]
            images = (1 - mask) * batch.images + mask * patterns[which]
            return F.cross_entropy(model(images).float(), batch.labels)

        recipe = inputs.recipe.model_copy(
            update={
                "epochs": self.unlearning_epochs,
                "learning_rate": self.unlearning_rate,
                "batch_size": self.batch_size,
                "optimizer": "sgd",
                "augment": (),
            }
        )
        training.fit(
            inputs.victim, inputs.clean_set, recipe, ctx,
            objective=training.capturable(training.resumable(objective, noise)), phase="unlearn",
        )  # fmt: skip
        return dict(inputs.victim.state_dict())


class _Search:
    """The state of a search between steps, on the device: nothing in it waits for a value.

    `cost`, the weight of the mask norm, goes up by 1.5 after `patience` checks in a row in which
    the trigger works, and down by 1.5 ** 1.5 after as many in which it does not.

    Attributes:
        memory: all tensors of the state, which are changed in place.
    """

    def __init__(self, method: NeuralCleanse, start: torch.Tensor) -> None:
        import torch

        self.success, self.patience = method.success, method.patience
        zero = torch.zeros((), dtype=torch.float64, device=start.device)
        self.cost = zero + method.cost
        self.run, self.streak = zero.clone(), zero.clone()
        self.best, self.norm = start, torch.full_like(zero, torch.inf, dtype=torch.float32)
        self.memory = tuple(self.state_dict().values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state."""
        return {"cost": self.cost, "run": self.run, "streak": self.streak, "best": self.best,
                "norm": self.norm}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def take_in(self, trigger: torch.Tensor, norm: torch.Tensor, hits: torch.Tensor) -> None:
        """Take in one step: the trigger, the norm of its mask, and its share of hits."""
        import torch

        self.streak.copy_(0.9 * self.streak + 0.1 * hits)
        self._move(hits >= self.success)
        better = torch.minimum(hits, self.streak / 0.95) >= self.success
        better = better & (norm < self.norm)
        self.best.copy_(torch.where(better, trigger, self.best))
        self.norm.copy_(torch.where(better, norm, self.norm))

    def _move(self, works: torch.Tensor) -> None:
        import torch

        run = torch.where(works, self.run.clamp(min=0) + 1, self.run.clamp(max=0) - 1)
        up, down = run >= self.patience, run <= -self.patience
        cost = torch.where(up, self.cost * 1.5, self.cost)
        self.cost.copy_(torch.where(down, cost / 1.5**1.5, cost))
        self.run.copy_(torch.where(up | down, 0.0, run))


def anomaly_index(sizes: FloatArray) -> FloatArray:
    """Return (median - size) / (1.4826 * MAD) of each class (K,); positive = smaller than usual.

    Where all sizes but few agree (MAD 0), an index is 0 for the median and infinite below it.
    """
    median = np.median(sizes)
    spread = 1.4826 * np.median(np.abs(sizes - median))
    below = median - sizes
    if spread == 0:
        return np.where(below > 0, np.inf, np.where(below < 0, -np.inf, 0.0))
    result: FloatArray = below / spread
    return result


def reachable(norms: FloatArray) -> float:
    """Return the index that the smallest mask would have if nothing were left of it.

    A cut above it flags no class, however small the mask of a backdoor's target is.
    """
    smallest = int(norms.argmin())
    without = norms.copy()
    without[smallest] = 0.0
    return float(anomaly_index(without)[smallest])
