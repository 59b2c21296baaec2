"""Every number with its n and an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


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


def share(metric: str, values: Sequence[float]) -> Measurement:
    """A proportion: Wilson's score interval where every item is 0 or 1, the bootstrap where ties count one half."""
    from scipy.stats import binomtest

    if any(value not in (0.0, 1.0) for value in values):
        return bootstrap(metric, values)
    interval = binomtest(int(sum(values)), len(values)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Measurement(metric, sum(values) / len(values), len(values), float(interval.low), float(interval.high))


def rank_correlation(metric: str, ranked: Sequence[Sequence[float]]) -> Measurement:
    """Spearman's correlation of place and value, over items of several values in their expected rising order, with a bootstrap
    over items."""
    from scipy.stats import spearmanr

    array = np.asarray(ranked, dtype=np.float64)
    places = np.tile(np.arange(array.shape[1]), len(array))

    def correlation(rows: np.ndarray) -> float:
        values = array[rows].ravel()
        return float(spearmanr(places, values).statistic) if np.ptp(values) else 0.0

    generator = np.random.default_rng(0)
    drawn = [correlation(generator.integers(0, len(array), len(array))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measurement(metric, correlation(np.arange(len(array))), len(array), float(low), float(high))
