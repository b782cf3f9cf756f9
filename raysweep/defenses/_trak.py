"""TRAK: attribution by projected gradients, from a few models instead of thousands.

S. M. Park, K. Georgiev, A. Ilyas, G. Leclerc, A. Madry: TRAK: Attributing Model Behavior at Scale,
ICML 2023, arXiv:2303.14186: phi = P^T grad ln(p / (1 - p)), P a random projection;
tau(z)_i = mean_m phi_m(z)^T (Phi_m^T Phi_m)^-1 phi_m(x_i), times mean_m (1 - p_i).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysweep.datasets import ImageSet, as_floats

if TYPE_CHECKING:
    import torch
    from torch import nn

CHUNK = 64


def projected_gradients(
    network: nn.Module, data: ImageSet, dimensions: int, generator: torch.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return phi (n, dimensions) and 1 - p (n,) of each sample and its given label.

    The projection has independent signs; one `generator` state gives one projection.
    """
    import torch
    from torch.func import functional_call, grad, vmap

    weights = {name: p.detach() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())
    device = next(iter(weights.values())).device
    signs = {
        name: torch.randint(0, 2, (p.numel(), dimensions), generator=generator, device=device)
        .mul(2)
        .sub(1)
        .to(torch.int8)
        for name, p in weights.items()
    }

    def output(
        parameters: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = functional_call(network, (parameters, buffers), (image[None],))[0].float()
        log_p = logits.log_softmax(0)
        own = log_p.gather(0, label[None])[0]
        others = torch.where(torch.arange(len(logits), device=device) == label, -torch.inf, log_p)
        return own - others.logsumexp(0), own

    per_sample = vmap(grad(output, has_aux=True), in_dims=(None, 0, 0))
    found, left = [], []
    labels = torch.from_numpy(data.labels).to(device)
    for start in range(0, len(data), CHUNK):
        images = as_floats(data.images[start : start + CHUNK].to(device))
        gradients, log_p = per_sample(weights, images, labels[start : start + CHUNK])
        flat = sum(
            gradient.flatten(1) @ signs[name].float() for name, gradient in gradients.items()
        )
        found.append((flat / np.sqrt(dimensions)).cpu())
        left.append(-torch.expm1(log_p).cpu())
    return torch.cat(found).numpy(), torch.cat(left).numpy()


def attribution(
    phi_MND: NDArray[np.floating], left_MN: NDArray[np.floating], masks_MN: NDArray[np.bool_],
    *, weighted: bool, penalty: float,
) -> NDArray[np.float32]:  # fmt: skip
    """Return W (n, n): how much each sample (column) supports the output on each (row).

    Args:
        phi_MND: projected gradients of m models.
        left_MN: 1 - p of each sample.
        masks_MN: (m, n) mask of the samples that each model was trained on.
        weighted: whether columns are multiplied with the mean of 1 - p, which is nearly zero for
            samples that are fitted confidently, as poison is.
        penalty: ridge of the inverted products, in units of their mean eigenvalue.
    """
    models, samples, dimensions = phi_MND.shape
    total = np.zeros((samples, samples), np.float64)
    for phi, mask in zip(phi_MND.astype(np.float64), masks_MN, strict=True):
        trained = phi[mask]
        gram = trained.T @ trained
        ridge = penalty * np.trace(gram) / dimensions
        total += phi @ np.linalg.solve(gram + ridge * np.eye(dimensions), phi.T)
    total /= models
    if weighted:
        total *= left_MN.mean(0, dtype=np.float64)
    weights: NDArray[np.float32] = total.astype(np.float32)
    np.fill_diagonal(weights, 0)
    return weights
