"""Carlini-Wagner: the smallest L2 change of a test image that the victim gives the wanted class.

N. Carlini, D. Wagner: Towards Evaluating the Robustness of Neural Networks, IEEE S&P 2017,
arXiv:1608.04644: x' = (tanh(w) + 1) / 2, and Adam over w minimizes |x' - x|^2 +
c max(max_{i != t} Z_i - Z_t, -kappa) for logits Z and target t; the constant c is searched. The
defaults are those of the authors' code: nine constants from 0.001 on, a learning rate of 0.01. The
adversarial examples of K. Jin et al., IEEE TDSC 2022, arXiv:2006.14871, are `constant: 10`,
`searches: 1` and `learning_rate: 0.5`, at a ninth of the cost; they are farther from their inputs.
The facts tell the norms that were reached.

Where we differ: 1,000 steps for each constant, where the authors' code takes up to 10,000 and may
abort early, a test that is over a whole batch; a change counts only if it succeeds after rounding
to 8 bits, in the precision of the victim's own predictions, since that is what the victim is shown;
the last search step does not repeat the largest constant. An image without a success stays as it
is, and is still counted, where the framework left it out. Images go to one class, or each to the
next; the framework sent 500 images to every wrong class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.attacks._evasion import Evasion
from raysweep.datasets import IntArray
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

INSIDE = 0.999999  # tanh reaches neither 0 nor 1


class CarliniWagner(Evasion):
    """Targeted adversarial examples of least L2 norm."""

    VERSION = 2
    TOY: ClassVar = {"steps": 2, "constant": 10.0, "searches": 2}

    kappa: float = Field(0.0, ge=0, le=1000, description="margin of the wanted logit")
    steps: int = Field(1000, ge=1, le=100_000, description="steps of Adam for each constant")
    learning_rate: float = Field(0.01, gt=0, le=10, description="of Adam, in units of w")
    constant: float = Field(1e-3, gt=0, le=1e9, description="first c, the weight of the class term")
    searches: int = Field(
        9, ge=1, le=50, description="constants tried: tenfold until a success, then bisection"
    )

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
        """Return the nearest successes, and images without any as they are; all of 8 bits."""
        import torch

        del ids
        found = images_BCHW.clone()
        norms = torch.full((len(found),), torch.inf, device=found.device)
        low, high = torch.zeros_like(norms), norms.clone()
        constants = torch.full_like(norms, self.constant)
        every = torch.arange(len(found), device=found.device)
        for search in range(self.searches):
            done = (search, self.searches)
            reached = torch.zeros_like(norms, dtype=torch.bool)
            for moved, margins in self._descent(network, images_BCHW, wanted, constants, ctx, done):
                shown = moved.mul(255).round().div(255)
                near = (shown - images_BCHW).square().flatten(1).sum(1)
                # A step may count for the search without being the nearest of all searches.
                hopeful = (margins > self.kappa) & ((near < norms) | ~reached)
                # A GPU checks every image sooner than the host learns which are worth it.
                rows = every if hopeful.is_cuda else hopeful.nonzero().flatten()
                if len(rows):
                    held = self._held(network, shown[rows], wanted[rows], recipe) & hopeful[rows]
                    reached[rows] |= held
                    nearer = held & (near[rows] < norms[rows])
                    norms[rows] = torch.where(nearer, near[rows], norms[rows])
                    kept = nearer.view(-1, 1, 1, 1)
                    found[rows] = torch.where(kept, shown[rows], found[rows])
            high = torch.where(reached, torch.minimum(high, constants), high)
            low = torch.where(reached, low, torch.maximum(low, constants))
            constants = torch.where(high.isfinite(), (low + high) / 2, constants * 10)
        return found

    def _descent(
        self,
        network: nn.Module,
        images_BCHW: torch.Tensor,
        wanted: torch.Tensor,
        constants: torch.Tensor,
        ctx: Context,
        done: tuple[int, int],
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the images of each step and their margins (B,), from the unchanged ones on."""
        import torch

        from raysweep.training.optimizer import Adam

        start = torch.atanh((2 * images_BCHW - 1) * INSIDE)
        origin = (start.tanh() + 1) / 2
        change = torch.zeros_like(start).requires_grad_()
        optimizer = Adam([change], lr=self.learning_rate)
        for number in range(self.steps):
            moved = ((start + change).tanh() + 1) / 2
            margins = _margins(network(moved), wanted)
            near = (moved - origin).square().flatten(1).sum(1)
            loss = (near + constants * (-margins).clamp(min=-self.kappa)).sum()
            yield moved.detach(), margins.detach()
            (change.grad,) = torch.autograd.grad(loss, change)
            optimizer.step()
            ctx.progress((done[0] + (number + 1) / self.steps) / done[1], "adversarial images")

    def _held(
        self, network: nn.Module, shown_BCHW: torch.Tensor, wanted: torch.Tensor, recipe: Recipe
    ) -> torch.Tensor:
        """Return a mask (B,) of the images that succeed in the victim's own precision."""
        import torch

        from raysweep import training

        with torch.no_grad(), training.autocast(recipe, shown_BCHW.device.type):
            logits = network(shown_BCHW)
        held: torch.Tensor = _margins(logits, wanted) > self.kappa
        return held


def _margins(logits_BK: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the margins (B,) of the wanted logits over the largest others."""
    import torch

    own = torch.zeros_like(logits_BK, dtype=torch.bool).scatter_(1, wanted[:, None], True)
    values = logits_BK.float()
    best = values.masked_fill(own, -torch.inf).amax(1)
    margins: torch.Tensor = values.gather(1, wanted[:, None]).squeeze(1) - best
    return margins
