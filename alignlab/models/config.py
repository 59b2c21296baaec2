"""The config of the `model` group: where a backbone comes from and how a prompt is written for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import ConfigError
from alignlab.files import file_keys
from alignlab.models.kinds import KINDS, kind_of
from alignlab.registry import unknown

EMBEDDED = Path(__file__).parent / "tiny"
DTYPES = ("float32", "bfloat16", "float16")
EVERY_SECOND_FROM = 16
"""Blocks of the smallest backbone in which layers chosen by depth leave out every second one."""


@dataclass(frozen=True)
class Shape:
    """How many blocks a backbone has, and how wide its hidden states are."""

    blocks: int
    width: int


@dataclass
class LayersConfig:
    """Some blocks of a backbone, counted from 1; layer l is the output of block l. `numbers`: which; null takes those between
    two shares of the `depth`: every second one, or every one in a backbone of fewer than 16."""

    numbers: list[int] | None
    depth: list[float]

    def check(self, where: str) -> None:
        """Raises ConfigError for an empty list and for shares that are not in order."""
        if self.numbers is not None and (not self.numbers or len(set(self.numbers)) < len(self.numbers)):
            raise ConfigError(f"{where}.numbers={self.numbers} must name at least one layer, each once; or null, to use depth.")
        if len(self.depth) != 2 or not 0 <= self.depth[0] <= self.depth[1] < 1:
            raise ConfigError(f"{where}.depth={self.depth} must be two shares of the depth, [from, to], from 0 to below 1.")

    def of(self, shape: Shape) -> list[int]:
        """The numbers, in rising order. Raises ConfigError for one outside the backbone, and for its last layer: what
        transformers lists as such stands behind the final norm."""
        last = shape.blocks - 1
        if last < 1:
            raise ConfigError("layers are chosen below the last one, and this backbone has a single block; take a deeper one.")
        if self.numbers is None:
            first, highest = (min(max(round(share * shape.blocks), 1), last) for share in self.depth)
            return list(range(first, highest + 1, 2 if shape.blocks >= EVERY_SECOND_FROM else 1))
        outside = [number for number in self.numbers if not 1 <= number <= last]
        if outside:
            raise ConfigError(
                f"layer {outside[0]} of layers {self.numbers} does not fit {shape.blocks} blocks; choose 1 to {last}."
            )
        return sorted(self.numbers)


@dataclass
class TemplateConfig:
    """How a prompt becomes text: `format` holds one {prompt}; `chat` takes the tokenizer's template; `bos` null = as the
    tokenizer does by itself."""

    format: str
    chat: bool
    bos: bool | None


@dataclass
class ModelConfig:
    """A backbone. `kind`: causal | seq2seq | classifier, null = as its config.json says (of the hub: causal until it is known).
    `source`: embedded (shipped with alignlab), folder, or hub. `revision`: a commit hash of the hub."""

    name: str
    kind: str | None
    source: str
    path: str | None
    revision: str | None
    dtype: str
    attention: str
    trust_remote_code: bool
    template: TemplateConfig

    def check(self) -> None:
        """Raises ConfigError for what can be seen without loading anything."""
        if self.source not in ("embedded", "folder", "hub"):
            raise ConfigError(f"model.source={self.source!r} is not known; choose embedded, folder or hub.")
        if self.kind is not None and self.kind not in KINDS:
            raise ConfigError(unknown("model.kind", self.kind, KINDS))
        if self.dtype not in DTYPES:
            raise ConfigError(f"model.dtype={self.dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
        if self.template.format.count("{prompt}") != 1:
            raise ConfigError(f"model.template.format={self.template.format!r} must hold {{prompt}} exactly once.")
        if self.path is None:
            raise ConfigError(f"model={self.name} needs model.path: the folder that holds config.json and *.safetensors.")
        if self.source != "hub" and not (self.location / "config.json").is_file():
            raise ConfigError(f"model.path={self.path} holds no config.json; give a folder saved by save_pretrained.")

    def cache_key(self) -> list[str]:
        """Name, size and time of the weights of a local folder; embedded weights change with the code only."""
        found = sorted(self.location.glob("*.safetensors")) if self.source == "folder" else []
        return file_keys(found)

    @property
    def found_kind(self) -> str:
        """The kind that was given, or that the checkpoint's config.json tells."""
        if self.kind is not None:
            return self.kind
        file = _cached(self, "config.json") if self.source == "hub" else self.location / "config.json"
        try:
            return kind_of(json.loads(file.read_text(encoding="utf-8"))) if file and file.is_file() else "causal"
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.json of model={self.name} cannot be read ({error}); give a whole checkpoint.") from error

    @property
    def location(self) -> Path:
        """The folder of a backbone that is on this machine."""
        return EMBEDDED / str(self.path) if self.source == "embedded" else Path(str(self.path))


def _cached(config: ModelConfig, name: str) -> Path | None:
    """A file of the hub that is on this machine already; None where it is not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(config.path), name, revision=config.revision)
    return Path(found) if isinstance(found, str) else None
