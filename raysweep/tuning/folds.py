"""The searches of a sweep: what each may see, and what it is reported on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.identity import canonical, digest
from raysweep.methods import by_content
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import Tune
from raysweep.tuning.feed import TuningPlanner
from raysweep.tuning.search import Search
from raysweep.tuning.space import Space, own_values, spaces_of
from raysweep.tuning.study import Study, candidate_ends


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
        sweep = self.planner.sweep
        tune = sweep.tune or Tune()
        folder = SweepFolder(self.store, sweep.name)
        name = f"{sweep.name}/{defense.label}/{part or 'all'}"
        settled = [self.planner.setting(setting) for setting in settings]
        fixed = tune.model_dump(mode="json", exclude={"trials", "parameters"})
        seen = [[one.data, one.poison, one.victim, one.stamp] for one in settled]
        searched = {field: values.pack() for field, values in space.items()}
        identity = by_content({"defense": defense.identity()})["defense"]
        tied = digest(canonical([identity, seen, searched, fixed]))
        return Study(
            name, space, tune, tied=tied, own=own_values(defense, space), steps=len(settings),
            where=self.url or folder.journal, told=candidate_ends(
                ledger.read(folder.tuning), name, tied
            ),
        )  # fmt: skip


def searches_of(sweep: Sweep, planner: TuningPlanner, studies: Studies) -> list[Search]:
    """Return, for each defense, a search for each part held out, and one that holds out nothing.

    Raises:
        SpecError: if there is nothing to tune, or the labels allowed do not suffice.
    """
    tune = sweep.tune or Tune()
    unknown = sorted({*tune.parameters} - {defense.name for defense in sweep.defenses})
    if unknown:
        raise SpecError(f"tune.parameters: {unknown[0]!r} is no defense of this sweep")
    searches: list[Search] = []
    for defense in sweep.defenses:
        outer, inner = spaces_of(defense, tune)
        trials = [t for t in planner.every if t.defense == defense and _has_positives(t)]
        if not trials or not (outer or inner):
            continue
        if outer and tune.labels == "clean_only":
            raise SpecError(
                f"tune.labels: clean_only can choose decisions alone, but {defense.name}'s "
                f"{', '.join(outer)} would need the labels of an attack; remove it"
            )
        searches += _folds(tune, trials, (outer, inner), studies)
    if not searches:
        raise SpecError(
            "nothing to tune: no defense of this sweep has decision parameters to search; give "
            "tune.parameters"
        )
    return searches


def _has_positives(trial: Trial) -> bool:
    """Return whether a trial has something to detect: poison, or inputs that evade."""
    evading = trial.attack.EVADES and "input_scores" in trial.defense.gives()
    return trial.attack.rate > 0 or evading


def part_of(trial: Trial, hold_out: str) -> str:
    """Return the part that a trial is held out with; forms of one attack share one."""
    parts = {
        "attack": trial.attack.name, "dataset": trial.dataset.label,
        "rate": f"{trial.attack.rate:g}", "seed": str(trial.seed),
    }  # fmt: skip
    return parts[hold_out]


def _folds(
    tune: Tune, trials: Sequence[Trial], spaces: tuple[Space, Space], studies: Studies
) -> list[Search]:
    defense = trials[0].defense
    parts = list(dict.fromkeys(part_of(trial, tune.hold_out) for trial in trials))
    if tune.labels == "transfer" and len(parts) < 2:
        raise SpecError(
            f"tune.labels: transfer needs at least two values of {tune.hold_out} to leave one "
            f"out, got {parts}; add some, or set tune.hold_out"
        )
    searches = []
    # The last one holds out nothing: its parameters are those to use on new attacks.
    for part in (*parts, ""):
        held = tuple(t for t in trials if part in ("", part_of(t, tune.hold_out)))
        rest = tuple(t for t in trials if not part or part_of(t, tune.hold_out) != part)
        settings = rest if tune.labels == "transfer" else held
        search = Search(
            defense=defense, outer=spaces[0], inner=spaces[1], tune=tune, part=part,
            settings=settings, held_out=held,
            studied=functools.partial(studies.open, defense, part, settings),
        )  # fmt: skip
        searches.append(search)
    return searches
