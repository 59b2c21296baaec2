"""Pretrained weights, their tokenizer and their template: what everything else is built on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from alignlab.errors import ConfigError, ModelError
from alignlab.files import stamps
from alignlab.models.config import ModelConfig, Shape
from alignlab.models.kinds import KINDS, Kind
from alignlab.models.text import Codec, Template

Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
BLOCK_LISTS = ("layers", "h", "blocks")
"""Where a causal trunk keeps its blocks: Llama, Mistral, Qwen and Gemma; GPT-2; others."""

TOUCHED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config keys of models whose logits are more than head(hidden)."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained model of some kind. `fingerprint` names the weights: where from, revision, files, dtype."""

    name: str
    model: PreTrainedModel
    codec: Codec
    fingerprint: str
    kind: Kind

    @property
    def trunk(self) -> nn.Module:
        """The model without its head: ids to final hidden states."""
        trunk: nn.Module = getattr(self.model, self.model.base_model_prefix)
        return trunk

    @property
    def head(self) -> nn.Module:
        """Final hidden states to logits."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    @property
    def context(self) -> int:
        """The longest input in tokens."""
        return int(self.model.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def takes_segments(self) -> bool:
        """Whether attention can be told who sees whom, which a shared prefix needs: plain attention to everything before."""
        config = self.model.config
        # Models outside transformers' attention interface would swallow `segments` and attend as one sequence.
        if not self.model._supports_attention_backend:
            return False
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return str(config._attn_implementation) in ("sdpa", "eager") and window is None

    @property
    def shape(self) -> Shape:
        """Depth and width."""
        return shape_of(self.model)

    @contextmanager
    def reading(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """A pass inside stops behind the highest of `layers` and leaves their outputs here, by layer (1 = the first block).

        Raises ConfigError for a layer outside 1..L.
        """
        name, blocks = block_list(self.trunk)
        if not layers or min(layers) < 1 or max(layers) > len(blocks):
            raise ConfigError(f"layers {list(layers)} do not fit {len(blocks)} blocks; choose numbers from 1 to {len(blocks)}.")
        kept: dict[int, Tensor] = {}
        hooks = [blocks[layer - 1].register_forward_hook(_keep(kept, layer)) for layer in layers]
        try:
            setattr(self.trunk, name, blocks[: max(layers)])
            yield kept
        finally:
            setattr(self.trunk, name, blocks)
            for hook in hooks:
                hook.remove()

    def describe(self, folder: Path) -> None:
        """Writes config and tokenizer beside weights, which makes a folder for `model=local` and for transformers."""
        self.model.config.save_pretrained(folder)
        self.codec.tokenizer.save_pretrained(folder)

    @contextmanager
    def without_activations(self, wanted: bool, contexts: Contexts) -> Iterator[None]:
        """Where `wanted`, blocks keep no activations inside, and a backward pass computes them again. `contexts`: asked at each
        block, in which context it runs and in which it is computed again."""
        if not wanted:
            yield
            return
        # transformers renamed the switch during version 5.
        new = hasattr(self.model, "activation_checkpointing_enable")
        name = "activation_checkpointing" if new else "gradient_checkpointing"
        getattr(self.model, f"{name}_enable")({"use_reentrant": False, "context_fn": contexts})
        try:
            yield
        finally:
            getattr(self.model, f"{name}_disable")()


def _keep(kept: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept[layer] = output if isinstance(output, Tensor) else output[0]

    return hook


def block_list(trunk: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of a trunk's list of blocks, and the list. Raises ModelError where there is none."""
    for name in BLOCK_LISTS:
        found = getattr(trunk, name, None)
        if isinstance(found, nn.ModuleList):
            return name, found
    raise ModelError(f"no list of blocks found in a {type(trunk).__name__}; add its name to BLOCK_LISTS.")


def shape_of(model: PreTrainedModel) -> Shape:
    """Depth and width of a model, with weights or without."""
    trunk = getattr(model, model.base_model_prefix)
    return Shape(len(block_list(trunk)[1]), int(model.config.hidden_size))


def load(config: ModelConfig, *, start: str, seed: int, device: str) -> Backbone:
    """A backbone with pretrained weights, or with new ones drawn from `seed` where start is "random".

    Raises ModelError for anything but safetensors, for missing files, and for models whose logits are not head(hidden).
    """
    kind = KINDS["causal"].implementation()
    architecture = _architecture(config)
    codec = load_codec(config)
    if start == "random":
        torch.manual_seed(seed)
        model = kind.auto.from_config(architecture, dtype=getattr(torch, config.dtype), attn_implementation=config.attention)
    else:
        model = _pretrained(config, architecture, kind)
    model.requires_grad_(False)
    model.eval()
    return Backbone(config.name, model.to(device), codec, fingerprint(config, start, seed), kind)


def skeleton(config: ModelConfig) -> PreTrainedModel:
    """The model without weights (meta device): shapes and counts in a moment, whatever the size."""
    with torch.device("meta"):
        model: PreTrainedModel = KINDS["causal"].implementation().auto.from_config(_architecture(config))
    return model.requires_grad_(False)


def load_codec(config: ModelConfig) -> Codec:
    """The tokenizer with the template of the sheet."""
    tokenizer = _from(AutoTokenizer, config)
    wanted = config.template.bos
    bos = _adds_bos(tokenizer) if wanted is None else wanted
    return Codec(tokenizer, Template(config.template.format, config.template.chat, bos))


def fingerprint(config: ModelConfig, start: str, seed: int) -> str:
    """A short hash that changes when other weights would be loaded."""
    files = [] if config.source == "hub" else stamps(_weights(config))
    words = [
        config.source,
        config.path,
        config.revision,
        config.dtype,
        start,
        seed if start == "random" else None,
        files,
    ]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def _weights(config: ModelConfig) -> list[Any]:
    return sorted(config.location.glob("*.safetensors"))


def _architecture(config: ModelConfig) -> Any:
    architecture = _from(AutoConfig, config)
    if architecture.is_encoder_decoder:
        kind = architecture.model_type
        raise ModelError(f"model={config.name} is an encoder-decoder model ({kind}); backbones are causal language models.")
    for key in TOUCHED_LOGITS:
        if getattr(architecture, key, None) not in (None, 1.0):
            raise ModelError(f"model={config.name} sets {key}, which the log-probability path does not apply; use another.")
    for key, value in architecture.to_dict().items():
        # Policy and reference have to agree at step 0, so dropout is off unless a tuner brings its own (L4).
        if ("drop" in key) and isinstance(value, float):
            setattr(architecture, key, 0.0)
    return architecture


def _pretrained(config: ModelConfig, architecture: Any, kind: Kind) -> PreTrainedModel:
    if config.source != "hub" and not _weights(config):
        raise ModelError(f"model.path={config.path} holds no *.safetensors; convert the weights (pickles are not read).")
    return _from(
        kind.auto,
        config,
        config=architecture,
        dtype=getattr(torch, config.dtype),
        attn_implementation=config.attention,
        use_safetensors=True,
    )


def _from(auto: Any, sheet: ModelConfig, /, **more: Any) -> Any:
    """Loads from a folder or the hub; failures keep their cause and say what to do."""
    transformers_logging.disable_progress_bar()
    where = sheet.path if sheet.source == "hub" else str(sheet.location)
    if sheet.source == "hub":
        more["revision"] = sheet.revision
    try:
        return auto.from_pretrained(where, trust_remote_code=sheet.trust_remote_code, **more)
    except (OSError, ValueError, KeyError) as error:
        advice = "check the network, the name and your access" if sheet.source == "hub" else "check the folder"
        first = str(error).partition("\n")[0]
        raise ModelError(f"model={sheet.name}: {where} could not be loaded ({first}); {advice}.") from error


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", verbose=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
