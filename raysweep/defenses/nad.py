"""NAD: the victim learns to attend as its own fine-tuned copy does, layer by layer.

Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma: Neural Attention Distillation: Erasing Backdoor
Triggers from Deep Neural Networks, ICLR 2021, arXiv:2101.05930: fine-tune the victim on clean data
for a teacher; train the victim on them with cross-entropy and the distance of normalized attention
maps, the sum over channels of |F|^p, to the teacher's.

Where we differ: clean data are the reserved clean set, where the paper takes 5 % of the clean
training set; layers are the last three with feature maps that the model names, all of one weight
(1,000; released: 500 on the first); rates follow one cycle for teacher and student, not steps of a
tenth; the last epoch is taken, since the released code's choice of the best looks at test data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.defenses import Defense, DefenseInputs, Findings, Gift, Need
from raysweep.defenses._layers import map_layers
from raysweep.methods import log_range, searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.training import Batch


class NAD(Defense):
    """Gives the distilled victim."""

    TOY: ClassVar = {"epochs": 3}

    teacher_epochs: int = Field(10, ge=1, le=1000, description="of the teacher's fine-tuning")
    epochs: int = Field(20, ge=1, le=1000, description="of the distillation")
    learning_rate: float = searched(
        0.05, log_range(0.001, 0.2), gt=0, le=10, description="peak, of both"
    )
    batch_size: int = Field(64, ge=1, le=4096, description="images per step")
    beta: float = searched(
        1000.0, log_range(10.0, 1e4), ge=0, description="weight of each layer's attention loss"
    )
    power: float = Field(2.0, gt=0, le=10, description="p")

    def needs(self) -> frozenset[Need]:
        """Return victim and clean set."""
        return frozenset({"victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return a model."""
        return frozenset({"model"})

    def least_clean(self) -> int:
        """Return 2: one image alone is no batch that normalization works with."""
        return 2

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Fine-tune the teacher, then distil."""
        import copy

        from raysweep import training

        if len(inputs.clean_set) < self.least_clean():
            raise ValueError(
                f"NAD needs at least 2 reserved clean images, got {len(inputs.clean_set)}; raise "
                f"clean_size of the dataset"
            )
        recipe = inputs.recipe.model_copy(
            update={
                "learning_rate": self.learning_rate, "batch_size": self.batch_size,
                "optimizer": "sgd", "schedule": "one_cycle",
            }
        )  # fmt: skip
        student, layers = inputs.victim, map_layers(inputs, ctx)[-3:]
        teacher = copy.deepcopy(student)
        tuning = recipe.model_copy(update={"epochs": self.teacher_epochs})
        training.fit(teacher, inputs.clean_set, tuning, ctx, phase="teacher")
        teacher.requires_grad_(False)
        objective = Attention(teacher, layers, self.beta, self.power)
        training.fit(
            student, inputs.clean_set, recipe.model_copy(update={"epochs": self.epochs}), ctx,
            objective=objective, phase="distil",
        )  # fmt: skip
        return Findings(model=student.state_dict())


class Attention:
    """Cross-entropy, and beta times the distance of attention maps, summed over layers."""

    capturable = True

    def __init__(self, teacher: nn.Module, layers: list[str], beta: float, power: float) -> None:
        self.teacher, self.layers, self.beta, self.power = teacher, layers, beta, power

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return the loss of the only stream."""
        import torch
        import torch.nn.functional as F

        (batch,) = batches.values()
        logits, mine = _with_maps(model, self.layers, batch.images)
        with torch.no_grad():
            _, theirs = _with_maps(self.teacher, self.layers, batch.images)
        loss = F.cross_entropy(logits.float(), batch.labels)
        for own, wanted in zip(mine, theirs, strict=True):
            one, other = (attention(maps, self.power) for maps in (own, wanted))
            loss = loss + self.beta * (one - other).square().mean()
        return loss


def attention(maps_BCHW: torch.Tensor, power: float) -> torch.Tensor:
    """Return normalized attention maps (B, H * W): the mean of |F|^p over channels, of norm 1."""
    import torch.nn.functional as F

    return F.normalize(maps_BCHW.float().abs().pow(power).mean(1).flatten(1), dim=1)


def _with_maps(
    network: nn.Module, layers: list[str], images: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for name in layers:

        def keep(module: object, given: object, out: torch.Tensor, name: str = name) -> None:
            seen[name] = out

        handles.append(network.get_submodule(name).register_forward_hook(keep))
    try:
        logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [seen[name] for name in layers]
