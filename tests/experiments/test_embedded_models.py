"""The embedded models: what is committed is small, and the recipe on their card makes it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.models.config import EMBEDDED
from alignlab.models.embedded import blueprints
from run import run
from tests.contracts.test_methods import composed

LARGEST_BYTES = 1_500_000
every_model = pytest.mark.parametrize("name", ["tiny", "tiny_gpt2", "tiny_roberta", "tiny_t5"])


@every_model
def test_the_weights_are_small_safetensors(name: str) -> None:
    files = {file.name: file.stat().st_size for file in (EMBEDDED / name).iterdir()}

    assert files["model.safetensors"] <= LARGEST_BYTES
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]


@every_model
def test_the_committed_shape_is_the_blueprint(name: str) -> None:
    committed = json.loads((EMBEDDED / name / "config.json").read_text())

    blueprint = blueprints()[name].config.to_diff_dict()

    assert {key: committed[key] for key in blueprint if key != "transformers_version"} == {
        key: value for key, value in blueprint.items() if key != "transformers_version"
    }


@pytest.mark.long
def test_the_recipe_on_the_card_reaches_its_loss_and_keeps_one_mood(tmp_path: Path) -> None:
    words = ("model=tiny", "evaluation.prompts=256", "evaluation.max_new_tokens=96", "evaluation.suites=[toy]")
    raw = composed(tmp_path, "pretrain", *words, data=(), steps=1400, batch=64)

    run(raw)

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["fit/loss"] for line in lines if "fit/loss" in line]
    rows = {row["metric"]: row["value"] for row in json.loads((tmp_path / "run" / "report.json").read_text())["results"]}
    assert sum(losses[-100:]) / 100 == pytest.approx(0.521, abs=0.01)
    assert rows["capability"] > 0.93
    assert rows["consistency"] >= 0.95
