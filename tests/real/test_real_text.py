"""Real preference pairs, a real tokenizer, real lengths: the README's command at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from run import run
from tests.contracts.test_methods import composed

pytestmark = pytest.mark.real


def small(shared: Path, folder: Path, *overrides: str) -> dict[str, object]:
    """A DPO run of RED on stories260k and HH-RLHF; its report."""
    raw = composed(
        folder,
        "dpo",
        "tuner=red",
        "model=local",
        f"model.path={shared}/models/stories260k",
        "evaluation.pairs=30",
        *overrides,
        data=("data=hh_rlhf", f"data.path={shared}/data/hh-rlhf", "data.limit=60", "data.test_limit=40"),
    )
    run(raw)
    report: dict[str, object] = json.loads((folder / "run" / "report.json").read_text())
    return report


def test_real_pairs_train_with_every_row_accounted_for(shared: Path, tmp_path: Path) -> None:
    report = small(shared, tmp_path)

    rows = report["rows"]["prefer"]  # type: ignore[index]
    assert rows["read"] == 60
    assert rows["kept"] + sum(rows["dropped"].values()) == rows["read"]


def test_the_first_loss_on_real_pairs_is_ln_2(shared: Path, tmp_path: Path) -> None:
    small(shared, tmp_path)

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line["prefer/loss"] for line in lines if "prefer/loss" in line)
    assert first == pytest.approx(0.693147, abs=1e-4)


def test_accuracy_on_held_out_pairs_is_reported_before_and_after(shared: Path, tmp_path: Path) -> None:
    report = small(shared, tmp_path)

    rows = [row for row in report["results"] if row["metric"] == "accuracy"]  # type: ignore[attr-defined]
    assert [row["strength"] for row in rows] == [0.0, 1.0]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
