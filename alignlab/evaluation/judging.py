"""What a judge is asked, how its verdicts are read, and how well it agrees with people; the judge is any server that answers as
OpenAI's. Prompts: MT-Bench's (arXiv 2306.05685, FastChat, Apache-2.0) and Arena-Hard's (arXiv 2406.11939), judge_prompts.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignlab.data.files import read
from alignlab.errors import DataError, MeasureError
from alignlab.evaluation.config import JudgeConfig
from alignlab.files import write_whole

PROMPTS = Path(__file__).with_name("judge_prompts.json")
LOWEST, HIGHEST = 1.0, 10.0
"""Marks of single-answer judging."""
PAIRWISE: Mapping[str, tuple[float, int]] = {
    "A>>B": (1.0, 3),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, 3),
    "A": (1.0, 1),
    "B": (0.0, 1),
    "C": (0.5, 1),
}
"""A verdict: what it is worth for A, and how often it counts; Arena-Hard counts a significant difference three times."""
FIVE = re.compile(r"\[\[([AB<>=]+)\]\]")
THREE = re.compile(r"\[\[([ABC])\]\]")
MARK = re.compile(r"\[\[(\d+\.?\d*)\]\]")
PLAIN_MARK = re.compile(r"\[(\d+\.?\d*)\]")
RIDGE = 1.0
"""Weight of the square of the length's coefficient, halved (scikit-learn's C = 1, as alpaca_eval has it)."""
CHARACTERS_PER_TOKEN = 4
"""Of English, for estimates of cost."""
READ, REFUSED, MALFORMED = "read", "refused", "malformed"


@dataclass(frozen=True)
class Answer:
    """What a judge said. `refused`: it declined, or a filter stopped it; the text may then be empty."""

    text: str
    refused: bool = False


@dataclass(frozen=True)
class Ask:
    """The two messages of a request."""

    system: str
    prompt: str


Asker = Callable[[Sequence[Ask]], list[Answer]]
"""From requests to answers, in their order."""


@dataclass(frozen=True)
class Question:
    """Its turns; `identity` and `category` where a file names them; `references`: an answer to each turn, or none."""

    turns: tuple[str, ...]
    identity: str = ""
    category: str = ""
    references: tuple[str, ...] = ()


def pair_ask(question: Question, first: Sequence[str], second: Sequence[str], scale: str) -> Ask:
    """Two answers beside each other, the first as A; of two turns the whole conversations."""
    if len(question.turns) > 1:
        one, two = question.turns[:2]
        values = {"question_1": one, "question_2": two, "answer_a_1": first[0], "answer_a_2": first[1]}
        return _ask("pair, two turns", {**values, "answer_b_1": second[0], "answer_b_2": second[1]})
    name = "pair, five" if scale == "five" else "pair"
    return _ask(name, {"question": question.turns[0], "answer_a": first[0], "answer_b": second[0]})


def single_ask(question: Question, answers: Sequence[str], turn: int) -> Ask:
    """One answer to be marked: the first turn's, or the second's with all that was said before."""
    reference = ", reference" if question.references else ""
    references = {f"ref_answer_{place + 1}": text for place, text in enumerate(question.references)}
    if turn == 0:
        return _ask(f"single{reference}", {"question": question.turns[0], "answer": answers[0], **references})
    said = {"question_1": question.turns[0], "question_2": question.turns[1], "answer_1": answers[0], "answer_2": answers[1]}
    return _ask(f"single, two turns{reference}", {**said, **references})


def verdict(answer: Answer, scale: str) -> tuple[tuple[float, int] | None, str]:
    """A's share and the verdict's weight, and READ; or None and why: REFUSED, or MALFORMED for none, or several that differ."""
    if answer.refused:
        return None, REFUSED
    found = set((FIVE if scale == "five" else THREE).findall(answer.text)) & set(PAIRWISE)
    if len(found) != 1:
        return None, MALFORMED
    return PAIRWISE[found.pop()], READ


def mark(answer: Answer) -> tuple[float | None, str]:
    """A mark from 1 to 10, the first in brackets as FastChat reads it; or None and why."""
    if answer.refused:
        return None, REFUSED
    found = MARK.search(answer.text) or PLAIN_MARK.search(answer.text)
    if found is None or not LOWEST <= float(found[1]) <= HIGHEST:
        return None, MALFORMED
    return float(found[1]), READ


@dataclass(frozen=True)
class Pair:
    """What both orders said of ours against another answer: our share and the weight of each order that was read; `first`:
    whether the answer that stood first won, for each of them."""

    shares: tuple[float, ...]
    weights: tuple[int, ...]
    first: tuple[float, ...]

    @property
    def share(self) -> float:
        """Ours of the pair, in [0, 1]."""
        return sum(share * weight for share, weight in zip(self.shares, self.weights)) / sum(self.weights)


def judge_pairs(
    ask: Asker, questions: Sequence[Question], ours: Sequence[Sequence[str]], others: Sequence[Sequence[str]], scale: str
) -> tuple[list[Pair | None], Counter[str]]:
    """Both orders of every question. None where neither verdict could be read; and how many verdicts were READ, REFUSED and
    MALFORMED."""
    asks = []
    for question, own, other in zip(questions, ours, others, strict=True):
        asks += [pair_ask(question, own, other, scale), pair_ask(question, other, own, scale)]
    scales = ["three" if len(question.turns) > 1 else scale for question in questions for _ in range(2)]
    said = [verdict(answer, each) for answer, each in zip(ask(asks), scales, strict=True)]
    pairs = [_pair(straight, turned) for (straight, _), (turned, _) in zip(said[::2], said[1::2], strict=True)]
    return pairs, Counter(why for _, why in said)


def _pair(straight: tuple[float, int] | None, turned: tuple[float, int] | None) -> Pair | None:
    """Ours stood first in the one, and second in the other."""
    found = [(*straight, straight[0])] if straight else []
    found += [(1 - turned[0], turned[1], turned[0])] if turned else []
    if not found:
        return None
    shares, weights, first = zip(*found, strict=True)
    return Pair(shares, weights, first)


def length_controlled(shares_N: NDArray[np.float64], longer_N: NDArray[np.float64]) -> float:
    """The win rate at equal length, in [0, 1]: sigmoid(a) of logit p = a + b tanh(d), with d = `longer_N` / its standard
    deviation (arXiv 2404.04475, without the term of each instruction's difficulty, which is fitted on other models' answers).
    longer_N: characters of ours minus the other's."""
    spread = float(longer_N.std())
    x_N = np.tanh(longer_N / spread) if spread > 0 else np.zeros_like(longer_N)
    design_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
    weights_2 = np.zeros(2)
    penalty_22 = np.diag([1e-6, RIDGE])
    for _ in range(50):
        p_N = 1 / (1 + np.exp(-design_N2 @ weights_2))
        gradient_2 = design_N2.T @ (p_N - shares_N) + penalty_22 @ weights_2
        step_2 = np.linalg.solve((design_N2 * (p_N * (1 - p_N))[:, None]).T @ design_N2 + penalty_22, gradient_2)
        weights_2 -= np.clip(step_2, -2, 2)
        if np.abs(step_2).max() < 1e-9 or abs(weights_2[0]) > 30:
            break
    return float(1 / (1 + math.exp(-float(np.clip(weights_2[0], -30, 30)))))


@dataclass(frozen=True)
class Agreement:
    """A judge beside people. `accuracy`: of the three outcomes (ours, other, tie; both orders have to agree on a winner);
    `kappa`: Cohen's; `first_bias`, `second_bias`: shares of pairs where whatever stood first, or second, won in both orders."""

    n: int
    accuracy: float
    kappa: float
    first_bias: float
    second_bias: float
    unread: int


def agreement(pairs: Sequence[Pair | None], labels: Sequence[int]) -> Agreement:
    """`labels`: 1 where people prefer the first answer of a pair, 2 the second, 0 neither. Pairs of which an order could not be
    read are left out. Raises MeasureError where none is left."""
    kept = [(pair, label) for pair, label in zip(pairs, labels, strict=True) if pair is not None and len(pair.shares) == 2]
    if not kept:
        raise MeasureError("no verdict of the judge could be read; look at its answers, or take another judge.")
    said = [_outcome(pair) for pair, _ in kept]
    right = [label for _, label in kept]
    n = len(kept)
    observed = sum(one == two for one, two in zip(said, right, strict=True)) / n
    by_chance = sum((said.count(each) / n) * (right.count(each) / n) for each in (0, 1, 2))
    return Agreement(
        n,
        observed,
        (observed - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0,
        sum(pair.first == (1.0, 1.0) for pair, _ in kept) / n,
        sum(pair.first == (0.0, 0.0) for pair, _ in kept) / n,
        len(pairs) - n,
    )


def _outcome(pair: Pair) -> int:
    """1 or 2 where both orders agree that this answer is better, else 0."""
    if all(share > 0.5 for share in pair.shares):
        return 1
    return 2 if all(share < 0.5 for share in pair.shares) else 0


def cost(config: JudgeConfig, questions: Sequence[Question], answer_tokens: int, points: int) -> str:
    """What judging takes at most, for a plan: requests and tokens, estimated from characters."""
    both = config.mode == "pairwise"
    requests = sum(2 if both else len(each.turns[:2]) for each in questions) * points
    blank = [""] * 2
    lengths = []
    for each in questions:
        asks = (
            [pair_ask(each, blank, blank, config.scale)] * 2
            if both
            else [single_ask(each, blank, turn) for turn in range(len(each.turns[:2]))]
        )
        lengths += [len(ask.system) + len(ask.prompt) for ask in asks]
    shown = (2 if both else 1) * max((len(each.turns[:2]) for each in questions), default=1) * answer_tokens
    shown_tokens = (sum(lengths) // CHARACTERS_PER_TOKEN + len(lengths) * shown) * points
    return (
        f"{config.model}: at most {requests:,} requests, about {shown_tokens:,} tokens to read and at most"
        f" {requests * config.max_tokens:,} to write; what was judged before is not asked again"
    )


def read_questions(path: Path, references: str | None) -> list[Question]:
    """The questions of a JSON-lines file: `turns` (MT-Bench; Arena-Hard's are objects with `content`) or `instruction`
    (AlpacaEval). `references`: FastChat's answers, by question_id. Raises DataError for a line without a question."""
    known = answers_in(Path(references)) if references else {}
    made = []
    for row, line in read([path]):
        turns = line.get("turns") or [line.get("instruction")]
        every = [each.get("content") if isinstance(each, Mapping) else each for each in turns]
        texts = tuple(each for each in every if isinstance(each, str) and each.strip())
        if len(texts) < len(every):
            raise DataError(f"{row}: no question; give it turns, a list of texts, or an instruction.")
        identity = str(line.get("question_id", texts[0]))
        made.append(Question(texts, identity, str(line.get("category", "")), known.get(identity, ())))
    if not made:
        raise DataError(f"{path} holds no question; give another file.")
    return made


def answers_in(path: Path) -> dict[str, tuple[str, ...]]:
    """Answers by question_id (FastChat's `choices`), or by instruction (`output`, AlpacaEval's). Raises DataError for a line
    without one."""
    made = {}
    for row, line in read([path]):
        try:
            if "choices" in line:
                made[str(line["question_id"])] = tuple(map(str, line["choices"][0]["turns"]))
            else:
                made[str(line["question_id"] if "question_id" in line else line["instruction"])] = (str(line["output"]),)
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(f"{row}: no answer ({error!r}); give it choices with turns, or output.") from error
    return made


def people(path: Path, limit: int | None = None) -> tuple[list[Question], list[tuple[str, str]], list[int]]:
    """PandaLM's pairs with what most of its three annotators prefer: 1, 2, or 0 for a tie; pairs without a majority are left
    out. `limit`: of the file's first pairs."""
    questions, answers, labels = [], [], []
    for _, line in read([path], limit):
        votes = Counter(int(line[f"annotator{number}"]) for number in (1, 2, 3))
        label, count = votes.most_common(1)[0]
        if count > 1:
            questions.append(Question(("\n\n".join(filter(None, (line["instruction"], line["input"]))),)))
            answers.append((str(line["response1"]), str(line["response2"])))
            labels.append(label)
    return questions, answers, labels


class Server:
    """Asks a server, several requests at a time; failed ones again after growing pauses, by the client. Every answer is kept
    in `folder` by the content of its request, so that none is asked twice."""

    def __init__(self, config: JudgeConfig, folder: Path | None) -> None:
        import openai

        self._config, self._folder, self._failed = config, folder, openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            max_retries=config.retries,
            timeout=config.seconds,
        )

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        """Raises MeasureError where the server does not answer; what was answered until then is kept."""
        with ThreadPoolExecutor(self._config.parallel) as pool:
            try:
                different = list(dict.fromkeys(asks))
                answers = dict(zip(different, pool.map(self._answer, different), strict=True))
            except self._failed as error:
                pool.shutdown(cancel_futures=True)
                where = self._client.base_url
                raise MeasureError(
                    f"the judge at {where} does not answer ({str(error).splitlines()[0]}); see that evaluation.judge.base_url"
                    " and model are its own; what it has judged is kept, and the same command goes on from there."
                ) from error
        return [answers[each] for each in asks]

    def _answer(self, ask: Ask) -> Answer:
        config = self._config
        decisive = [config.model, config.temperature, config.max_tokens, ask.system, ask.prompt]
        kept = self._folder and self._folder / f"{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]}.json"
        with suppress(OSError, ValueError, TypeError):  # one that is not there or damaged is asked again
            if kept:
                return Answer(**json.loads(kept.read_text(encoding="utf-8")))
        said = self._client.chat.completions.create(
            model=str(config.model),
            messages=[{"role": "system", "content": ask.system}, {"role": "user", "content": ask.prompt}],
            temperature=config.temperature,
            max_tokens=config.max_tokens,
        ).choices[0]
        text = said.message.content or ""
        answer = Answer(
            text, bool(getattr(said.message, "refusal", None)) or said.finish_reason == "content_filter" or not text
        )
        if kept:
            write_whole(kept, json.dumps(asdict(answer)), durable=False)
        return answer


def _ask(name: str, values: Mapping[str, str]) -> Ask:
    """A prompt with its values; braces inside them are left alone."""
    written = _prompts()[name]
    return Ask(written["system"], re.sub(r"\{(\w+)\}", lambda found: values[found[1]], written["prompt"]))


@lru_cache(maxsize=1)
def _prompts() -> Mapping[str, Mapping[str, str]]:
    found: Mapping[str, Mapping[str, str]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    return found
