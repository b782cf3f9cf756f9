"""The searches of a sweep: what each may see, and what it is reported on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysweep.datasets import Dataset
from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.identity import canonical, digest
from raysweep.methods import by_content
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.ranges import Scalar
from raysweep.sweep.searching import tuning_faults
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import WITH_CLEAN, Part, Tune
from raysweep.tuning.candidates import candidate_ends
from raysweep.tuning.feed import TuningPlanner
from raysweep.tuning.ranking import Evaluated
from raysweep.tuning.recording import record
from raysweep.tuning.search import Search
from raysweep.tuning.space import Space, own_values, spaces_of
from raysweep.tuning.stored import attacks
from raysweep.tuning.study import Study


@dataclass(frozen=True)
class Studies:
    """Opens Optuna studies: in a database, or in a journal beside the sweep's records.

    The journal of a remote store is kept on this machine, and made anew from the ledger elsewhere.
    """

    planner: TuningPlanner
    store: Store
    url: str | None = None

    def open(self, defense: Defense, part: str, settings: tuple[Trial, ...], space: Space) -> Study:
        """Return the study of one search, tied to the victims and poison that it may see."""
        tune, folder = self._tune, self._folder
        name, tied = self._name(defense, part), self._tied(defense, settings, space)
        return Study(
            name, space, tune, tied=tied, own=own_values(defense, space), steps=len(settings),
            known=defense.model_dump(), first=[
                {name: value for name, value in point[defense.name].items() if name in space}
                for point in tune.first if defense.name in point
            ], where=self._where, told=candidate_ends(ledger.read(folder.tuning), name, tied),
        )  # fmt: skip

    def record(
        self,
        defense: Defense,
        part: str,
        settings: tuple[Trial, ...],
        space: Space,
        found: Sequence[Evaluated],
    ) -> None:
        """Leave an exact search as a study."""
        tied = self._tied(defense, settings, space)
        record(self._name(defense, part), space, self._tune, self._where, tied, found)

    @property
    def _tune(self) -> Tune:
        return self.planner.sweep.tune or Tune()

    @property
    def _folder(self) -> SweepFolder:
        return SweepFolder(self.store, self.planner.sweep.name)

    @property
    def _where(self) -> str | Path:
        return self.url or self._folder.journal

    def _name(self, defense: Defense, part: str) -> str:
        return f"{self.planner.sweep.name}/{defense.label}/{part or 'all'}"

    def _tied(self, defense: Defense, settings: tuple[Trial, ...], space: Space) -> str:
        """Return the digest of what a search's candidates are evaluated on."""
        settled = [self.planner.setting(setting) for setting in settings]
        fixed = self._tune.model_dump(
            mode="json", exclude={"trials", "parameters", "stop", "first"}
        )
        seen = [[one.data, one.poison, one.victim, one.stamp] for one in settled]
        searched = {field: values.pack() for field, values in space.items()}
        identity = by_content({"defense": defense.identity()})["defense"]
        return digest(canonical([identity, seen, searched, fixed]))


def searches_of(sweep: Sweep, planner: TuningPlanner, studies: Studies) -> list[Search]:
    """Return, for each defense, a search for each part held out, and one that holds out nothing.

    Raises:
        SpecError: if there is nothing to tune, or the labels allowed do not suffice.
    """
    tune = sweep.tune or Tune()
    unknown = sorted({*tune.parameters} - {defense.name for defense in sweep.defenses})
    if unknown:
        raise SpecError(f"tune.parameters: {unknown[0]!r} is no defense of this sweep")
    for path, message in tuning_faults(tune, sweep.defenses):
        raise SpecError(f"{'.'.join(map(str, ('tune', *path)))}: {message}")
    searches: list[Search] = []
    for defense in sweep.defenses:
        outer, inner = spaces_of(defense, tune)
        trials = [t for t in planner.every if t.defense == defense and _takes_part(t, tune)]
        if not trials or not (outer or inner):
            continue
        if outer and tune.labels == "clean_only":
            raise SpecError(
                f"tune.labels: clean_only can choose decisions alone, but {defense.name}'s "
                f"{', '.join(outer)} would need the labels of an attack; remove it"
            )
        searches += _folds(tune, trials, (outer, inner), studies, planner.data)
    if not searches:
        raise SpecError(
            "nothing to tune: no defense of this sweep has decision parameters to search; give "
            "tune.parameters"
        )
    return searches


def _takes_part(trial: Trial, tune: Tune) -> bool:
    """Return whether a trial is searched on: it has something to detect, or false alarms count."""
    attack = trial.attack
    if attack.EVADES:
        return "input_scores" in trial.defense.gives()
    return attacks(attack) or bool({*tune.named_metrics} & {*WITH_CLEAN})


def parts_of(
    trials: Sequence[Trial], hold_out: Part, data_key: Callable[[Dataset], str]
) -> dict[Trial, str]:
    """Return the name of the part that each trial is held out with.

    Forms of one attack, and attacks of one family, are one part, named by all of them; so are
    datasets of one content. A trial at rate 0 has no attack, and no part where attacks or rates are
    held out: its name is empty.
    """
    keys = {trial: _key(trial, hold_out, data_key) for trial in trials}
    names: dict[str, list[str]] = {}
    for trial, key in keys.items():
        names.setdefault(key, []).append(_name(trial, hold_out))
    shown = {key: "+".join(dict.fromkeys(several)) for key, several in names.items()}
    unattacked = hold_out in ("attack", "rate")
    return {
        trial: "" if unattacked and not attacks(trial.attack) else shown[key]
        for trial, key in keys.items()
    }


def _key(trial: Trial, hold_out: Part, data_key: Callable[[Dataset], str]) -> str:
    if hold_out == "attack":
        return trial.attack.family if attacks(trial.attack) else ""
    return data_key(trial.dataset) if hold_out == "dataset" else _name(trial, hold_out)


def _name(trial: Trial, hold_out: Part) -> str:
    if hold_out == "attack":
        attack = trial.attack
        known = attack.family in (attack.FAMILY, attack.name)
        return attack.name if known else f"{attack.name}({attack.family})"
    names = {
        "dataset": trial.dataset.label, "rate": f"{trial.attack.rate:g}", "seed": str(trial.seed)
    }  # fmt: skip
    return names[hold_out]


def _reported_on(trial: Trial, tune: Tune) -> bool:
    """Return whether a trial belongs to the third split, which no search sees."""
    attack, dataset = trial.attack, trial.dataset
    values: dict[Part, tuple[Scalar, ...]] = {
        "attack": (attack.name, attack.label, attack.family), "rate": (attack.rate,),
        "dataset": (dataset.name, dataset.label), "seed": (trial.seed,),
    }  # fmt: skip
    asked = tune.report_on.items()
    return bool(asked) and all({*values[part]} & {*wanted} for part, wanted in asked)


def _folds(
    tune: Tune,
    every: Sequence[Trial],
    spaces: tuple[Space, Space],
    studies: Studies,
    data_key: Callable[[Dataset], str],
) -> list[Search]:
    defense = every[0].defense
    names = parts_of(every, tune.hold_out, data_key)
    trials = [trial for trial in every if not _reported_on(trial, tune)]
    third = tuple(trial for trial in every if _reported_on(trial, tune))
    _check_splits(tune, trials, third)
    parts = [part for part in dict.fromkeys(names[trial] for trial in trials) if part]
    if tune.labels == "transfer" and len(parts) < 2:
        raise SpecError(
            f"tune.labels: transfer needs at least two values of {tune.hold_out} to leave one "
            f"out, got {parts}; add some, or set tune.hold_out"
        )
    first = tuple(point[defense.name] for point in tune.first if defense.name in point)
    searches = []
    # The last one holds out nothing: its parameters are those to use on new attacks.
    for part in (*parts, ""):
        of_part = ("", part)
        held = tuple(t for t in trials if not part or names[t] in of_part)
        rest = tuple(t for t in trials if not part or names[t] != part)
        settings = rest if tune.labels == "transfer" else held
        # Of a split by attacks no third part is of the attack that was left out.
        report = tuple(t for t in third if not part or names[t] in of_part) or third
        search = Search(
            defense=defense, outer=spaces[0], inner=spaces[1], tune=tune, part=part,
            settings=settings, held_out=report or held, first=first,
            studied=functools.partial(studies.open, defense, part, settings),
            recorded=functools.partial(studies.record, defense, part, settings),
        )  # fmt: skip
        searches.append(search)
    return searches


def _check_splits(tune: Tune, trials: Sequence[Trial], third: Sequence[Trial]) -> None:
    """Refuse a third split that is empty or everything, and false alarms without clean trials."""
    if tune.report_on and not (trials and third):
        raise SpecError(
            f"tune.report_on: {tune.report_on} names {'every' if third else 'no'} trial of this "
            f"sweep that is tuned on; name some of them"
        )
    wanted = [name for name in tune.named_metrics if name in WITH_CLEAN]
    if wanted and all(attacks(trial.attack) for trial in trials):
        raise SpecError(
            f"tune: {wanted[0]} is measured at rate 0 too, and this sweep has no such trial; add "
            f"attack none"
        )
    if all(not attacks(trial.attack) for trial in trials):
        raise SpecError("tune: this sweep has no attack to tune on; add some")
