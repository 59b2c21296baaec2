"""Many groups scored batch by batch."""

from __future__ import annotations

import torch

from alignlab.models.answers import scored, scored_in
from alignlab.models.backbone import Backbone
from tests.contracts.table import PAIRS, groups
from tests.unit.conftest import attached


def test_scores_stand_in_the_order_of_the_groups_however_they_are_batched(llama: Backbone) -> None:
    policy = attached("lora", llama)

    with torch.no_grad():
        total_NM, mean_NM = scored(policy, groups(policy, PAIRS), rows_per_pass=1)
        alone = [scored(policy, [group], rows_per_pass=1)[0][0] for group in groups(policy, PAIRS)]
        at_once = scored(policy, groups(policy, PAIRS), rows_per_pass=64)[0]

    assert torch.equal(total_NM, torch.stack(alone))
    torch.testing.assert_close(total_NM, at_once, atol=1e-5, rtol=1e-5)
    assert mean_NM.shape == total_NM.shape


def test_in_given_batches_what_stands_in_several_has_the_values_of_the_first_and_the_others_zeros(llama: Backbone) -> None:
    policy = attached("lora", llama)
    every = groups(policy, PAIRS)

    with torch.no_grad():
        total_NM = scored_in(policy, every, [(2, 0), (0, 2)])[0]
        first = scored(policy, [every[2], every[0]], rows_per_pass=2)[0]

    assert torch.equal(total_NM[[2, 0]], first)
    assert not total_NM[1].any()
