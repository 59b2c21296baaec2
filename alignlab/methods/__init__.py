"""Methods: one room each, one table. A method is a list of stages over a tuner; no room imports another."""

from __future__ import annotations

from alignlab.methods import clm, coh, dpo, evaluate, meet, pretrain, rahf, red, sft
from alignlab.registry import Registry

METHODS = Registry(
    "method",
    {
        "sft": sft.ENTRY,
        "dpo": dpo.ENTRY,
        "red": red.ENTRY,
        "clm": clm.ENTRY,
        "meet": meet.ENTRY,
        "coh": coh.ENTRY,
        "rahf": rahf.ENTRY,
        "evaluate": evaluate.ENTRY,
        "pretrain": pretrain.ENTRY,
    },
)
