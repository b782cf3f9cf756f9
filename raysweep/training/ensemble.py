"""Many small models of one architecture, trained as one, each on samples of its own.

Datamodels and mutation tests need them (A. Ilyas, S. M. Park, L. Engstrom, G. Leclerc,
A. Madry: Datamodels, ICML 2022, arXiv:2202.00622). All members see the same batches in the same
order; a member's loss is the mean over the samples of a batch that its mask lets in. SGD and Adam
work elementwise, so that over stacked parameters they are the optimizers of all members.

E: members, N: samples, B: samples of a batch, K: classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from raysweep import training
from raysweep.datasets import ImageSet, Shape, as_floats
from raysweep.errors import NonFiniteLoss, StageError
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.training.graph import graphs
from raysweep.training.room import members_at_once
from raysweep.training.streams import Batch

# On a CPU of two cores, vmap was 2 to 4 times slower than one member after another at E = 2, 8, 32
# (benchmarks/training.py) where there are convolutions; on a GPU a small network alone leaves most
# of the device idle, and so do matrix products of a few rows on a CPU.
Way = Literal["auto", "vmap", "one by one"]
State = dict[str, torch.Tensor]
_MATRIX_PRODUCTS = {torch.conv1d, torch.conv2d, torch.conv3d, F.linear, torch.matmul}
_GROUP_NORMS = {F.group_norm, torch.group_norm}


class _LikeAutocast(TorchFunctionMode):
    """A cast of all that autocast casts, since autocast does not reach convolutions inside `vmap`.

    With no `dtype` nothing is cast.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func in _GROUP_NORMS
        ):  # torch before 2.12 asks for channels last, which fails inside vmap
            args = (args[0].contiguous(), *args[1:])
        if self.dtype is not None and func in _MATRIX_PRODUCTS:
            args = tuple(a.to(self.dtype) if isinstance(a, torch.Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


class _Many(nn.Module):
    """E networks as one: images (B, ...) → logits (B, E, K)."""

    def __init__(self, base: nn.Module, parameters: State, buffers: State) -> None:
        super().__init__()
        self.base = base
        self.stacked = (parameters, buffers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        device = images.device.type
        lower = torch.is_autocast_enabled(device)
        cast = _LikeAutocast(torch.get_autocast_dtype(device) if lower else None)

        def member(parameters: State, buffers: State) -> torch.Tensor:
            with cast:
                logits: torch.Tensor = functional_call(self.base, (parameters, buffers), (images,))
            return logits

        # Dropout, where a model has it, blanks the same units in every member, as in plain fits.
        out: torch.Tensor = vmap(member, out_dims=1, randomness="same")(*self.stacked)
        return out


def fit_many(
    model: Model,
    data: ImageSet,
    masks_EN: NDArray[np.bool_],
    recipe: Recipe,
    ctx: Context,
    shape: Shape,
    *,
    way: Way = "auto",
) -> State:
    """Train E members; both ways give the same up to the rounding of sums, and dropout's draws.

    Args:
        model: without batch normalization, through which samples outside a mask would leak in.
        data: N samples.
        masks_EN: (E, N) mask of the samples that each member is trained on.
        recipe: with its precision resolved.
        ctx: gives random streams, device and progress; member e's initialization is drawn from the
            stream ("initialization", "member", e).
        shape: of the data.
        way: `vmap` trains all at once, `one by one` in a loop; `auto`: by device and network.

    Returns:
        The state dict, every tensor with E in front, on the CPU.

    Raises:
        StageError: if the model has batch normalization, or the masks are not (E, N) booleans.
        NonFiniteLoss: names member and step of the first loss that is NaN or infinite.
    """
    masks = np.asarray(masks_EN)
    if masks.ndim != 2 or masks.dtype != bool or masks.shape[1] != len(data) or not len(masks):
        raise StageError(
            f"masks must be (members, {len(data)}) booleans, a column for each sample, "
            f"got {masks.shape} {masks.dtype}"
        )
    networks = [training.build(model, shape, ctx, "member", e) for e in range(len(masks))]
    _refuse_batch_norm(model, networks[0])
    chosen_NE = torch.from_numpy(masks.T.copy()).to(ctx.device)
    if _chosen(way, ctx.device, networks[0]) == "one by one":
        for e, network in enumerate(networks):
            alone = dataclasses.replace(ctx, progress=_share(ctx, e, len(masks)))
            try:
                objective = _Alone(chosen_NE[:, e].contiguous(), recipe, ctx.device)
                training.fit(network, data, recipe, alone, objective=objective)
            except NonFiniteLoss as error:
                raise NonFiniteLoss(f"member {e}: {error}") from None
        states = [network.state_dict() for network in networks]
        return {n: torch.stack([state[n].cpu() for state in states]) for n in states[0]}
    image = as_floats(data.images[:1].to(ctx.device))
    together = members_at_once(networks[0], image, recipe, ctx.device, len(masks))
    blocks = []
    for at in range(0, len(masks), together):
        cut = slice(at, at + together)
        try:
            blocks.append(_fit_together(networks[cut], data, chosen_NE[:, cut], recipe, ctx))
        except _MemberError as error:
            raise NonFiniteLoss(f"member {at + error.member}: {error}") from None
    return {n: torch.cat([block[n] for block in blocks]) for n in blocks[0]}


class _MemberError(NonFiniteLoss):
    """The loss of a member, counted within its block, is not finite."""

    def __init__(self, member: int, text: str) -> None:
        super().__init__(text)
        self.member = member


def _fit_together(
    networks: list[nn.Module],
    data: ImageSet,
    chosen_NE: torch.Tensor,
    recipe: Recipe,
    ctx: Context,
) -> State:
    """Train members as one network; all blocks of members see the same batches."""
    parameters, buffers = stack_module_state(networks)
    many = _Many(copy.deepcopy(networks[0]), parameters, buffers)
    optimizer = training.make_optimizer(parameters.values(), recipe)
    weighted = _Weighted(chosen_NE.contiguous(), recipe)
    try:
        training.fit(many, data, recipe, ctx, objective=weighted, optimizer=optimizer)
    except NonFiniteLoss as error:
        raise _MemberError(weighted.first_non_finite(), str(error)) from None
    return {n: t.detach().cpu().contiguous() for n, t in {**parameters, **buffers}.items()}


def predict_many(
    model: Model,
    state: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    recipe: Recipe,
    ctx: Context,
    shape: Shape,
    *,
    way: Way = "auto",
    batch_size: int = 500,
) -> torch.Tensor:
    """Return logits (E, N, K) float32 on the CPU of the members that `fit_many` gave.

    Args:
        model: the architecture of the members.
        state: tensors with E in front.
        images: (N, C, H, W) uint8, or floats in [0, 1].
        recipe: gives the precision.
        ctx: gives the device.
        shape: of the images.
        way: as in `fit_many`.
        batch_size: images at once.
    """
    network = training.build(model, shape, ctx, "unused")
    if _chosen(way, ctx.device, network) == "one by one":
        logits = []
        for e in range(len(next(iter(state.values())))):
            network.load_state_dict({n: t[e] for n, t in state.items()})
            logits.append(
                training.predict(network, images, recipe, ctx.device, batch_size=batch_size)
            )
        return torch.stack(logits)
    names = dict(network.named_parameters())
    there = {n: t.to(ctx.device) for n, t in state.items()}
    many = _Many(
        network,
        {n: t for n, t in there.items() if n in names},
        {n: t for n, t in there.items() if n not in names},
    )
    logits_NEK = training.predict(many, images, recipe, ctx.device, batch_size=batch_size)
    return logits_NEK.transpose(0, 1).contiguous()


class _Alone:
    """One member's loss: the cross-entropy of its samples, or 0 where it has none.

    Only these samples go through the network, in which samples do not influence one another. If the
    step can be captured, all samples go: one member does not fill a GPU, and a graph needs batches
    of one size.
    """

    capturable = True

    def __init__(self, chosen_N: torch.Tensor, recipe: Recipe, device: str) -> None:
        self.chosen_N = chosen_N
        self.smoothing = recipe.label_smoothing
        self.all = graphs(device)

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        (batch,) = batches.values()
        mine = self.chosen_N[batch.rows]
        if self.all:
            return _mean_losses(model(batch.images), batch.labels, mine[:, None], self.smoothing)[0]
        own = mine.nonzero().flatten()
        if not len(own):
            # Weight decay and momentum still act, as on the members of `_Weighted`.
            nothing: torch.Tensor = 0 * model(batch.images[:1]).float().sum()
            return nothing
        logits, labels = model(batch.images[own]).float(), batch.labels[own]
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


class _Weighted:
    """The sum of the members' losses, each the mean over its samples, or 0 where it has none."""

    capturable = True

    def __init__(self, chosen_NE: torch.Tensor, recipe: Recipe) -> None:
        self.chosen_NE = chosen_NE
        self.smoothing = recipe.label_smoothing
        self.steps = torch.zeros(1, dtype=torch.int64, device=chosen_NE.device)
        # Of each member, the steps before the first whose loss is not finite.
        self.finite = self.steps.repeat(chosen_NE.shape[1])
        self.memory = (self.steps, self.finite)

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        (batch,) = batches.values()
        chosen_BE = self.chosen_NE[batch.rows]
        losses_E = _mean_losses(model(batch.images), batch.labels, chosen_BE, self.smoothing)
        self.steps += 1
        going = (self.finite == self.steps - 1) & torch.isfinite(losses_E)
        self.finite += going.long()
        return losses_E.sum()

    def first_non_finite(self) -> int:
        """Return the first member in the first step that has one whose loss is not finite."""
        return int(self.finite.argmin())


def _mean_losses(
    logits: torch.Tensor, labels: torch.Tensor, chosen_BE: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy of each member over its samples, (E,); 0 where it has none.

    Args:
        logits: (B, E, K), or (B, K) of one member.
        labels: (B,).
        chosen_BE: (B, E) mask of the samples of each member.
        smoothing: label smoothing.
    """
    b, e = chosen_BE.shape
    repeated = labels[:, None].expand(b, e).reshape(-1)
    ce = F.cross_entropy(
        logits.float().reshape(b * e, -1), repeated, reduction="none", label_smoothing=smoothing
    )
    # Not a product: a member must not become NaN by a sample that it does not train on.
    kept_BE = torch.where(chosen_BE, ce.view(b, e), 0)
    return kept_BE.sum(0) / chosen_BE.sum(0).clamp(min=1)


def _refuse_batch_norm(model: Model, network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            raise StageError(
                f"model {model.label}: layer {name} is batch normalization, through whose "
                f"statistics samples outside a member's mask would leak in; use a model with "
                f"group normalization, such as tiny_groupnorm"
            )


def _chosen(way: Way, device: str, network: nn.Module) -> Way:
    if way != "auto":
        return way
    convolves = any(isinstance(layer, nn.Conv2d) for layer in network.modules())
    return "one by one" if device == "cpu" and convolves else "vmap"


def _share(ctx: Context, e: int, members: int) -> Callable[[float, str], None]:
    def progress(fraction: float, text: str) -> None:
        ctx.progress((e + fraction) / members, f"member {e + 1} of {members}: {text}")

    return progress
