"""Model mutation: a triggered input keeps its label when the dense layers are perturbed.

K. Jin, T. Zhang, C. Shen, Y. Chen, M. Fan, C. Lin, T. Liu: Can We Mitigate Backdoor Attack Using
Adversarial Detection Methods?, IEEE TDSC 2022, arXiv:2006.14871, after J. Wang et al., ICSE 2019,
arXiv:1812.05793: mutants get noise N(mean(W), (vf max(W))^2) on every weight of their dense layers;
the label change rate of an input over 100 mutants is high for adversarial inputs and low for
backdoor inputs.

Where we differ: the score is minus the rate (`sign: adversarial`: the rate), compared with a clean
quantile, or with a fixed rate `tau`. `rule: sprt` gives the sequential test's log-likelihood ratio
instead and decides by the test's own bound: high if log 19 is reached, else low, which with the
paper's constants is a fixed cut at about 16 changes of 100 whatever the clean images say. The
released code looks before it counts a change and needs 17: it calls a rate of .10, .15, .20 and .25
high in 2, 33, 81 and 98 % of cases, ours in 4, 43, 87 and 99. In a filter the quantile decides for
both rules. The dense layers that end the network mutate, in nested sequences too, but none inside
an attention block; their inputs are computed once for all mutants. Where the head is the only one,
`variance` wants tuning anew. Inputs of one rate are ordered by the mutants' mean probability of the
network's own label, so that a quantile cuts anywhere. `on: training_set` counts changes from the
given label, within its class, and is an extension. Reference: kaidi-jin/backdoor_samples_detection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from raysweep.datasets import ImageSet, IntArray, Shape
from raysweep.defenses import Decision, DefenseInputs, Evidence, Findings, FloatArray
from raysweep.defenses import _scored as scored
from raysweep.methods import decision, searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.models import Model

KEPT = 2**30  # bytes of mutated weights
BOUND = math.log((1 - 0.05) / 0.05)  # alpha = beta = 0.05


class ModelMutation(scored.Scored):
    """Scores are minus the label change rate over mutants; decisions set the nominal FPR.

    Under `rule: sprt` the sequential test decides on inputs, and with `tau` a fixed rate.
    """

    VERSION = 3
    EXTENDED: ClassVar[bool] = True
    # On the toy, mutation flips a trigger before it flips a bar.
    TOY: ClassVar = {"sign": "adversarial"}

    mutants: int = Field(100, ge=1, le=10_000, description="mutated copies of the dense layers")
    variance: float = searched(
        0.65,
        {"min": 0.1, "max": 1.5},
        ge=0,
        le=10,
        description="vf: noise in units of the largest W",
    )
    sign: Literal["backdoor", "adversarial"] = Field("backdoor", description="what low rates mean")
    rule: Literal["rate", "sprt"] = Field("rate", description="form of the score; sprt decides too")
    tau: float | None = decision(
        None, gt=0, le=1, description="a fixed cut of the rate in place of fpr; the paper's is 0.16"
    )
    kappa: float = Field(0.0124, gt=0, lt=1, description="sprt: the rate of normal inputs")
    margin: float = Field(0.1, gt=0, lt=1, description="sprt: delta / kappa")

    def least_clean(self) -> int:
        """Return 4: half of the images are to fit, half to calibrate."""
        return 4

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Mutate, and make the scorer or score the training set."""
        from raysweep import training

        clean = inputs.clean_set
        _, calibration = scored.halves(self.name, clean, ctx, least=self.least_clean())
        mutants = Mutants(
            inputs.victim, inputs.model.HEAD, self.mutants, self.variance,
            ctx.torch_generator("noise"),
        )  # fmt: skip

        def predicted(images: torch.Tensor) -> Predicted:
            with training.autocast(inputs.recipe, ctx.device):
                return mutants.predicted(images.to(ctx.device))

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            found = predicted(images)
            return self._scores(found.mutated_MB != found.own_B[None], found.certainty_B)

        if self.on == "inputs":
            return Findings(score_inputs=score, calibration=calibration)

        def against_given(data: ImageSet) -> FloatArray:
            def rates(images: torch.Tensor, ids: IntArray) -> FloatArray:
                found = predicted(images)
                return self._scores(found.mutated_MB != data.labels[ids][None], found.certainty_B)

            return scored.in_batches(rates, data.images, np.arange(len(data)), ctx)

        raw = against_given(inputs.training_set)
        held = clean.take(calibration)
        labels = inputs.training_set.labels
        return Findings(
            train_scores=scored.within_classes(raw, labels, raw, labels),
            statistics={
                "reference": scored.within_classes(against_given(held), held.labels, raw, labels)
            },
        )

    def caution(self, model: Model, shape: Shape) -> str:
        """Return a sentence on a network whose head is its only dense layer; or ""."""
        import torch
        from torch import nn

        if self.sign == "adversarial":
            return ""
        with torch.device("meta"):
            _, layers = trailing_dense(model.build(shape), model.HEAD)
        if sum(isinstance(layer, nn.Linear) for layer in layers) > 1:
            return ""
        return (
            f"the head is the only dense layer of {model.name}; there, mutation was seen to change "
            f"the labels of triggered inputs first, so that sign: backdoor ranks them the wrong way"
        )

    @model_validator(mode="after")
    def _rates_alone(self) -> ModelMutation:
        if self.tau is not None and (self.rule == "sprt" or self.on == "training_set"):
            raise ValueError(
                f"tau = {self.tau:g} cuts the change rates of inputs, but rule: sprt has a cut of "
                f"its own, and on: training_set compares rates within classes; leave tau out, or "
                f"set rule: rate and on: inputs"
            )
        return self

    def decide(self, evidence: Evidence) -> Decision:
        """Reject by the sequential test or the fixed rate if asked for, else by the quantile."""
        if self.on == "training_set" or (self.rule == "rate" and self.tau is None):
            return super().decide(evidence)
        # Between two values that a score can have: scores are stored in single precision.
        cut = BOUND * (1 - 1e-6)
        if self.tau is not None:
            cut = (math.ceil(self.tau * self.mutants - 1e-6) - 0.5) / self.mutants
        return Decision(threshold=cut if self.sign == "adversarial" else -cut)

    def _scores(self, changes_MB: np.ndarray, certainty_B: FloatArray) -> FloatArray:
        if self.rule == "sprt":
            rates = sprt(changes_MB, self.kappa, self.margin)
        else:
            # Under half of 1 / mutants: it orders inputs of one rate, and moves none past a cut.
            rates = changes_MB.mean(0) + 0.49 / self.mutants * (1 - certainty_B)
        result: FloatArray = rates if self.sign == "adversarial" else -rates
        return result


def sprt(changes_MB: np.ndarray, kappa: float, margin: float) -> FloatArray:
    """Return each input's log-likelihood ratio when the sequential test stops, (B,).

    It stops where the ratio of "changes at kappa + delta" to "at kappa - delta" leaves
    (-BOUND, BOUND), or after the last mutant.
    """
    high, low = kappa * (1 + margin), kappa * (1 - margin)
    steps = np.where(changes_MB, np.log(high / low), np.log((1 - high) / (1 - low)))
    ratios = np.cumsum(steps, 0)
    stopped = np.abs(ratios) >= BOUND
    stopped[-1] = True
    first = stopped.argmax(0)
    result: FloatArray = ratios[first, np.arange(changes_MB.shape[1])]
    return result


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predictions for a batch of B inputs.

    Attributes:
        own_B: (B,) labels of the network itself.
        mutated_MB: (M, B) labels of the mutants.
        certainty_B: (B,) mean probability, over mutants, of the network's own label.
    """

    own_B: IntArray
    mutated_MB: IntArray
    certainty_B: FloatArray


class Mutants:
    """Copies of a network's trailing dense layers with noise on their weights.

    Up to `KEPT` bytes of them are held. Larger ones are drawn again, one at a time, for each batch
    of images, and are the same each time: on a CPU a hundred of `ember_mlp` take half a minute.
    """

    def __init__(
        self, network: nn.Module, head: str, count: int, variance: float, noise: torch.Generator
    ) -> None:
        import torch
        from torch import nn

        self.network, self.count, self.variance = network, count, variance
        self.first, self.layers = trailing_dense(network, head)
        self.dense = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        size = 4 * count * sum(layer.weight.numel() for layer in self.dense)
        self._again = torch.Generator(noise.device)
        self._states: list[list[torch.Tensor]] = [[] for _ in range(count)]
        self._held: list[list[torch.Tensor]] | None = None
        if size <= KEPT:
            self._held = [[] for _ in range(count)]
        for layer in self.dense:
            for number in range(count):
                state, weights = noise.get_state(), self._mutated(layer, noise)
                if self._held is None:
                    self._states[number].append(state)
                else:
                    self._held[number].append(weights)

    def weights(self, number: int) -> list[torch.Tensor]:
        """Return the weights of a mutant's dense layers, the first layer's first."""
        if self._held is not None:
            return self._held[number]
        mutated = []
        for layer, state in zip(self.dense, self._states[number], strict=True):
            self._again.set_state(state)
            mutated.append(self._mutated(layer, self._again))
        return mutated

    def _mutated(self, layer: nn.Linear, noise: torch.Generator) -> torch.Tensor:
        import torch

        given = layer.weight.detach().float()
        mean, scale = given.mean(), self.variance * given.max().clamp(min=0)
        drawn = torch.randn(given.shape, generator=noise, device=given.device)
        # Without noise there is no mutation at all, hence no shift of the mean either.
        return given + drawn * scale + mean if self.variance else given

    def predicted(self, images_BCHW: torch.Tensor) -> Predicted:
        """Return the labels of the network and of the mutants, and how certain the mutants are."""
        import torch

        device = images_BCHW.device.type
        lower = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if lower else torch.float32
        seen: list[torch.Tensor] = []
        handle = self.layers[0].register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].to(kind))
        )
        try:
            with torch.no_grad():
                own = self.network(images_BCHW).argmax(1)
        finally:
            handle.remove()
        mutated, certainty = [], torch.zeros(len(own), device=own.device)
        with torch.no_grad():
            for number in range(self.count):
                logits = self._logits(number, seen[0])
                mutated.append(logits.argmax(1))
                certainty += logits.float().softmax(1).gather(1, own[:, None])[:, 0]
        return Predicted(
            own_B=own.cpu().numpy(),
            mutated_MB=torch.stack(mutated).cpu().numpy(),
            certainty_B=(certainty / self.count).cpu().numpy().astype(np.float64),
        )

    def _logits(self, number: int, values_BD: torch.Tensor) -> torch.Tensor:
        """Return a mutant's logits (B, K), from the inputs of its first dense layer."""
        from torch import nn
        from torch.nn import functional as F

        weights, x, kind = iter(self.weights(number)), values_BD, values_BD.dtype
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                bias = None if layer.bias is None else layer.bias.to(kind)
                x = F.linear(x, next(weights).to(kind), bias)
            else:
                x = layer(x)
        return x


def trailing_dense(network: nn.Module, head: str) -> tuple[str, list[nn.Module]]:
    """Return the first of the dense layers that end a network, and all layers from it to the head.

    Earlier dense layers count if only sequences, nested or not, hold them and the head, with
    nothing but elementwise layers between.
    """
    from torch import nn

    plain = (nn.Linear, nn.ReLU, nn.Dropout, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Identity,
             nn.BatchNorm1d, nn.LeakyReLU)  # fmt: skip
    outermost = head
    while outermost and isinstance(
        network.get_submodule(parent := outermost.rpartition(".")[0]), nn.Sequential
    ):
        outermost = parent
    found = _flattened(network.get_submodule(outermost), outermost)
    last = at = first = [name for name, _ in found].index(head)
    while at > 0 and isinstance(found[at - 1][1], plain):
        at -= 1
        if isinstance(found[at][1], nn.Linear):
            first = at
    return found[first][0], [layer for _, layer in found[first : last + 1]]


def _flattened(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return names and layers of a sequence in their order, with all layers of nested ones."""
    from torch import nn

    if not isinstance(module, nn.Sequential):
        return [(name, module)]
    prefix = f"{name}." if name else ""
    # Unlike named_children, with a layer that stands in several places.
    children = module.named_modules(remove_duplicate=False)
    return [
        pair
        for inner, layer in children
        if inner and "." not in inner
        for pair in _flattened(layer, prefix + inner)
    ]
