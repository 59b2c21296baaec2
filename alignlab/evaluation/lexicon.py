"""Sampled answers under a word list with a score for each word, as VADER's: a reward that anybody can check by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from alignlab.errors import DataError
from alignlab.evaluation import Point
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.statistics import Measurement, bootstrap, item_names, share
from alignlab.evaluation.suite import EvaluationContext
from alignlab.evaluation.text import file_text

KEY = "evaluation.lexicon.path"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


class Lexicon:
    """Mean score per word of the sampled answers. A word is looked up as it is written, then in small letters; one that the
    list does not have scores 0. Negation and emphasis are not seen, so it is no measure of sentiment in a single text."""

    def __init__(self, context: EvaluationContext) -> None:
        self._context, self._scores = context, word_scores(context.config)

    def measure(self, point: Point) -> list[Measurement]:
        """`reward`: the mean over answers of the mean score of an answer's words, 0 for one without words; `found`: the share
        of answers with a word of the list."""
        prompts, texts = self._context.answers(point)
        names = item_names(prompts)
        words = [WORD.findall(text.replace("’", "'")) for text in texts]
        scores = [[self._scores.get(word, self._scores.get(word.lower())) for word in answer] for answer in words]
        rewards = [sum(score or 0.0 for score in answer) / max(1, len(answer)) for answer in scores]
        return [
            bootstrap("reward", rewards, names=names),
            share("found", [float(any(score is not None for score in answer)) for answer in scores], names),
        ]


def word_scores(config: EvaluationConfig) -> Mapping[str, float]:
    """The lines `word<tab>score` of suite lexicon's file, of one that ends in .gz unpacked; what follows behind another tab is
    not read. Of a word with several lines the last counts, as in VADER. Raises DataError for another form and for a score that
    is no finite number."""
    path = str(config.lexicon.path)
    scores: dict[str, float] = {}
    for number, line in enumerate(file_text(path, KEY).splitlines(), start=1):
        if not line.strip():
            continue
        word, *rest = line.split("\t")
        try:
            score = float(rest[0])
        except (IndexError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise DataError(
                f"{path} line {number}: {line[:60]!r} is no word with a score; {KEY} reads lines of a word, a tab and a number."
            )
        scores[word.replace("’", "'")] = score
    return scores
