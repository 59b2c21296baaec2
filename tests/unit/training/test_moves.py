"""MEET's two stages: what moves in each, at which rate, what is kept, and which batches they see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignlab.data.classes import classed, find
from alignlab.data.config import ClassesConfig
from alignlab.data.encode import Limits
from alignlab.data.source import Source, Split
from alignlab.errors import ModelError
from alignlab.methods.meet import STAGES, MeetConfig, build
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss, Preference
from alignlab.training.objectives import nll
from alignlab.training.session import Session
from alignlab.training.stages import TrainStage
from alignlab.training.trainer import FitTrainer, Step, arguments
from tests.conftest import CODEC, backbone
from tests.contracts.controls import Case, attach, batch_of, items, last_logits, learned, totals, trained
from tests.unit.conftest import PAIRS, fit_config, session_in

RECORDS = tuple(Preference.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
PLAIN_SOURCE = Source("made", {name: lambda: Split(RECORDS) for name in ("train", "test")})
SOURCE = classed(PLAIN_SOURCE, find(ClassesConfig("pairs", ["good", "bad"], 2, []), PLAIN_SOURCE))
LIMITS = Limits(120, "error", 1)
FORMS = {
    "token-llama": Case("token", "llama", 0),
    "soft_prompt-gpt2": Case("soft_prompt", "gpt2", 0, settings={"length": 3}),
    "lora-llama": Case("lora", "llama", 0),
}
TEXT = Case("text", "llama", 0)
SOFT = FORMS["soft_prompt-gpt2"]
every_form = pytest.mark.parametrize("case", FORMS.values(), ids=str)
RATE, CONTROL_RATE = 1e-3, 2e-2


def stage(name: str, *, steps: int = 3, control_rate: float | None = CONTROL_RATE, **changes: Any) -> TrainStage:
    """One stage alone, with as many steps as are asked for."""
    return stages([name], steps=(steps - 1, 1), control_rate=control_rate, **changes)[0]


def stages(names: Sequence[str], *, steps: tuple[int, int], control_rate: float | None = CONTROL_RATE, **changes: Any) -> Any:
    """The stages of MEET; `steps` of each in the sheet."""
    controls, joint = (fit_config(steps=count, learning_rate=RATE, **changes) for count in steps)
    return build(MeetConfig("meet", joint, control_rate, list(names), controls)).stages


def run(made: TrainStage, policy: Policy, folder: Path) -> Session:
    """The session of a stage that was run in a folder."""
    session = session_in(folder)
    made.run(policy, made.prepare(SOURCE, CODEC, LIMITS), session)
    return session


def weights(policy: Policy) -> dict[str, Tensor]:
    """Every parameter by name, as it is now."""
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def moved(policy: Policy, before: dict[str, Tensor]) -> set[str]:
    """The names of parameters that are other numbers now."""
    return {name for name, tensor in weights(policy).items() if not torch.equal(tensor, before[name])}


def of_the_control(policy: Policy) -> set[str]:
    """The names of the control's parameters."""
    own = {id(parameter) for parameter in learned(policy)}
    return {name for name, parameter in policy.model.named_parameters() if id(parameter) in own}


def losses(session: Session, name: str) -> dict[int, float]:
    """The loss of each step."""
    return {entry["step"]: entry[f"{name}/loss"] for entry in session.ledger.history() if f"{name}/loss" in entry}


def trainer_of(made: TrainStage, policy: Policy, folder: Path) -> FitTrainer:
    """The trainer of a stage, with its optimiser."""
    session, part = session_in(folder), made.moves.part(policy)
    args = arguments(made.fit, session, folder, steps=4)
    trainer = FitTrainer(Step(policy, nll), made.name, part, session, [], args)
    trainer.create_optimizer()
    return trainer


@every_form
def test_controls_leaves_the_bytes_of_the_backbone_as_they_were(case: Case, tmp_path: Path) -> None:
    policy = trained(case, backbone(case.backbone))
    before = weights(policy)

    run(stage("controls"), policy, tmp_path)

    assert moved(policy, before) == of_the_control(policy)
    assert policy.backbone.fingerprint == case.backbone


@every_form
def test_joint_moves_the_backbone_and_the_control(case: Case, tmp_path: Path) -> None:
    policy = trained(case, backbone(case.backbone))
    before = weights(policy)

    run(stage("joint"), policy, tmp_path)

    assert moved(policy, before) == before.keys()


@every_form
def test_joint_without_a_rate_for_the_control_leaves_its_bits(case: Case, tmp_path: Path) -> None:
    policy = trained(case, backbone(case.backbone))
    before = weights(policy)

    run(stage("joint", control_rate=None), policy, tmp_path)

    assert moved(policy, before) == before.keys() - of_the_control(policy)


def test_joint_under_a_phrase_moves_the_backbone(tmp_path: Path) -> None:
    policy = attach(TEXT, backbone("llama"))
    before = weights(policy)

    run(stage("joint"), policy, tmp_path)

    assert moved(policy, before) == before.keys()


@pytest.mark.parametrize(("control_rate", "rested"), [(CONTROL_RATE, False), (None, True)])
@every_form
def test_in_joint_every_parameter_stands_in_exactly_one_group(
    case: Case, control_rate: float | None, rested: bool, tmp_path: Path
) -> None:
    policy = attach(case, backbone(case.backbone))
    made = stage("joint", control_rate=control_rate, weight_decay=0.1)

    with policy.only(made.moves.part(policy).parameters()):
        optimizer = trainer_of(made, policy, tmp_path).optimizer

    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    resting = {id(parameter) for parameter in learned(policy)[: len(learned(policy)) * rested]}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in policy.model.parameters()} - resting


@every_form
def test_in_joint_the_rates_are_those_of_the_sheet_and_the_control_does_not_decay(case: Case, tmp_path: Path) -> None:
    policy = attach(case, backbone(case.backbone))
    made = stage("joint", weight_decay=0.1)

    with policy.only(made.moves.part(policy).parameters()):
        optimizer = trainer_of(made, policy, tmp_path).optimizer

    own = {id(parameter) for parameter in learned(policy)}
    groups = [
        (group["lr"], group["weight_decay"], {id(parameter) in own for parameter in group["params"]})
        for group in optimizer.param_groups
    ]
    assert groups == [(RATE, 0.1, {False}), (RATE, 0.0, {False}), (CONTROL_RATE, 0.0, {True})]


def test_both_rates_follow_the_schedule_and_are_logged(tmp_path: Path) -> None:
    made = stage("joint", steps=4, warmup_fraction=0.0, schedule="linear")

    session = run(made, attach(SOFT, backbone("gpt2")), tmp_path)

    logged = [entry for entry in session.ledger.history() if "joint/loss" in entry]
    falling = [1.0, 0.75, 0.5, 0.25]  # of four steps
    assert [entry["joint/learning_rate"] / RATE for entry in logged] == pytest.approx(falling)
    assert [entry["joint/tuner_learning_rate"] / CONTROL_RATE for entry in logged] == pytest.approx(falling)
