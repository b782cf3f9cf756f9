"""The floating-point operations of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    """Counts operations by torch's formulas.

    torch's own counter has guards against being compiled, which import the compiler: two seconds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **given, out_val=out)
        return out


def forward_operations(network: nn.Module, images_BCHW: torch.Tensor) -> int:
    """Return the number of floating-point operations of a forward pass over some images.

    Attention is taken in its plain form, as in training: there are no formulas for fused ones.
    """
    counter = _Counter()
    with sdpa_kernel(SDPBackend.MATH), counter:
        network(images_BCHW)
    return counter.total
