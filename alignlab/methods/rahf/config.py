"""RAHF's config: which stages make a row, under which direction_source, and where paper and official code differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from alignlab.data.halves import HALVES, HalvesConfig, PrefixConfig
from alignlab.errors import ConfigError
from alignlab.methods.config import MethodConfig
from alignlab.registry import number, one_of, random_seed, rank
from alignlab.training.config import FitConfig
from alignlab.tuners.config import LayersConfig

STAGES = ["sft", "instruct", "dispreferred", "preferred", "shift", "fit"]
"""In the order in which they can follow each other."""


@dataclass
class UpdateConfig:
    """A LoRA on queries and values of every block, by which `preferred` and `dispreferred` are trained."""

    rank: Annotated[int, rank()]
    alpha: Annotated[float, number(above=0)]
    dropout: Annotated[float, number(minimum=0, below=1)]


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
    direction_source: Annotated[str, one_of("prefixes", "models")]
    layers: LayersConfig
    beyond: Annotated[int, number(minimum=0)]
    alpha: Annotated[float, number()]
    window: Annotated[int | None, number(minimum=1)]
    prompt_tokens: Annotated[int | None, number(minimum=1)]
    responses: Annotated[str, one_of("one", "both")]
    coin_seed: Annotated[int, random_seed()]
    prefixes: PrefixConfig
    halves: HalvesConfig | None
    part: str | None
    contrast: Annotated[str, one_of("mean", "sum")]
    smoothing: Annotated[float, number(minimum=0, maximum=0.5)]
    distance: Annotated[str, one_of("norm", "squared")]
    fit_prefix: bool
    kl: Annotated[float, number(minimum=0, maximum=1000)]
    sample: Annotated[int, number(minimum=1)]
    cached: bool
    cache_mib: Annotated[float, number(minimum=0)]
    update: UpdateConfig | None
    sft: FitConfig
    instruct: FitConfig
    preferred: FitConfig
    dispreferred: FitConfig
    fit: FitConfig

    def check(self, where: str) -> None:
        """Raises ConfigError for stages that do not make a row, and for data that they cannot read."""
        del where
        for stage in ("instruct", "fit"):
            if getattr(self, stage).loss_on != "response":
                raise ConfigError(f"method.{stage}.loss_on must be response: the compared passes have different prompts.")
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

    def of_the_backbone(self) -> frozenset[str]:
        """Those that leave one model; two models are compared through what a LoRA, or a second model, has become."""
        return frozenset({"sft", "instruct", *(() if self.update else ("preferred",))})

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
            raise ConfigError("method.cached=true keeps the states of stage shift; add it to method.stages.")
        if self.update is not None and "preferred" not in self.stages:
            raise ConfigError("method.update trains preferred and dispreferred, and method.stages has neither; set it to null.")

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
