"""The setting of an added block: one for all rows or one per row, in between, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from alignlab.errors import ControlError
from alignlab.tuners import TUNERS
from alignlab.tuners.clm import ClmConfig, ClmLayer, block_at

Build = Callable[[str], PreTrainedModel]
Logits = Callable[..., Tensor]
Train = Callable[[nn.Module], nn.Module]

IDS = torch.arange(4, 25).reshape(3, 7)

every_family = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen2_sliding", "qwen3", "gpt2"])


@pytest.fixture
def tuned(build: Build, train: Train) -> PeftModel:
    """A Llama of two blocks with an added one that looks trained."""
    return train(get_peft_model(build("llama"), ClmConfig()))


def enters_the_first_block(tuned: PeftModel, setting: float | Tensor) -> Tensor:
    """The hidden states that the backbone's own first block is given."""
    seen: list[Tensor] = []
    layer = next(module for module in tuned.modules() if isinstance(module, ClmLayer))
    hook = layer.base_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), block_at(tuned, setting):
        tuned(input_ids=IDS)
    hook.remove()
    return seen[0]


def rows_through_the_block(tuned: PeftModel, setting: float | Tensor) -> list[int]:
    """How many rows each run of the added block holds."""
    seen: list[int] = []
    layer = next(module for module in tuned.modules() if isinstance(module, ClmLayer))
    block = layer.clm_blocks["default"].blocks[0]
    hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad(), block_at(tuned, setting):
        tuned(input_ids=IDS)
    hook.remove()
    return seen


@pytest.mark.parametrize("settings", [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.5, -1.0], [0.0, 0.0, 2.0]])
@every_family
def test_one_setting_per_row_equals_separate_passes(
    build: Build, logits: Logits, train: Train, family: str, settings: list[float]
) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig()))

    with block_at(tuned, torch.tensor(settings)):
        together = logits(tuned)

    for row, setting in enumerate(settings):
        with block_at(tuned, setting):
            torch.testing.assert_close(together[row], logits(tuned)[row], atol=1e-5, rtol=1e-5)


def test_a_setting_in_between_mixes_what_enters_the_first_block(build: Build, train: Train) -> None:
    tuned = train(get_peft_model(build("llama"), ClmConfig()))
    without, through = enters_the_first_block(tuned, 0.0), enters_the_first_block(tuned, 1.0)

    mixed = enters_the_first_block(tuned, 1.5)

    torch.testing.assert_close(mixed, 1.5 * through - 0.5 * without, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        (1.0, [3]),
        (0.0, []),
        (torch.tensor([0.0, 0.0, 0.0]), []),
        (torch.tensor([1.0, 1.0, 1.0]), [3]),
        (torch.tensor([0.0, 1.0, 1.0]), [2]),
        (torch.tensor([1.0, 0.0, 1.0]), [2]),
        (torch.tensor([0.0, 0.5, 0.0]), [1]),
    ],
)
def test_only_rows_that_are_on_go_through_the_block(tuned: PeftModel, setting: float | Tensor, rows: list[int]) -> None:
    assert rows_through_the_block(tuned, setting) == rows


def test_a_row_that_is_off_enters_the_first_block_untouched(tuned: PeftModel) -> None:
    without, through = enters_the_first_block(tuned, 0.0), enters_the_first_block(tuned, 1.0)

    mixed = enters_the_first_block(tuned, torch.tensor([1.0, 0.0, 1.0]))

    assert torch.equal(mixed[1], without[1])
    assert torch.equal(mixed[[0, 2]], through[[0, 2]])


def test_rows_at_different_settings_of_padded_texts_equal_separate_passes(tuned: PeftModel) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]])
    settings = torch.tensor([1.0, 0.0, 1.0])

    with torch.no_grad(), block_at(tuned, settings):
        together = tuned(input_ids=IDS, attention_mask=mask).logits[:, -1]

    for row, setting in enumerate(settings.tolist()):
        with torch.no_grad(), block_at(tuned, setting):
            alone = tuned(input_ids=IDS[row : row + 1, mask[row] == 1]).logits[0, -1]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "setting",
    [math.nan, math.inf, torch.tensor([0.0, math.nan, 1.0]), torch.tensor([0.0, math.inf, 1.0]), torch.ones(3, 1)],
    ids=["nan", "inf", "nan in a row", "inf in a row", "two dimensions"],
)
def test_a_setting_that_is_no_finite_number_per_row_is_refused(tuned: PeftModel, setting: float | Tensor) -> None:
    with pytest.raises(ControlError, match="finite"), block_at(tuned, setting):
        pass


@pytest.mark.parametrize("count", [2, 4, 6])
def test_another_number_of_settings_than_rows_is_refused(tuned: PeftModel, count: int) -> None:
    settings = torch.linspace(0, 1, count)

    with pytest.raises(ControlError, match=f"{count} settings were given for 3 rows"), block_at(tuned, settings):
        tuned(input_ids=IDS)


def test_a_model_without_a_block_has_nothing_to_set(build: Build) -> None:
    with pytest.raises(ControlError, match="LlamaForCausalLM carries no CLM block"), block_at(build("llama"), 0.5):
        pass


def test_leaving_a_setting_puts_the_one_outside_back(tuned: PeftModel, logits: Logits) -> None:
    with block_at(tuned, 0.5):
        half = logits(tuned)
        with pytest.raises(ZeroDivisionError), block_at(tuned, torch.tensor([0.0, 1.0, 2.0])):
            _ = 1 / 0
        again = logits(tuned)

    assert torch.equal(again, half)
    assert not torch.equal(logits(tuned), half)


@every_family
def test_a_cache_gets_a_layer_for_the_added_block(build: Build, train: Train, family: str) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig()))

    cache = tuned(input_ids=IDS, use_cache=True).past_key_values

    assert len(cache.layers) == 3
    assert [layer.get_seq_length() for layer in cache.layers] == [7, 7, 7]


@pytest.mark.parametrize("made", [lambda _: None, lambda config: DynamicCache(config=config), lambda _: DynamicCache()])
@every_family
def test_with_a_cache_the_logits_are_those_without(
    build: Build, logits: Logits, train: Train, family: str, made: Callable[..., Any]
) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig(blocks=2)))
    whole = logits(tuned)

    with torch.no_grad():
        first = tuned(input_ids=IDS[:, :4], past_key_values=made(tuned.config), use_cache=True)
        second = tuned(input_ids=IDS[:, 4:], past_key_values=first.past_key_values, use_cache=True)

    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=1e-5, rtol=1e-5)


@every_family
def test_a_cache_begun_without_the_block_is_refused_with_it(build: Build, family: str) -> None:
    tuned = get_peft_model(build(family), ClmConfig())
    with block_at(tuned, 0.0):
        cache = tuned(input_ids=IDS, use_cache=True).past_key_values

    with pytest.raises(ControlError, match="this cache holds tokens read without the CLM block"):
        tuned(input_ids=IDS, past_key_values=cache, use_cache=True)


@every_family
def test_a_cache_that_went_on_without_the_block_for_a_token_is_refused_with_it(build: Build, family: str) -> None:
    tuned = get_peft_model(build(family), ClmConfig())
    cache = tuned(input_ids=IDS[:, :4], use_cache=True).past_key_values
    with block_at(tuned, 0.0):
        tuned(input_ids=IDS[:, 4:5], past_key_values=cache)

    with pytest.raises(ControlError, match="this cache holds tokens read without the CLM block"):
        tuned(input_ids=IDS[:, 5:], past_key_values=cache)


@pytest.mark.parametrize(
    ("strength", "warned"), [(-0.5, 0), (2.0, 0), (2.5, 1), (-0.6, 1), (torch.tensor([0.0, 3.0]), 1), (torch.ones(2), 0)]
)
def test_strengths_beyond_the_usual_are_warned_about_once(
    build: Build, caplog: pytest.LogCaptureFixture, strength: float | Tensor, warned: int
) -> None:
    config = TUNERS["clm"].config("clm", 1e-2, 1e-2, blocks=1, start="identity", merge="logits", targets=None, writes=None)
    tuner = TUNERS["clm"].build(config, build("llama"))

    tuner.passes(strength)
    tuner.passes(strength)

    assert ["lies outside -0.5 to 2, where texts often break" in text for text in caplog.messages] == [True] * warned
