"""MEET's two stages: what moves in each, and at which rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.models.policy import Policy
from alignlab.training.arguments import arguments
from alignlab.training.objectives import nll
from alignlab.training.stages import TrainStage
from alignlab.training.trainer import FitTrainer, Step
from tests.conftest import backbone
from tests.contracts.controls import Case, attach, batch_of, items, learned, totals, trained
from tests.unit.conftest import session_in
from tests.unit.training.courses import (
    CONTROL_RATE,
    FORMS,
    RATE,
    SOFT,
    TEXT,
    moved,
    of_the_control,
    run,
    stage,
    weights,
)

every_form = pytest.mark.parametrize("case", FORMS, ids=str)


def trainer_of(made: TrainStage, policy: Policy, folder: Path) -> FitTrainer:
    """The trainer of a stage, with its optimiser."""
    session = session_in(folder)
    args = arguments(made.fit, session.trainer, folder, 4, session.seed)
    with made.training(policy) as parts:
        trainer = FitTrainer(Step(policy, nll), made.name, parts, session, [], args)
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

    with made.training(policy) as parts, policy.only(parts.parameters()):
        optimizer = trainer_of(made, policy, tmp_path).optimizer

    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    resting = {id(parameter) for parameter in learned(policy)[: len(learned(policy)) * rested]}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in policy.model.parameters()} - resting


@every_form
def test_in_joint_the_rates_are_those_of_the_config_and_the_control_does_not_decay(case: Case, tmp_path: Path) -> None:
    policy = attach(case, backbone(case.backbone))
    made = stage("joint", weight_decay=0.1)

    with made.training(policy) as parts, policy.only(parts.parameters()):
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


@every_form
def test_the_loss_of_controls_falls(case: Case, tmp_path: Path) -> None:
    policy = attach(case, backbone(case.backbone))
    batch = batch_of(items(("good", "bad")))
    before = totals(policy, batch).sum()

    run(stage("controls", steps=12, learning_rate=3e-2), policy, tmp_path)

    assert totals(policy, batch).sum() > before + 1
