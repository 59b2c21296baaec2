"""A model with added blocks as a plain checkpoint with more layers: strength 1, loadable without alignlab."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignlab.errors import ControlError, ModelError
from alignlab.models.export import export_plain
from alignlab.tuners.clm import ClmConfig, ClmLayer, block_at
from tests.bits import assert_same_bits

Build = Callable[[str], PreTrainedModel]
Logits = Callable[..., Tensor]
Train = Callable[[nn.Module], nn.Module]

LISTS = dict.fromkeys(("llama", "mistral", "qwen2", "qwen2_sliding", "qwen3"), "model.layers") | {"gpt2": "transformer.h"}

every_family = pytest.mark.parametrize("family", list(LISTS))


@pytest.fixture
def tuned(build: Build, train: Train) -> PeftModel:
    """A Llama of two blocks with an added one that looks trained."""
    return train(get_peft_model(build("llama"), ClmConfig()))


@pytest.mark.parametrize("blocks", [1, 2])
@every_family
def test_the_plain_checkpoint_answers_bit_for_bit(
    build: Build, logits: Logits, train: Train, tmp_path: Path, family: str, blocks: int
) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig(blocks=blocks)))

    difference = export_plain(tuned, None, tmp_path / "plain")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert torch.equal(logits(plain), logits(tuned))
    assert difference == 0


@pytest.mark.parametrize("blocks", [1, 2])
@every_family
def test_new_blocks_come_first_and_the_others_move_up(
    build: Build, train: Train, tmp_path: Path, family: str, blocks: int
) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig(blocks=blocks)))
    added = next(module for module in tuned.modules() if isinstance(module, ClmLayer)).clm_blocks["default"].blocks

    export_plain(tuned, None, tmp_path / "plain")

    held = load_file(tmp_path / "plain" / "model.safetensors")
    old = build(family).get_submodule(LISTS[family])
    expected = {
        f"{LISTS[family]}.{index}.{name}": tensor
        for index, block in enumerate([*added, *old])
        for name, tensor in block.named_parameters()
    }
    assert {name for name in held if name.startswith(LISTS[family])} == expected.keys()
    assert_same_bits({name: held[name] for name in expected}, expected)


@pytest.mark.parametrize(
    ("family", "key"), [("llama", "num_hidden_layers"), ("qwen2", "num_hidden_layers"), ("gpt2", "n_layer")]
)
def test_the_config_counts_the_new_layers(build: Build, tmp_path: Path, family: str, key: str) -> None:
    export_plain(get_peft_model(build(family), ClmConfig(blocks=2)), None, tmp_path / "plain")

    assert json.loads((tmp_path / "plain" / "config.json").read_text())[key] == 4


def test_a_new_layer_attends_like_the_first_one(build: Build, tmp_path: Path) -> None:
    export_plain(get_peft_model(build("qwen2_sliding"), ClmConfig()), None, tmp_path / "plain")

    written = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert written["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gpt2", True)])
def test_embeddings_stay_tied_or_apart_as_they_were(build: Build, tmp_path: Path, family: str, tied: bool) -> None:
    export_plain(get_peft_model(build(family), ClmConfig()), None, tmp_path / "plain")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) == tied
    assert ("lm_head.weight" in load_file(tmp_path / "plain" / "model.safetensors")) != tied


def test_over_a_bfloat16_backbone_everything_is_written_in_bfloat16(build: Build, train: Train, tmp_path: Path) -> None:
    tuned = train(get_peft_model(build("llama").to(torch.bfloat16), ClmConfig()))

    export_plain(tuned, None, tmp_path / "plain")

    held = load_file(tmp_path / "plain" / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}


def test_over_a_bfloat16_backbone_a_block_that_bfloat16_can_hold_computes_as_its_plain_layer(
    build: Build, logits: Logits, train: Train
) -> None:
    tuned = train(get_peft_model(build("llama").to(torch.bfloat16), ClmConfig()))
    for parameter in tuned.parameters():
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    with_block = logits(tuned)

    plain = tuned.merge_and_unload()

    assert torch.equal(logits(plain), with_block)


def test_the_plain_checkpoint_is_of_the_same_architecture_and_names_no_adapter(tuned: PeftModel, tmp_path: Path) -> None:
    export_plain(tuned, None, tmp_path / "plain")

    files = {file.name: file for file in (tmp_path / "plain").iterdir()}
    written = files["config.json"].read_text()
    assert files.keys() == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads(written)["architectures"] == ["LlamaForCausalLM"]
    assert "clm" not in written.lower()
    assert "peft" not in written.lower()


def test_export_leaves_the_tuned_model_alone(tuned: PeftModel, logits: Logits, tmp_path: Path) -> None:
    before = logits(tuned)

    export_plain(tuned, None, tmp_path / "plain")

    assert torch.equal(logits(tuned), before)
    assert tuned.config.num_hidden_layers == 2


@every_family
def test_a_merged_model_generates_with_a_cache(build: Build, logits: Logits, train: Train, family: str) -> None:
    ids = torch.arange(4, 25).reshape(3, 7)
    plain = train(get_peft_model(build(family), ClmConfig(blocks=2))).merge_and_unload()

    with torch.no_grad():
        first = plain(input_ids=ids[:, :4], use_cache=True)
        second = plain(input_ids=ids[:, 4:], past_key_values=first.past_key_values)

    assert len(first.past_key_values.layers) == 4
    torch.testing.assert_close(second.logits, logits(plain)[:, 4:], atol=1e-5, rtol=1e-5)


def test_the_active_adapter_is_the_one_that_is_merged(tuned: PeftModel, logits: Logits, train: Train) -> None:
    tuned.add_adapter("second", ClmConfig(blocks=2))
    tuned.set_adapter("second")
    expected = logits(train(tuned))

    plain = tuned.merge_and_unload()

    assert torch.equal(logits(plain), expected)
    assert plain.config.num_hidden_layers == 4


@pytest.mark.parametrize("setting", [0.0, 0.5, torch.tensor([0.0, 1.0])])
def test_merging_at_another_setting_is_refused(tuned: PeftModel, setting: float | Tensor) -> None:
    with pytest.raises(ControlError, match="is the model at strength 1; set that first"), block_at(tuned, setting):
        tuned.merge_and_unload()


def test_merging_while_switched_off_is_refused(tuned: PeftModel) -> None:
    with pytest.raises(ControlError, match="is the model at strength 1"), tuned.disable_adapter():
        tuned.merge_and_unload()


def test_a_careful_merge_refuses_weights_that_are_no_numbers(tuned: PeftModel) -> None:
    layer = next(module for module in tuned.modules() if isinstance(module, ClmLayer))
    layer.clm_blocks["default"].blocks[0].mlp.down_proj.weight.data[0, 0] = torch.nan

    with pytest.raises(ModelError, match="the blocks of default hold weights that are not finite"):
        tuned.merge_and_unload(safe_merge=True)


def test_merging_twice_is_refused(tuned: PeftModel) -> None:
    tuned.merge_and_unload()

    with pytest.raises(ModelError, match="carries no CLM block any more"):
        tuned.merge_and_unload()
