"""RAHF's stages, put together as a row asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from alignlab.data.encode import chosen as chosen_view
from alignlab.data.encode import rejected as rejected_view
from alignlab.methods.rahf.config import RahfConfig
from alignlab.methods.rahf.contrast import Contrast
from alignlab.methods.rahf.directions import DirectionSource, Models, Prefixes, Stored
from alignlab.methods.rahf.match import Match
from alignlab.methods.rahf.views import InstructionVariants, PromptVariants
from alignlab.training.collect import CollectStage
from alignlab.training.method import Method, Stage
from alignlab.training.objectives import nll
from alignlab.training.parts import THE_BACKBONE
from alignlab.training.second_model import SecondModel
from alignlab.training.stages import TrainStage, Truncation
from alignlab.tuners.update import UpdateShape


def method(config: RahfConfig) -> Method:
    """`sft`, `preferred`: the backbone, on chosen responses. `instruct`: the backbone, under the prefixes. `dispreferred`: a
    second model, on rejected responses. `shift` looks at the difference that `fit` moves the tuner's states by."""
    given = config.update
    through = None if given is None else UpdateShape(given.rank, given.alpha, given.dropout)
    second = SecondModel()
    likelihood = partial(TrainStage, split=config.splits[0], objective=nll, trains=THE_BACKBONE)
    chosen, rejected = partial(likelihood, view=chosen_view), partial(likelihood, view=rejected_view)
    made: dict[str, Callable[[], Stage]] = {
        "sft": lambda: chosen("sft", fit=config.sft),
        "instruct": lambda: _instruct(config),
        "dispreferred": lambda: rejected("dispreferred", fit=config.dispreferred, through=through, second=second),
        "preferred": lambda: chosen("preferred", fit=config.preferred, through=through),
    }
    stages = [make() for name, make in made.items() if name in config.stages]
    return Method(config.name, (*stages, *_compared(config, second)))


def _instruct(config: RahfConfig) -> TrainStage:
    better, worse = config.prefix_texts
    objective = Contrast(config.contrast, config.smoothing)
    view = InstructionVariants(better, worse)
    return TrainStage("instruct", config.splits[0], view, objective, config.instruct, trains=THE_BACKBONE)


def _compared(config: RahfConfig, second: SecondModel) -> list[Stage]:
    """`shift` and `fit`, which read the same groups under the same direction_source."""
    better, worse = config.prefix_texts
    by_prefix = config.direction_source == "prefixes"
    direction_source: DirectionSource = Prefixes() if by_prefix else Models(second)
    plain = better if config.fit_prefix and not by_prefix else ""
    view = PromptVariants(
        (plain, better, worse) if by_prefix else (plain,), config.coin_seed if config.responses == "one" else None
    )
    window = Truncation(config.prompt_tokens, config.window)
    stored = Stored() if config.cached else None
    stages: list[Stage] = []
    if "shift" in config.stages:
        stages.append(
            CollectStage(
                "shift",
                config.splits[1],
                view,
                direction_source,
                config.layers,
                window,
                config.sample,
                stored,
                config.cache_mib,
            )
        )
    if "fit" in config.stages:
        objective = Match(config.layers, stored or direction_source, config.alpha, config.distance, config.kl)
        stages.append(TrainStage("fit", config.splits[1], view, objective, config.fit, window=window))
    return stages
