"""LoReFT: its edit by hand, where it sits, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alignlab.errors import ConfigError
from alignlab.tuners import loreft
from alignlab.tuners.config import LoreftTunerConfig
from alignlab.tuners.loreft import LoreftEdit
from tests.unit.conftest import checked

Build = Callable[[str], PreTrainedModel]
IDS_RT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def config(**changes: Any) -> LoreftTunerConfig:
    given = {"rank": 2, "layers": None, **changes}
    return checked("tuner", LoreftTunerConfig(name="loreft", likelihood_rate=1e-3, preference_rate=1e-3, **given))


def test_the_edit_is_equation_2_of_the_paper() -> None:
    edit = LoreftEdit(5, 2)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    h_BD = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))

    added_BD = edit(h_BD)

    rows_KD = edit.rows_KD()
    weight_KD = edit.source + rows_KD  # A = W - R
    expected_BD = (h_BD @ weight_KD.T + edit.bias - h_BD @ rows_KD.T) @ rows_KD
    torch.testing.assert_close(added_BD, expected_BD, rtol=0, atol=1e-6)
    torch.testing.assert_close(rows_KD @ rows_KD.T, torch.eye(2), rtol=0, atol=1e-6)
    spanned = torch.linalg.lstsq(rows_KD.T, edit.basis.T).solution
    torch.testing.assert_close(rows_KD.T @ spanned, edit.basis.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "layers", "blocks"),
    [("llama", None, 2), ("gpt2", [2], 1), ("bert", None, 2), ("t5", None, 4)],
)
def test_it_sits_behind_whole_blocks_of_every_stack(build: Build, family: str, layers: list[int] | None, blocks: int) -> None:
    model = build(family)
    width = model.config.hidden_size

    tuner = loreft.build(config(layers=layers), model)

    assert len(tuner.layers) == blocks
    assert sum(parameter.numel() for parameter in tuner.parameters()) == blocks * (2 * 2 * width + 2)


def test_the_last_block_carries_the_edit_into_the_logits(build: Build) -> None:
    model = build("llama")
    with torch.no_grad():
        tuner = loreft.build(config(layers=[len(model.model.layers)]), model)
        (layer,) = tuner.layers
        edit = layer.loreft_edits["default"]
        edit.bias.fill_(0.7)
        found = model(IDS_RT).logits
        before_RTD: list[torch.Tensor] = []
        hook = layer.base_layer.register_forward_hook(lambda _module, _args, output: before_RTD.append(output))
        model(IDS_RT)
        hook.remove()

        shifted_RTD = before_RTD[0] + torch.tensor([0.7, 0.7]) @ edit.rows_KD()
        expected = model.lm_head(model.model.norm(shifted_RTD))

    assert not tuner.edits_head
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_saved_is_loaded_by_peft(build: Build, tmp_path: Path) -> None:
    tuner = loreft.build(config(), build("llama"))
    with torch.no_grad():
        for parameter in tuner.parameters():
            parameter.add_(0.1)
        expected = tuner.module(IDS_RT).logits
    tuner.save(tmp_path)

    with torch.no_grad():
        found = PeftModel.from_pretrained(build("llama"), tmp_path)(IDS_RT).logits

    assert torch.equal(found, expected)


def test_a_layer_that_the_model_lacks_is_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"tuner\.layers names layer 9, and the model has 2; give numbers from 1 on"):
        loreft.build(config(layers=[1, 9]), build("llama"))


@pytest.mark.parametrize("layers", [[], [1, 1]])
def test_layers_are_named_once_or_not_at_all(layers: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"tuner\.layers=.* must name at least one layer, each once"):
        config(layers=layers)
