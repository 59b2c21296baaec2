"""Fluency of sampled texts: perplexity under the backbone, distinct-n and repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from alignlab.evaluation.statistics import Measurement, bootstrap
from alignlab.evaluation.suite import EvaluationContext, Point
from alignlab.models.scoring import scored
from alignlab.records import EncodedGroup, Example

ROWS_PER_PASS = 64
DISTINCT = 2
REPEATED = 4


class Fluency:
    """Guards: what a strength costs in plain language."""

    def __init__(self, context: EvaluationContext) -> None:
        self._context = context

    def measure(self, point: Point) -> list[Measurement]:
        """Perplexity per token (texts that are empty are left out of it), share of distinct bigrams of a text, share of
        its 4-grams that it had already used, and length in words."""
        prompts, texts = self._context.answers(point)
        words = [text.split() for text in texts]
        nats = self._nats_per_token(prompts, texts)
        perplexity = [bootstrap("perplexity", nats, show=math.exp)] if nats else []
        return [
            *perplexity,
            bootstrap("distinct_2", [_distinct(text, DISTINCT) for text in words]),
            bootstrap("repetition_4", [1 - _distinct(text, REPEATED) for text in words]),
            bootstrap("words", [float(len(text)) for text in words]),
        ]

    def _nats_per_token(self, prompts: Sequence[str], texts: list[str]) -> list[float]:
        """Negative log-likelihood of each text under the backbone, nats per token; EOS is left out, a cut text has none."""
        policy = self._context.policy
        pairs = [Example(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text.strip()]
        encoded = policy.backbone.codec.examples(pairs, [f"sampled text {number}" for number in range(len(pairs))])
        groups = [
            EncodedGroup(str(number), (replace(example, ids=example.ids[:-1]),)) for number, example in enumerate(encoded)
        ]
        if not groups:
            return []
        with torch.inference_mode(), policy.off():
            mean_NM = scored(policy, groups, ROWS_PER_PASS)[1]
        values: list[float] = (-mean_NM[:, 0]).tolist()
        return values


def _distinct(words: list[str], size: int) -> float:
    """The share of different n-grams among all of a text; 1 for a text that is too short to have any."""
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
