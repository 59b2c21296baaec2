"""The embedded world as a data set: pairs, a corpus of both moods, and its exact oracle."""

from __future__ import annotations

from functools import partial

from alignlab.data.config import ToyConfig
from alignlab.data.source import Source, Split
from alignlab.data.toy.oracle import judge
from alignlab.data.toy.world import corpus, evaluation_prompts, pairs


def build(config: ToyConfig) -> Source:
    """Stories made by the grammar; the same config gives the same stories."""
    train, test = config.limit or config.pairs, config.test_limit or config.test_pairs
    return Source(
        config.name,
        {
            "train": partial(_pairs, "train", min(train, config.pairs), config.world_seed),
            "test": partial(_pairs, "test", min(test, config.test_pairs), config.world_seed),
            "corpus": partial(_corpus, config.corpus, config.world_seed),
        },
        judge=judge,
        asked=partial(evaluation_prompts, config.test_pairs, config.world_seed),
    )


def _pairs(split: str, count: int, seed: int) -> Split:
    return Split(tuple(pairs(split, count, seed)))


def _corpus(count: int, seed: int) -> Split:
    return Split(tuple(corpus(count, seed)))
