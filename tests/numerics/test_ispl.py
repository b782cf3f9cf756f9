"""Inverse self-paced learning and boosting: the vote's closed form, the schedule, a planted toy."""

from __future__ import annotations

import numpy as np
import pytest

from raysweep.defenses.ispl import ISPL, annealed, lowest, sampled, vote
from raysweep.methods.checkpoints import Checkpoints, unpacked
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe
from raysweep.metrics.ranking import ranking
from raysweep.testing import toy


def test_the_vote_counts_learners() -> None:
    predicted = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 1, 1], [0, 2, 1, 2, 1], [0, 2, 0, 2, 0]])
    labels = np.array([0, 1, 1, 1, 2])
    votes = vote(predicted, labels, 3)
    assert votes.own.tolist() == [1.0, 0.5, 0.25, 0.25, 0.0]
    # All agree; a tie; outvoted; outvoted; nobody.
    assert votes.kept.tolist() == [True, True, False, False, False]


def test_a_single_vote_decides_nothing_unless_there_is_but_one_learner() -> None:
    split = vote(np.array([[0], [1], [2]]), np.array([0]), 3)
    assert split.own == pytest.approx(1 / 3) and not split.kept[0]
    alone = vote(np.array([[0, 1]]), np.array([0, 0]), 2)
    assert alone.own.tolist() == [1, 0] and alone.kept.tolist() == [True, False]


def test_m_honest_learners_outvote_k_poisoned_ones_exactly_above_half() -> None:
    """Poison labeled 1 of class 0: k of M learners know the trigger, the others say 0."""
    for poisoned in range(9):
        predicted = np.zeros((8, 1), np.int64)
        predicted[:poisoned] = 1
        votes = vote(predicted, np.array([1]), 2)
        assert 1 - votes.own[0] == (8 - poisoned) / 8
        assert votes.kept[0] == (poisoned >= 4)


def test_shares_are_annealed_down() -> None:
    assert annealed(0.12, 3) == pytest.approx((0.36, 0.24, 0.12, 0.12, 0.12))
    assert annealed(0.4, 3) == pytest.approx((0.8, 0.4, 0.4, 0.4))
    assert annealed(0.7, 3) == pytest.approx((0.7, 0.7, 0.7))
    assert annealed(0.12, 1) == pytest.approx((0.12, 0.12, 0.12))


def test_the_lowest_losses_are_kept_and_some_of_every_class() -> None:
    losses = np.concatenate([np.arange(100) / 100, 10 + np.arange(100) / 100])
    labels = np.repeat([0, 1], 100)
    kept = lowest(losses, labels, 0.4)
    assert kept[:80].all() and not kept[80:100].any()
    assert kept[100:105].all() and not kept[105:].any(), "5 % of class 1: an eighth of 40 %"
    assert lowest(losses, labels, 1.0).all()


def test_samples_have_their_exact_size_and_at_least_two_rows() -> None:
    rows = np.arange(100, 140)
    draw = np.random.default_rng(0)
    some = sampled(draw, rows, 0.25)
    assert len(some) == 10 and np.isin(some, rows).all() and (np.diff(some) > 0).all()
    assert len(sampled(draw, rows, 0.01)) == 2
    assert sampled(draw, rows, 1.0).tolist() == rows.tolist()


@pytest.mark.further
@pytest.mark.slow
def test_planted_poison_is_outvoted() -> None:
    case = toy.toy()
    method = ISPL(repeats=1, weak_epochs=8, epochs=3, rounds=0, expansion=0.5, rule="vote")
    found = toy.found(method, case)
    assert found.train_scores is not None
    assert ranking(np.asarray(found.train_scores), case.mask).auroc > 0.95
    flags = method.decide(toy.evidence(method, case, found)).flags
    assert flags is not None and flags[case.mask].mean() > 0.5 and flags[~case.mask].mean() < 0.02
    # Poison is easy to learn and its own best company: few subsets hold most of it.
    members = found.statistics["members"]
    assert len(members) == 8 and (members.sum(0) <= 1).all(), "subsets of a search are disjoint"
    held = np.sort((members & case.mask).sum(1))[::-1]
    assert held[:2].sum() > 0.75 * case.mask.sum()


def test_rounds_forget_what_the_vote_dropped_and_learn_what_it_kept() -> None:
    case = toy.toy()
    method = ISPL(rounds=3)
    inputs, ctx = toy.inputs(method, case), Context(seed=5)
    right = method.refined(~case.mask, inputs, ctx)
    assert (right[case.mask] < 0.5).mean() > 0.95 and (right[~case.mask] > 0.5).mean() > 0.98
    again = method.refined(np.ones(600, bool), inputs, ctx)
    assert (again[case.mask] > 0.5).mean() > 0.95, "poison that outlives the vote is learned again"


@pytest.mark.further
@pytest.mark.slow
def test_nothing_is_flagged_where_all_is_compatible() -> None:
    case = toy.toy(rate=0.0)
    method = ISPL(repeats=1, weak_epochs=8, epochs=3, rounds=2, expansion=0.5)
    found = toy.found(method, case)
    for rule in ("rounds", "vote"):
        chosen = method.model_copy(update={"rule": rule})
        flags = chosen.decide(toy.evidence(method, case, found)).flags
        assert flags is not None and not flags.any()


def test_batches_shrink_where_an_epoch_would_be_too_short() -> None:
    method, base = ISPL(), Recipe(batch_size=128)
    sizes = [method.recipe(base, samples, 4).batch_size for samples in (6000, 1500, 800, 160, 20)]
    assert sizes == [128, 128, 100, 20, 16]
    assert method.recipe(Recipe(batch_size=8), 20, 4).batch_size == 8


def test_another_search_leaves_the_first_as_it_was() -> None:
    case = toy.toy()
    cheap = {"components": 1, "weak_epochs": 1, "warm_up": 1, "epochs": 1, "rounds": 0}
    one, two = (toy.found(ISPL(repeats=n, **cheap), case).statistics for n in (1, 2))
    assert len(two["members"]) == 2 and (two["members"][0] == one["members"][0]).all()
    assert (two["members"][0] != two["members"][1]).any(), "searches differ in their samples"


def of_stage(arrays: Arrays) -> Arrays:
    """Return the arrays of a checkpoint that the stage itself kept, without those of its parts."""
    return unpacked(arrays, "").get("", (0, {}))[1]


def test_a_killed_search_goes_on_after_the_last_subset() -> None:
    case = toy.toy()
    method = ISPL(components=2, weak_epochs=1, warm_up=1, epochs=1)
    kept: list[Arrays] = []
    checkpoints = Checkpoints(kept.append, pause=lambda cost: 0.0)
    inputs = toy.inputs(method, case)
    whole = method.shard("0", inputs, Context(seed=5, kept=checkpoints.root))
    found = {len(own["members"]): arrays for arrays in kept if (own := of_stage(arrays))}
    assert found.keys() == {1, 2}
    restored = Checkpoints(restored=found[1])
    again = method.shard("0", inputs, Context(seed=5, kept=restored.root))
    for name in ("members", "predicted"):
        np.testing.assert_array_equal(whole[name], again[name])


def test_subsets_of_one_sample_are_refused() -> None:
    case = toy.toy()
    method = ISPL(share=0.01, expansion=0.1)
    with pytest.raises(ValueError, match=r"at least 2 of 600 training samples, got 0\.01 \* 0\.1"):
        method.shard("0", toy.inputs(method, case), Context(seed=0))
