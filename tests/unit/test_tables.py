"""Means over seeds, and the fewest settings that tell runs apart."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from alignlab.__main__ import main
from alignlab.errors import ConfigError
from alignlab.plots.sweep import draw_sweep
from alignlab.tables.folders import bands, differences, distinguishing, means, over_strengths, read_results
from alignlab.tracking.ledger import Ledger

PNG = b"\x89PNG\r\n\x1a\n"


def line(tuner: str, rate: float, seed: int, strength: float, metric: str, value: float) -> dict[str, object]:
    """A line as `results` gives it: the rate follows from the tuner."""
    row = {
        "strength": strength,
        "control": "dial",
        "suite": "toy",
        "metric": metric,
        "value": value,
        "n": 8,
        "low": 0,
        "high": 1,
    }
    return {"method.rate": rate, "tuner.name": tuner, "seed": seed, **row}


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        [
            line(tuner, rate, seed, strength, metric, base + seed)
            for tuner, rate, base in (("clm", 0.1, 1.0), ("lora", 0.2, 5.0))
            for seed in (0, 1, 2)
            for strength in (0.0, 1.0)
            for metric in ("reward", "capability")
        ]
    )


def test_a_setting_that_follows_from_another_does_not_tell_runs_apart() -> None:
    assert distinguishing(frame()) == ["tuner.name"]


def test_seeds_are_averaged_with_the_lowest_and_the_highest_beside() -> None:
    made = means(frame())

    lora = made[(made["tuner.name"] == "lora") & (made.strength == 1.0) & (made.metric == "reward")]
    assert lora[["mean", "seeds", "lowest", "highest"]].values.tolist() == [[6.0, 3, 5.0, 7.0]]
    assert len(made) == 2 * 2 * 2


def test_runs_that_differ_in_a_list_are_told_apart(tmp_path: Path) -> None:
    for number, strengths in enumerate(([0.0, 1.0], [0.0, 2.0])):
        ledger = Ledger(tmp_path / str(number))
        ledger.write("config.json", {"seed": 0, "control": {"strengths": strengths}})
        ledger.write(
            "report.json", {"results": [{"strength": 1.0, "control": "dial", "suite": "toy", "metric": "reward", "value": 0.5}]}
        )

    assert means(read_results(tmp_path))["control.strengths"].tolist() == ["0.0 1.0", "0.0 2.0"]


def test_runs_that_differ_in_their_seed_only_have_no_setting() -> None:
    one = frame()[lambda lines: lines["tuner.name"] == "clm"]

    assert distinguishing(one) == []
    assert means(one)["mean"].tolist() == [2.0] * 4


@pytest.mark.parametrize("tuners", [["clm"], ["clm", "lora"]])
def test_a_sweep_is_drawn_with_one_line_per_setting(tuners: list[str], tmp_path: Path) -> None:
    some = frame()[lambda lines: lines["tuner.name"].isin(tuners)]

    path = draw_sweep(bands(some), tmp_path / "dial.png", [("toy", "reward"), ("toy", "capability")])

    assert path.read_bytes().startswith(PNG)


def runs(folder: Path) -> Path:
    """Two finished runs on disk."""
    for seed in (0, 1):
        ledger = Ledger(folder / f"seed-{seed}")
        ledger.write("config.json", {"seed": seed, "tuner": {"name": "clm"}})
        rows = [line("clm", 0.1, seed, 1.0, metric, float(seed)) for metric in ("reward", "capability")]
        ledger.write(
            "report.json", {"results": [{k: v for k, v in row.items() if "." not in k and k != "seed"} for row in rows]}
        )
    return folder


def test_the_table_command_averages_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["table", str(runs(tmp_path)), "--means"])

    assert status == 0
    assert "1.0,dial,toy,reward,0.5,2,0.0,1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("sead=0", "unknown setting 'sead'; did you mean seed?"),
        ("seed=7", "has the settings asked for"),
        ("seed", "is not of the form KEY=A,B"),
    ],
)
def test_a_condition_that_fits_no_run_is_one_sentence(
    where: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["table", str(runs(tmp_path)), "--where", where])

    assert status == 1
    assert sentence in capsys.readouterr().err


def test_a_condition_leaves_the_other_runs_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["table", str(runs(tmp_path)), "--where", "seed=1", "--means"])

    assert status == 0
    assert "1.0,dial,toy,reward,1.0,1,1.0,1.0" in capsys.readouterr().out


def test_the_plot_command_names_the_metrics_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["plot", str(runs(tmp_path)), "--to", str(tmp_path / "p.png"), "--metrics", "toy/rewrad", "toy/capability"])

    assert status == 1
    assert "did you mean toy/reward? known: toy/capability, toy/reward" in capsys.readouterr().err


def test_the_plot_command_writes_a_picture(tmp_path: Path) -> None:
    status = main(["plot", str(runs(tmp_path)), "--to", str(tmp_path / "p.png")])

    assert status == 0
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


def under(method: str, seed: int, control: str, metric: str, value: float) -> dict[str, object]:
    row = {"strength": 1.0, "control": control, "suite": "toy", "metric": metric, "value": value, "n": 8, "low": 0, "high": 1}
    return {"method.name": method, "seed": seed, **row}


def with_classes() -> pd.DataFrame:
    """A run with classes beside a dial: reward(good) 3 and 5, the dial's 1 and 2."""
    rows = []
    for seed, good, dial in ((0, 3.0, 1.0), (1, 5.0, 2.0)):
        rows += [
            under("meet", seed, control, "reward", good if control == "good" else 0.0) for control in ("good", "bad", "none")
        ]
        rows.append(under("dpo", seed, "trained", "reward", dial))
    return pd.DataFrame(rows)


def test_differences_are_paired_by_seed_and_the_first_class_stands_beside_a_dial() -> None:
    made = differences(with_classes(), {"method.name": ["meet"]})

    dpo = made[made["method.name"] == "dpo"]
    # -2 and -3: mean -2.5, deviation sqrt(1/2), and Student's 12.706 for two seeds.
    assert dpo[["control", "mean", "seeds"]].values.tolist() == [["good", -2.5, 2]]
    assert dpo["low"].item() == pytest.approx(-2.5 - 12.7062 * 0.5, abs=1e-3)


def test_differences_against_a_dial_take_the_first_class_alone() -> None:
    made = differences(with_classes(), {"method.name": ["dpo"]})

    meet = made[made["method.name"] == "meet"]
    assert meet[["control", "mean", "seeds"]].values.tolist() == [["trained", 2.5, 2]]


@pytest.mark.parametrize(
    ("against", "sentence"),
    [
        ({"method.nam": ["dpo"]}, "unknown setting that differs"),
        ({"seed": ["0", "1"]}, "names 4 runs, and must name one per seed"),
    ],
)
def test_differences_against_no_single_run_are_refused(against: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        differences(with_classes(), against)


def test_runs_under_classes_are_not_drawn_along_a_dial() -> None:
    with pytest.raises(ConfigError, match="measured under classes, not at strengths"):
        over_strengths(with_classes()[lambda rows: rows["method.name"] == "meet"])
