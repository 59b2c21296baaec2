"""Generated texts against references, as e2e-metrics measures them: BLEU, NIST, METEOR, ROUGE-L and CIDEr.

BLEU is sacrebleu's, lower-cased, on mteval's tokens ("13a"): so the released generations of arXiv 2402.15179 score as printed.
NIST is mteval's, on the same tokens. The others are the COCO evaluation's, in the package pycocoevalcap, whose tokenizer and
METEOR run in Java. A metric whose package, or Java, is not there is left out by name.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.statistics import Measurement, Places, bootstrap, item_names, resampled
from alignlab.evaluation.suite import EvaluationContext

log = logging.getLogger(__name__)
NIST_ORDER = 5
"""The longest n-grams of NIST."""
BLEU_ORDER = 4
HALF_PENALTY_AT = 1.5
"""How many times shorter than its references a text has half of its NIST (mteval)."""
INSTALL = "pip install 'alignlab[nlg]'"
Tokens = tuple[str, ...]
Way = Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[str]], list[Measurement]]
"""(texts, references of each, names of the texts as items) -> some metrics."""


class Nlg:
    """One text for each prompt of the test split, against all of the prompt's responses there."""

    def __init__(self, context: EvaluationContext) -> None:
        self._context = context
        self._references: dict[str, list[str]] = {}
        for record in context.source.split("test").records:
            self._references.setdefault(record.prompt, []).extend(response.text for response in record.responses)

    def measure(self, point: Point) -> list[Measurement]:
        """The metrics that can be computed here: BLEU from 0 to 100, METEOR and ROUGE-L from 0 to 1, NIST and CIDEr as they
        are. Raises ConfigError where there is none."""
        prompts, texts = self._context.answers(point)
        return compared(texts, [self._references[prompt] for prompt in prompts], item_names(prompts))


def compared(texts: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str] = ()) -> list[Measurement]:
    """Every metric whose package is there, of texts against the references of each, with the bootstrap interval over texts.
    `names`: of the texts as items, if any.

    Raises ConfigError where none is there.
    """
    lines = [_line(text) for text in texts]
    wanted = [[_line(reference) for reference in each] for each in references]
    ways: Mapping[str, Way] = {
        "bleu, nist": _by_ngrams,
        "meteor, rouge_l, cider": _by_coco,
    }
    measured: list[Measurement] = []
    for metrics, way in ways.items():
        try:
            if way is _by_coco and shutil.which("java") is None:
                raise ImportError("Java is not installed")
            measured += way(lines, wanted, names)
        except ImportError as error:
            log.warning("suite nlg leaves out %s: %s; %s", metrics, error, INSTALL)
    if not measured:
        raise ConfigError(f"suite nlg has none of the packages that it needs; {INSTALL}, or leave it out of evaluation.suites.")
    return measured


def nist(texts: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Measurement:
    """NIST (mteval-v13a): matched n-grams count by how many bits they tell, over all references, and each at most as often as
    in that reference of the text which has it most."""
    counts: Counter[Tokens] = Counter()
    for each in references:
        for reference in each:
            for order in range(1, NIST_ORDER + 1):
                counts.update(ngrams(reference, order))
    words = sum(count for gram, count in counts.items() if len(gram) == 1)
    # Of each text: bits that match and n-grams that there are, by order; its length, and the mean length of its references.
    rows = np.zeros((len(texts), 2 * NIST_ORDER + 2))
    for place, (text, own) in enumerate(zip(texts, references, strict=True)):
        for order in range(1, NIST_ORDER + 1):
            said = ngrams(text, order)
            most: Counter[Tokens] = Counter()
            for reference in own:
                most |= ngrams(reference, order)
            matched = (said & most).items()
            bits = sum(n * math.log2((counts[gram[:-1]] if order > 1 else words) / counts[gram]) for gram, n in matched)
            rows[place, order - 1], rows[place, NIST_ORDER + order - 1] = bits, sum(said.values())
        rows[place, -2:] = len(text), sum(map(len, own)) / len(own)
    return resampled("nist", len(texts), lambda places: _nist(rows[places].sum(0)))


def ngrams(tokens: Tokens, order: int) -> Counter[Tokens]:
    """How often each n-gram of this length stands in a text."""
    return Counter(tokens[start : start + order] for start in range(len(tokens) - order + 1))


def _nist(total: NDArray[np.float64]) -> float:
    bits, said = total[:NIST_ORDER], total[NIST_ORDER : 2 * NIST_ORDER]
    length, expected = total[-2:]
    if not length:
        return 0.0
    score = float((bits[said > 0] / said[said > 0]).sum())
    shorter = min(length / expected, 1.0)
    return score * math.exp(math.log(0.5) / math.log(HALF_PENALTY_AT) ** 2 * math.log(shorter) ** 2)


def _by_ngrams(texts: Sequence[str], references: Sequence[Sequence[str]], _names: Sequence[str]) -> list[Measurement]:
    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    bleu = BLEU(lowercase=True, tokenize="13a")
    alone = [bleu.corpus_score([text], [[each] for each in own]) for text, own in zip(texts, references, strict=True)]
    # What of a text's score adds up to that of all: matched and all n-grams by order, and both lengths.
    rows = np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in alone])

    def score(places: Places) -> float:
        total = [int(value) for value in rows[places].sum(0)]
        found = BLEU.compute_bleu(
            correct=total[:BLEU_ORDER],
            total=total[BLEU_ORDER : 2 * BLEU_ORDER],
            sys_len=total[-2],
            ref_len=total[-1],
            smooth_method="exp",
        )
        return float(found.score)

    divide = Tokenizer13a()
    tokens = [tuple(divide(text.lower()).split()) for text in texts]
    wanted = [[tuple(divide(reference.lower()).split()) for reference in each] for each in references]
    return [resampled("bleu", len(texts), score), nist(tokens, wanted)]


def _by_coco(texts: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]) -> list[Measurement]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    divide = PTBTokenizer()
    wanted = divide.tokenize({place: [{"caption": each} for each in own] for place, own in enumerate(references)})
    said = divide.tokenize({place: [{"caption": text}] for place, text in enumerate(texts)})
    program = Meteor()
    whole, of_each = program.compute_score(wanted, said)
    for pipe in (program.meteor_p.stdout, program.meteor_p.stderr):  # the class closes its input only
        pipe.close()
    around = bootstrap("meteor", of_each)
    # METEOR of all texts is no mean over them; its interval is as wide as that of the mean.
    meteor = Measurement("meteor", whole, len(texts), whole + around.low - around.value, whole + around.high - around.value)
    rouge_l = bootstrap("rouge_l", Rouge().compute_score(wanted, said)[1].tolist(), names=names)
    cider = bootstrap("cider", [float(value) for value in Cider().compute_score(wanted, said)[1]], names=names)
    return [meteor, rouge_l, cider]


def _line(text: str) -> str:
    """A text on one line, without the mark by which METEOR's program divides its input."""
    return " ".join(text.replace("|||", " ").split())
