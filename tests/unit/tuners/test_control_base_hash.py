"""A control belongs to the weights that it was tuned with: the same are accepted in any precision, others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from alignlab.errors import ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.tuners.at_strength import tuner_in
from alignlab.tuners.peft_tuner import weights_hash
from tests.conftest import backbone
from tests.contracts.controls import CASES, Case, attach, last_logits, trained

every_case = pytest.mark.parametrize("case", CASES, ids=str)
SENTENCE = "tuned together with other weights than the model has; load it on the model that it belongs to"


def other(kind: str) -> Backbone:
    """A backbone of the same shape whose weights went on training for a moment."""
    made = backbone(kind)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return made


def saved(case: Case, folder: Path, seed: int = 0) -> Policy:
    """A policy that was just saved."""
    policy = trained(case, backbone(case.backbone), seed=seed)
    policy.tuner.save(folder)  # type: ignore[attr-defined]
    return policy


@every_case
def test_it_is_refused_by_load_on_other_weights(case: Case, tmp_path: Path) -> None:
    saved(case, tmp_path)

    with pytest.raises(ModelError, match=SENTENCE):
        attach(case, other(case.backbone)).tuner.load(tmp_path)  # type: ignore[attr-defined]


@every_case
def test_it_is_refused_by_peft_on_other_weights(case: Case, tmp_path: Path) -> None:
    saved(case, tmp_path)

    with pytest.raises(ModelError, match=SENTENCE):
        PeftModel.from_pretrained(other(case.backbone).model, tmp_path)


@every_case
def test_peft_loads_it_on_the_same_weights_with_the_same_logits(case: Case, tmp_path: Path) -> None:
    policy = saved(case, tmp_path)
    base = backbone(case.backbone)

    loaded = Policy(base, tuner_in(PeftModel.from_pretrained(base.model, tmp_path)))

    assert loaded.tuner.controls == policy.tuner.controls
    assert all(torch.equal(last_logits(loaded, name), last_logits(policy, name)) for name in case.classes)


@every_case
def test_it_loads_on_the_same_weights_in_half_precision(case: Case, tmp_path: Path) -> None:
    saved(case, tmp_path)
    base = backbone(case.backbone)
    base.model.to(torch.bfloat16)

    loaded = PeftModel.from_pretrained(base.model, tmp_path, autocast_adapter_dtype=False)

    assert tuner_in(loaded).controls is not None


@every_case
def test_the_hash_is_of_the_backbone_alone_with_or_without_a_control(case: Case) -> None:
    bare = weights_hash(backbone(case.backbone).model)

    policy = trained(case, backbone(case.backbone))

    assert weights_hash(policy.tuner.module) == weights_hash(policy.model) == bare  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_other_weights_have_another_hash(kind: str) -> None:
    assert weights_hash(other(kind).model) != weights_hash(backbone(kind).model)


@every_case
def test_a_second_adapter_on_the_same_base_answers_as_if_it_were_alone(case: Case, tmp_path: Path) -> None:
    first, second = (saved(case, tmp_path / name, seed=seed) for name, seed in (("first", 0), ("second", 7)))
    base = backbone(case.backbone)
    both = PeftModel.from_pretrained(base.model, tmp_path / "first", adapter_name="first")

    both.load_adapter(str(tmp_path / "second"), adapter_name="second")

    for name, alone in (("second", second), ("first", first)):
        both.set_adapter(name)
        here = Policy(base, tuner_in(both))
        assert all(torch.equal(last_logits(here, each), last_logits(alone, each)) for each in case.classes)


@every_case
def test_the_folder_says_which_weights_it_was_tuned_with(case: Case, tmp_path: Path) -> None:
    saved(case, tmp_path)

    written = json.loads((tmp_path / "adapter_config.json").read_text())

    assert written["base_hash"] == weights_hash(backbone(case.backbone).model)
