"""What is learned on top of a backbone: one table; the parts that need torch are imported when one is built.

Every `build` takes the tuner's own config, the model, and the configuration of the run's control where it has classes.
"""

from __future__ import annotations

from typing import Any

from alignlab.registry import Entry, Registry, capabilities
from alignlab.tuners.config import (
    BitfitConfig,
    BlocksConfig,
    ClmTunerConfig,
    ControlTunerConfig,
    DeraConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    LowerLoraConfig,
    RedTunerConfig,
)


def _full(config: FullConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.weights import full

    return full(config, model)


def _bitfit(config: BitfitConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.weights import bitfit

    return bitfit(config, model)


def _blocks(config: BlocksConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.weights import blocks

    return blocks(config, model)


def _dera(config: DeraConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.dera import build

    return build(config, model)


def _clm(config: ClmTunerConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.clm.tuner import build

    return build(config, model)


def _lora(config: LoraConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.lora import build

    return build(config, model)


def _ia3(config: Ia3Config, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.ia3 import build

    return build(config, model)


def _red(config: RedTunerConfig, model: Any, _control: Any = None) -> Any:
    from alignlab.tuners.red.tuner import build

    return build(config, model)


def _control(config: ControlTunerConfig, model: Any, control: Any) -> Any:
    from alignlab.tuners.control.tuner import build

    return build(config, model, control)


_WEIGHTS = capabilities("float32 weights")
_IN_PLACE = capabilities("blocks in place")
_EVERY = capabilities("every weight", "blocks in place")


def _two_models(config: DeraConfig) -> frozenset[str]:
    """An aligned model is trained, or was given and is left as it is."""
    return frozenset({"float32 weights", "training"} if config.aligned is None else {"no training"})


TUNERS = Registry(
    "tuner",
    {
        "full": Entry(FullConfig, _full, requires=_WEIGHTS, provides=_EVERY),
        "bitfit": Entry(BitfitConfig, _bitfit, requires=_WEIGHTS, provides=_IN_PLACE),
        "blocks": Entry(BlocksConfig, _blocks, requires=_WEIGHTS, provides=_IN_PLACE),
        "dera": Entry(DeraConfig, _dera, requires=_two_models, provides=_EVERY),
        "clm": Entry(ClmTunerConfig, _clm),
        "lora": Entry(LoraConfig, _lora, provides=_IN_PLACE),
        "lora_lower": Entry(LowerLoraConfig, _lora, provides=_IN_PLACE),
        "ia3": Entry(Ia3Config, _ia3, provides=_IN_PLACE),
        "red": Entry(RedTunerConfig, _red, provides=_IN_PLACE),
        "control": Entry(
            ControlTunerConfig,
            _control,
            requires=capabilities("classes", "labelled training"),
            provides=capabilities("controls"),
        ),
    },
)
