"""The one table of settings that every contract test runs over. An exception to a contract is a column, with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignlab.data.batching import whole
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.models.strength import Prefix
from alignlab.records import Batch, EncodedGroup, Example
from alignlab.tuners import TUNERS

PAIRS = (
    ("Tell a story about Tom and a kite.", "Tom was happy.", "Tom was sad and lost his kite. He went home."),
    ("Tell a short story about Anna.", "Anna found a red ball. She was proud.", "Anna fell."),
    ("Tell a story.", "Once there was a dog.", "The cat was angry. The end."),
    ("Tell a gloomy story about Sam and a boat.", "Sam lost the boat.", "Sam saw a boat. It was glad."),
)


@dataclass(frozen=True)
class Case:
    """A tuner on a backbone. `per_row`: whether rows of one batch may differ in strength. `starts_as_base`: whether a new one
    changes nothing."""

    tuner: str
    backbone: str
    settings: dict[str, Any] = field(default_factory=dict)
    per_row: bool = True
    starts_as_base: bool = True

    def __str__(self) -> str:
        extra = "-".join(str(value) for value in self.settings.values())
        return "-".join(filter(None, (self.tuner, self.backbone, extra)))


OPEN: dict[str, dict[str, Any]] = {
    "red": {"targets": None},
    "ia3": {"targets": None, "feedforward": None},
    "adapter": {"targets": None, "drop": 0},
    "clm": {"targets": None, "writes": None},
    "loreft": {"layers": None},
}
"""What a case leaves to the tables, unless it names it."""

_LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []}
CASES = (
    Case("full", "llama", per_row=False),  # a weight is shared by all rows
    Case("full", "gpt2", per_row=False),
    Case("bitfit", "gpt2", per_row=False),  # not on llama, which has no biases
    Case("lora", "llama", _LORA),
    Case("lora", "gpt2", _LORA),
    Case("ia3", "llama", per_row=False),  # peft's layer multiplies by one vector
    Case("ia3", "gpt2", per_row=False),
    Case("red", "llama", {"edit": "both", "place": "ffn"}),
    Case("red", "gpt2", {"edit": "both", "place": "ffn"}),
    Case("red", "llama", {"edit": "scale", "place": "ffn"}),
    Case("red", "llama", {"edit": "shift", "place": "ffn"}),
    Case("red", "llama", {"edit": "both", "place": "plus"}),
    Case("adapter", "llama", {"bottleneck": 4, "place": "ffn", "norms": False}),
    Case("adapter", "gpt2", {"bottleneck": 4, "place": "both", "norms": True}),
    Case("loreft", "llama", {"rank": 3}),
    Case("loreft", "gpt2", {"rank": 3, "layers": [1, 3]}),
    Case("clm", "llama", {"blocks": 1, "start": "identity", "merge": "logits"}),
    Case("clm", "gpt2", {"blocks": 1, "start": "identity", "merge": "logits"}),
    Case("clm", "llama", {"blocks": 3, "start": "identity", "merge": "logits"}),
    Case("clm", "llama", {"blocks": 1, "start": "identity", "merge": "embeddings"}),
    Case("blocks", "llama", {"side": "bottom", "count": 1}, per_row=False),
    Case("blocks", "gpt2", {"side": "top", "count": 2}, per_row=False),
    Case("dera", "llama", {"aligned": None}),
    Case("dera", "gpt2", {"aligned": None}),
    Case("prefix", "llama", {"length": 5, "init": "vocabulary"}, starts_as_base=False),  # more keys in every block
    Case("prefix", "gpt2", {"length": 5, "init": "random"}, starts_as_base=False),
    Case("prompt", "llama", {"length": 5, "init": "vocabulary"}, starts_as_base=False),  # vectors in front of every text
    Case("prompt", "gpt2", {"length": 5, "init": "random"}, starts_as_base=False),
)


def attach(case: Case, backbone: Backbone, *, seed: int = 0) -> Policy:
    """A policy whose tuner is new, so it is the identity."""
    entry = TUNERS[case.tuner]
    settings = {**OPEN.get(case.tuner, {}), **case.settings}
    config = entry.config(name=case.tuner, likelihood_rate=1e-2, preference_rate=1e-2, **settings)
    torch.manual_seed(seed)
    return Policy(backbone, entry.build(config, backbone.model))


def trained(case: Case, backbone: Backbone) -> Policy:
    """A policy whose tuner holds numbers as a training could have left them."""
    policy = attach(case, backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.tuner.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def groups(policy: Policy, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> list[EncodedGroup]:
    """Pairs as ids."""
    made = []
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        examples = [Example(prompt, chosen), Example(prompt, rejected)]
        rows = [f"pair {number}"] * 2
        made.append(EncodedGroup(rows[0], tuple(policy.backbone.codec.examples(examples, rows))))
    return made


def batch(policy: Policy, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> Batch:
    """Pairs as one batch."""
    return whole(groups(policy, pairs), policy.backbone.codec.pad)


def logits(policy: Policy) -> Tensor:
    """Logits of the backbone's own forward pass on a few ids, behind what the policy puts in front of a text."""
    front = torch.tensor(front_of(policy).ids, dtype=torch.long).expand(2, -1)
    with torch.no_grad():
        result: Tensor = policy.model(torch.cat([front, torch.arange(3, 19).reshape(2, 8)], dim=1)).logits
    return result[:, front.shape[1] :]


def front_of(policy: Policy) -> Prefix:
    """What stands in front of every text at the present strength."""
    return (policy._passes or policy.tuner.passes(1.0))[0].prefix
