"""The table of methods. A method is a list of stages over a tuner; methods that differ only in their configs share an entry."""

from __future__ import annotations

from alignlab.methods import controlled, evaluate, likelihood, preference, rahf, tpt
from alignlab.registry import Registry

METHODS = Registry(
    "method",
    {
        "sft": likelihood.CHOSEN,
        "dpo": preference.ENTRY,
        "red": likelihood.CHOSEN,
        "clm": preference.ENTRY,
        "meet": controlled.MEET,
        "coh": controlled.COH,
        "rahf": rahf.ENTRY,
        "tpt": tpt.ENTRY,
        "distill": preference.DISTILL,
        "reward": preference.REWARD,
        "evaluate": evaluate.ENTRY,
        "pretrain": likelihood.PRETRAIN,
    },
)
