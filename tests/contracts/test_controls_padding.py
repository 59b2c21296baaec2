"""Where padding stands, and how many rows there are, changes nothing under any control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alignlab.models.decode import Streams
from alignlab.models.policy import Policy
from alignlab.models.strength import ClassMixture
from alignlab.records import Batch
from tests.conftest import CODEC, backbone
from tests.contracts.controls import CASES, HALVES, Case, batch_of, items, totals, totals_under, trained, unclassed

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def fed_token_by_token(policy: Policy, batch: Batch, asked: Sequence[ClassMixture]) -> Tensor:
    """log p of each item as generation meets it: prompts padded on the left, prefixes put in by the streams, then the tokens of
    the response one by one, R items, S steps. asked: a class, or mixture of classes, per item."""
    ids_RT, start_R1 = batch.ids_GMT[:, 0], batch.start_GM
    width, steps = int(start_R1.max()), int((batch.length_GM - start_R1).max())
    prompts_RT = torch.stack([row[:width].roll(width - int(start)) for row, start in zip(ids_RT, start_R1, strict=True)])
    mask_RT = (torch.arange(width + steps) >= width - start_R1).long()
    at_RS = start_R1 + torch.arange(steps)
    target_RS = ids_RT.gather(1, at_RS.clamp(max=ids_RT.shape[1] - 1))
    controls = policy.tuner.controls
    assert controls is not None
    passes = controls.passes(controls.mixtures(asked, len(ids_RT)))
    with torch.no_grad(), Streams(policy.model, policy.tuner, passes, len(ids_RT), ids_RT.device) as streams:
        logits = [streams.step(prompts_RT, mask_RT[:, :width])]
        logits += [streams.step(target_RS[:, s : s + 1], mask_RT[:, : width + s + 1]) for s in range(steps - 1)]
    found_RS = torch.stack(logits, dim=1).log_softmax(-1).gather(-1, target_RS[..., None])[..., 0]
    return (found_RS * (at_RS < batch.length_GM)).sum(1, keepdim=True)


@every_case
def test_left_padding_in_generation_and_right_padding_in_scoring_agree(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))

    scored, fed = totals(policy, batch), fed_token_by_token(policy, batch, batch.controls or ())

    torch.testing.assert_close(scored, fed, atol=1e-5, rtol=1e-5)


@every_case
@pytest.mark.parametrize("mixture", [HALVES, {"good": 1.5, "none": -0.5}], ids=str)
def test_so_they_do_for_a_mixture_of_classes(case: Case, mixture: dict[str, float]) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = unclassed(batch_of(items(case.classes)))

    scored, fed = totals_under(policy, mixture, batch), fed_token_by_token(policy, batch, [mixture] * 8)

    torch.testing.assert_close(scored, fed, atol=1e-5, rtol=1e-5)


@every_case
def test_a_batch_of_one_equals_a_batch_of_many(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    groups = items(case.classes)

    together = totals(policy, batch_of(groups))

    alone = torch.cat([totals(policy, batch_of([group])) for group in groups])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@every_case
def test_more_padding_changes_nothing(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))
    ids_GMT = torch.nn.functional.pad(batch.ids_GMT, (0, 7), value=CODEC.pad)

    padded = totals(policy, replace(batch, ids_GMT=ids_GMT))

    torch.testing.assert_close(padded, totals(policy, batch), atol=1e-5, rtol=1e-5)
