"""The dial inside transformers' own `generate`: equal to it at the ends and to a hand-written loop between; what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, MinNewTokensLengthLogitsProcessor, StopStringCriteria

import alignlab
from alignlab.errors import ControlError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from tests.conftest import CODEC, backbone
from tests.unit.conftest import Heard, attached, plain

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
both_ways = pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True, "top_p": 0.9}], ids=["greedy", "sampled"])
STRENGTHS = [-0.5, 0.0, 1.0, 2.0]
PROMPTS = torch.tensor([[1, 8, 9, 10, 11], [1, 20, 30, 40, 50], [1, 5, 5, 7, 9], [1, 33, 34, 35, 36]])


def module(tuner: str, kind: str = "llama") -> PeftModel:
    """A PeftModel whose adapter looks trained."""
    made: PeftModel = attached(tuner, backbone(kind)).tuner.module  # type: ignore[attr-defined]
    return made


def generated(model: Any, strength: float | Sequence[float] | None, **more: Any) -> Any:
    """Eight tokens for the four prompts, from the same state of the generator; None: without the dial."""
    dial = {} if strength is None else {"custom_generate": alignlab.at_strength(model, strength)}
    torch.manual_seed(5)
    given = {"input_ids": PROMPTS, "attention_mask": torch.ones_like(PROMPTS), "max_new_tokens": 8, **dial, **more}
    return model.generate(**given)


def mixed_by_hand(policy: Policy, strength: float, ids: Tensor) -> Tensor:
    """Last logits of two whole passes, without a cache, mixed before anything else."""
    with policy.tuner.at(1.0):
        aligned_BV = policy.model(ids).logits[:, -1]
    with policy.tuner.at(0.0):
        plain_BV = policy.model(ids).logits[:, -1]
    return strength * aligned_BV + (1 - strength) * plain_BV


@torch.no_grad()
def loop_by_hand(policy: Policy, strength: float, ids: Tensor, least: int, eos: list[int]) -> Tensor:
    """Greedy: mix, then process, then choose; eight tokens that no end can cut since it comes at least as late."""
    processor = LogitsProcessorList([MinNewTokensLengthLogitsProcessor(ids.shape[1], least, torch.tensor(eos))])
    for _ in range(8):
        token_B = processor(ids, mixed_by_hand(policy, strength, ids)).argmax(-1)
        ids = torch.cat([ids, token_B[:, None]], dim=1)
    return ids


@both_ways
@every_backbone
@pytest.mark.parametrize("tuner", ["clm", "ia3", "lora"])
def test_at_one_it_is_generate_itself(tuner: str, kind: str, how: dict[str, Any]) -> None:
    model = module(tuner, kind)

    assert torch.equal(generated(model, 1.0, **how), generated(model, None, **how))


@both_ways
@every_backbone
@pytest.mark.parametrize("tuner", ["clm", "ia3", "lora"])
def test_at_zero_it_is_generate_of_the_backbone(tuner: str, kind: str, how: dict[str, Any]) -> None:
    model = module(tuner, kind)

    with model.disable_adapter():
        expected = generated(model, None, **how)

    assert torch.equal(generated(model, 0.0, **how), expected)


@every_backbone
@pytest.mark.parametrize("tuner", ["clm", "lora"])
def test_one_strength_per_prompt_equals_separate_calls(tuner: str, kind: str) -> None:
    model = module(tuner, kind)

    together = generated(model, STRENGTHS)

    for row, strength in enumerate(STRENGTHS):
        alone = generated(model, strength, input_ids=PROMPTS[row : row + 1], attention_mask=torch.ones(1, 5).long())
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


def test_with_a_minimum_length_the_mix_comes_before_the_processor(llama: Backbone) -> None:
    # Every first choice is made an end, so that the minimum length has to act on each row at once.
    policy = attached("clm", llama)
    eos = [int(mixed_by_hand(policy, s, PROMPTS[r : r + 1]).argmax()) for r, s in enumerate(STRENGTHS)]

    ids = generated(policy.tuner.module, STRENGTHS, min_new_tokens=8, eos_token_id=eos)  # type: ignore[attr-defined]

    by_hand = [loop_by_hand(policy, s, PROMPTS[r : r + 1], 8, eos) for r, s in enumerate(STRENGTHS)]
    assert torch.equal(ids, torch.cat(by_hand))
    assert not torch.isin(ids[:, 5:], torch.tensor(eos)).any()


def test_with_a_minimum_length_no_score_is_nan_or_infinitely_high() -> None:
    answer = generated(
        module("clm"), STRENGTHS, min_new_tokens=8, eos_token_id=[3, 4], return_dict_in_generate=True, output_scores=True
    )

    scores = torch.stack(answer.scores)
    assert not scores.isnan().any()
    assert not scores.isposinf().any()
    assert bool(scores[..., [3, 4]].isneginf().all())


def test_several_answers_per_prompt_take_the_strength_of_their_prompt() -> None:
    model = module("clm")

    several = generated(model, STRENGTHS, num_return_sequences=2, do_sample=True, top_k=1)

    assert torch.equal(several, generated(model, STRENGTHS, do_sample=True, top_k=1).repeat_interleave(2, dim=0))


def test_padded_prompts_answer_as_they_do_alone() -> None:
    model = module("clm")
    padded, mask = PROMPTS.clone(), torch.ones_like(PROMPTS)
    padded[0, :2], mask[0, :2] = model.config.pad_token_id, 0

    together = generated(model, STRENGTHS, input_ids=padded, attention_mask=mask, min_new_tokens=8)

    alone = generated(model, -0.5, input_ids=PROMPTS[:1, 2:], attention_mask=torch.ones(1, 3).long(), min_new_tokens=8)
    assert torch.equal(together[0, 2:], alone[0])


def test_after_its_end_a_text_is_padded() -> None:
    model = module("clm")
    first = int(generated(model, 0.5, max_new_tokens=1)[0, -1])

    ids = generated(model, 0.5, eos_token_id=first)

    assert ids[0, 5:].tolist() == [first, *[model.config.pad_token_id] * 7]


def test_where_no_pad_is_named_a_text_is_padded_with_its_end() -> None:
    # As for Llama and GPT-2 from the hub.
    model = module("clm")
    first = int(generated(model, 0.5, max_new_tokens=1)[0, -1])
    model.generation_config.pad_token_id = None

    ids = generated(model, 0.5, eos_token_id=first)

    assert ids[0, 5:].tolist() == [first] * 8


def test_scores_and_logits_are_those_of_generate() -> None:
    model = module("clm")
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "min_new_tokens": 4}

    found, expected = generated(model, 1.0, **asked), generated(model, None, **asked)

    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.scores), torch.stack(expected.scores))
    assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))


def test_what_was_not_asked_for_is_not_kept() -> None:
    found = generated(module("clm"), 0.5, return_dict_in_generate=True)

    assert (found.scores, found.logits) == (None, None)


def test_returned_logits_are_the_mixture() -> None:
    policy = attached("clm", backbone("llama"))

    found = generated(policy.tuner.module, 1.5, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)  # type: ignore[attr-defined]

    torch.testing.assert_close(found.logits[0], mixed_by_hand(policy, 1.5, PROMPTS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuner", ["dera", "red", "full"])
def test_a_policy_lends_its_dial(tuner: str) -> None:
    policy = attached(tuner, backbone("llama"))

    at_zero = policy.model.generate(PROMPTS, max_new_tokens=8, custom_generate=alignlab.at_strength(policy, 0.0))

    assert torch.equal(at_zero, plain(backbone("llama")).model.generate(PROMPTS, max_new_tokens=8))


@every_backbone
@pytest.mark.parametrize("tuner", ["clm", "ia3", "lora"])
@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True}], ids=["searched", "sampled"])
def test_beams_at_an_end_of_the_dial_are_those_of_generate(tuner: str, kind: str, how: dict[str, Any]) -> None:
    model = module(tuner, kind)
    asked = {"num_beams": 3, "num_return_sequences": 2, **how}

    at_one, at_zero = (generated(model, strength, **asked) for strength in (1.0, 0.0))

    assert torch.equal(at_one, generated(model, None, **asked))
    with model.disable_adapter():
        assert torch.equal(at_zero, generated(model, None, **asked))
    assert not torch.equal(at_one, generated(model, None))


def test_beams_of_a_tuner_of_one_pass_take_a_strength_per_prompt() -> None:
    model = module("red")

    together = generated(model, STRENGTHS, num_beams=3)

    for row, strength in enumerate(STRENGTHS):
        alone = generated(
            model, strength, num_beams=3, input_ids=PROMPTS[row : row + 1], attention_mask=torch.ones(1, 5).long()
        )
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


def test_scores_of_beams_are_those_of_generate() -> None:
    model = module("clm")
    asked = {"num_beams": 2, "return_dict_in_generate": True, "output_scores": True}

    found, expected = generated(model, 1.0, **asked), generated(model, None, **asked)

    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_streamer_gets_what_generate_would_give_it(strength: float) -> None:
    model = module("clm")
    heard, expected = Heard(), Heard()
    one = {"input_ids": PROMPTS[:1], "attention_mask": torch.ones(1, 5).long(), "max_new_tokens": 4}

    dialled = alignlab.at_strength(model, strength, streamer=heard)
    ids = generated(model, None, custom_generate=dialled, **one)

    generated(model, None, streamer=expected, **one)
    assert [put.shape for put in heard.put_ids] == [put.shape for put in expected.put_ids]
    assert torch.equal(torch.cat([put.flatten() for put in heard.put_ids]), ids[0])
    assert heard.ended == expected.ended == 1


def test_stop_strings_are_given_as_a_criterion() -> None:
    model = module("clm")
    free = generated(model, 0.5, eos_token_id=None)[0, 5:].tolist()
    stop = CODEC.tokenizer.decode(free[2:4])

    stopping = [StopStringCriteria(CODEC.tokenizer, stop)]
    ids = generated(model, 0.5, input_ids=PROMPTS[:1], attention_mask=None, eos_token_id=None, stopping_criteria=stopping)

    assert ids[0, 5:].tolist() == free[:4]


def full_cache(model: PeftModel) -> DynamicCache:
    """A cache that one pass has filled."""
    cache: DynamicCache = model(PROMPTS[:, :4], use_cache=True).past_key_values
    return cache


@pytest.mark.parametrize(
    ("strength", "more", "sentence"),
    [
        ([0.0, 1.0, 1.0], lambda _: {}, "3 strengths or classes were given for 4 prompts"),
        (
            [0.0] * 3,
            lambda _: {"do_sample": True, "num_return_sequences": 2},
            "3 strengths or classes were given for 4 prompts",
        ),
        (math.nan, lambda _: {}, "not finite"),
        ([0.0, 1.0, math.inf, 1.0], lambda _: {}, "not finite"),
        (0.5, lambda _: {"num_beams": 2}, "beam search follows one pass, and here passes are mixed"),
        ([0.0, 1.0, 0.0, 1.0], lambda _: {"num_beams": 2}, "beam search follows one pass, and here passes are mixed"),
        (
            1.0,
            lambda model: {"num_beams": 2, "custom_generate": alignlab.at_strength(model, 1.0, streamer=Heard())},
            "so it cannot stream",
        ),
        (0.5, lambda _: {"prompt_lookup_num_tokens": 2}, "assisted generation is not offered"),
        (0.5, lambda _: {"output_hidden_states": True, "return_dict_in_generate": True}, "hidden states and attentions"),
        (0.5, lambda model: {"past_key_values": full_cache(model)}, "each stream needs its own"),
        (0.5, lambda model: {"inputs_embeds": model.get_input_embeddings()(PROMPTS), "input_ids": None}, "give input_ids"),
    ],
    ids=[
        "too few",
        "too few for several answers",
        "nan",
        "inf",
        "beams between",
        "beams at both ends",
        "streamed beams",
        "prompt lookup",
        "hidden states",
        "filled cache",
        "embeddings",
    ],
)
def test_what_the_dial_cannot_do_is_refused(
    strength: float | list[float], more: Callable[[PeftModel], dict[str, Any]], sentence: str
) -> None:
    model = module("clm")

    with pytest.raises(ControlError, match=sentence):
        generated(model, strength, **more(model))


def test_several_strengths_at_once_are_refused_where_a_tuner_takes_one_per_batch() -> None:
    with pytest.raises(ControlError, match=r"^this tuner takes one strength per batch, not one per row\.$"):
        generated(module("ia3"), STRENGTHS)


def test_an_adapter_without_a_dial_is_refused(llama: Backbone) -> None:
    model = peft.get_peft_model(llama.model, peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))

    with pytest.raises(
        ModelError,
        match="no dial is known for a LOHA adapter; there is one for ADAPTER, CLM, CONTROL, LOREFT, RED, TPT, IA3, LORA",
    ):
        alignlab.at_strength(model, 0.5)
