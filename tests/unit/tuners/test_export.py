"""A tuned model as a plain checkpoint: equal after a reload, or refused with nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import BeftConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alignlab.errors import ModelError
from alignlab.models.export import export_plain
from alignlab.tuners.red import RedConfig, red_plus_targets, strength

Build = Callable[[str], PreTrainedModel]
Logits = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module], nn.Module]

CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "red": lambda: RedConfig(),
    "red_plus": lambda: RedConfig(target_modules=red_plus_targets("llama")),
    "lora": lambda: LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_plain_reload_answers_as_the_tuned_model(
    build: Build, logits: Logits, train: Train, tmp_path: Path, family: str
) -> None:
    tuned = train(get_peft_model(build(family), RedConfig()))

    difference = export_plain(tuned, None, tmp_path / "plain")

    reloaded = type(build(family)).from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(logits(reloaded), logits(tuned), rtol=1e-5, atol=1e-5)
    assert 0 <= difference <= 1e-4


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_every_kind_that_merges_is_exported(build: Build, logits: Logits, train: Train, tmp_path: Path, kind: str) -> None:
    tuned = train(get_peft_model(build("llama"), CONFIGS[kind]()))

    export_plain(tuned, None, tmp_path / "plain")

    reloaded = type(build("llama")).from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(logits(reloaded), logits(tuned), rtol=1e-5, atol=1e-5)


def test_checkpoint_loads_without_alignlab_and_peft(tuned: PeftModel, logits: Logits, tmp_path: Path) -> None:
    export_plain(tuned, None, tmp_path / "plain")
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM as Auto; "
        f"model = Auto.from_pretrained({str(tmp_path / 'plain')!r}).eval(); "
        "logits = model(torch.arange(4, 25).reshape(3, 7)).logits; "
        f"torch.save(logits.detach(), {str(tmp_path / 'logits.pt')!r}); "
        "sys.exit('alignlab' in sys.modules or 'peft' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], check=False)

    assert done.returncode == 0
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(tuned), rtol=1e-5, atol=1e-5)


def test_llama_gets_room_for_the_shift(tuned: PeftModel, tmp_path: Path) -> None:
    export_plain(tuned, None, tmp_path / "plain")

    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    layer = tuned.base_model.model.model.layers[0].mlp.down_proj
    assert torch.equal(tensors["model.layers.0.mlp.down_proj.bias"], layer.red_edit["default"].shift)
    assert not tensors["model.layers.0.mlp.gate_proj.bias"].any()
    assert not tensors["model.layers.0.mlp.up_proj.bias"].any()


def test_export_leaves_the_tuned_model_alone(tuned: PeftModel, logits: Logits, tmp_path: Path) -> None:
    before = logits(tuned)

    export_plain(tuned, None, tmp_path / "plain")

    assert torch.equal(logits(tuned), before)
    assert tuned.config.mlp_bias is False


def test_export_takes_the_present_strength(build: Build, logits: Logits, tuned: PeftModel, tmp_path: Path) -> None:
    with strength(tuned, 0.5):
        before = logits(tuned)
        export_plain(tuned, None, tmp_path / "plain")

    reloaded = type(build("llama")).from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(logits(reloaded), before, rtol=1e-5, atol=1e-5)


def test_half_precision_stays_half_precision(build: Build, train: Train, tmp_path: Path) -> None:
    tuned = train(get_peft_model(build("gpt2").bfloat16(), RedConfig()))

    export_plain(tuned, None, tmp_path / "plain")

    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_other_dtype_on_request(tuned: PeftModel, tmp_path: Path) -> None:
    difference = export_plain(tuned, None, tmp_path / "plain", torch.bfloat16)

    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert difference > 0
    assert tuned.dtype == torch.float32


def test_model_without_an_adapter_is_written_as_it_is(build: Build, logits: Logits, tmp_path: Path) -> None:
    difference = export_plain(build("t5"), None, tmp_path / "plain")

    reloaded = type(build("t5")).from_pretrained(tmp_path / "plain").eval()
    assert torch.equal(logits(reloaded), logits(build("t5")))
    assert difference == 0


@pytest.mark.parametrize(
    ("family", "bias"),
    [
        ("t5", r"decoder\.block\.0\.layer\.2\.DenseReluDense\.wo\.bias"),
        *((family, r"layers\.0\.mlp\.down_proj\.bias") for family in ("mistral", "qwen2", "gemma")),
    ],
)
def test_no_place_for_the_shift_is_refused_and_leaves_nothing(
    build: Build, train: Train, tmp_path: Path, family: str, bias: str
) -> None:
    tuned = train(get_peft_model(build(family), RedConfig()))

    with pytest.raises(ModelError, match=rf"a plain {family} model has no place for .*{bias}.*edit=scale, or .*lora"):
        export_plain(tuned, None, tmp_path / "plain")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["t5", "mistral", "qwen2", "gemma"])
def test_scale_alone_is_exported_anywhere(build: Build, logits: Logits, train: Train, tmp_path: Path, family: str) -> None:
    tuned = train(get_peft_model(build(family), RedConfig(edit="scale")))

    export_plain(tuned, None, tmp_path / "plain")

    reloaded = type(build(family)).from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(logits(reloaded), logits(tuned), rtol=1e-5, atol=1e-5)


def test_checkpoint_that_answers_differently_is_refused(
    tuned: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedModel.save_pretrained

    def save_something_else(model: PreTrainedModel, folder: Path) -> None:
        model.get_input_embeddings().weight.data[5:] += 0.01
        save(model, folder)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_something_else)

    with pytest.raises(ModelError, match="differs from the tuned one"):
        export_plain(tuned, None, tmp_path / "plain")

    assert list(tmp_path.iterdir()) == []


def test_folder_in_use_is_refused(tuned: PeftModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ModelError, match="already holds files"):
        export_plain(tuned, None, tmp_path)


def test_adapter_that_cannot_merge_is_refused(build: Build, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    tuned = get_peft_model(build("llama"), config)

    with pytest.raises(ModelError, match="PROMPT_TUNING adapter does not merge"):
        export_plain(tuned, None, tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term:UserWarning")
def test_reason_of_peft_is_passed_on(build: Build, tmp_path: Path) -> None:
    tuned = get_peft_model(build("llama"), BeftConfig(target_modules=["down_proj"]))

    with pytest.raises(ModelError, match="BEFT adapter does not merge into its backbone: Base layer has no bias"):
        export_plain(tuned, None, tmp_path / "plain")


def test_tokenizer_travels_along(tuned: PeftModel, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?")))

    export_plain(tuned, tokenizer, tmp_path / "plain")

    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "plain").get_vocab() == {"a": 0, "?": 1}
