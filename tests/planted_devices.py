"""Faults that only a GPU would show, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

DEVICES = "contracts/test_devices.py::test_"
ATTACKS = DEVICES + "every_attack_equals_itself_on_the_cpu"
DEFENSES = DEVICES + "every_defense_equals_itself_on_the_cpu"
GRAPHS = "test_pretend_graphs.py::test_"
TRAINED = GRAPHS + "a_captured_training_equals_an_eager_one"

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
    Fault(
        "what the warm-up of a capture has changed", "training/graph.py",
        "            before.restore()\n            self._graph",
        "            before = EarlierState(before.tensors, before.optimizer, before.noises)\n"
        "            self._graph",
        (TRAINED + "[sgd-float32]",),
    ),
    Fault(
        "momentum that a capture leaves behind", "training/graph.py",
        "                tensor.zero_()", "                pass",
        (TRAINED + "[adam-float32]",),
    ),
    Fault(
        "a generator that a graph does not know", "training/graph.py",
        "self._graph.register_generator_state(noise)", "pass",
        (TRAINED + "[sgd-float32]",),
    ),
    Fault(
        "a learning rate that a graph keeps", "training/step.py",
        'group["lr"].fill_(rate)', 'group["lr"] = rate',
        (TRAINED + "[sgd-float32]",),
    ),
    Fault(
        "rows that a graph keeps", "training/step.py",
        "            self.rows[name].copy_(of)", "            self.rows[name] = of",
        (TRAINED + "[sgd-float32]",),
    ),
    Fault(
        "batches that are not counted", "training/step.py",
        "counter += graph.replays * counted", "counter += counted",
        (TRAINED + "[sgd-float32]",),
    ),
    Fault(
        "a memory of an objective that is not given back", "training/step.py",
        "*model.buffers(), *tensors]", "*model.buffers()]",
        (TRAINED + "[sgd-float32]",),
    ),
    Fault(
        "a cost that a graph keeps", "defenses/neural_cleanse.py",
        "self.cost.copy_(torch.where(down, cost / 1.5**1.5, cost))",
        "self.cost = torch.where(down, cost / 1.5**1.5, cost)",
        (GRAPHS + "a_search_for_a_trigger_is_replayed_step_by_step",),
    ),
    Fault(
        "Adam's steps counted on the host", "defenses/neural_cleanse.py",
        "capturable=there)", "capturable=False)",
        (GRAPHS + "a_search_for_a_trigger_is_replayed_step_by_step",),
    ),
    Fault(
        "convolutions in TF32", "training/device.py",
        "cudnn.allow_tf32 = False", "cudnn.allow_tf32 = True",
        ("test_device.py::test_a_claim_makes_float32_float32_and_holds_a_stage_to_its_share",),
    ),
    Fault(
        "a stage that may take the whole GPU", "training/device.py",
        "(memory_share(gpus, _total_bytes()))", "(1.0)",
        ("test_device.py::test_a_claim_makes_float32_float32_and_holds_a_stage_to_its_share",),
    ),
    Fault(
        "a wrong sum of a kernel", "training/device.py",
        "if total == 1000", "if total is not None",
        ("test_device.py::test_one_kernel_is_tried_on_each_gpu",),
    ),
    Fault(
        "memory that is free beyond a stage's share", "training/room.py",
        "min(free + cached, own)", "free + cached",
        ("test_device.py::test_what_is_free_lies_within_a_stages_share",),
    ),
)  # fmt: skip
