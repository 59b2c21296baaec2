"""Where RED sits: the table of families, its traps, the choice of blocks, and the refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ModelError
from alignlab.tuners.red import RedConfig, red_targets

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]


def test_bare_suffix_of_gpt2_would_match_twice(build: Build) -> None:
    by_suffix = get_peft_model(build("gpt2"), RedConfig(target_modules=["c_proj"])).targeted_module_names

    by_table = get_peft_model(build("gpt2"), RedConfig()).targeted_module_names

    assert by_table == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    assert len(by_suffix) == 4


def test_backbone_without_a_head_is_matched_too(build: Build) -> None:
    bodies = [build("llama").model, build("gpt2").transformer, build("roberta").roberta, build("t5").encoder]

    counts = [len(get_peft_model(body, RedConfig()).targeted_module_names) for body in bodies]

    assert counts == [2, 2, 2, 2]


@pytest.mark.parametrize("layers", [1, [1]])
def test_chosen_blocks_work_with_the_table(build: Build, layers: int | list[int]) -> None:
    tuned = get_peft_model(build("llama"), RedConfig(layers_to_transform=layers))

    assert tuned.targeted_module_names == ["model.layers.1.mlp.down_proj"]


def test_chosen_blocks_of_t5_are_blocks_and_not_sub_layers(build: Build) -> None:
    tuned = get_peft_model(build("t5"), RedConfig(layers_to_transform=[0], layers_pattern="block"))

    assert tuned.targeted_module_names == [
        "encoder.block.0.layer.1.DenseReluDense.wo",
        "decoder.block.0.layer.2.DenseReluDense.wo",
    ]


def test_excluded_modules_are_left_alone(build: Build) -> None:
    tuned = get_peft_model(build("llama"), RedConfig(exclude_modules=["layers.0.mlp.down_proj"]))

    assert tuned.targeted_module_names == ["model.layers.1.mlp.down_proj"]


def test_unknown_model_type_says_how_to_name_the_layers() -> None:
    with pytest.raises(ModelError, match=r"'mamba'.*give tuner\.targets, in peft target_modules"):
        red_targets("mamba")


def test_target_that_matches_nothing_lists_near_names(build: Build) -> None:
    with pytest.raises(ModelError, match=r"nearest here: mlp\.down_proj"):
        get_peft_model(build("llama"), RedConfig(target_modules=["mlp.dwon_proj"]))


def test_layer_that_is_not_linear_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match=r"transformer\.wte is a Embedding"):
        get_peft_model(build("gpt2"), RedConfig(target_modules=["wte"]))
