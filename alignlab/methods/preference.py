"""Methods that learn from pairs: by a preference loss, perhaps after fine-tuning the backbone (DPO and its relatives, CLM), or
with the result distilled at a strength; and reward models, a head of one output on a backbone (arXiv 2203.02155, section 3.5).

CLM (arXiv 2503.04346) is the same training as DPO: its config chooses the tuner `clm`, an identity block in front of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.errors import ConfigError
from alignlab.files import content_keys
from alignlab.methods.config import MethodConfig
from alignlab.models.config import decisive_files
from alignlab.registry import Entry, capabilities, number, one_of, path
from alignlab.training.config import FitConfig

if TYPE_CHECKING:
    from alignlab.training.stages import Method

LOSSES = ["sigmoid", "ipo", "hinge", "robust", "apo_zero"]
REFERENCES = ("base", "start", "none")
MODEL = "model:"
"""In front of the folder of a reference that is another model."""


@dataclass
class PreferenceConfig(MethodConfig):
    """`sft_first`: whether the backbone itself is first fine-tuned on the chosen responses, by `sft`. `smoothing`: fraction
    of flipped labels (sigmoid, robust). `length_norm`: sum | mean over response tokens. `reference`: base (tuner off) | start
    (the stage's first weights) | none | model:PATH (another model with the same vocabulary, a folder of save_pretrained).
    `cache_reference`: compute it once beforehand. `likelihood`: weight of the chosen response's negative log-likelihood per
    token."""

    name: str
    loss: Annotated[str, one_of(*LOSSES)]
    beta: Annotated[float, number(minimum=1e-6, maximum=1000)]
    smoothing: Annotated[float, number(minimum=0, maximum=0.5)]
    length_norm: Annotated[str, one_of("sum", "mean")]
    reference: Annotated[str, path()]
    cache_reference: bool
    likelihood: Annotated[float, number(minimum=0, maximum=1000)]
    prefer: FitConfig
    sft_first: bool
    sft: FitConfig

    def check(self, where: str) -> None:
        """Raises ConfigError for a reference that does not exist, and for combinations without a meaning."""
        if self.other_model is not None:
            _check_model(f"{where}.reference={self.reference}", self.other_model)
        elif self.reference not in REFERENCES:
            known = ", ".join((*REFERENCES, f"{MODEL}PATH"))
            raise ConfigError(f"{where}.reference={self.reference!r} is not known; choose one of {known}.")
        if self.smoothing and self.loss not in ("sigmoid", "robust"):
            raise ConfigError(f"method.smoothing has no meaning for method.loss={self.loss}; set it to 0.")
        if self.loss == "robust" and self.smoothing >= 0.5:
            raise ConfigError(
                "method.smoothing must be below 0.5 for method.loss=robust, whose loss divides by 1 - 2 smoothing."
            )
        if self.loss == "apo_zero" and self.reference == "none":
            raise ConfigError(
                "method.loss=apo_zero compares each response with the reference, and method.reference is none; set it to base."
            )
        if self.prefer.loss_on != "response":
            raise ConfigError("method.prefer.loss_on must be response: a shared prompt says nothing about a preference.")

    @property
    def other_model(self) -> Path | None:
        """The folder of a reference that is another model."""
        return Path(self.reference.removeprefix(MODEL)) if self.reference.startswith(MODEL) else None

    def cache_key(self) -> list[str]:
        """The content of a reference that is another model."""
        return ["model", *content_keys(decisive_files(self.other_model))] if self.other_model else []

    def places(self) -> tuple[str, ...]:
        """Where another model lies; a reference of another kind is none."""
        return ("reference",) if self.other_model else ()

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order."""
        return {"sft": self.sft, "prefer": self.prefer} if self.sft_first else {"prefer": self.prefer}

    def shared(self) -> dict[str, Any]:
        """`sft`, which reads nothing of the preference."""
        return {"sft": self.sft} if self.sft_first else {}

    def of_the_backbone(self) -> frozenset[str]:
        """`sft`."""
        return frozenset(self.shared())


def build(config: PreferenceConfig) -> Method:
    """`sft` if asked for: every weight of the backbone, on chosen responses. `prefer`: the tuner, on pairs."""
    from alignlab.data.encode import chosen, pair
    from alignlab.training.objectives import PreferenceLoss, nll
    from alignlab.training.references import Base, OtherModel, Reference, Start
    from alignlab.training.stages import Method, TrainStage
    from alignlab.training.trainable import THE_BACKBONE

    kind = "model" if config.other_model else config.reference
    objective = PreferenceLoss(config.loss, config.beta, config.smoothing, config.length_norm, kind, config.likelihood)
    cached: Reference | None = None
    if config.other_model:
        cached = OtherModel(config.other_model)
    elif config.reference == "start":  # the stage's first weights no longer exist after its first step
        cached = Start()
    elif config.reference == "base" and config.cache_reference:
        cached = Base()
    prefer = TrainStage("prefer", "train", pair, objective, config.prefer, cached)
    sft = TrainStage("sft", "train", chosen, nll, config.sft, trains=THE_BACKBONE)
    return Method(config.name, (sft, prefer) if config.sft_first else (prefer,))


def _check_model(given: str, folder: Path) -> None:
    """Raises ConfigError for a folder that holds no whole model in safetensors; `given`: as the config says it."""
    if not folder.is_dir():
        raise ConfigError(f"{given} does not exist; give a folder saved by save_pretrained.")
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{given} is an adapter; `python -m alignlab export RUN` makes a whole model.")
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{given} holds no config.json with *.safetensors; give a folder saved by save_pretrained.")


ENTRY = Entry(PreferenceConfig, build, requires=capabilities("pairs"), provides=capabilities("training"))


@dataclass
class RewardConfig(MethodConfig):
    """`margin`: by how much more reward the chosen response should get. `centring`: weight of the squared sum of a pair's
    rewards."""

    name: str
    margin: Annotated[float, number(minimum=0, maximum=1000)]
    centring: Annotated[float, number(minimum=0, maximum=1000)]
    fit: FitConfig

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order."""
        return {"fit": self.fit}


def build_reward(config: RewardConfig) -> Method:
    """`fit`: the tuner and the head, on pairs."""
    from alignlab.data.encode import pair
    from alignlab.training.objectives import RewardLoss
    from alignlab.training.stages import Method, TrainStage

    return Method(config.name, (TrainStage("fit", "train", pair, RewardLoss(config.margin, config.centring), config.fit),))


REWARD = Entry(
    RewardConfig,
    build_reward,
    requires=capabilities("pairs", "response scores"),
    provides=capabilities("training", "reward training"),
)


@dataclass
class DistillConfig(MethodConfig):
    """`aligned`: a checkpoint with the vocabulary of the run's model; null = stage `prefer` trains one by DPO, every weight,
    with `beta` and `likelihood` as there. `teacher_strength`: s of the mixture s z_aligned + (1 - s) z_backbone that the tuner
    learns."""

    name: str
    aligned: Annotated[str | None, path()]
    teacher_strength: Annotated[float, number()]
    beta: Annotated[float, number(minimum=1e-6, maximum=1000)]
    likelihood: Annotated[float, number(minimum=0, maximum=1000)]
    prefer: FitConfig
    fit: FitConfig

    def check(self, where: str) -> None:
        """Raises ConfigError for a folder without a whole model, and for stages that train on prompts."""
        if self.aligned is not None:
            _check_model(f"{where}.aligned={self.aligned}", Path(self.aligned))
        for name, fit in self.fits().items():
            if fit.loss_on != "response":
                raise ConfigError(f"{where}.{name}.loss_on must be response: prompts have no weight in this method.")

    def cache_key(self) -> list[str]:
        """The content of the aligned model."""
        return content_keys(decisive_files(Path(self.aligned))) if self.aligned is not None else []

    def places(self) -> tuple[str, ...]:
        """Where the aligned model lies."""
        return () if self.aligned is None else ("aligned",)

    def fits(self) -> dict[str, FitConfig]:
        """The stages that train, in order."""
        return {"prefer": self.prefer, "fit": self.fit} if self.aligned is None else {"fit": self.fit}

    def shared(self) -> dict[str, Any]:
        """`prefer`, which reads nothing of the strength."""
        return {"prefer": [self.prefer, self.beta, self.likelihood]} if self.aligned is None else {}


def build_distill(config: DistillConfig) -> Method:
    """`prefer`, where no aligned model is given: a second model, on pairs. `fit`: the tuner, on chosen responses."""
    from alignlab.data.encode import chosen, pair
    from alignlab.training.objectives import Distillation, PreferenceLoss
    from alignlab.training.references import Base, OtherModel, SecondModel
    from alignlab.training.stages import Method, TrainStage
    from alignlab.training.trainable import THE_BACKBONE

    aligned = SecondModel() if config.aligned is None else OtherModel(Path(config.aligned), "method.aligned=")
    fit = TrainStage("fit", "train", chosen, Distillation(aligned, config.teacher_strength), config.fit)
    if isinstance(aligned, OtherModel):
        return Method(config.name, (fit,))
    loss = PreferenceLoss("sigmoid", config.beta, 0.0, "sum", "base", config.likelihood)
    prefer = TrainStage("prefer", "train", pair, loss, config.prefer, Base(), trains=THE_BACKBONE, second=aligned)
    return Method(config.name, (prefer, fit))


def _distill_requires(config: DistillConfig) -> frozenset[str]:
    """Texts to learn on; and where an aligned model is trained first, pairs and weights in which small steps count."""
    always = {"chosen", "token likelihood"}
    return frozenset(always if config.aligned is not None else {*always, "pairs", "float32 weights"})


DISTILL = Entry(DistillConfig, build_distill, requires=_distill_requires, provides=capabilities("training"))
