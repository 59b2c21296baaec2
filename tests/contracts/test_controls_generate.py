"""Controls inside transformers' own generate, and the ids that stand for them, which no way of generating may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

import alignlab
from alignlab.errors import ControlError, ModelError
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import ClassMixture
from alignlab.models.text import Codec, Template
from tests.conftest import CODEC, backbone
from tests.contracts.controls import CASES, EMBEDDED, HALVES, PAIRED, PROMPTS, Case, last_logits, said, trained

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_paired_case = pytest.mark.parametrize("case", PAIRED, ids=str)
every_embedded_case = pytest.mark.parametrize("case", EMBEDDED, ids=str)
both_ways = pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
MIXED: list[ClassMixture] = ["good", HALVES, "none", "bad"]
ENCODED = CODEC.prompts(PROMPTS)
WIDTH = max(map(len, ENCODED))
GREEDY = Sampling(8, 0.0, 1.0)


def generated(model: Any, **more: Any) -> Tensor:
    """Ids that transformers' own generate puts behind the prompts, greedily unless given otherwise."""
    ids = torch.tensor([[CODEC.pad] * (WIDTH - len(prompt)) + list(prompt) for prompt in ENCODED])
    mask = torch.tensor([[0] * (WIDTH - len(prompt)) + [1] * len(prompt) for prompt in ENCODED])
    given = {"max_new_tokens": 8, "do_sample": False, **more}
    made: Tensor = model.generate(input_ids=ids, attention_mask=mask, **given)
    return made[:, WIDTH:]


def texts(ids_BT: Tensor) -> list[str]:
    """The same as text, up to the end."""
    ends = (ids_BT != CODEC.eos).long().cumprod(1).sum(1).tolist()
    rows = [row[:end] for row, end in zip(ids_BT.tolist(), ends, strict=True)]
    return [CODEC.continuation(prompt, row) for prompt, row in zip(ENCODED, rows, strict=True)]


def module_of(policy: Policy) -> Any:
    """The PeftModel."""
    return policy.tuner.module  # type: ignore[attr-defined]


def reserved(policy: Policy) -> tuple[int, ...]:
    """The placeholders."""
    assert policy.tuner.controls is not None
    return policy.tuner.controls.reserved


def wants_placeholders(policy: Policy) -> None:
    """From now on the head gives every placeholder, and it alone, 100 logits more."""
    more_V = torch.zeros(len(CODEC.tokenizer))
    more_V[list(reserved(policy))] = 100.0
    policy.backbone.head.register_forward_hook(lambda _module, _inputs, logits: logits + more_V)


@every_case
def test_at_class_inside_generate_is_respond(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    mixed = generated(module_of(policy), custom_generate=alignlab.at_class(module_of(policy), MIXED))
    alone = generated(module_of(policy), custom_generate=alignlab.at_class(policy, "bad"))

    assert texts(mixed) == said(policy, MIXED)
    assert texts(alone) == said(policy, "bad")


@every_paired_case
def test_at_strength_inside_generate_is_respond(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    strengths = [0.0, 0.5, 1.0, 2.0]

    mixed = generated(module_of(policy), custom_generate=alignlab.at_strength(module_of(policy), strengths))

    assert texts(mixed) == policy.respond(PROMPTS, strength=strengths, sampling=Sampling(8, 0.0, 1.0), seed=0)


@every_embedded_case
def test_a_model_can_be_brought_to_want_nothing_but_placeholders(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    wants_placeholders(policy)

    assert set(last_logits(policy, "good").argmax(-1).tolist()) <= set(reserved(policy))


@both_ways
@every_embedded_case
def test_it_says_what_it_would_have_said_without_wanting_them(case: Case, temperature: float) -> None:
    policy = trained(case, backbone(case.backbone))
    before = said(policy, MIXED, temperature)

    wants_placeholders(policy)

    assert said(policy, MIXED, temperature) == before


@every_embedded_case
@pytest.mark.parametrize(
    "how",
    [{}, {"do_sample": True}, {"num_beams": 2}, {"generation_config": GenerationConfig(max_new_tokens=6)}],
    ids=["greedy", "sampled", "beams", "own_config"],
)
def test_generate_says_no_placeholder_even_to_a_model_that_wants_them(case: Case, how: dict[str, Any]) -> None:
    policy = trained(case, backbone(case.backbone))
    wants_placeholders(policy)

    said_ids = generated(module_of(policy), **how)

    assert not torch.isin(said_ids, torch.tensor(reserved(policy))).any()


@every_embedded_case
@pytest.mark.parametrize("how", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_nor_does_it_under_a_class(case: Case, how: dict[str, Any]) -> None:
    policy = trained(case, backbone(case.backbone))
    wants_placeholders(policy)

    said_ids = generated(module_of(policy), custom_generate=alignlab.at_class(policy, MIXED), **how)

    assert not torch.isin(said_ids, torch.tensor(reserved(policy))).any()


@pytest.mark.parametrize("case", [case for case in PAIRED if case.backbone == "llama"], ids=str)
def test_several_answers_to_a_prompt_are_all_under_its_class(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    by_prompt, by_row = (alignlab.at_class(policy, asked) for asked in (MIXED, [each for each in MIXED for _ in range(2)]))

    made = []
    for custom in (by_prompt, by_row):
        torch.manual_seed(3)
        made.append(generated(module_of(policy), custom_generate=custom, do_sample=True, num_return_sequences=2))

    assert len(made[0]) == 8
    assert torch.equal(made[0], made[1])


@every_case
@pytest.mark.parametrize("control", ["good", "none"])
def test_beams_under_a_class_search_behind_its_lead(case: Case, control: str) -> None:
    policy = trained(case, backbone(case.backbone))
    searched = replace(GREEDY, beams=3)

    answers = policy.respond(PROMPTS, control=control, sampling=searched, seed=0)
    inside = generated(module_of(policy), num_beams=3, custom_generate=alignlab.at_class(policy, control))

    assert texts(inside) == answers
    assert answers == [by_hand(policy, control, prompt, num_beams=3) for prompt in ENCODED]
    assert answers != said(policy, control)


def by_hand(policy: Policy, control: str, prompt: tuple[int, ...], **how: Any) -> str:
    """The prefix put into one prompt by hand, and transformers' own generate behind it, under the class's setting."""
    controls = policy.tuner.controls
    assert controls is not None
    (weighted,) = controls.passes(controls.mixtures(control, 1))
    behind = weighted.prefix.behind if weighted.prefix.ids else 0
    ids = (*prompt[:behind], *weighted.prefix.ids, *prompt[behind:])
    with policy.tuner.at(weighted.setting):
        made = module_of(policy).generate(input_ids=torch.tensor([ids]), max_new_tokens=8, do_sample=False, **how)
    row = made[0, len(ids) :].tolist()
    return CODEC.continuation(prompt, row[: row.index(CODEC.eos)] if CODEC.eos in row else row)


def test_beams_take_a_class_per_prompt() -> None:
    policy = trained(CASES[0], backbone(CASES[0].backbone))
    searched, classes = replace(GREEDY, beams=3), ["good", "none", "bad", "dull"]

    together = policy.respond(PROMPTS, control=classes, sampling=searched, seed=0)

    assert together == [
        policy.respond(PROMPTS, control=name, sampling=searched, seed=0)[row] for row, name in enumerate(classes)
    ]


def test_beams_over_a_mixture_of_classes_are_refused() -> None:
    policy = trained(CASES[0], backbone(CASES[0].backbone))

    with pytest.raises(ControlError, match="beam search follows one pass, and here passes are mixed"):
        policy.respond(PROMPTS, control=HALVES, sampling=replace(GREEDY, beams=2), seed=0)


@every_case
def test_the_callers_generation_config_stays_as_it_was(case: Case) -> None:
    before = backbone(case.backbone).model.generation_config.to_dict()

    policy = trained(case, backbone(case.backbone))
    generated(module_of(policy), custom_generate=alignlab.at_class(policy, "good"))
    generated(module_of(policy))

    assert policy.backbone.model.generation_config.to_dict() == before


@every_embedded_case
def test_what_the_caller_suppresses_is_suppressed_beside_the_placeholders(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    wants_placeholders(policy)
    free = generated(module_of(policy), max_new_tokens=1)

    others = generated(module_of(policy), max_new_tokens=1, suppress_tokens=sorted(set(free.flatten().tolist())))

    assert not torch.isin(others, free).any()
    assert not torch.isin(others, torch.tensor(reserved(policy))).any()


@pytest.mark.parametrize(
    "template", ["0123456789abcdef", Codec(CODEC.tokenizer, Template("Q: {prompt}\n", False, True))], ids=["hash", "codec"]
)
def test_a_control_is_not_asked_in_another_template_than_it_was_trained_with(template: str | Codec) -> None:
    module = module_of(trained(CASES[3], backbone("llama")))

    for turned in (
        lambda: alignlab.at_class(module, "good", template=template),
        lambda: alignlab.at_strength(module, 1.0, template=template),
    ):
        with pytest.raises(ModelError, match="trained on prompts written with another template"):
            turned()


def test_in_its_own_template_it_is() -> None:
    module = module_of(trained(CASES[3], backbone("llama")))
    free = generated(module, custom_generate=alignlab.at_class(module, "good"))

    for template in (CODEC, CODEC.template_hash):
        assert torch.equal(generated(module, custom_generate=alignlab.at_class(module, "good", template=template)), free)
