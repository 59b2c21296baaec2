"""A sweep over two settings, as a table of cells and as a heat map."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from alignlab.__main__ import main
from alignlab.errors import ConfigError
from alignlab.plots.sweep import draw_map
from alignlab.tables.folders import pivot
from alignlab.tracking.ledger import Ledger

PNG = b"\x89PNG\r\n\x1a\n"
ALPHAS, LAYERS = ("10.0", "2.0"), ("1", "1 2")


def cells(variants: tuple[str, ...] = ("scit",)) -> pd.DataFrame:
    """Reward = alpha * number of layers + seed, at strength 1; nothing at strength 0."""
    return pd.DataFrame(
        [
            {
                **({"method.variant": variant} if len(variants) > 1 else {}),
                "method.alpha": alpha,
                "method.layers": layers,
                "seed": seed,
                "strength": strength,
                "control": "dial",
                "suite": "toy",
                "metric": "reward",
                "value": strength * (float(alpha) * len(layers.split()) + seed),
            }
            for variant in variants
            for alpha in ALPHAS
            for layers in LAYERS
            for seed in (0, 1)
            for strength in (0.0, 1.0)
        ]
    )


def test_a_cell_is_the_mean_over_seeds_at_strength_one_and_numbers_stand_in_their_order() -> None:
    table = pivot(cells(), "method.alpha", "method.layers", "toy/reward")

    assert list(table.columns) == ["2.0", "10.0"]
    assert table.loc["1"].tolist() == [2.5, 10.5]
    assert table.loc["1 2"].tolist() == [4.5, 20.5]


def test_runs_that_differ_in_a_third_setting_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"differ in method\.variant; choose some with --where"):
        pivot(cells(("scit", "dual")), "method.alpha", "method.layers", "toy/reward")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ("method.alhpa", "method.layers", "toy/reward"),
            "unknown setting that differs 'method.alhpa'; did you mean method.alpha",
        ),
        (("method.alpha", "method.layers", "toy/rewrad"), "no run has toy/rewrad at strength 1; known: toy/reward"),
    ],
)
def test_a_setting_or_a_metric_that_is_not_there_is_one_sentence(names: tuple[str, str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        pivot(cells(), *names)


def test_a_map_has_a_panel_for_every_metric(tmp_path: Path) -> None:
    table = pivot(cells(), "method.alpha", "method.layers", "toy/reward")

    path = draw_map({"toy/reward": table, "toy/capability": table}, tmp_path / "map.png")

    assert path.read_bytes().startswith(PNG)
    assert int.from_bytes(path.read_bytes()[16:20], "big") == 2 * 546  # 4.2 inches at 130 dots


def test_the_plot_command_draws_a_map(tmp_path: Path) -> None:
    for number, (alpha, layers) in enumerate((alpha, layers) for alpha in (1.0, 2.0) for layers in (1, 2)):
        ledger = Ledger(tmp_path / str(number))
        ledger.write("config.json", {"seed": 0, "method": {"alpha": alpha, "window": layers}})
        row = {"strength": 1.0, "control": "dial", "suite": "toy", "metric": "reward", "value": 0.5}
        ledger.write("report.json", {"results": [row]})

    words = ["plot", str(tmp_path), "--to", str(tmp_path / "map.png"), "--metrics", "toy/reward"]
    status = main([*words, "--map", "method.alpha", "method.window"])

    assert status == 0
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)


def test_two_runs_of_one_seed_in_a_single_cell_are_found_beside_cells_with_more_seeds() -> None:
    frame = cells()
    frame.insert(0, "method.rate", "a")
    cell = (frame["method.alpha"] == "2.0") & (frame["method.layers"] == "1")
    twice = frame[cell & (frame["seed"] == 0)].assign(**{"method.rate": "b"})
    odd = pd.concat([frame[~(cell & (frame["seed"] == 1))], twice])

    with pytest.raises(ConfigError, match=r"differ in method\.rate"):
        pivot(odd, "method.alpha", "method.layers", "toy/reward")
