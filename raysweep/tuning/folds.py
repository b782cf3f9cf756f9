"""The searches of a sweep: what each may see, and what it is reported on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.errors import SpecError
from raysweep.identity import Json, canonical, digest
from raysweep.methods import Method, by_content
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.ranges import Scalar
from raysweep.sweep.searching import tuning_faults
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import WITH_CLEAN, Held, Knowledge, Part, Tune
from raysweep.tuning.candidates import candidate_ends
from raysweep.tuning.feed import TuningPlanner
from raysweep.tuning.ranking import Evaluated
from raysweep.tuning.recording import record
from raysweep.tuning.search import Search, attack_title
from raysweep.tuning.space import Space, own_values, spaces_of
from raysweep.tuning.stored import attacks
from raysweep.tuning.study import Study


@dataclass(frozen=True, kw_only=True)
class Split:
    """The settings that one search may see, and those that it is reported on.

    Attributes:
        subject: the defense, or the attack, that is searched.
        knows: what its parameters will rest on.
        part: the part that is held out, or that an attacker knows; empty: everything is seen.
        settings: trials of the subject in the settings that are seen.
        held_out: the same of the settings that it is reported on.
    """

    subject: Method
    knows: Knowledge
    part: str
    settings: tuple[Trial, ...]
    held_out: tuple[Trial, ...]

    @property
    def study(self) -> str:
        """The name of its study within its sweep."""
        if not isinstance(self.subject, Attack):
            return f"{self.subject.label}/{self.part or 'all'}"
        return f"{attack_title(self.subject)}/{self.knows} {self.part}"


@dataclass(frozen=True)
class Studies:
    """Opens Optuna studies: in a database, or in a journal beside the sweep's records.

    The journal of a remote store is kept on this machine, and made anew from the ledger elsewhere.
    """

    planner: TuningPlanner
    store: Store
    url: str | None = None

    def open(self, split: Split, space: Space) -> Study:
        """Return the study of one search, tied to the victims and poison that it may see."""
        tune, folder, subject = self._tune, self._folder, split.subject
        name, tied = self._name(split), self._tied(split, space)
        return Study(
            name, space, tune, tied=tied, own=own_values(subject, space), steps=len(split.settings),
            known=subject.model_dump(), first=[
                {name: value for name, value in point[subject.name].items() if name in space}
                for point in tune.first if subject.name in point
            ], where=self._where, told=candidate_ends(ledger.read(folder.tuning), name, tied),
        )  # fmt: skip

    def record(self, split: Split, space: Space, found: Sequence[Evaluated]) -> None:
        """Leave an exact search as a study."""
        tied = self._tied(split, space)
        record(self._name(split), space, self._tune, self._where, tied, found)

    @property
    def _tune(self) -> Tune:
        return self.planner.sweep.tune or Tune()

    @property
    def _folder(self) -> SweepFolder:
        return SweepFolder(self.store, self.planner.sweep.name)

    @property
    def _where(self) -> str | Path:
        return self.url or self._folder.journal

    def _name(self, split: Split) -> str:
        return f"{self.planner.sweep.name}/{split.study}"

    def _tied(self, split: Split, space: Space) -> str:
        """Return the digest of what a search's candidates are evaluated on."""
        settled = [self.planner.setting(setting) for setting in split.settings]
        fixed = self._tune.model_dump(
            mode="json", exclude={"trials", "parameters", "stop", "first"}
        )
        seen = [[one.data, one.poison, one.victim, one.stamp] for one in settled]
        searched = {field: values.pack() for field, values in space.items()}
        parts = [_identity(split.subject), seen, searched, fixed]
        if isinstance(split.subject, Attack):
            parts.append([_identity(setting.defense) for setting in split.settings])
        return digest(canonical(parts))


def _identity(method: Method) -> Json:
    axis = "attack" if isinstance(method, Attack) else "defense"
    identity: Json = by_content({axis: method.identity()})[axis]
    return identity


def searches_of(sweep: Sweep, planner: TuningPlanner, studies: Studies) -> list[Search]:
    """Return, for each defense, a search for each part held out, and one that holds out nothing.

    For each attack, where attacks are searched, one against each defense, and one against all
    others.

    Raises:
        SpecError: if there is nothing to tune, or the labels allowed do not suffice.
    """
    tune = sweep.tune or Tune()
    searches: list[Search] = []
    for trials, spaces in subjects_of(sweep, planner.every):
        searches += _folds(tune, trials, spaces, studies, planner.data)
    return searches


def subjects_of(
    sweep: Sweep, every: Sequence[Trial]
) -> list[tuple[list[Trial], tuple[Space, Space]]]:
    """Return the trials, and the outer and inner space, of each method that is searched.

    Raises:
        SpecError: if there is nothing to tune, or what is searched has a fault.
    """
    tune = sweep.tune or Tune()
    methods: Sequence[Method] = sweep.attacks if tune.who == "attack" else sweep.defenses
    unknown = sorted({*tune.parameters} - {method.name for method in methods})
    if unknown:
        raise SpecError(f"tune.parameters: {unknown[0]!r} is no {tune.who} of this sweep")
    for path, message in tuning_faults(tune, sweep.defenses, sweep.attacks, sweep.datasets):
        raise SpecError(f"{'.'.join(map(str, ('tune', *path)))}: {message}")
    found = []
    for method in methods:
        outer, inner = spaces_of(method, tune)
        trials = [t for t in every if subject_of(t, tune) == method and _takes_part(t, tune)]
        if not trials or not (outer or inner):
            continue
        if outer and tune.labels == "clean_only":
            raise SpecError(
                f"tune.labels: clean_only can choose decisions alone, but {method.name}'s "
                f"{', '.join(outer)} would need the labels of an attack; remove it"
            )
        found.append((trials, (outer, inner)))
    if not found:
        has = "parameters" if tune.who == "attack" else "decision parameters"
        raise SpecError(
            f"nothing to tune: no {tune.who} of this sweep has {has} to search; give "
            "tune.parameters"
        )
    return found


def subject_of(trial: Trial, tune: Tune) -> Method:
    """Return the method of a trial that is searched."""
    return trial.attack if tune.who == "attack" else trial.defense


def _takes_part(trial: Trial, tune: Tune) -> bool:
    """Return whether a trial is searched on: it has something to detect, or false alarms count.

    An attack is searched against each defense that gives something.
    """
    attack = trial.attack
    if tune.who == "attack":
        return attacks(attack) and bool(trial.defense.gives())
    if attack.EVADES:
        return "input_scores" in trial.defense.gives()
    return attacks(attack) or bool({*tune.named_metrics} & {*WITH_CLEAN})


def parts_of(
    trials: Sequence[Trial], hold_out: Held, data_key: Callable[[Dataset], str]
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


def _key(trial: Trial, hold_out: Held, data_key: Callable[[Dataset], str]) -> str:
    if hold_out == "attack":
        return trial.attack.family if attacks(trial.attack) else ""
    return data_key(trial.dataset) if hold_out == "dataset" else _name(trial, hold_out)


def _name(trial: Trial, hold_out: Held) -> str:
    if hold_out == "attack":
        attack = trial.attack
        known = attack.family in (attack.FAMILY, attack.name)
        return attack.name if known else f"{attack.name}({attack.family})"
    names = {
        "dataset": trial.dataset.label, "rate": f"{trial.attack.rate:g}", "seed": str(trial.seed),
        "defense": trial.defense.label,
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
    first = tuple(
        point[name] for point in tune.first for name in point
        if name == subject_of(every[0], tune).name
    )  # fmt: skip
    return [
        Search(
            subject=split.subject, outer=spaces[0], inner=spaces[1], tune=tune, knows=split.knows,
            part=split.part, settings=split.settings, held_out=split.held_out, first=first,
            studied=functools.partial(studies.open, split),
            recorded=functools.partial(studies.record, split),
        )
        for split in splits_of(tune, every, data_key)
    ]  # fmt: skip


def splits_of(
    tune: Tune, every: Sequence[Trial], data_key: Callable[[Dataset], str]
) -> Iterator[Split]:
    """Yield the settings of each search of one subject.

    Raises:
        SpecError: if there is too little to leave something out.
    """
    subject, attacking = subject_of(every[0], tune), tune.who == "attack"
    names = parts_of(every, tune.held_out_by, data_key)
    trials = [trial for trial in every if not _reported_on(trial, tune)]
    third = tuple(trial for trial in every if _reported_on(trial, tune))
    _check_splits(tune, trials, third)
    parts = [part for part in dict.fromkeys(names[trial] for trial in trials) if part]
    if tune.labels == "transfer" and len(parts) < 2 and not attacking:
        raise SpecError(
            f"tune.labels: transfer needs at least two values of {tune.hold_out} to leave one "
            f"out, got {parts}; add some, or set tune.hold_out"
        )
    # A defense's last one holds out nothing: its parameters are those to use on new attacks.
    for part in parts if attacking else (*parts, ""):
        of_part = ("", part)
        held = tuple(t for t in trials if not part or names[t] in of_part)
        rest = tuple(t for t in trials if not part or names[t] != part)
        # Of a split by attacks no third part is of the attack that was left out.
        report = tuple(t for t in third if not part or names[t] in of_part) or third
        seen: dict[Knowledge, tuple[Trial, ...]] = {tune.labels: held}
        if attacking:
            seen = {"adaptive": held, "transferred": rest}
        elif tune.labels == "transfer":
            seen = {"transfer": rest}
        for knows, settings in seen.items():
            if settings:  # beside the only defense there is no other
                yield Split(
                    subject=subject, knows=knows, part=part, settings=settings,
                    held_out=report or held,
                )  # fmt: skip


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
