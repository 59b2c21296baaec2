"""Small random backbones over the toy tokenizer: enough for every behaviour that does not need a learned model."""

from __future__ import annotations

import copy
import gc
import os
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alignlab.data.toy.tokenizer import build_tokenizer
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import KINDS
from alignlab.models.text import Codec, Template
from tests.fuzzing import WHOLE

os.environ.setdefault("WANDB_MODE", "offline")


def pytest_configure(config: pytest.Config) -> None:
    """Where the marker `fuzz` is chosen, all generated inputs are tried."""
    if "fuzz" in config.option.markexpr:
        os.environ[WHOLE] = "1"


TEMPLATE = Template("{prompt}\n", chat=False, bos=True)
CODEC = Codec(build_tokenizer(), TEMPLATE)
SPECIAL = {"pad_token_id": CODEC.pad, "bos_token_id": CODEC.head[0], "eos_token_id": CODEC.eos}
# Wide initialisation: with logits of order 1, equality within a tolerance means something.
INITIAL_SD = 0.2


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(CODEC.tokenizer),
            **SPECIAL,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=INITIAL_SD,
        )
    )


def _gpt2() -> PreTrainedModel:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(CODEC.tokenizer),
            **SPECIAL,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=128,
            initializer_range=INITIAL_SD,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    # GPT-2's biases start at 0, where scaling and shifting look the same.
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=INITIAL_SD)
    return model


_MADE: dict[str, PreTrainedModel] = {}


def backbone(kind: str) -> Backbone:
    """A fresh copy of a random backbone, `llama` or `gpt2`; the same weights each time."""
    if kind not in _MADE:
        torch.manual_seed(0)
        _MADE[kind] = {"llama": _llama, "gpt2": _gpt2}[kind]().eval().requires_grad_(False)
    return Backbone(kind, copy.deepcopy(_MADE[kind]), CODEC, fingerprint=kind, kind=KINDS["causal"].implementation())


@pytest.fixture
def llama() -> Backbone:
    """A random Llama: 3 blocks, grouped queries, no biases."""
    return backbone("llama")


@pytest.fixture
def gpt2() -> Backbone:
    """A random GPT-2: 3 blocks, learned positions, biases everywhere."""
    return backbone("gpt2")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data, where it is present."""
    folder = Path(os.environ.get("ALIGNLAB_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "models" / "stories260k").is_dir():
        pytest.skip("real models and data are not here; set ALIGNLAB_SHARED to their folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors gain nothing from a second thread, and on a shared machine waiting for it costs ten times."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def imports_are_not_garbage() -> None:
    """Every training ends with a collection, which would look at all that was ever imported: two thirds of a short one."""
    gc.freeze()
