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
from raysweep.sweep.spec import Sweep, Trial
from raysweep.sweep.tuning import Tune
from raysweep.tuning.feed import EvidencePlanner
from raysweep.tuning.search import Search
from raysweep.tuning.space import Space, own_values, spaces_of
from raysweep.tuning.study import Study, told_lines


@dataclass(frozen=True)
class Studies:
    """Opens Optuna studies: in a database, or in a journal beside the sweep's records.

    The journal of a remote store is kept on this machine, and made anew from the ledger elsewhere.
    """

    planner: EvidencePlanner
    store: Store
    url: str | None = None

    def open(self, defense: Defense, part: str, places: tuple[Trial, ...], space: Space) -> Study:
        """Return the study of one search, tied to the victims and poison that it may see."""
        sweep = self.planner.sweep
        settings = sweep.tune or Tune()
        folder = SweepFolder(self.store, sweep.name)
        name = f"{sweep.name}/{defense.label}/{part or 'all'}"
        settled = [self.planner.setting(place) for place in places]
        fixed = settings.model_dump(mode="json", exclude={"trials", "parameters"})
        seen = [[one.data, one.poison, one.victim, one.stamp] for one in settled]
        searched = {field: dict(rule) for field, rule in space.items()}
        told = by_content({"defense": defense.identity()})["defense"]
        tied = digest(canonical([told, seen, searched, fixed]))
        return Study(
            name, space, settings, tied=tied, own=own_values(defense, space), steps=len(places),
            where=self.url or folder.journal, told=told_lines(
                ledger.read(folder.tuning), name, tied
            ),
        )  # fmt: skip


def searches_of(sweep: Sweep, planner: EvidencePlanner, studies: Studies) -> list[Search]:
    """Return, for each defense, a search for each part held out, and one that holds out nothing.

    Raises:
        SpecError: if there is nothing to tune, or the labels allowed do not suffice.
    """
    settings = sweep.tune or Tune()
    unknown = sorted({*settings.parameters} - {defense.name for defense in sweep.defenses})
    if unknown:
        raise SpecError(f"tune.parameters: {unknown[0]!r} is no defense of this sweep")
    found: list[Search] = []
    for defense in sweep.defenses:
        outer, inner = spaces_of(defense, settings)
        trials = [t for t in planner.every if t.defense == defense and _has_positives(t)]
        if not trials or not (outer or inner):
            continue
        if outer and settings.labels == "clean_only":
            raise SpecError(
                f"tune.labels: clean_only can choose decisions alone, but {defense.name}'s "
                f"{', '.join(outer)} would need the labels of an attack; remove it"
            )
        found += _folds(settings, trials, (outer, inner), studies)
    if not found:
        raise SpecError(
            "nothing to tune: no defense of this sweep has decision parameters to search; give "
            "tune.parameters"
        )
    return found


def _has_positives(trial: Trial) -> bool:
    """Return whether a trial has something to detect: poison, or inputs that evade."""
    evading = trial.attack.EVADES and "input_scores" in trial.defense.gives()
    return trial.attack.rate > 0 or evading


def part_of(trial: Trial, hold_out: str) -> str:
    """Return what a trial is held out by; forms of one attack are held out together."""
    parts = {
        "attack": trial.attack.name, "dataset": trial.dataset.label,
        "rate": f"{trial.attack.rate:g}", "seed": str(trial.seed),
    }  # fmt: skip
    return parts[hold_out]


def _folds(
    settings: Tune, trials: Sequence[Trial], spaces: tuple[Space, Space], studies: Studies
) -> list[Search]:
    defense = trials[0].defense
    parts = list(dict.fromkeys(part_of(trial, settings.hold_out) for trial in trials))
    if settings.labels == "transfer" and len(parts) < 2:
        raise SpecError(
            f"tune.labels: transfer needs at least two values of {settings.hold_out} to leave one "
            f"out, got {parts}; add some, or set tune.hold_out"
        )
    found = []
    # The last one holds out nothing: its parameters are those to use on new attacks.
    for part in (*parts, ""):
        held = tuple(t for t in trials if part in ("", part_of(t, settings.hold_out)))
        rest = tuple(t for t in trials if not part or part_of(t, settings.hold_out) != part)
        places = rest if settings.labels == "transfer" else held
        search = Search(
            defense=defense, outer=spaces[0], inner=spaces[1], settings=settings, part=part,
            places=places, held=held,
            studied=functools.partial(studies.open, defense, part, places),
        )  # fmt: skip
        found.append(search)
    return found
