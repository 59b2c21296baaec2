"""The embedded world as a data set: pairs, a corpus of both moods, and its exact oracle."""

from __future__ import annotations

from functools import lru_cache, partial

from alignlab.data.config import ToyConfig
from alignlab.data.source import Source, Split
from alignlab.data.toy.oracle import judge
from alignlab.data.toy.world import LENGTH_CUES, corpus, evaluation_prompts, pairs


def build(config: ToyConfig) -> Source:
    """Stories made by the grammar; the same config gives the same stories."""
    cues = LENGTH_CUES if config.length_cues else LENGTH_CUES[:1]
    train, test = config.limit or config.pairs, config.test_limit or config.test_pairs
    return Source(
        config.name,
        {
            "train": partial(_pairs, "train", min(train, config.pairs), config.world_seed, cues),
            "test": partial(_pairs, "test", min(test, config.test_pairs), config.world_seed, cues),
            "corpus": partial(_corpus, config.corpus, config.world_seed),
        },
        judge=judge,
        evaluation_prompts=partial(evaluation_prompts, config.test_pairs, config.world_seed, cues),
    )


@lru_cache(maxsize=4)
def _pairs(split: str, count: int, seed: int, cues: tuple[str | None, ...]) -> Split:
    """Written once for all jobs of a sweep that run in this process: it takes as long as everything else before training."""
    return Split(tuple(pairs(split, count, seed, cues)))


def _corpus(count: int, seed: int) -> Split:
    return Split(tuple(corpus(count, seed)))
