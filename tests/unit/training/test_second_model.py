"""A second model beside the backbone, and either of them trained through a LoRA that becomes part of its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignlab.data.encode import chosen, rejected
from alignlab.errors import ConfigError
from alignlab.models.policy import Policy
from alignlab.training.objectives import nll
from alignlab.training.references import SecondModel
from alignlab.training.stages import TrainStage
from alignlab.training.trainable import THE_BACKBONE, training
from alignlab.tuners.lora import UpdateShape
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached, batch_of, fit_config, learned, session_in
from tests.unit.methods.readings import LIMITS, SOURCE, weights

LORA = UpdateShape(rank=2, alpha=6.0, dropout=0.0)
IDS = torch.arange(3, 19).reshape(2, 8)
TARGETS = {"llama": ("self_attn.q_proj", "self_attn.v_proj"), "gpt2": ("attn.c_attn",)}
every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
every_tuner = pytest.mark.parametrize("tuner", ["lora", "red", "full"])
both_ways = pytest.mark.parametrize("through", [None, LORA], ids=["every-weight", "by-lora"])


def staged(second: SecondModel | None, through: UpdateShape | None = None, name: str = "dispreferred") -> TrainStage:
    """Two steps on the rejected responses; or on the chosen ones, where the preferred model is trained."""
    view = chosen if name == "preferred" else rejected
    fit = fit_config(steps=2)
    return TrainStage(name, "train", view, nll, fit, trains=THE_BACKBONE, update=through, second=second)


def run(stage: TrainStage, policy: Policy, folder: Path) -> Policy:
    """The policy after a stage in a folder."""
    stage.run(policy, stage.prepare(SOURCE, CODEC, LIMITS), session_in(folder))
    return policy


def off(policy: Policy) -> Tensor:
    """Log-probabilities of the pairs with the tuner off."""
    with torch.no_grad(), policy.off():
        return policy.logprobs(batch_of(policy.backbone)).total_GM


def inside(second: SecondModel, policy: Policy) -> Tensor:
    """The same of the second model."""
    with torch.no_grad(), policy.off(), second.inside():
        return policy.logprobs(batch_of(policy.backbone)).total_GM


def on(policy: Policy) -> Tensor:
    """The same with the tuner at 1."""
    with torch.no_grad():
        return policy.logprobs(batch_of(policy.backbone)).total_GM


def named(policy: Policy) -> dict[str, Tensor]:
    """The weights of the backbone under their plain names."""
    own = {id(parameter) for parameter in learned(policy)} if policy.tuner.adds_parameters else set()  # type: ignore[attr-defined]
    found = {name: p.detach().clone() for name, p in policy.model.named_parameters() if id(p) not in own}
    return {name.replace(".base_layer", ""): tensor for name, tensor in found.items()}


def with_delta(kind: str, result: Path) -> dict[str, Tensor]:
    """The published weights plus alpha / rank B A of a stored LoRA, by hand."""
    factors = load_file(result / "adapter_model.safetensors")
    found = {name: tensor.detach().clone() for name, tensor in backbone(kind).model.named_parameters()}
    targets = [name for name in found if name.endswith(tuple(f"{target}.weight" for target in TARGETS[kind]))]
    for name in targets:
        a, b = (factors[f"base_model.model.{name.removesuffix('weight')}lora_{letter}.weight"] for letter in "AB")
        found[name] += 3.0 * (b @ a).T if kind == "gpt2" else 3.0 * (b @ a)
    assert len(factors) == 2 * len(targets) > 0
    return found


@every_tuner
@both_ways
def test_the_backbone_and_the_tuner_are_put_back_to_the_bit(tuner: str, through: UpdateShape | None, tmp_path: Path) -> None:
    policy = attached(tuner, backbone("llama"))
    before, at_one = named(policy), on(policy)

    run(staged(SecondModel(), through), policy, tmp_path)

    assert_same_bits(named(policy), before)
    assert torch.equal(on(policy), at_one)
    assert policy.backbone.fingerprint == "llama"


@every_backbone
def test_inside_is_the_model_that_the_same_training_makes_of_the_backbone(kind: str, tmp_path: Path) -> None:
    second, policy = SecondModel(), attached("lora", backbone(kind))
    expected = off(run(staged(None), attached("lora", backbone(kind)), tmp_path / "alone"))

    run(staged(second), policy, tmp_path / "second")

    assert torch.equal(inside(second, policy), expected)
    assert not torch.equal(expected, off(policy))


@every_backbone
def test_by_a_lora_inside_is_base_plus_delta(kind: str, tmp_path: Path) -> None:
    second, policy = SecondModel(), attached("lora", backbone(kind))

    run(staged(second, LORA), policy, tmp_path)

    expected = with_delta(kind, tmp_path / "stages" / "dispreferred" / "result")
    with second.inside():
        found = named(policy)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(inside(second, policy), off(policy), atol=1e-3)


@both_ways
def test_a_lora_that_was_trained_takes_no_part_in_the_second_models_training(
    through: UpdateShape | None, tmp_path: Path
) -> None:
    seconds = []
    for spread in (0.0, 0.1):
        second, policy = SecondModel(), attached("lora", backbone("llama"), spread=spread)
        torch.manual_seed(int(10 * spread))  # what was drawn before a stage has no say in it either
        run(staged(second, through), policy, tmp_path / str(spread))
        seconds.append(inside(second, policy))

    assert torch.equal(*seconds)


@both_ways
def test_after_an_error_inside_the_backbone_is_in_its_place(through: UpdateShape | None, tmp_path: Path) -> None:
    second = SecondModel()
    policy = run(staged(second, through), attached("lora", backbone("llama")), tmp_path)
    before = off(policy)

    with pytest.raises(ZeroDivisionError), second.inside():
        raise ZeroDivisionError

    assert torch.equal(off(policy), before)
    assert not torch.equal(inside(second, policy), before)


def broken_off(second: SecondModel, through: UpdateShape | None, policy: Policy) -> None:
    """A training that fails when every number has moved."""
    with training(policy, THE_BACKBONE, through, second) as part:
        for parameter in part.parameters():
            parameter.data += 1.0
        raise ZeroDivisionError


@both_ways
def test_training_that_fails_leaves_the_backbone_and_no_second_model(through: UpdateShape | None) -> None:
    second, policy = SecondModel(), attached("lora", backbone("llama"))
    before, at_one = named(policy), on(policy)

    with pytest.raises(ZeroDivisionError):
        broken_off(second, through, policy)

    assert_same_bits(named(policy), before)
    assert torch.equal(on(policy), at_one)
    with pytest.raises(ConfigError, match="the second model was not trained in this run"), second.inside():
        pass


def test_one_that_was_never_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="its stage must come before the one that needs it"), SecondModel().inside():
        pass


@both_ways
@every_tuner
def test_put_back_into_a_fresh_policy_it_is_the_same_second_model(
    tuner: str, through: UpdateShape | None, tmp_path: Path
) -> None:
    trained, fresh = SecondModel(), SecondModel()
    first, second = attached(tuner, backbone("llama")), attached(tuner, backbone("llama"))
    run(staged(trained, through), first, tmp_path)

    staged(fresh, through).restore(second, tmp_path / "stages" / "dispreferred")

    assert torch.equal(inside(fresh, second), inside(trained, first))
    assert torch.equal(off(second), off(first))
    assert not torch.equal(inside(fresh, second), off(second))


@both_ways
def test_it_stays_what_it_is_when_the_backbone_moves_on(through: UpdateShape | None, tmp_path: Path) -> None:
    second, policy = SecondModel(), attached("lora", backbone("llama"))
    run(staged(second, through), policy, tmp_path)
    before, at_first = inside(second, policy), off(policy)

    run(staged(None, through, "preferred"), policy, tmp_path)

    assert torch.equal(inside(second, policy), before)
    assert not torch.equal(off(policy), at_first)


@every_tuner
@every_backbone
def test_through_a_lora_the_backbone_becomes_base_plus_delta(tuner: str, kind: str, tmp_path: Path) -> None:
    policy = run(staged(None, LORA, "preferred"), attached(tuner, backbone(kind), spread=0.0), tmp_path)

    expected = with_delta(kind, tmp_path / "stages" / "preferred" / "result")
    with policy.off():
        found = named(policy)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(on(policy), off(policy), atol=0, rtol=0)  # the tuner starts from what it has become


@every_backbone
def test_the_whole_backbone_is_left_beside_it_as_a_checkpoint_that_the_tuner_names(kind: str, tmp_path: Path) -> None:
    policy = run(staged(None, LORA, "preferred"), attached("lora", backbone(kind)), tmp_path)
    whole = tmp_path / "stages" / "preferred" / "whole"

    plain = AutoModelForCausalLM.from_pretrained(whole)

    with policy.off():
        assert torch.equal(plain(IDS).logits, policy.model(IDS).logits)
    policy.tuner.save(tmp_path / "stages" / "fit" / "result")  # type: ignore[attr-defined]
    written = json.loads((tmp_path / "stages" / "fit" / "result" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == "../../preferred/whole"
    assert policy.backbone.fingerprint != kind


def test_afterwards_the_tuners_own_lora_is_active_again(tmp_path: Path) -> None:
    policy = attached("lora", backbone("llama"))
    before = [parameter.detach().clone() for parameter in learned(policy)]

    run(staged(None, LORA, "preferred"), policy, tmp_path)

    assert_same_bits(learned(policy), before)
    assert all(parameter.requires_grad for parameter in learned(policy))
    assert not torch.allclose(on(policy), off(policy), atol=1e-3)


@every_tuner
def test_put_back_into_a_fresh_policy_it_is_the_same_backbone(tuner: str, tmp_path: Path) -> None:
    trained = run(staged(None, LORA, "preferred"), attached(tuner, backbone("llama")), tmp_path)
    fresh = attached(tuner, backbone("llama"))

    staged(None, LORA, "preferred").restore(fresh, tmp_path / "stages" / "preferred")

    assert torch.equal(off(fresh), off(trained))
    assert fresh.backbone.fingerprint == trained.backbone.fingerprint
    assert weights(fresh).keys() == weights(trained).keys()
