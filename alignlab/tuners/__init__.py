"""The table of tuners: what is learned on top of a backbone. The modules, which need torch, are imported when one is built."""

from __future__ import annotations

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
    LoreftTunerConfig,
    LowerLoraConfig,
    PrefixFormConfig,
    PrefixTunerConfig,
    PromptTunerConfig,
    RedTunerConfig,
    StrengthConfig,
    TokenBankTunerConfig,
)


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
        "full": Entry(FullConfig, deferred(f"{__name__}.weights.full", first=2), requires=_WEIGHTS, provides=_EVERY),
        "bitfit": Entry(BitfitConfig, deferred(f"{__name__}.weights.bitfit", first=2), requires=_WEIGHTS, provides=_IN_PLACE),
        "blocks": Entry(BlocksConfig, deferred(f"{__name__}.weights.blocks", first=2), requires=_WEIGHTS, provides=_IN_PLACE),
        "dera": Entry(DeraConfig, deferred(f"{__name__}.weights.dera", first=2), requires=_two_models, provides=_EVERY),
        "clm": Entry(ClmTunerConfig, deferred(f"{__name__}.clm.tuner.build", first=2)),
        "lora": Entry(LoraConfig, deferred(f"{__name__}.lora.build", first=2), provides=_IN_PLACE),
        "lora_lower": Entry(LowerLoraConfig, deferred(f"{__name__}.lora.build", first=2), provides=_IN_PLACE),
        "ia3": Entry(Ia3Config, deferred(f"{__name__}.ia3.build", first=2), provides=_IN_PLACE),
        "adapter": Entry(AdapterTunerConfig, deferred(f"{__name__}.adapter.build", first=2), provides=_IN_PLACE),
        "loreft": Entry(LoreftTunerConfig, deferred(f"{__name__}.loreft.build", first=2), provides=_IN_PLACE),
        "prefix": Entry(PrefixTunerConfig, deferred(f"{__name__}.prefix.build", first=2), provides=_IN_PLACE),
        "prompt": Entry(PromptTunerConfig, deferred(f"{__name__}.prompt.build", first=2), provides=_IN_PLACE),
        "red": Entry(RedTunerConfig, deferred(f"{__name__}.red.tuner.build", first=2), provides=_IN_PLACE),
        "token_bank": Entry(
            TokenBankTunerConfig,
            deferred(f"{__name__}.token_bank.tuner.build", first=2),
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
