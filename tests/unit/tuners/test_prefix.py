"""Prefix tuning: its attention by hand, PEFT's own forward beside it, caches, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.export import export_plain
from alignlab.models.sampling import Sampling
from alignlab.tuners import prefix
from alignlab.tuners.composed import compose
from alignlab.tuners.config import PrefixTunerConfig
from alignlab.tuners.prefix import PrefixTuner
from tests.conftest import backbone
from tests.contracts import table
from tests.unit.conftest import checked
from tests.unit.tuners.families import model_of, outputs

Build = Callable[[str], PreTrainedModel]
LENGTH = 3
IDS_RT = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 13]])
LLAMA = table.Case("prefix", "llama", {"length": LENGTH, "init": "random"})


def config(**changes: Any) -> PrefixTunerConfig:
    given = {"length": LENGTH, "init": "random", **changes}
    return checked("tuner", PrefixTunerConfig(name="prefix", likelihood_rate=1e-3, preference_rate=1e-3, **given))


def attached(model: PreTrainedModel, **changes: Any) -> PrefixTuner:
    torch.manual_seed(3)
    return prefix.build(config(**changes), model)


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def gpt2_attention(
    model: PreTrainedModel, block: int, states_TW: np.ndarray, vectors_PN: np.ndarray, strength: float
) -> np.ndarray:
    """A GPT-2 block's attention over one text in NumPy, to whose keys and values PEFT's vectors are added."""
    attention = model.transformer.h[block].attn
    weight, bias = (tensor.detach().double().numpy() for tensor in (attention.c_attn.weight, attention.c_attn.bias))
    query, key, value = np.split(states_TW @ weight + bias, 3, axis=1)
    time, width = states_TW.shape
    size = width // 4
    heads = []
    for head in range(4):
        own = slice(head * size, (head + 1) * size)
        first = 2 * block * width + head * size
        ahead_key, ahead_value = vectors_PN[:, first : first + size], vectors_PN[:, width + first : width + first + size]
        scores = query[:, own] @ key[:, own].T / np.sqrt(size)
        scores[np.triu_indices(time, 1)] = -np.inf
        plain = softmax(scores) @ value[:, own]
        wide = np.concatenate([query[:, own] @ ahead_key.T / np.sqrt(size), scores], axis=1)
        seen = softmax(wide) @ np.concatenate([ahead_value, value[:, own]])
        heads.append(plain + strength * (seen - plain))
    weight, bias = (tensor.detach().double().numpy() for tensor in (attention.c_proj.weight, attention.c_proj.bias))
    return np.concatenate(heads, axis=1) @ weight + bias


@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_block_attends_to_the_vectors_beside_its_text(build: Build, attention: str, strength: float) -> None:
    model = build("gpt2")
    model.set_attn_implementation(attention)
    tuner = attached(model)
    passed: list[tuple[Tensor, Tensor]] = []
    for layer in tuner.layers:
        layer.register_forward_hook(lambda _module, args, output: passed.append((args[0], output[0])))

    with torch.no_grad(), tuner.at(strength):
        model(IDS_RT[:1])

    (vectors_PN,) = (parameter.detach().double().numpy() for parameter in tuner.parameters())
    for block, (states_1TW, found_1TW) in enumerate(passed):
        expected_TW = gpt2_attention(model, block, states_1TW[0].double().numpy(), vectors_PN, strength)
        np.testing.assert_allclose(found_1TW[0].numpy(), expected_TW, rtol=0, atol=1e-5)
    assert len(passed) == 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_pefts_own_forward_says_the_same_where_positions_are_given(build: Build, family: str, tmp_path: Path) -> None:
    tuner = attached(build(family))
    tuner.save(tmp_path)
    first = 2 if family == "roberta" else 0
    positions_1T = torch.arange(first, first + IDS_RT.shape[1])[None]

    theirs = PeftModel.from_pretrained(build(family), tmp_path).eval()

    mask_RT = torch.ones_like(IDS_RT)
    with torch.no_grad():
        found = tuner.module(input_ids=IDS_RT, attention_mask=mask_RT).logits
        # PEFT counts its vectors as positions.
        expected = theirs(input_ids=IDS_RT, attention_mask=mask_RT, position_ids=positions_1T - LENGTH).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_t5_without_distances_says_the_same_behind_a_cache_of_the_vectors(build: Build) -> None:
    def without_distances() -> PreTrainedModel:
        model = build("t5")
        model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.zero_()
        return model

    tuner = attached(without_distances())
    given = {"input_ids": IDS_RT, "attention_mask": torch.ones_like(IDS_RT), "decoder_input_ids": IDS_RT[:, :4]}
    (vectors_PN,) = tuner.parameters()
    by_block_L2RHPD = (
        vectors_PN.detach().view(LENGTH, 2, 2, 4, 8).permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, 2, -1, -1, -1)
    )
    cache = EncoderDecoderCache(DynamicCache([tuple(pair) for pair in by_block_L2RHPD]), DynamicCache())

    with torch.no_grad():
        found, expected = tuner.module(**given).logits, without_distances()(**given, past_key_values=cache).logits

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_token_behind_a_cache_sees_the_vectors_too(build: Build, family: str) -> None:
    model = build(family)
    attached(model)
    told = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    cached, whole = (
        model.generate(IDS_RT, attention_mask=torch.ones_like(IDS_RT), use_cache=use, **told) for use in (True, False)
    )

    assert torch.equal(cached, whole)


def test_prompts_of_several_strengths_are_answered_as_one_by_one() -> None:
    policy = table.trained(LLAMA, backbone("llama"))
    prompts, strengths = ["Tell a story.", "Tell a story about Tom and a kite."], [0.5, 2.0]
    sampling = Sampling(6, 0.0, 1.0)

    together = policy.respond(prompts, strength=strengths, sampling=sampling, seed=0)

    alone = [policy.respond([one], strength=s, sampling=sampling, seed=0)[0] for one, s in zip(prompts, strengths, strict=True)]
    assert together == alone


def test_blocks_that_are_computed_again_give_the_same_gradient() -> None:
    policy = table.trained(LLAMA, backbone("llama"))
    pairs, learned = table.batch(policy), policy.tuner.parameters()  # type: ignore[attr-defined]
    gradients = []
    for again in (False, True):
        with policy.only(learned), policy.at(0.5), policy.without_activations(again):
            policy.model.train(again)  # transformers keeps activations in evaluation mode
            gradients.append(torch.autograd.grad(policy.logprobs(pairs).total_GM.sum(), learned)[0])

    torch.testing.assert_close(gradients[1], gradients[0])
    by_block = gradients[0].unflatten(1, (-1, 2, gradients[0].shape[1] // 2 // len(policy.tuner.layers)))  # type: ignore[attr-defined]
    assert bool((by_block.abs().sum((0, 3)) > 0).all())


@pytest.mark.parametrize("moved", [False, True])
def test_it_starts_as_the_keys_and_values_of_tokens_that_the_backbone_reads(build: Build, moved: bool) -> None:
    torch.manual_seed(3)
    ids_RT = torch.randint(4, 96, (2, prefix.READ))
    factor = 1.5 if moved else 1.0

    tuner = attached(build("llama"), length=prefix.READ + 2, init="vocabulary")
    with torch.no_grad(), tuner.detached():
        tuner.module.get_base_model().model.embed_tokens.weight[:, 0] *= factor

    read = build("llama")
    with torch.no_grad():
        read.model.embed_tokens.weight[:, 0] *= factor
        cache = read(ids_RT, use_cache=True).past_key_values
    for layer, kept in zip(tuner.layers, cache.layers, strict=True):
        key_PHD, value_PHD = layer.own_2PHD()
        assert torch.allclose(key_PHD[: prefix.READ], kept.keys[0].transpose(0, 1), atol=1e-6)
        assert torch.allclose(value_PHD[prefix.READ :], kept.values[1].transpose(0, 1)[:2], atol=1e-6)


@pytest.mark.parametrize("other", [table.Case("red", "llama", {"edit": "both", "place": "plus"}), LLAMA], ids=str)
def test_beside_another_adapter_each_has_a_strength_of_its_own(other: table.Case) -> None:
    alone = {"prefix": table.trained(LLAMA, backbone("llama")), "other": table.trained(other, backbone("llama"))}
    expected = {name: policy.logprobs(table.batch(policy)).total_GM for name, policy in alone.items()}

    composed = compose(alone)

    pairs = table.batch(composed)
    for name, wanted in expected.items():
        with composed.at({"prefix": 0.0, "other": 0.0, name: 1.0}):
            torch.testing.assert_close(composed.logprobs(pairs).total_GM, wanted, rtol=0, atol=1e-5)
    packed = composed.logprobs(pairs).total_GM
    composed.packing = "off"
    torch.testing.assert_close(composed.logprobs(pairs).total_GM, packed, rtol=0, atol=1e-5)
    assert not torch.allclose(packed, expected["prefix"])


@pytest.mark.parametrize("family", ["gemma2", "gpt_bigcode", "phi3", "mixtral", "distilbert", "modernbert", "bart", "mt5"])
@pytest.mark.filterwarnings("ignore")
def test_rows_of_several_strengths_are_those_of_one_in_many_families(family: str) -> None:
    model = model_of(family)
    before = outputs(model)
    tuner = attached(model)
    strengths = [0.0, 1.0, -0.7]

    with tuner.at(torch.tensor(strengths)):
        found = outputs(model)

    for row, strength in enumerate(strengths):
        with tuner.at(strength):
            torch.testing.assert_close(found[row], outputs(model)[row], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0], before[0], rtol=0, atol=1e-4)
    assert not torch.allclose(found[1], before[1])


def test_no_vectors_are_no_prefix() -> None:
    with pytest.raises(ConfigError, match=r"tuner\.length=0 must be at least 1"):
        config(length=0)


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("gptj", "0 of the 2 blocks of a GPTJForCausalLM do, each once; take tuner=lora or tuner=prompt"),
        ("lfm2", "1 of the 2 blocks of a Lfm2ForCausalLM do"),
        ("deberta-v2", "0 of the 2 blocks of a DebertaV2ForSequenceClassification do"),
        ("deepseek_v3", "peft's prefix for a DeepseekV3ForCausalLM has keys of 8 numbers, and the model's have 32"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_the_vectors_do_not_reach_is_refused(family: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        attached(model_of(family))


def test_an_attention_without_scores_to_add_to_is_refused(build: Build) -> None:
    model = build("llama")
    model.config._attn_implementation = "flex_attention"

    with pytest.raises(ModelError, match=r"a prefix goes with model\.attention=sdpa or eager, and not with flex_attention"):
        attached(model)


def test_strengths_of_another_number_than_the_rows_are_refused(build: Build) -> None:
    model = build("llama")
    tuner = attached(model)

    with (
        pytest.raises(ControlError, match="3 strengths were given for a batch of 2 rows"),
        tuner.at(torch.tensor([0.0, 0.5, 1.0])),
    ):
        model(IDS_RT)


def test_vectors_have_no_plain_export(build: Build, tmp_path: Path) -> None:
    tuner = attached(build("llama"))

    with pytest.raises(ModelError, match="PREFIX_TUNING adapter does not merge into the weights; keep it beside its backbone"):
        export_plain(tuner.module, None, tmp_path / "plain")
