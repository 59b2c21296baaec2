"""A stage that is measured while it trains: nothing is disturbed, the best is kept, and a stop at any moment is no matter."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignlab.data.encode import chosen
from alignlab.errors import ConfigError
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss
from alignlab.training import trainer
from alignlab.training.config import ValidationConfig
from alignlab.training.objectives import nll
from alignlab.training.processes import COME_AGAIN
from alignlab.training.stages import Session, TrainStage
from alignlab.training.trainable import TrainableParts
from alignlab.training.validation import ValidatedTrainer, Validation
from alignlab.tuners import TUNERS
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import checked, fit_config, learned, session_in
from tests.unit.methods.readings import LIMITS, SOURCE

STEPS = 8


class StoppedError(Exception):
    """Somebody pulled the plug."""


def settings(**changes: Any) -> ValidationConfig:
    values: dict[str, Any] = {
        "suite": "made",
        "metric": "value",
        "higher_is_better": True,
        "keep_best": True,
        "split": "validation",
        "share": None,
        "seed": 0,
        "rows": 8,
        "every_steps": 2,
        "every_epochs": None,
        "stages": None,
    }
    return ValidationConfig(**{**values, **changes})


def digits(policy: Policy) -> float:
    """A number in [0, 1) that depends on every weight that is learned, and grows with none of them."""
    return (0.7 + 1e5 * sum(float(parameter.double().sum()) for parameter in learned(policy))) % 1


@dataclass
class Measured:
    """Keeps the weights that it is asked for, draws from every generator, and gives a number for them."""

    value: Callable[[Policy], float] = digits
    kept: list[list[Tensor]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    modes: set[bool] = field(default_factory=set)

    def __call__(self, policy: Policy) -> Mapping[str, float]:
        self.kept.append([parameter.detach().clone() for parameter in learned(policy)])
        self.values.append(self.value(policy))
        self.modes |= {module.training for module in policy.model.modules()}
        torch.rand(3), random.random(), np.random.rand(3)
        return {"value": self.values[-1]}

    @property
    def best(self) -> int:
        return max(range(len(self.values)), key=lambda number: self.values[number])


def policy_with_dropout() -> Policy:
    """A LoRA that drops half of its input while it trains."""
    entry = TUNERS["lora"]
    config = entry.config("lora", 1e-2, 1e-2, rank=4, alpha=8.0, dropout=0.5, targets=[])
    model = backbone("llama")
    torch.manual_seed(0)
    return Policy(model, entry.build(config, model.model))


def session(folder: Path, measure: Any = None, **changes: Any) -> Session:
    """Checkpoints at 3 and 6, and at the end; measured at every other step."""
    made = session_in(folder, checkpoint_every_steps=3, validation=settings(**changes) if measure else None)
    return replace(made, validation=Validation(settings(**changes), measure) if measure else None)


def train(at: Session, objective: Any = nll) -> list[Tensor]:
    """The weights that a stage ends with."""
    policy = policy_with_dropout()
    stage = TrainStage("fit", "train", chosen, objective, fit_config(steps=STEPS))
    with at.preemption.heeded(lambda: None):
        stage.run(policy, stage.prepare(SOURCE, CODEC, LIMITS), at)
    return [parameter.detach().clone() for parameter in learned(policy)]


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of the metrics but how long it took, steps in order."""
    return sorted(session_in(folder).ledger.history(), key=lambda line: (line["step"], str(sorted(line))))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return bool(first) and all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_measuring_changes_neither_losses_nor_weights(tmp_path: Path) -> None:
    measured = Measured()

    plain = train(session(tmp_path / "plain"))
    watched = train(session(tmp_path / "watched", measured, keep_best=False))

    assert same(watched, plain)
    assert [line for line in lines(tmp_path / "watched") if "fit/validation/value" not in line] == lines(tmp_path / "plain")
    assert measured.modes == {False}


def test_what_is_measured_stands_in_the_metrics_behind_its_steps(tmp_path: Path) -> None:
    measured = Measured()

    train(session(tmp_path, measured, every_steps=3))

    found = {line["step"]: line["fit/validation/value"] for line in lines(tmp_path) if "fit/validation/value" in line}
    assert found == dict(zip((3, 6, 8), measured.values, strict=True))


def test_a_stage_ends_with_its_best_weights(tmp_path: Path) -> None:
    measured = Measured()

    ended = train(session(tmp_path, measured))

    folder = tmp_path / "stages" / "fit"
    best = measured.best
    assert best < 3  # else the last step would do
    assert same(ended, measured.kept[best])
    assert json.loads((folder / "best.json").read_text()) == {
        "metric": "made/value",
        "value": measured.values[best],
        "step": 2 * (best + 1),
    }
    places = (folder / f"checkpoint-{2 * (best + 1)}", folder / "result")
    kept, result = (load_file(place / "adapter_model.safetensors") for place in places)
    assert_same_bits(result, kept)


@pytest.mark.parametrize("higher", [True, False])
def test_of_equal_numbers_the_earliest_is_the_best(higher: bool, tmp_path: Path) -> None:
    measured = Measured(lambda policy: 0.5)

    ended = train(session(tmp_path, measured, higher_is_better=higher))

    assert len(measured.kept) == 4
    assert same(ended, measured.kept[0])


def test_lower_may_be_better(tmp_path: Path) -> None:
    measured = Measured(lambda policy: -digits(policy))

    ended = train(session(tmp_path, measured, higher_is_better=False))

    assert same(ended, measured.kept[min(range(4), key=lambda number: measured.values[number])])


def test_what_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    measured = Measured()
    measured.value = lambda policy: math.nan if len(measured.kept) != 3 else 0.1

    ended = train(session(tmp_path, measured))

    assert same(ended, measured.kept[2])


def test_where_nothing_was_a_number_a_stage_ends_with_its_last_weights(tmp_path: Path) -> None:
    measured = Measured(lambda policy: math.nan)

    ended = train(session(tmp_path, measured))

    assert same(ended, measured.kept[-1])
    assert not (tmp_path / "stages" / "fit" / "best.json").exists()


def test_the_best_checkpoint_outlives_the_limit(tmp_path: Path) -> None:
    falling = Measured()
    falling.value = lambda policy: -float(len(falling.kept))

    train(session(tmp_path, falling))

    kept = {folder.name for folder in (tmp_path / "stages" / "fit").glob("checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}


def stopping(name: str, call: int, where: str, does: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; where it is the one that is to stop, its n-th call fails before it does anything."""
    made = 0

    def stopped(*given: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if name == where and made == call:
            raise StoppedError
        return does(*given, **named)

    return stopped


MOMENTS = {
    **{f"in measurement {call}": ("measure", call) for call in (1, 2, 3, 4)},
    **{f"between measuring and saving, at save {call}": ("save", call) for call in (1, 2, 3)},
    **{f"before checkpoint {call} is complete": ("mark", call) for call in (1, 2, 3)},
    **{f"in step {call}": ("step", call) for call in (3, 4, 5, 8)},
    "before the best is put back": ("end", 1),
    "before the result is written": ("save", 6),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    """The folder of a run that was never stopped, and the weights that it ended with, which are not its last."""
    folder, measured = tmp_path_factory.mktemp("straight"), Measured()
    ended = train(session(folder, measured))
    assert measured.best == 1
    return folder, ended


@pytest.mark.parametrize(("where", "call"), MOMENTS.values(), ids=MOMENTS.keys())
def test_stopped_and_resumed_everything_is_as_if_it_never_had(
    where: str, call: int, straight: tuple[Path, list[Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = straight
    measure, objective = stopping("measure", call, where, Measured()), stopping("step", call, where, nll)
    with monkeypatch.context() as patched:
        patched.setattr(TrainableParts, "save", stopping("save", call, where, TrainableParts.save))
        patched.setattr(trainer, "mark", stopping("mark", call, where, trainer.mark))
        patched.setattr(ValidatedTrainer, "_end_with_best", stopping("end", call, where, ValidatedTrainer._end_with_best))
        with pytest.raises(StoppedError):
            train(session(tmp_path / "stopped", measure), objective)

    resumed = train(session(tmp_path / "stopped", Measured()))

    assert same(resumed, expected)
    assert lines(tmp_path / "stopped") == lines(folder)
    best, again = (place / "stages" / "fit" / "best.json" for place in (folder, tmp_path / "stopped"))
    assert best.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_signal_while_measuring_ends_the_step_and_the_resumed_run_is_the_same(
    number: int, straight: tuple[Path, list[Tensor]], tmp_path: Path
) -> None:
    folder, expected = straight
    measured = Measured()

    def signalled(policy: Policy) -> Mapping[str, float]:
        found = measured(policy)
        if len(measured.kept) == number:
            os.kill(os.getpid(), signal.SIGUSR2)
        return found

    with pytest.raises(SystemExit, match=f"^{COME_AGAIN}$"):
        train(session(tmp_path / "left", signalled))
    resumed = train(session(tmp_path / "left", Measured()))

    assert same(resumed, expected)
    assert lines(tmp_path / "left") == lines(folder)


def test_a_stage_that_was_not_named_is_not_measured(tmp_path: Path) -> None:
    measured = Measured()

    ended = train(session(tmp_path / "watched", measured, stages=["other"]))

    assert measured.kept == []
    assert same(ended, train(session(tmp_path / "plain")))


def test_gradients_go_on_where_a_measurement_came_between_them(tmp_path: Path) -> None:
    learning: list[bool] = []

    def objective(policy: Policy, batch: Batch) -> Loss:
        learning.append(torch.is_grad_enabled() and all(parameter.requires_grad for parameter in learned(policy)))
        return nll(policy, batch)

    train(session(tmp_path, Measured(), every_steps=1), objective)

    assert learning == [True] * STEPS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"every_steps": 4}, {4, 8, 10}),
        ({"every_steps": 5}, {5, 10}),
        ({"every_steps": 50}, {10}),
        (
            {"every_steps": None, "every_epochs": 0.5},
            {2, 3, 5, 6, 8, 9, 10},
        ),  # 6 groups in steps of 2: half an epoch is 1.5 steps
        ({"every_steps": None, "every_epochs": 2.0}, {6, 10}),
    ],
)
def test_the_steps_that_are_measured(changes: dict[str, Any], expected: set[int]) -> None:
    assert settings(**changes).steps(total=10, groups=6, batch=2) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"every_epochs": 1.0},
            "give every_steps or every_epochs, and null for the other; now every_steps=2 and every_epochs=1.0",
        ),
        ({"every_steps": None}, "give every_steps or every_epochs, and null for the other"),
        ({"every_steps": 0}, "trainer.validation.every_steps=0 must be at least 1, or null."),
        (
            {"every_steps": None, "every_epochs": math.inf},
            "every_epochs=inf must be a finite number, at least 0.0001",
        ),
        ({"every_steps": None, "every_epochs": 0.0}, "every_epochs=0.0 must be at least 0.0001, or null."),
        ({"rows": 1}, "trainer.validation.rows=1 must be at least 2."),
        ({"seed": -1}, "trainer.validation.seed=-1 must be at least 0 and at most 4294967295."),
        ({"share": 1.0}, "share=1.0 must be above 0 and below 1, or null: a share of the training records."),
        ({"share": math.nan}, "share=nan must be a finite number, above 0 and below 1, or null."),
        ({"split": "test"}, "trainer.validation.split='test' is trained on or reported; name another, such as validation."),
        ({"split": "rm"}, "trainer.validation.split='rm' is trained on or reported"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as info:
        checked("trainer.validation", settings(**changes))

    assert said in str(info.value)
