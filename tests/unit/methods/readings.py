"""Small batches of RAHF, and its numbers by another way: plain passes of transformers over one text at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.data.batching import whole
from alignlab.data.encode import EVERYTHING, Limits, Truncation, encode
from alignlab.data.source import Source, Split
from alignlab.methods.rahf.objectives import DirectionSource, Match, Prefixes
from alignlab.methods.rahf.stages import PromptVariants
from alignlab.models.policy import Policy
from alignlab.records import Batch, Encoded, EncodedGroup, Record
from alignlab.training.references import SecondModel
from alignlab.training.trainable import THE_BACKBONE, training
from alignlab.tuners.config import LayersConfig
from tests.conftest import CODEC, backbone
from tests.unit.conftest import PAIRS, learned

BETTER, WORSE = " happy, glad, merry.\n\n", " sad.\n\n"  # of unequal length
LEADS = ("", BETTER, WORSE)
PLAIN = ("",)
LAYERS = [1, 2]
RECORDS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
SOURCE = Source("made", {"train": lambda: Split(RECORDS)})
LIMITS = Limits(128, "error")


def layers_of(*numbers: int) -> LayersConfig:
    """A config that numbers its layers."""
    return LayersConfig(list(numbers), [0.3, 0.6])


def match(
    direction_source: DirectionSource | None = None,
    *,
    alpha: float = 5.0,
    distance: str = "norm",
    kl: float = 0.0,
    layers: Sequence[int] = LAYERS,
) -> Match:
    """The objective, under prefixes unless given otherwise."""
    return Match(layers_of(*layers), direction_source or Prefixes(), alpha, distance, kl)


def groups_of(
    prefixes: Sequence[str] = LEADS, *, records: Sequence[Record] = RECORDS, truncation: Truncation = EVERYTHING
) -> list[EncodedGroup]:
    """Every response of some records behind every prefix."""
    groups, _ = encode(Split(tuple(records)), PromptVariants(tuple(prefixes), None), CODEC.examples, truncation(LIMITS))
    return groups


def batch_of(prefixes: Sequence[str] = LEADS) -> Batch:
    """All of them as one batch that is a step by itself."""
    return whole(groups_of(prefixes), CODEC.pad)


def states(model: nn.Module, member: Encoded, layers: Sequence[int] = LAYERS) -> Tensor:
    """transformers' own hidden states of one text at its response tokens, L,K,D."""
    with torch.no_grad():
        found = model(torch.tensor([member.ids]), output_hidden_states=True).hidden_states
    return torch.stack([found[layer][0, member.start :] for layer in layers])


def all_states(model: nn.Module, groups: Sequence[EncodedGroup], number: int, layers: Sequence[int] = LAYERS) -> Tensor:
    """The same of one member of each group, one behind the other."""
    return torch.cat([states(model, group.members[number], layers) for group in groups], dim=1)


def mean_norm(states_LKD: Tensor) -> float:
    """Over layers and tokens; in double precision."""
    return float(states_LKD.double().square().sum(-1).sqrt().mean())


def moved(kind: str, *, spread: float = 0.05) -> PreTrainedModel:
    """The plain backbone with other numbers."""
    model = backbone(kind).model
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model


def second_of(policy: Policy, model: nn.Module) -> SecondModel:
    """A second model that was trained to the weights of another one."""
    second = SecondModel()
    with training(policy, THE_BACKBONE, second=second) as part, torch.no_grad():
        for mine, theirs in zip(part.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
    return second


def weights(policy: Policy) -> dict[str, Tensor]:
    """Every parameter by name, as it is now."""
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def of_the_tuner(policy: Policy) -> set[str]:
    """The names of the tuner's parameters."""
    own = {id(parameter) for parameter in learned(policy)}
    return {name for name, parameter in policy.model.named_parameters() if id(parameter) in own}


def gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor | None]:
    """The gradient of each of the tuner's parameters, by name."""
    policy.model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    own = of_the_tuner(policy)
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in policy.model.named_parameters()
        if name in own
    }
