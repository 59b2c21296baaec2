"""Figures of a run are files."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.evaluation.report import Row
from alignlab.plots import draw_curves, draw_dial, draw_profile
from alignlab.tracking.ledger import Ledger

PNG = b"\x89PNG\r\n\x1a\n"


def rows(*metrics: str) -> list[Row]:
    return [Row(s, "dial", "toy", metric, s / 2, 128, s / 2 - 0.1, s / 2 + 0.1) for s in (1.0, 0.0, 0.5) for metric in metrics]


def width(path: Path) -> int:
    """From the header of a PNG file."""
    return int.from_bytes(path.read_bytes()[16:20], "big")


@pytest.mark.parametrize("stages", [[], ["fit"], ["instruct", "fit"]])
def test_curves_are_drawn_for_every_stage_and_for_none(tmp_path: Path, stages: list[str]) -> None:
    ledger = Ledger(tmp_path)
    for stage in stages:
        ledger.metrics(1, {f"{stage}/loss": 2.0, f"{stage}/grad_norm": 1.0})
        ledger.metrics(2, {f"{stage}/loss": 1.0})

    path = draw_curves(ledger, tmp_path / "curves.png")

    assert path.read_bytes().startswith(PNG)


def test_each_stage_has_a_panel(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path / "one"), Ledger(tmp_path / "two")
    one.metrics(1, {"fit/loss": 2.0})
    two.metrics(1, {"fit/loss": 2.0})
    two.metrics(1, {"instruct/loss": 2.0})

    narrow = draw_curves(one, tmp_path / "one" / "curves.png")
    wide = draw_curves(two, tmp_path / "two" / "curves.png")

    assert width(wide) == 2 * width(narrow)


@pytest.mark.parametrize("metrics", [["reward"], ["reward", "capability"], ["reward", "capability", "words"]])
def test_the_dial_draws_the_first_two_metrics(tmp_path: Path, metrics: list[str]) -> None:
    path = draw_dial(rows(*metrics), tmp_path / "dial.png")

    assert path.read_bytes().startswith(PNG)
    assert width(path) == 546 * min(2, len(metrics))  # 4.2 inches at 130 dots


def test_a_dial_of_one_strength_is_drawn(tmp_path: Path) -> None:
    path = draw_dial([Row(1.0, "dial", "toy", "reward", 0.5, 128, 0.4, 0.6)], tmp_path / "dial.png")

    assert path.read_bytes().startswith(PNG)


def test_a_profile_has_a_panel_for_every_series(tmp_path: Path) -> None:
    series = {"norm": [1.0, 2.0], "ratio": [0.1, 0.2], "cosine": [0.0, 1.0]}
    profile = {"title": "shift (n = 4)", "x": {"label": "layer", "values": [10, 12]}, "series": series}

    path = draw_profile(profile, tmp_path / "shift.png")

    assert path.read_bytes().startswith(PNG)
    assert width(path) == 3 * 546
