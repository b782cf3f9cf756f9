"""Decisions evaluated a second by replaying stored scores, beside running the detector again.

    python benchmarks/replay.py [--samples 50000] [--instances 20] [--thresholds 400]

An evaluation is one (decision parameter, instance): the method's own `decide`, and TPR and FPR of
what it decides against the truth, on random scores of 50,000 samples and 20 instances, as a search
does it. Beside it, `spectral_signatures` is run again on features of 64 dimensions. All in one run;
prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from raysweep.attacks.badnets import BadNets
from raysweep.datasets.digits import Digits
from raysweep.defenses import Defense, DefenseInputs, Evidence
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.defenses.strip import Strip
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.sweep.trials import Trial
from raysweep.tuning.space import with_parameters
from raysweep.tuning.stored import StoredFindings, measure


def instance(defense: Defense, samples: int, number: int) -> StoredFindings:
    draw = np.random.default_rng(number)
    poison = draw.random(samples) < 0.05
    scores = draw.normal(size=samples) + 2 * poison
    evidence = Evidence(
        defense.name, defense.needs(),
        {"labels": np.arange(samples) % 10, "num_classes": 10, "train_scores": scores,
         "reference_scores": draw.normal(size=1000), "statistics": {}},
    )  # fmt: skip
    return StoredFindings(
        trial=Trial(
            dataset=Digits(), model=TinyCNN(), attack=BadNets(), defense=defense, recipe=Recipe(),
            seed=number,
        ),
        evidence=evidence,
        inputs={"clean": scores[~poison], "triggered": scores}, key=str(number), sealed=False,
        _poison=poison, _cover=np.zeros(samples, bool), _eligible=poison, _evaluated={},
    )  # fmt: skip


def per_second(defense: Defense, field: str, given: argparse.Namespace) -> float:
    found = [instance(defense, given.samples, n) for n in range(given.instances)]
    values = np.geomspace(0.002, 0.3, given.thresholds)
    start = time.perf_counter()
    for value in values:
        chosen = with_parameters(defense, {field: float(value)})
        for one in found:
            measure(chosen, one)
    return given.instances * given.thresholds / (time.perf_counter() - start)


def rerun_per_second(given: argparse.Namespace) -> float:
    draw, method = np.random.default_rng(0), SpectralSignatures()
    values = {
        "features": draw.normal(size=(given.samples, 64)).astype(np.float32),
        "labels": np.arange(given.samples) % 10,
    }
    start = time.perf_counter()
    for _ in range(3):
        method.run(DefenseInputs(method.name, method.needs(), values), Context(seed=0))
    return 3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--thresholds", type=int, default=400)
    given = parser.parse_args()
    again = rerun_per_second(given)
    result = {"rerun spectral_signatures": round(again, 2)}
    for defense, field in ((Strip(), "fpr"), (SpectralSignatures(), "fraction")):
        rate = per_second(defense, field, given)
        result[f"replay {defense.name}"] = round(rate)
        result[f"replay {defense.name} / rerun"] = round(rate / again)
    print(json.dumps({"evaluations a second": result}, indent=2))


if __name__ == "__main__":
    main()
