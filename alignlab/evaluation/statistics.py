"""Every number with its n and an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """A metric's value, from how many items, and the 95 % interval."""

    metric: str
    value: float
    n: int
    low: float
    high: float


def bootstrap(metric: str, values: Sequence[float], show: Callable[[float], float] = float) -> Measurement:
    """The mean with its percentile bootstrap interval; `show` is applied to all three (exp for a perplexity)."""
    from scipy.stats import bootstrap as resample

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return Measurement(metric, show(mean), len(array), show(mean), show(mean))
    generator = np.random.default_rng(0)
    result = resample((array,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=generator)
    interval = result.confidence_interval
    return Measurement(metric, show(mean), len(array), show(float(interval.low)), show(float(interval.high)))


def resampled(metric: str, items: int, statistic: Callable[[Places], float]) -> Measurement:
    """A number that belongs to all items together, with its percentile bootstrap interval over items. `statistic`: places of
    items, each drawn any number of times -> the number of those; NaN where they have none, which the interval leaves out."""
    value = statistic(np.arange(items))
    generator = np.random.default_rng(0)
    drawn = np.array([statistic(generator.integers(items, size=items)) for _ in range(RESAMPLES)] if items > 1 else [value])
    drawn = drawn[~np.isnan(drawn)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)) if len(drawn) else (value, value)
    return Measurement(metric, value, items, float(low), float(high))


def share(metric: str, values: Sequence[float]) -> Measurement:
    """A proportion: Wilson's score interval where every item is 0 or 1, the bootstrap where ties count one half."""
    from scipy.stats import binomtest

    if any(value not in (0.0, 1.0) for value in values):
        return bootstrap(metric, values)
    interval = binomtest(int(sum(values)), len(values)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Measurement(metric, sum(values) / len(values), len(values), float(interval.low), float(interval.high))


def rank_correlation(metric: str, ranked: Sequence[Sequence[float]]) -> Measurement:
    """Spearman's correlation of place and value within each item, whose values stand in the order in which they should rise,
    averaged over items; an item of equal values counts 0."""
    from scipy.stats import spearmanr

    places = range(len(ranked[0]))
    return bootstrap(metric, [float(spearmanr(places, item).statistic) if len(set(item)) > 1 else 0.0 for item in ranked])
