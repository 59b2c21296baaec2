"""RAHF's stages, put together as a row asks for them."""

from __future__ import annotations

from collections.abc import Callable

from alignlab.data import views
from alignlab.methods.rahf.config import RahfConfig
from alignlab.methods.rahf.contrast import Contrast
from alignlab.methods.rahf.match import Match
from alignlab.methods.rahf.stimuli import Models, Prefixes, Stimuli, Stored
from alignlab.methods.rahf.views import Beside, Instructed
from alignlab.training.collect import CollectStage
from alignlab.training.method import Method, Stage
from alignlab.training.moves import TheBackbone
from alignlab.training.objectives import nll
from alignlab.training.second import SecondModel, ThroughLora
from alignlab.training.stages import TrainStage, Window
from alignlab.tuners.update import UpdateShape


def method(config: RahfConfig) -> Method:
    """`sft`, `preferred`: the backbone, on chosen responses. `instruct`: the backbone, under the prefixes. `dispreferred`: a
    second model, on rejected responses. `shift` looks at the difference that `fit` moves the tuner's states by."""
    given = config.update
    through = None if given is None else UpdateShape(given.rank, given.alpha, given.dropout)
    second = SecondModel(through)
    preferred = TheBackbone() if through is None else ThroughLora(through)
    split, _ = config.splits
    made: dict[str, Callable[[], Stage]] = {
        "sft": lambda: TrainStage("sft", split, views.chosen, nll, config.sft, moves=TheBackbone()),
        "instruct": lambda: _instruct(config),
        "dispreferred": lambda: TrainStage("dispreferred", split, views.rejected, nll, config.dispreferred, moves=second),
        "preferred": lambda: TrainStage("preferred", split, views.chosen, nll, config.preferred, moves=preferred),
    }
    stages = [make() for name, make in made.items() if name in config.stages]
    return Method(config.name, (*stages, *_compared(config, second)))


def _instruct(config: RahfConfig) -> TrainStage:
    better, worse = config.leads
    objective = Contrast(config.contrast, config.smoothing)
    return TrainStage("instruct", config.splits[0], Instructed(better, worse), objective, config.instruct, moves=TheBackbone())


def _compared(config: RahfConfig, second: SecondModel) -> list[Stage]:
    """`shift` and `fit`, which read the same groups under the same stimuli."""
    better, worse = config.leads
    by_prefix = config.stimuli == "prefixes"
    stimuli: Stimuli = Prefixes() if by_prefix else Models(second)
    plain = better if config.fit_prefix and not by_prefix else ""
    view = Beside((plain, better, worse) if by_prefix else (plain,), config.coin_seed if config.responses == "one" else None)
    window = Window(config.prompt_tokens, config.window)
    stored = Stored() if config.cached else None
    stages: list[Stage] = []
    if "shift" in config.stages:
        stages.append(
            CollectStage(
                "shift", config.splits[1], view, stimuli, config.layers, window, config.sample, stored, config.cache_mib
            )
        )
    if "fit" in config.stages:
        objective = Match(config.layers, stored or stimuli, config.alpha, config.distance, config.kl)
        stages.append(TrainStage("fit", config.splits[1], view, objective, config.fit, window=window))
    return stages
