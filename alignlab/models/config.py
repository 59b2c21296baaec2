"""The config of the `model` group: where a backbone comes from and how a prompt is written for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

from alignlab.commits import hub_commit
from alignlab.errors import ConfigError
from alignlab.files import content_keys
from alignlab.models.kinds import KINDS, kind_of
from alignlab.registry import one_of, path, text

EMBEDDED = Path(__file__).parent / "tiny"
DECISIVE = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "*.jinja", "additional_chat_templates/*"),
)
"""What decides a model in a folder: its shape and weights, how it generates, its code, its tokenizer, and its templates."""


@dataclass(frozen=True)
class Shape:
    """How many blocks a backbone has, and how wide its hidden states are."""

    blocks: int
    width: int


@dataclass
class TemplateConfig:
    """How a prompt becomes text: `format` holds one {prompt}; `chat` takes the tokenizer's template, null = where it has one
    and the model answers in text; `bos` null = as that template has it, or the tokenizer by itself. `arguments`: of the chat
    template, such as {enable_thinking: false}."""

    format: Annotated[str, text(holds="{prompt}")]
    chat: bool | None
    bos: bool | None
    arguments: dict[str, Any]

    def check(self, where: str) -> None:
        """Raises ConfigError for arguments that go nowhere, or are no single values."""
        if self.arguments and self.chat is False:
            raise ConfigError(f"{where}.arguments go to a chat template, and {where}.chat is false; leave one of them out.")
        for name, value in self.arguments.items():
            if not isinstance(value, (str, bool, int, float, NoneType)) or (isinstance(value, float) and not isfinite(value)):
                raise ConfigError(f"{where}.arguments.{name}={value!r} must be a text, a finite number, true, false or null.")


@dataclass
class ModelConfig:
    """A backbone. `kind`: causal | seq2seq | classifier | reward, null = as its config.json says (of the hub: causal until it
    is known). `source`: embedded (shipped with alignlab), folder, or hub. `revision`: a commit hash of the hub.
    `architecture`: what of its config.json decides shapes and kind, for counts and plans where that file is not here."""

    name: str
    kind: Annotated[str | None, one_of(*KINDS)]
    source: Annotated[str, one_of("embedded", "folder", "hub")]
    path: Annotated[str | None, path()]
    revision: str | None
    architecture: dict[str, Any] | None
    dtype: Annotated[str, one_of("float32", "bfloat16", "float16")]
    attention: str
    trust_remote_code: bool
    template: TemplateConfig

    def check(self, where: str) -> None:
        """Raises ConfigError for a path that holds no model."""
        if self.path is None:
            raise ConfigError(f"{where}={self.name} needs {where}.path: the folder that holds config.json and *.safetensors.")
        if self.source != "hub" and not (self.location / "config.json").is_file():
            raise ConfigError(f"{where}.path={self.path} holds no config.json; give a folder saved by save_pretrained.")

    def cache_key(self) -> list[str]:
        """The content of every file of a folder that decides what the model computes; of the hub, the commit."""
        if self.source == "hub":
            return [str(self.commit)]
        return content_keys(decisive_files(self.location))

    def places(self) -> tuple[str, ...]:
        """A folder; what the hub calls a model is no place."""
        return () if self.source == "hub" else ("path",)

    @property
    def commit(self) -> str | None:
        """The commit of the hub that is loaded: the one given, or what `main` is on this machine, or on the hub."""
        return hub_commit("model", str(self.path), self.revision)

    @property
    def found_kind(self) -> str:
        """The kind that was given, or that the checkpoint's config.json tells."""
        if self.kind is not None:
            return self.kind
        file = _cached(self, "config.json") if self.source == "hub" else self.location / "config.json"
        try:
            return kind_of(json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else self.architecture or {})
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.json of model={self.name} cannot be read ({error}); give a whole checkpoint.") from error

    @property
    def facts(self) -> dict[str, Any] | None:
        """The architecture as it was given, where the hub's own file of it is not on this machine."""
        return None if self.is_here else self.architecture

    @property
    def is_here(self) -> bool:
        """Whether this machine has its config.json; of the hub, in its cache."""
        return self.source != "hub" or _cached(self, "config.json") is not None

    @property
    def location(self) -> Path:
        """The folder of a backbone that is on this machine."""
        return EMBEDDED / str(self.path) if self.source == "embedded" else Path(str(self.path))


def decisive_files(folder: Path) -> list[Path]:
    """The files of a model's folder that decide what it computes, sorted."""
    return sorted({file for pattern in DECISIVE for file in folder.glob(pattern) if file.is_file()})


def _cached(config: ModelConfig, name: str) -> Path | None:
    """A file of the hub that is on this machine already; None where it is not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(config.path), name, revision=config.commit)
    return Path(found) if isinstance(found, str) else None
