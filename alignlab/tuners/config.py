"""The configs of the `tuner` group: what is learned, and at which rates. Light: no torch here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError
from alignlab.files import file_keys
from alignlab.models.config import LayersConfig

EDITS = ("both", "scale", "shift")
STARTS = ("identity", "random")
MERGES = ("logits", "embeddings")
FORMS = ("text", "token", "soft_prompt", "lora")
STARTS_OF_PROMPTS = ("text", "vocabulary", "random")
MOST_BLOCKS = 3
"""Blocks that CLM adds at most; its paper's table 7 ends there."""


@dataclass
class TunerConfig:
    """Rates are AdamW learning rates: `likelihood_rate` for objectives on log-probabilities, `preference_rate` for pairs.

    They stand with the tuner because what moves decides the rate: RED and LoRA differ by a factor of ten under one loss.
    """

    name: str
    likelihood_rate: float
    preference_rate: float

    def cache_key(self) -> list[str]:
        """What tells apart the files that a tuner reads; most read none."""
        return []

    def check(self) -> None:
        """Raises ConfigError for rates that cannot train."""
        for key in ("likelihood_rate", "preference_rate"):
            if not 0 < getattr(self, key) < 10:
                raise ConfigError(f"tuner.{key}={getattr(self, key)} must lie between 0 and 10.")


@dataclass
class FullConfig(TunerConfig):
    """Every weight of the backbone."""


@dataclass
class BitfitConfig(TunerConfig):
    """Every bias of the backbone."""


@dataclass
class LoraConfig(TunerConfig):
    """Low-rank updates, scaled by `alpha` / `rank`. `targets`: names of linear maps, or one pattern; empty means all of them
    but the head, null peft's own choice for the architecture, usually queries and values."""

    rank: int
    alpha: float
    dropout: float
    targets: Any  # a list of texts, a text or null, which OmegaConf has no type for

    def check(self) -> None:
        """Raises ConfigError for a rank or a dropout that cannot be built."""
        super().check()
        check_lora("tuner", self.rank, self.alpha, self.dropout)
        check_targets("tuner.targets", self.targets)


@dataclass
class LowerLoraConfig(LoraConfig):
    """LoRA only in the blocks that the layers `below` depend on, and in `beyond` more."""

    below: LayersConfig
    beyond: int

    def check(self) -> None:
        """Raises ConfigError for layers that cannot be chosen."""
        super().check()
        self.below.check("tuner.below")
        if self.beyond < 0:
            raise ConfigError(f"tuner.beyond={self.beyond} must not be negative.")


@dataclass
class Ia3Config(TunerConfig):
    """Learned factors on keys, values and the feed-forward's inner activation. `targets`: names of linear maps, or one pattern;
    null = peft's own places. `feedforward`: those of them whose input is scaled, and not their output; null = peft's."""

    targets: Any
    feedforward: Any

    def check(self) -> None:
        """Raises ConfigError for targets that cannot be names."""
        super().check()
        check_targets("tuner.targets", self.targets, empty="would learn nothing; give names, or null for peft's own places.")
        check_targets("tuner.feedforward", self.feedforward)
        if self.targets is None and self.feedforward is not None:
            raise ConfigError("tuner.feedforward says it of tuner.targets, which are null; give both, or neither.")


@dataclass
class RedTunerConfig(TunerConfig):
    """Representation editing. `edit`: both | scale | shift. `place`: ffn (RED) | plus (RED+, five outputs per block).
    `targets`: names of linear maps to edit instead, or one pattern; null = those of `place` in this kind of model."""

    edit: str
    place: str
    targets: Any

    def check(self) -> None:
        """Raises ConfigError for an edit or a place that does not exist."""
        super().check()
        if self.edit not in EDITS:
            raise ConfigError(f"tuner.edit={self.edit!r} is not known; choose both, scale or shift.")
        if self.place not in ("ffn", "plus"):
            raise ConfigError(f"tuner.place={self.place!r} is not known; choose ffn (RED) or plus (RED+).")
        check_targets("tuner.targets", self.targets, empty="would edit nothing; give names, or null for the place.")
        if self.targets is not None and self.place == "plus":
            raise ConfigError("tuner.place=plus chooses the layers, and tuner.targets names them; give one of the two.")


@dataclass
class BlocksConfig(TunerConfig):
    """Some of the backbone's own blocks, nothing added: the `count` nearest to `side`, bottom (embeddings) or top (head)."""

    side: str
    count: int

    def check(self) -> None:
        """Raises ConfigError for a side or a number that does not exist."""
        super().check()
        if self.side not in ("bottom", "top"):
            raise ConfigError(f"tuner.side={self.side!r} is not known; choose bottom or top.")
        if self.count < 1:
            raise ConfigError(f"tuner.count={self.count} must be at least 1.")


@dataclass
class DeraConfig(TunerConfig):
    """Two models mixed at the logits: the backbone, and an aligned one. `aligned`: folder of a checkpoint of the same
    architecture, or null for the backbone's own weights, which a method then trains."""

    aligned: str | None

    def check(self) -> None:
        """Raises ConfigError for a folder without a safetensors checkpoint."""
        super().check()
        if self.aligned is None:
            return
        folder = Path(self.aligned)
        if not folder.is_dir():
            raise ConfigError(f"tuner.aligned={self.aligned} does not exist; give a folder saved by save_pretrained.")
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(
                f"tuner.aligned={self.aligned} is an adapter; `python -m alignlab export RUN` makes a whole model."
            )
        if not list(folder.glob("*.safetensors")):
            raise ConfigError(f"tuner.aligned={self.aligned} holds no *.safetensors; give a folder saved by save_pretrained.")

    def cache_key(self) -> list[str]:
        """Name, size and time of the aligned weights."""
        found = sorted(Path(self.aligned).glob("*.safetensors")) if self.aligned else []
        return file_keys(found)


@dataclass
class ClmTunerConfig(TunerConfig):
    """Blocks in front of the first one. `start`: identity (zeroed copies of the first block) | random. `merge`: logits (the
    paper's) | embeddings (one pass that mixes the blocks' output with their input; for comparison, not the paper's). `targets`:
    the name of the first block, or a pattern; `writes`: what in it writes into the residual stream; null = from the table of
    layouts, and the first block as it is found."""

    blocks: int
    start: str
    merge: str
    targets: Any
    writes: list[str] | None

    def check(self) -> None:
        """Raises ConfigError for a number, a start or a merge that does not exist."""
        super().check()
        if not 1 <= self.blocks <= MOST_BLOCKS:
            raise ConfigError(f"tuner.blocks={self.blocks} must be 1, 2 or 3.")
        if self.start not in STARTS:
            raise ConfigError(f"tuner.start={self.start!r} is not known; choose identity or random.")
        if self.merge not in MERGES:
            raise ConfigError(f"tuner.merge={self.merge!r} is not known; choose logits (the paper's) or embeddings.")
        check_targets("tuner.targets", self.targets, empty="names no block; give the first one, or null.")
        check_targets(
            "tuner.writes", self.writes, empty="silences nothing, so no block would start as the identity; give names."
        )
        if isinstance(self.targets, list) and len(self.targets) > 1:
            raise ConfigError(f"tuner.targets={self.targets} must name one block, the first.")
        if self.targets is not None and self.writes is None:
            raise ConfigError("tuner.targets names a block, and tuner.writes what in it writes into the stream; give both.")


@dataclass
class ControlTunerConfig(TunerConfig):
    """What the chosen control puts into the model. `joint_rate`: the control's rate while the model is trained with it."""

    joint_rate: float


def check_lora(group: str, rank: int, alpha: float, dropout: float) -> None:
    """Raises ConfigError for a LoRA that cannot be built."""
    if rank < 1 or not 0 <= dropout < 1 or not math.isfinite(alpha):
        raise ConfigError(
            f"{group}.rank={rank} must be at least 1, {group}.alpha={alpha} finite and {group}.dropout={dropout} in [0, 1)."
        )


def check_targets(key: str, targets: Any, *, empty: str | None = None) -> None:
    """Raises ConfigError for what is neither null, nor a pattern, nor a list of names. `empty`: the word on an empty list."""
    if targets is None:
        return
    if isinstance(targets, str) and targets:
        try:
            re.compile(targets)
        except re.error as error:
            raise ConfigError(f"{key}={targets} is no pattern ({error}); give one, or a list of names.") from error
    elif not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise ConfigError(f"{key}={targets!r} must be a list of names, one pattern that matches whole names, or null.")
    elif not targets and empty is not None:
        raise ConfigError(f"{key}=[] {empty}")
