"""Runs on several sources, through the same door as `python run.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from run import run
from tests.contracts.test_methods import composed

TWO = (
    "data=mixture",
    "+data@data.sources.happy=toy",
    "+data@data.sources.other=toy",
    "data.sources.other.world_seed=1",
    *(
        f"data.sources.{name}.{key}={number}"
        for name, key, number in (
            ("happy", "pairs", 16),
            ("other", "pairs", 8),
            ("happy", "test_pairs", 6),
            ("other", "test_pairs", 4),
            ("happy", "corpus", 4),
            ("other", "corpus", 4),
        )
    ),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """From a metric of the suite preference to its row, of a run on two sources."""
    folder = tmp_path_factory.mktemp("mixture")
    run(composed(folder, "dpo", "evaluation.suites=[preference]", "control.strengths=[1.0]", data=TWO))
    rows = json.loads((folder / "run" / "report.json").read_text())["results"]
    return {row["metric"]: row for row in rows}


def test_preference_is_measured_of_each_source_and_of_all(report: dict[str, dict[str, float]]) -> None:
    assert {metric: row["n"] for metric, row in report.items() if metric.endswith("/accuracy") or metric == "accuracy"} == {
        "accuracy": 8,  # evaluation.pairs
        "happy/accuracy": 4,
        "other/accuracy": 4,
    }


def test_the_accuracy_of_all_is_the_mean_of_the_sources(report: dict[str, dict[str, float]]) -> None:
    for metric in ("accuracy", "reward_accuracy"):
        both = (report[f"happy/{metric}"]["value"] + report[f"other/{metric}"]["value"]) / 2
        assert report[metric]["value"] == pytest.approx(both)


@pytest.mark.parametrize(
    ("method", "words"), [("meet", ()), ("sft", ()), ("rahf", ("data.prefixes.better=Good.", "data.prefixes.worse=Bad."))]
)
def test_other_methods_run_on_a_mixture_that_is_measured_on_the_way(
    method: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    watched = ("trainer=validated", "trainer.validation.share=0.25", "trainer.validation.every_steps=1")

    run(composed(tmp_path, method, "evaluation=off", *watched, "data.weights={happy: 1, other: 3}", *words, data=TWO, batch=8))

    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
