"""Metrics between the classes of a control: differences in reward and in likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.statistics import Measurement, bootstrap, item_names, rank_correlation, share
from alignlab.evaluation.suite import EvaluationContext
from alignlab.evaluation.suites import group_names
from alignlab.models.answers import scored
from alignlab.records import EncodedGroup

ROWS_PER_PASS = 64


class BetweenClasses:
    """Metrics that compare classes. Held-out items are single responses with their class."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.classes is None or context.held_out_items is None:
            raise ConfigError(f"evaluation suite classes needs classes; data={context.source.name} has none here.")
        self._context = context
        self._names = context.classes.names
        self._groups = _spread(context.held_out_items.groups, context.config.pairs)
        self._own = [self._names.index(str(group.members[0].control)) for group in self._groups]
        self._items = group_names(self._groups)
        self._total_NC: Tensor | None = None

    def measure(self, point: Point) -> list[Measurement]:
        """Held-out nats per token of a class's own items under that class, and bits per byte of their text, which another
        tokenizer leaves comparable; nothing where no class is asked for alone."""
        if point.control not in self._names:
            return []
        number = self._names.index(point.control)
        rows = [row for row, own in enumerate(self._own) if own == number]
        tokens = torch.tensor([self._groups[row].response_tokens for row in rows])
        nats_N, names = -self._totals()[rows, number], [self._items[row] for row in rows]
        if not rows:
            return []
        bytes_N = torch.tensor([self._bytes(self._groups[row]) for row in rows])
        return [
            bootstrap("nats_per_token", (nats_N / tokens).tolist(), names=names),
            bootstrap("bits_per_byte", (nats_N / math.log(2) / bytes_N).tolist(), names=names),
        ]

    def across(self, points: Sequence[Point]) -> list[Measurement]:
        """Where there is an oracle and an order: `gap`, reward(first) - reward(last) per prompt, and `separation`, the share
        of prompts where it is above 0 (for more than two classes, the rank correlation of class and reward). From held-out
        items: `class_accuracy`, those whose own class makes them likeliest; and for pairs of them under two classes,
        `pair_accuracy` of log p(y | first) - log p(y | second), and `likelihood_separation`, its mean difference in nats."""
        alone = [point for point in points if point.control in self._names]
        best_N = self._totals().argmax(-1)
        correct = [float(int(best) == own) for best, own in zip(best_N, self._own, strict=True)]
        return [*self._by_reward(alone), share("class_accuracy", correct, self._items), *self._by_pairs()]

    def _by_reward(self, points: Sequence[Point]) -> list[Measurement]:
        judge, classes = self._context.source.judge, self._context.classes
        assert classes is not None
        if judge is None or classes.attributes:  # attributes have no order
            return []
        rewards = [
            [judge(prompt, text).reward for prompt, text in zip(*self._context.answers(point), strict=True)] for point in points
        ]
        names = item_names(self._context.answers(points[0])[0])
        gaps = [first - last for first, last in zip(rewards[0], rewards[-1], strict=True)]
        if len(points) == 2:
            apart = share("separation", [0.5 if gap == 0 else float(gap > 0) for gap in gaps], names)
        else:
            apart = rank_correlation("separation", [list(reversed(each)) for each in zip(*rewards, strict=True)], names)
        return [bootstrap("gap", gaps, names=names), apart]

    def _by_pairs(self) -> list[Measurement]:
        if len(self._names) != 2:
            return []
        favour_N = (self._totals()[:, 0] - self._totals()[:, 1]).tolist()
        sides: dict[str, dict[int, float]] = {}
        for group, own, favour in zip(self._groups, self._own, favour_N, strict=True):
            sides.setdefault(_record(group), {})[own] = favour
        paired = {name: both for name, both in sides.items() if len(both) == 2}
        margins = [both[0] - both[1] for both in paired.values()]
        names = item_names(list(paired))
        if len(margins) < 2:
            return []
        wins = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
        return [share("pair_accuracy", wins, names), bootstrap("likelihood_separation", margins, names=names)]

    def _bytes(self, group: EncodedGroup) -> int:
        """Of an item's response as text, in UTF-8."""
        member = group.members[0]
        return max(1, len(self._context.policy.backbone.codec.decode(member.ids[member.start :]).encode("utf-8")))

    @torch.inference_mode()
    def _totals(self) -> Tensor:
        """log p(response | prompt, class) in nats of each item under each class, computed once."""
        if self._total_NC is None:
            policy = self._context.policy
            self._total_NC = torch.zeros(len(self._groups), len(self._names))
            for number, name in enumerate(self._names):
                with policy.under(name):
                    self._total_NC[:, number] = scored(
                        policy, self._groups, ROWS_PER_PASS, self._context.begun.of(f"classes at {name}")
                    )[0][:, 0]
        return self._total_NC


def _spread(groups: Sequence[EncodedGroup], records: int) -> Sequence[EncodedGroup]:
    """The items of so many records, evenly from the first to the last, since files may be sorted by class."""
    every = list(dict.fromkeys(_record(group) for group in groups))
    if len(every) <= records:
        return groups
    kept = {every[number * len(every) // records] for number in range(records)}
    return [group for group in groups if _record(group) in kept]


def _record(group: EncodedGroup) -> str:
    """The record that an item came from; see `classes.labelled`."""
    return group.row.rpartition("/")[0]
