"""One Optuna study, asked and told by the driver; it outlives the process.

A study lives in a journal file of its own sweep, or in any database that Optuna knows. It is tied
to a digest of what it is evaluated on. What a killed driver had asked for is asked again: at the
next start from a journal, which has one writer, and after missed heartbeats from a database, which
may have several.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from raysweep.errors import SpecError
from raysweep.results.tuned import CandidateRow
from raysweep.store.events import CandidateEnd, Event
from raysweep.sweep.tuning import Metrics, Parameters, Tune
from raysweep.tuning.ranking import Evaluated
from raysweep.tuning.space import Space, distribution, grid, inside

HEARTBEAT_SECONDS = 30
SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    # Its points are enqueued: Optuna's own grid cannot be asked and told.
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}
PRUNERS: Mapping[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "none": lambda _: optuna.pruners.NopPruner(),
    "median": lambda _: optuna.pruners.MedianPruner(),
    "hyperband": lambda steps: optuna.pruners.HyperbandPruner(max_resource=steps),
    "wilcoxon": lambda _: optuna.pruners.WilcoxonPruner(),
}
FAILED, METRICS, REPLAYED, TIED = "failed", "metrics", "replayed", "evaluated_on"


@functools.cache
def open_storage(where: str | Path) -> optuna.storages.BaseStorage:
    """Return the storage at a database's URL or a journal's path.

    A torn last line of a journal, left by a process that died while writing, is cut: Optuna could
    never read on after it. A journal that is damaged elsewhere is left aside as `….damaged`.
    """
    if isinstance(where, str):
        return optuna.storages.RDBStorage(
            where,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=3 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.exists():
        text = where.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            where.write_bytes(whole)
    try:
        for line in where.read_bytes().splitlines() if where.exists() else ():
            json.loads(line)  # Optuna would stumble over a last line only when it writes the next
        return _journal(where)
    except Exception:  # noqa: BLE001  whatever Optuna thinks of damaged lines
        # Left aside: the ledger remembers what was told.
        where.replace(where.with_name(f"{where.name}.damaged"))
        return _journal(where)


def _journal(where: Path) -> optuna.storages.BaseStorage:
    backend = optuna.storages.journal.JournalFileBackend(str(where))
    return optuna.storages.JournalStorage(backend)


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
            steps: instances of one candidate, for the pruner.
            told: candidates that a ledger remembers of it, should its storage have been lost.

        Raises:
            SpecError: if the study was evaluated on something else.
        """
        self.space, self.tune, self.name = space, tune, name
        self._spread = {field: distribution(values) for field, values in space.items()}
        self._out: dict[int, optuna.Trial] = {}
        self._watched: set[int] = set()
        self._shared = isinstance(where, str)
        with _quiet():
            self._study = optuna.create_study(
                study_name=name,
                load_if_exists=True,
                storage=open_storage(where) if where else None,
                pruner=PRUNERS[tune.pruner](steps),
                directions=[objective.goal for objective in tune.metric],
            )
            self._tie(tied)
            # A sampler that went on from its first draw would repeat what was tried before.
            seed = tune.seed + len(self._study.trials) + (os.getpid() if self._shared else 0)
            self._study.sampler = SAMPLERS[tune.sampler](seed)
            self._study.set_metric_names([objective.name for objective in tune.metric])
            if not self._study.trials:
                self._recover(told)
            first = [own] if own and inside(space, own) else []
            if tune.sampler == "grid":
                first = grid(space)[: tune.trials]
            if not self._study.trials:
                for values in first:
                    self._study.enqueue_trial(values, skip_if_exists=True)
            if not self._shared:
                self._revive()
        self.trials = len(first) if tune.sampler == "grid" else tune.trials
        if self._shared:
            self._beat()

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

    def _recover(self, told: Iterable[CandidateEnd]) -> None:
        """Enter the candidates that the ledger remembers of a study whose storage was lost."""
        for line in told:
            with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged ledger
                state = TrialState[line.state]
                read = {name: dict(line.attrs[name]) for name in (METRICS, REPLAYED)}
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=state,
                        params=dict(line.params),
                        distributions=self._spread,
                        values=line.values if state == TrialState.COMPLETE else None,
                        constraints=dict(line.constraints),
                        user_attrs={**line.attrs, **read},
                    )
                )

    def _revive(self) -> None:
        """Ask again for what a dead driver had asked for; a journal has one writer."""
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            if trial.params:
                self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _beat(self) -> None:
        """Tell the database every so often which candidates are still being worked on."""
        storage: Any = self._study._storage
        self._stop = threading.Event()

        def beat() -> None:
            while not self._stop.wait(HEARTBEAT_SECONDS):
                for trial in list(self._out.values()):
                    storage.record_heartbeat(trial._trial_id)

        threading.Thread(target=beat, daemon=True, name=f"heartbeat {self.name}").start()

    def close(self) -> None:
        """Stop the heartbeat."""
        if self._shared:
            self._stop.set()

    # Asking and telling

    def _states(self) -> tuple[int, int]:
        """Return the numbers of candidates that are done and in progress, here or elsewhere."""
        done = out = 0
        for trial in self._study.get_trials(deepcopy=False):
            ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            done += ended or (trial.state == TrialState.FAIL and FAILED in trial.user_attrs)
            out += trial.state == TrialState.RUNNING
        return done, out

    @property
    def finished(self) -> bool:
        """Whether as many candidates as were wanted have been told."""
        return self._states()[0] >= self.trials

    def ask(self) -> tuple[int, Parameters] | None:
        """Return the number and parameters of the next candidate; none if none is wanted now."""
        with _quiet():
            if self._shared:
                self._watch_others()
                optuna.storages.fail_stale_trials(self._study)
            done, out = self._states()
            if done + out >= self.trials:
                return None
            trial = self._study.ask(self._spread)
            if self._shared:
                self._study._storage.record_heartbeat(trial._trial_id)
        self._out[trial.number] = trial
        return trial.number, dict(trial.params)

    def _watch_others(self) -> None:
        """Give each candidate of others a heartbeat: its driver may have died before the first."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._out and trial.number not in self._watched:
                self._watched.add(trial.number)
                self._study._storage.record_heartbeat(trial._trial_id)

    def should_stop(self, number: int, step: int, value: float) -> bool:
        """Report a candidate's objective on one instance; return whether to stop it."""
        trial = self._out[number]
        with _quiet():
            trial.report(value, step)
            return bool(trial.should_prune())

    def tell(
        self,
        number: int,
        metrics: Metrics | None,
        *,
        replayed: Parameters | None = None,
        pruned: bool = False,
        why: str = "",
    ) -> CandidateEnd:
        """Enter how a candidate ended; return it as a ledger should remember it.

        Args:
            number: of the candidate.
            metrics: over the instances; none if it failed.
            replayed: the decision parameters that were best with it.
            pruned: whether it was stopped before its last instance.
            why: it failed.
        """
        trial = self._out.pop(number)
        with _quiet():
            known = {name: value for name, value in (metrics or {}).items() if value == value}
            values = [known.get(objective.name) for objective in self.tune.metric]
            state = TrialState.PRUNED if pruned else TrialState.COMPLETE
            if None in values and not pruned:
                state = TrialState.FAIL
            constraints = {}
            if metrics is not None:
                limits = zip(self.tune.constraints, self.tune.bounds, strict=True)
                constraints = {text: bound.excess(metrics) for text, bound in limits}
            attrs: dict[str, Any] = {METRICS: known, REPLAYED: replayed or {}}
            if state == TrialState.FAIL:
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

    def evaluated(self) -> list[Evaluated]:
        """Return every candidate that was evaluated in full, with its replayed parameters."""
        nothing: Metrics = dict.fromkeys(self.tune.named_metrics, float("nan"))
        return [
            Evaluated(
                parameters={**trial.params, **trial.user_attrs[REPLAYED]},
                metrics={**nothing, **trial.user_attrs[METRICS]},
            )
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ]

    def history(self) -> list[CandidateRow]:
        """Return one row per candidate, in the order of asking."""
        return [
            CandidateRow(
                number=trial.number,
                state=trial.state.name.lower(),
                parameters={**trial.params, **trial.user_attrs.get(REPLAYED, {})},
                metrics=trial.user_attrs.get(METRICS, {}),
                seconds=trial.duration.total_seconds() if trial.duration else None,
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def importance(self) -> dict[str, float]:
        """Return the importance of each parameter for the first objective (PED-ANOVA)."""
        with _quiet():
            try:
                importance = optuna.importance.get_param_importances(
                    self._study,
                    target=lambda trial: trial.values[0],
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                )
            except (ValueError, RuntimeError):  # too few candidates, or all of one value
                return {}
        return {name: float(value) for name, value in importance.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's notices about experimental parts from the user of a sweep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        yield


def candidate_ends(lines: Iterable[Event], name: str, tied: str) -> list[CandidateEnd]:
    """Return the candidates that a ledger remembers of a study, evaluated on the same."""
    told = (line for line in lines if isinstance(line, CandidateEnd))
    return [line for line in told if (line.study, line.tied) == (name, tied)]


def every_trial(study: Study, evaluate: Callable[[Parameters], Metrics]) -> list[Evaluated]:
    """Run a study to its end in this process."""
    while (asked := study.ask()) is not None:
        number, parameters = asked
        study.tell(number, evaluate(parameters))
    return study.evaluated()
