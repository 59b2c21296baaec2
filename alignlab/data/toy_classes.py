"""Stories of the embedded world with what they are told to be: their mood, their length, or both, as the exact oracle says."""

from __future__ import annotations

from functools import partial
from random import Random

from alignlab.data.config import ToyClassesConfig
from alignlab.data.source import Source, Split
from alignlab.data.toy.grammar import LENGTHS, MOODS
from alignlab.data.toy.world import labelled_stories
from alignlab.records import LabelSet, Record, Response

NAMES = {"mood": MOODS, "length": LENGTHS, "both": tuple(f"{mood} and {length}" for mood in MOODS for length in LENGTHS)}


def build(config: ToyClassesConfig) -> Source:
    """The text is a story, the response the name of its class; every class is as frequent as any other."""
    train, test = config.limit or config.pairs, config.test_limit or config.test_pairs
    return Source(
        config.name,
        {
            "train": partial(_stories, "train", min(train, config.pairs), config),
            "test": partial(_stories, "test", min(test, config.test_pairs), config),
        },
        labels=lambda: LabelSet(NAMES[config.told]),
    )


def _stories(split: str, count: int, config: ToyClassesConfig) -> Split:
    random = Random(f"classes/{split}/{config.world_seed}")
    records = []
    for number, (mood, length, story) in enumerate(labelled_stories(split, count, random)):
        name = {"mood": mood, "length": length, "both": f"{mood} and {length}"}[config.told]
        records.append(Record(f"toy_classes/{split}/{config.world_seed}/{number}", story, (Response(name),)))
    return Split(tuple(records))
