"""From a sweep to a graph of content-addressed stages in which shared work appears once.

What each trial needs follows from what its attack and defense declare, never from their names:

    data ─▶ prepare ─▶ poison ─▶ train ─▶ features(train) ─▶ shard… ─▶ defend ─▶ decide
                                   │                                               │
                                   ▼                                               ▼
                           features(test) ◀── train on the kept / repair, keyed by the decision
                                   │
                                   ▼
                                evaluate

What lies below a decision, or after a pause of a defense's parts, is known only when it has run:
`Planner.route` is a pure function of the trial and the outcomes so far, to be asked in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raysweep import rng
from raysweep.datasets import Dataset
from raysweep.errors import PlanError
from raysweep.identity import digest, stage_key
from raysweep.methods import Method, by_content, decision_fields, reduction_fields
from raysweep.methods.recipe import Recipe
from raysweep.plan.route import Facts, Outcomes, Route, Setting
from raysweep.stages.stage import STAGE_VERSIONS, Stage
from raysweep.sweep.resources import bfloat16_is_fast
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial, trials

RATES = frozenset({"rate", "cover_rate"})
LIGHT_NEEDS = frozenset({"features", "poison_rate", "poison_mask", "target_class", "removed_count"})


class Planner:
    """Makes and remembers stages; `stages` holds each key once."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.trials: tuple[Trial, ...] = tuple(trials(sweep))
        self.stages: dict[str, Stage] = {}
        self.bfloat16 = bfloat16_is_fast(sweep.resources)  # asked once: it is part of keys
        self._facts: dict[Dataset, Facts] = {}
        self._settings: dict[tuple[Any, ...], Setting] = {}
        self._identities: dict[tuple[int, frozenset[str]], tuple[Method, dict[str, Any]]] = {}
        self._recipes: dict[Recipe, dict[str, Any]] = {}

    def facts(self, dataset: Dataset) -> Facts:
        """Return labels and identity of a dataset's training set."""
        if dataset not in self._facts:
            labels = dataset.read_labels()
            rows, _, _ = dataset.kept(labels)
            self._facts[dataset] = Facts(
                digest=dataset.source_digest(labels),
                labels=dataset.training_labels(labels, rows),
                num_classes=len(labels.classes),
            )
        return self._facts[dataset]

    def resolved(self, recipe: Recipe) -> Recipe:
        """Return the recipe with `precision: auto` resolved for the planned device."""
        if recipe.precision != "auto":
            return recipe
        precision = "bfloat16" if self.bfloat16 else "float32"
        return recipe.model_copy(update={"precision": precision})

    def _recipe(self, recipe: Recipe) -> dict[str, Any]:
        if recipe not in self._recipes:
            self._recipes[recipe] = self.resolved(recipe).model_dump(mode="json")
        return self._recipes[recipe]

    def _identity(self, method: Method, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        memo = (id(method), leave_out)
        if memo not in self._identities:
            # The method is kept, lest another one come to have its id.
            self._identities[memo] = method, method.identity(leave_out=leave_out)
        return self._identities[memo][1]

    def _add(
        self,
        kind: str,
        params: dict[str, Any],
        inputs: dict[str, str],
        resource: str,
        reads: dict[str, str] | None = None,
    ) -> str:
        key = stage_key(kind, STAGE_VERSIONS[kind], by_content(params), inputs)
        if key not in self.stages:
            self.stages[key] = Stage(
                key=key, params=params, inputs=inputs, reads=reads or {}, resource=resource
            )
        return key

    # What trials share

    def data(self, dataset: Dataset) -> str:
        """Return the stage that decodes a dataset once."""
        facts = self.facts(dataset)
        params = {"dataset": self._identity(dataset), "source": facts.digest}
        if dataset.label_noise or dataset.imbalance != 1:  # what a share comes to is identity
            params["labels"] = digest(facts.labels.astype("<i8").tobytes())
        return self._add("prepare", params, {}, "cpu")

    def setting(self, trial: Trial) -> Setting:
        """Return poisoned set and victim of a trial, shared by every defense."""
        memo = (trial.dataset, trial.model, trial.attack, trial.recipe, trial.seed)
        if memo not in self._settings:
            self._settings[memo] = self._setting(trial)
        return self._settings[memo]

    def _setting(self, trial: Trial) -> Setting:
        attack, facts = trial.attack, self.facts(trial.dataset)
        for other, kind in ((attack, "attack"), (trial.model, "model")):
            if trial.dataset.DOMAIN not in other.DOMAINS:
                raise PlanError(
                    f"{kind} {other.name} works on {' or '.join(other.DOMAINS)}, but dataset "
                    f"{trial.dataset.name} holds {trial.dataset.DOMAIN}; exclude this combination: "
                    f"{{{kind}: {other.name}, dataset: {trial.dataset.name}}}"
                )
        try:
            counts = attack.counts(facts.labels, facts.num_classes)
        except PlanError as error:
            raise PlanError(f"dataset {trial.dataset.label}: {error}") from None
        data = self.data(trial.dataset)
        model, recipe = self._identity(trial.model), self._recipe(trial.recipe)
        seed, stamp = trial.seed, {"data": data}
        if attack.TRAINS:
            params: dict[str, Any] = {
                "attack": self._identity(attack),
                "model": model,
                "recipe": recipe,
            }
            victim = self._add("train", {**params, "seed": seed}, {"data": data}, "gpu")
            return Setting(
                data=data, poison=None, victim=victim, counts=counts,
                stamp={"data": data, "artifact": victim},
            )  # fmt: skip
        attacking = self._identity(attack, RATES)
        if attack.PREPARES:
            params = {"attack": attacking, "model": model, "recipe": recipe, "seed": seed}
            given = {"data": data}
            if attack.SURROGATE:
                given["surrogate"] = self._surrogate(trial, data)
            if attack.EVADES:
                given["victim"] = self._train(trial, data, None)
            stamp["artifact"] = self._add("prepare", params, given, "gpu")
        poison = None
        if counts.poison or counts.cover:
            params = {"attack": attacking, "poison": counts.poison, "cover": counts.cover}
            params["seed"] = seed
            poison = self._add("poison", params, stamp, "gpu" if attack.PREPARES else "cpu")
        brought = attack.brings_victim()
        victim = stamp["artifact"] if brought else self._train(trial, data, poison)
        return Setting(data=data, poison=poison, victim=victim, stamp=stamp, counts=counts)

    def _train(
        self, trial: Trial, data: str, poison: str | None, kept: tuple[str, str] | None = None
    ) -> str:
        """Return a plain training; `kept` is the digest of the kept set and the decision's key."""
        params = {
            "model": self._identity(trial.model),
            "recipe": self._recipe(trial.recipe),
            "seed": trial.seed,
            "kept": kept[0] if kept else "all",
        }
        inputs = {"data": data, **({"poison": poison} if poison else {})}
        return self._add("train", params, inputs, "gpu", {"decision": kept[1]} if kept else None)

    def _surrogate(self, trial: Trial, data: str) -> str:
        """Return the training of an attacker's own clean network, on another seed's streams."""
        return self._train(replace(trial, seed=rng.derive(trial.seed, "surrogate")), data, None)

    def _features(self, trial: Trial, setting: Setting, layer: str) -> str:
        params = {
            "set": "train",
            "layer": layer,
            "model": self._identity(trial.model),
            "recipe": self._recipe(trial.recipe),
        }
        inputs = {"data": setting.data, "weights": setting.victim}
        if setting.poison:
            inputs["poison"] = setting.poison
        return self._add("features", params, inputs, "gpu")

    # One trial

    def _defend(self, trial: Trial, setting: Setting) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the params and inputs of a defense's `run`, from what it declares."""
        defense = trial.defense
        needs, gives = defense.needs(), defense.gives()
        name, why = trial.attack.name, ""
        if trial.attack.TRAINS and ("train_scores" in gives or "training_set" in needs):
            why = f"the training set, but attack {name} trains the victim itself and leaves none"
        elif trial.attack.EVADES and "trigger" in needs:
            why = f"the trigger, but attack {name} has none"
        if why:
            raise PlanError(
                f"defense {defense.name} works on {why}; exclude this combination: "
                f"{{attack: {name}, defense: {defense.name}}}"
            )
        params: dict[str, Any] = {
            "defense": self._identity(defense, decision_fields(type(defense))),
            "model": self._identity(trial.model),
            "recipe": self._recipe(trial.recipe),
            "seed": trial.seed,
        }
        inputs = {"data": setting.data}
        if setting.poison and gives != {"input_scores"}:
            inputs["poison"] = setting.poison
        if "victim" in needs:
            inputs["weights"] = setting.victim
        if "features" in needs:
            layer = getattr(defense, "layer", None) or trial.model.HEAD
            inputs["features"] = self._features(trial, setting, layer)
        if "input_scores" in gives or needs & {"target_class", "test_success", "trigger"}:
            params["attack"] = self._identity(trial.attack, RATES)
            inputs |= setting.stamp
        return params, inputs

    def _find(
        self, trial: Trial, setting: Setting, roles: dict[str, str], outcomes: Outcomes
    ) -> tuple[str, bool]:
        """Add shards and a `run` over them, entered into `roles`; return it, and if it is final."""
        defense, classes = trial.defense, self.facts(trial.dataset).num_classes
        params, inputs = self._defend(trial, setting)
        resource = "cpu" if defense.needs() <= LIGHT_NEEDS else "gpu"
        parts = defense.parts(classes)
        unseen = decision_fields(type(defense)) | reduction_fields(type(defense))
        alone = {**params, "defense": self._identity(defense, unseen)}
        later = {"run_version": defense.RUN_VERSION} if defense.RUN_VERSION > 1 else {}
        run = {**params, "part": "run", **later}
        shards: dict[str, str] = {}
        for count in (*defense.pauses(classes), len(parts)):
            for part in parts[len(shards) : count]:
                own = {**alone, "part": part}
                shards[f"shard {part}"] = self._add("shard", own, inputs, resource)
            roles |= shards
            roles["defend"] = key = self._add("defend", run, {**inputs, **shards}, resource)
            final = count == len(parts)
            if final or key not in outcomes or outcomes[key]["enough"]:
                break
            roles[f"defend at {count}"] = key  # it is part of the trial's cost
        return key, final or key in outcomes

    def _decide(
        self, trial: Trial, setting: Setting, roles: dict[str, str], outcomes: Outcomes
    ) -> tuple[str, bool]:
        """Add the stages down to a decision, entered into `roles`.

        Returns the last of them, and whether it is the decision: else its outcome is waited for.
        """
        defense = trial.defense
        found, final = self._find(trial, setting, roles, outcomes)
        if not final or not defense.gives() - {"model"}:
            return found, final
        reads = {"data": setting.data, "defend": found}
        if setting.poison:
            reads["poison"] = setting.poison
        if "removed_count" in defense.needs():
            reference, final = self._decide(self._reference(trial), setting, {}, outcomes)
            roles["reference"] = reads["reference"] = reference
            if not final:
                return reference, False
        return self._add("decide", {"defense": self._identity(defense)}, reads, "cpu"), True

    def evidence(self, trial: Trial, outcomes: Outcomes) -> Route:
        """Return the route of a trial down to its decision, or to the outcome that it waits for."""
        setting = self.setting(trial)
        roles = {"data": setting.data, "victim": setting.victim}
        if setting.poison:
            roles["poison"] = setting.poison
        if not trial.defense.gives() | trial.defense.needs():
            return Route(roles=roles, evaluate=None, waiting=None)
        last, final = self._decide(trial, setting, roles, outcomes)
        if final and last != roles["defend"]:
            roles["decide"] = last
        return Route(roles=roles, evaluate=None, waiting=None if final else last)

    def _reference(self, trial: Trial) -> Trial:
        like = getattr(trial.defense, "like", None)
        named = [d for d in self.sweep.defenses if d.name == like]
        if len(named) != 1:
            raise PlanError(
                f"defense {trial.defense.name}: like must name one defense of this sweep, got "
                f"{like!r}, which names {len(named)}; one of: "
                f"{', '.join(sorted({d.name for d in self.sweep.defenses}))}"
            )
        return replace(trial, defense=named[0])

    def route(self, trial: Trial, outcomes: Outcomes) -> Route:
        """Add all stages of a trial that are known, given the outcomes so far."""
        route = self.evidence(trial, outcomes)
        if route.waiting is not None:
            return route
        setting, gives, roles = self.setting(trial), trial.defense.gives(), route.roles
        model = setting.victim
        if "model" in gives and not trial.defense.REPAIRS:
            model = roles["defend"]
        if "decide" in roles and (
            trial.defense.REPAIRS or ("train_scores" in gives and "model" not in gives)
        ):
            decided = roles["decide"]
            if decided not in outcomes:
                return Route(roles=roles, evaluate=None, waiting=decided)
            model = self._after(trial, setting, roles, outcomes[decided])
        roles["model"] = model
        roles["evaluate"] = self._evaluate(trial, setting, roles)
        return Route(roles=roles, evaluate=roles["evaluate"], waiting=None)

    def _after(
        self, trial: Trial, setting: Setting, roles: dict[str, str], outcome: Mapping[str, Any]
    ) -> str:
        """Return the model to evaluate, keyed by what the decision produced."""
        defense, produced = trial.defense, str(outcome["produced"])
        if produced == "nothing":
            return setting.victim
        if not defense.REPAIRS:
            kept = (produced, roles["decide"])
            return self._train(trial, setting.data, setting.poison, kept)
        params, inputs = self._defend(trial, setting)
        return self._add(
            "defend",
            {**params, "part": "repair", "produced": produced},
            {**inputs, "found": roles["defend"]},
            "gpu",
            {"decision": roles["decide"]},
        )

    def tested(self, trial: Trial, setting: Setting, model: str) -> str:
        """Return the stage that gives a model's predictions on clean and triggered test inputs."""
        params = {
            "set": "test",
            "model": self._identity(trial.model),
            "recipe": self._recipe(trial.recipe),
            "attack": self._identity(trial.attack, RATES),
            "seed": trial.seed,
        }
        return self._add("features", params, {**setting.stamp, "weights": model}, "gpu")

    def _evaluate(self, trial: Trial, setting: Setting, roles: dict[str, str]) -> str:
        roles["tested"] = tested = self.tested(trial, setting, roles["model"])
        inputs = {"data": setting.data, "tested": tested}
        inputs |= {role: roles[role] for role in ("poison", "defend", "decide") if role in roles}
        params = {"attack": self._identity(trial.attack, RATES), "rate": trial.attack.rate}
        return self._add("evaluate", params, inputs, "cpu")
