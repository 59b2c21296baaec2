"""The one table of controls: every form on small backbones, two classes or three, and the parts that their tests arrange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.data.batching import whole
from alignlab.models.backbone import Backbone
from alignlab.models.decode import Streams
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import ClassMixture
from alignlab.records import Batch, EncodedGroup, Example
from alignlab.tuners import TUNERS
from alignlab.tuners.config import ControlTunerConfig
from alignlab.tuners.control import ControlConfig
from tests.conftest import CODEC
from tests.contracts.table import PAIRS

TWO, THREE = ("good", "bad"), ("good", "bad", "dull")
PHRASES = {"good": "A happy story.", "bad": "A sad story about Anna.", "dull": "Weary."}
PLACEHOLDERS = {"good": 127, "bad": 128, "dull": 180}  # bytes that UTF-8 never has
PROMPTS = [prompt for prompt, *_ in PAIRS]
HALVES: ClassMixture = {"good": 0.5, "bad": 0.5}
IDS = torch.tensor([[1, 8, 9, 10, 11, 12], [1, 20, 30, 40, 50, 60], [1, 5, 5, 7, 9, 11]])


@dataclass(frozen=True)
class Case:
    """A form on a backbone. `parameters`: how many it learns, derived by hand: a llama here is 32 wide and has three blocks of
    queries (32 to 32) and values (32 to 16), a gpt2 three of c_attn (32 to 96)."""

    form: str
    backbone: str
    parameters: int = 0
    classes: tuple[str, ...] = TWO
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        extra = [f"{key}{value}" for key, value in self.settings.items()]
        return "-".join((self.form, self.backbone, f"{len(self.classes)}classes", *extra))


CASES = (
    Case("text", "llama", 0, THREE),
    Case("text", "gpt2", 0),
    Case("text", "llama", 0, settings={"behind": 0}),
    Case("token", "llama", 2 * 32),
    Case("token", "gpt2", 3 * 32, THREE),
    Case("soft_prompt", "llama", 3 * 5 * 32, THREE, {"length": 5}),
    Case("soft_prompt", "llama", 2 * 5 * 32, settings={"length": 5, "behind": 0}),
    Case("soft_prompt", "gpt2", 2 * 3 * 32, settings={"length": 3}),
    Case("lora", "llama", 3 * 4 * 3 * (32 + 32 + 32 + 16), THREE),
    Case("lora", "gpt2", 2 * 4 * 3 * (32 + 96)),
)
LEARNED = tuple(case for case in CASES if case.parameters)  # a phrase has nothing to learn
PAIRED = tuple(case for case in CASES if case.classes == TWO)  # a strength lies between two
EMBEDDED = tuple(case for case in CASES if case.form in ("token", "soft_prompt"))  # the others have no placeholders
FACTORED = tuple(case for case in CASES if case.form == "lora")  # the others put something into the text


def configured(case: Case, **changes: Any) -> ControlConfig:
    """The adapter's configuration."""
    values: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "form": case.form,
        "classes": list(case.classes),
        "length": 1,
        "placeholders": [PLACEHOLDERS[name] for name in case.classes],
        "phrases": [list(CODEC.prefix(PHRASES[name])) for name in case.classes],
        "init": "random",
        "rank": 4,
        "alpha": 8.0,
        "template": CODEC.template_hash,
    }
    return ControlConfig(**{**values, **case.settings, **changes})


def attach(case: Case, backbone: Backbone, *, seed: int = 0, **changes: Any) -> Policy:
    """A policy with a new control."""
    config = ControlTunerConfig(name="control", likelihood_rate=1e-2, preference_rate=1e-2, joint_rate=1e-3)
    torch.manual_seed(seed)
    return Policy(backbone, TUNERS["control"].build(config, backbone.model, configured(case, **changes)))


def trained(case: Case, backbone: Backbone, **changes: Any) -> Policy:
    """A policy whose control holds numbers as a training could have left them."""
    policy = attach(case, backbone, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learned(policy):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def learned(policy: Policy) -> list[nn.Parameter]:
    """The control's parameters; the first dimension of each is the class."""
    parameters: list[nn.Parameter] = policy.tuner.parameters()  # type: ignore[attr-defined]
    return parameters


def items(classes: Sequence[str]) -> list[EncodedGroup]:
    """The eight responses of the pairs, each under the next class in turn."""
    texts = [(prompt, answer) for prompt, *answers in PAIRS for answer in answers]
    examples = [Example(*text, classes[number % len(classes)]) for number, text in enumerate(texts)]
    rows = [f"item {number}" for number in range(len(texts))]
    return [EncodedGroup(row, (member,)) for row, member in zip(rows, CODEC.examples(examples, rows), strict=True)]


def batch_of(groups: Sequence[EncodedGroup]) -> Batch:
    """Items as a batch that is a step by itself."""
    return whole(groups, CODEC.pad)


def unclassed(batch: Batch) -> Batch:
    """The same texts, and nothing said of classes."""
    return replace(batch, controls=None)


def totals(policy: Policy, batch: Batch) -> Tensor:
    """log p(response) of each item, without gradients."""
    with torch.no_grad():
        return policy.logprobs(batch).total_GM


def totals_under(policy: Policy, control: ClassMixture, batch: Batch) -> Tensor:
    """The same with every item under one class, or mixture of classes."""
    with policy.under(control):
        return totals(policy, batch)


def last_logits(policy: Policy, control: ClassMixture) -> Tensor:
    """Logits after some ids under a class, as generation meets them."""
    assert policy.tuner.controls is not None
    passes = policy.tuner.controls.passes(policy.tuner.controls.mixtures(control, len(IDS)))
    with torch.no_grad(), Streams(policy.model, policy.tuner, passes, len(IDS), IDS.device) as streams:
        return streams.step(IDS, torch.ones_like(IDS))


def said(policy: Policy, control: ClassMixture | Sequence[ClassMixture], temperature: float = 0.0) -> list[str]:
    """What the prompts are answered with under a class, or one class per prompt."""
    return policy.respond(PROMPTS, control=control, sampling=Sampling(8, temperature, 1.0), seed=0)
