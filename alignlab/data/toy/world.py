"""The toy world as data sets: preference pairs, text to pretrain on, labelled stories, and prompts that are in no training
text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import cycle, islice
from random import Random

from alignlab.data.config import ToyClassesConfig, ToyConfig
from alignlab.data.source import Source, Split
from alignlab.data.toy.stories import LENGTHS, MOODS, NAMES, THINGS, Ask, judge, write
from alignlab.errors import DataError
from alignlab.records import LabelSet, Record, Response

SPLITS = ("train", "test")
CANDIDATES = 5  # stories drawn for each prompt of a pair
HELD_OUT = 6  # every sixth combination of character and object belongs to the test split
LENGTH_CUES = (None, *LENGTHS)
CLASS_NAMES = {"mood": MOODS, "length": LENGTHS, "both": tuple(f"{mood} and {length}" for mood in MOODS for length in LENGTHS)}


def toy(config: ToyConfig) -> Source:
    """Stories made by the grammar; the same config gives the same stories."""
    cues = LENGTH_CUES if config.length_cues else LENGTH_CUES[:1]
    train, test = config.limit or config.pairs, config.test_limit or config.test_pairs
    return Source(
        config.name,
        {
            "train": partial(_pair_split, "train", min(train, config.pairs), config.world_seed, cues),
            "test": partial(_pair_split, "test", min(test, config.test_pairs), config.world_seed, cues),
            "corpus": partial(_corpus, config.corpus, config.world_seed),
        },
        judge=judge,
        evaluation_prompts=partial(evaluation_prompts, config.test_pairs, config.world_seed, cues),
    )


@lru_cache(maxsize=4)
def _pair_split(split: str, count: int, seed: int, cues: tuple[str | None, ...]) -> Split:
    """Written once for all jobs of a sweep that run in this process: it takes as long as everything else before training."""
    return Split(tuple(pairs(split, count, seed, cues)))


def _corpus(count: int, seed: int) -> Split:
    return Split(tuple(corpus(count, seed)))


def toy_classes(config: ToyClassesConfig) -> Source:
    """The text is a story, the response the name of its class; every class is as frequent as any other."""
    train, test = config.limit or config.pairs, config.test_limit or config.test_pairs
    return Source(
        config.name,
        {
            "train": partial(_class_split, "train", min(train, config.pairs), config),
            "test": partial(_class_split, "test", min(test, config.test_pairs), config),
        },
        labels=lambda: LabelSet(CLASS_NAMES[config.told]),
    )


def _class_split(split: str, count: int, config: ToyClassesConfig) -> Split:
    random = Random(f"classes/{split}/{config.world_seed}")
    records = []
    for number, (mood, length, story) in enumerate(labelled_stories(split, count, random)):
        name = {"mood": mood, "length": length, "both": f"{mood} and {length}"}[config.told]
        records.append(Record(f"toy_classes/{split}/{config.world_seed}/{number}", story, (Response(name),)))
    return Split(tuple(records))


def combinations(split: str) -> list[tuple[str, str]]:
    """The (character, object) combinations of this split; no combination is in both."""
    if split not in SPLITS:
        raise DataError(f"the toy world has no split {split!r}; it has {' and '.join(SPLITS)}.")
    return [
        (name, thing)
        for row, name in enumerate(NAMES)
        for column, thing in enumerate(THINGS)
        if ((row + column) % HELD_OUT == 0) == (split == "test")
    ]


def pairs(split: str, count: int, seed: int, cues: Sequence[str | None] = LENGTH_CUES) -> list[Record]:
    """Pairs for prompts without a mood cue, equally many with each length cue or none.

    Of five stories drawn freely, equally long by plan, the most cheerful is chosen and one that is less so is rejected.
    """
    random = Random(f"pairs/{split}/{seed}")
    known = combinations(split)
    records = []
    for index in range(count):
        ask = Ask(*random.choice(known), length=random.choice(cues))
        chosen, rejected = _candidates(ask, random)
        responses = (_response(ask, chosen, "chosen"), _response(ask, rejected, "rejected"))
        records.append(Record(f"toy/{split}/{seed}/{index}", ask.prompt, responses))
    return records


def corpus(count: int, seed: int) -> list[Record]:
    """Stories of the training split to pretrain on, one response each; half of the prompts cue the mood.

    Where the mood is not cued, gloomy and cheerful stories are equally likely.
    """
    random = Random(f"corpus/{seed}")
    known = combinations("train")
    records = []
    for index in range(count):
        mood = random.choice(MOODS)
        cued = mood if random.random() < 0.5 else None
        ask = Ask(*random.choice(known), mood=cued, length=random.choice(LENGTH_CUES))
        story = write(ask, mood, ask.length or random.choice(LENGTHS), random)
        records.append(Record(f"toy/corpus/{seed}/{index}", ask.prompt, (_response(ask, story, None),)))
    return records


def labelled_stories(split: str, count: int, random: Random) -> list[tuple[str, str, str]]:
    """(mood, length, story), each as the oracle sees it; moods and lengths in turn, so that all are equally frequent."""
    known = combinations(split)
    wanted = [(mood, length) for mood in MOODS for length in LENGTHS]
    made: list[tuple[str, str, str]] = []
    while len(made) < count:
        mood, length = wanted[len(made) % len(wanted)]
        ask = Ask(*random.choice(known))
        story = write(ask, mood, length, random)
        found = judge(ask.prompt, story).attributes
        # Sentences that spill over can make a short story a long one.
        if (found["mood"], found["length"]) == (mood, length):
            made.append((mood, length, story))
    return made


def evaluation_prompts(count: int, seed: int, cues: Sequence[str | None] = LENGTH_CUES) -> list[str]:
    """Prompts of the test split without a mood cue, each at most once until all of them have been used."""
    asks = [Ask(name, thing, length=length) for name, thing in combinations("test") for length in cues]
    Random(f"evaluation/{seed}").shuffle(asks)
    return [ask.prompt for ask in islice(cycle(asks), count)]


def _candidates(ask: Ask, random: Random) -> tuple[str, str]:
    length = ask.length or random.choice(LENGTHS)
    while True:
        drawn = {story: judge(ask.prompt, story).reward for story in _draw(ask, length, random)}
        chosen = max(drawn, key=drawn.__getitem__)
        lower = [story for story, reward in drawn.items() if reward < drawn[chosen]]
        if lower:
            return chosen, random.choice(lower)


def _draw(ask: Ask, length: str, random: Random) -> list[str]:
    return [write(ask, random.choice(MOODS), length, random) for _ in range(CANDIDATES)]


def _response(ask: Ask, story: str, label: str | None) -> Response:
    verdict = judge(ask.prompt, story)
    return Response(story, label, verdict.reward, verdict.attributes)
