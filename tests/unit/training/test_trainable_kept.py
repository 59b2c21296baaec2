"""What MEET's stages leave behind, how they resume from it, and which batches they see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alignlab.errors import ModelError
from alignlab.methods.controlled import STAGES
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss
from alignlab.training.objectives import nll
from alignlab.training.stages import TrainStage
from alignlab.tuners.at_strength import tuner_in
from tests.conftest import backbone
from tests.contracts.controls import THREE, Case, attach, last_logits, said
from tests.unit.training.courses import (
    FORMS,
    SOFT,
    TEXT,
    THREE_SOURCE,
    losses,
    moved,
    run,
    stage,
    stages,
    weights,
)

every_form = pytest.mark.parametrize("case", FORMS, ids=str)


@every_form
def test_what_joint_leaves_gives_a_fresh_policy_the_same_bits(case: Case, tmp_path: Path) -> None:
    made = stage("joint")
    policy, fresh = (attach(case, backbone(case.backbone), seed=seed) for seed in (0, 7))
    run(made, policy, tmp_path)

    made.restore(fresh, tmp_path / "stages" / "joint")

    assert not moved(fresh, weights(policy))
    assert all(torch.equal(last_logits(fresh, name), last_logits(policy, name)) for name in ("good", "bad", "none"))
    assert fresh.backbone.fingerprint == policy.backbone.fingerprint != case.backbone


@every_form
def test_what_joint_leaves_loads_with_transformers_and_peft_alone(case: Case, tmp_path: Path) -> None:
    policy = attach(case, backbone(case.backbone))
    run(stage("joint"), policy, tmp_path)
    result = tmp_path / "stages" / "joint" / "result"

    plain = AutoModelForCausalLM.from_pretrained(result / "lm")
    loaded = Policy(replace(policy.backbone, model=plain), tuner_in(PeftModel.from_pretrained(plain, result / "control")))

    assert not moved(loaded, weights(policy))
    for name in ("good", "bad", "none"):
        # Bits of products depend on where in memory the weights lie.
        torch.testing.assert_close(last_logits(loaded, name), last_logits(policy, name), atol=1e-5, rtol=1e-6)


@every_form
def test_the_control_that_joint_leaves_names_the_model_beside_it_as_its_base(case: Case, tmp_path: Path) -> None:
    policy = attach(case, backbone(case.backbone))

    run(stage("joint"), policy, tmp_path)

    result = tmp_path / "stages" / "joint" / "result"
    written = json.loads((result / "control" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "../lm"


@pytest.mark.parametrize("case", [*FORMS, TEXT], ids=str)
def test_the_control_that_joint_leaves_is_refused_on_the_backbone_from_before(case: Case, tmp_path: Path) -> None:
    run(stage("joint"), attach(case, backbone(case.backbone)), tmp_path)
    control = tmp_path / "stages" / "joint" / "result" / "control"

    with pytest.raises(ModelError, match="tuned together with other weights"):
        attach(case, backbone(case.backbone)).tuner.load(control)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="tuned together with other weights"):
        PeftModel.from_pretrained(backbone(case.backbone).model, control)


@pytest.mark.parametrize("name", STAGES)
@every_form
def test_stopped_and_resumed_the_losses_and_the_weights_are_those_of_one_run(case: Case, name: str, tmp_path: Path) -> None:
    straight, first, second = (attach(case, backbone(case.backbone)) for _ in range(3))
    expected = losses(run(stage(name, steps=4), straight, tmp_path / "straight"), name)
    run(stage(name, steps=4), first, tmp_path / "stopped")
    folder = tmp_path / "stopped" / "stages" / name
    (folder / "checkpoint-4" / "complete").unlink()
    (tmp_path / "stopped" / "metrics.jsonl").unlink()

    again = losses(run(stage(name, steps=4), second, tmp_path / "stopped"), name)

    assert again == {step: loss for step, loss in expected.items() if step > 2}
    assert not moved(second, weights(straight))


def seen(made: Sequence[TrainStage], folder: Path) -> list[tuple[str, ...]]:
    """The rows of every batch of some stages."""
    rows: list[tuple[str, ...]] = []

    def objective(policy: Policy, batch: Batch) -> Loss:
        rows.append(batch.rows)
        return nll(policy, batch)

    policy = attach(SOFT, backbone("gpt2"))
    for each in made:
        run(replace(each, objective=objective), policy, folder)
    return rows


def test_two_stages_see_the_batches_of_one_stage_of_their_length(tmp_path: Path) -> None:
    both = seen(stages(STAGES, steps=(3, 2)), tmp_path / "both")

    joint = seen(stages(["joint"], steps=(3, 2)), tmp_path / "joint")
    controls = seen(stages(["controls"], steps=(3, 2)), tmp_path / "controls")

    assert len(both) == 5
    assert both == joint == controls


def test_every_step_holds_as_many_of_each_class(tmp_path: Path) -> None:
    rows = seen(stages(STAGES, steps=(3, 2)), tmp_path)

    sides = [[row.rpartition("/")[2] for row in step] for step in rows]  # 0 is the chosen answer, 1 the rejected one
    assert [sorted(step) for step in sides] == [["0", "1"]] * 5


@every_form
def test_joint_goes_on_from_controls_that_were_put_back(case: Case, tmp_path: Path) -> None:
    straight, first, second = (attach(case, backbone(case.backbone), seed=seed) for seed in (0, 0, 7))
    controls, joint = stages(STAGES, steps=(3, 2))
    run(controls, straight, tmp_path / "straight")
    run(joint, straight, tmp_path / "straight")
    run(controls, first, tmp_path / "cut")

    controls.restore(second, tmp_path / "cut" / "stages" / "controls")
    run(joint, second, tmp_path / "cut")

    assert not moved(second, weights(straight))


@pytest.mark.parametrize("form", ["token", "soft_prompt", "lora"])
def test_three_classes_train_and_answer_again_after_loading(form: str, tmp_path: Path) -> None:
    case = Case(form, "llama", classes=THREE)
    policy, fresh = (attach(case, backbone("llama"), seed=seed) for seed in (0, 7))
    asked = [*THREE, "none"]

    for made in stages(STAGES, steps=(2, 2), batch=3):
        run(made, policy, tmp_path, THREE_SOURCE)
        made.restore(fresh, tmp_path / "stages" / made.name)

    assert said(fresh, asked) == said(policy, asked)
    assert not moved(fresh, weights(policy))
