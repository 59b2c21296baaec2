"""Numbers with their intervals, on known cases."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from alignlab.evaluation.statistics import bootstrap, item_names, over_seeds, paired, rank_correlation, resampled, share

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


def test_a_proportion_of_none_or_of_all_ends_at_exactly_0_or_1() -> None:
    none, everything = ([share("accuracy", [value] * n) for n in range(1, 60)] for value in (0.0, 1.0))

    assert {measured.low for measured in none} == {0.0}
    assert {measured.high for measured in everything} == {1.0}
    assert none[9].high == pytest.approx(Z**2 / (10 + Z**2))


def test_ties_count_half_and_take_the_bootstrap() -> None:
    values = [1.0, 0.5, 0.0, 0.5, 1.0, 0.0]

    measured = share("accuracy", values)

    assert measured.value == 0.5
    assert measured == bootstrap("accuracy", values)


def test_a_mean_has_an_interval_of_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    error = values.std() / math.sqrt(400)

    measured = bootstrap("reward", values.tolist())

    assert measured.value == pytest.approx(values.mean())
    assert measured.low == pytest.approx(values.mean() - Z * error, abs=0.1 * error * Z)
    assert measured.high == pytest.approx(values.mean() + Z * error, abs=0.1 * error * Z)


def test_the_interval_of_a_mean_holds_the_middle_95_percent_of_2000_redrawn_means() -> None:
    values = [number / 40 for number in (1, 7, 2, 4, 9, 30, 11, 12, 5, 6, 8, 3)]  # less than 1 apart, as scores are
    drawn = np.array(values)[np.random.default_rng(0).integers(0, 12, (2000, 12))].mean(axis=1)

    measured = bootstrap("reward", values)

    assert (measured.low, measured.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert bootstrap("reward", values) == measured


def test_of_no_items_there_is_no_value_and_the_metric_keeps_its_name() -> None:
    for measured in (bootstrap("reward", []), share("reward", []), rank_correlation("reward", [])):
        assert (measured.metric, measured.n, measured.items) == ("reward", 0, {})
        assert np.isnan([measured.value, measured.low, measured.high]).all()


@pytest.mark.parametrize("values", [[1.0, 0.0, 1.0], [0.5, 1.0, 0.5], [0.5, 0.5, 0.5]])
def test_a_share_keeps_the_value_of_each_item_by_its_name(values: list[float]) -> None:
    assert share("accuracy", values, ["a", "b", "c"]).items == dict(zip("abc", values, strict=True))


def test_ties_and_successes_alone_take_the_bootstrap_too() -> None:
    values = [0.5, 1.0, 0.5, 0.5, 1.0]

    assert share("accuracy", values) == bootstrap("accuracy", values)


@pytest.mark.parametrize("values", [[0.25], [0.1, 0.2, 0.3, 0.4], [0.25] * 100])
def test_too_few_values_or_equal_ones_have_no_interval(values: list[float]) -> None:
    measured = bootstrap("reward", values)

    assert (measured.value, measured.n) == (pytest.approx(0.25), len(values))
    assert math.isnan(measured.low)
    assert math.isnan(measured.high)


def test_a_proportion_of_ties_alone_has_wilsons_interval_of_one_half() -> None:
    measured = share("reward_accuracy", [0.5] * 100)

    assert (measured.low, measured.high) == pytest.approx(wilson(50, 100))


def test_a_scale_is_applied_to_the_mean_and_to_both_ends() -> None:
    nats = bootstrap("nats", [1.0, 2.0, 4.0, 2.5, 3.0])

    measured = bootstrap("perplexity", [1.0, 2.0, 4.0, 2.5, 3.0], "exp")

    assert (measured.value, measured.low, measured.high) == pytest.approx(
        (math.exp(nats.value), math.exp(nats.low), math.exp(nats.high))
    )
    assert (measured.scale, nats.scale) == ("exp", "")


def test_items_are_named_by_what_they_hold_and_numbered_where_they_come_again() -> None:
    once, again, other, pair = item_names(["a", "a", "b", ["a", "b"]])

    assert once == hashlib.sha256(b"'a'").hexdigest()[:12]
    assert again == f"{once}/2"
    assert len({once, other, pair}) == 3
    assert item_names(["b", "a"]) == [other, once]


def items(values: np.ndarray) -> list[dict[str, float]]:
    """From seed,item to items by name."""
    return [{str(place): float(value) for place, value in enumerate(row)} for row in values]


def test_a_paired_difference_counts_the_items_of_both_alone() -> None:
    own, other = items(np.full((2, 6), 3.0)), items(np.full((2, 5), 1.0))
    other[0]["elsewhere"] = 1000.0

    made = paired("reward", own, other)

    assert made is not None
    assert (made.value, made.n) == (2.0, 5)


def test_runs_without_a_common_item_are_not_paired() -> None:
    assert paired("reward", [{"a": 1.0}], [{"b": 1.0}]) is None


def test_rows_of_unlike_numbers_of_seeds_are_not_paired() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired("reward", [{"a": 1.0}, {"a": 1.0}], [{"a": 1.0}])


@pytest.mark.parametrize("more", [[0.0, 1.0, 2.0, 3.0], [0.0] * 6])
def test_of_too_few_items_or_of_none_that_differs_a_difference_has_no_interval(more: list[float]) -> None:
    made = paired("reward", items(np.array([more]) + 5.0), items(np.full((1, len(more)), 5.0)))

    assert made is not None
    assert (made.metric, made.value, made.n) == ("reward", np.mean(more), len(more))
    assert math.isnan(made.low)
    assert math.isnan(made.high)


def width(own: list[dict[str, float]]) -> float:
    """Of the interval of a difference from zero."""
    made = paired("reward", own, [dict.fromkeys(of_seed, 0.0) for of_seed in own])
    assert made is not None
    return made.high - made.low


def test_items_are_drawn_by_their_names_and_not_by_their_places() -> None:
    values = {f"item {place:02}": float(place) for place in range(20)}
    backwards = dict(reversed(values.items()))

    assert width([values, backwards]) == width([values, values])


def test_seeds_with_items_of_their_own_draw_them_each_by_itself() -> None:
    values = np.random.default_rng(0).normal(size=400)
    apart = [{f"{seed} {place}": float(value) for place, value in enumerate(values)} for seed in (0, 1)]

    # Two drawn seeds are the same one in half of the draws, so the variance is 3/4 of that of one seed.
    assert width(apart) / width(apart[:1]) == pytest.approx(0.75**0.5, abs=0.05)


def test_a_difference_of_perplexities_is_that_of_the_exponentials() -> None:
    own, other = np.log([[2.0, 8.0, 2.0, 8.0, 4.0]]), np.log([[1.0, 4.0, 1.0, 4.0, 2.0]])

    made = paired("perplexity", items(own), items(other), "exp")

    assert made is not None
    assert made.value == pytest.approx(4.0 - 2.0)  # geometric means
    assert made.low <= 2.0 <= made.high


def covered(seeds: int, of_seed: float, of_item: float, of_both: float) -> float:
    """The share of 300 simulated comparisons without a difference whose interval holds 0; given are standard deviations."""
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        noise = (
            random.normal(0, of_seed, (seeds, 1)) + random.normal(0, of_item, (1, 50)) + random.normal(0, of_both, (seeds, 50))
        )
        made = paired("reward", items(noise), items(np.zeros((seeds, 50))))
        assert made is not None
        hits += made.low <= 0 <= made.high
    return hits / 300


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_item", "of_both", "least"),
    # three standard errors of a share of 300 below what the docstring says: 0.94 and 0.83
    [(1, 0.0, 1.0, 0.0, 0.90), (3, 0.0, 1.0, 0.0, 0.90), (3, 0.1, 1.0, 1.0, 0.90), (3, 1.0, 0.0, 0.01, 0.76)],
)
def test_the_paired_interval_covers_no_difference_as_often_as_it_says(
    seeds: int, of_seed: float, of_item: float, of_both: float, least: float
) -> None:
    assert covered(seeds, of_seed, of_item, of_both) >= least


def test_an_interval_of_two_that_vary_by_seed_alone_is_wider_than_the_items_alone() -> None:
    spread = items(np.array([[1.0] * 20, [3.0] * 20]))

    made = paired("reward", spread, items(np.zeros((2, 20))))

    assert made is not None
    # both seeds twice: 2 -+ root 2, the deviation of two numbers that lie 1 from their mean
    assert (made.low, made.high) == pytest.approx((2 - math.sqrt(2), 2 + math.sqrt(2)))


def test_the_spread_of_three_seeds_is_widened_by_the_root_of_three_halves() -> None:
    made = paired("reward", items(np.array([[1.0] * 20, [3.0] * 20, [5.0] * 20])), items(np.zeros((3, 20))))

    assert made is not None
    # the lowest seed three times has a chance of 1/27, above the 2.5 % of each tail
    assert (made.metric, made.value, made.n) == ("reward", 3.0, 20)
    assert (made.low, made.high) == pytest.approx((3 - 2 * math.sqrt(1.5), 3 + 2 * math.sqrt(1.5)))


def test_over_seeds_the_interval_is_students() -> None:
    # t at 2 degrees of freedom is 4.302653; deviation 1, over root 3
    made = over_seeds("reward", [1.0, 2.0, 3.0])

    assert (made.metric, made.value, made.n) == ("reward", 2.0, 3)
    assert (made.low, made.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)


def test_two_seeds_have_students_interval_and_one_or_equal_ones_have_none() -> None:
    # t at 1 degree of freedom is 12.706205; the deviation of 1 and 3 is root 2
    two, one, equal = over_seeds("reward", [1.0, 3.0]), over_seeds("reward", [1.0]), over_seeds("reward", [2.0, 2.0])

    assert (two.low, two.high) == pytest.approx((2 - 12.706205, 2 + 12.706205), rel=1e-6)
    assert [(made.metric, made.value, made.n) for made in (one, equal)] == [("reward", 1.0, 1), ("reward", 2.0, 2)]
    assert np.isnan([one.low, one.high, equal.low, equal.high]).all()


def test_the_correlation_of_place_and_value_is_a_mean_over_items_that_keep_their_names() -> None:
    rising, falling, level = [0.1, 0.5, 0.9], [0.9, 0.5, 0.1], [0.5, 0.5, 0.5]

    made = rank_correlation("order", [rising, falling, level, rising], ["a", "b", "c", "d"])

    assert (made.metric, made.value, made.n) == ("order", 0.25, 4)
    assert made.items == pytest.approx({"a": 1.0, "b": -1.0, "c": 0.0, "d": 1.0})
    # places 1, 2, 3 and ranks 1.5, 1.5, 3: covariance 0.75, deviations 1 and root 3/4
    assert rank_correlation("order", [[0.1, 0.1, 0.9]]).value == pytest.approx(0.75 / 0.75**0.5)


def test_a_number_of_all_items_has_the_interval_of_redrawn_items() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])

    whole = resampled("mean", 8, lambda places: float(values[places].mean()))
    alike = resampled("mean", 8, lambda places: 0.25)

    assert (whole.metric, whole.value, whole.n) == ("mean", 0.625, 8)
    # the mean's own bootstrap, by another generator: both ends lie on the grid of eighths
    assert (whole.low, whole.high) == (0.25, 1.0)
    assert alike.value == 0.25
    assert math.isnan(alike.low)


def test_the_interval_of_a_number_of_all_items_holds_the_middle_95_percent_of_2000_draws() -> None:
    values = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])  # five are the fewest that have an interval
    generator = np.random.default_rng(0)
    drawn = [values[generator.integers(5, size=5)].sum() for _ in range(2000)]

    made = resampled("sum", 5, lambda places: float(values[places].sum()))

    assert made.value == 11111.0
    assert (made.low, made.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert math.isnan(resampled("sum", 4, lambda places: float(values[places].sum())).low)
    assert resampled("count", 5, len).value == 5
