"""RAHF's stages as a row of `variants` asks for them, and how they see a record: one response behind different prefixes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from alignlab.data.encode import Truncation
from alignlab.data.encode import chosen as chosen_view
from alignlab.data.encode import rejected as rejected_view
from alignlab.methods.rahf.config import RahfConfig
from alignlab.methods.rahf.objectives import Contrast, DirectionSource, Match, Models, Prefixes
from alignlab.records import Example, Group, Record
from alignlab.training.collect import CollectStage, Stored
from alignlab.training.objectives import nll
from alignlab.training.references import SecondModel
from alignlab.training.stages import Method, Stage, TrainStage
from alignlab.training.trainable import THE_BACKBONE
from alignlab.tuners.lora import UpdateShape


def method(config: RahfConfig) -> Method:
    """`sft`, `preferred`: the backbone, on chosen responses. `instruct`: the backbone, under the prefixes. `dispreferred`: a
    second model, on rejected responses. `shift` looks at the difference that `fit` moves the tuner's states by."""
    given = config.update
    update = None if given is None else UpdateShape(given.rank, given.alpha, given.dropout)
    second = SecondModel()
    likelihood = partial(TrainStage, split=config.splits[0], objective=nll, trains=THE_BACKBONE)
    chosen, rejected = partial(likelihood, view=chosen_view), partial(likelihood, view=rejected_view)
    made: dict[str, Callable[[], Stage]] = {
        "sft": lambda: chosen("sft", fit=config.sft),
        "instruct": lambda: _instruct(config),
        "dispreferred": lambda: rejected("dispreferred", fit=config.dispreferred, update=update, second=second),
        "preferred": lambda: chosen("preferred", fit=config.preferred, update=update),
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
    truncation = Truncation(config.prompt_tokens, config.window)
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
                truncation,
                config.sample,
                stored,
                config.cache_mib,
            )
        )
    if "fit" in config.stages:
        objective = Match(config.layers, stored or direction_source, config.alpha, config.distance, config.kl)
        stages.append(TrainStage("fit", config.splits[1], view, objective, config.fit, truncation=truncation))
    return stages


@dataclass(frozen=True)
class InstructionVariants:
    """Each response of a pair behind the prefix that fits it, and behind the other: two groups of two members."""

    better: str
    worse: str

    def __call__(self, record: Record) -> tuple[Group, ...]:
        """The chosen response's group, then the rejected one's."""
        sides = (("chosen", self.better, self.worse), ("rejected", self.worse, self.better))
        found = [(record.labelled(label), matching, other) for label, matching, other in sides]
        if any(response is None for response, _, _ in found):
            return ()
        return tuple(
            Group(f"{record.row}/{number}", tuple(Example(record.prompt, response.text, prefix=prefix) for prefix in prefixes))
            for number, (response, *prefixes) in enumerate(found)
            if response is not None
        )


@dataclass(frozen=True)
class PromptVariants:
    """Responses of a pair, each behind every one of `prefixes`. `coin_seed`: one response per record, by a fair coin that
    depends on the record's row alone; None takes both."""

    prefixes: tuple[str, ...]
    coin_seed: int | None

    def __call__(self, record: Record) -> tuple[Group, ...]:
        """One group, or one for each response."""
        texts = [record.labelled("chosen"), record.labelled("rejected")]
        if None in texts:
            return ()
        heads = self.coin_seed is not None and Random(f"{self.coin_seed}/{record.row}").random() < 0.5
        wanted = (0, 1) if self.coin_seed is None else (0 if heads else 1,)
        return tuple(
            Group(
                f"{record.row}/{number}",
                tuple(Example(record.prompt, response.text, prefix=prefix) for prefix in self.prefixes),
            )
            for number, response in enumerate(texts)
            if response is not None and number in wanted
        )
