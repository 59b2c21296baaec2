"""LoRA in the blocks that some layers depend on: where it stands, and how many numbers that is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alignlab.errors import ConfigError
from alignlab.tuners.config import LayersConfig, LowerLoraConfig
from alignlab.tuners.lora import LoraTuner, build
from tests.conftest import backbone
from tests.unit.conftest import checked

CONFIG = LowerLoraConfig("lora_lower", 3e-4, 5e-6, 8, 16.0, 0.05, None, below=LayersConfig(None, [0.31, 0.56]), beyond=0)
BLOCKS = {"llama": ".layers.", "gpt2": ".h."}


def llama_2_7b() -> PreTrainedModel:
    """Without weights; LlamaConfig's defaults are its sizes: 32 blocks of width 4096."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False)).requires_grad_(False)


def count(tuner: LoraTuner) -> int:
    return sum(parameter.numel() for parameter in tuner.parameters())


def blocks_of(kind: str, highest: int, beyond: int) -> set[int]:
    """The blocks, counted from 0, that hold a LoRA."""
    config = replace(CONFIG, below=LayersConfig([highest], [0.31, 0.56]), beyond=beyond)
    tuner = build(config, backbone(kind).model)
    names = [name for name, _ in tuner.module.named_parameters() if ".lora_" in name]
    return {int(name.partition(BLOCKS[kind])[2].partition(".")[0]) for name in names}


@pytest.mark.parametrize(
    ("depth", "beyond", "learned"),
    [
        # 8 x (4096 + 4096) x 2 maps = 131,072 per block, in 18 or 20 blocks, or one more.
        (0.56, 1, 2_490_368),
        (0.625, 1, 2_752_512),
        (0.56, 0, 2_359_296),
        (0.625, 0, 2_621_440),
    ],
    ids=["scit-code", "dual-code", "scit", "dual"],
)
def test_the_count_on_llama_2_7b(depth: float, beyond: int, learned: int) -> None:
    config = replace(CONFIG, below=LayersConfig(None, [0.31, depth]), beyond=beyond)

    assert count(build(config, llama_2_7b())) == learned


@pytest.mark.parametrize(
    ("highest", "beyond", "blocks"), [(1, 0, {0}), (2, 0, {0, 1}), (1, 1, {0, 1}), (2, 1, {0, 1, 2}), (2, 9, {0, 1, 2})]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_stands_in_the_blocks_below_the_highest_layer_and_in_so_many_beyond(
    kind: str, highest: int, beyond: int, blocks: set[int]
) -> None:
    assert blocks_of(kind, highest, beyond) == blocks


@pytest.mark.parametrize(("kind", "maps"), [("llama", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"})])
def test_it_stands_on_queries_and_values(kind: str, maps: set[str]) -> None:
    tuner = build(replace(CONFIG, below=LayersConfig([2], [0.31, 0.56])), backbone(kind).model)

    names = [name for name, _ in tuner.module.named_parameters() if ".lora_" in name]
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in names} == maps


def test_named_maps_are_taken_in_the_same_blocks() -> None:
    config = replace(CONFIG, below=LayersConfig([1], [0.31, 0.56]), targets=["mlp.down_proj"])

    tuner = build(config, backbone("llama").model)

    assert count(tuner) == 8 * (64 + 32)


@pytest.mark.parametrize("targets", [[], r".*\.(self_attn|mlp)\.\w+_proj"])
def test_every_linear_map_or_a_pattern_is_taken_in_the_same_blocks(targets: list[str] | str) -> None:
    config = replace(CONFIG, below=LayersConfig([1], [0.31, 0.56]), targets=targets)

    tuner = build(config, backbone("llama").model)

    # q, k, v, o: 32, 16, 16 and 32 wide from 32; gate and up 32 to 64; down 64 to 32; in one block.
    assert count(tuner) == 8 * (64 + 48 + 48 + 64 + 96 + 96 + 96)


def test_layers_outside_the_backbone_are_refused() -> None:
    model = backbone("llama").model

    with pytest.raises(ConfigError, match=r"layer 3 of layers \[3\] does not fit 3 blocks; choose 1 to 2\."):
        build(replace(CONFIG, below=LayersConfig([3], [0.31, 0.56])), model)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"beyond": -1}, r"tuner\.beyond=-1 must be at least 0"),
        ({"targets": [3]}, r"tuner\.targets=\[3\] must be a list of names, one pattern that matches whole names, or null\."),
        ({"targets": "(q_proj"}, r"tuner\.targets=\(q_proj is no pattern \(missing \), .*\); give one, or a list of names\."),
        ({"below": LayersConfig([], [0.31, 0.56])}, r"tuner\.below\.numbers=\[\] must name at least one layer"),
        ({"rank": 0}, r"tuner\.rank=0 must be at least 1"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked("tuner", replace(CONFIG, **changed))  # type: ignore[arg-type]
