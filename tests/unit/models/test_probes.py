"""What is tried when weights are loaded, what follows from it, and that trying leaves no trace."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from alignlab.errors import ModelError
from alignlab.models.anatomy import expected, find
from alignlab.models.backbone import Backbone
from alignlab.models.packing import described
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.records import Batch
from tests.bits import assert_same_bits
from tests.contracts.architectures import architecture
from tests.contracts.test_architectures import lora, tuned
from tests.unit.conftest import attached, batch_of, plain


def scores(policy: Policy, batch: Batch) -> Tensor:
    """Nats of each response, row by row from the model's own forward."""
    total_GM = torch.zeros(batch.length_GM.shape)
    for group, member in [(group, member) for group in range(len(total_GM)) for member in range(total_GM.shape[1])]:
        ids = batch.ids_GMT[group, member, : int(batch.length_GM[group, member])]
        start = int(batch.start_GM[group, member])
        nats = policy.model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        total_GM[group, member] = nats[start - 1 : -1].gather(1, ids[start:, None]).sum()
    return total_GM


def shifted_by_width(model: PreTrainedModel, masked: bool) -> None:
    """Makes the tokens of a row count: those of the mask, or all that stand in it."""
    embedding = model.get_input_embeddings()
    real: dict[str, Tensor] = {}

    def look(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        ids = given["input_ids"]
        mask = given.get("attention_mask")
        real["R11"] = (torch.ones_like(ids) if mask is None or not masked else mask).sum(1)[:, None, None]

    model.model.register_forward_pre_hook(look, with_kwargs=True)
    embedding.register_forward_hook(lambda _module, _inputs, states: states + 0.1 * real["R11"])


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("llama", "the output embedding"),
        ("gpt2", "the output embedding"),
        ("gemma2", "the model's own head"),
        ("granite", "the model's own head"),
        ("cohere", "the model's own head"),
        ("falcon_h1", "the model's own head"),
    ],
)
def test_logits_are_computed_at_the_first_place_that_gives_the_models_own(name: str, cut: str) -> None:
    assert find(name, architecture(name)).cut.name == cut


def test_a_model_that_does_not_come_apart_is_asked_for_all_its_logits(llama: Backbone) -> None:
    lift_V = torch.linspace(-1, 1, llama.model.config.vocab_size)

    def lift(_module: nn.Module, _args: Any, given: dict[str, Any], output: Any) -> None:
        output.logits = output.logits + lift_V * given["input_ids"][..., None] / 100

    llama.model.register_forward_hook(lift, with_kwargs=True)
    policy, batch = plain(llama), batch_of(llama)

    assert llama.abilities.cut.name == "the whole model, at every position"
    torch.testing.assert_close(policy.logprobs(batch).total_GM, scores(policy, batch), atol=1e-4, rtol=1e-5)


def test_padding_that_matters_is_masked(llama: Backbone) -> None:
    shifted_by_width(llama.model, masked=True)
    policy, batch = plain(llama), batch_of(llama)

    assert llama.abilities.unmasked
    assert not llama.abilities.masked
    torch.testing.assert_close(policy.logprobs(batch).total_GM, scores(policy, batch), atol=1e-4, rtol=1e-5)
    assert "padding masked" in policy.layout_reason


def test_where_padding_cannot_be_masked_each_row_has_a_pass_of_its_own(llama: Backbone) -> None:
    shifted_by_width(llama.model, masked=False)
    policy, batch = plain(llama), batch_of(llama)

    assert llama.abilities.masked
    assert llama.abilities.packed
    torch.testing.assert_close(policy.logprobs(batch).total_GM, scores(policy, batch), atol=1e-4, rtol=1e-5)
    assert "one row per pass" in policy.layout_reason


def test_trying_leaves_no_trace(llama: Backbone) -> None:
    policy = attached("lora", llama)
    policy.model.train()
    policy.backbone.trunk.eval()
    before = copy.deepcopy(policy.model.state_dict()), [module.training for module in policy.model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()

    find("llama", llama.model)
    with policy.tuner.off():
        assert llama.cache_objection == ""

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in policy.model.modules()] == before[1]
    assert_same_bits(policy.model.state_dict(), before[0])
    assert all(parameter.grad is None for parameter in policy.model.parameters())


@pytest.mark.parametrize("name", ["opt", "olmoe"])
def test_rows_of_several_settings_run_apart_where_the_model_mixes_its_rows(name: str) -> None:
    policy = tuned(lora, name)

    assert bool(policy.mixed) == (name == "olmoe")
    assert policy.tuner.per_row == (name == "opt")
    assert ("one strength per pass" in policy.layout_reason) == (name == "olmoe")


def test_a_model_that_does_not_run_is_refused_with_its_own_words() -> None:
    model = architecture("gemma2")
    model.config._attn_implementation = "sdpa"

    with pytest.raises(ModelError, match=r"model=gemma2 does not run with model\.attention=sdpa: .*softcap"):
        find("gemma2", model)


def test_an_attention_of_another_name_keeps_shared_prefixes_and_says_so(llama: Backbone) -> None:
    AttentionInterface.register("another", sdpa_attention_forward)
    AttentionMaskInterface.register("another", sdpa_mask)
    llama.model.config._attn_implementation = "another"
    policy, batch = plain(llama), batch_of(llama)

    packed = policy.logprobs(batch).total_GM

    assert policy.layout_reason.endswith("sdpa attention in segments in place of another")
    torch.testing.assert_close(packed, scores(policy, batch), atol=1e-4, rtol=1e-5)
    assert llama.model.config._attn_implementation == "another"


def test_what_is_expected_without_weights_names_the_layers_that_keep_a_state() -> None:
    objection = expected(architecture("lfm2"), "sdpa")

    assert "conv" in objection
    assert "one row per member under sdpa attention; not in one row" in described("pairs", objection, "sdpa")
    assert expected(architecture("llama"), "flash_attention_2") == ""
    assert described("pairs", "", "flash_attention_2").endswith("in segments in place of flash_attention_2")


def test_off_says_who_asked_for_it(llama: Backbone) -> None:
    policy = plain(llama)
    policy.packing = "off"

    assert policy.layout_reason == "one row per member, as trainer.packing=off asks"


def test_a_backbone_is_tried_once(llama: Backbone) -> None:
    calls: list[int] = []
    llama.model.register_forward_pre_hook(lambda *_: calls.append(1))

    plain(llama)
    tried = len(calls)
    assert llama.abilities is llama.abilities

    assert len(calls) == tried
    assert replace(llama).abilities is not llama.abilities


def test_the_cache_of_generation_is_tried_with_the_first_answer_and_once(llama: Backbone) -> None:
    policy = plain(llama)
    assert "cache_objection" not in vars(llama)

    policy.respond(["Tell a story."], sampling=Sampling(1, 0.0, 1.0), seed=0)

    assert vars(llama)["cache_objection"] == ""
    assert vars(llama.moved("elsewhere"))["cache_objection"] == ""
