"""Numbers with their intervals, on known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignlab.evaluation.statistics import Measurement, bootstrap, resampled, share

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson (1927): the centre is pulled towards one half."""
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half


@pytest.mark.parametrize(("successes", "n"), [(7, 10), (50, 100), (1, 40)])
def test_a_proportion_has_wilsons_interval(successes: int, n: int) -> None:
    measured = share("accuracy", [1.0] * successes + [0.0] * (n - successes))

    assert (measured.value, measured.n) == (successes / n, n)
    assert (measured.low, measured.high) == pytest.approx(wilson(successes, n))


def test_a_proportion_of_all_still_has_room_below() -> None:
    # p = 1, n = 10: the lower end is n / (n + z^2)
    measured = share("accuracy", [1.0] * 10)

    assert (measured.low, measured.high) == pytest.approx((10 / (10 + Z**2), 1.0))


def test_ties_count_half_and_take_the_bootstrap() -> None:
    measured = share("accuracy", [1.0, 0.5, 0.0, 0.5])

    assert measured.value == 0.5
    assert measured == bootstrap("accuracy", [1.0, 0.5, 0.0, 0.5])


def test_a_mean_has_an_interval_of_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    error = values.std() / math.sqrt(400)

    measured = bootstrap("reward", values.tolist())

    assert measured.value == pytest.approx(values.mean())
    assert measured.low == pytest.approx(values.mean() - Z * error, abs=0.1 * error * Z)
    assert measured.high == pytest.approx(values.mean() + Z * error, abs=0.1 * error * Z)


def test_the_same_values_give_the_same_interval() -> None:
    assert bootstrap("reward", [0.1, 0.7, 0.2]) == bootstrap("reward", [0.1, 0.7, 0.2])


@pytest.mark.parametrize("values", [[0.25], [0.25, 0.25, 0.25]])
def test_values_that_do_not_vary_have_an_interval_of_no_width(values: list[float]) -> None:
    assert bootstrap("reward", values) == Measurement("reward", 0.25, len(values), 0.25, 0.25)


def test_a_scale_is_applied_to_the_mean_and_to_both_ends() -> None:
    nats = bootstrap("nats", [1.0, 2.0, 4.0])

    measured = bootstrap("perplexity", [1.0, 2.0, 4.0], show=math.exp)

    assert (measured.value, measured.low, measured.high) == pytest.approx(
        (math.exp(nats.value), math.exp(nats.low), math.exp(nats.high))
    )


def test_a_number_of_all_items_has_the_interval_of_redrawn_items() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])

    whole = resampled("mean", 8, lambda places: float(values[places].mean()))
    alike = resampled("mean", 8, lambda places: 0.25)

    assert (whole.value, whole.n) == (0.625, 8)
    # the mean's own bootstrap, by another generator: both ends lie on the grid of eighths
    assert (whole.low, whole.high) == (0.25, 1.0)
    assert (alike.value, alike.low, alike.high) == (0.25, 0.25, 0.25)
