"""What a sweep's plan counts without reading anything is what the runs do."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab import preparation
from alignlab.config import parse
from alignlab.sweeps.stages import stages_of
from tests.contracts.test_methods import STAGE, composed

EPOCHS = ("epochs=2.0", "steps=null", "batch=8")
"""CoH rounds up in each half of its course, so that an odd number of steps would be one more than planned."""
HALVES = "data.halves={seed: 1, test: null, max_prompt: null}"
CASES = {
    **{method: (method,) for method in STAGE},
    "dpo, on a half": ("dpo", HALVES, "data.part=rm"),
    "dpo behind sft": ("dpo", "method.sft_first=true"),
    "rahf, both responses": ("rahf", "method.responses=both"),
    "rahf, in halves": ("rahf", HALVES),
    "rahf, two models": ("rahf", "method.variant=dual"),
    "rahf, two models, in halves": ("rahf", "method.variant=dual", HALVES),
    "hir": ("rahf", "method.variant=hir", "tuner=control", "control=prefixes"),
    "some of the records": ("red", "data.limit=10"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_of_epochs_are_counted_before_the_data_is_read(case: str, tmp_path: Path) -> None:
    method, *words = CASES[case]
    stages = parse(composed(tmp_path, method, *words)).method.fits()
    epochs = [f"method.{stage}.{word}" for stage in stages for word in EPOCHS]

    config = parse(composed(tmp_path, method, *words, *epochs))

    plan = preparation.make_plan(config)
    made = {stage.name: work.steps for stage, work in zip(plan.method.stages, plan.works, strict=True) if stage.trains}
    assert {stage.name: stage.steps for stage in stages_of(config) or ()} == made
