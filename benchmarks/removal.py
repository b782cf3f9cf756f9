"""How well RED's scores tell the poison of the target class, from what a sweep has stored.

    raysweep tune sweeps/red_removal_cifar10_small.yaml
    python benchmarks/removal.py [--sweep FILE] [--storage URI] [--seeds 100]

Reads the findings of every `red` of the sweep and trains nothing. A row of the table is a setting
and a defense: the AUROC of the poison among the samples labeled as the target, and TPR and FPR in
per cent, over all samples, of the rules `quantile` and `split`. Prints a table in Markdown, and
what is not stored to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raysweep.errors import PlanError
from raysweep.metrics.ranking import ranking
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.store.sweepfolder import storage_uri
from raysweep.sweep.loading import load_sweep
from raysweep.tuning.space import with_parameters
from raysweep.tuning.stored import measure, stored_findings

SWEEP = Path("sweeps/red_removal_cifar10_small.yaml")
RULES = ({"rule": "quantile"}, {"rule": "split"})
HEAD = ("attack", "seed", "knows", "score", "AUROC", "TPR, FPR by quantile", "TPR, FPR by split")


def rows(planner: Planner, store: Store) -> Iterator[tuple[str, ...]]:
    """Yield a row for each setting and defense."""
    for trial in planner.trials:
        try:
            found, parameters = stored_findings(planner, store, trial), trial.defense.params()
        except PlanError as error:
            print(error, file=sys.stderr)
            continue
        assert found.evidence is not None
        poison, _, _ = found.truth()
        inside = found.evidence.labels == int(found.evidence.statistics["target"])
        auroc = ranking(np.asarray(found.evidence.train_scores)[inside], poison[inside]).auroc
        rates = [measure(with_parameters(trial.defense, rule), found) for rule in RULES]
        told = [f"{100 * rate['tpr']:.1f}, {100 * rate['fpr']:.2f}" for rate in rates]
        yield (
            trial.attack.label, str(trial.seed), parameters["knows"], parameters["score"],
            f"{auroc:.3f}", *told,
        )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", type=Path, default=SWEEP)
    parser.add_argument("--storage")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default those of the sweep")
    given = parser.parse_args()
    sweep = load_sweep(given.sweep)
    if given.seeds:
        sweep = sweep.model_copy(update={"seeds": tuple(given.seeds)})
    table = rows(Planner(sweep), Store(storage_uri(given.storage)))
    for row in (HEAD, ["---"] * len(HEAD), *table):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
