"""The toy world: the grammar that writes a story of a given mood and length, the exact oracle that judges it, and the data sets
made of them: preference pairs, text to pretrain on, labelled stories, and prompts that are in no training text.

Strong feelings lower the capability: they name other objects and add extra sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import cycle, islice
from random import Random
from statistics import fmean

from alignlab.data.config import ToyClassesConfig, ToyConfig
from alignlab.data.source import Source, Split
from alignlab.errors import DataError
from alignlab.records import LabelSet, Record, Response

HE = ("Tom", "Ben", "Sam", "Max", "Leo", "Finn", "Noah", "Paul", "Hugo", "Karl", "Otto", "Theo")
SHE = ("Mia", "Anna", "Lucy", "Ruth", "Nora", "Ella", "Jane", "Rosa", "Ida", "Clara", "Greta", "Wendy")
NAMES = HE + SHE
THINGS = (
    "kite", "ball", "drum", "boat", "lamp", "book", "bell", "coat", "basket", "spoon", "rope", "clock",
    "box", "doll", "chair", "pencil", "ladder", "blanket", "bucket", "mirror", "whistle", "teapot", "wagon", "hat",
)  # fmt: skip
PLACES = ("garden", "park", "kitchen", "forest", "meadow", "market", "school", "beach", "barn", "attic")
MOODS = ("cheerful", "gloomy")
LENGTHS = ("short", "long")

FEELINGS = {
    "cheerful": (
        ("content", "pleased", "hopeful", "cosy"),
        ("happy", "glad", "merry", "joyful"),
        ("overjoyed", "thrilled", "jubilant", "ecstatic"),
    ),
    "gloomy": (
        ("uneasy", "wistful", "weary", "glum"),
        ("sad", "unhappy", "lonely", "mournful"),
        ("miserable", "heartbroken", "wretched", "desperate"),
    ),
}
"""Mood -> its words, in three levels from mild to strong."""

OPENINGS = (
    "One day {name} found a {thing} in the {place}.",
    "One morning {name} saw a {thing} near the {place}.",
    "Once {name} took a {thing} to the {place}.",
    "Today {name} carried a {thing} past the {place}.",
)
STAYS = (
    "{He} felt {word} with the {thing}.",
    "The {thing} made {him} {word}.",
    "{name} was {word} beside the {thing}.",
    "With the {thing} {he} was {word}.",
)
DRIFTS = (
    "{He} felt {word} in the {place}.",
    "The {place} made {him} {word}.",
    "{name} was {word} all day.",
)
STRAYS = (
    "{He} was so {word} that {he} ran for a {other}.",
    "{name} felt {word} and asked for a {other}.",
    "Everyone at the {place} was {word} over a {other}.",
)
SPILLS = ("{He} could not sit still.", "{He} told everyone twice.", "Nobody could stop {him}.")
PAUSES = ("A bird sat near the {place}.", "The wind went round the {place}.", "A dog slept by the {place}.")
CLOSINGS = ("At last {name} went home.", "In the end {name} fell asleep.", "That night {name} said goodbye.")

STAY_PROBABILITY = (0.95, 0.85, 0.10)  # by level: does a feeling hold on to the asked object?
SPILL_PROBABILITY = (0.0, 0.0, 0.4)  # by level: does it run over into a sentence of its own?
PAUSE_PROBABILITY = 0.3  # one of a long story's slots is left without a feeling
SLOTS = {"short": 2, "long": 4}
PROFILES = ((0.60, 0.35, 0.05), (0.30, 0.50, 0.20), (0.10, 0.40, 0.50))  # of the levels: calm, even, intense
PROFILE_WEIGHTS = (0.35, 0.40, 0.25)  # of these three kinds of story

_PROMPT = re.compile(r"Tell a (?:(cheerful|gloomy)?(?:, )?(short|long)? )?story about (\w+) and a (\w+)\.")


@dataclass(frozen=True)
class Ask:
    """What a prompt asks for: a character, an object and, where they are cued, a mood and a length."""

    name: str
    thing: str
    mood: str | None = None
    length: str | None = None

    @property
    def prompt(self) -> str:
        """The words of the prompt."""
        cues = ", ".join(cue for cue in (self.mood, self.length) if cue)
        return f"Tell a {cues + ' ' if cues else ''}story about {self.name} and a {self.thing}."


def read(prompt: str) -> Ask:
    """What this prompt asks for; raises DataError where it is not a prompt of this world."""
    found = _PROMPT.search(prompt)
    if found is None:
        raise DataError(
            f"the toy oracle cannot judge the prompt {prompt!r}; "
            "it reads 'Tell a [cheerful|gloomy][, ][short|long] story about NAME and a THING.'"
        )
    mood, length, name, thing = found.groups()
    return Ask(name, thing, mood or None, length or None)


def write(ask: Ask, mood: str, length: str, random: Random) -> str:
    """One story for this ask; every feeling in it is of this mood, their strength varies from story to story."""
    profile = random.choices(PROFILES, PROFILE_WEIGHTS)[0]
    sentences = [_fill(random.choice(OPENINGS), ask, random)]
    slots = SLOTS[length]
    pause = random.randrange(1, slots) if length == "long" and random.random() < PAUSE_PROBABILITY else None
    for slot in range(slots):
        sentences += [_fill(random.choice(PAUSES), ask, random)] if slot == pause else _feel(ask, mood, profile, random)
    sentences.append(_fill(random.choice(CLOSINGS), ask, random))
    return " ".join(sentences)


def vocabulary() -> list[str]:
    """Every word and mark of prompts and stories, as it stands in the text: with the space before it, if it has one."""
    templates = [*OPENINGS, *STAYS, *DRIFTS, *STRAYS, *SPILLS, *PAUSES, *CLOSINGS]
    fillers = [*NAMES, *THINGS, *PLACES, *MOODS, *LENGTHS, "he", "He", "him", "she", "She", "her"]
    fillers += [word for levels in FEELINGS.values() for level in levels for word in level]
    plain = re.sub(r"\{\w+\}", " ", " ".join([Ask("", "").prompt, *templates]))
    inner = {f" {word}" for word in [*re.findall(r"[A-Za-z]+", plain), *fillers]}
    first = {text.split()[0] for text in [Ask("", "").prompt, *OPENINGS]}
    return sorted(inner | first | {".", ",", "\n"})


def _feel(ask: Ask, mood: str, profile: Sequence[float], random: Random) -> list[str]:
    level = random.choices(range(3), profile)[0]
    word = random.choice(FEELINGS[mood][level])
    away = STRAYS if level == 2 else DRIFTS
    frame = random.choice(STAYS if random.random() < STAY_PROBABILITY[level] else away)
    spill = random.random() < SPILL_PROBABILITY[level]
    return [_fill(text, ask, random, word) for text in (frame, *([random.choice(SPILLS)] if spill else []))]


def _fill(template: str, ask: Ask, random: Random, word: str = "") -> str:
    he, him = ("she", "her") if ask.name in SHE else ("he", "him")
    other = random.choice([thing for thing in THINGS if thing != ask.thing])
    place = random.choice(PLACES)
    return template.format(
        name=ask.name, thing=ask.thing, other=other, place=place, word=word, he=he, him=him, He=he.capitalize()
    )


SHORT = range(3, 5)  # sentences
LONG = range(5, 8)  # sentences
INTENSITY = {
    word: sign * (level + 1) / 3
    for mood, sign in (("cheerful", 1), ("gloomy", -1))
    for level, words in enumerate(FEELINGS[mood])
    for word in words
}
"""Mood word -> 1/3 (mild), 2/3 or 1 (strong), negative for the gloomy ones."""

_CLOSED = tuple(closing.split(" {")[0] for closing in CLOSINGS)


@dataclass(frozen=True)
class Verdict:
    """What the oracle found in one story.

    `reward` is the mean intensity of its mood words, in [-1, 1], 0 without any. `consistency` is the share of them on
    the majority's side (1 without any). The four checks: the first sentence names the asked character and object; a
    later one comes back to the object; the length is as asked (either class where none is); the last one is a closing.
    """

    reward: float
    consistency: float
    sentences: int
    opens: bool
    returns: bool
    keeps_length: bool
    closes: bool

    @property
    def capability(self) -> float:
        """The share of the four checks that hold, in [0, 1]."""
        return fmean((self.opens, self.returns, self.keeps_length, self.closes))

    @property
    def mood(self) -> str:
        """The sign of the reward: 'cheerful', 'gloomy', or 'neutral' at exactly 0."""
        return "cheerful" if self.reward > 0 else "gloomy" if self.reward < 0 else "neutral"

    @property
    def length(self) -> str:
        """The length class: 'short' (3 or 4 sentences), 'long' (5 to 7), or 'other'."""
        return length_class(self.sentences)

    @property
    def attributes(self) -> dict[str, str]:
        """Mood and length by name."""
        return {"mood": self.mood, "length": self.length}


def judge(prompt: str, story: str) -> Verdict:
    """The oracle's verdict; raises DataError for a prompt that is not of this world."""
    ask = read(prompt)
    feelings = [INTENSITY[word] for word in re.findall(r"\w+", story) if word in INTENSITY]
    sentences = [part.split() for part in re.findall(r"[^.]*\w[^.]*", story)]
    cheerful = sum(feeling > 0 for feeling in feelings)
    return Verdict(
        reward=fmean(feelings) if feelings else 0.0,
        consistency=max(cheerful, len(feelings) - cheerful) / len(feelings) if feelings else 1.0,
        sentences=len(sentences),
        opens=bool(sentences) and {ask.name, ask.thing} <= set(sentences[0]),
        returns=any(ask.thing in sentence for sentence in sentences[1:]),
        keeps_length=_keeps_length(ask, len(sentences)),
        closes=_closes(sentences, story),
    )


def length_class(sentences: int) -> str:
    """'short', 'long' or 'other' for this many sentences."""
    return "short" if sentences in SHORT else "long" if sentences in LONG else "other"


def _keeps_length(ask: Ask, sentences: int) -> bool:
    found = length_class(sentences)
    return found != "other" if ask.length is None else found == ask.length


def _closes(sentences: list[list[str]], story: str) -> bool:
    return bool(sentences) and story.rstrip().endswith(".") and " ".join(sentences[-1]).startswith(_CLOSED)


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
