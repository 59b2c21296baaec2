"""What a run stands on: a base that it fine-tuned first, or an aligned checkpoint that it was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import alignlab
from alignlab.config import parse
from alignlab.errors import ConfigError
from alignlab.models.sampling import Sampling
from run import run
from tests.bits import assert_same_bits
from tests.contracts.test_methods import CONF, SMALL, WORLD, composed, history


@pytest.mark.parametrize("tuner", ["clm", "lora", "full"])
def test_a_fine_tuned_base_is_the_reference_and_comes_back_with_the_run(tuner: str, tmp_path: Path) -> None:
    words = ("method.sft_first=true", "method.sft.steps=2", "method.sft.batch=8", "method.likelihood=0", f"tuner={tuner}")
    run(composed(tmp_path, "clm", *words, "evaluation=off"))
    sampling = Sampling(max_new_tokens=8, temperature=0.0, top_p=1.0)

    policy = alignlab.load(tmp_path / "run")

    first = next(line for line in history(tmp_path) if "prefer/loss" in line)
    base = load_file(tmp_path / "run" / "stages" / "sft" / "result" / "model.safetensors")
    with policy.off(), policy.tuner.at(0.0):
        held = {name.replace(".base_layer", ""): tensor for name, tensor in policy.model.named_parameters()}
        assert_same_bits({name: held[name] for name in base}, base)
    assert first["prefer/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert policy.respond(["Tell a story."], strength=1.0, sampling=sampling, seed=0)


def test_an_adapter_names_the_fine_tuned_base_it_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(composed(tmp_path, "clm", "method.sft_first=true", "method.sft.steps=2", "method.sft.batch=8", "evaluation=off"))
    stages = tmp_path / "run" / "stages"

    monkeypatch.chdir(stages / "prefer" / "result")  # the base is named from where the adapter is

    alone = AutoPeftModelForCausalLM.from_pretrained(".")

    ids = torch.arange(3, 19).reshape(2, 8)
    assert torch.equal(alone(ids).logits, alignlab.load(tmp_path / "run").model(ids).logits)


def test_a_run_that_trains_nothing_is_evaluated(tmp_path: Path) -> None:
    words = [*SMALL, *WORLD, "method=evaluate", "tuner=lora", f"paths.runs={tmp_path}", f"folder={tmp_path}/run"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(compose("run", words))

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["results"]


def test_two_checkpoints_are_mixed_without_training(tmp_path: Path) -> None:
    run(composed(tmp_path, "clm", "method.sft_first=true", "method.sft.steps=2", "method.sft.batch=8", "evaluation=off"))
    aligned = tmp_path / "run" / "stages" / "sft" / "result"
    words = [*SMALL, *WORLD, "method=evaluate", f"tuner.aligned={aligned}", f"paths.runs={tmp_path}", f"folder={tmp_path}/mix"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(compose("run", words))

    mixed = alignlab.load(tmp_path / "mix")

    fine_tuned = AutoModelForCausalLM.from_pretrained(aligned)
    ids = torch.arange(3, 19).reshape(2, 8)
    assert torch.equal(mixed.model(ids).logits, fine_tuned(ids).logits)


def test_another_aligned_checkpoint_is_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "aligned"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("run", ["method=evaluate", f"tuner.aligned={folder}"])
    before = parse(raw).fingerprint

    (folder / "model.safetensors").write_bytes(b"another")

    assert parse(raw).fingerprint != before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method=evaluate"], r"tuner=dera needs training.*give tuner\.aligned=FOLDER"),
        (["method=dpo", "tuner=dera", "tuner.aligned=ALIGNED"], "tuner=dera needs no training.*take method=evaluate"),
        (["method=pretrain", "tuner=dera", "tuner.aligned=ALIGNED"], "tuner=dera needs no training"),
    ],
)
def test_two_models_are_trained_or_given(words: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("run", [word.replace("ALIGNED", str(tmp_path)) for word in words])

    with pytest.raises(ConfigError, match=sentence):
        parse(raw)
