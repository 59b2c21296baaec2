"""The strengths that hold: by a rule on the evaluation's own numbers, kept beside the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignlab.evaluation.config import SafeRangeConfig
from alignlab.evaluation.report import Row
from alignlab.evaluation.safe_range import FILE, measured_range, read_range, write_range

TENTH = SafeRangeConfig(metric=None, tolerance=0.1)


def row(strength: float, values: list[float], suite: str = "toy", metric: str = "capability", scale: str = "") -> Row:
    """A metric that is a mean over items."""
    mean = float(np.mean(values))
    value = float(np.exp(mean)) if scale else mean
    return Row(
        strength, "dial", suite, metric, value, len(values), None, None, {str(n): v for n, v in enumerate(values)}, scale
    )


def capability(**means: float) -> list[Row]:
    """Of 100 items, of which the first ones fail; `s05=0.9`: at strength 0.5, 90 of them pass."""
    return [
        row(float(name[1:].replace("m", "-")) / 10, [0.0] * round(100 - 100 * mean) + [1.0] * round(100 * mean))
        for name, mean in means.items()
    ]


def test_the_range_ends_in_front_of_the_first_strength_whose_interval_is_beyond_the_tolerance() -> None:
    # 1.0: five of 100 items fail, so the difference is 0.05, and its interval ends below 0.1. 1.5: eight fail; mean 0.08 is
    # inside, but the bootstrap's end is about 0.08 + 1.96 * sqrt(0.08 * 0.92 / 100) = 0.133.
    found = measured_range(capability(sm5=0.99, s0=1.0, s10=0.95, s15=0.92, s20=1.0), TENTH)

    assert found is not None
    assert (found.low, found.high, found.metric) == (-0.5, 1.0, "toy/capability")
    assert [point.holds for point in found.points] == [True, True, True, False, True]
    beyond = found.points[3]
    assert (beyond.worse, beyond.n) == (pytest.approx(0.08), 100)
    assert beyond.high == pytest.approx(0.133, abs=0.01)
    assert [found.contains(strength) for strength in (-0.6, -0.5, 0.3, 1.0, 1.1)] == [False, True, True, True, False]
    assert [found.clamped(strength) for strength in (-3.0, 0.3, 9.0)] == [-0.5, 0.3, 1.0]
    assert "strengths -0.5 to 1 were seen to hold: toy/capability is at most 10% worse than the backbone's 1" in found.sentence


def test_a_lower_perplexity_is_better_and_a_higher_one_ends_the_range() -> None:
    nats = np.linspace(1.0, 2.0, 50)
    rows = [
        row(strength, list(nats + added), "fluency", "perplexity", "exp")
        for strength, added in ((0.0, 0), (1.0, -0.5), (2.0, 0.2))
    ]

    found = measured_range(rows, TENTH)

    assert found is not None
    assert (found.low, found.high, found.metric) == (0.0, 1.0, "fluency/perplexity")
    start = float(np.exp(1.5))
    assert found.points[2].worse == pytest.approx(start * (np.exp(0.2) - 1))


def test_equal_items_hold_and_a_number_without_an_interval_does_not() -> None:
    few = [row(0.0, [1.0, 1.0, 1.0]), row(1.0, [1.0, 1.0, 0.9])]

    same = measured_range(capability(s0=0.9, s10=0.9), TENTH)
    too_few = measured_range(few, TENTH)

    assert same is not None
    assert too_few is not None
    assert (same.high, too_few.high) == (1.0, 0.0)
    assert too_few.points[1].high is None
    assert (same.span, too_few.span) == ("0 to 1", "of 0 alone")
    assert too_few.sentence.startswith("only strength 0 was seen to hold: at the next measured ones toy/capability may be more")


def test_rows_without_items_are_held_to_their_own_interval() -> None:
    rows = [
        Row(0.0, "dial", "text", "perplexity", 10.0, 40, 9.5, 10.5),
        Row(1.0, "dial", "text", "perplexity", 10.4, 40, 9.9, 10.9),
        Row(2.0, "dial", "text", "perplexity", 10.8, 40, 10.4, 11.3),
    ]

    found = measured_range(rows, TENTH)

    assert found is not None
    assert (found.high, found.points[1].high) == (1.0, pytest.approx(0.9))


def test_without_strength_0_or_a_metric_that_tells_there_is_no_range() -> None:
    assert measured_range(capability(s5=1.0, s10=1.0), TENTH) is None
    assert measured_range([row(0.0, [1.0] * 9, "toy", "reward")], TENTH) is None
    assert measured_range(capability(s0=1.0), SafeRangeConfig(metric="text/perplexity", tolerance=0.1)) is None


def test_it_is_kept_beside_the_adapter_and_found_from_the_run(tmp_path: Path) -> None:
    found = measured_range(capability(s0=1.0, s10=0.95), TENTH)
    assert found is not None
    adapter = tmp_path / "stages" / "fit" / "result"

    write_range(found, adapter)

    assert read_range(tmp_path) == read_range(adapter) == found
    assert json.loads((adapter / FILE).read_text())["points"][1]["value"] == 0.95
    (adapter / FILE).write_text('{"low": 0}')
    assert read_range(tmp_path) is None
