"""How many rows fit a pass: bytes counted by hand for shapes that everyone knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from alignlab.models.anatomy import Footprint
from alignlab.models.answers import GIB, Budget, scored
from alignlab.models.backbone import Backbone
from alignlab.models.sampling import Sampling
from tests.contracts.table import PAIRS, groups
from tests.unit.conftest import attached, plain

LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131_072,
)


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def test_an_8b_llama_in_bfloat16_takes_what_is_known_of_it() -> None:
    taken = Footprint.of(skeleton(LLAMA_8B), itemsize=2)

    assert taken.weights == 2 * 8_030_261_248
    assert taken.cache == 131_072  # 2 x 32 layers x 8 heads x 128 x 2 bytes: 128 KiB a token
    assert taken.activations == 2 * (6 * 4096 + 3 * 14_336)
    assert taken.logits == 48 * 128_256


def test_heads_of_a_width_of_their_own_count_with_it() -> None:
    config = T5Config(vocab_size=100, d_model=512, d_kv=64, num_heads=6, num_layers=8, d_ff=1024)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)

    assert Footprint.of(model, itemsize=4).cache == 2 * 8 * 6 * 64 * 4


@pytest.mark.parametrize(
    ("prompt", "new", "texts"),
    [
        # A text of 2 x 4,608 tokens takes 1,208 MB of cache and 2 x (512 x 135 kB + 6 MB) beside it: 12.6 times into 17,180 MB.
        (512, 4096, 12),
        (32, 128, 256),  # there would be room for 273
        (512, 100_000, 1),  # one text runs, and may take more
    ],
)
def test_texts_that_decode_together_fit_the_budget(prompt: int, new: int, texts: int) -> None:
    budget = Budget(Footprint.of(skeleton(LLAMA_8B), itemsize=2), gib=16.0)

    assert budget.texts(prompt, new, rows=2, at_most=256) == texts


def test_clm_on_an_8b_model_fits_a_card_of_80_gb() -> None:
    # As experiments/clm/paper.yaml and conf/trainer/default.yaml have it: float32, prompts of up to 2,048 tokens.
    budget = Budget(Footprint.of(skeleton(LLAMA_8B), itemsize=4), gib=16.0)
    prompt, new = 2048, 4096

    need = budget.need(budget.texts(prompt, new, rows=2, at_most=256), prompt, new, rows=2)

    assert need.texts > 1
    assert budget.footprint.weights + need.total < 80e9
    assert need.sentence(budget.footprint.weights).startswith(
        f"{need.texts} texts at a time, 2 x 6144 tokens each: weights 29.9 +"
    )


def test_without_a_budget_only_the_callers_limit_counts() -> None:
    budget = Budget(Footprint.of(skeleton(LLAMA_8B), itemsize=2))

    assert budget.texts(8192, 4096, 2, at_most=256) == 256
    assert budget.groups(2, 8192, at_most=32) == 32


def test_the_embedded_models_are_batched_as_they_were_before_there_was_a_budget() -> None:
    config = LlamaConfig(vocab_size=600, hidden_size=96, intermediate_size=288, num_hidden_layers=5, num_attention_heads=4)
    budget = Budget(Footprint.of(skeleton(config), itemsize=4), gib=16.0)

    assert budget.texts(200, 56, rows=3, at_most=256) == 256
    assert budget.groups(2, 256, at_most=64) == 64


def batches_of(policy: Any) -> list[int]:
    """Rows of each pass that the model runs from now on."""
    seen: list[int] = []
    policy.backbone.trunk.register_forward_pre_hook(
        lambda _module, _inputs, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    return seen


def test_decoding_runs_in_passes_that_fit(llama: Backbone) -> None:
    _ = llama.cache_objection  # the first answer asks for it
    policy = attached("clm", llama)
    length = len(policy.backbone.codec.prompts(["Tell a story."])[0])
    one = policy.budget.need(1, length, 1, rows=2).total
    policy.budget = replace(policy.budget, gib=2.5 * one / GIB)
    seen = batches_of(policy)

    policy.respond(["Tell a story."] * 5, strength=0.5, sampling=Sampling(1, 0.0, 1.0), seed=0)

    assert seen == [4, 4, 2]


def test_scoring_runs_in_passes_that_fit(llama: Backbone) -> None:
    policy = plain(llama)
    policy.packing = "off"
    made = groups(policy, PAIRS)
    longest = max(group.length for group in made)
    policy.budget = replace(policy.budget, gib=3.5 * 2 * longest * policy.budget.footprint.activations / GIB)
    seen = batches_of(policy)

    with torch.no_grad():
        scored(policy, made, rows_per_pass=64)

    assert seen == [6, 2]
