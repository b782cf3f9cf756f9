"""Counts are what the written decimals say; a share that comes to nothing is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from raysweep import methods
from raysweep.attacks import Attack, Choice
from raysweep.attacks.badnets import BadNets
from raysweep.counts import count_of, exactly, least_share, most_share
from raysweep.datasets.digits import Digits
from raysweep.defenses import Defense, Evidence
from raysweep.defenses.abl import ABL
from raysweep.defenses.asset import ASSET
from raysweep.defenses.confusion_training import ConfusionTraining
from raysweep.defenses.datamodels import Datamodels
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.defenses.spectre import SPECTRE
from raysweep.errors import PlanError, SpecError
from raysweep.identity import kind_of
from raysweep.jobs.launch import launch
from raysweep.plan.planner import Planner
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep

RATES = [thousandths / 1000 for thousandths in range(1, 1000)]
SWEEP = """\
name: counted
dataset: {digits: {size: 100}}
model: tiny_cnn
recipe: {epochs: 1}
attacks: [badnets: {rate: 0.29}]
defenses: [none]
seeds: 1
track: {wandb: disabled}
"""


def written(folder: Path, old: str = "", new: str = "") -> Path:
    file = folder / "counted.yaml"
    file.write_text(SWEEP.replace(old, new))
    return file


@pytest.mark.parametrize(("total", "short"), [(100, 3), (39_209, 0), (50_000, 45)])
def test_every_rate_of_three_decimals_gives_its_exact_count(total: int, short: int) -> None:
    labels = np.zeros(total, np.int64)
    wrong = 0
    for thousandths, rate in enumerate(RATES, 1):
        right = Fraction(thousandths, 1000) * total // 1
        if right:
            assert BadNets(rate=rate).counts(labels, 10).poison == right, rate
        wrong += int(rate * total) != right
    assert wrong == short, "of which floating point makes one too few"


@pytest.mark.parametrize("total", [1, 3, 7, 100, 6_000, 1_281_167])
def test_named_bounds_are_decimals_that_keep_what_they_promise(total: int) -> None:
    for n in {1, total // 3 or 1, total}:
        assert count_of(float(least_share(n, total)), total) >= n
        assert count_of(float(most_share(n, total)), total) <= n
    assert count_of(float(least_share(1, total)), total) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{rate: 0.005}", r"rate 0.005 of 100 training images comes to no poisoned image; "
                          r"give at least 0.01, or 0"),
        ("{rate: 0.1, cover_rate: 0.0099}", r"cover_rate 0.0099 of 100 .* no cover image; "
                                            r"give at least 0.01, or 0"),
    ],
)  # fmt: skip
def test_a_positive_rate_that_comes_to_nothing_is_refused(
    tmp_path: Path, given: str, said: str
) -> None:
    sweep = load_sweep(written(tmp_path, "{rate: 0.29}", given))
    with pytest.raises(PlanError, match=rf"dataset digits.*attack badnets: {said}"):
        Planner(sweep).setting(Planner(sweep).trials[0])


def test_rate_0_is_not_refused() -> None:
    counts = BadNets(rate=0.0, cover_rate=0.001).counts(np.zeros(100, np.int64), 10)
    assert (counts.poison, counts.cover) == (0, 0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: 1", "seeds: [0, 9223372036854775808]", "counted.yaml:7: seeds.1: "),
        ("seeds: 1", "seeds: [9223372036854775808]", "than 9223372036854775808, got"),
        ("seeds: 1", "seeds: 18446744073709551616", "counted.yaml:7: seeds: must be a number"),
        ("size: 100", "subset_seed: 1180591620717411303424", "counted.yaml:2: dataset.digits"),
        ("badnets: {", "blend: {image_seed: 18446744073709551616, ", "counted.yaml:5: attacks.0"),
        ("seeds: 1", "seeds: 1\ntune: {seed: 4294967296}", "counted.yaml:8: tune.seed: "),
    ],
)
def test_a_seed_that_no_record_can_hold_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(SpecError) as refused:
        load_sweep(written(tmp_path, old, new))
    assert said in str(refused.value) and "must be" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_launch_poisons_what_the_file_says_and_records_the_largest_seeds(tmp_path: Path) -> None:
    most = 2**63 - 1
    file = written(tmp_path, "seeds: 1", f"seeds: [{most}]")
    file.write_text(file.read_text().replace("size: 100", f"size: 100, subset_seed: {most}"))
    rows = launch(load_sweep(file), file.read_text(), str(tmp_path / "store"), inline=True).rows
    stored = pd.read_parquet(tmp_path / "store" / "sweeps" / "counted" / "records.parquet")
    assert rows["poison_count"].tolist() == [29]
    assert rows["seed"].tolist() == stored["seed"].tolist() == [most]
    assert stored["dataset.subset_seed"].tolist() == [most]


def test_an_attack_that_chooses_another_number_than_was_planned_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_short(attack: BadNets, *given: Any) -> Choice:
        choice = Attack.choose(attack, *given)
        return replace(choice, poison=choice.poison[1:])

    monkeypatch.setattr(BadNets, "choose", one_short)
    file = written(tmp_path)
    rows = launch(load_sweep(file), file.read_text(), str(tmp_path / "store"), inline=True).rows
    assert rows["status"].tolist() == ["failed"] and kind_of(rows["error_stage"][0]) == "poison"
    assert (
        "attack badnets: choose must return as many rows as were planned, Counts(poison=29, "
        "cover=0), got Counts(poison=28, cover=0)" in rows["error"][0]
    )


def test_python_sweeps_keep_the_same_bounds() -> None:
    given = {
        "name": "x", "dataset": Digits(), "model": methods.load("models", "tiny_cnn")(),
        "attacks": [BadNets()], "defenses": [methods.load("defenses", "none")()],
    }  # fmt: skip
    for seeds in ([2**63], [-1], 2**64, 0):
        with pytest.raises(ValidationError, match="seeds"):
            Sweep(**given, seeds=seeds)
    with pytest.raises(ValidationError, match="at most 9223372036854775807"):
        Digits(subset_seed=2**63)


def flagged(method: Defense, size: int = 100) -> int:
    values = {
        "labels": np.zeros(size, np.int64), "num_classes": 1, "statistics": {},
        "train_scores": np.arange(size, dtype=np.float32) + 1,
    }  # fmt: skip
    flags = method.decide(Evidence(method.name, method.needs(), values)).flags
    assert flags is not None
    return int(flags.sum())


@pytest.mark.parametrize(
    "method",
    [
        ABL(ratio=0.29), ASSET(rule="fraction", fraction=0.29), Datamodels(removed=0.29),
        ConfusionTraining(rule="lowest", fraction=0.29), SpectralSignatures(fraction=0.29),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_defenses_remove_the_share_that_is_written(method: Defense) -> None:
    assert flagged(method) == 29, "in floating point 0.29 of 100 are 28"


def test_what_the_oracle_assumes_is_exact() -> None:
    assert count_of(1.15, SpectralSignatures().assumed(0.1, 1000, 100)) == 115
    assert SPECTRE().assumed(0.5, 5800, 700) == 231 and int(0.33 * 700) == 231
    assert exactly(exactly(0.07, 100) / 100, 100) == 7 != 0.07 * 100


def test_noisy_labels_are_as_many_as_written() -> None:
    data = Digits(size=100, label_noise=0.29)
    labels = data.read_labels()
    rows, _, _ = data.kept(labels)
    assert (data.training_labels(labels, rows) != labels.train[rows]).sum() == 29
