"""The sheet of the `model` group: where a backbone comes from and how a prompt is written for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import ConfigError
from alignlab.files import stamps

EMBEDDED = Path(__file__).parent / "tiny"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class TemplateConfig:
    """How a prompt becomes text: `format` holds one {prompt}; `chat` takes the tokenizer's template; `bos` null = as the
    tokenizer does by itself."""

    format: str
    chat: bool
    bos: bool | None


@dataclass
class ModelConfig:
    """A backbone. `source`: embedded (shipped with alignlab), folder, or hub. `revision`: a commit hash of the hub."""

    name: str
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
        if self.dtype not in DTYPES:
            raise ConfigError(f"model.dtype={self.dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
        if self.template.format.count("{prompt}") != 1:
            raise ConfigError(f"model.template.format={self.template.format!r} must hold {{prompt}} exactly once.")
        if self.path is None:
            raise ConfigError(f"model={self.name} needs model.path: the folder that holds config.json and *.safetensors.")
        if self.source != "hub" and not (self.location / "config.json").is_file():
            raise ConfigError(f"model.path={self.path} holds no config.json; give a folder saved by save_pretrained.")

    def stamp(self) -> list[str]:
        """Name, size and time of the weights of a local folder; embedded weights change with the code only."""
        found = sorted(self.location.glob("*.safetensors")) if self.source == "folder" else []
        return stamps(found)

    @property
    def location(self) -> Path:
        """The folder of a backbone that is on this machine."""
        return EMBEDDED / str(self.path) if self.source == "embedded" else Path(str(self.path))
