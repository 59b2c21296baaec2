"""RAHF's config: which stages make a row, under which direction_source, and where paper and official code differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from alignlab.data.config import HALVES, HalvesConfig, PrefixConfig
from alignlab.errors import ConfigError
from alignlab.methods.config import MethodConfig, between, one_of
from alignlab.models.config import LayersConfig
from alignlab.training.config import FitConfig
from alignlab.tuners.config import check_lora

STAGES = ["sft", "instruct", "dispreferred", "preferred", "shift", "fit"]
"""In the order in which they can follow each other."""


@dataclass
class UpdateConfig:
    """A LoRA on queries and values of every block, by which `preferred` and `dispreferred` are trained."""

    rank: int
    alpha: float
    dropout: float


@dataclass
class RahfConfig(MethodConfig):
    """`variant`: a row of `variants`, which names its stages and numbers; `preset`: a row of `presets`, where alignlab, paper
    and official code differ. Both are read by the other keys, each of which can be set by itself.

    `direction_source`: prefixes (one model, three inputs) | models (one input, two models). `contrast`: mean | sum of the
    response's
    log-probabilities; `smoothing`: of its label. `fit_prefix`: the preferred model reads the good prefix in `shift` and
    `fit`. `distance`: norm | squared. `kl`: weight of KL(before || after) of the next token, nats per response token.
    `window`: response tokens used, from the first; `prompt_tokens`: to which prefix and prompt are cut, null = none.
    `responses`: one (a fair coin by `coin_seed`) | both. `sample`: groups that `shift` looks at. `halves`: the data's; with
    them, stages before `shift` work on split rm, the others on ppo, without them all on train. `cached`: `shift` keeps the
    states of every token, up to `cache_mib`, and `fit` reads them. `update`: null = `preferred` and `dispreferred` move every
    weight.
    """

    name: str
    variant: str
    preset: str
    variants: dict[str, dict[str, Any]]
    presets: dict[str, dict[str, Any]]
    stages: list[str]
    direction_source: str
    layers: LayersConfig
    beyond: int
    alpha: float
    window: int | None
    prompt_tokens: int | None
    responses: str
    coin_seed: int
    prefixes: PrefixConfig
    halves: HalvesConfig | None
    part: str | None
    contrast: str
    smoothing: float
    distance: str
    fit_prefix: bool
    kl: float
    sample: int
    cached: bool
    cache_mib: float
    update: UpdateConfig | None
    sft: FitConfig
    instruct: FitConfig
    preferred: FitConfig
    dispreferred: FitConfig
    fit: FitConfig

    def check(self) -> None:
        """Raises ConfigError for values outside their range, and for stages that do not make a row."""
        for stage in ("sft", "instruct", "preferred", "dispreferred", "fit"):
            getattr(self, stage).check(f"method.{stage}")
        one_of("method.direction_source", self.direction_source, ["prefixes", "models"])
        one_of("method.contrast", self.contrast, ["mean", "sum"])
        one_of("method.distance", self.distance, ["norm", "squared"])
        one_of("method.responses", self.responses, ["one", "both"])
        self.layers.check("method.layers")
        between("method.smoothing", self.smoothing, 0, 0.5)
        between("method.kl", self.kl, 0, 1e3)
        for name, number in (("alpha", self.alpha), ("cache_mib", self.cache_mib)):
            if not math.isfinite(number):
                raise ConfigError(f"method.{name}={number} must be a finite number.")
        for key in ("window", "prompt_tokens", "sample"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"method.{key}={value} must be at least 1.")
        for stage in ("instruct", "fit"):
            if getattr(self, stage).loss_on != "response":
                raise ConfigError(f"method.{stage}.loss_on must be response: what is compared stands behind different prompts.")
        self._check_stages()
        self._check_data()

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order."""
        return {stage: getattr(self, stage) for stage in self.stages if stage != "shift"}

    def reads(self, stage: str) -> tuple[str, int]:
        """One half of the data, if there are halves; and of a pair both responses, or the one that is looked for."""
        first, second = self.splits
        if stage == "instruct":
            return first, 2
        return (second, 2 if self.responses == "both" else 1) if stage == "fit" else (first, 1)

    def shared(self) -> dict[str, Any]:
        """Those that train before states are compared; each with what it reads of this config."""
        read: dict[str, list[Any]] = {
            "sft": [],
            "instruct": [self.prefixes, self.contrast, self.smoothing],
            "dispreferred": [self.update],
            "preferred": [self.update],
        }
        return {stage: [getattr(self, stage), self.halves, *read[stage]] for stage in self.stages if stage in read}

    @property
    def prefix_texts(self) -> tuple[str, str]:
        """What stands in front of a prompt to ask for a good, and for a bad answer."""
        return f"{self.prefixes.better}{self.prefixes.separator}", f"{self.prefixes.worse}{self.prefixes.separator}"

    @property
    def reads_prefixes(self) -> bool:
        """Whether any stage has a prefix in front of its prompts."""
        compares = not {"shift", "fit"}.isdisjoint(self.stages)
        return "instruct" in self.stages or (compares and (self.direction_source == "prefixes" or self.fit_prefix))

    @property
    def splits(self) -> tuple[str, str]:
        """What the stages before `shift` work on, and the others."""
        return ("train", "train") if self.halves is None else HALVES

    @property
    def compares_models(self) -> bool:
        """Whether `shift` and `fit` need a second model."""
        return self.direction_source == "models" and not {"shift", "fit"}.isdisjoint(self.stages)

    def _check_stages(self) -> None:
        places = [STAGES.index(stage) for stage in self.stages if stage in STAGES]
        if not self.stages or places != sorted(set(places)) or len(places) < len(self.stages):
            raise ConfigError(f"method.stages={self.stages} must be some of {', '.join(STAGES)}, in this order.")
        if self.compares_models and not {"preferred", "dispreferred"} <= set(self.stages):
            raise ConfigError("method.direction_source=models compares two models; add the stages dispreferred and preferred.")
        if "dispreferred" in self.stages and not self.compares_models:
            raise ConfigError(
                "stage dispreferred trains a second model that no later stage reads; set method.direction_source=models."
            )
        if self.cached and "shift" not in self.stages:
            raise ConfigError("method.cached=true keeps what stage shift sees; add it to method.stages.")
        if self.update is not None:
            check_lora("method.update", self.update.rank, self.update.alpha, self.update.dropout)
            if "preferred" not in self.stages:
                raise ConfigError(
                    "method.update is how preferred and dispreferred are trained, which method.stages does not have."
                )

    def _check_data(self) -> None:
        if self.part is not None:
            raise ConfigError(
                f"data.part={self.part} is for methods that train on one half, and rahf reads both; set it to null."
            )
        if self.reads_prefixes and not (self.prefixes.better and self.prefixes.worse):
            other = "method.fit_prefix=false" if self.direction_source == "models" else "method.variant=dual"
            raise ConfigError(
                "method=rahf reads a prefix pair here, and data.prefixes has none; give data.prefixes.better=TEXT and"
                f" data.prefixes.worse=TEXT, or set {other}."
            )
