"""Two streams behind a batch of texts: how they are mixed, that they stay together, and what runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.errors import ControlError
from alignlab.models.backbone import Backbone
from alignlab.models.decode import Streams
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from tests.conftest import backbone
from tests.unit.conftest import attached, plain

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
both_ways = pytest.mark.parametrize("sampling", [Sampling(8, 0.0, 1.0), Sampling(8, 1.0, 0.9)], ids=["greedy", "sampled"])
GREEDY = Sampling(8, 0.0, 1.0)
IDS = torch.arange(3, 24).reshape(3, 7)
STRENGTHS = [-0.5, 0.0, 0.5, 1.0, 2.0]
PROMPTS = ["Tell a story about Tom and a kite."] * 5


def longer(policy: Policy) -> Backbone:
    """The plain backbone with one more block that a CLM policy would be exported as."""
    return replace(policy.backbone, model=copy.deepcopy(policy.tuner.module).merge_and_unload())  # type: ignore[attr-defined]


def ends(policy: Policy, ids: Tensor = IDS) -> tuple[Tensor, Tensor]:
    """Last logits of both ends of the dial, from two plain models that know no tuner."""
    with torch.no_grad():
        aligned_BV = longer(policy).model(ids, logits_to_keep=1).logits[:, -1]
        return aligned_BV, backbone(policy.backbone.name).model(ids, logits_to_keep=1).logits[:, -1]


def stepped(policy: Policy, strength: float | Tensor, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    """Last logits after one step over all tokens."""
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad(), Streams(policy.model, policy.tuner, policy.tuner.passes(strength), len(ids), ids.device) as streams:
        return streams.step(ids, mask)


def passes(policy: Policy) -> list[dict[str, Any]]:
    """What the model is called with from now on, a dict per pass."""
    seen: list[dict[str, Any]] = []
    policy.model.register_forward_pre_hook(lambda _, __, given: seen.append(dict(given)), with_kwargs=True)
    return seen


@every_backbone
def test_the_ends_of_the_dial_are_the_two_plain_models_and_half_is_their_mean(kind: str) -> None:
    policy = attached("clm", backbone(kind))
    aligned_BV, plain_BV = ends(policy)

    at_zero, half, at_one = (stepped(policy, strength) for strength in (0.0, 0.5, 1.0))

    assert torch.equal(at_zero, plain_BV)
    assert torch.equal(at_one, aligned_BV)
    torch.testing.assert_close(half, (aligned_BV + plain_BV) / 2, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("strength", [-0.5, 0.5, 2.0])
def test_mixing_logits_is_mixing_log_probabilities(llama: Backbone, strength: float) -> None:
    policy = attached("clm", llama)
    aligned_BV, plain_BV = (logits_BV.log_softmax(-1) for logits_BV in ends(policy))

    mixed_BV = stepped(policy, strength)

    expected_BV = (strength * aligned_BV + (1 - strength) * plain_BV).softmax(-1)
    torch.testing.assert_close(mixed_BV.softmax(-1), expected_BV, atol=1e-5, rtol=1e-5)


def test_along_the_dial_the_expected_gap_never_falls(llama: Backbone) -> None:
    policy = attached("clm", llama)
    aligned_BV, plain_BV = ends(policy)
    dial = torch.linspace(-1.0, 3.0, 17).tolist()

    gaps = [(stepped(policy, strength).softmax(-1) * (aligned_BV - plain_BV)).sum(-1) for strength in dial]

    assert all(bool((later > sooner).all()) for sooner, later in pairwise(gaps))


@pytest.mark.parametrize("strength", [-1.0, 0.25, 3.0])
def test_the_slope_of_the_expected_gap_is_its_variance(llama: Backbone, strength: float) -> None:
    policy = attached("clm", llama)
    policy.model.double()
    strength_B = torch.full((3,), strength, dtype=torch.float64, requires_grad=True)
    passes = policy.tuner.passes(strength_B)
    parts = []
    for weighted in passes:
        with policy.tuner.at(weighted.setting):
            parts.append(policy.model(IDS).logits[:, -1].detach())
    gap_BV = parts[0] - parts[1]

    chance_BV = sum(weighted.weight[:, None] * part for weighted, part in zip(passes, parts, strict=True)).softmax(-1)
    mean_B = (chance_BV * gap_BV).sum(-1)
    (slope_B,) = torch.autograd.grad(mean_B.sum(), strength_B)

    variance_B = (chance_BV * (gap_BV - mean_B[:, None]) ** 2).sum(-1)
    torch.testing.assert_close(slope_B, variance_B, atol=0, rtol=1e-6)


@both_ways
@every_backbone
@pytest.mark.parametrize("tuner", ["clm", "dera"])
def test_one_batch_of_several_strengths_equals_single_runs(tuner: str, kind: str, sampling: Sampling) -> None:
    policy = attached(tuner, backbone(kind))

    together = policy.respond(PROMPTS, strength=STRENGTHS, sampling=sampling, seed=0)

    alone = [policy.respond(PROMPTS, strength=strength, sampling=sampling, seed=0) for strength in STRENGTHS]
    assert together == [answers[row] for row, answers in enumerate(alone)]
    assert len(set(together)) > 2


@every_backbone
def test_logits_of_several_strengths_in_one_batch_equal_single_runs(kind: str) -> None:
    policy = attached("clm", backbone(kind))
    ids = IDS[:1].expand(5, 7)

    together = stepped(policy, torch.tensor(STRENGTHS), ids)

    alone = torch.cat([stepped(policy, strength, IDS[:1]) for strength in STRENGTHS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@every_backbone
def test_token_by_token_gives_the_logits_of_whole_passes_mixed_by_hand(kind: str) -> None:
    policy = attached("clm", backbone(kind))
    strength_B = torch.tensor([-0.5, 0.0, 2.0])

    with torch.no_grad(), Streams(policy.model, policy.tuner, policy.tuner.passes(strength_B), 3, IDS.device) as streams:
        found = [streams.step(IDS[:, :4], torch.ones(3, 4, dtype=torch.long))]
        found += [streams.step(IDS[:, t : t + 1], torch.ones(3, t + 1, dtype=torch.long)) for t in range(4, 7)]

    for time, logits_BV in enumerate(found, start=4):
        aligned_BV, plain_BV = ends(policy, IDS[:, :time])
        expected_BV = strength_B[:, None] * aligned_BV + (1 - strength_B[:, None]) * plain_BV
        torch.testing.assert_close(logits_BV, expected_BV, atol=1e-5, rtol=1e-5)


@every_backbone
def test_left_padding_changes_nothing(kind: str) -> None:
    policy = attached("clm", backbone(kind))
    strength_B = torch.tensor([0.5, 1.0, 2.0])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])

    padded = stepped(policy, strength_B, IDS.masked_fill(mask == 0, policy.backbone.codec.pad), mask)

    alone = [stepped(policy, float(strength_B[row]), IDS[row : row + 1, mask[row] == 1]) for row in range(3)]
    torch.testing.assert_close(padded, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_cache_has_a_layer_more_which_holds_the_aligned_rows_alone(llama: Backbone) -> None:
    policy = attached("clm", llama)
    caches: list[Any] = []
    policy.model.register_forward_hook(lambda *given: caches.append(given[2].past_key_values))

    stepped(policy, torch.tensor([0.0, 0.5, 1.0]))

    assert [layer.keys.shape[0] for layer in caches[0].layers] == [4, 4, 4, 2]


@pytest.mark.parametrize(
    ("tuner", "strength", "rows"),
    [
        ("clm", 0.0, [3]),
        ("clm", 1.0, [3]),
        ("clm", 0.5, [6]),
        ("clm", torch.tensor([0.0, 1.0, 1.0]), [3]),
        ("clm", torch.tensor([0.0, 0.5, 1.0]), [4]),
        ("dera", 0.0, [3]),
        ("dera", 1.0, [3]),
        ("dera", 0.5, [3, 3]),
        ("dera", torch.tensor([0.0, 0.5, 1.0]), [2, 2]),
        ("lora", torch.tensor([0.0, 0.5, 1.0]), [3]),
    ],
)
def test_a_text_costs_two_rows_in_between_and_one_at_an_end(
    llama: Backbone, tuner: str, strength: float | Tensor, rows: list[int]
) -> None:
    policy = attached(tuner, llama)
    seen = passes(policy)

    stepped(policy, strength)

    assert [len(given["input_ids"]) for given in seen] == rows


@both_ways
@pytest.mark.parametrize(("tuner", "per_step"), [("clm", 1), ("dera", 2)])
def test_both_streams_hold_the_same_ids_at_every_step(llama: Backbone, tuner: str, per_step: int, sampling: Sampling) -> None:
    _ = llama.cache_objection  # the first answer asks for it
    policy = attached(tuner, llama)
    seen = passes(policy)

    policy.respond(PROMPTS[:2], strength=[0.5, 1.5], sampling=sampling, seed=0)

    fed = [torch.cat([given["input_ids"] for given in seen[at : at + per_step]]) for at in range(0, len(seen), per_step)]
    assert len(fed) > 1
    assert all(torch.equal(ids_RT[:2], ids_RT[2:]) for ids_RT in fed)


@both_ways
@every_backbone
def test_at_one_the_answers_are_those_of_the_plain_longer_model_with_the_same_seed(kind: str, sampling: Sampling) -> None:
    policy = attached("clm", backbone(kind))

    answers = policy.respond(PROMPTS, strength=1.0, sampling=sampling, seed=3)

    assert answers == plain(longer(policy)).respond(PROMPTS, sampling=sampling, seed=3)


def test_a_stream_begun_with_the_tuner_off_is_not_continued_with_it_on(llama: Backbone) -> None:
    policy = attached("clm", llama)
    mask = torch.ones(3, 8, dtype=torch.long)

    with torch.no_grad(), Streams(policy.model, policy.tuner, policy.tuner.passes(1.0), 3, IDS.device) as streams:
        with policy.tuner.off():
            streams.step(IDS, mask[:, :7])
        with pytest.raises(ControlError, match="this cache holds tokens read without the CLM block"):
            streams.step(IDS[:, :1], mask)
