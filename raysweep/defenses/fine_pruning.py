"""Fine-pruning: channels that clean inputs leave asleep are removed, then the rest is fine-tuned.

K. Liu, B. Dolan-Gavitt, S. Garg: Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks, RAID 2018, arXiv:1805.12185: prune the last convolutional layer's channels in the order of
their mean activation on clean data until accuracy falls, then fine-tune.

Where we differ: accuracy is watched on one half of the reserved clean set, the other half orders
channels and fine-tunes, where released code watches the test set; the step that cost too much is
undone. Every step is checked and the first that fails ends the pruning; Confusion Training's code
removes int(512 * ratio) - 100 of 512 channels unchecked, then at most 100 singly, and does not
fine-tune. A channel is pruned by a mask on the features that the head is given, which in the
networks here are the channels of the last convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.counts import count_of
from raysweep.defenses import Defense, DefenseInputs, Findings, Gift, Need
from raysweep.defenses._scored import halves
from raysweep.methods import searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch
    from torch import nn


class FinePruning(Defense):
    """Gives the pruned and fine-tuned victim."""

    VERSION = 3
    TOY: ClassVar = {"learning_rate": 0.05, "epochs": 3}

    accuracy_drop: float = searched(
        0.1, {"min": 0.01, "max": 0.3}, ge=0, lt=1, description="accuracy that pruning may cost"
    )
    most: float = Field(0.99, gt=0, lt=1, description="share of channels that may be pruned")
    epochs: int = Field(10, ge=0, le=1000, description="of the fine-tuning")
    learning_rate: float = Field(0.01, gt=0, le=10, description="peak, of the fine-tuning")
    batch_size: int = Field(64, ge=1, le=4096, description="images per step")

    def needs(self) -> frozenset[Need]:
        """Return victim and clean set."""
        return frozenset({"victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return a model."""
        return frozenset({"model"})

    def least_clean(self) -> int:
        """Return 4: half of the images are to fit, half to calibrate."""
        return 4

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Prune, then fine-tune with the pruned channels held at zero."""
        import torch

        from raysweep import training

        clean = inputs.clean_set
        ordering, watching = halves(self.name, clean, ctx, least=self.least_clean())
        network, head = inputs.victim, inputs.model.HEAD
        used, watched = clean.take(ordering), clean.take(watching)
        values, _ = training.features(network, used.images, head, head, inputs.recipe, ctx.device)
        order = values.abs().mean(0).argsort(stable=True)
        seen, logits = training.features(
            network, watched.images, head, head, inputs.recipe, ctx.device
        )
        layer = network.get_submodule(head)
        weight, bias = (p.detach().float().cpu() for p in layer.parameters())
        labels = torch.from_numpy(watched.labels)
        floor = float((logits.argmax(1) == labels).float().mean()) - self.accuracy_drop
        count = pruned_count(seen, weight, bias, labels, order, floor, self.most)
        mask = torch.ones(len(order), device=ctx.device)
        mask[order[:count]] = 0
        silence(layer, mask)
        if self.epochs:
            recipe = inputs.recipe.model_copy(
                update={
                    "epochs": self.epochs, "learning_rate": self.learning_rate,
                    "batch_size": self.batch_size, "optimizer": "sgd", "schedule": "one_cycle",
                }
            )  # fmt: skip
            # Without gradients a weight of zero has neither momentum nor decay.
            weights: torch.Tensor = layer.weight  # type: ignore[assignment]
            held = weights.register_hook(lambda gradient: gradient * mask)
            training.fit(network, used, recipe, ctx)
            held.remove()
        pruned = np.flatnonzero(mask.cpu().numpy() == 0)
        return Findings(model=network.state_dict(), statistics={"pruned": pruned})


def pruned_count(
    features_ND: torch.Tensor, weight_KD: torch.Tensor, bias_K: torch.Tensor,
    labels: torch.Tensor, order: torch.Tensor, floor: float, most: float,
) -> int:  # fmt: skip
    """Return the number of channels, in `order`, that can go before accuracy is below `floor`."""
    logits = features_ND.float() @ weight_KD.T + bias_K
    count = 0
    for channel in order[: count_of(most, len(order))].tolist():
        logits = logits - features_ND[:, channel : channel + 1].float() * weight_KD[:, channel]
        if float((logits.argmax(1) == labels).float().mean()) < floor:
            break
        count += 1
    return count


def silence(layer: nn.Module, mask_D: torch.Tensor) -> None:
    """Set the weights of masked channels of a dense layer to zero."""
    import torch

    with torch.no_grad():
        layer.weight.mul_(mask_D)  # type: ignore[operator]
