"""The exact oracle of the toy world: what a story is worth, as a function of its prompt and its text alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import fmean

from alignlab.data.toy.grammar import CLOSINGS, FEELINGS, Ask, read

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
        """The side that the reward is on: 'cheerful', 'gloomy', or 'neutral' at exactly 0."""
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
