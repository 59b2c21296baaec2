"""Where weights learned in place started: read again from the disk, kept from the second time on, refused where it is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignlab.config import parse
from alignlab.errors import ModelError
from alignlab.models.backbone import load
from alignlab.tuners.config import BlocksConfig, DeraConfig, FullConfig
from alignlab.tuners.weights import BackboneWeights, Start, WeightsTuner, blocks, dera, full
from tests.conftest import backbone
from tests.unit.tuners.families import outputs

CONFIG = FullConfig("full", 1e-3, 1e-3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint on the disk."""
    backbone("llama").model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model


def train(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def held(tuner: WeightsTuner) -> int:
    """Numbers that are held beside the weights."""
    return sum(origin.numel() for _, origin in tuner._start._kept or [])


def off(tuner: WeightsTuner) -> Tensor:
    with tuner.off():
        return outputs(tuner.module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_copy_the_start_is_the_checkpoint_bit_for_bit(folder: Path, dtype: torch.dtype) -> None:
    model = loaded(folder, dtype)
    before = outputs(model)
    tuner = full(CONFIG, model)
    train(model)
    after = outputs(model)

    assert held(tuner) == 0
    assert torch.equal(off(tuner), before)
    assert torch.equal(outputs(model), after)


def test_a_copy_is_kept_from_the_second_time_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = full(CONFIG, loaded(folder))
    read = []
    found = Start._pretrained
    monkeypatch.setattr(Start, "_pretrained", lambda self: read.append(1) or found(self))

    copies = [held(tuner)]
    for _ in range(3):
        off(tuner)
        copies.append(held(tuner))

    numbers = sum(parameter.numel() for parameter in tuner.parameters())
    assert copies == [0, 0, numbers, numbers]
    assert len(read) == 2


def test_at_strength_1_nothing_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = full(CONFIG, loaded(folder))
    monkeypatch.setattr(Start, "_read", lambda _self: pytest.fail("the disk was read"))

    with tuner.at(1.0):
        assert outputs(tuner.module).isfinite().all()


def test_half_way_lies_between_start_and_now(folder: Path) -> None:
    model = loaded(folder)
    tuner = full(CONFIG, model)
    was = copy.deepcopy(model.lm_head.weight)
    train(model)
    became = model.lm_head.weight.clone()

    with tuner.at(0.5):
        half = model.lm_head.weight.clone()

    torch.testing.assert_close(half, (was + became) / 2)


def test_behind_a_fine_tuned_base_the_start_is_that_base(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    tuner = full(CONFIG, model)
    with tuner.detached():
        train(model)
        BackboneWeights(model, tuner).save(tmp_path / "sft")
    base = outputs(model)
    between = held(tuner)
    tuner.set_base_model(tmp_path / "sft")
    train(model, seed=2)

    assert between > 0
    assert held(tuner) == 0
    assert torch.equal(off(tuner), base)


@pytest.mark.parametrize("gone", ["removed", "other"])
def test_a_checkpoint_that_is_gone_or_another_is_refused_in_a_sentence(folder: Path, gone: str) -> None:
    model = loaded(folder)
    tuner = full(CONFIG, model)
    other = loaded(folder)
    train(other)
    (folder / "model.safetensors").unlink()
    {"removed": lambda: None, "other": lambda: other.save_pretrained(folder)}[gone]()

    with pytest.raises(ModelError, match=r"checkpoint.*(could not be read again|does not hold the weights)"):
        off(tuner)


def test_of_some_weights_and_of_a_drawn_model_a_copy_is_kept(folder: Path) -> None:
    some = blocks(BlocksConfig("blocks", 1e-3, 1e-3, side="top", count=1), loaded(folder))
    drawn = full(CONFIG, backbone("llama").model)

    assert held(some) == sum(parameter.numel() for parameter in some.parameters())
    assert held(drawn) == sum(parameter.numel() for parameter in drawn.parameters())


def test_a_model_that_was_drawn_anew_does_not_start_from_its_folders_weights(composed: Callable[..., Any]) -> None:
    model = load(parse(composed("model=tiny", "model.path=tiny")).model, start="random", seed=3, device="cpu").model
    before = outputs(model)
    tuner = full(CONFIG, model)
    train(model)

    assert torch.equal(off(tuner), before)


def test_dera_finds_the_backbone_beside_an_aligned_checkpoint(folder: Path, tmp_path: Path) -> None:
    aligned = loaded(folder)
    train(aligned)
    aligned.save_pretrained(tmp_path / "aligned")
    model = loaded(folder)
    before = outputs(model)

    tuner = dera(DeraConfig("dera", 1e-3, 1e-3, aligned=str(tmp_path / "aligned")), model)

    assert torch.equal(outputs(model), outputs(aligned))
    assert torch.equal(off(tuner), before)
