"""Neural Cleanse: the smallest patch that sends everything to a class; an outlier is a target.

B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Zhao: Neural Cleanse: Identifying and
Mitigating Backdoor Attacks in Neural Networks, IEEE S&P 2019. For each class, minimize the
cross-entropy to it of (1 - m) x + m p, plus cost * |m|_1; flag classes whose mask norm is more than
2 normalized median absolute deviations below the median; unlearn with the reversed trigger.

Where we differ: the reserved clean set is used for the search and for unlearning (the released code
unlearns on training data). The search runs a fixed number of steps, keeps the smallest mask that
reaches the wanted success, and adapts the cost by the same up and down rule, per batch. Every class
above the cut is flagged and its trigger stamped, not the largest index alone; the repair is 10
epochs by SGD at 0.05 instead of 1 at 0.01 or 0.001. Steps default to a small budget that suits
small images; the paper's scale is some thousands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from raysweep.context import Arrays, Context
from raysweep.datasets import as_floats
from raysweep.defenses import Decision, Defense, Evidence, Findings, FloatArray, Gift, Inputs, Need
from raysweep.methods import decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from raysweep.training import Batch


class NeuralCleanse(Defense):
    """One part per class; the verdict is the mask norms' outliers."""

    REPAIRS = True
    VERSION = 2

    steps: int = Field(300, ge=10, le=1_000_000, description="optimization steps per class")
    batch_size: int = Field(64, ge=1, le=4096, description="clean images per step")
    learning_rate: float = Field(0.1, gt=0, le=10, description="Adam's, betas 0.5 and 0.9")
    cost: float = Field(1e-3, gt=0, description="first weight of the mask norm")
    success: float = Field(0.99, gt=0, le=1, description="wanted share of hits of a trigger")
    patience: int = Field(5, ge=1, description="checks in a row before the cost moves")
    unlearning_epochs: int = Field(10, ge=1, le=1000, description="epochs of the repair")
    unlearning_rate: float = Field(0.05, gt=0, le=10, description="peak learning rate of it")
    stamped: float = Field(0.2, gt=0, le=1, description="share of images stamped in the repair")
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
        """Return those of the search in every class."""
        del samples, epochs
        return self.steps * self.batch_size * num_classes

    def shard(self, part: str, inputs: Inputs, ctx: Context) -> Arrays:
        """Search the trigger of one class: mask (H, W) and pattern (C, H, W) in [0, 1]."""
        mask, pattern = self.search(int(part), inputs, ctx)
        return {"mask": mask, "pattern": pattern}

    def search(self, target: int, inputs: Inputs, ctx: Context) -> tuple[FloatArray, FloatArray]:
        """Minimize cross-entropy to `target` plus cost * |mask|_1 over the clean set."""
        import torch
        import torch.nn.functional as F

        from raysweep import training

        shape, victim = inputs.shape, inputs.victim.requires_grad_(False)
        images = as_floats(inputs.clean_set.images.to(ctx.device))
        draw = torch.Generator().manual_seed(ctx.stream("batches", target))
        start = torch.Generator().manual_seed(ctx.stream("start", target))
        raw = torch.rand(shape.channels + 1, shape.height, shape.width, generator=start)
        raw = ((raw - 0.5) * 2).to(ctx.device).requires_grad_(True)
        adam = torch.optim.Adam([raw], lr=self.learning_rate, betas=(0.5, 0.9))
        cost, streak = _Cost(self.cost, self.patience), 0.0
        best, best_norm = torch.sigmoid(raw.detach()), float("inf")
        labels = torch.full((min(self.batch_size, len(images)),), target, device=ctx.device)
        for _ in range(self.steps):
            rows = torch.randperm(len(images), generator=draw)[: len(labels)].to(ctx.device)
            trigger = torch.sigmoid(raw)
            mask, pattern = trigger[:1], trigger[1:]
            with training.autocast(inputs.recipe, ctx.device):
                logits = victim((1 - mask) * images[rows] + mask * pattern).float()
            norm = mask.sum()
            size = float(norm.detach())
            loss = F.cross_entropy(logits, labels) + cost.value * norm
            adam.zero_grad()
            loss.backward()
            adam.step()
            hits = float((logits.argmax(1) == target).float().mean())
            streak = 0.9 * streak + 0.1 * hits
            cost.move(hits >= self.success)
            if min(hits, streak / 0.95) >= self.success and size < best_norm:
                best, best_norm = trigger.detach().clone(), size
        if best_norm == float("inf"):
            best = torch.sigmoid(raw.detach())
        found = best.cpu().numpy()
        return found[0], found[1:]

    def run(self, inputs: Inputs, ctx: Context) -> Findings:
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

    def decide(self, evidence: Evidence) -> Decision:
        """Flag classes whose anomaly index is above the cut."""
        index = anomaly_index(evidence.statistics["norms"])
        return Decision(
            classes=tuple(np.flatnonzero(index > self.cut).tolist()), class_scores=index
        )

    def repair(self, inputs: Inputs, ctx: Context) -> dict[str, torch.Tensor]:
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
            inputs.victim, inputs.clean_set, recipe, ctx, objective=objective, phase="unlearn"
        )
        return dict(inputs.victim.state_dict())


class _Cost:
    """The weight of the mask norm: up by 1.5 while triggers work, down by 1.5 ** 1.5 else."""

    def __init__(self, value: float, patience: int) -> None:
        self.value = value
        self.patience = patience
        self.run = 0

    def move(self, works: bool) -> None:
        """Count one check; move after `patience` of the same outcome in a row."""
        self.run = max(self.run, 0) + 1 if works else min(self.run, 0) - 1
        if self.run >= self.patience:
            self.value, self.run = self.value * 1.5, 0
        elif self.run <= -self.patience:
            self.value, self.run = self.value / 1.5**1.5, 0


def anomaly_index(norms: FloatArray) -> FloatArray:
    """Return (median - norm) / (1.4826 * MAD) of each class (K,); positive = smaller than usual.

    Where all norms but few agree (MAD 0), an index is 0 for the median and infinite below it.
    """
    median = np.median(norms)
    spread = 1.4826 * np.median(np.abs(norms - median))
    below = median - norms
    if spread == 0:
        return np.where(below > 0, np.inf, np.where(below < 0, -np.inf, 0.0))
    result: FloatArray = below / spread
    return result
