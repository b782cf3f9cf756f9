"""RED: a backdoor makes the smallest pattern from one class to another far smaller.

Z. Xiang, D. J. Miller, G. Kesidis: Reverse Engineering Imperceptible Backdoor Attacks on Deep
Neural Networks for Detection and Training Set Cleansing, Computers & Security 2021,
arXiv:2010.07489: for each pair of classes the smallest additive pattern whose addition sends the
source's training images to the target, and whose removal sends images labeled as the target out of
it; an order-statistic test on the reciprocal norms; removal of what leaves the class with the
pattern.

Where we differ: the search is at the input, where the authors' script allows a layer inside. Its
objective, its null and its steps are those of the authors' scripts (the objective's header names
both terms). Images with and without a pattern are clipped to the pixel box, but not rounded to 8
bits. Gammas are located at 0 and the significance is calibrated for the number of classes
(`calibrated: false` compares p itself); where a fit is not finite, deviations in MADs decide. Pairs
that never reach pi are dropped, and so is a source that is there before any step, whose pattern is
0; the exponent stays K - 1 whatever was dropped. The final pattern is the smallest of a single pair
into the target, where the same group's later work estimates one more over all detected sources.
The score is by how much removal of the pattern lowers the class's log posterior; the default rule
flags what lies above the quantile of the same score in classes that are neither target nor source,
since the plain flip, `rule: flip`, misses poison. There `reference: own` takes the fall of a
sample's own class, of which other classes have more to lose than the target's clean samples, and
`target` that of the target's posterior, a rise counting 0. `rule: split` flags the upper of the two
groups into which the scores of the class fall. `weight` and `scan_weight` are lambda in the final
estimate and in the scan of all pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep.datasets import ImageSet, as_floats
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
from raysweep.defenses._scored import split
from raysweep.methods import decision, log_range, reduction, searched
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from torch import nn

LAMBDA = {"min": 0.0, "max": 2.0}  # searched
CPU_IMAGES = 64  # per step; benchmarks/defenses.py
GPU_LOOKS = 10  # steps after which a GPU's host learns which sources are done


class RED(Defense):
    """Patterns per pair → target class → score of removal; decisions set significance and cut."""

    VERSION = 2
    TOY: ClassVar = {"learning_rate": 0.05, "steps": 40}

    images: int = searched(
        200,
        {"min": 10, "max": 1000},
        ge=1,
        le=100_000,
        description="images of a class in the search",
    )
    steps: int = Field(300, ge=1, le=100_000, description="steps of a search, at most")
    learning_rate: float = searched(
        1e-3, log_range(1e-4, 0.1), gt=0, description="of SGD on the pattern, in pixel units"
    )
    milestones: tuple[int, ...] = Field((150, 200, 250), description="steps that divide it by 10")
    momentum: float = Field(0.2, ge=0, lt=1, description="of SGD")
    pi: float = searched(
        0.8, {"min": 0.7, "max": 0.99}, gt=0, le=1, description="share of images that ends a search"
    )
    weight: float = reduction(
        1.0, search=LAMBDA, ge=0, description="lambda of the second term, for the target"
    )
    scan_weight: float = searched(
        1.0, LAMBDA, ge=0, description="lambda of the second term, for all pairs"
    )
    null: Literal["exclude_target", "drop_top", "mad"] = reduction(
        "exclude_target", description="pairs without an attack, for the test"
    )
    reference: Literal["own", "target"] = reduction(
        "own", description="whose posterior's fall gives the cut, in other classes"
    )
    theta: float = decision(
        0.05, search=log_range(0.001, 0.1), gt=0, lt=1, description="significance"
    )
    calibrated: bool = decision(True, description="whether theta is the share of false alarms")
    deviation: float = decision(7.0, gt=0, description="MADs, where they decide")
    rule: Literal["quantile", "split", "flip"] = decision("quantile", description="what is flagged")
    quantile: float = decision(
        0.95, search={"min": 0.5, "max": 0.999}, gt=0, lt=1, description="of other classes' scores"
    )

    def needs(self) -> frozenset[Need]:
        """Return training set and victim, and nothing clean."""
        return frozenset({"training_set", "victim"})

    def gives(self) -> frozenset[Gift]:
        """Return a verdict, and scores of training samples."""
        return frozenset({"verdict", "train_scores"})

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return one part per target class."""
        return tuple(f"target {target}" for target in range(num_classes))

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of all pairs, if no search ends early."""
        del samples, epochs
        return self.steps * self.images * num_classes * (num_classes - 1)

    def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Arrays:
        """Search the patterns of all sources into one target."""
        target, classes = int(part.split()[1]), inputs.shape.num_classes
        sources = [s for s in range(classes) if s != target]
        patterns, reached = self._search(inputs, ctx, sources, target, self.scan_weight)
        arrays = {
            "patterns": np.zeros((classes, *patterns.shape[1:]), np.float32),
            "reached": np.zeros(classes, bool),
        }
        arrays["patterns"][sources], arrays["reached"][sources] = patterns, reached
        return arrays

    def _search(
        self, inputs: DefenseInputs, ctx: Context, sources: list[int], target: int, weight: float
    ) -> tuple[FloatArray, np.ndarray]:
        """Return patterns (S, C, H, W) and a mask (S,): reached pi, which absent classes do not."""
        import torch

        from raysweep.training import room

        data = inputs.training_set
        present = [s for s in sources if (data.labels == s).any()]
        shape = inputs.shape
        patterns = np.zeros((len(sources), shape.channels, shape.height, shape.width), np.float32)
        reached = np.zeros(len(sources), bool)
        if not present or not (data.labels == target).any():
            return patterns, reached
        groups = {source: self._drawn(data, source, ctx) for source in present}
        removed = self._drawn(data, target, ctx).to(ctx.device)
        # Together are searched sources of one size: a scarce class does not cut the others' images.
        for size in sorted({len(group) for group in groups.values()}):
            alike = [source for source in present if len(groups[source]) == size]
            images = torch.stack([groups[source] for source in alike]).to(ctx.device)
            # On a CPU the activations of many images leave the caches: few sources at once are
            # faster.
            most = CPU_IMAGES
            if ctx.device != "cpu":
                most = room.images_at_once(
                    inputs.victim, images[0, :1], inputs.recipe, ctx.device,
                    copies=2 if weight else 1,
                )  # fmt: skip
            searched = [
                self.smallest(inputs, group, removed, target, weight, ctx)
                for group in images.split(max(most // size, 1))
            ]
            found, done = (torch.cat(part) for part in zip(*searched, strict=True))
            at = [sources.index(source) for source in alike]
            patterns[at], reached[at] = found.cpu().numpy(), done.cpu().numpy()
        return patterns, reached

    def _drawn(self, data: ImageSet, label: int, ctx: Context) -> torch.Tensor:
        rows = ctx.generator("images", label).permutation(np.flatnonzero(data.labels == label))
        return as_floats(data.take(np.sort(rows[: self.images])).images)

    def smallest(
        self, inputs: DefenseInputs, images: torch.Tensor, removed: torch.Tensor, target: int,
        weight: float, ctx: Context,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Return patterns (S, C, H, W) and a mask (S,) of those that reach pi; all sources at once.

        Args:
            inputs: gives victim and precision.
            images: (S, n, C, H, W) of the sources, in [0, 1].
            removed: (m, C, H, W) of the target.
            target: its class.
            weight: lambda.
            ctx: gives the device.
        """
        import torch

        from raysweep import training

        inputs.victim.requires_grad_(False)
        patterns, velocity = torch.zeros_like(images[:, 0]), torch.zeros_like(images[:, 0])
        done = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        active = torch.arange(len(images), device=images.device)
        steps = training.Steps(ctx.part("patterns"), tried=patterns, velocity=velocity, done=done)
        for step in range(steps.first, self.steps):
            if step == steps.first or step % (1 if ctx.device == "cpu" else GPU_LOOKS) == 0:
                active = (~done).nonzero().flatten()
                if not len(active):
                    break
            tried = patterns[active].requires_grad_()
            with training.autocast(inputs.recipe, ctx.device):
                added = _log_posterior(inputs.victim, images[active] + tried[:, None])
                loss = -added[..., target].mean(1).sum()
                if weight:
                    taken = _log_posterior(inputs.victim, removed[None] - tried[:, None])
                    others = torch.cat([taken[..., :target], taken[..., target + 1 :]], -1)
                    loss = loss - weight * others.logsumexp(-1).mean(1).sum()
            sent = (added.argmax(-1) == target).float().mean(1) >= self.pi
            done[active] |= sent
            (gradient,) = torch.autograd.grad(loss, tried)
            velocity[active] = self.momentum * velocity[active] + gradient
            rate = self.learning_rate * 0.1 ** sum(step >= m for m in self.milestones)
            moved = tried.detach() - rate * velocity[active]
            still = done[active].view(-1, 1, 1, 1)
            patterns[active] = torch.where(still, tried.detach(), moved)
            steps.take()
        steps.end()
        return patterns, done

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Find the target class, refine its pattern, and score its samples by removal."""
        from raysweep.defenses import _red

        classes = inputs.shape.num_classes
        patterns = np.stack([part["patterns"] for part in inputs.shards], 1)  # (S, T, C, H, W)
        reached = np.stack([part["reached"] for part in inputs.shards], 1)
        norms = np.linalg.norm(patterns.reshape(classes, classes, -1), axis=2)
        reciprocals = np.where(reached & (norms > 0), 1 / np.maximum(norms, 1e-12), 0.0)
        p_class, p_value = np.full(classes, np.nan), np.nan
        if self.null != "mad":
            p_class, p_value = _red.p_values(reciprocals, self.null)
        if np.isfinite(p_class).all() and np.isfinite(p_value):
            anomaly = -np.log10(np.maximum(p_class, 1e-300))
        else:
            anomaly, p_value = _red.deviations(reciprocals), np.nan
        target = int(np.argmax(anomaly))
        pattern, source = self._refined(
            inputs, ctx, patterns[:, target], reached[:, target], target
        )
        scores, flips, reference = self._removal(inputs, ctx, pattern, target, source)
        best = patterns[reciprocals.argmax(0), np.arange(classes)]
        best[target] = pattern
        largest = np.abs(best).reshape(classes, -1).max(1).clip(1e-12)
        shown = 0.5 + best / (2 * largest[:, None, None, None])
        return Findings(
            train_scores=scores,
            trigger=shown.astype(np.float32),
            curves=_red.ranked(reciprocals, target),
            statistics={
                "reciprocals": reciprocals, "anomaly": anomaly, "p_class": p_class,
                "p_value": np.array(p_value), "target": np.array(target), "flips": flips,
                "reference": reference, "pattern": pattern, "source": np.array(source),
            },
        )  # fmt: skip

    def _refined(
        self, inputs: DefenseInputs, ctx: Context, patterns: FloatArray, reached: np.ndarray,
        target: int,
    ) -> tuple[FloatArray, int]:  # fmt: skip
        """Return the smallest pattern (C, H, W) into the target with both terms, and its source.

        Args:
            inputs: as `run` was given them.
            ctx: the stage's.
            patterns: (S, C, H, W) of the scan.
            reached: (S,) mask of those that reach pi.
            target: the class.
        """
        if self.weight != self.scan_weight:
            sources = [s for s in range(len(patterns)) if s != target]
            again, done = self._search(inputs, ctx, sources, target, self.weight)
            if done.any():
                patterns, reached = patterns.copy(), np.zeros_like(reached)
                patterns[sources], reached[sources] = again, done
        norms = np.linalg.norm(patterns.reshape(len(patterns), -1), axis=1)
        source = int(np.where(reached & (norms > 0), norms, np.inf).argmin())
        return patterns[source], source

    def _removal(
        self, inputs: DefenseInputs, ctx: Context, pattern: np.ndarray, target: int, source: int
    ) -> tuple[FloatArray, np.ndarray, FloatArray]:
        """Return scores (N,), a mask (N,) of samples that leave their class, and others' scores."""
        import torch

        from raysweep import training

        data = inputs.training_set
        v = torch.from_numpy(pattern)
        rows = np.arange(len(data))
        drops, leaves = np.zeros(len(data)), np.zeros(len(data), bool)
        falls = np.zeros(len(data))  # of the target's posterior
        for start in range(0, len(data), 1000):
            cut = rows[start : start + 1000]
            images = as_floats(data.images[start : start + 1000])
            before, after = (
                training.predict(inputs.victim, x, inputs.recipe, ctx.device).log_softmax(1)
                for x in (images, (images - v).clamp(0, 1))
            )
            given = torch.from_numpy(data.labels[cut])[:, None]
            drops[cut] = (before.gather(1, given) - after.gather(1, given))[:, 0].numpy()
            falls[cut] = (before[:, target] - after[:, target]).clamp(min=0).numpy()
            leaves[cut] = (after.argmax(1) != given[:, 0]).numpy()
        if not np.isfinite(drops).all():
            raise ValueError("the victim's outputs are not finite; it may have diverged")
        inside = data.labels == target
        apart = ~inside & (data.labels != source)
        scores = np.full(len(data), drops.min() - 1.0)
        scores[inside] = drops[inside]
        compared = drops if self.reference == "own" else falls
        return scores, leaves & inside, compared[apart]

    def decide(self, evidence: Evidence) -> Decision:
        """Name the target class if the test is significant, and flag in it."""
        found, labels = evidence.statistics, evidence.labels
        target, p_value = int(found["target"]), float(found["p_value"])
        significant = float(found["anomaly"].max()) > self.deviation
        if not np.isnan(p_value):
            from raysweep.defenses import _red

            limit = self.theta
            if self.calibrated:
                limit = _red.threshold(evidence.num_classes, self.theta, self.null)
            significant = p_value <= limit
        flags: Flags = np.zeros(len(labels), bool)
        if significant:
            flags = np.asarray(found["flips"], bool)
            inside = labels == target
            if self.rule == "quantile" and len(found["reference"]):
                cut = np.quantile(found["reference"], self.quantile)
                flags = inside & (evidence.train_scores > cut)
            elif self.rule == "split":
                flags = inside & (evidence.train_scores > split(evidence.train_scores[inside]))
        return Decision(
            flags=flags,
            classes=(target,) if significant else (),
            class_scores=np.asarray(found["anomaly"], np.float64),
            p_value=None if np.isnan(p_value) else p_value,
        )


def _log_posterior(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return log posteriors (S, n, K) of clipped images (S, n, C, H, W)."""
    import torch

    sources, count = images.shape[:2]
    clipped = images.clamp(0, 1).flatten(0, 1)
    logits: torch.Tensor = network(clipped.contiguous(memory_format=torch.channels_last))
    return logits.float().log_softmax(1).view(sources, count, -1)
