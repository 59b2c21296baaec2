"""RED's and CLM's places in every architecture of their tables: identity, both ends of the dial, mixed rows, a plain export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig

from alignlab import at_strength
from alignlab.errors import ModelError
from alignlab.models.export import export_plain
from alignlab.tuners.clm import ClmConfig, block_at
from alignlab.tuners.red import RedConfig, red_plus_targets, red_targets, strength
from alignlab.tuners.targets import BLOCK_LAYOUTS, RED_PLUS_TARGETS, RED_TARGETS
from alignlab.tuners.targets import EXPERTS as HAVE_EXPERTS
from tests.unit.tuners.families import CAUSAL, ENCODERS, EXPERTS, IDS_RT, WITH_DECODER, model_of, moved, outputs

NO_PLAIN_CLM = {"gpt_neo"}  # its configuration spells out the attention of each layer in a form of its own
OF_ROWS = dict.fromkeys(EXPERTS, 1e-5)  # an expert multiplies the tokens of all rows at once, so a row rounds by the others
STACKS = dict.fromkeys(WITH_DECODER, 2)  # an encoder and a decoder
SHARED_BLOCKS = {"albert"}  # one block's weights, passed twice
# Places a block where q, k and v are one layer, and those of RED+ otherwise.
FUSED = {"phi3", "gpt2", "gpt_bigcode", "codegen", "bloom", "falcon", "gpt_neox", "persimmon", "mpt", "deberta"}

MIXED = torch.tensor([0.0, 1.0, 0.5])


def test_every_row_of_the_tables_has_a_model_here() -> None:
    made = {*CAUSAL, *EXPERTS, *ENCODERS, *WITH_DECODER}

    assert {*BLOCK_LAYOUTS, *RED_TARGETS, *RED_PLUS_TARGETS} <= made


@pytest.mark.parametrize("kind", sorted(RED_TARGETS))
def test_red_edits_one_output_a_block_and_turns_from_the_backbone_to_the_trained_model(kind: str) -> None:
    before = outputs(model_of(kind))
    tuned = get_peft_model(model_of(kind), RedConfig())
    at_start = outputs(tuned)
    moved(tuned, ".red_edit.", 0.3)
    trained = outputs(tuned)

    with strength(tuned, MIXED):
        mixed = outputs(tuned)

    assert len(tuned.targeted_module_names) == (1 if kind in SHARED_BLOCKS else 2 * STACKS.get(kind, 1))
    assert torch.equal(at_start, before)
    assert not torch.equal(trained, before)
    assert torch.equal(mixed[0], before[0])
    torch.testing.assert_close(mixed[1], trained[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[2], trained[2], atol=1e-4)


@pytest.mark.parametrize("kind", sorted(RED_PLUS_TARGETS))
def test_red_plus_edits_queries_keys_values_and_both_outputs(kind: str) -> None:
    before = outputs(model_of(kind))

    tuned = get_peft_model(model_of(kind), RedConfig(target_modules=red_plus_targets(kind)))

    assert len(tuned.targeted_module_names) == 2 * (3 if kind in FUSED else 5)
    assert torch.equal(outputs(tuned), before)


@pytest.mark.parametrize("kind", sorted(EXPERTS))
def test_experts_have_no_output_layer_to_edit(kind: str) -> None:
    assert kind in HAVE_EXPERTS
    with pytest.raises(ModelError, match=rf"models of type '{kind}' have experts instead, which are no layers of their own"):
        red_targets(kind)


@pytest.mark.parametrize("kind", sorted(BLOCK_LAYOUTS))
def test_a_clm_block_starts_as_the_identity_and_rows_pass_by_it(kind: str) -> None:
    before = outputs(model_of(kind))
    tuned = get_peft_model(model_of(kind), ClmConfig())
    at_start = outputs(tuned)
    moved(tuned, ".clm_blocks.", 0.1)
    trained = outputs(tuned)

    with block_at(tuned, torch.tensor([0.0, 1.0, 0.0])):
        mixed = outputs(tuned)

    assert torch.equal(at_start, before)
    assert not torch.equal(trained, before)
    torch.testing.assert_close(mixed[0], before[0], atol=OF_ROWS.get(kind, 0.0), rtol=0.0)
    torch.testing.assert_close(mixed[1], trained[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted({*BLOCK_LAYOUTS} - NO_PLAIN_CLM))
def test_a_clm_block_becomes_a_layer_of_a_plain_model(kind: str, tmp_path: Path) -> None:
    tuned = get_peft_model(model_of(kind), ClmConfig())
    moved(tuned, ".clm_blocks.", 0.1)

    assert export_plain(tuned, None, tmp_path / "plain") < 1e-5


@pytest.mark.parametrize("kind", ["bloom", "falcon", "mpt", "gptj", "mixtral", "gemma3_text"])
def test_rows_of_a_cache_are_those_of_full_passes(kind: str) -> None:
    tuned = get_peft_model(model_of(kind), ClmConfig())
    moved(tuned, ".clm_blocks.", 0.1)
    greedy = GenerationConfig(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)

    mixed = tuned.generate(input_ids=IDS_RT, generation_config=greedy, custom_generate=at_strength(tuned, [0.0, 1.0, 0.5]))

    for row, setting in ((0, 0.0), (1, 1.0)):
        with torch.no_grad(), block_at(tuned, setting):
            logits = tuned(input_ids=mixed[row : row + 1]).logits[0, 6:-1]
        # The highest logit of a full pass is the token that the cache step chose; EOS may not be chosen.
        logits[:, tuned.generation_config.eos_token_id or 2] = -torch.inf
        assert logits.argmax(-1).tolist() == mixed[row, 7:].tolist()


@pytest.mark.parametrize(
    ("kind", "writes"),
    [
        ("llama", ["mlp.down_proj"]),  # the attention writes, too
        ("gpt2", ["attn.c_proj"]),
    ],
)
def test_a_block_that_is_not_described_whole_is_refused_and_the_model_left_as_it_was(kind: str, writes: list[str]) -> None:
    model = model_of(kind)
    before = outputs(model)
    model.train()
    first = BLOCK_LAYOUTS[kind].first

    with pytest.raises(ModelError, match=r"0 with .* at zero does not return its input, so no added block"):
        get_peft_model(model, ClmConfig(target_modules=first, writes=writes))

    assert all(module.training for module in model.modules())
    assert torch.equal(outputs(model.eval()), before)


def test_a_model_that_normalises_its_stream_is_refused_by_what_it_does() -> None:
    # OPT-350m: the norm stands behind the sum.
    model = model_of("opt")
    for layer in model.model.decoder.layers:
        layer.do_layer_norm_before = False

    with pytest.raises(ModelError, match="does not return its input"):
        get_peft_model(model, ClmConfig())


def test_experts_are_not_drawn_anew() -> None:
    with pytest.raises(ModelError, match=r"start='random' draws linear maps anew, and .*mlp\.experts\.down_proj is none"):
        get_peft_model(model_of("mixtral"), ClmConfig(start="random"))
