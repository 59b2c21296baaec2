"""Loads pretrained weights, their tokenizer and their template."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from alignlab.commits import hub_silence
from alignlab.errors import ConfigError, ModelError
from alignlab.models.anatomy import Abilities, block_list, context_of, find, of_rows, shape_of, trunk_of
from alignlab.models.config import ModelConfig, Shape
from alignlab.models.kinds import KINDS, Kind
from alignlab.models.text import Codec, Template
from alignlab.records import LabelSet

log = logging.getLogger(__name__)
Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]


@dataclass(frozen=True)
class Backbone:
    """A pretrained model of some kind. `fingerprint` names the weights: content, dtype and kind, or the commit of the hub."""

    name: str
    model: PreTrainedModel
    codec: Codec
    fingerprint: str
    kind: Kind

    @property
    def trunk(self) -> nn.Module:
        """The model without its head: ids to final hidden states."""
        return trunk_of(self.model)

    @property
    def head(self) -> nn.Module:
        """The output embedding, which makes logits of final hidden states where the probes say that it does."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    @cached_property
    def abilities(self) -> Abilities:
        """What the model can do, tried once, before anything is trained."""
        return of_rows(self) if self.kind.apart else find(self.name, self.model)

    @cached_property
    def cache_objection(self) -> str:
        """Why a step of generation behind a cache is not the full pass, tried when it is first asked for, with the tuner off;
        empty where it is."""
        from alignlab.models.decode import cache_objection

        return cache_objection(self) if self.model.can_generate() else ""

    def moved(self, fingerprint: str) -> Backbone:
        """The same model with other weights. What it can do was tried without a tuner, and stays as it was found."""
        made = replace(self, fingerprint=fingerprint)
        vars(made).update({name: vars(self)[name] for name in ("abilities", "cache_objection") if name in vars(self)})
        return made

    @property
    def context(self) -> int:
        """The longest input in tokens."""
        return context_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def shape(self) -> Shape:
        """Depth and width."""
        return shape_of(self.model)

    @contextmanager
    def reading(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """A pass inside stops behind the highest of `layers` and leaves their outputs here, by layer (1 = the first block).

        Raises ConfigError for a layer outside 1..L.
        """
        name, blocks = block_list(self.model)
        if not layers or min(layers) < 1 or max(layers) > len(blocks):
            raise ConfigError(f"layers {list(layers)} do not fit {len(blocks)} blocks; choose numbers from 1 to {len(blocks)}.")
        kept: dict[int, Tensor] = {}
        hooks = [blocks[layer - 1].register_forward_hook(_keep(kept, layer)) for layer in layers]
        holder, _, own = name.rpartition(".")
        try:
            setattr(self.model.get_submodule(holder), own, blocks[: max(layers)])
            yield kept
        finally:
            setattr(self.model.get_submodule(holder), own, blocks)
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


def load(config: ModelConfig, *, start: str, seed: int, device: str, labels: LabelSet | None = None) -> Backbone:
    """A backbone with pretrained weights, or with new ones drawn from `seed` where start is "random". `labels`: the classes of
    its texts, which decide the width of a classifier's head.

    What it can do is tried at once. Raises ModelError for anything but safetensors, for missing files, for weights that are
    missing in them, and for a model that does not run.
    """
    kind = KINDS[config.found_kind].implementation()
    architecture = _architecture(config, labels)
    codec = load_codec(config, labels)
    torch.manual_seed(seed)  # weights that a checkpoint lacks are drawn
    if torch.device(device).type == "cuda":
        # It plans every shape anew, and no two batches have one (benchmarks/gpu.py --cudnn).
        torch.backends.cuda.enable_cudnn_sdp(False)
    if start == "random":
        model = kind.auto.from_config(architecture, dtype=getattr(torch, config.dtype), attn_implementation=config.attention)
        model.name_or_path = ""  # the folder has the shape; its weights, if there are any, are others
    else:
        model = _pretrained(config, architecture, kind)
    model.requires_grad_(False)
    model.eval()
    if kind.scores_classes and model.config.pad_token_id is None:
        model.config.pad_token_id = codec.pad  # a decoder that classifies reads the last token that is none
    _name_ends(model, codec)
    backbone = Backbone(config.name, model.to(device), codec, fingerprint(config, start, seed), kind)
    log.info("%s: logits by %s", backbone.name, backbone.abilities.cut.name)
    return backbone


def skeleton(config: ModelConfig, labels: LabelSet | None = None) -> PreTrainedModel:
    """The model without weights (meta device): shapes and counts in a moment, whatever the size. Raises ModelError for an
    attention that this model or this machine does not have."""
    described = AutoConfig.for_model(**config.facts) if config.facts else None
    architecture, kind = _architecture(config, labels, described), KINDS[config.found_kind].implementation()
    try:
        with torch.device("meta"):
            model: PreTrainedModel = kind.auto.from_config(architecture, attn_implementation=config.attention)
    except (ImportError, ValueError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        if type(architecture) not in kind.auto._model_mapping:
            fitting = ", ".join(
                name for name in KINDS if type(architecture) in KINDS[name].implementation().auto._model_mapping
            )
            raise ModelError(
                f"model={config.name} is a {architecture.model_type}, of which there is no model.kind={config.found_kind}; take"
                f" {fitting or 'another model'}."
            ) from error
        raise ModelError(
            f"model={config.name} cannot be built with model.attention={config.attention} ({why}); take sdpa or eager."
        ) from error
    return model.requires_grad_(False)


def check_weights(config: ModelConfig) -> None:
    """Raises ModelError for a local folder without weights."""
    if config.source != "hub" and not _weights(config):
        raise ModelError(f"model.path={config.path} holds no *.safetensors; convert the weights (pickles are not read).")


def load_codec(config: ModelConfig, labels: LabelSet | None = None) -> Codec:
    """The tokenizer with the template of the config, for the kind of the model. The tokenizer's own chat template is taken
    where the config leaves it open and the model answers in text."""
    tokenizer = _from(AutoTokenizer, config)
    kind, wanted = KINDS[config.found_kind], config.template
    converses = bool(tokenizer.chat_template) and "generation" in kind.provides
    chat = converses if wanted.chat is None else wanted.chat
    if wanted.arguments and not chat:
        raise ConfigError(
            f"model.template.arguments go to a chat template, and model={config.name} has none here; leave them out."
        )
    return kind.implementation().codec(tokenizer, Template(wanted.format, chat, wanted.bos, wanted.arguments), labels)


def ends_of(model: PreTrainedModel) -> list[int]:
    """The ids that a model's generation_config names as ends."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)  # a classifier generates nothing
    return [] if named is None else [named] if isinstance(named, int) else list(named)


def _name_ends(model: PreTrainedModel, codec: Codec) -> None:
    """A checkpoint that is written from the model ends its answers where they were trained to end."""
    named = ends_of(model)
    missing = [each for each in codec.ends if each not in named] if codec.chat and model.can_generate() else []
    if missing:
        model.generation_config.eos_token_id = [*named, *missing]  # type: ignore[union-attr]


def fingerprint(config: ModelConfig, start: str, seed: int) -> str:
    """A short hash that changes when other weights would be loaded."""
    words = [
        config.path if config.source == "hub" else None,
        config.cache_key(),
        config.dtype,
        config.found_kind,
        start,
        seed if start == "random" else None,
    ]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def _weights(config: ModelConfig) -> list[Any]:
    return sorted(config.location.glob("*.safetensors"))


def _architecture(config: ModelConfig, labels: LabelSet | None, described: Any = None) -> Any:
    architecture = described or _from(AutoConfig, config)
    _fit_head(config, architecture, labels)
    for key, value in architecture.to_dict().items():
        # Policy and reference have to agree at step 0, so dropout and noise are off unless a tuner brings its own (L4).
        if ("drop" in key or "jitter" in key) and isinstance(value, float):
            setattr(architecture, key, 0.0)
    return architecture


def _fit_head(config: ModelConfig, architecture: Any, labels: LabelSet | None) -> None:
    """A classifier's head as wide as the data's labels. Raises ModelError where the checkpoint's own head has another width."""
    kind = KINDS[config.found_kind]
    labels = LabelSet(()) if kind.one_output else labels
    if labels is None or not kind.new_head:
        return
    wanted = max(1, len(labels.names))
    has_head = any(str(name).endswith("ForSequenceClassification") for name in architecture.architectures or ())
    if has_head and architecture.num_labels != wanted:
        raise ModelError(
            f"model={config.name} has a head of {architecture.num_labels} classes, and the data has {wanted}"
            f" ({', '.join(labels.names) or 'one number'}); take a checkpoint without a head, or data with as many."
        )
    architecture.num_labels = wanted
    architecture.problem_type = "single_label_classification" if labels.names else "regression"
    if labels.names:
        architecture.id2label = dict(enumerate(labels.names))
        architecture.label2id = {name: number for number, name in enumerate(labels.names)}


def _pretrained(config: ModelConfig, architecture: Any, kind: Kind) -> PreTrainedModel:
    check_weights(config)
    model: PreTrainedModel
    with _without_load_report():
        model, info = _from(
            kind.auto,
            config,
            config=architecture,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    trunk = f"{model.base_model_prefix}."
    missing = sorted(name for name in info["missing_keys"] if name.startswith(trunk) or not KINDS[config.found_kind].new_head)
    if missing:
        raise ModelError(
            f"model={config.name}: the checkpoint lacks {missing[0]}"
            f"{f' and {len(missing) - 1} more weights' if len(missing) > 1 else ''} that a {type(model).__name__} has, and they"
            " would be drawn at random; give a whole checkpoint, or the kind that it was saved as (model.kind)."
        )
    return model


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Weights that a checkpoint lacks are a new head, or refused in a sentence; transformers prints a table of them."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _from(auto: Any, config: ModelConfig, /, **more: Any) -> Any:
    """Loads from a folder or the hub; failures keep their cause and say what to do."""
    transformers_logging.disable_progress_bar()
    where = config.path if config.source == "hub" else str(config.location)
    silence = ""
    if config.source == "hub":
        silence = hub_silence("model", str(where), config.revision)
        more |= {"revision": config.commit, "local_files_only": bool(silence)}
    elif not config.location.is_dir():
        raise ModelError(
            f"model={config.name}: there is no folder {config.location.resolve()}; give its place in model.path, or, for a run"
            " that was moved, put the model there."
        )
    try:
        return auto.from_pretrained(where, trust_remote_code=config.trust_remote_code, **more)
    except (OSError, ValueError, KeyError) as error:
        if silence:
            raise ModelError(
                f"model={config.name}: not all of {where} is on this machine, and the hub cannot be reached ({silence});"
                " connect it once, or give a folder with the files: model=local model.path=FOLDER."
            ) from error
        advice = "check the network, the name and your access" if config.source == "hub" else "check the folder"
        first = str(error).partition("\n")[0]
        raise ModelError(f"model={config.name}: {where} could not be loaded ({first}); {advice}.") from error
