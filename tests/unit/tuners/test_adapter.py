"""Adapters: where they stand, what they compute, and that they have no plain form."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError, ModelError
from alignlab.models.export import export_plain
from alignlab.tuners import adapter
from alignlab.tuners.adapter import AdapterConfig, AdapterLayer, AdapterTuner
from alignlab.tuners.config import AdapterTunerConfig

Build = Callable[[str], PreTrainedModel]


def config(**changes: Any) -> AdapterTunerConfig:
    values = {"bottleneck": 2, "place": "both", "norms": True, "drop": 0, "targets": None}
    return AdapterTunerConfig(name="adapter", likelihood_rate=1e-3, preference_rate=1e-3, **{**values, **changes})


def sites(tuner: AdapterTuner) -> list[str]:
    named = tuner.module.get_base_model().named_modules()
    return [name for name, module in named if isinstance(module, AdapterLayer)]


def test_what_is_added_is_the_bottleneck_of_the_output_times_the_strength() -> None:
    layer = AdapterLayer(nn.Linear(2, 2, bias=False), "default", AdapterConfig(bottleneck=1))
    block = layer.adapter_blocks["default"]
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.eye(2))
        block.down.weight.copy_(torch.tensor([[1.0, 1.0]]))
        block.up.weight.copy_(torch.tensor([[2.0], [-1.0]]))
    layer.strength = 0.5

    found = layer(torch.tensor([[3.0, -2.0]]))

    gelu = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # of 3 - 2 = 1
    torch.testing.assert_close(found, torch.tensor([[3 + 0.5 * 2 * gelu, -2 - 0.5 * gelu]]))


@pytest.mark.parametrize(
    ("family", "places"),
    [
        ("roberta", {"attention.output.dense", "output.dense"}),
        ("gpt2", {"attn.c_proj", "mlp.c_proj"}),
        ("t5", {"SelfAttention.o", "DenseReluDense.wo"}),
        ("llama", {"self_attn.o_proj", "mlp.down_proj"}),
    ],
)
def test_adapters_stand_behind_attention_and_feed_forward(build: Build, family: str, places: set[str]) -> None:
    tuner = adapter.build(config(), build(family))

    found = sites(tuner)

    assert {next(place for place in sorted(places, key=len, reverse=True) if name.endswith(place)) for name in found} == places
    assert tuner.beside.names
    assert all("embeddings" not in name for name in tuner.beside.names)


def test_the_lowest_blocks_of_each_stack_can_go_without(build: Build) -> None:
    whole, dropped = (adapter.build(config(drop=drop), build("t5")) for drop in (0, 1))

    left = sites(dropped)

    assert left == [name for name in sites(whole) if ".block.0." not in f".{name}"]
    assert {name.partition(".")[0] for name in left} == {"encoder", "decoder"}


def test_a_model_without_known_places_and_one_without_a_block_left_are_refused(build: Build) -> None:
    model = build("gpt2")
    with pytest.raises(ConfigError, match=r"tuner\.drop=9 leaves no block of this model an adapter"):
        adapter.build(config(drop=9), model)
    model.config.model_type = "unheard"
    with pytest.raises(ModelError, match=r"adapters have no known place in models of type 'unheard'.*give tuner\.targets"):
        adapter.build(config(), model)


def test_an_adapter_has_no_plain_form(build: Build, tmp_path: Path) -> None:
    tuner = adapter.build(config(norms=False), build("llama"))

    with pytest.raises(ModelError, match="does not merge into its backbone"):
        export_plain(tuner.module, None, tmp_path / "plain")
