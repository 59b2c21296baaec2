"""Held-out texts: does the model tell what they are? By a classifier's scores, or by the likelihood of each label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.data.batching import in_order, whole
from alignlab.errors import ConfigError
from alignlab.evaluation.statistics import Measurement, bootstrap, share
from alignlab.evaluation.suite import EvaluationContext, Point

ROWS_PER_PASS = 32


class Classification:
    """Every class is scored (no string is compared); ties go to the first class."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.labels is None or context.held_out_labels is None:
            raise ConfigError(f"evaluation suite classification needs labels; data={context.source.name} has none.")
        self._policy = context.policy
        self._names = context.labels.names
        self._groups = context.held_out_labels.groups[: context.config.pairs]
        told = {record.row: record.responses[0].text for record in context.source.split("test").records}
        self._told = [told[group.row] for group in self._groups]

    def measure(self, point: Point) -> list[Measurement]:
        """Of classes: accuracy, and nats of the right one, normalised over the classes. Of a number: its squared error."""
        with point.set(self._policy):
            scores_NC = self._scores()
        if not self._names:
            numbers = torch.tensor([float(text) for text in self._told])
            return [bootstrap("squared_error", (scores_NC[:, 0] - numbers).square().tolist())]
        right_N = torch.tensor([self._names.index(name) for name in self._told])
        nats_N = F.cross_entropy(scores_NC, right_N, reduction="none")
        return [share("accuracy", (scores_NC.argmax(-1) == right_N).float().tolist()), bootstrap("nats", nats_N.tolist())]

    @torch.inference_mode()
    def _scores(self) -> Tensor:
        """Scores of the labels of each group, N,C, fp32 on the CPU."""
        codec = self._policy.backbone.codec
        rows: list[Tensor] = [torch.empty(0)] * len(self._groups)
        for places in in_order(self._groups, ROWS_PER_PASS):
            batch = whole([self._groups[place] for place in places], codec.pad).to(self._policy.backbone.device)
            for place, scores_C in zip(places, self._policy.label_scores(batch).float().cpu(), strict=True):
                rows[place] = scores_C
        return torch.stack(rows)
