"""Decoding with an encoder: the source is read once per row, at the row's own setting, and padding is never seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LEDConfig,
    LEDForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import alignlab
from alignlab.errors import ConfigError, ControlError
from alignlab.models.anatomy import NO_LIMIT, context_of, target_context_of
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import KINDS
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import Prefix, Strength, Untuned, WeightedPass
from alignlab.tuners.lora import LoraTuner
from tests.conftest import CODEC, INITIAL_SD, SPECIAL

SIZES = {"vocab_size": len(CODEC.tokenizer), "decoder_start_token_id": CODEC.pad, "d_model": 32, "dropout": 0.0}
PROMPTS = [
    "Tell a story about Tom and a kite.",
    "Tell a short story about Anna.",
    "Tell.",
    "Tell a gloomy story about Sam and Al.",
]
STRENGTHS = [-0.5, 0.0, 1.0, 2.0]
GREEDY = Sampling(8, 0.0, 1.0)
both_ways = pytest.mark.parametrize("sampling", [GREEDY, Sampling(8, 1.0, 0.9)], ids=["greedy", "sampled"])


def t5() -> PreTrainedModel:
    config = T5Config(**SPECIAL, **SIZES, d_kv=8, d_ff=64, num_layers=2, num_heads=4, max_position_embeddings=128)
    model = T5ForConditionalGeneration(config)
    # T5's own initial weights say one letter again and again.
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def bart() -> PreTrainedModel:
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128, "init_std": INITIAL_SD}
    return BartForConditionalGeneration(BartConfig(**SPECIAL, **SIZES, **layers, **wide))


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {"t5": t5, "bart": bart}
TARGETS = {"t5": ["q", "v", "wo"], "bart": ["q_proj", "v_proj", "fc2"]}
every_kind = pytest.mark.parametrize("kind", MAKERS)


SEQ2SEQ = KINDS["seq2seq"].implementation()


def backbone(kind: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(kind, MAKERS[kind]().eval().requires_grad_(False), CODEC, fingerprint=kind, kind=SEQ2SEQ)


def tuned(kind: str) -> Policy:
    """A LoRA in encoder and decoder that looks trained."""
    made = backbone(kind)
    tuner = LoraTuner(made.model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=TARGETS[kind]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuner.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return Policy(made, tuner)


def generated(model: Any, prompts: Sequence[str] = PROMPTS, **more: Any) -> Tensor:
    """transformers' own greedy ids behind the start, from right-padded sources."""
    encoded = CODEC.prompts(prompts)
    width = max(map(len, encoded))
    ids = torch.tensor([[*prompt, *[CODEC.pad] * (width - len(prompt))] for prompt in encoded])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in encoded])
    given = {"max_new_tokens": 8, "do_sample": False, **more}
    made: Tensor = model.generate(input_ids=ids, attention_mask=mask, **given)
    return made[:, 1:]


def texts(ids_BT: Tensor) -> list[str]:
    ends = (ids_BT != CODEC.eos).long().cumprod(1).sum(1).tolist()
    return [CODEC.decode(row[:end]) for row, end in zip(ids_BT.tolist(), ends, strict=True)]


@every_kind
def test_at_strength_zero_it_is_generate_of_the_backbone(kind: str) -> None:
    answers = tuned(kind).respond(PROMPTS, strength=0.0, sampling=GREEDY, seed=0)

    assert answers == texts(generated(backbone(kind).model))
    assert len(set(answers)) > 1
    assert all(answers)


@every_kind
def test_at_strength_one_it_is_generate_of_the_merged_model(kind: str) -> None:
    policy = tuned(kind)

    answers = policy.respond(PROMPTS, strength=1.0, sampling=GREEDY, seed=0)

    merged = copy.deepcopy(policy.tuner.module).merge_and_unload()  # type: ignore[attr-defined]
    assert answers == texts(generated(merged))
    assert answers != texts(generated(backbone(kind).model))


@both_ways
@every_kind
def test_one_strength_per_prompt_equals_a_run_at_each_strength(kind: str, sampling: Sampling) -> None:
    policy = tuned(kind)

    mixed = policy.respond(PROMPTS, strength=STRENGTHS, sampling=sampling, seed=0)

    runs = [policy.respond(PROMPTS, strength=strength, sampling=sampling, seed=0) for strength in STRENGTHS]
    assert mixed == [run[row] for row, run in enumerate(runs)]


@both_ways
@every_kind
def test_answers_do_not_depend_on_the_batch_they_ran_in(kind: str, sampling: Sampling) -> None:
    policy = tuned(kind)
    together = policy.respond(PROMPTS, strength=STRENGTHS, sampling=sampling, seed=0)

    policy.budget = replace(policy.budget, gib=1e-9)  # one text takes more
    alone = policy.respond(PROMPTS, strength=STRENGTHS, sampling=sampling, seed=0)

    assert alone == together


@every_kind
def test_the_encoder_reads_each_row_once_and_at_its_own_strength(kind: str) -> None:
    policy = tuned(kind)
    _ = policy.backbone.cache_objection  # the first answer asks for it
    seen: list[Tensor] = []
    encoder = policy.model.get_encoder()  # type: ignore[operator]
    encoder.register_forward_hook(lambda _module, _given, output: seen.append(output.last_hidden_state))

    policy.respond(PROMPTS[:1] * 2, strength=[0.0, 2.0], sampling=GREEDY, seed=0)

    ids = torch.tensor(CODEC.prompts(PROMPTS[:1]))
    with torch.no_grad(), policy.tuner.at(2.0):
        expected = encoder(input_ids=ids).last_hidden_state
    assert [len(states) for states in seen[:-1]] == [2]
    torch.testing.assert_close(seen[0][1:], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seen[0][:1], expected, atol=1e-2)


class Doubled(Untuned):
    """Twice the same pass, with weights that add up to 1: what a mixture does without a tuner to do it."""

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        return (WeightedPass(strength, 1.0), WeightedPass(1 - strength, 1.0))


@pytest.mark.parametrize("per_row", [True, False], ids=["one pass", "two passes"])
@every_kind
def test_a_mixture_of_a_pass_with_itself_is_that_pass(kind: str, per_row: bool) -> None:
    tuner = Doubled()
    tuner.per_row = per_row

    answers = Policy(backbone(kind), tuner).respond(PROMPTS, strength=[0.0, 0.5, 1.0, 1.5], sampling=GREEDY, seed=0)

    assert answers == texts(generated(backbone(kind).model))


class Led(Untuned):
    """One pass, with a prefix behind the first token of every source."""

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        return (WeightedPass(1.0, 1.0, Prefix(CODEC.prefix("Sad:"), behind=1)),)


@pytest.mark.parametrize("beams", [1, 3])
@every_kind
def test_a_lead_stands_in_the_source(kind: str, beams: int) -> None:
    sampling = Sampling(8, 0.0, 1.0, beams=beams)

    answers = Policy(backbone(kind), Led()).respond(PROMPTS, sampling=sampling, seed=0)

    plain = Policy(backbone(kind), Untuned())
    assert answers == plain.respond([f"Sad:{prompt}" for prompt in PROMPTS], sampling=sampling, seed=0)
    assert answers != plain.respond(PROMPTS, sampling=sampling, seed=0)


@every_kind
def test_at_strength_inside_generate_is_respond(kind: str) -> None:
    policy = tuned(kind)
    module = policy.tuner.module  # type: ignore[attr-defined]

    mixed = generated(module, custom_generate=alignlab.at_strength(module, STRENGTHS))

    assert texts(mixed) == policy.respond(PROMPTS, strength=STRENGTHS, sampling=GREEDY, seed=0)


@every_kind
def test_several_answers_per_prompt_take_the_strength_of_their_prompt(kind: str) -> None:
    module = tuned(kind).tuner.module  # type: ignore[attr-defined]
    asked = {"do_sample": True, "top_k": 1, "custom_generate": alignlab.at_strength(module, STRENGTHS)}

    several = generated(module, num_return_sequences=2, **asked)

    assert torch.equal(several, generated(module, **asked).repeat_interleave(2, dim=0))


@every_kind
def test_beams_are_those_of_the_merged_model(kind: str) -> None:
    policy = tuned(kind)

    answers = policy.respond(PROMPTS, strength=1.0, sampling=Sampling(8, 0.0, 1.0, beams=3), seed=0)

    merged = copy.deepcopy(policy.tuner.module).merge_and_unload()  # type: ignore[attr-defined]
    assert answers == texts(generated(merged, num_beams=3))
    assert answers != policy.respond(PROMPTS, strength=1.0, sampling=GREEDY, seed=0)


@every_kind
def test_a_prompt_may_fill_the_context_since_the_answer_is_another_text(kind: str) -> None:
    policy = tuned(kind)
    prompt = "a" * (policy.prompt_room(8) - len(CODEC.prompts([""])[0]))

    answers = policy.respond([prompt], sampling=GREEDY, seed=0)

    assert len(CODEC.prompts([prompt])[0]) == 128
    assert answers[0]


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Callable[[PreTrainedModel], None]:
    """Whatever a model computes from here on fails the test."""

    def computes(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    return lambda model: monkeypatch.setattr(model, "forward", computes)


def test_an_answer_may_fill_the_positions_of_the_decoder_and_no_more(unasked: Callable[[PreTrainedModel], None]) -> None:
    policy = tuned("bart")
    policy.backbone.model.generation_config.eos_token_id = None  # type: ignore[union-attr]

    (answer,) = policy.respond(["Tell."], sampling=Sampling(128, 0.0, 1.0), seed=0)

    assert answer
    unasked(policy.backbone.model)
    with pytest.raises(ConfigError, match="max_new_tokens=129 is more than the 128 positions of the model's decoder; lower it"):
        policy.respond(["Tell."], sampling=Sampling(129, 0.0, 1.0), seed=0)


def test_a_source_beyond_the_positions_of_the_encoder_is_refused(unasked: Callable[[PreTrainedModel], None]) -> None:
    policy = tuned("bart")
    _ = policy.backbone.cache_objection  # the first answer asks for it
    unasked(policy.backbone.model)

    with pytest.raises(ConfigError, match="has 131 tokens, but the model's encoder has room for 128; shorten it"):
        policy.respond(["a" * (131 - len(CODEC.prompts([""])[0]))], sampling=GREEDY, seed=0)


def test_a_dial_of_ones_own_refuses_more_new_tokens_than_the_decoder_has_positions() -> None:
    module = tuned("bart").tuner.module  # type: ignore[attr-defined]
    ids = torch.tensor(CODEC.prompts(PROMPTS[:1]))

    with pytest.raises(ConfigError, match="max_new_tokens=129 is more than the 128 positions"):
        module.generate(input_ids=ids, max_new_tokens=129, custom_generate=alignlab.at_strength(module, 0.5))


def test_the_two_stacks_have_limits_of_their_own() -> None:
    config = LEDConfig(**SPECIAL, **SIZES, max_encoder_position_embeddings=256, max_decoder_position_embeddings=32)
    with torch.device("meta"):
        led, unlimited = LEDForConditionalGeneration(config), T5ForConditionalGeneration(T5Config(**SPECIAL))

    assert (context_of(led), target_context_of(led)) == (256, 32)
    assert (context_of(unlimited), target_context_of(unlimited)) == (NO_LIMIT, NO_LIMIT)


@every_kind
def test_states_of_an_encoder_are_not_taken(kind: str) -> None:
    module = tuned(kind).tuner.module  # type: ignore[attr-defined]
    states = module.get_encoder()(torch.tensor(CODEC.prompts(PROMPTS[:1])))

    with pytest.raises(ControlError, match="give input_ids; embeddings and an encoder's states"):
        module.generate(encoder_outputs=states, max_new_tokens=2, custom_generate=alignlab.at_strength(module, 0.5))
