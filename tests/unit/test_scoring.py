"""Many groups scored batch by batch."""

from __future__ import annotations

import torch

from alignlab.models.backbone import Backbone
from alignlab.scoring import scored
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
