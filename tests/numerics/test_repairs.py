"""Repairs: that they keep the clean task, and that they did what they are there for."""

from __future__ import annotations

import torch
from torch import nn

from raysweep.context import Context
from raysweep.defenses.fine_pruning import FinePruning
from tests import toy


def test_pruned_channels_are_zero_in_every_step_of_the_fine_tuning() -> None:
    case, method = toy.toy(), FinePruning(epochs=4, batch_size=16)
    victim, seen = toy.network(case.weights), []

    def watch(layer: nn.Module, given: object) -> None:
        if layer.training:
            seen.append(layer.weight.detach().clone())  # type: ignore[operator]

    victim.get_submodule(toy.MODEL.HEAD).register_forward_pre_hook(watch)
    found = method.run(toy.inputs(method, case, victim=victim), Context(seed=5))
    pruned = torch.from_numpy(found.statistics["pruned"])
    assert found.model is not None and len(pruned) > 0
    assert (case.weights["head.weight"][:, pruned] != 0).any()
    # The first step sees what pruning left; several steps an epoch, so that one may regrow.
    steps = [*seen, found.model["head.weight"]]
    assert len(seen) > 4 and not torch.equal(steps[0], steps[-1])
    assert all((weight[:, pruned] == 0).all() for weight in steps)
    assert toy.accuracy(found.model, case) > 0.85
