"""Faults that only a GPU would show, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

DEVICES = "contracts/test_devices.py::test_"
ATTACKS = DEVICES + "every_attack_equals_itself_on_the_cpu"
DEFENSES = DEVICES + "every_defense_equals_itself_on_the_cpu"

FAULTS = (
    Fault(
        "a patch drawn on the CPU by a generator of the GPU", "attacks/latent_backdoor.py",
        "generator=noise, device=ctx.device)", "generator=noise).to(ctx.device)",
        (ATTACKS + "[small-latent_backdoor]",),
    ),
    Fault(
        "a mask of channels left on the CPU", "defenses/fine_pruning.py",
        "torch.ones(len(order), device=ctx.device)", "torch.ones(len(order))",
        (DEFENSES + "[small-fine_pruning]",),
    ),
    Fault(
        "labels left on the CPU", "attacks/label_consistent.py",
        ", self.target, device=images_BCHW.device)", ", self.target)",
        (ATTACKS + "[small-label_consistent]",),
    ),
    Fault(
        "another number of steps on a GPU", "attacks/latent_backdoor.py",
        "for step in range(self.steps):",
        'for step in range(self.steps + (ctx.device == "cuda")):',
        (ATTACKS + "[small-latent_backdoor]",),
    ),
    Fault(
        "a number read in every step", "attacks/label_consistent.py",
        "(images_BCHW + delta).requires_grad_()",
        "(images_BCHW + delta + float(delta.sum()) * 0).requires_grad_()",
        (DEVICES + "waits_per_unit_of_work_only_shrink[attacks-label_consistent-steps]",),
    ),
)  # fmt: skip
