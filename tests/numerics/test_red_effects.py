"""RED's null of effects: closed forms, censored pairs, and false alarms on planted tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raysweep.defenses import _effects, _red
from raysweep.defenses.red import RED
from tests.numerics.test_red import CLASSES, matrix, pairs
from tests.numerics.test_red_search import concluded

K = 10
Logs = np.ndarray


def table(seed: int, spread: float) -> Logs:
    """Return log reciprocals of an attack-free network whose classes differ by `spread`."""
    draw = np.random.default_rng(seed)
    effects = draw.normal(0, spread, (2, K))
    noise = np.log(draw.gamma(20.0, 0.05, (K, K)))
    values: Logs = noise + effects[0][:, None] + effects[1]
    return values


def of(logs: Logs, share: float = 0.0) -> tuple[np.ndarray, float]:
    """Return the p-values of a table whose smallest `share` never reaches pi."""
    off = pairs(len(logs))
    bound = np.quantile(logs[off], share) if share else -np.inf
    reached = off & (logs > bound)
    return _effects.p_values(np.where(reached, logs, bound), reached, off & ~reached)


def test_residuals_and_effects_are_studentized_as_in_a_regression() -> None:
    """Each pair's t is that of a regression which gives the pair a term of its own."""
    logs = table(3, 0.2)
    s, t = np.nonzero(pairs(K))
    design = np.concatenate([np.eye(K)[s], np.eye(K)[t][:, 1:]], 1)
    p_pairs = np.empty(len(s))
    for pair in range(len(s)):
        own = np.column_stack([design, np.arange(len(s)) == pair])
        found, (rest,), rank, _ = np.linalg.lstsq(own, logs[s, t])
        error = (rest / (len(s) - rank) * np.linalg.inv(own.T @ own)[-1, -1]) ** 0.5
        p_pairs[pair] = stats.t.sf(found[-1] / error, len(s) - rank)
    easy = np.append(0, np.linalg.lstsq(design, logs[s, t])[0][K:])
    expected = np.empty(K)
    for target in range(K):
        others = np.delete(easy, target)
        error = others.std(ddof=1) * (1 + 1 / len(others)) ** 0.5
        p_target = stats.t.sf((easy[target] - others.mean()) / error, len(others) - 1)
        p_pair = 1 - (1 - p_pairs[t == target].min()) ** (K - 1)
        expected[target] = 1 - (1 - min(p_pair, p_target)) ** 2
    own, p = of(logs)
    np.testing.assert_allclose(own, expected, rtol=1e-6)
    assert p == pytest.approx(1 - (1 - expected.min()) ** K, rel=1e-6)
    moved, again = of(logs + np.arange(K)[:, None] + 5)
    np.testing.assert_allclose(moved, own, rtol=1e-6)
    assert again == pytest.approx(p), "how easily a source is left does not matter"


@pytest.mark.parametrize("spread", [0.1, 0.2, 0.3])
def test_classes_that_differ_raise_no_false_alarms(spread: float) -> None:
    """The bound is of 150 sets; the pooled null, calibrated, alarms at .12, .23 and .32 of them."""
    alarms, pooled = 0, 0
    for seed in range(150):
        logs = table(seed, spread)
        alarms += of(logs)[1] <= 0.05
        pooled += _red.p_values(np.where(pairs(K), np.exp(logs), 0))[1] <= 0.0286
    assert alarms <= 0.05 * 150 + 3 * (0.05 * 0.95 * 150) ** 0.5 < 16
    assert pooled > alarms


def test_pairs_that_never_reach_pi_are_bounded_and_not_left_out() -> None:
    """A third of the pairs, the hard ones, is censored: effects stay those of the whole table."""
    off = pairs(K)
    errors = np.zeros(2)
    for seed in range(15):
        logs = table(seed, 0.3)
        whole = np.array([logs[off[:, t], t].mean() for t in range(K)])
        bound = np.quantile(logs[off], 0.33)
        reached = off & (logs > bound)
        capped = np.where(reached, logs, bound)
        design = np.concatenate([np.eye(K)[(rows := np.nonzero(off))[0]], np.eye(K)[rows[1]]], 1)
        inverse, freedom = np.linalg.pinv(design), int(off.sum()) - 2 * K + 1
        found, _ = _effects._fitted(capped[off], reached[off], design, inverse, freedom)
        without = np.array([logs[reached[:, t], t].mean() if reached[:, t].any() else bound
                            for t in range(K)])  # fmt: skip
        for at, ours in enumerate((found[K:], without)):
            errors[at] += np.abs((ours - ours.mean()) - (whole - whole.mean())).mean() / 15
    assert errors[0] < 0.07 and errors[1] > 2 * errors[0]


def test_a_pair_or_a_target_that_stands_out_is_found() -> None:
    hits = np.zeros(3, int)
    for seed in range(30):
        pair, target = table(seed, 0.2), table(seed, 0.2)
        pair[3, 7] += np.log(5)
        target[:, 7] += np.log(5)
        for at, found in enumerate((of(pair), of(target), of(pair, 0.3))):
            hits[at] += found[1] <= 0.05 and int(found[0].argmin()) == 7
    assert hits.min() >= 26


def test_red_takes_the_null_of_effects_and_bounds_what_it_did_not_reach() -> None:
    values = matrix(0, CLASSES, planted=(0, 1))
    values[0, 1] *= 2
    reached = values > 0
    reached[2, 4] = reached[5, 1] = False
    method = RED.model_validate({"null": "effects", "weight": 0.0, "scan_weight": 0.0})
    found, decided = concluded(values, reached, method)
    logs = np.log(np.where(values > 0, values, 1))
    own, p = _effects.p_values(logs, reached, pairs(CLASSES) & ~reached)
    assert decided.classes == (1,) and decided.p_value == pytest.approx(p, rel=1e-3)
    np.testing.assert_allclose(found.statistics["p_class"], own, rtol=1e-3)
    assert p != pytest.approx(_effects.p_values(logs, reached, ~reached & False)[1], rel=1e-2)
    assert method.badges() == ("extension: null of effects",) and not RED().badges()


def test_too_few_pairs_are_refused_and_absent_classes_have_no_effect() -> None:
    logs = table(0, 0.2)[:4, :4]
    reached = pairs(4)
    reached[0, 1:] = reached[1:, 0] = False
    with pytest.raises(ValueError, match="at least 3 pairs more than effects, got 6 pairs for 3"):
        _effects.p_values(logs, reached, reached & False)
    logs = table(0, 0.2)
    reached = pairs(K)
    reached[0], reached[:, 0] = False, False
    own, _ = _effects.p_values(logs, reached, reached & False)
    rest, _ = of(logs[1:, 1:])
    assert own[0] == 1
    np.testing.assert_allclose(own[1:], rest, rtol=1e-9)
