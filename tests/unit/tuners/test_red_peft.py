"""RED through peft and transformers: attach, train, save, load, several adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from alignlab.errors import ModelError
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.peft_tuner import peft_type, register
from alignlab.tuners.red import RedConfig, RedLayer, RedModel
from alignlab.tuners.red.tuner import RedTuner

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]

FAMILIES = ("llama", "gpt2", "roberta", "t5")


def _save(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def saved(build: Build, train: Train, tmp_path: Path) -> Path:
    """The folder of a Llama's trained edit."""
    return _save(train(get_peft_model(build("llama"), RedConfig())), tmp_path / "adapter")


@pytest.mark.parametrize("family", FAMILIES)
def test_reloaded_adapter_answers_bit_for_bit(build: Build, logits: Logits, train: Train, tmp_path: Path, family: str) -> None:
    tuned = train(get_peft_model(build(family), RedConfig()))
    _save(tuned, tmp_path)

    reloaded = PeftModel.from_pretrained(build(family), tmp_path)

    assert torch.equal(logits(reloaded), logits(tuned))


def test_file_holds_the_vectors_and_nothing_else(saved: Path) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")

    assert {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()} == {
        f"base_model.model.model.layers.{block}.mlp.down_proj.red_edit.{vector}": ((32,), torch.float32)
        for block in (0, 1)
        for vector in ("scale", "shift")
    }


def test_file_is_as_small_as_its_numbers(saved: Path) -> None:
    size = (saved / "adapter_model.safetensors").stat().st_size

    header = int.from_bytes((saved / "adapter_model.safetensors").read_bytes()[:8], "little")
    assert size == 8 + header + 4 * 128
    assert header < 1024


def test_config_file_holds_what_rebuilds_the_adapter(saved: Path) -> None:
    written = json.loads((saved / "adapter_config.json").read_text())

    assert written["peft_type"] == "RED"
    assert written["target_modules"] == r"(.*\.)?layers\.\d+\.mlp\.down_proj"
    assert written["edit"] == "both"
    assert "bias" not in written


def test_config_is_read_back_as_a_red_config(saved: Path) -> None:
    config = PeftConfig.from_pretrained(saved)

    assert isinstance(config, RedConfig)
    assert config.peft_type is PeftType.RED


def test_new_head_is_trained_and_saved_beside_the_edit(build: Build, logits: Logits, tmp_path: Path) -> None:
    tuned = get_peft_model(build("roberta"), RedConfig(modules_to_save=["classifier"], task_type="SEQ_CLS"))
    for _, parameter in [pair for pair in tuned.named_parameters() if pair[1].requires_grad]:
        parameter.data += 0.1
    _save(tuned, tmp_path)

    reloaded = PeftModel.from_pretrained(build("roberta"), tmp_path)

    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert sorted(key for key in keys if "red_edit" not in key) == [
        "base_model.model.classifier.dense.bias",
        "base_model.model.classifier.dense.weight",
        "base_model.model.classifier.out_proj.bias",
        "base_model.model.classifier.out_proj.weight",
    ]
    assert torch.equal(logits(reloaded), logits(tuned))


def test_auto_peft_loads_backbone_and_edit(build: Build, logits: Logits, train: Train, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    base = type(build("llama")).from_pretrained(tmp_path / "base")
    tuned = train(get_peft_model(base, RedConfig(task_type="CAUSAL_LM")))
    _save(tuned, tmp_path / "adapter")

    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")

    assert torch.equal(logits(reloaded), logits(tuned))


def test_transformers_own_loader_takes_the_folder(build: Build, logits: Logits, train: Train, saved: Path) -> None:
    tuned = train(get_peft_model(build("llama"), RedConfig()))
    model = build("llama")

    model.load_adapter(str(saved))

    assert torch.equal(logits(model), logits(tuned))


@pytest.mark.parametrize("low_memory", [False, True])
def test_loaded_vectors_are_float32_even_from_a_bfloat16_file(build: Build, saved: Path, low_memory: bool) -> None:
    file = saved / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)

    model = PeftModel.from_pretrained(
        build("llama").bfloat16(), saved, autocast_adapter_dtype=False, low_cpu_mem_usage=low_memory
    )

    assert {value.dtype for name, value in model.named_parameters() if "red_edit" in name} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_backward_reaches_exactly_the_edit(build: Build, family: str) -> None:
    tuned = get_peft_model(build(family), RedConfig())
    ids = torch.arange(4, 18).reshape(2, 7)
    labels = {"roberta": torch.tensor([0, 1])}.get(family, ids)

    tuned(input_ids=ids, labels=labels).loss.backward()

    reached = {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    assert reached
    assert reached == {name for name, _ in tuned.named_parameters() if ".red_edit." in name}
    assert all(parameter.requires_grad == (name in reached) for name, parameter in tuned.named_parameters())
    assert all(tuned.get_parameter(name).grad.abs().max() > 0 for name in reached)


def test_weight_decay_reaches_scale_and_shift_alike(build: Build) -> None:
    tuned = get_peft_model(build("llama"), RedConfig())

    decayed = set(Trainer.get_decay_parameter_names(None, tuned))

    assert {name for name, parameter in tuned.named_parameters() if parameter.requires_grad} <= decayed


def test_second_adapter_starts_from_the_backbone(build: Build, logits: Logits, train: Train) -> None:
    before = logits(build("llama"))
    tuned = train(get_peft_model(build("llama"), RedConfig()))
    trained = logits(tuned)

    tuned.add_adapter("second", RedConfig(layers_to_transform=[0]))
    tuned.set_adapter("second")
    fresh = logits(tuned)
    tuned.set_adapter("default")

    assert torch.equal(fresh, before)
    assert torch.equal(logits(tuned), trained)


def test_names_have_something_after_the_adapter(build: Build) -> None:
    # TRL copies an adapter by looking for `.<adapter>.` in the names of its parameters.
    tuned = get_peft_model(build("llama"), RedConfig())

    learned = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]

    assert learned
    assert all(".red_edit.default." in name for name in learned)


def test_unload_gives_the_backbone_back(build: Build, logits: Logits, train: Train) -> None:
    tuned = train(get_peft_model(build("gpt2"), RedConfig()))

    plain = tuned.unload()

    assert torch.equal(logits(plain), logits(build("gpt2")))
    assert not any(isinstance(module, RedLayer) for module in plain.modules())


def test_registering_twice_changes_nothing() -> None:
    before = list(PeftType)

    register("red", RedConfig, RedModel, RedTuner)

    assert list(PeftType) == before


def test_another_tuner_under_our_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"already runs alignlab\.tuners\.red\.tuner\.RedModel under the name 'red'"):
        register("red", LoraConfig, LoraModel, LoraTuner)


def test_name_that_peft_has_itself_is_refused() -> None:
    with pytest.raises(ModelError, match="this peft has a method LORA of its own"):
        peft_type("LORA")


def test_added_member_behaves_like_a_real_one() -> None:
    member = peft_type("RED")

    assert PeftType("RED") is PeftType["RED"] is PeftType.RED is member
    assert isinstance(member, PeftType)
    assert member == "RED"
    assert json.dumps(member) == '"RED"'
