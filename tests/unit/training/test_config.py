"""What the configs of a stage and of the trainer refuse."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.errors import ConfigError
from tests.unit.conftest import checked, fit_config, trainer_config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": None}, "method.fit: give epochs or steps"),
        ({"epochs": 1.0}, "method.fit: give epochs or steps"),
        ({"steps": 0}, "method.fit.steps=0 must be at least 1 and at most 10000000, or null"),
        ({"steps": None, "epochs": 0.0}, "method.fit.epochs=0.0 must be above 0 and at most 100000, or null"),
        ({"batch": 0}, "method.fit.batch=0 must be at least 1"),
        ({"learning_rate": 0.0}, "method.fit.learning_rate=0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "method.fit.learning_rate=nan must be a finite number, above 0"),
        ({"schedule": "cosinus"}, "method.fit.schedule='cosinus' is not known; choose one of linear, cosine"),
        ({"loss_on": "prompt"}, "method.fit.loss_on='prompt' is not known; choose one of response, all"),
    ],
)
def test_a_stage_that_cannot_train_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        checked("method.fit", fit_config(**changes))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"steps": 7, "epochs": None}, 7),
        ({"steps": None, "epochs": 2.0, "batch": 4}, 5),
        ({"steps": None, "epochs": 0.5, "batch": 4}, 2),  # 1.25 steps, rounded up
        ({"steps": None, "epochs": 1.0, "batch": 64}, 1),
    ],
)
def test_steps_of_ten_groups(changes: dict[str, Any], steps: int) -> None:
    assert fit_config(**changes).total_steps(10) == steps


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "tpu"}, "trainer.device='tpu' is not known"),
        ({"checkpoint_every_steps": 0}, "trainer.checkpoint_every_steps=0 must be at least 1"),
        ({"keep_checkpoints": 0}, "trainer.keep_checkpoints=0 must be at least 2: the last good one"),
        ({"log_every_steps": 0}, "trainer.log_every_steps=0 must be at least 1"),
        ({"micro_batch": 0}, "trainer.micro_batch=0 must be at least 1, or null"),
        ({"micro_batch": -2}, "trainer.micro_batch=-2 must be at least 1, or null"),
        ({"pass_gib": 0.0}, "trainer.pass_gib=0.0 must be above 0"),
        ({"pass_gib": float("nan")}, "trainer.pass_gib=nan must be a finite number"),
        ({"pass_gib": float("inf")}, "trainer.pass_gib=inf must be a finite number"),
        ({"threads": 0}, "trainer.threads=0 must be at least 1 and at most 8192, or null"),
    ],
)
def test_a_trainer_that_cannot_run_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        checked("trainer", trainer_config(**changes))


@pytest.mark.parametrize(("micro_batch", "taken"), [(None, 8), (2, 2), (8, 8), (64, 8)])
def test_a_micro_batch_is_at_most_the_batch(micro_batch: int | None, taken: int) -> None:
    assert trainer_config(micro_batch=micro_batch).micro(8) == taken


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch=3 does not divide the stage's batch of 8; take a divisor"):
        trainer_config(micro_batch=3).micro(8)
