"""Answers under a judge: who wins a pair, or the mark of one answer; both orders, with what could not be read counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignlab.data.rows import conversation
from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.config import SIDES, EvaluationConfig
from alignlab.evaluation.judging import (
    READ,
    Asker,
    Pair,
    Question,
    Server,
    answers_in,
    judge_pairs,
    length_controlled,
    mark,
    read_questions,
    single_ask,
)
from alignlab.evaluation.statistics import Measurement, Places, bootstrap, item_names, resampled, share
from alignlab.evaluation.suite import EvaluationContext, answers_beside, without
from alignlab.records import Turn

log = logging.getLogger(__name__)
Answers = Sequence[tuple[str, ...]]
"""Of each question its turns' answers."""


class Judge:
    """Sampled answers, or answers to the questions of a file, as a judge sees them."""

    def __init__(self, context: EvaluationContext, ask: Asker | None = None) -> None:
        self._context, self._config = context, context.config.judge
        self._ask = ask
        path = self._config.questions
        self._questions = read_questions(Path(path), self._config.references) if path else None
        self._said: dict[Point, Answers] = {}

    def measure(self, point: Point) -> list[Measurement]:
        """Pairwise: `win_rate` in [0, 1], `length_controlled`, `ties` (verdicts), `first` (verdicts for whatever stood first,
        ties one half), `unread` (verdicts that were refused or malformed). Single: `mark` from 1 to 10, `turn1`, `turn2`, the
        mark of each category, `unread`. All over prompts; one of which nothing was read is left out, and counted."""
        if self._ask is None:
            self._ask = Server(self._config, self._context.store and self._context.store / "verdicts")
        questions, ours = self._answered(point)
        if self._config.mode == "single":
            return self._marked(self._ask, questions, ours)
        others, note = self._others(point, questions)
        kept = [place for place, other in enumerate(others) if other is not None]
        theirs = [other for other in others if other is not None]
        asked, own = [questions[place] for place in kept], [ours[place] for place in kept]
        pairs, counts = judge_pairs(self._ask, asked, own, theirs, self._config.scale)
        longer = [sum(map(len, one)) - sum(map(len, two)) for one, two in zip(own, theirs, strict=True)]
        return won(pairs, counts, longer, _names(asked), note)

    def _answered(self, point: Point) -> tuple[list[Question], Answers]:
        """The questions and the model's answers at a point."""
        if self._questions is None:
            prompts, texts = self._context.answers(point)
            return [Question((prompt,), prompt) for prompt in prompts], [(text,) for text in texts]
        if point not in self._said:
            self._said[point] = self._converse(self._questions, point)
        return self._questions, self._said[point]

    def _converse(self, questions: Sequence[Question], point: Point) -> Answers:
        """Turn by turn, each behind what was said before; at most two turns, the second perhaps at a strength of its own.
        Raises ConfigError for that where the point is a class."""
        context, sampling, second = self._context, self._context.config.sampling(), self._config.second_turn_strength
        if second is not None and point.mixture is not None:
            raise ConfigError(
                f"evaluation.judge.second_turn_strength={second:g} is a strength, and {point.mixture} is a class; leave it out."
            )
        said: list[tuple[str, ...]] = [()] * len(questions)
        for turn in range(2):
            places = [place for place, question in enumerate(questions) if len(question.turns) > turn]
            prompts = [_talk(questions[place].turns[: turn + 1], said[place]) for place in places]
            texts = context.policy.respond(
                prompts,
                strength=second if turn == 1 and second is not None else point.strength,
                control=point.mixture,
                sampling=sampling,
                seed=context.config.sampling_seed,
            )
            for place, text in zip(places, texts, strict=True):
                said[place] = (*said[place], text)
        return said

    def _others(self, point: Point, questions: Sequence[Question]) -> tuple[list[tuple[str, ...] | None], str]:
        """What ours are compared with; None for a question without it, and a note on how many those are."""
        against = self._config.against
        if self._questions is None and against in SIDES:
            texts, note = answers_beside(self._context, point, against)
            return [None if text is None else (text,) for text in texts], note
        if against == "strength0":
            return list(self._answered(without(self._context, point))[1]), ""
        known = answers_in(Path(against))
        found = [known.get(question.identity, known.get(question.turns[0])) for question in questions]
        found = [each if each and len(each) >= len(question.turns[:2]) else None for each, question in zip(found, questions)]
        lacking = sum(each is None for each in found)
        return found, f"{lacking} of {len(found)} prompts left out: {against} has no answer to them" if lacking else ""

    def _marked(self, ask: Asker, questions: Sequence[Question], ours: Answers) -> list[Measurement]:
        where = [(place, turn) for place, question in enumerate(questions) for turn in range(len(question.turns[:2]))]
        read = [mark(answer) for answer in ask([single_ask(questions[place], ours[place], turn) for place, turn in where])]
        marks: dict[tuple[int, int], float] = {
            at: value for at, (value, _) in zip(where, read, strict=True) if value is not None
        }
        names, counts = _names(questions), Counter(why for _, why in read)
        of_each = {place: [marks[at] for at in where if at[0] == place and at in marks] for place in range(len(questions))}
        means = {place: sum(values) / len(values) for place, values in of_each.items() if values}
        measured = [_named("mark", means, names)]
        for turn in sorted({turn for _, turn in where}):
            own = {place: value for (place, its), value in marks.items() if its == turn}
            measured.append(_named(f"turn{turn + 1}", own, names))
        categories = dict.fromkeys(question.category for question in questions if question.category)
        for category in categories if len(categories) > 1 else ():
            own = {place: value for place, value in means.items() if questions[place].category == category}
            measured.append(_named(f"{category}/mark", own, names))
        measured[0] = replace(measured[0], note=_said(counts))
        return [*measured, share("unread", [float(why != READ) for _, why in read])]


def look(config: EvaluationConfig) -> None:
    """Reads the files of questions, of reference answers and of answers to compare with. Raises DataError and ConfigError."""
    judge = config.judge
    if judge.questions:
        read_questions(Path(judge.questions), judge.references)
    if judge.mode == "pairwise" and judge.against not in SIDES:
        answers_in(Path(judge.against))


def won(
    pairs: Sequence[Pair | None], counts: Counter[str], longer: Sequence[int], names: Sequence[str], note: str = ""
) -> list[Measurement]:
    """The numbers of pairwise judging. `counts`: of verdicts, by what became of them; `longer`: characters of ours minus the
    other's; the interval is over prompts."""
    kept = [(pair, name, more) for pair, name, more in zip(pairs, names, longer, strict=True) if pair is not None]
    unread = sum(counts.values()) - counts[READ]
    dropped = f"{len(pairs) - len(kept)} of {len(pairs)} prompts left out: nothing read" if len(kept) < len(pairs) else ""
    told = "; ".join(filter(None, (note, dropped, _said(counts))))
    read = [
        (share, weight, first) for pair, _, _ in kept for share, weight, first in zip(pair.shares, pair.weights, pair.first)
    ]
    missing = share("unread", [1.0] * unread + [0.0] * counts[READ])
    if not kept:
        return [replace(share("win_rate", []), note=told), missing]
    won_N = np.array([sum(s * w for s, w in zip(pair.shares, pair.weights)) for pair, _, _ in kept])
    all_N = np.array([sum(pair.weights) for pair, _, _ in kept], dtype=np.float64)
    shares_N, longer_N = won_N / all_N, np.array([float(more) for _, _, more in kept])

    def rate(places: Places) -> float:
        return float(won_N[places].sum() / all_N[places].sum())

    if len(set(all_N.tolist())) == 1:  # every prompt counts alike: a mean of items
        win = bootstrap("win_rate", shares_N.tolist(), names=[name for _, name, _ in kept])
    else:
        win = resampled("win_rate", len(kept), rate)
    return [
        replace(win, note=told),
        resampled("length_controlled", len(kept), lambda places: length_controlled(shares_N[places], longer_N[places])),
        share("ties", [float(share == 0.5) for share, _, _ in read]),
        bootstrap("first", [first for _, _, first in read]),
        missing,
    ]


def _said(counts: Counter[str]) -> str:
    """What became of the verdicts, where some could not be read."""
    every = sum(counts.values())
    lost = ", ".join(f"{count} {why}" for why, count in sorted(counts.items()) if why != READ)
    return f"of {every} verdicts {lost}" if lost else ""


def _named(metric: str, values: dict[int, float], names: Sequence[str]) -> Measurement:
    return bootstrap(metric, list(values.values()), names=[names[place] for place in values])


def _names(questions: Sequence[Question]) -> list[str]:
    return item_names([question.turns for question in questions])


def _talk(turns: Sequence[str], answers: Sequence[str]) -> str:
    """Questions with the answers between them, as one prompt."""
    said = [Turn("user", turns[0])]
    for answer, question in zip(answers, turns[1:], strict=True):
        said += [Turn("assistant", answer), Turn("user", question)]
    return conversation(said)
