"""Faults of stages that go on after a kill, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

PARTS, STATE, STAGE = "methods/checkpoints.py", "training/resume.py", "stages/checkpoints.py"
OWN = "test_checkpoints.py::test_"
TRAINING = "test_training.py::test_a_killed_training_continues_to_the_same_bytes"
DEFENSES = "contracts/test_defenses.py::TestDefenses::test_"
GOES_ON = DEFENSES + "goes_on_after_a_kill_to_the_same_bytes"

FAULTS = (
    Fault(
        "the order of images begins anew",
        STATE,
        'self._steps |= {f"order {name}": source.order, f"noise',
        'self._steps |= {f"noise',
        (TRAINING + "[sgd]", TRAINING + "[adam]"),
    ),
    Fault(
        "the draws of an objective begin anew",
        STATE,
        '        thing.set_state(state["values"])',
        "        pass",
        (TRAINING + "[sgd]", OWN + "steps_give_back_all_that_they_change"),
    ),
    Fault(
        "weights without the momentum",
        STATE,
        "        _restore_optimizer(thing, state)",
        "        pass",
        (TRAINING + "[adam]", OWN + "steps_give_back_all_that_they_change"),
    ),
    Fault(
        "the losses of a broken epoch are lost",
        STATE,
        'tensors["losses"] = torch.stack(self.losses).float()',
        "pass",
        (TRAINING + "[sgd]",),
    ),
    Fault(
        "an optimizer that goes on to the next training is left out",
        STATE,
        "            self._things |= self._steps",
        "            pass",
        (
            "test_training.py::"
            "test_a_training_that_was_over_is_not_done_again_and_gives_its_optimizer_back",
        ),
    ),
    Fault(
        "one round is given the arrays of another",
        PARTS,
        "{self._path}/{self._passed}.{name}",
        "{self._path}/0.{name}",
        (OWN + "a_part_of_a_later_round_waits_for_its_round",),
    ),
    Fault(
        "parts of one name are taken for one",
        PARTS,
        "{self._seen[name]}",
        "1",
        (OWN + "a_part_finds_the_arrays_of_its_own_place_alone",),
    ),
    Fault(
        "a round that is resumed is counted as the first",
        PARTS,
        "held[self._path] = (self._passed, {",
        "held[self._path] = (0, {",
        (OWN + "a_part_finds_the_arrays_of_its_own_place_alone",),
    ),
    Fault(
        "the parts of earlier rounds pile up",
        PARTS,
        "if due or earlier or (over",
        "if due or (over",
        (OWN + "a_checkpoint_stands_for_parts_that_are_held_however_soon",),
    ),
    Fault(
        "live arrays are held",
        PARTS,
        "{n: np.array(a) for n, a in make().items()}",
        "dict(make())",
        (OWN + "arrays_are_copied_when_they_are_held",),
    ),
    Fault(
        "a full disk ends a stage that runs",
        PARTS,
        "with contextlib.suppress(StoreError, OSError):",
        "with contextlib.suppress(KeyError):",
        (OWN + "a_checkpoint_that_cannot_be_written_costs_time_alone",),
    ),
    Fault(
        "a checkpoint of other code is gone on from",
        STAGE,
        "canonical([stage.key, asdict(code), device",
        "canonical([stage.key, device",
        (OWN + "a_checkpoint_of_anything_else_is_ignored",),
    ),
    Fault(
        "a checkpoint of other inputs is gone on from",
        STAGE,
        "device, dict(read)])",
        "device])",
        (OWN + "a_checkpoint_of_anything_else_is_ignored",),
    ),
    Fault(
        "Confusion Training repeats the round that was over",
        "defenses/confusion_training.py",
        'int(ctx.restored["round"]) + 1',
        'int(ctx.restored["round"])',
        (GOES_ON + "[confusion_training]",),
    ),
    Fault(
        "Neural Cleanse draws its batches anew",
        "defenses/neural_cleanse.py",
        "for _ in range(steps.first - steps.first % DRAWN_AT_ONCE):",
        "for _ in range(0):",
        ("test_checkpoints.py::test_a_search_that_was_killed_draws_on",),
    ),
    Fault(
        "an attack draws its batches anew",
        "attacks/latent_backdoor.py",
        "            batch = taken(others, self.batch)\n            if step < steps.first:\n"
        "                continue",
        "            if step < steps.first:\n                continue\n"
        "            batch = taken(others, self.batch)",
        (OWN + "an_attack_that_was_killed_draws_on",),
    ),
)
