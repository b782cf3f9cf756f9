"""Refusals of trials whose dataset, attack, model and defense do not go together."""

from __future__ import annotations

from raysweep.errors import PlanError
from raysweep.plan.route import Facts
from raysweep.sweep.trials import Trial


def check_target(trial: Trial, facts: Facts) -> None:
    """Make sure that the training set holds images of the class that is attacked for."""
    target = trial.attack.target
    if not (facts.labels == target).any():
        raise PlanError(
            f"dataset {trial.dataset.label}: attack {trial.attack.name}'s target {target} "
            f"({facts.classes[target]!r}) has no image among the {len(facts.labels)} training "
            f"images; raise size, or choose another target"
        )


def check_domains(trial: Trial) -> None:
    """Refuse an attack or a model that does not work on what the dataset holds."""
    for other, kind in ((trial.attack, "attack"), (trial.model, "model")):
        if trial.dataset.DOMAIN not in other.DOMAINS:
            with PlanError.on(other, trial.dataset):
                raise PlanError(
                    f"{kind} {other.name} works on {' or '.join(other.DOMAINS)}, but dataset "
                    f"{trial.dataset.name} holds {trial.dataset.DOMAIN}; exclude this "
                    f"combination: {{{kind}: {other.name}, dataset: {trial.dataset.name}}}"
                )


def check_combination(trial: Trial) -> None:
    """Refuse a defense that works on what the attack does not leave."""
    attack, defense = trial.attack, trial.defense
    why = ""
    if attack.TRAINS and ("train_scores" in defense.gives() or "training_set" in defense.needs()):
        why = f"the training set, but attack {attack.name} trains the victim itself and leaves none"
    elif attack.EVADES and "trigger" in defense.needs():
        why = f"the trigger, but attack {attack.name} has none"
    if why:
        raise PlanError(
            f"defense {defense.name} works on {why}; exclude this combination: "
            f"{{attack: {attack.name}, defense: {defense.name}}}"
        )
