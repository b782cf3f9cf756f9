"""Feature watermark: goodware gets chosen values of chosen features, and keeps its label.

G. Severi, J. Meyer, S. Coull, A. Oprea: Explanation-Guided Backdoor Poisoning Attacks Against
Malware Classifiers, USENIX Security 2021, arXiv:2003.01031: LargeAbsSHAP and
MinPopulation (constrained attacker), greedy combined selection (unconstrained attacker).

Where we differ: attributions are expected gradients of the attacker's own network on `samples` rows
(the paper: SHAP values of a surrogate), and values are taken from these rows. The constrained
attacker of the paper may change 17 features without breaking a program; which ones depends on the
feature extractor, so that `feasible` must name their numbers. 1 % poison, of the whole set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.datasets import Domain, IntArray
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float64]


class EmberWatermark(Attack):
    """Clean-label: triggered malware is to be accepted as class `target`, goodware."""

    CLEAN_LABEL: ClassVar[bool] = True
    PREPARES: ClassVar[bool] = True
    SURROGATE: ClassVar[bool] = True
    DOMAINS: ClassVar[tuple[Domain, ...]] = ("features",)

    rate: float = Field(0.01, ge=0, le=1, description="poisoned programs / training programs")
    attacker: Literal["unconstrained", "constrained"] = Field(
        "unconstrained", description="who chooses which features, and how"
    )
    features: int = Field(32, ge=1, description="features of the watermark; the paper: 32, 17")
    feasible: tuple[int, ...] | None = Field(
        None, description="features that the constrained attacker may change"
    )
    samples: int = Field(2000, ge=10, description="training rows that are explained")
    draws: int = Field(16, ge=1, description="backgrounds per row of the attribution")

    @model_validator(mode="after")
    def _knows_what_it_may_change(self) -> Self:
        if self.attacker == "constrained" and not self.feasible:
            raise ValueError(
                "feasible must name the features that may change, got none; give their numbers, or "
                "take attacker: unconstrained"
            )
        return self

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the watermark: numbers of features and the value of each."""
        rows = ctx.generator("rows").permutation(len(inputs.data))[: self.samples]
        table = inputs.data.take(np.sort(rows)).images.flatten(1)
        shap = self._attributions(inputs, table, ctx)
        values = table.double().numpy()
        choose = combined if self.attacker == "unconstrained" else rare_values
        allowed = np.array(self.feasible or range(values.shape[1]))
        numbers, chosen = choose(shap, values, allowed, min(self.features, len(allowed)))
        return {"features": numbers, "values": chosen.astype(np.float32)}

    def _attributions(self, inputs: AttackInputs, table: torch.Tensor, ctx: Context) -> FloatArray:
        """Return expected gradients towards not being `target`, (N, F)."""
        import torch

        network, draw = inputs.trained, ctx.torch_generator("backgrounds")
        rows = table.to(ctx.device)
        total = torch.zeros_like(rows)
        for _ in range(self.draws):
            order = torch.randperm(len(rows), generator=draw, device=rows.device)
            share = torch.rand(len(rows), 1, generator=draw, device=rows.device)
            gap = rows - rows[order]
            between = (rows[order] + share * gap).requires_grad_()
            logits = network(between[:, :, None, None])
            margin = logits.logsumexp(1) - logits[:, self.target]
            (gradient,) = torch.autograd.grad(margin.sum(), between)
            total += gap * gradient
        result: FloatArray = (total / self.draws).double().cpu().numpy()
        return result

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Overwrite the watermark's features."""
        import torch

        del ids, part, seed
        stamped = images_BCHW.clone()
        values = torch.from_numpy(np.array(artifact["values"])).to(stamped)
        stamped[:, np.array(artifact["features"])] = values[:, None, None]
        return stamped


def rare_values(
    shap: FloatArray, values: FloatArray, allowed: IntArray, count: int
) -> tuple[IntArray, NDArray[Any]]:
    """Return the features of largest total attribution, each at its rarest value."""
    order = np.argsort(-np.abs(shap[:, allowed]).sum(0), kind="stable")
    numbers = allowed[order[:count]]
    chosen = []
    for number in numbers:
        found, counts = np.unique(values[:, number], return_counts=True)
        chosen.append(found[counts.argmin()])
    return numbers, np.array(chosen)


def combined(
    shap: FloatArray, values: FloatArray, allowed: IntArray, count: int
) -> tuple[IntArray, NDArray[Any]]:
    """Return features that speak most for goodware, at common values that go together.

    After each choice only rows that hold the chosen value are looked at (the paper's greedy rule),
    as long as there are any.
    """
    left, open_features = np.arange(len(values)), list(allowed.tolist())
    numbers, chosen = [], []
    for _ in range(count):
        number = open_features[int(shap[np.ix_(left, open_features)].sum(0).argmin())]
        found, inverse, counts = np.unique(
            values[left, number], return_inverse=True, return_counts=True
        )
        weight = np.bincount(inverse, np.abs(shap[left, number]))
        best = int((1 / counts + weight).argmin())
        left = left[inverse == best]
        open_features.remove(number)
        numbers.append(number)
        chosen.append(found[best])
    return np.array(numbers), np.array(chosen)
