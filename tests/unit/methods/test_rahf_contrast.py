"""The contrast of SCIT, by hand: likely under the prefix that fits, and likelier than under the other one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from alignlab.data.batching import collate, whole
from alignlab.data.encode import encode
from alignlab.data.source import Split
from alignlab.methods.rahf.objectives import Contrast
from alignlab.methods.rahf.stages import InstructionVariants
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Logprobs
from alignlab.records import Batch, Encoded, EncodedGroup
from tests.conftest import CODEC, backbone
from tests.unit.conftest import plain
from tests.unit.methods.readings import BETTER, LIMITS, RECORDS, WORSE

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
every_smoothing = pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
# One response of three tokens behind a prefix of two and behind one of a single token.
MATCHING = Encoded((1, 30, 31, 5, 6, 7, 8), start=4, head=3)
OTHER = Encoded((1, 40, 5, 6, 7, 8), start=3, head=2)
GROUP = EncodedGroup("row", (MATCHING, OTHER))


@dataclass
class Scored:
    """A policy that says what it was told: nats per token of each member, and how many tokens."""

    mean_GM: list[list[float]]
    tokens: int = 4
    tuner = None

    def logprobs(self, batch: Batch) -> Logprobs:
        mean_GM = torch.tensor(self.mean_GM)
        return Logprobs(mean_GM * self.tokens, torch.full_like(mean_GM, self.tokens))


def contrast_at(gap: float, smoothing: float, over: str = "mean", tokens: int = 4) -> float:
    """The contrast alone, at a gap in nats per token."""
    policy = Scored([[-1.0, -1.0 - gap]], tokens)
    batch = whole([GROUP], CODEC.pad)
    return Contrast(over, smoothing)(policy, batch).metrics["contrast"].item()  # type: ignore[arg-type]


def token_nats(model: nn.Module, member: Encoded) -> list[float]:
    """log p of each response token, from the logits one place before it."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([member.ids])).logits[0].double()
    return [
        (logits_TV[place - 1, member.ids[place]] - logits_TV[place - 1].exp().sum().log()).item()
        for place in range(member.start, len(member.ids))
    ]


def instructed() -> list[EncodedGroup]:
    """Every response of the pairs behind both prefixes."""
    return encode(Split(RECORDS), InstructionVariants(BETTER, WORSE), CODEC.examples, LIMITS)[0]


@every_smoothing
@pytest.mark.parametrize("over", ["mean", "sum"])
def test_equal_log_probabilities_cost_ln_2(smoothing: float, over: str) -> None:
    assert contrast_at(0.0, smoothing, over) == pytest.approx(math.log(2), abs=1e-6)


@every_smoothing
def test_equal_prefixes_cost_ln_2_and_count_as_half_right(llama: Backbone, smoothing: float) -> None:
    group = EncodedGroup("row", (MATCHING, MATCHING))

    metrics = Contrast("mean", smoothing)(plain(llama), whole([group], CODEC.pad)).metrics

    assert metrics["contrast"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["accuracy"].item() == 0.5


def test_smoothed_by_a_fifth_it_is_smallest_at_a_gap_of_ln_4() -> None:
    gaps = torch.linspace(-1, 4, 501).tolist()
    lowest = min(gaps, key=lambda gap: contrast_at(gap, 0.2))

    assert lowest == pytest.approx(math.log(4), abs=0.01)
    # sigma(ln 4) = 4/5: the entropy of a coin of 0.8 and 0.2.
    assert contrast_at(math.log(4), 0.2) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=1e-6)
    assert contrast_at(math.log(4), 0.2) == pytest.approx(0.5004, abs=5e-5)


def test_without_smoothing_it_falls_for_ever() -> None:
    found = [contrast_at(gap, 0.0) for gap in (0.0, 1.4, 3.0, 10.0)]

    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(math.log1p(math.exp(-10)), abs=1e-6)


def test_a_gap_of_whole_responses_is_that_of_a_token_times_the_tokens() -> None:
    # Four tokens at a gap of a quarter each: sigma(1).
    assert contrast_at(0.25, 0.0, "sum", tokens=4) == pytest.approx(math.log1p(math.exp(-1)), abs=1e-6)
    assert contrast_at(0.25, 0.0, "mean", tokens=4) == pytest.approx(math.log1p(math.exp(-0.25)), abs=1e-6)


@every_backbone
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_three_tokens_behind_prefixes_of_unequal_length_by_hand(kind: str, shared_prefix: bool) -> None:
    policy = plain(backbone(kind))
    policy.packing = "pairs" if shared_prefix else "off"
    matching, other = (token_nats(policy.model, member) for member in GROUP.members)
    p_m, p_o = sum(matching) / 3, sum(other) / 3
    s = 1 / (1 + math.exp(p_o - p_m))

    loss = Contrast("mean", 0.2)(policy, whole([GROUP], CODEC.pad))

    assert len(matching) == len(other) == 3
    assert abs(p_m - p_o) > 0.01
    assert loss.value.item() == pytest.approx(-p_m - 0.8 * math.log(s) - 0.2 * math.log(1 - s), rel=1e-6)
    assert loss.metrics["gap_nats_per_token"].item() == pytest.approx(p_m - p_o, abs=1e-5)
    assert loss.metrics["matching_nats_per_token"].item() == pytest.approx(p_m, abs=1e-5)
    assert loss.metrics["accuracy"].item() == float(p_m > p_o)


@every_backbone
def test_the_papers_sum_over_the_response_by_hand(kind: str) -> None:
    policy = plain(backbone(kind))
    p_m, p_o = (sum(token_nats(policy.model, member)) for member in GROUP.members)

    loss = Contrast("sum", 0.0)(policy, whole([GROUP], CODEC.pad)).value.item()

    # -[P_m + log(e^P_m / (e^P_m + e^P_o))]
    assert loss == pytest.approx(-(p_m + p_m - math.log(math.exp(p_m) + math.exp(p_o))), rel=1e-6)


def test_a_batch_takes_the_likelihood_by_token_and_the_contrast_by_response(llama: Backbone) -> None:
    policy, groups = plain(llama), instructed()
    nats = [[token_nats(policy.model, member) for member in group.members] for group in groups]
    tokens = [len(matching) for matching, _ in nats]
    gaps = [(sum(matching) - sum(other)) / len(matching) for matching, other in nats]
    likelihood = -sum(sum(matching) for matching, _ in nats) / sum(tokens)
    contrast = sum(0.8 * math.log1p(math.exp(-gap)) + 0.2 * math.log1p(math.exp(gap)) for gap in gaps) / len(gaps)

    loss = Contrast("mean", 0.2)(policy, whole(groups, CODEC.pad))

    assert len(set(tokens)) > 1  # else both kinds of mean are the same
    assert loss.metrics["contrast"].item() == pytest.approx(contrast, rel=1e-5)
    assert loss.value.item() == pytest.approx(likelihood + contrast, rel=1e-5)


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_the_parts_of_a_step_add_up(llama: Backbone, over: str) -> None:
    policy, groups = plain(llama), instructed()
    tokens = sum(group.response_tokens for group in groups)
    objective = Contrast(over, 0.1)

    together = objective(policy, whole(groups, CODEC.pad))
    alone = [objective(policy, collate([each], pad=CODEC.pad, step_groups=8, step_tokens=tokens)) for each in groups]

    assert len(groups) == 8
    assert sum(part.value.item() for part in alone) == pytest.approx(together.value.item(), rel=1e-5)
    assert together.metrics
    for name, value in together.metrics.items():
        assert sum(part.metrics[name].item() for part in alone) == pytest.approx(value.item(), rel=1e-4, abs=1e-5)
