"""Figures of a run are files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignlab.evaluation.report import Row
from alignlab.plots import draw_curves, draw_dial, draw_profile
from alignlab.plots import run as plots
from alignlab.plots import sweep as sweep_plots
from alignlab.plots.run import smoothed, smoothed_over
from alignlab.plots.sweep import draw, line_widths
from alignlab.tables.sweep import read_sweep
from alignlab.tracking.ledger import Ledger
from tests.unit.made_sweeps import MadeSweep, number

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


def test_the_dial_of_pairs_draws_what_accuracy_costs_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    measured = {"preference": ("accuracy", "reward_margin"), "fluency": ("words", "perplexity"), "text": ("perplexity",)}
    named = [(suite, metric) for suite, metrics in measured.items() for metric in metrics]
    found = [
        Row(s, "dial", suite, metric, s + place, 9, s, None) for s in (0.0, 2.0) for place, (suite, metric) in enumerate(named)
    ]

    for last in (5, 4, 2):
        draw_dial([row for row in found if (row.suite, row.metric) in named[:last]], tmp_path / "dial.png")

    titles = [[panel.get_title().partition(" ")[0] for panel in figure.axes] for figure in figures]
    costs = ["text/perplexity", "fluency/perplexity", "preference/reward_margin"]
    assert titles == [["preference/accuracy", cost] for cost in costs]
    assert [figure.axes[1].get_ylabel() for figure in figures] == [*["perplexity, lower is better"] * 2, "reward margin"]
    assert list(figures[0].axes[1].lines[0].get_ydata()) == [4.0, 6.0]


def test_a_dial_of_one_strength_is_drawn(tmp_path: Path) -> None:
    path = draw_dial([Row(1.0, "dial", "toy", "reward", 0.5, 128, 0.4, 0.6)], tmp_path / "dial.png")

    assert path.read_bytes().startswith(PNG)


def test_a_profile_has_a_panel_for_every_series(tmp_path: Path) -> None:
    series = {"norm": [1.0, 2.0], "ratio": [0.1, 0.2], "cosine": [0.0, 1.0]}
    profile = {"title": "shift (n = 4)", "x": {"label": "layer", "values": [10, 12]}, "series": series}

    path = draw_profile(profile, tmp_path / "shift.png")

    assert path.read_bytes().startswith(PNG)
    assert width(path) == 3 * 546


def test_a_smoothed_curve_is_the_mean_over_the_values_around() -> None:
    values = [float(value) for value in (3, 0, 6, 0, 3, 9)]

    assert smoothed_over(23) == 1  # too few
    assert smoothed_over(60) == 11
    assert smoothed(values, 1) == values
    assert smoothed(values, 3) == [1.5, 3.0, 2.0, 3.0, 4.0, 6.0]


def drawn(monkeypatch: pytest.MonkeyPatch, module: Any = plots) -> list[Any]:
    """The figures that are drawn from now on, as they are before they become files."""
    found: list[Any] = []
    real = plots.saved

    def kept(figure: Any, path: Path) -> Path:
        found.append(figure)
        return real(figure, path)

    monkeypatch.setattr(module, "saved", kept)
    return found


def test_steps_are_whole_and_the_raw_losses_stand_behind_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    for step in range(1, 31):
        Ledger(tmp_path).metrics(step, {"fit/loss": 2.0 + step % 2})

    draw_curves(Ledger(tmp_path), tmp_path / "curves.png")

    (panel,) = figures[0].axes
    raw, mean = panel.lines
    assert [round(float(y)) for y in raw.get_ydata()] == [3, 2] * 15
    assert list(mean.get_ydata()) == smoothed([2.0 + step % 2 for step in range(1, 31)], 5)
    assert raw.get_alpha() < 1
    assert all(tick == round(tick) for tick in panel.get_xticks())


def test_the_axis_of_a_share_ends_at_one_and_the_legend_names_band_and_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch)
    high = [Row(s, "dial", "toy", metric, 0.99, 128, 0.97, 1.0) for s in (0.0, 1.0) for metric in ("reward", "capability")]

    draw_dial(high, tmp_path / "dial.png")

    reward, capability = figures[0].axes
    assert reward.get_ylim()[1] > 1.0  # a mean of -1 to 1
    assert capability.get_ylim()[1] == 1.0
    named = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert named == ["95 % interval", "value", "as trained (strength 1)"]


def test_markers_at_the_edge_of_a_profile_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)

    draw_profile(
        {"title": "shift", "x": {"label": "layer", "values": [1, 2]}, "series": {"norm": [0.0, 2.0]}}, tmp_path / "s.png"
    )

    assert not figures[0].axes[0].lines[0].get_clip_on()


def test_a_line_that_lies_on_another_is_thinner_than_it() -> None:
    looks = line_widths([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0], [1.0, 2.0]])

    under, other, over, top = (look["linewidth"] for look in looks)
    assert under > over > top == other
    assert looks[0]["zorder"] < looks[2]["zorder"] < looks[3]["zorder"]


def test_a_frontier_has_the_strength_at_each_point_and_no_entry_without_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch, sweep_plots)
    sweep = MadeSweep(tmp_path / "runs", "pair")
    numbers = [number(metric, 0.5 + s / 4, s) for s in (0.0, 1.0, 1.5) for metric in ("toy/capability", "toy/consistency")]
    sweep.done("red", 0, numbers)
    sweep.done("lora", 0, [number("fluency/words", 30.0, s) for s in (0.0, 1.0)])

    draw(read_sweep(tmp_path / "runs", "pair"), "frontier", tmp_path / "f.svg", ["toy/capability", "toy/consistency"])

    (panel,) = figures[0].axes
    assert [text.get_text() for text in panel.texts] == ["0", "1", "1.5"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["red (1 seed)"]
