"""CLM through peft and transformers: save, load, several adapters, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ModelError
from alignlab.tuners.at_strength import tuner_in
from alignlab.tuners.clm import ClmConfig, ClmLayer

Build = Callable[[str], PreTrainedModel]
Logits = Callable[..., Tensor]
Train = Callable[[nn.Module], nn.Module]

MATRICES = [f"self_attn.{kind}_proj.weight" for kind in "qkvo"] + [f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
LLAMA = {*MATRICES, *NORMS}
BIASES = {f"self_attn.{kind}_proj.bias" for kind in "qkv"}
NORMED_HEADS = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}

every_family = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])


def saved_in(folder: Path, tuned: PeftModel) -> dict[str, Tensor]:
    """The adapter's file, just written."""
    tuned.save_pretrained(folder, save_embedding_layers=False)
    tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    return tensors


@pytest.fixture
def tuned(build: Build, train: Train) -> PeftModel:
    """A Llama of two blocks with an added one that looks trained."""
    return train(get_peft_model(build("llama"), ClmConfig(task_type="CAUSAL_LM")))


@pytest.fixture
def saved(tuned: PeftModel, tmp_path: Path) -> Path:
    """The folder of that block."""
    saved_in(tmp_path / "adapter", tuned)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("family", "tensors"),
    [("llama", LLAMA), ("mistral", LLAMA), ("qwen2", LLAMA | BIASES), ("qwen3", LLAMA | NORMED_HEADS)],
)
def test_the_file_holds_one_block_and_nothing_else(build: Build, tmp_path: Path, family: str, tensors: set[str]) -> None:
    block = build(family).model.layers[0]

    held = saved_in(tmp_path, get_peft_model(build(family), ClmConfig()))

    front = "base_model.model.model.layers.0.clm_blocks.blocks.0."
    assert held.keys() == {front + name for name in tensors}
    assert {name: held[front + name].shape for name in tensors} == {n: p.shape for n, p in block.named_parameters()}


@pytest.mark.parametrize(("family", "blocks", "tensors"), [("gpt2", 1, 12), ("llama", 3, 27), ("qwen2", 2, 24)])
def test_the_file_holds_so_many_tensors(build: Build, tmp_path: Path, family: str, blocks: int, tensors: int) -> None:
    held = saved_in(tmp_path, get_peft_model(build(family), ClmConfig(blocks=blocks)))

    assert len(held) == tensors
    assert all(".clm_blocks." in name for name in held)


@every_family
def test_a_reloaded_block_answers_bit_for_bit(build: Build, logits: Logits, train: Train, tmp_path: Path, family: str) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig(blocks=2)))
    saved_in(tmp_path, tuned)

    reloaded = PeftModel.from_pretrained(build(family), tmp_path)

    assert torch.equal(logits(reloaded), logits(tuned))


def test_a_block_is_loaded_under_any_name(build: Build, logits: Logits, tuned: PeftModel, saved: Path) -> None:
    reloaded = PeftModel.from_pretrained(build("llama"), saved, adapter_name="another")

    assert torch.equal(logits(reloaded), logits(tuned))


def test_a_random_start_is_reloaded_bit_for_bit(build: Build, logits: Logits, tmp_path: Path) -> None:
    tuned = get_peft_model(build("llama"), ClmConfig(start="random"))
    saved_in(tmp_path, tuned)

    reloaded = PeftModel.from_pretrained(build("llama"), tmp_path)

    assert torch.equal(logits(reloaded), logits(tuned))


def test_the_config_file_holds_what_rebuilds_the_block(saved: Path) -> None:
    written = json.loads((saved / "adapter_config.json").read_text())

    assert (written["peft_type"], written["blocks"], written["start"]) == ("CLM", 1, "identity")
    assert written["target_modules"] == r"(.*\.)?layers\.0"
    assert written["writes"] == ["self_attn.o_proj", "mlp.down_proj"]


def test_the_config_is_read_back_as_a_clm_config(saved: Path) -> None:
    config = PeftConfig.from_pretrained(saved)

    assert isinstance(config, ClmConfig)
    assert config.peft_type is PeftType.CLM


def test_auto_peft_loads_backbone_and_block(build: Build, logits: Logits, train: Train, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    base = type(build("llama")).from_pretrained(tmp_path / "base")
    tuned = train(get_peft_model(base, ClmConfig(task_type="CAUSAL_LM")))
    saved_in(tmp_path / "adapter", tuned)

    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")

    assert torch.equal(logits(reloaded), logits(tuned))


def test_transformers_own_loader_takes_the_folder(build: Build, logits: Logits, tuned: PeftModel, saved: Path) -> None:
    model = build("llama")

    model.load_adapter(str(saved))

    assert torch.equal(logits(model), logits(tuned))


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_loaded_block_is_float32_even_from_a_bfloat16_file(build: Build, saved: Path, low_memory: bool) -> None:
    file = saved / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)

    model = PeftModel.from_pretrained(
        build("llama").bfloat16(), saved, autocast_adapter_dtype=False, low_cpu_mem_usage=low_memory
    )

    assert {value.dtype for name, value in model.named_parameters() if ".clm_blocks." in name} == {torch.float32}


def test_a_block_loaded_with_little_memory_answers_bit_for_bit(
    build: Build, logits: Logits, tuned: PeftModel, saved: Path
) -> None:
    reloaded = PeftModel.from_pretrained(build("llama"), saved, low_cpu_mem_usage=True)

    assert torch.equal(logits(reloaded), logits(tuned))


def test_a_second_adapter_starts_from_the_backbone(build: Build, logits: Logits, tuned: PeftModel) -> None:
    trained = logits(tuned)

    tuned.add_adapter("second", ClmConfig(blocks=2))
    tuned.set_adapter("second")
    fresh = logits(tuned)
    tuned.set_adapter("default")

    assert torch.equal(fresh, logits(build("llama")))
    assert torch.equal(logits(tuned), trained)


def test_a_second_adapter_does_not_learn_while_the_first_is_active(tuned: PeftModel) -> None:
    tuned.add_adapter("second", ClmConfig())

    learned = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}

    assert learned == {name for name, _ in tuned.named_parameters() if ".clm_blocks.default." in name}


def test_an_adapter_can_be_cloned_by_the_names_of_its_parameters(tuned: PeftModel, logits: Logits) -> None:
    # As TRL makes its reference: it looks for `.default.` and copies to `.ref.`.
    trained = logits(tuned)
    named = dict(tuned.named_parameters())
    learned = [name for name, parameter in named.items() if parameter.requires_grad]

    tuned.add_adapter("ref", tuned.peft_config["default"])
    for name in learned:
        tuned.get_parameter(name.replace(".default.", ".ref.")).data.copy_(named[name].data)
    tuned.set_adapter("ref")

    assert learned
    assert all(".clm_blocks.default." in name for name in learned)
    assert torch.equal(logits(tuned), trained)


def test_the_second_of_two_adapters_generates_with_a_cache(tuned: PeftModel, train: Train, logits: Logits) -> None:
    tuned.add_adapter("second", ClmConfig())
    tuned.set_adapter("second")
    train(tuned)
    ids = torch.arange(4, 25).reshape(3, 7)

    with torch.no_grad():
        first = tuned(input_ids=ids[:, :4], use_cache=True)
        second = tuned(input_ids=ids[:, 4:], past_key_values=first.past_key_values)

    torch.testing.assert_close(second.logits, logits(tuned)[:, 4:], atol=1e-5, rtol=1e-5)


@every_family
def test_unload_gives_the_backbone_back(build: Build, logits: Logits, train: Train, family: str) -> None:
    tuned = train(get_peft_model(build(family), ClmConfig()))

    plain = tuned.unload()

    assert torch.equal(logits(plain), logits(build(family)))
    assert not any(isinstance(module, ClmLayer) for module in plain.modules())
    assert plain.config.num_hidden_layers == 2


def test_merging_in_place_is_refused(tuned: PeftModel) -> None:
    with pytest.raises(ModelError, match="a CLM block cannot be merged in place; `merge_and_unload` gives a model with one"):
        tuned.merge_adapter()


def test_a_block_is_named_like_a_real_peft_method() -> None:
    ClmConfig()

    assert PeftType("CLM") is PeftType["CLM"] is PeftType.CLM
    assert json.dumps(PeftType.CLM) == '"CLM"'


def test_the_dial_of_an_adapter_is_the_one_it_was_made_with(build: Build, tmp_path: Path) -> None:
    get_peft_model(build("llama"), ClmConfig(merge="embeddings")).save_pretrained(tmp_path)

    back = PeftModel.from_pretrained(build("llama"), tmp_path)

    assert len(tuner_in(back).passes(0.5)) == 1
