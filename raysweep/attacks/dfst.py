"""DFST: a generator gives images the style of another domain; the style is the trigger.

S. Cheng, Y. Liu, S. Ma, X. Zhang: Deep Feature Space Trojan Attack of Neural Networks by Controlled
Detoxification, AAAI 2021, arXiv:2012.11212: a CycleGAN (J.-Y. Zhu et al., ICCV 2017,
arXiv:1703.10593) between the training images and photographs of sunrises, then poisoning, then
rounds of detoxification that retrain the victim.

Where we differ: the poisoning form, as in the comparison of Anti-Backdoor Learning: the victim is
trained plainly on the poisoned set; the detoxification is left out, since it controls the training.
The other domain is drawn here: training images in the colors of a sunrise. The two generators and
two critics are small and step together, each against the others' current weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.attacks._generators import image_to_image, kept, restored
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays, Context

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.training import Batch

# Dark purple, red, orange, pale yellow: the palette from shadow to light.
PALETTE = ((0.10, 0.02, 0.22), (0.62, 0.12, 0.25), (0.98, 0.50, 0.15), (1.00, 0.92, 0.62))


class DFST(Attack):
    """The image in the generator's style."""

    BADGES: ClassVar[tuple[str, ...]] = ("simplified: no detoxification",)
    PREPARES: ClassVar[bool] = True
    TOY: ClassVar = {"epochs": 1, "width": 4}

    epochs: int = Field(10, ge=1, le=10_000, description="epochs of the CycleGAN")
    width: int = Field(16, ge=4, le=256, description="channels of the networks' first layer")
    cycle: float = Field(10.0, ge=0, description="weight of the cycle consistency")
    same: float = Field(5.0, ge=0, description="weight of the identity loss")

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the weights of the generator."""
        from torch import nn

        from raysweep import training

        channels = inputs.shape.channels
        with training.global_seed(ctx.stream("initialization")):
            networks = nn.ModuleDict(
                {
                    "there": image_to_image(channels, channels, self.width),
                    "back": image_to_image(channels, channels, self.width),
                    "critic_there": _critic(channels, self.width),
                    "critic_back": _critic(channels, self.width),
                }
            ).to(ctx.device)
        recipe = inputs.recipe.model_copy(
            update={
                "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "momentum": 0.5,
                "schedule": "constant", "augment": (), "epochs": self.epochs,
            }
        )  # fmt: skip
        streams = {name: training.Stream(data=inputs.data) for name in ("data", "other")}
        objective = training.resumable(partial(self._loss))
        training.fit(networks, streams, recipe, ctx, objective=objective, phase="cyclegan")
        return kept(networks["there"], "generator")

    def _loss(self, networks: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return the losses of generators and critics; each moves its own weights only."""
        real = batches["data"].images
        styled = sunrise(batches["other"].images)
        total = real.new_zeros(())
        for first, second, source, wanted in (
            ("there", "back", real, styled),
            ("back", "there", styled, real),
        ):
            go, come = networks.get_submodule(first), networks.get_submodule(second)
            critic = networks.get_submodule(f"critic_{first}")
            made = _made(go, source)
            fooled = (_frozen(critic, made) - 1).square().mean()
            cycle = (_made(come, made) - source).abs().mean()
            same = (_made(go, wanted) - wanted).abs().mean()
            told = (critic(wanted) - 1).square().mean() + critic(made.detach()).square().mean()
            total = total + fooled + self.cycle * cycle + self.same * same + 0.5 * told
        return total

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Give images the style."""
        import torch

        del ids, part, seed
        channels = images_BCHW.shape[1]
        generator = restored(
            image_to_image(channels, channels, self.width), "generator", artifact, images_BCHW
        )
        with torch.no_grad():
            return _made(generator, images_BCHW)


def sunrise(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return images in the palette of a sunrise by their brightness, lighter towards the horizon.

    Grey images keep one channel, the palette's brightness.
    """
    import torch

    channels, height = images_BCHW.shape[1:3]
    brightness = images_BCHW.mean(1, keepdim=True)
    horizon = 1 - torch.linspace(-1, 1, height).to(images_BCHW).abs().view(1, 1, -1, 1)
    level = (0.75 * brightness + 0.25 * horizon) * (len(PALETTE) - 1)
    low = level.floor().clamp(max=len(PALETTE) - 2)
    palette = torch.tensor(PALETTE).to(images_BCHW)
    at, part = low.long().squeeze(1), (level - low)
    below, above = (palette[i].permute(0, 3, 1, 2) for i in (at, at + 1))
    colored = below + part * (above - below)
    return colored if channels == 3 else colored.mean(1, keepdim=True).expand_as(images_BCHW)


def _made(generator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = generator(images).float().sigmoid()
    return made


def _frozen(critic: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the critic's outputs; their gradient goes to the images, not to its weights."""
    import torch

    weights = {name: value.detach() for name, value in critic.named_parameters()}
    said: torch.Tensor = torch.func.functional_call(critic, weights, (images,))
    return said.float()


def _critic(channels: int, width: int) -> nn.Module:
    """Return a critic of patches, without batch statistics."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 3, padding=1),
    )  # fmt: skip
