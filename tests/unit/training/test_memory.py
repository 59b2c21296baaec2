"""What a plan says of the memory that training takes, counted by hand from published sizes."""

from __future__ import annotations

import pytest
import torch

from alignlab import memory
from alignlab.memory import LARGE, TrainingNeed, misfit, need_of_config
from alignlab.models.answers import GIB
from tests.unit.sweeps.configs import config_of

LLAMA = 8_030_261_248
"""Parameters of Llama-3.1-8B, as its card has them."""
FULL = ("model=llama31_8b", "method=sft", "tuner=full", "model.dtype=float32")
SLURM = ("launch=slurm", *FULL)


def test_training_every_weight_in_float32_takes_sixteen_bytes_for_each_without_activations() -> None:
    need = need_of_config(config_of(*FULL))

    assert need == TrainingNeed(LLAMA, 0, 0, 4 * LLAMA, 4 * LLAMA, 8 * LLAMA, 0)


@pytest.mark.parametrize(
    ("model", "count"),
    [("llama3_8b_instruct", LLAMA), ("llama32_3b_instruct", 3_212_749_824), ("qwen2_15b_instruct", 1_543_714_304)],
)
def test_the_instructed_models_have_as_many_parameters_as_their_cards_say(model: str, count: int) -> None:
    need = need_of_config(config_of(f"model={model}", "method=sft", "tuner=full", "model.dtype=float32"))

    assert need
    assert need.weights == 4 * count


def test_a_lora_on_bfloat16_keeps_its_own_numbers_in_float32() -> None:
    need = need_of_config(config_of("model=llama31_8b", "method=sft", "tuner=lora", "tuner.rank=8", "tuner.targets=[q_proj]"))

    added = 32 * 8 * (4096 + 4096)  # two matrices of rank 8 beside each of 32 query projections
    assert need == TrainingNeed(added, 0, 0, 2 * LLAMA + 4 * added, 4 * added, 8 * added, 0)


@pytest.mark.parametrize("words", [("method=meet", "control=soft_prompt"), ("method=evaluate", "tuner=lora")])
def test_without_a_stage_or_without_its_tokenizer_nothing_is_estimated(words: tuple[str, ...]) -> None:
    assert need_of_config(config_of("model=llama31_8b", "model.dtype=float32", *words)) is None


def test_what_does_not_fit_a_large_gpu_is_told_with_what_to_do() -> None:
    config = config_of(*SLURM)
    need = need_of_config(config)
    assert need

    assert misfit(need, config, 4) == (
        "does not fit a GPU: 120 GiB on each, estimated without activations (weights 29.9 GiB + gradients 29.9 GiB + optimiser"
        " 59.8 GiB), and a large one has 80 GiB; take trainer=fsdp (it is spread over the GPUs of a job) or tuner=lora (it"
        " trains less)"
    )
    assert misfit(need, config_of(*SLURM, "trainer=fsdp"), 2) == ""
    assert misfit(need, config_of(*SLURM, "trainer=fsdp"), 1).endswith(
        "take more GPUs (launch.gpus=N) or tuner=lora (it trains less)"
    )


def test_a_smaller_type_is_named_where_the_weights_are_frozen() -> None:
    need = TrainingNeed(9, 2, 64, LARGE, 36, 72, 100)

    said = misfit(need, config_of("launch=slurm", "tuner=lora", "method=sft"), 1)

    assert said.startswith("does not fit a GPU: 80 GiB on each, estimated (weights 80 GiB + ")
    assert said.endswith("take trainer=fsdp (it is spread over the GPUs of a job) or model.dtype=bfloat16")


def test_a_gpu_that_is_visible_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    need, seen = TrainingNeed(9, 2, 64, 24 * GIB, 36, 72, 100), type("Properties", (), {"total_memory": 24 * GIB})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: seen)

    assert "and the one here has 24 GiB; take" in misfit(need, config_of("trainer.device=cuda"))


def test_a_machine_without_a_gpu_says_what_it_has_and_what_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_here", lambda: 16 * GIB)
    cpu, long_rows = config_of("trainer.device=cpu"), TrainingNeed(9, 64, 14476, GIB, 36, 72, 20 * GIB)

    said = misfit(long_rows, cpu)

    assert said == (
        "may not fit this machine: 21 GiB, estimated, and it has 16 GiB; take trainer.micro_batch=N below 64 (fewer at once)"
        " or data.max_tokens=N with data.too_long=drop (the longest row decides) or a smaller model or a GPU"
    )
    assert misfit(TrainingNeed(9, 2, 64, 17 * GIB, 36, 72, 100), cpu).endswith("it has 16 GiB; take a smaller model or a GPU")
    assert misfit(TrainingNeed(9, 2, 64, 15 * GIB, 36, 72, 100), cpu) == ""
    assert misfit(long_rows, config_of("launch=slurm", "trainer.device=cpu"), 1) == ""


def test_fewer_or_shorter_texts_are_named_first_where_they_take_most_of_a_gpu() -> None:
    need = TrainingNeed(9, 64, 14476, GIB, 36, 72, 2 * LARGE)

    assert "; take trainer.micro_batch=N below 64 (fewer at once) or data.max_tokens=N" in misfit(need, config_of(*SLURM), 1)
