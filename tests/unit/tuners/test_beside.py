"""What peft trains beside an edit, and LoRA's variants: strength 0 is the backbone, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab import at_strength
from alignlab.errors import ControlError
from alignlab.models.policy import Policy
from alignlab.tuners.clm import ClmConfig
from alignlab.tuners.clm.tuner import ClmTuner
from alignlab.tuners.control import ControlConfig
from alignlab.tuners.control.tuner import ControlTuner
from alignlab.tuners.ia3 import Ia3Tuner
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.peft_tuner import PeftTuner
from alignlab.tuners.red import RedConfig
from alignlab.tuners.red.tuner import RedTuner
from tests.conftest import backbone
from tests.unit.conftest import batch_of
from tests.unit.tuners.families import IDS_RT, model_of, outputs

Make = Callable[[], tuple[PeftTuner, PreTrainedModel]]
HEAD = {"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"]}
KINDS: dict[str, tuple[type[PeftTuner], Callable[[], Any]]] = {
    "lora": (LoraTuner, lambda: LoraConfig(**HEAD, target_modules=["q_proj"])),
    "lora-tokens": (LoraTuner, lambda: LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4, 9])),
    "lora-dora": (LoraTuner, lambda: LoraConfig(target_modules=["q_proj"], use_dora=True)),
    "red": (RedTuner, lambda: RedConfig(**HEAD)),
    "clm": (ClmTuner, lambda: ClmConfig(**HEAD)),
    "ia3": (Ia3Tuner, lambda: peft.IA3Config(**HEAD, target_modules=["k_proj"], feedforward_modules=[])),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def trained(kind: str) -> tuple[PeftTuner, Tensor]:
    """A tuner around a user's PeftModel whose parameters have moved, and the backbone's logits."""
    tuner_class, config = KINDS[kind]
    model = backbone("llama").model
    before = outputs(model)
    tuned = get_peft_model(model, config())
    _move(tuned)
    return tuner_class.around(tuned), before


def _move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@every_kind
def test_strength_0_is_the_backbone_and_1_the_trained_model(kind: str) -> None:
    tuner, before = trained(kind)
    after = outputs(tuner.module)

    with tuner.at(0.0):
        at_0 = outputs(tuner.module)
    with tuner.off():
        off = outputs(tuner.module)
    with tuner.at(1.0):
        at_1 = outputs(tuner.module)

    assert torch.equal(at_0, before)
    assert torch.equal(off, before)
    assert torch.equal(at_1, after)
    assert torch.equal(outputs(tuner.module), after)
    assert not torch.allclose(after, before, atol=1e-2)


@every_kind
def test_rows_of_different_strengths_are_refused_by_name_and_equal_ones_taken(kind: str) -> None:
    tuner, before = trained(kind)

    with pytest.raises(ControlError, match=r"one strength per batch.*"), tuner.at(torch.tensor([0.0, 1.0, 1.0])):
        outputs(tuner.module)
    with tuner.at(torch.zeros(3)):
        at_0 = outputs(tuner.module)

    assert not tuner.per_row
    assert torch.equal(at_0, before)


def test_the_refusal_names_what_is_shared() -> None:
    tuner, _ = trained("red")

    with pytest.raises(ControlError, match=r"not one per row: lm_head was trained beside the edit and is shared by all rows\."):
        tuner.at(torch.tensor([0.0, 1.0]))


def test_between_the_ends_a_module_lies_between_what_it_was_and_what_it_is() -> None:
    tuner, _ = trained("red")
    head: Any = tuner.module.get_base_model().lm_head
    was, became = head.original_module.weight.clone(), head.modules_to_save["default"].weight.clone()

    with tuner.at(0.5):
        half = head.modules_to_save["default"].weight.clone()

    torch.testing.assert_close(half, (was + became) / 2)
    assert torch.equal(head.modules_to_save["default"].weight, became)


def test_a_half_precision_module_at_0_is_the_module_itself() -> None:
    # peft trains its copy in float32.
    model = backbone("llama").model.bfloat16()
    before = outputs(model)
    tuned = get_peft_model(model, LoraConfig(**HEAD, target_modules=["q_proj"]))
    _move(tuned)

    with LoraTuner.around(tuned).at(0.0):
        at_0 = outputs(tuned)

    assert torch.equal(at_0, before)


def test_a_magnitude_does_not_scale() -> None:
    tuner, _ = trained("lora-dora")

    with pytest.raises(ControlError, match=r"peft's kind Dora\w+ has the strengths 0 and 1 only, not 0\.5"), tuner.at(0.5):
        pass


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_lora_that_overwrote_biases_is_refused_by_name(bias: str, strength: float) -> None:
    model = backbone("gpt2").model
    tuned = get_peft_model(model, LoraConfig(target_modules=["mlp.c_fc"], bias=bias, fan_in_fan_out=True))
    tuner = LoraTuner.around(tuned)

    for ask in (lambda: tuner.at(strength), tuner.off):
        with pytest.raises(ControlError, match=rf"trained with bias='{bias}', which overwrites the backbone's own biases"):
            ask()
    with tuner.at(1.0):
        assert outputs(tuned).isfinite().all()


def test_a_start_taken_out_of_the_weights_is_refused_by_name() -> None:
    tuned = get_peft_model(backbone("llama").model, LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"))

    with pytest.raises(
        ControlError, match=r"its start 'pissa' was taken out of the backbone's weights; save it with peft's path_"
    ):
        LoraTuner.around(tuned).at(0.0)


def test_a_classifiers_head_stays_as_trained_at_every_strength_and_goes_with_off() -> None:
    model = model_of("roberta")
    before = outputs(model)
    tuned = get_peft_model(model, RedConfig(task_type="SEQ_CLS"))
    _move(tuned)
    tuner = RedTuner.around(tuned)

    with tuner.at(0.0):
        at_0 = outputs(tuned)
    with tuner.at(torch.tensor([0.0, 1.0, 0.5])):
        mixed = outputs(tuned)
    with tuner.off():
        off = outputs(tuned)

    head: Any = tuned.get_base_model().classifier
    states = tuned.get_base_model().roberta
    with torch.no_grad(), tuner.at(0.0):
        expected = head.modules_to_save["default"](states(input_ids=IDS_RT, attention_mask=torch.ones_like(IDS_RT))[0])
    assert torch.equal(at_0, expected)
    assert torch.equal(off, before)
    assert tuner.per_row
    torch.testing.assert_close(mixed[0], at_0[0])
    torch.testing.assert_close(mixed[1], outputs(tuned)[1])


def control() -> tuple[ControlTuner, Tensor]:
    """A LoRA for each of two classes, with a head trained beside them."""
    model = backbone("llama").model
    before = outputs(model)
    tuned = get_peft_model(model, ControlConfig(**HEAD, form="lora", target_modules=["q_proj"]))
    _move(tuned)
    return ControlTuner.around(tuned), before


def test_a_head_beside_a_control_is_there_under_a_class_and_not_without() -> None:
    tuner, before = control()

    with tuner.at(-1.0):
        without = outputs(tuner.module)
    with tuner.at(torch.tensor([0.0, 1.0, 0.0])):
        rows = outputs(tuner.module)
    with tuner.at(1.0):
        second = outputs(tuner.module)

    assert torch.equal(without, before)
    torch.testing.assert_close(rows[1], second[1])
    assert not torch.allclose(second, before, atol=1e-2)


def test_rows_with_and_without_a_class_are_refused_by_name() -> None:
    tuner, _ = control()

    with pytest.raises(
        ControlError, match=r"rows with and without a class cannot share a pass here: lm_head was trained beside"
    ):
        tuner.at(torch.tensor([0.0, -1.0, 1.0]))


@pytest.mark.parametrize("kind", ["red", "lora-tokens", "clm"])
def test_decoding_at_0_is_the_backbones(kind: str) -> None:
    plain = backbone("llama").model.generate(IDS_RT, max_new_tokens=4, do_sample=False)
    tuner, _ = trained(kind)

    found = tuner.module.generate(
        input_ids=IDS_RT, max_new_tokens=4, do_sample=False, custom_generate=at_strength(tuner.module, 0.0)
    )

    assert torch.equal(found, plain)


def test_a_saved_head_comes_back(tmp_path: Any) -> None:
    tuner, _ = trained("red")
    tuner.save(tmp_path)

    again = PeftModel.from_pretrained(backbone("llama").model, tmp_path)

    assert torch.equal(outputs(again), outputs(tuner.module))


@pytest.mark.parametrize("changed", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}, {}], ids=str)
def test_log_probabilities_at_a_strength_have_the_head_at_that_strength(changed: dict[str, Any]) -> None:
    tuned = get_peft_model(backbone("llama").model, LoraConfig(**{"target_modules": ["q_proj"], **changed}))
    _move(tuned)
    held = replace(backbone("llama"), model=tuned.get_base_model())
    policy, batch = Policy(held, LoraTuner.around(tuned)), batch_of(held)

    with torch.no_grad(), policy.at(0.5):
        found_GM = policy.logprobs(batch).total_GM
    with torch.no_grad(), policy.tuner.at(0.5):
        members = zip(batch.ids_GMT.flatten(0, 1), batch.start_GM.flatten(), batch.length_GM.flatten(), strict=True)
        by_hand = [
            outputs_of(held.model, ids_T[:length])[start - 1 : -1].gather(1, ids_T[start:length, None]).sum()
            for ids_T, start, length in members
        ]

    assert policy.tuner.edits_head is bool(changed)
    torch.testing.assert_close(found_GM.flatten(), torch.stack(by_hand), rtol=0, atol=1e-4)


def outputs_of(model: PreTrainedModel, ids_T: Tensor) -> Tensor:
    """Log-probabilities of the next token, T,V, by the whole model."""
    return model(ids_T[None]).logits[0].log_softmax(-1)
