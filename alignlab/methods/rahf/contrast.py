"""Stage `instruct` of SCIT: a response is likely under the prefix that fits it, and likelier than under the other one."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss


@dataclass(frozen=True)
class Contrast:
    """Likelihood plus contrast (arXiv 2312.15997, the SCIT loss): -[P_m + log sigma(P_m - P_o)], the label smoothed.

    Member 0 stands behind the matching prefix, member 1 behind the other. `over`: mean (official code, taken from HIR: P is
    nats per token in the contrast, and the likelihood is the mean over the step's tokens) | sum (paper: P is nats of the whole
    response). With mean the gap is bounded: smoothed by 0.2, the contrast is smallest, 0.5004, at a gap of ln 4.
    """

    over: str
    smoothing: float

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        """The loss, and what it is made of."""
        scores = policy.logprobs(batch)
        value_GM = scores.mean_GM if self.over == "mean" else scores.total_GM
        gap_G = value_GM[:, 0] - value_GM[:, 1]
        contrast_G = -(1 - self.smoothing) * logsigmoid(gap_G) - self.smoothing * logsigmoid(-gap_G)
        share = 1 / batch.step_groups
        matching_G = scores.total_GM[:, 0]
        # Both members hold the same response, so each has half of the step's response tokens.
        likelihood = -matching_G.sum() * (2 / batch.step_tokens if self.over == "mean" else share)
        metrics = {
            "contrast": contrast_G,
            "gap_nats_per_token": scores.mean_GM[:, 0] - scores.mean_GM[:, 1],
            "matching_nats_per_token": scores.mean_GM[:, 0],
            "accuracy": (gap_G > 0).float() + 0.5 * (gap_G == 0).float(),
        }
        value = likelihood + contrast_G.sum() * share
        return Loss(value, {name: each.detach().sum() * share for name, each in metrics.items()})
