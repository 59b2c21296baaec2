"""Where a control is measured: each class alone, the model without any, and mixtures between two."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.data.config import ClassesConfig
from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.models.policy import Policy
from alignlab.planning import points
from alignlab.tuners.config import FormConfig, StrengthConfig
from tests.conftest import backbone
from tests.contracts.controls import Case, batch_of, items, totals, totals_under, trained


def form(strengths: list[float], **changes: Any) -> FormConfig:
    classes = ClassesConfig("pairs", ["good", "bad"], 2, [])
    return FormConfig("text", classes, "A {class} story.", {}, "after_bos", 1e-3, 1e-4, strengths, False, **changes)


def test_a_dial_is_read_at_its_strengths() -> None:
    assert points(StrengthConfig("dial", [0.0, 1.5], False), None) == [Point(0.0, "dial"), Point(1.5, "dial")]


def test_two_classes_are_measured_alone_and_mixed() -> None:
    alone = [Point(1.0, name, name) for name in ("good", "bad", "none")]

    assert points(form([0.5, 2.0]), ("good", "bad")) == [*alone, Point(0.5, "good/bad"), Point(2.0, "good/bad")]


def test_three_classes_are_measured_alone() -> None:
    assert [point.mixture for point in points(form([]), ("good", "bad", "dull"))] == ["good", "bad", "dull", "none"]


def test_strengths_between_three_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix two classes, and there are good, bad, dull; set control.strengths=\[\]"):
        points(form([0.5]), ("good", "bad", "dull"))


@pytest.mark.parametrize(
    ("point", "asked"),
    [
        (Point(1.0, "bad", "bad"), "bad"),
        (Point(1.0, "none", "none"), "none"),
        (Point(0.25, "good/bad"), {"good": 0.25, "bad": 0.75}),
    ],
    ids=["class", "none", "mixture"],
)
def test_at_a_point_the_policy_is_asked_for_just_that(point: Point, asked: Any) -> None:
    policy: Policy = trained(Case("lora", "llama"), backbone("llama"))
    batch = batch_of(items(("good", "bad")))

    with point.set(policy):
        found = totals(policy, batch)

    assert (found - totals_under(policy, asked, batch)).abs().max() < 1e-6
