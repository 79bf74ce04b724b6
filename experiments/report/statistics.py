"""Many tasks and seeds in a few numbers: Agarwal et al., 2021, Deep RL at the edge of the statistical precipice."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

# Task -> one score a seed; tasks may differ in the number of seeds. Statistics take (..., seeds) and give (...).
Scores = Mapping[str, Sequence[float] | np.ndarray]


def iqm(scores: Scores) -> float | np.ndarray:
    """Interquartile mean: of the middle half of all runs, every run counting alike whatever its task (section 4.3)."""
    return stats.trim_mean(np.concatenate(list(scores.values()), axis=-1), 0.25, axis=-1)


def probability_of_improvement(x: Scores, y: Scores) -> float | np.ndarray:
    """P(X > Y) + P(X = Y) / 2 for a run of each, mean over the tasks that both have (section 4.3); ValueError if none.

    Of one task it is the Mann-Whitney U over the number of pairs.
    """
    common = sorted(x.keys() & y.keys())
    if not common:
        raise ValueError("no task has scores of both")
    signs = [np.sign(np.asarray(x[task])[..., :, None] - np.asarray(y[task])[..., None, :]) for task in common]
    return np.mean([0.5 + sign.mean((-2, -1)) / 2 for sign in signs], axis=0)


def performance_profile(scores: Scores, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fraction of runs above each threshold: mean over tasks of each task's own fraction (run scores, section 4.2).

    It is the fraction of all runs where every task has the same number of seeds.
    """
    return np.mean([(np.asarray(each)[..., None] > thresholds).mean(-2) for each in scores.values()], axis=0)


def interval(
    statistic: Callable[..., float | np.ndarray], *scores: Scores, repeats: int = 2000, seed: int = 0
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """95% percentile interval (low, high) of statistic(*scores) by the stratified bootstrap (section 4.1).

    Seeds are drawn with replacement within each task of each of the scores, tasks are kept.
    """
    rng = np.random.default_rng(seed)
    low, high = np.quantile(statistic(*(_resample(each, repeats, rng) for each in scores)), (0.025, 0.975), axis=0)
    return low, high


def varies(*scores: Scores) -> bool:
    """Whether there is an interval: with one seed of each task every draw is the same."""
    return any(len(each) > 1 for one in scores for each in one.values())


def _resample(scores: Scores, repeats: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Task -> scores (repeats, seeds); sorted first, so that the order of tasks and seeds changes no draw."""
    return {task: rng.choice(np.sort(scores[task]), (repeats, len(scores[task]))) for task in sorted(scores)}
