"""The common base of attacks on test inputs alone: batches for the victim, stored examples."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.attacks import Attack, AttackInputs, Part
from raysweep.datasets import IntArray, as_floats
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = 500


class Evasion(Attack):
    """Adversarial examples against the clean model, made once and looked up by id.

    They are static: a model that a defense has repaired or trained anew meets the same examples.
    """

    PREPARES: ClassVar[bool] = True
    EVADES: ClassVar[bool] = True

    rate: float = Field(0.0, ge=0, le=1, description="always 0: no training image is changed")

    @abstractmethod
    def perturbed(
        self,
        network: nn.Module,
        images_BCHW: torch.Tensor,
        wanted: torch.Tensor,
        *,
        ids: IntArray,
        ctx: Context,
        recipe: Recipe,
    ) -> torch.Tensor:
        """Return adversarial forms of float images in [0, 1].

        Args:
            network: the victim, in eval mode, its parameters frozen.
            images_BCHW: the images, on the stage's device.
            wanted: (B,) int64, the classes that the network is to give them.
            ids: (B,) their row numbers in the test files; randomness comes from these alone, so
                that the way the set is cut into batches does not matter.
            ctx: streams, device and progress.
            recipe: how the victim is run, which tells the precision of its predictions.
        """

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the evaluation set, uint8, with every input that the ASR counts perturbed."""
        import torch

        network, test, rows = inputs.victim, inputs.test, inputs.test_rows
        assert network is not None and test is not None and rows is not None, "EVADES gives them"
        classes = inputs.shape.num_classes
        wanted = torch.from_numpy(self.relabel(test.labels, classes))
        attacked = np.flatnonzero(self.eligible(test.labels, classes))
        images = test.images.clone()

        def made(start: int) -> NDArray[np.uint8]:
            at = attacked[start : start + BATCH]
            index = torch.from_numpy(at)
            changed = self.perturbed(
                network, as_floats(test.images[index].to(ctx.device)), wanted[index].to(ctx.device),
                ids=rows[at], ctx=_share(ctx, start, len(at), len(attacked)),
                recipe=inputs.recipe,
            )  # fmt: skip
            return changed.mul(255).round().to(torch.uint8).cpu().numpy()

        with frozen(network):
            parts = ctx.mapped("images", made, range(0, len(attacked), BATCH))
        if parts:
            images[torch.from_numpy(attacked)] = torch.from_numpy(np.concatenate(parts))
        return {"test_rows": rows, "test_images": images.numpy()}

    def facts(self, inputs: AttackInputs, artifact: Arrays) -> Mapping[str, float]:
        """Return the norms of the changes, pixels counted from 0 to 1, and the share without one.

        Norms are medians over the inputs that were changed; an attack that found no example may
        have left an input as it is.
        """
        assert inputs.test is not None, "EVADES gives it"
        attacked = self.eligible(inputs.test.labels, inputs.shape.num_classes)
        before, after = inputs.test.images.numpy()[attacked], artifact["test_images"][attacked]
        change = ((after.astype(np.float32) - before) / 255).reshape(len(after), -1)
        moved = change.any(1)
        if not moved.any():
            return {"share of inputs without an adversarial change": 1.0} if len(moved) else {}
        change = change[moved]
        return {
            "median L2 norm of adversarial changes": float(
                np.median(np.linalg.norm(change, axis=1))
            ),
            "median Linf norm of adversarial changes": float(np.median(np.abs(change).max(1))),
            "share of inputs without an adversarial change": 1 - float(moved.mean()),
        }

    def triggers(self, ids: IntArray, artifact: Arrays) -> NDArray[np.bool_]:
        """Return a mask (B,) of the test inputs for which an example was made."""
        return np.isin(ids, artifact["test_rows"])

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Return the stored forms of test inputs, and training images as they are.

        Raises:
            ValueError: if a test input was not there when the examples were made.
        """
        import torch

        del seed
        if part != "test":
            return images_BCHW
        unknown = ids[~self.triggers(ids, artifact)]
        if len(unknown):
            raise ValueError(
                f"{self.name} has no form of row {unknown[0]} of the test files; it looks up ids "
                f"of the evaluation set that it was prepared on"
            )
        at = np.searchsorted(artifact["test_rows"], ids)
        return as_floats(torch.from_numpy(np.array(artifact["test_images"][at]))).to(images_BCHW)


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients of its parameters; restore both after."""
    training = network.training
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)


def _share(ctx: Context, start: int, count: int, total: int) -> Context:
    """Return the context of a batch, whose progress is a share of the whole."""

    def progress(fraction: float, text: str) -> None:
        ctx.progress((start + fraction * count) / total, text)

    return replace(ctx, progress=progress)
