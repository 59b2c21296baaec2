"""Controls and independent implementations of what they do: peft's LoRA, peft's prompt tuning, plain embeddings, plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from alignlab.models.policy import Policy
from alignlab.records import Encoded, EncodedGroup
from alignlab.training.objectives import nll
from alignlab.tuners.control.layer import ControlLora
from tests.conftest import CODEC, backbone
from tests.contracts.controls import THREE, Case, attach, batch_of, items, said, totals, totals_under, trained
from tests.unit.conftest import plain

pytestmark = pytest.mark.parity
every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
IDS = torch.tensor([[1, 8, 9, 10, 11, 12], [1, 20, 30, 40, 50, 60], [1, 5, 5, 7, 9, 11], [1, 2, 3, 4, 5, 6]])
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
BEHIND, BEFORE = 1, 0
SAME_LENGTH = {"good": "A happy story.", "bad": "A sad story."}  # four tokens each


def lora(kind: str) -> Policy:
    """A LoRA per class, three classes, that looks trained."""
    return trained(Case("lora", kind, classes=THREE), backbone(kind))


def soft_prompt(kind: str, **settings: Any) -> Policy:
    """Five vectors per class that look trained."""
    return trained(Case("soft_prompt", kind, settings={"length": 5, **settings}), backbone(kind))


def layers(policy: Policy) -> dict[str, ControlLora]:
    """The linear maps with a LoRA, by their names in the plain model."""
    named = policy.model.named_modules()
    return {name: module for name, module in named if isinstance(module, ControlLora)}


def stock(policy: Policy, kind: str, number: int) -> nn.Module:
    """peft's own LoRA with the matrices of one class copied in."""
    config = peft.LoraConfig(r=4, lora_alpha=8.0, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2")
    made = peft.get_peft_model(backbone(kind).model, config)
    for name, layer in layers(policy).items():
        theirs = made.base_model.model.get_submodule(name)
        theirs.lora_A["default"].weight.data = layer.control_lora["default"].A[number].detach().clone()
        theirs.lora_B["default"].weight.data = layer.control_lora["default"].B[number].detach().clone()
    return made


def vectors(policy: Policy) -> Tensor:
    """The table, classes x vectors x width."""
    (table_CMD,) = policy.tuner.parameters()  # type: ignore[attr-defined]
    return table_CMD.detach()


def with_vectors(kind: str, ids_RT: Tensor, vectors_RMD: Tensor, behind: int) -> tuple[nn.Module, Tensor]:
    """A plain model, and the embeddings of some ids with vectors among them."""
    bare = backbone(kind).model
    embedded_RTD = bare.get_input_embeddings()(ids_RT)
    return bare, torch.cat([embedded_RTD[:, :behind], vectors_RMD, embedded_RTD[:, behind:]], dim=1)


def with_placeholders(policy: Policy, ids_RT: Tensor, numbers: Sequence[int]) -> Tensor:
    """Ids with the placeholders of a class in each row."""
    assert policy.tuner.controls is not None
    prefixes = [policy.tuner.controls.prefixes[number] for number in numbers]
    rows = [
        [*row[: prefix.behind], *prefix.ids, *row[prefix.behind :]]
        for row, prefix in zip(ids_RT.tolist(), prefixes, strict=True)
    ]
    return torch.tensor(rows)


@every_backbone
def test_a_lora_by_row_is_pefts_lora_one_adapter_at_a_time(kind: str) -> None:
    policy = lora(kind)
    numbers = [2, 0, 1, 0]

    with policy.tuner.at(torch.tensor(numbers).float()):
        found_RTV = policy.model(IDS).logits

    expected_RTV = torch.cat([stock(policy, kind, number)(IDS[row : row + 1]).logits for row, number in enumerate(numbers)])
    torch.testing.assert_close(found_RTV, expected_RTV, atol=1e-5, rtol=1e-5)


@every_backbone
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lora_for_all_rows_is_pefts_lora(kind: str, number: int) -> None:
    policy = lora(kind)

    with policy.tuner.at(float(number)):
        found_RTV = policy.model(IDS).logits

    torch.testing.assert_close(found_RTV, stock(policy, kind, number)(IDS).logits, atol=1e-5, rtol=1e-5)


@every_backbone
def test_its_gradients_are_those_of_pefts_lora_on_the_rows_of_the_class(kind: str) -> None:
    policy = lora(kind)
    numbers = torch.tensor([2, 0, 1, 0])

    with policy.tuner.at(numbers.float()):
        policy.model(IDS).logits.logsumexp(-1).sum().backward()

    for number in range(3):
        theirs = stock(policy, kind, number)
        theirs(IDS[numbers == number]).logits.logsumexp(-1).sum().backward()
        for name, layer in layers(policy).items():
            mine, other = layer.control_lora["default"], theirs.base_model.model.get_submodule(name)
            torch.testing.assert_close(mine.A.grad[number], other.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(mine.B.grad[number], other.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-5)


@every_backbone
@pytest.mark.parametrize("behind", [BEHIND, BEFORE])
def test_placeholders_are_the_same_vectors_given_as_embeddings(kind: str, behind: int) -> None:
    policy = soft_prompt(kind, behind=behind)
    numbers = [1, 0, 0, 1]

    found_RTV = policy.model(with_placeholders(policy, IDS, numbers)).logits

    bare, embedded_RTD = with_vectors(kind, IDS, vectors(policy)[numbers], behind)
    torch.testing.assert_close(found_RTV, bare(inputs_embeds=embedded_RTD).logits, atol=1e-6, rtol=1e-6)


@every_backbone
def test_the_likelihood_of_a_response_is_that_of_the_same_vectors_given_as_embeddings(kind: str) -> None:
    policy = soft_prompt(kind)
    group = items(("good", "bad"))[1]  # the class is bad
    (member,) = group.members
    ids_1T = torch.tensor([member.ids])

    found = totals(policy, batch_of([group]))[0, 0]

    bare, embedded_1TD = with_vectors(kind, ids_1T, vectors(policy)[1:], BEHIND)
    scores_TV = bare(inputs_embeds=embedded_1TD).logits[0, 5:].log_softmax(-1)  # five vectors stand in front
    expected = sum(scores_TV[place - 1, member.ids[place]] for place in range(member.start, len(member.ids)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


@every_backbone
def test_in_front_of_bos_it_is_pefts_prompt_tuning(kind: str) -> None:
    policy = soft_prompt(kind, behind=BEFORE)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    theirs = peft.get_peft_model(backbone(kind).model, config)
    theirs.prompt_encoder["default"].embedding.weight.data = vectors(policy)[1].clone()

    found_RTV = policy.model(with_placeholders(policy, IDS, [1] * 4)).logits

    expected_RTV = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(found_RTV, expected_RTV, atol=1e-5, rtol=1e-5)


def phrased(form: str, kind: str, behind: int) -> Policy:
    """A new control whose classes are given by phrases of four tokens, or start as them."""
    phrases = [list(CODEC.prefix(text)) for text in SAME_LENGTH.values()]
    return attach(Case(form, kind), backbone(kind), phrases=phrases, init="text", length=4, behind=behind)


@every_backbone
@pytest.mark.parametrize("behind", [BEHIND, BEFORE])
def test_before_any_step_a_soft_prompt_that_starts_as_text_is_that_text(kind: str, behind: int) -> None:
    text, prompt = phrased("text", kind, behind), phrased("soft_prompt", kind, behind)
    batch = batch_of(items(("good", "bad")))

    losses = [nll(policy, batch).value for policy in (text, prompt)]
    answers = [said(policy, ["good", "bad", "none", {"good": 0.5, "bad": 0.5}]) for policy in (text, prompt)]

    assert torch.equal(losses[0], losses[1])
    assert torch.equal(totals(text, batch), totals(prompt, batch))
    assert answers[0] == answers[1]


@every_backbone
def test_a_phrase_in_front_is_the_same_phrase_written_into_the_prompt(kind: str) -> None:
    policy = phrased("text", kind, BEHIND)
    (member,) = items(("good", "bad"))[0].members
    ids = (*member.ids[:1], *CODEC.prefix("A happy story."), *member.ids[1:])
    written = EncodedGroup("written", (Encoded(ids, member.start + 4),))

    asked = totals_under(policy, "good", batch_of([EncodedGroup("item", (replace(member, control=None),))]))

    assert torch.equal(asked, totals(plain(backbone(kind)), batch_of([written])))
