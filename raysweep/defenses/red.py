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
bits. Gammas are located at 0 and p is calibrated by simulated sets of as many pairs (`calibrated:
false` takes p itself); where a fit is not finite, deviations in MADs decide, and a fact says so.
Pairs that never reach pi are dropped, and so is a source that is there before any step, whose
pattern is 0; the exponent stays K - 1 whatever was dropped. `null: effects` is ours: classes may
differ in how easily they are reached and left, and pairs that never reach pi are censored. The
final pattern is the smallest of a single pair into the target, where the same group's later work
estimates one more over all detected sources. The score is by how much removal of the pattern lowers
the class's log posterior; the default rule flags what lies above the quantile of the same score in
classes that are neither target nor source, since the plain flip, `rule: flip`, misses poison. There
`reference: own` takes the fall of a sample's own class, of which other classes have more to lose
than the target's clean samples, and `target` that of the target's posterior, a rise counting 0.
`score: likelihood`, ours, is the log posterior that removal leaves the source: the class whose log
posterior is then skewed most to high values in the target's samples, of which few are poison.
`rule: split` flags the upper of the two groups into which the scores of the class fall. `weight`
and `scan_weight` are lambda in the final estimate and in the scan of all pairs. `knows` tells the
target class, or the target and the pattern, so that no verdict is needed: what estimates lose.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

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
from raysweep.defenses._descent import descent
from raysweep.defenses._scored import split
from raysweep.defenses._subtraction import Reference, Score, subtracted
from raysweep.methods import decision, log_range, reduction, searched
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch

LAMBDA = {"min": 0.0, "max": 2.0}  # searched
CPU_IMAGES = 64  # per step; benchmarks/defenses.py
MOST = 1024  # images with gradients, where nobody knows the room
GPU_LOOKS = 10  # steps after which a GPU's host learns which sources are done


class RED(Defense):
    """Patterns per pair → target class → score of removal; decisions set significance and cut."""

    VERSION, RUN_VERSION = 2, 4
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
    null: Literal["exclude_target", "drop_top", "effects", "mad"] = reduction(
        "exclude_target", description="pairs without an attack, for the test"
    )
    score: Score = reduction("fall", description="of a sample, once the pattern is removed")
    reference: Reference = reduction(
        "own", description="whose posterior's fall gives the cut, in other classes"
    )
    knows: Literal["nothing", "target", "pattern"] = reduction(
        "nothing", description="of the attack; the pattern with its target"
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

    @model_validator(mode="after")
    def _a_fall_has_a_reference(self) -> Self:
        if self.score == "likelihood" and self.reference != "own":
            raise ValueError(
                f"reference must be own with score: likelihood, which is compared with itself in "
                f"other classes, got {self.reference}; leave it out, or take score: fall"
            )
        return self

    def needs(self) -> frozenset[Need]:
        """Return training set and victim, nothing clean, and of the attack what it `knows`."""
        needs: set[Need] = {"training_set", "victim"}
        if self.knows != "nothing":
            needs |= {"target_class"}
        return frozenset(needs | ({"trigger"} if self.knows == "pattern" else set()))

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples, and a verdict unless it knows the target."""
        gifts: set[Gift] = {"train_scores"}
        return frozenset(gifts | {"verdict"} if self.knows == "nothing" else gifts)

    def badges(self) -> tuple[str, ...]:
        """Return the badges; the score by likelihood and the null of effects are extensions."""
        own = ("extension: score by likelihood",) if self.score == "likelihood" else ()
        tested = self.null == "effects" and self.knows == "nothing"
        return (*super().badges(), *own, *(("extension: null of effects",) if tested else ()))

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return one part per class that may be the target; none where it is known."""
        unknown = range(num_classes if self.knows == "nothing" else 0)
        return tuple(f"target {target}" for target in unknown)

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of all pairs, if no search ends early."""
        del samples, epochs
        targets = {"nothing": num_classes, "target": 1, "pattern": 0}[self.knows]
        return self.steps * self.images * targets * (num_classes - 1)

    def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Arrays:
        """Search the patterns of all sources into one target."""
        patterns, reached = self._search(inputs, ctx, int(part.split()[1]), self.scan_weight)
        return {"patterns": patterns, "reached": reached}

    def _search(
        self, inputs: DefenseInputs, ctx: Context, target: int, weight: float
    ) -> tuple[FloatArray, np.ndarray]:
        """Return patterns (K, C, H, W) and a mask (K,): reached pi, which absent classes do not."""
        import torch

        from raysweep.training import room

        data, shape = inputs.training_set, inputs.shape
        present = [s for s in np.unique(data.labels).tolist() if s != target]
        patterns = np.zeros(
            (shape.num_classes, shape.channels, shape.height, shape.width), np.float32
        )
        reached = np.zeros(shape.num_classes, bool)
        if not present or not (data.labels == target).any():
            return patterns, reached
        groups = {source: self._drawn(data, source, ctx) for source in present}
        removed = self._drawn(data, target, ctx).to(ctx.device)
        # Together are searched sources of one size: a scarce class does not cut the others' images.
        for size in sorted({len(group) for group in groups.values()}):
            alike = [source for source in present if len(groups[source]) == size]
            images = torch.stack([groups[source] for source in alike]).to(ctx.device)
            at_once = room.images_at_once(
                inputs.victim, images[0, :1], inputs.recipe, ctx.device, copies=2 if weight else 1
            )
            # On a CPU the activations of many images leave the caches: few sources at once are
            # faster.
            most = CPU_IMAGES if ctx.device == "cpu" else at_once
            searched = [
                self.smallest(inputs, group, removed, target, weight, ctx, at_once)
                for group in images.split(max(most // size, 1))
            ]
            found, done = (torch.cat(part) for part in zip(*searched, strict=True))
            patterns[alike], reached[alike] = found.cpu().numpy(), done.cpu().numpy()
        return patterns, reached

    def _drawn(self, data: ImageSet, label: int, ctx: Context) -> torch.Tensor:
        rows = ctx.generator("images", label).permutation(np.flatnonzero(data.labels == label))
        return as_floats(data.take(np.sort(rows[: self.images])).images)

    def smallest(
        self, inputs: DefenseInputs, images: torch.Tensor, removed: torch.Tensor, target: int,
        weight: float, ctx: Context, at_once: int = MOST,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Return patterns (S, C, H, W) and a mask (S,) of those that reach pi; all sources at once.

        Args:
            inputs: gives victim and precision.
            images: (S, n, C, H, W) of the sources, in [0, 1].
            removed: (m, C, H, W) of the target.
            target: its class.
            weight: lambda.
            ctx: gives the device.
            at_once: images of which the network is given a gradient at once, at least one a source.
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
            gradient, share = descent(
                inputs, images[active], removed, tried, target, weight, ctx.device, at_once
            )
            done[active] |= share >= self.pi
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
        if self.knows == "pattern":
            return self._scored(inputs, ctx, inputs.trigger, inputs.target_class, None)
        if self.knows == "target":
            target = inputs.target_class
            patterns, reached = self._search(inputs, ctx, target, self.weight)
            return self._of_smallest(inputs, ctx, patterns, reached, target)
        from raysweep.defenses import _red

        classes = inputs.shape.num_classes
        patterns = np.stack([part["patterns"] for part in inputs.shards], 1)  # (S, T, C, H, W)
        reached = np.stack([part["reached"] for part in inputs.shards], 1)
        norms = np.linalg.norm(patterns.reshape(classes, classes, -1), axis=2)
        tested = _red.tested(norms, reached, self.null)
        target = int(tested["anomaly"].argmax())
        into, hit, facts = patterns[:, target], reached[:, target], {}
        if self.weight != self.scan_weight:
            again, done = self._search(inputs, ctx, target, self.weight)
            facts["the scan's pattern stands in"] = float(not done.any())
            into, hit = (again, done) if done.any() else (into, hit)
        found = self._of_smallest(inputs, ctx, into, hit, target)
        best = patterns[tested["reciprocals"].argmax(0), np.arange(classes)]
        best[target] = found.statistics["pattern"]
        largest = np.abs(best).reshape(classes, -1).max(1).clip(1e-12)
        shown = 0.5 + best / (2 * largest[:, None, None, None])
        return replace(
            found,
            facts=facts,
            trigger=shown.astype(np.float32),
            curves=_red.ranked(tested["reciprocals"], target),
            statistics={**tested, **found.statistics},
        )

    def _of_smallest(
        self, inputs: DefenseInputs, ctx: Context, patterns: FloatArray, reached: np.ndarray,
        target: int,
    ) -> Findings:  # fmt: skip
        """Score by the smallest of the patterns (K, C, H, W) that reach pi, a mask (K,).

        Raises:
            ValueError: if there is none.
        """
        norms = np.linalg.norm(patterns.reshape(len(patterns), -1), axis=1)
        norms = np.where(reached & (norms > 0), norms, np.inf)
        if not np.isfinite(norms).any():
            raise ValueError(
                f"RED found no pattern that sends {self.pi} of a class to class {target}; raise "
                f"steps or learning_rate, or lower pi"
            )
        smallest = int(norms.argmin())
        source = smallest if self.score == "fall" else None  # other classes may be sent there too
        return self._scored(inputs, ctx, patterns[smallest], target, source)

    def _scored(
        self, inputs: DefenseInputs, ctx: Context, pattern: FloatArray, target: int,
        source: int | None,
    ) -> Findings:  # fmt: skip
        """Score the samples of the target by removal of a pattern (C, H, W)."""
        left = subtracted(inputs, ctx, pattern, target, source, self.score, self.reference)
        return Findings(
            train_scores=left.scores,
            statistics={
                "target": np.array(target), "source": np.array(left.source), "pattern": pattern,
                "flips": left.leaves, "reference": left.reference,
            },
        )  # fmt: skip

    def decide(self, evidence: Evidence) -> Decision:
        """Name the target class if the test is significant, and flag in it."""
        if self.knows != "nothing":
            return Decision(flags=self._flags(evidence))
        found = evidence.statistics
        p_value = float(found["p_calibrated" if self.calibrated else "p_value"])
        by_mads = bool(np.isnan(p_value))
        significant = p_value <= self.theta
        if by_mads:
            significant = float(found["anomaly"].max()) > self.deviation
        return Decision(
            flags=self._flags(evidence) if significant else np.zeros(len(evidence.labels), bool),
            classes=(int(found["target"]),) if significant else (),
            class_scores=np.asarray(found["anomaly"], np.float64),
            p_value=None if by_mads else p_value,
            facts={"MADs decide": 1.0} if by_mads and self.null != "mad" else {},
        )

    def _flags(self, evidence: Evidence) -> Flags:
        """Return the samples (N,) of the target that the rule flags."""
        found, scores = evidence.statistics, evidence.train_scores
        inside: Flags = evidence.labels == int(found["target"])
        if self.rule == "flip":
            return np.asarray(found["flips"], bool)
        if self.rule == "split":
            return inside & (scores > split(scores[inside]))
        if not len(found["reference"]):
            raise ValueError(
                f"rule: quantile compares with classes that are neither the target "
                f"{int(found['target'])} nor the source {int(found['source'])}, and the training "
                f"set has none; take rule: split or rule: flip"
            )
        cut = float(np.quantile(found["reference"], self.quantile))
        return inside & (scores > cut)
