"""One Optuna study, asked and told by the driver; it outlives the process.

A study lives in a journal file of its own sweep, or in any database that Optuna knows. It is tied
to a digest of what it is evaluated on. What a killed driver had asked for is asked again: at the
next start from a journal, which has one writer, and after missed heartbeats from a database, which
may have several.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raysweep.errors import SpecError
from raysweep.results.account import CandidateRow
from raysweep.store.events import CandidateEnd
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.searching import in_order
from raysweep.sweep.tuning import Metrics, Stop, Tune
from raysweep.tuning import storage
from raysweep.tuning.candidates import FAILED, INSTANCES, METRICS, REPLAYED, TIED, UNKNOWN, recover
from raysweep.tuning.ranking import Evaluated, rank
from raysweep.tuning.recording import discard_exact
from raysweep.tuning.samplers import PRUNERS, sampler_of
from raysweep.tuning.space import (
    Space,
    covering,
    distribution,
    from_study,
    inside,
    into_study,
    within,
)
from raysweep.tuning.stopping import why_stopped
from raysweep.tuning.storage import quiet

NEVER = Stop()
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
ALLOWED = "allowed by the defense"  # the constraint that an invalid combination breaks


class Study:
    """Candidates of one space: asked for, pruned, told; the same after a kill."""

    def __init__(
        self,
        name: str,
        space: Space,
        tune: Tune,
        *,
        where: str | Path | None = None,
        tied: str = "",
        own: Parameters | None = None,
        known: Parameters | None = None,
        first: Sequence[Parameters] = (),
        steps: int = 1,
        told: Iterable[CandidateEnd] = (),
    ) -> None:
        """Open or create the study.

        Args:
            name: in its storage.
            space: what is searched.
            tune: sampler, pruner, objectives, number of candidates.
            where: a database's URL, a journal's path, or none for memory.
            tied: digest of what candidates are evaluated on.
            own: the method's own values, the first to be tried if they lie in the space.
            known: what conditions may name beside what is searched.
            first: candidates, or parts of them, that are tried before all others.
            steps: instances of one candidate, for the pruner.
            told: candidates that a ledger remembers of it, should its storage have been lost.

        Raises:
            SpecError: if the study was evaluated on something else, or `trials` are too few to
                cover the space with a grid.
        """
        self.space, self.tune, self.name = space, tune, name
        self.known, self.steps = known, steps
        self._order = in_order(space)
        self._spread = {field: distribution(values) for field, values in space.items()}
        self._out: dict[int, optuna.Trial] = {}
        self._watched: set[int] = set()
        self._shared = isinstance(where, str)
        self._opened = time.monotonic()
        with quiet():
            self._study = self._found(where)
            self._tie(tied)
            # A sampler that went on from its first draw would repeat what was tried before.
            seed = tune.seed + len(self._study.trials) + (os.getpid() if self._shared else 0)
            self._study.sampler = sampler_of(tune, space, seed)
            if not self._study.trials:
                recover(self._study, told, self._spread)
            if not self._shared:
                self._revive()
            self._begin(own, first)
        self.trials = self._planned() if tune.sampler == "grid" else tune.trials
        if self._shared:
            self._beat()

    def _found(self, where: str | Path | None) -> optuna.Study:
        """Return the study of this name, made unless it is there."""
        if where is not None:
            discard_exact(self.name, where)
        study = optuna.create_study(
            study_name=self.name,
            load_if_exists=True,
            storage=storage.open_storage(where) if where else None,
            pruner=PRUNERS[self.tune.pruner](self.steps),
            directions=[objective.goal for objective in self.tune.metric],
        )
        study.set_metric_names([objective.name for objective in self.tune.metric])
        return study

    def _begin(self, own: Parameters | None, first: Sequence[Parameters]) -> None:
        """Put what is to be tried before all others in the queue, unless it was tried already."""
        wanted = [dict(point) for point in first]
        if self.tune.sampler == "grid":
            wanted += [dict(point) for point in covering(self.space, self.tune.trials, self.known)]
        elif own and not self._study.trials and inside(self.space, own, self.known):
            wanted.append(dict(within(self.space, own, self.known)))
        for point in wanted:
            self._study.enqueue_trial(into_study(self.space, point), skip_if_exists=True)

    def _planned(self) -> int:
        """Return the number of candidates that are done, in progress or in the queue."""
        done, out = self._states()
        return done + out + len(self._study.get_trials(states=(TrialState.WAITING,)))

    def _tie(self, tied: str) -> None:
        before = self._study.user_attrs.get(TIED)
        if before is None:
            self._study.set_user_attr(TIED, tied)
        elif before != tied:
            raise SpecError(
                f"study {self.name!r} was evaluated on other data, another space or other "
                f"objectives than this sweep file names ({before[:12]}, now {tied[:12]}); give the "
                f"sweep another name, or delete the study (optuna delete-study)"
            )

    def _revive(self) -> None:
        """Ask again for what a dead driver had asked for; a journal has one writer."""
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            if trial.params:
                self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _beat(self) -> None:
        """Tell the database every so often which candidates are still being worked on."""
        beating: Any = self._study._storage
        self._stop = threading.Event()

        def beat() -> None:
            while not self._stop.wait(storage.HEARTBEAT_SECONDS):
                for trial in list(self._out.values()):
                    beating.record_heartbeat(trial._trial_id)

        threading.Thread(target=beat, daemon=True, name=f"heartbeat {self.name}").start()

    def close(self) -> None:
        """Stop the heartbeat."""
        if self._shared:
            self._stop.set()

    # Asking and telling

    def _states(self) -> tuple[int, int]:
        """Return the numbers of candidates that are done and in progress, here or elsewhere."""
        out = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return len(self._ended()), len(out)

    def _ended(self) -> list[FrozenTrial]:
        """Return the candidates that are done, in the order of asking."""
        return [
            trial for trial in self._study.get_trials(deepcopy=False)
            if trial.state in ENDED or (
                trial.state == TrialState.FAIL and FAILED in trial.user_attrs
            )
        ]  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether as many candidates as were wanted have been told, or the search stopped."""
        done, out = self._states()
        return done >= self.trials or (not out and bool(self.stopped))

    @property
    def stopped(self) -> str:
        """Why no more candidates are wanted although there are trials left; else empty."""
        if self.tune.stop == NEVER:
            return ""
        ended, complete = self._ended(), TrialState.COMPLETE
        ranks = [rank(self._metrics(t), self.tune) if t.state == complete else None for t in ended]
        gpu_seconds = sum(
            trial.user_attrs[METRICS].get("gpu_seconds", 0.0)
            * trial.user_attrs.get(INSTANCES, self.steps)
            for trial in ended
        )
        return why_stopped(self.tune.stop, ranks, time.monotonic() - self._opened, gpu_seconds)

    def ask(self) -> tuple[int, Parameters] | None:
        """Return the number and parameters of the next candidate; none if none is wanted now."""
        with quiet():
            if self._shared:
                self._watch_others()
                optuna.storages.fail_stale_trials(self._study)
            done, out = self._states()
            if done + out >= self.trials or self.stopped:
                return None
            trial = self._study.ask()
            parameters = self._suggested(trial)
            if self._shared:
                self._study._storage.record_heartbeat(trial._trial_id)
        self._out[trial.number] = trial
        return trial.number, parameters

    def _suggested(self, trial: optuna.Trial) -> Parameters:
        """Return a candidate: of each parameter whose conditions are met, what Optuna suggests."""
        standing, held = dict(self.known or {}), {}
        for name in self._order:
            if self.space[name].applies(standing):
                held[name] = trial._suggest(name, self._spread[name])
                standing |= from_study(self.space, {name: held[name]})
        return from_study(self.space, {name: held[name] for name in self.space if name in held})

    def _watch_others(self) -> None:
        """Give each candidate of others a heartbeat: its driver may have died before the first."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._out and trial.number not in self._watched:
                self._watched.add(trial.number)
                self._study._storage.record_heartbeat(trial._trial_id)

    def should_stop(self, number: int, step: int, value: float) -> bool:
        """Report a candidate's objective on one instance; return whether to stop it."""
        trial = self._out[number]
        with quiet():
            trial.report(value, step)
            return bool(trial.should_prune())

    def tell(
        self,
        number: int,
        metrics: Metrics | None,
        *,
        replayed: Parameters | None = None,
        instances: int = 0,
        pruned: bool = False,
        invalid: bool = False,
        why: str = "",
    ) -> CandidateEnd:
        """Enter how a candidate ended; return it as a ledger should remember it.

        Args:
            number: of the candidate.
            metrics: over the instances; none if it failed.
            replayed: the decision parameters that were best with it.
            instances: how many it was evaluated on.
            pruned: whether it was stopped before its last instance.
            invalid: whether the defense refuses this combination of parameters.
            why: it failed.
        """
        trial = self._out.pop(number)
        with quiet():
            known = {name: value for name, value in (metrics or {}).items() if value == value}
            values = [known.get(objective.name) for objective in self.tune.metric]
            state = TrialState.PRUNED if pruned or invalid else TrialState.COMPLETE
            if None in values and state == TrialState.COMPLETE:
                state = TrialState.FAIL
            constraints = {ALLOWED: 1.0} if invalid else {}
            if metrics is not None:
                limits = zip(self.tune.constraints, self.tune.bounds, strict=True)
                constraints = {text: min(bound.excess(metrics), UNKNOWN) for text, bound in limits}
            attrs: dict[str, Any] = {METRICS: known, REPLAYED: replayed or {}}
            if pruned:
                attrs[INSTANCES] = instances
            if state == TrialState.FAIL or invalid:
                attrs[FAILED] = why or "an objective is undefined on every instance"
            for attribute, value in attrs.items():
                trial.set_user_attr(attribute, value)
            for text, excess in constraints.items():
                trial.set_constraint(text, excess)
            ended = state == TrialState.COMPLETE
            self._study.tell(trial, values if ended else None, state=state)
        return CandidateEnd(
            study=self.name, tied=self._study.user_attrs[TIED], params=dict(trial.params),
            values=tuple(values), constraints=constraints, attrs=attrs, state=state.name,
        )  # fmt: skip

    # Looking back

    def _metrics(self, trial: FrozenTrial) -> Metrics:
        nothing: Metrics = dict.fromkeys(self.tune.named_metrics, float("nan"))
        return {**nothing, **trial.user_attrs[METRICS]}

    def _parameters(self, trial: FrozenTrial) -> Parameters:
        replayed = trial.user_attrs.get(REPLAYED, {})
        decided = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in replayed.items()
        }
        return {**from_study(self.space, trial.params), **decided}

    def evaluated(self) -> list[Evaluated]:
        """Return every candidate that was evaluated in full, with its replayed parameters."""
        return [
            Evaluated(parameters=self._parameters(trial), metrics=self._metrics(trial))
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ]

    def history(self) -> list[CandidateRow]:
        """Return one row per candidate, in the order of asking."""
        return [
            CandidateRow(
                number=trial.number,
                state=trial.state.name.lower(),
                parameters=self._parameters(trial),
                metrics=trial.user_attrs.get(METRICS, {}),
                seconds=trial.duration.total_seconds() if trial.duration else None,
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def importance(self) -> dict[str, float]:
        """Return the importance of each parameter for the first objective (PED-ANOVA)."""
        with quiet():
            try:
                importance = optuna.importance.get_param_importances(
                    self._study,
                    target=lambda trial: trial.values[0],
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                )
            except (ValueError, RuntimeError):  # too few candidates, or all of one value
                return {}
        return {name: float(value) for name, value in importance.items()}


def every_trial(study: Study, evaluate: Callable[[Parameters], Metrics | None]) -> list[Evaluated]:
    """Run a study to its end in this process; `evaluate` gives none for what is not allowed."""
    while (asked := study.ask()) is not None:
        number, parameters = asked
        metrics = evaluate(parameters)
        study.tell(number, metrics, invalid=metrics is None)
    return study.evaluated()
