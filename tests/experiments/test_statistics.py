"""The statistics of the report, beside rliable 1.2.0 (with scipy 1.17.1 and arch 7.2.0), whose numbers stand here."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.statistics import interval, iqm, performance_profile, probability_of_improvement

OURS = {
    "a": [0.213, 0.146, 0.13, -0.033, 0.146],
    "b": [0.86, 1.008, 0.52, 0.834, 0.805],
    "c": [0.756, 1.022, 0.251, 0.002, 0.665],
    "d": [0.721, 0.889, 0.708, 0.554, 0.909],
}
THEIRS = {
    "a": [0.237, 0.34, 0.204],
    "b": [1.11, 0.728, 0.766],
    "c": [0.234, 0.203, 0.096],
    "d": [0.505, 0.123, 0.337],
}
TIES = {"a": [0.1, 0.2, 0.5, 0.2], "b": [0.4, 0.2, 0.2, 0.3], "c": [0.3, 0.4, 0.3, 0.2]}
MORE_TIES = {"a": [0.2, 0.2, 0.3, 0.0, 0.2], "b": [0.4, 0.0, 0.1, 0.1, 0.3], "c": [0.1, 0.3, 0.4, 0.1, 0.1]}
RAGGED = {"a": [0.1, 0.4], "b": [0.3], "c": [0.9, 0.2, 0.6, 0.5, 0.2]}
THRESHOLDS = [-0.1, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]

tied_scores = st.lists(st.integers(-3, 3).map(lambda value: value / 2), min_size=1, max_size=6)
many_scores = st.dictionaries(st.sampled_from("abcde"), tied_scores, min_size=1)


@pytest.mark.parametrize(
    "scores, value",
    [
        (OURS, 0.6026999999999999),
        (THEIRS, 0.30950000000000005),
        (TIES, 0.25000000000000006),
        (MORE_TIES, 0.17777777777777778),
    ],
)
def test_iqm_is_that_of_rliable(scores, value):
    """Another share cut off, means of tasks instead of runs; 15 runs do not divide by four."""
    assert iqm(scores) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "x, y, value", [(OURS, THEIRS, 0.6), (THEIRS, OURS, 0.4), (TIES, MORE_TIES, 0.6583333333333333)]
)
def test_probability_of_improvement_is_that_of_rliable(x, y, value):
    """The wrong side, ties as losses, unequal numbers of seeds."""
    assert probability_of_improvement(x, y) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "scores, values",
    [
        (OURS, [1.0, 0.95, 0.75, 0.65, 0.55, 0.35, 0.1]),
        (THEIRS, [1.0, 1.0, 10 / 12, 4 / 12, 3 / 12, 1 / 12, 1 / 12]),
        (MORE_TIES, [1.0, 13 / 15, 5 / 15, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_performance_profile_is_that_of_rliable(scores, values):
    """A score at the threshold counted as above it, the distribution function instead of its complement."""
    np.testing.assert_allclose(performance_profile(scores, THRESHOLDS), values, atol=1e-12)


@pytest.mark.parametrize(
    "statistic, scores, bounds",
    [
        (iqm, [OURS], (0.4621, 0.7413)),
        (iqm, [THEIRS], (0.2235, 0.3860)),
        (iqm, [MORE_TIES], (0.1111, 0.2667)),
        (probability_of_improvement, [OURS, THEIRS], (0.45, 0.75)),
        (probability_of_improvement, [TIES, MORE_TIES], (0.4417, 0.85)),
    ],
)
def test_interval_is_that_of_rliable(statistic, scores, bounds):
    """Its bounds of 50,000 (iqm) and 10,000 draws; a probability moves in steps of 1/60, iqm by about 0.003."""
    assert interval(statistic, *scores) == pytest.approx(bounds, abs=0.01 if statistic is iqm else 1 / 60 + 1e-9)


def test_interval_of_a_profile_is_that_of_rliable():
    """A statistic with several values, of which every one has its own interval."""
    low, high = interval(lambda scores: performance_profile(scores, THRESHOLDS), OURS)
    np.testing.assert_allclose(low, [1.0, 0.85, 0.65, 0.55, 0.4, 0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(high, [1.0, 1.0, 0.85, 0.75, 0.7, 0.5, 0.25], atol=1e-12)


def test_interval_is_near_that_of_all_resamples():
    """Draws that are not uniform over the seeds, or are shared between tasks."""

    def mean(scores):
        return sum(np.sum(values, axis=-1) for values in scores.values()) / 6

    scores = {"a": [0.0, 0.31, 1.0], "b": [0.17, 0.5, 0.63]}
    draws = [itertools.product(values, repeat=3) for values in scores.values()]
    every = [mean(dict(zip(scores, pair))) for pair in itertools.product(*draws)]
    assert interval(mean, scores, repeats=5000) == pytest.approx(tuple(np.quantile(every, (0.025, 0.975))), abs=0.01)


@pytest.mark.parametrize("number", range(5))
def test_interval_contains_the_estimate(number):
    """Percentiles of something other than the statistic; scores that differ in their numbers of seeds."""
    rng = np.random.default_rng(number)
    x, y = ({task: rng.normal(size=rng.integers(2, 7)) for task in "abcdef"} for _ in range(2))
    for statistic, scores in ((iqm, [x]), (probability_of_improvement, [x, y])):
        low, high = interval(statistic, *scores, repeats=300)
        assert low < statistic(*scores) < high


def test_interval_has_no_width_where_the_seeds_do_not_differ():
    """Draws across tasks, or of tasks."""
    for scores in ({"a": [0.1], "b": [0.7], "c": [0.4]}, {"a": [0.0] * 4, "b": [1.0] * 5, "c": [0.25] * 3}):
        assert interval(iqm, scores, repeats=50) == pytest.approx((iqm(scores), iqm(scores)))


def test_the_two_sides_are_drawn_apart():
    """The same seeds drawn for both, so that a side never differs from itself."""
    low, high = interval(probability_of_improvement, OURS, OURS, repeats=300)
    assert low < 0.5 < high


def test_interval_is_that_of_its_seed():
    """Draws from a generator that others share, an ignored seed."""
    assert interval(iqm, OURS, repeats=50) == interval(iqm, OURS, repeats=50)
    assert interval(iqm, OURS, repeats=50) != interval(iqm, OURS, repeats=50, seed=1)


@given(many_scores, st.randoms())
def test_order_does_not_matter(scores, random):
    """Anything that pairs seeds by their place, or tasks by theirs."""
    tasks = random.sample(list(scores), len(scores))
    shuffled = {task: random.sample(scores[task], len(scores[task])) for task in tasks}
    assert iqm(shuffled) == pytest.approx(iqm(scores))
    assert probability_of_improvement(shuffled, scores) == pytest.approx(0.5)
    np.testing.assert_allclose(performance_profile(shuffled, THRESHOLDS), performance_profile(scores, THRESHOLDS))
    assert interval(iqm, shuffled, repeats=3) == pytest.approx(interval(iqm, scores, repeats=3))


@given(many_scores, many_scores)
def test_probability_of_improvement_is_that_of_two_loops(x, y):
    """A task that only one has, ties, ragged seeds; one side's probability and the other's add up to one."""
    by_task = []
    for task in set(x) & set(y):
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x[task] for b in y[task]]
        by_task.append(sum(wins) / len(wins))
    if by_task:
        assert probability_of_improvement(x, y) == pytest.approx(sum(by_task) / len(by_task))
        assert probability_of_improvement(y, x) == pytest.approx(1 - sum(by_task) / len(by_task))
    else:
        with pytest.raises(ValueError, match="no task"):
            probability_of_improvement(x, y)


def test_ties_count_one_half():
    assert probability_of_improvement({"a": [1.0, 1.0]}, {"a": [1.0]}) == 0.5
    assert probability_of_improvement({"a": [1.0, 2.0]}, {"a": [1.0]}) == 0.75


def test_ragged_seeds():
    """iqm counts runs alike, a profile tasks."""
    assert iqm(RAGGED) == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    np.testing.assert_allclose(performance_profile(RAGGED, [0.25, 0.5]), [(1 / 2 + 1 + 3 / 5) / 3, (0 + 0 + 2 / 5) / 3])
    low, high = interval(iqm, RAGGED, repeats=200)
    assert 0.1 <= low < iqm(RAGGED) < high <= 0.9
