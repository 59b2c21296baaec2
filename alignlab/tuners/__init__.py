"""The table of tuners: what is learned on top of a backbone. The modules, which need torch, are imported when one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignlab.registry import Entry, Registry, capabilities, deferred
from alignlab.tuners.config import (
    AdapterTunerConfig,
    BitfitConfig,
    BlocksConfig,
    ClmTunerConfig,
    ControlTunerConfig,
    DeraConfig,
    EmbeddedFormConfig,
    FormConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    LoraFormConfig,
    LowerLoraConfig,
    PrefixFormConfig,
    PromptTunerConfig,
    RedTunerConfig,
    StrengthConfig,
    TokenBankTunerConfig,
)


def _from(module: str, function: str = "build") -> Callable[..., Any]:
    """`function` of `alignlab.tuners.module`, called with the tuner's config and the model."""
    build = deferred(f"{__name__}.{module}.{function}")
    return lambda config, model, _control=None: build(config, model)


def _two_models(config: DeraConfig) -> frozenset[str]:
    """An aligned model is trained, or was given and is left as it is."""
    return frozenset({"float32 weights", "training"} if config.aligned is None else {"no training"})


def _bank_parts(config: TokenBankTunerConfig) -> frozenset[str]:
    """A bank that a method can go on from is there, or none is needed."""
    ready = config.bank_from is not None or config.retrieval == "none"
    return frozenset({"token bank", "trained bank"} if ready else {"token bank"})


_WEIGHTS = capabilities("float32 weights")
_IN_PLACE = capabilities("blocks in place")
_EVERY = capabilities("every weight", "blocks in place")

TUNERS = Registry(
    "tuner",
    {
        "full": Entry(FullConfig, _from("weights", "full"), requires=_WEIGHTS, provides=_EVERY),
        "bitfit": Entry(BitfitConfig, _from("weights", "bitfit"), requires=_WEIGHTS, provides=_IN_PLACE),
        "blocks": Entry(BlocksConfig, _from("weights", "blocks"), requires=_WEIGHTS, provides=_IN_PLACE),
        "dera": Entry(DeraConfig, _from("weights", "dera"), requires=_two_models, provides=_EVERY),
        "clm": Entry(ClmTunerConfig, _from("clm.tuner")),
        "lora": Entry(LoraConfig, _from("lora"), provides=_IN_PLACE),
        "lora_lower": Entry(LowerLoraConfig, _from("lora"), provides=_IN_PLACE),
        "ia3": Entry(Ia3Config, _from("ia3"), provides=_IN_PLACE),
        "adapter": Entry(AdapterTunerConfig, _from("adapter"), provides=_IN_PLACE),
        "prompt": Entry(PromptTunerConfig, _from("prompt"), provides=_IN_PLACE),
        "red": Entry(RedTunerConfig, _from("red.tuner"), provides=_IN_PLACE),
        "token_bank": Entry(
            TokenBankTunerConfig,
            _from("token_bank.tuner"),
            requires=capabilities("source apart from the answer"),
            provides=_bank_parts,
        ),
        "control": Entry(
            ControlTunerConfig,
            deferred(f"{__name__}.control.tuner.build"),  # the one that takes the configuration of the run's control, too
            requires=capabilities("classes", "labelled training"),
            provides=capabilities("controls"),
        ),
    },
)


def _classed_by(config: FormConfig) -> frozenset[str]:
    return frozenset({"controls", config.classes.by})


_STRENGTHS = Entry(StrengthConfig, lambda _config, *_: None)  # chooses between no classes
_form = deferred(f"{__name__}.control.config.build_config")
_LEARNED = capabilities("classes", "learned control")
CONTROLS = Registry(
    "control",
    {
        **dict.fromkeys(("trained", "full_strength", "dial", "grid"), _STRENGTHS),
        "text": Entry(FormConfig, _form, requires=_classed_by, provides=capabilities("classes")),
        "prefixes": Entry(PrefixFormConfig, _form, requires=_classed_by, provides=capabilities("classes", "classes as text")),
        "token": Entry(EmbeddedFormConfig, _form, requires=_classed_by, provides=_LEARNED),
        "soft_prompt": Entry(EmbeddedFormConfig, _form, requires=_classed_by, provides=_LEARNED),
        "lora": Entry(LoraFormConfig, _form, requires=_classed_by, provides=_LEARNED),
    },
)
