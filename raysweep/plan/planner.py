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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysweep import rng
from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.errors import PlanError
from raysweep.identity import digest
from raysweep.methods import Method, Recipe
from raysweep.models import Model
from raysweep.plan.combinations import check_combination, check_domains, check_target
from raysweep.plan.route import Facts, Outcomes, Route, Setting
from raysweep.stages.decide import Decide, produced
from raysweep.stages.defend import Defend, Repair, enough
from raysweep.stages.evaluate import Evaluate
from raysweep.stages.features import Embed, Predict
from raysweep.stages.poison import Poison
from raysweep.stages.prepare import Decode, Prepare
from raysweep.stages.shard import Shard, shard_role
from raysweep.stages.stage import ALL, NOTHING, Outcome, Params, Stage, Work, identified
from raysweep.stages.train import Train, TrainByAttack
from raysweep.stages.visibility import Visibility
from raysweep.sweep.resources import bfloat16_is_fast
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial, trials


class Planner:
    """Makes and remembers stages; `stages` holds each key once."""

    def __init__(self, sweep: Sweep, *, launched: bool = False) -> None:
        """Take a sweep; one that was launched has had its images checked, which takes torch."""
        self.sweep, self._launched = sweep, launched
        self.trials: tuple[Trial, ...] = tuple(trials(sweep))
        self.stages: dict[str, Stage] = {}
        self.bfloat16 = bfloat16_is_fast(sweep.resources)  # asked once: it is part of keys
        self._facts: dict[Dataset, Facts] = {}
        self._settings: dict[tuple[Dataset, Model, Attack, Recipe, int], Setting] = {}
        self._identities: dict[tuple[Method | Recipe, frozenset[str]], Params] = {}

    def facts(self, dataset: Dataset) -> Facts:
        """Return labels and identity of a dataset's training set."""
        if dataset not in self._facts:
            with PlanError.on(dataset):
                labels = dataset.checked_labels()
                rows, clean, test = dataset.kept(labels)
                source = dataset.source_digest(labels)
                small = dataset.is_small()
                size = None
                if not self._launched:
                    size = dataset.checked_size(labels, source, small=small)
                of_class = np.bincount(labels.test[clean], minlength=len(labels.classes))
                self._facts[dataset] = Facts(
                    digest=source,
                    labels=dataset.training_labels(labels, rows),
                    num_classes=len(labels.classes),
                    classes=labels.classes,
                    rows=rows,
                    clean=tuple(of_class.tolist()),
                    small=small,
                    test_labels=labels.test[test],
                    test_rows=test,
                    size=size,
                )
        return self._facts[dataset]

    def resolved(self, recipe: Recipe) -> Recipe:
        """Return the recipe with `precision: auto` resolved for the planned device."""
        if recipe.precision != "auto":
            return recipe
        precision = "bfloat16" if self.bfloat16 else "float32"
        return recipe.model_copy(update={"precision": precision})

    def _identity(self, value: Method | Recipe, leave_out: frozenset[str]) -> Params:
        """Return an identity, remembered: its files are digested once a plan."""
        memo = value, leave_out
        if memo not in self._identities:
            self._identities[memo] = identified(value, leave_out)
        return self._identities[memo]

    def add(
        self, work: Work, reads: Mapping[str, str] | None = None, /, **inputs: str | None
    ) -> str:
        """Enter a stage, unless it is there; return its key.

        Args:
            work: what to do.
            reads: role → key of an artifact whose content the work's parameters identify.
            inputs: role → key of an artifact; None: the stage has no such input.
        """
        given = {role: key for role, key in inputs.items() if key is not None}
        stage = Stage.of(work, given, reads, self._identity)
        return self.stages.setdefault(stage.key, stage).key

    # Which trials there are

    def listed(self) -> Sequence[Trial]:
        """Return the trials so far, in the order of the sweep."""
        return self.trials

    def grow(self, value_of: Callable[[Trial], float | None]) -> bool:
        """Take in trials that depend on the values of others; return whether there are any.

        Args:
            value_of: gives the value of a trial: NaN where it has none, None if it is not known.
        """
        return False

    # What trials share

    def data(self, dataset: Dataset) -> str:
        """Return the stage that decodes a dataset once."""
        facts = self.facts(dataset)
        labels = None
        if dataset.label_noise or dataset.imbalance != 1:  # what a share comes to is identity
            labels = digest(facts.labels.astype("<i8").tobytes())
        return self.add(Decode(dataset=dataset, source=facts.digest, labels=labels))

    def setting(self, trial: Trial) -> Setting:
        """Return the stages of a trial that it shares with every defense.

        Raises:
            PlanError: if attack or model do not work on the dataset, or the rate is impossible.
        """
        memo = (trial.dataset, trial.model, trial.attack, trial.recipe, trial.seed)
        if memo not in self._settings:
            self._settings[memo] = self._setting(trial)
        return self._settings[memo]

    def _setting(self, trial: Trial) -> Setting:
        attack, facts = trial.attack, self.facts(trial.dataset)
        check_domains(trial)
        with PlanError.on(attack, trial.dataset):
            try:
                counts = attack.counts(facts.labels, facts.num_classes)
            except PlanError as error:
                raise PlanError(f"dataset {trial.dataset.label}: {error}") from None
            if counts.poison and attack.label_map == "all_to_one":
                check_target(trial, facts)
        data, recipe = self.data(trial.dataset), self.resolved(trial.recipe)
        if attack.TRAINS:
            victim = self.add(
                TrainByAttack(attack=attack, model=trial.model, recipe=recipe, seed=trial.seed),
                data=data,
            )
            stamp = {"data": data, "artifact": victim}
            return Setting(data=data, poison=None, victim=victim, counts=counts, stamp=stamp)
        stamp = {"data": data}
        if attack.PREPARES:
            stamp["artifact"] = self.add(
                Prepare(attack=attack, model=trial.model, recipe=recipe, seed=trial.seed),
                data=data,
                surrogate=self._surrogate(trial, data) if attack.SURROGATE else None,
                victim=self._train(trial, data, None) if attack.EVADES else None,
            )
        poison = None
        if counts.poison or counts.cover:
            work = Poison(attack=attack, poison=counts.poison, cover=counts.cover, seed=trial.seed)
            poison = self.add(work, **stamp)
        brought = attack.brings_victim()
        victim = stamp["artifact"] if brought else self._train(trial, data, poison)
        return Setting(data=data, poison=poison, victim=victim, stamp=stamp, counts=counts)

    def _train(
        self,
        trial: Trial,
        data: str,
        poison: str | None,
        kept: str = ALL,
        reads: Mapping[str, str] | None = None,
    ) -> str:
        """Return a plain training on the samples that a decision kept."""
        recipe = self.resolved(trial.recipe)
        work = Train(model=trial.model, recipe=recipe, seed=trial.seed, kept=kept)
        return self.add(work, reads, data=data, poison=poison)

    def _surrogate(self, trial: Trial, data: str) -> str:
        """Return the training of an attacker's own clean network, on another seed's streams."""
        return self._train(replace(trial, seed=rng.derive(trial.seed, "surrogate")), data, None)

    def tested(self, trial: Trial, setting: Setting, model: str) -> str:
        """Return the stage that gives a model's predictions on clean and triggered test inputs."""
        recipe = self.resolved(trial.recipe)
        work = Predict(model=trial.model, recipe=recipe, attack=trial.attack, seed=trial.seed)
        return self.add(work, **setting.stamp, weights=model)

    def visibility(self, trial: Trial) -> str:
        """Return the stage that measures how far the trigger of a trial changes test inputs."""
        work = Visibility(attack=trial.attack, seed=trial.seed)
        return self.add(work, **self.setting(trial).stamp)

    # One trial

    def route(self, trial: Trial, outcomes: Outcomes) -> Route:
        """Add all stages of a trial that are known, given the outcomes so far."""
        route = self.decision(trial, outcomes)
        if route.waiting is not None:
            return route
        setting, gives = self.setting(trial), trial.defense.gives()
        model = setting.victim
        if "model" in gives and not trial.defense.REPAIRS:
            assert route.defend is not None
            model = route.defend
        if route.decide is not None and (
            trial.defense.REPAIRS or ("train_scores" in gives and "model" not in gives)
        ):
            if route.decide not in outcomes:
                return replace(route, waiting=route.decide)
            model = self._after(trial, setting, route, outcomes[route.decide])
        tested = self.tested(trial, setting, model)
        evaluate = self.add(
            Evaluate(attack=trial.attack, rate=trial.attack.rate), data=setting.data,
            tested=tested, poison=route.poison, defend=route.defend, decide=route.decide,
        )  # fmt: skip
        return replace(route, model=model, tested=tested, evaluate=evaluate)

    def decision(self, trial: Trial, outcomes: Outcomes) -> Route:
        """Return the route of a trial down to its decision, or to the outcome that it waits for."""
        route = self.findings(trial, outcomes)
        if route.waiting is not None or not trial.defense.gives() - {"model"}:
            return route
        setting, reference = self.setting(trial), None
        if "removed_count" in trial.defense.needs():
            with PlanError.on(trial.defense):
                reference_trial = self._reference(trial)
            other = self.decision(reference_trial, outcomes)
            reference = other.decide or other.defend
            route = replace(route, reference=reference, waiting=other.waiting)
            if route.waiting is not None:
                return route
        decide = self.add(
            Decide(defense=trial.defense), data=setting.data, defend=route.defend,
            poison=setting.poison, reference=reference,
        )  # fmt: skip
        return replace(route, decide=decide)

    def findings(self, trial: Trial, outcomes: Outcomes) -> Route:
        """Return the route of a trial down to its defense's run, before any decision."""
        setting, defense = self.setting(trial), trial.defense
        route = Route(data=setting.data, victim=setting.victim, poison=setting.poison)
        if not defense.gives() | defense.needs():
            return route
        classes = self.facts(trial.dataset).num_classes
        work, inputs = self._defend(trial, setting)
        parts, keys = defense.parts(classes), dict[str, str]()
        for count in (*defense.pauses(classes), len(parts)):
            for part in parts[len(keys) : count]:
                shard = Shard(
                    defense=defense, model=work.model, recipe=work.recipe, seed=work.seed,
                    attack=work.attack, part=part,
                )  # fmt: skip
                keys[shard_role(part)] = self.add(shard, **inputs)
            run = self.add(work, **inputs, **keys)
            route = replace(route, shards=tuple(keys.values()), defend=run)
            if count == len(parts) or (run in outcomes and enough(outcomes[run])):
                break
            if run not in outcomes:
                return replace(route, waiting=run)
            route = replace(route, pauses=(*route.pauses, run))
        return route

    def _defend(self, trial: Trial, setting: Setting) -> tuple[Defend, dict[str, str]]:
        """Return the run of a trial's defense and what it reads, from what the defense declares."""
        defense = trial.defense
        needs, gives = defense.needs(), defense.gives()
        with PlanError.on(defense, trial.attack):
            check_combination(trial)
        inputs = {"data": setting.data}
        if setting.poison and gives != {"input_scores"}:
            inputs["poison"] = setting.poison
        if "victim" in needs:
            inputs["weights"] = setting.victim
        if "features" in needs:
            layer = getattr(defense, "layer", None) or trial.model.HEAD
            embed = Embed(layer=layer, model=trial.model, recipe=self.resolved(trial.recipe))
            inputs["features"] = self.add(
                embed, data=setting.data, weights=setting.victim, poison=setting.poison
            )
        asks = "input_scores" in gives or needs & {"target_class", "test_success", "trigger"}
        inputs |= setting.stamp if asks else {}
        run = Defend(
            defense=defense, model=trial.model, recipe=self.resolved(trial.recipe),
            seed=trial.seed, attack=trial.attack if asks else None,
            run_version=defense.RUN_VERSION if defense.RUN_VERSION > 1 else None,
        )  # fmt: skip
        return run, inputs

    def _reference(self, trial: Trial) -> Trial:
        """Return the trial of the defense whose removal count this trial's defense matches."""
        like = getattr(trial.defense, "like", None)
        named = [d for d in self.sweep.defenses if d.name == like]
        if len(named) != 1:
            raise PlanError(
                f"defense {trial.defense.name}: like must name one defense of this sweep, got "
                f"{like!r}, which names {len(named)}; one of: "
                f"{', '.join(sorted({d.name for d in self.sweep.defenses}))}"
            )
        return replace(trial, defense=named[0])

    def _after(self, trial: Trial, setting: Setting, route: Route, outcome: Outcome) -> str:
        """Return the model to evaluate, keyed by what the decision produced."""
        assert route.decide is not None and route.defend is not None
        made, reads = produced(outcome), {"decision": route.decide}
        if made == NOTHING:
            return setting.victim
        if not trial.defense.REPAIRS:
            return self._train(trial, setting.data, setting.poison, made, reads)
        run, inputs = self._defend(trial, setting)
        repair = Repair(
            defense=run.defense, model=run.model, recipe=run.recipe, seed=run.seed,
            attack=run.attack, produced=made,
        )  # fmt: skip
        return self.add(repair, reads, **inputs, found=route.defend)
