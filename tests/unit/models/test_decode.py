"""How a token is drawn from scores and one uniform number, by hand; and answers, beside what transformers itself generates."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    MambaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
    TextIteratorStreamer,
)

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.decode import drawn
from alignlab.models.kinds import KINDS
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.text import Codec, Template
from tests.conftest import CODEC, INITIAL_SD, SPECIAL, backbone
from tests.unit.conftest import Heard, attached, plain

PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3]])


def chosen(uniform: float, top_p: float = 1.0) -> int:
    return int(drawn(PROBABILITIES.log(), top_p, torch.tensor([uniform])))


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 0), (0.9999999, 0)],
)
def test_a_draw_falls_into_the_shares_of_the_tokens_likeliest_first(uniform: float, token: int) -> None:
    assert chosen(uniform) == token


@pytest.mark.parametrize(("uniform", "token"), [(0.6, 1), (0.63, 2), (0.9999999, 2)])
def test_top_p_keeps_the_smallest_set_that_reaches_it_and_shares_the_draw_among_it(uniform: float, token: int) -> None:
    # 0.5 is not yet 0.7, 0.8 is: tokens 1 and 2 with shares 0.625 and 0.375
    assert chosen(uniform, top_p=0.7) == token


def test_each_row_has_its_own_draw() -> None:
    tokens_B = drawn(PROBABILITIES.log().expand(3, 3), 1.0, torch.tensor([0.1, 0.6, 0.9]))

    assert tokens_B.tolist() == [1, 2, 0]


PROMPTS = ["Tell a story about Tom and a kite.", "Tell a short story about Anna.", "Tell.", "Tell a gloomy story about Sam."]
GREEDY = Sampling(12, 0.0, 1.0)
every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def generated(policy: Policy, **more: Any) -> list[str]:
    """What transformers' own generate says greedily, prompt by prompt."""
    answers = []
    for ids in CODEC.prompts(PROMPTS):
        given = {"max_new_tokens": 12, "do_sample": False, **more}
        made = policy.backbone.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), **given)
        said = made[0, len(ids) :].tolist()
        answers.append(CODEC.continuation(ids, said[: said.index(CODEC.eos)] if CODEC.eos in said else said))
    return answers


@pytest.mark.parametrize(
    "more",
    [{"repetition_penalty": 1.5}, {"repetition_penalty": 0.6, "no_repeat_ngram_size": 2}, {"beams": 3}],
    ids=str,
)
@every_backbone
def test_penalties_and_beams_are_those_of_generate(kind: str, more: dict[str, Any]) -> None:
    policy, long = plain(backbone(kind)), Sampling(24, 0.0, 1.0)

    answers = policy.respond(PROMPTS, sampling=replace(long, **more), seed=0)

    named = {{"beams": "num_beams"}.get(key, key): value for key, value in more.items()}
    assert answers == generated(policy, max_new_tokens=24, **named)
    assert answers != policy.respond(PROMPTS, sampling=long, seed=0)


SMALL: dict[str, Any] = {"vocab_size": len(CODEC.tokenizer), "hidden_size": 32, "initializer_range": INITIAL_SD, **SPECIAL}
OTHERS = {
    "positions from the mask": OPTConfig(
        ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, **SMALL
    ),
    "no positions": BloomConfig(n_layer=2, n_head=4, **SMALL),
    "a recurrent state": MambaConfig(num_hidden_layers=2, state_size=4, **SMALL),
    "a sliding window": Gemma3TextConfig(
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        **SMALL,
    ),
}


def other(config: PreTrainedConfig) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config.max_position_embeddings = 128
    return plain(Backbone("other", model, CODEC, "other", KINDS["causal"].implementation()))


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_that_take_other_arguments_answer_as_they_do_alone(name: str) -> None:
    policy = other(OTHERS[name])

    assert policy.respond(PROMPTS, sampling=GREEDY, seed=0) == generated(policy)


def test_a_model_that_hands_out_no_cache_is_refused() -> None:
    gemma = RecurrentGemmaConfig(
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=8,
        lru_width=32,
        attention_window_size=8,
        **SMALL,
    )

    with pytest.raises(ModelError, match=r"cannot generate here: .*a RecurrentGemmaForCausalLM gives no cache"):
        other(gemma).respond(PROMPTS, sampling=GREEDY, seed=0)


@pytest.mark.parametrize("more", [{"top_k": 1}, {"min_p": 0.9999}, {"top_k": 5, "min_p": 0.9999}], ids=str)
def test_where_one_token_is_left_it_is_the_likeliest(llama: Backbone, more: dict[str, Any]) -> None:
    policy = plain(llama)

    drawn = policy.respond(PROMPTS, sampling=Sampling(12, 1.5, 1.0, **more), seed=0)

    assert drawn == policy.respond(PROMPTS, sampling=GREEDY, seed=0)


@pytest.mark.parametrize(("more", "kept"), [({"top_k": 3}, 3), ({"min_p": 0.3}, None)], ids=str)
def test_no_token_is_drawn_that_was_left_out(llama: Backbone, more: dict[str, Any], kept: int | None) -> None:
    _ = llama.cache_objection  # the first answer asks for it
    policy = plain(llama)
    logits: list[Tensor] = []
    policy.backbone.head.register_forward_hook(lambda _module, _given, output: logits.append(output[:, -1]))

    heard = Heard()
    policy.respond(PROMPTS[:1], sampling=Sampling(12, 1.0, 1.0, **more), seed=1, streamer=heard)

    drawn = heard.put_ids[1:]
    chances = [each[0].softmax(-1) for each in logits]
    least = [each.topk(kept).values[-1] if kept else 0.3 * each.max() for each in chances]
    found = [float(chance[int(token)]) for chance, token in zip(chances, drawn, strict=True)]
    assert all(each >= bound for each, bound in zip(found, least, strict=True))
    assert any(each < float(chance.max()) for each, chance in zip(found, chances, strict=True))


def test_what_the_models_own_generation_config_says_of_sampling_is_not_asked(llama: Backbone) -> None:
    policy = plain(llama)
    samplings = (GREEDY, Sampling(12, 1.0, 1.0))
    before = [policy.respond(PROMPTS, sampling=sampling, seed=0) for sampling in samplings]

    own = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 1,
        "top_p": 0.1,
        "min_p": 0.9,
        "num_beams": 3,
        "max_length": 20,
        "min_length": 99,
    }
    policy.backbone.model.generation_config.update(**own, repetition_penalty=3.0, no_repeat_ngram_size=2)

    assert [policy.respond(PROMPTS, sampling=sampling, seed=0) for sampling in samplings] == before


def test_every_end_that_the_model_names_ends_an_answer_beside_the_tokenizers(llama: Backbone) -> None:
    policy = plain(llama)
    whole = policy.respond(PROMPTS[:1], sampling=GREEDY, seed=0)[0]
    heard = Heard()
    policy.respond(PROMPTS[:1], sampling=GREEDY, seed=0, streamer=heard)
    fourth = int(heard.put_ids[4])

    policy.backbone.model.generation_config.eos_token_id = [fourth, CODEC.head[0]]
    heard = Heard()
    cut = policy.respond(PROMPTS[:1], sampling=GREEDY, seed=0, streamer=heard)[0]

    assert whole.startswith(cut)
    assert len(heard.put_ids) < 12
    assert int(heard.put_ids[-1]) == fourth

    # The tokenizer's own still ends, whatever the model names.
    policy.backbone.head.register_forward_hook(lambda _module, _given, output: output + 100.0 * end_V)
    end_V = torch.nn.functional.one_hot(torch.tensor(CODEC.eos), len(CODEC.tokenizer))
    assert policy.respond(PROMPTS[:1], sampling=GREEDY, seed=0) == [""]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(12, 1.0, 0.9)], ids=["greedy", "sampled"])
@every_backbone
def test_an_answer_is_cut_in_front_of_the_first_stop_string(kind: str, sampling: Sampling) -> None:
    policy = plain(backbone(kind))
    whole = policy.respond(PROMPTS, sampling=sampling, seed=0)
    stop = tuple(re.findall("[a-z]{3}", "".join(whole))[:2])  # bytes that are no letters cannot be asked for

    cut = policy.respond(PROMPTS, sampling=replace(sampling, stop=stop), seed=0)

    places = [min([text.index(each) for each in stop if each in text], default=len(text)) for text in whole]
    assert cut == [text[:place] for text, place in zip(whole, places, strict=True)]
    assert cut != whole


def test_no_pass_runs_behind_a_stop_string(llama: Backbone) -> None:
    policy, heard = plain(llama), Heard()
    whole = policy.respond(PROMPTS[:1], sampling=GREEDY, seed=0)[0]
    word = re.findall("[a-z]{3}", whole)[0]

    policy.respond(PROMPTS[:1], sampling=replace(GREEDY, stop=(word,)), seed=0, streamer=heard)

    said = torch.cat([put.flatten() for put in heard.put_ids[1:]]).tolist()
    assert word in CODEC.decode(said)
    assert word not in CODEC.decode(said[:-1])
    assert len(said) < 12


def test_a_stop_string_that_begins_in_the_prompt_stops_nothing(llama: Backbone) -> None:
    policy = plain(llama)
    whole = policy.respond(PROMPTS[:1], sampling=GREEDY, seed=0)

    stopped = policy.respond(PROMPTS[:1], sampling=replace(GREEDY, stop=("\n" + whole[0][:2],)), seed=0)

    assert stopped == whole


def test_a_stop_string_that_the_tokenizer_cannot_say_is_refused(llama: Backbone) -> None:
    words = {"<eos>": 0, "<unk>": 1, "a": 2, "b": 3}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), eos_token="<eos>", unk_token="<unk>"
    )
    policy = plain(replace(llama, codec=Codec(made, Template("{prompt}", chat=False, bos=False))))

    with pytest.raises(ConfigError, match="no token of this tokenizer ends any of stop="):
        policy.respond(["a"], sampling=replace(GREEDY, stop=("é",)), seed=0)


@pytest.mark.parametrize("tuner", ["clm", "lora", "full"])
def test_beams_take_texts_at_different_ends_of_the_dial(llama: Backbone, tuner: str) -> None:
    policy = attached(tuner, llama)
    sampling = replace(GREEDY, beams=3)

    together = policy.respond(PROMPTS, strength=[0.0, 1.0, 1.0, 0.0], sampling=sampling, seed=0)

    ends = {strength: policy.respond(PROMPTS, strength=strength, sampling=sampling, seed=0) for strength in (0.0, 1.0)}
    assert together == [ends[strength][row] for row, strength in enumerate((0.0, 1.0, 1.0, 0.0))]


def test_beams_between_the_ends_of_a_mixture_are_refused(llama: Backbone) -> None:
    with pytest.raises(ControlError, match="beam search follows one pass, and here passes are mixed"):
        attached("clm", llama).respond(PROMPTS, strength=[0.0, 0.5, 1.0, 1.0], sampling=replace(GREEDY, beams=2), seed=0)


def test_a_streamer_hears_the_prompt_and_then_each_token_of_the_answer(llama: Backbone) -> None:
    policy = attached("clm", llama)
    heard = Heard()

    answers = policy.respond(PROMPTS[:1], strength=0.5, sampling=Sampling(12, 1.0, 1.0), seed=0, streamer=heard)

    prompt, *tokens = [put.flatten().tolist() for put in heard.put_ids]
    assert tuple(prompt) == CODEC.prompts(PROMPTS[:1])[0]
    assert CODEC.continuation(prompt, [token for (token,) in tokens if token != CODEC.eos]) == answers[0]
    assert heard.ended == 1


def test_transformers_own_streamer_says_the_answer(llama: Backbone) -> None:
    streamer = TextIteratorStreamer(CODEC.tokenizer, skip_prompt=True, skip_special_tokens=True)

    answers = plain(llama).respond(PROMPTS[:1], sampling=GREEDY, seed=0, streamer=streamer)

    assert "".join(streamer) == answers[0]


@pytest.mark.parametrize(("prompts", "beams"), [(PROMPTS, 1), (PROMPTS[:1], 2)])
def test_a_streamer_follows_one_answer_without_beams(llama: Backbone, prompts: list[str], beams: int) -> None:
    with pytest.raises(ControlError, match="a streamer follows one answer as it is written; give one prompt"):
        plain(llama).respond(prompts, sampling=replace(GREEDY, beams=beams), seed=0, streamer=Heard())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf must be a finite number, at least 0.01"),
        ({"stop": "The end."}, "stop='The end.' must be a list of texts"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused_when_it_is_made(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(GREEDY, **more)
