"""Suites that measure one point by itself: stories of the embedded world, held-out pairs, sampled texts, held-out labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alignlab.data.batching import in_order, whole
from alignlab.errors import ConfigError, DataError
from alignlab.evaluation import Point
from alignlab.evaluation.statistics import Measurement, Places, bootstrap, item_names, resampled, share
from alignlab.evaluation.suite import EvaluationContext
from alignlab.models.answers import scored
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import Batch, Encoded, EncodedGroup, Example

SAMPLED_PER_PASS = 64
"""Sampled texts that are scored together at most."""
HELD_OUT_PER_PASS = 32
"""Held-out pairs or labelled texts that are scored together at most."""
TIE_NATS = 1e-4
"""Margins closer than rounding between batch shapes are ties: they count one half."""
DISTINCT = 2
REPEATED = 4
MOST_NATS = 500.0
"""Per token of a text; of more the perplexity is no finite number."""
ENDLESS = "no finite likelihood"


class Toy:
    """Stories of the embedded world, by its exact oracle: reward, and capability, the share of four checks that a story
    passes."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.source.judge is None:
            raise ConfigError(f"evaluation suite toy needs an oracle; data={context.source.name} has none.")
        self._context, self._judge = context, context.source.judge

    def measure(self, point: Point) -> list[Measurement]:
        """Mean reward in [-1, 1], mean capability in [0, 1], the mean share of mood words on their story's side, and for a
        class made of attributes the share of stories that have them all."""
        prompts, texts = self._context.answers(point)
        names = item_names(prompts)
        verdicts = [self._judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        wanted = self._context.classes.attributes.get(point.control, {}) if self._context.classes else {}
        obeyed = [float(all(verdict.attributes.get(key) == value for key, value in wanted.items())) for verdict in verdicts]
        return [
            bootstrap("reward", [verdict.reward for verdict in verdicts], names=names),
            bootstrap("capability", [verdict.capability for verdict in verdicts], names=names),
            bootstrap("consistency", [verdict.consistency for verdict in verdicts], names=names),
            *([share("obedience", obeyed, names)] if wanted else []),
        ]


class PreferenceSuite:
    """Accuracy on held-out pairs, ties counting one half: of log p(chosen) > log p(rejected), and of the same relative to
    `off`, which is the trained backbone where a stage trained it."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.held_out is None:
            raise ConfigError(f"evaluation suite preference needs pairs; data={context.source.name} has none.")
        self._policy, self._begun = context.policy, context.begun
        self._groups = context.held_out.groups[: context.config.pairs]
        self._items = group_names(self._groups)
        self._base_N: Tensor | None = None

    def measure(self, point: Point) -> list[Measurement]:
        """Accuracy by log-probability, by log-probability per token, by implicit reward, and the mean reward margin (nats); of
        several sources both accuracies of each too, as source/accuracy."""
        if self._base_N is None:
            with self._policy.off():
                self._base_N = self._margins("preference without the tuner")[0]
        with point.set(self._policy):
            margin_N, per_token_N = self._margins(f"preference at {point}")
        reward_N = margin_N - self._base_N
        tasks = [group.task for group in self._groups]
        return [
            share("accuracy", _wins(margin_N), self._items),
            share("accuracy_per_token", _wins(per_token_N), self._items),
            share("reward_accuracy", _wins(reward_N), self._items),
            bootstrap("reward_margin", reward_N.tolist(), names=self._items),
            *_of_each("accuracy", _wins(margin_N), tasks),
            *_of_each("reward_accuracy", _wins(reward_N), tasks),
        ]

    @torch.inference_mode()
    def _margins(self, name: str) -> tuple[Tensor, Tensor]:
        """log p(chosen) - log p(rejected) of each pair, summed and per token, in the order of the groups."""
        total_NM, mean_NM = scored(self._policy, self._groups, HELD_OUT_PER_PASS, self._begun.of(name))
        return total_NM[:, 0] - total_NM[:, 1], mean_NM[:, 0] - mean_NM[:, 1]


class Fluency:
    """Fluency of sampled texts: perplexity under the backbone, distinct n-grams, repetition and length."""

    def __init__(self, context: EvaluationContext) -> None:
        self._context = context

    def measure(self, point: Point) -> list[Measurement]:
        """Perplexity per token, share of distinct bigrams of a text, share of its 4-grams that it had already used, and length
        in words. Left out of the perplexity, and counted in its note, are texts that have none: empty ones, those that a
        codec refuses (`</s>` written out), and those that are too long or too unlikely when they are read again."""
        prompts, texts = self._context.answers(point)
        words = [text.split() for text in texts]
        names = item_names(prompts)
        nats, left_out = self._nats_per_token(prompts, texts, f"fluency at {point}")
        counted = Counter(left_out.values())
        note = "; ".join(f"{count} of {len(texts)} texts left out: {reason}" for reason, count in counted.items())
        written = [name for place, name in enumerate(names) if place not in left_out]
        return [
            replace(bootstrap("perplexity", nats, "exp", written), note=note),
            bootstrap("distinct_2", [_distinct(text, DISTINCT) for text in words], names=names),
            bootstrap("repetition_4", [1 - _distinct(text, REPEATED) for text in words], names=names),
            bootstrap("words", [float(len(text)) for text in words], names=names),
        ]

    def _nats_per_token(self, prompts: Sequence[str], texts: Sequence[str], name: str) -> tuple[list[float], dict[int, str]]:
        """Negative log-likelihood of each text under the backbone, nats per token; its end is left out, a cut text has none.
        And the texts that have no such number, by their place, with the reason."""
        policy = self._context.policy
        left_out: dict[int, str] = {}
        groups: dict[int, EncodedGroup] = {}
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            encoded = _read_again(policy.backbone.codec, prompt, text, policy.backbone.context)
            if isinstance(encoded, str):
                left_out[place] = encoded
            else:
                groups[place] = EncodedGroup(str(place), (encoded,))
        if not groups:
            return [], left_out
        with torch.inference_mode(), policy.off():
            mean_NM = scored(policy, list(groups.values()), SAMPLED_PER_PASS, self._context.begun.of(name))[1]
        nats = dict(zip(groups, (-mean_NM[:, 0]).tolist(), strict=True))
        left_out |= {place: ENDLESS for place, value in nats.items() if not value <= MOST_NATS}
        return [value for place, value in nats.items() if place not in left_out], left_out


def _read_again(codec: Codec, prompt: str, text: str, context: int) -> Encoded | str:
    """A sampled text as ids behind its prompt, without its end; or why it has none."""
    if not text.strip():
        return "empty"
    try:
        (encoded,) = codec.examples([Example(prompt, text)], ["a sampled text"])
    except DataError:
        return "a special token is written out in it"
    ids = encoded.ids[: -codec.end_tokens]
    if len(ids) > context:
        return "more tokens than the context when it is read again"
    return replace(encoded, ids=ids)


class Classification:
    """Accuracy on held-out texts with labels. Every class is scored, by a classifier's head or by the likelihood of its name
    (no string is compared); ties go to the first class."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.labels is None or context.held_out_labels is None:
            raise ConfigError(f"evaluation suite classification needs labels; data={context.source.name} has none.")
        self._policy, self._begun = context.policy, context.begun
        self._names, self._numbers = context.labels.names, context.labels.numbers
        self._groups = context.held_out_labels.groups[: context.config.pairs]
        labels = {record.row: record.responses[0].text for record in context.source.split("test").records}
        self._labels = [labels[group.row] for group in self._groups]
        self._items = group_names(self._groups)

    def measure(self, point: Point) -> list[Measurement]:
        """Of classes: accuracy, nats of the right one, normalised over the classes, and what `of_classes` adds. Of a number:
        its squared error, and what `of_numbers` adds. Of classes whose names are numbers, both but the correlation of classes.
        """
        with point.set(self._policy):
            kept = self._begun.of(f"classification at {point}")
            scores_NC = by_batches(self._policy, self._groups, self._policy.label_scores, kept)
        if not self._names:
            return of_numbers(scores_NC[:, 0].tolist(), [float(text) for text in self._labels], self._items)
        right_N = torch.tensor([self._names.index(name) for name in self._labels])
        answer_N = scores_NC.argmax(-1)
        nats_N = F.cross_entropy(scores_NC, right_N, reduction="none")
        measured = [
            share("accuracy", (answer_N == right_N).float().tolist(), self._items),
            bootstrap("nats", nats_N.tolist(), names=self._items),
        ]
        if self._numbers:
            answers = [float(self._names[place]) for place in answer_N]
            return [*measured, *of_numbers(answers, [float(text) for text in self._labels], self._items)]
        return [*measured, *of_classes(answer_N.numpy(), right_N.numpy(), len(self._names))]


class RewardPairs:
    """Held-out pairs of a reward model: does it give the preferred answer more? Ties count one half."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.held_out is None:
            raise ConfigError(f"evaluation suite reward_pairs needs pairs; data={context.source.name} has none.")
        self._policy, self._begun = context.policy, context.begun
        self._groups = context.held_out.groups[: context.config.pairs]
        self._items = group_names(self._groups)

    def measure(self, point: Point) -> list[Measurement]:
        """Accuracy, the mean margin r(chosen) - r(rejected), and the mean reward of all answers."""
        with point.set(self._policy):
            kept = self._begun.of(f"rewards at {point}")
            reward_NM = by_batches(self._policy, self._groups, lambda batch: self._policy.class_scores(batch)[..., 0], kept)
        margin_N = reward_NM[:, 0] - reward_NM[:, 1]
        return [
            share("accuracy", _wins(margin_N, tie=0.0), self._items),
            bootstrap("margin", margin_N.tolist(), names=self._items),
            bootstrap("reward", reward_NM.mean(-1).tolist(), names=self._items),
        ]


@torch.inference_mode()
def by_batches(
    policy: Policy,
    groups: Sequence[EncodedGroup],
    ask: Callable[[Batch], Tensor],
    kept: MutableMapping[int, Any] | None = None,
) -> Tensor:
    """What is asked of each group, in their order, fp32 on the CPU. `kept`: the values of batches that are there already."""
    codec = policy.backbone.codec
    rows: list[Tensor] = [torch.empty(0)] * len(groups)
    kept = {} if kept is None else kept
    for number, places in enumerate(in_order(groups, HELD_OUT_PER_PASS)):
        if number not in kept:
            batch = whole([groups[place] for place in places], codec.pad).to(policy.backbone.device)
            kept[number] = ask(batch).float().cpu().tolist()
        for place, found in zip(places, torch.tensor(kept[number]), strict=True):
            rows[place] = found
    return torch.stack(rows)


def of_classes(answer_N: Places, right_N: Places, classes: int) -> list[Measurement]:
    """Matthews' correlation, for more than two classes Gorodkin's R_K (doi 10.1016/j.compbiolchem.2004.09.006), 0 where only
    one class is answered or right; and F1, the mean over the classes that are answered or right."""
    pair_N = answer_N * classes + right_N

    def confusion(places: Places) -> NDArray[np.float64]:
        return np.bincount(pair_N[places], minlength=classes**2).reshape(classes, classes).astype(np.float64)

    def matthews(places: Places) -> float:
        table = confusion(places)
        answered, right, all_of = table.sum(1), table.sum(0), table.sum()
        spread = (all_of**2 - (answered**2).sum()) * (all_of**2 - (right**2).sum())
        return float((np.trace(table) * all_of - answered @ right) / math.sqrt(spread)) if spread else 0.0

    def f1(places: Places) -> float:
        table = confusion(places)
        both = table.sum(1) + table.sum(0)
        return float((2 * np.diag(table)[both > 0] / both[both > 0]).mean())

    return [resampled("matthews", len(pair_N), matthews), resampled("f1", len(pair_N), f1)]


def of_numbers(answers: Sequence[float], right: Sequence[float], names: Sequence[str] = ()) -> list[Measurement]:
    """The squared error, and Pearson's and Spearman's correlation of answers and right numbers: 0 where either are alike."""
    from scipy.stats import rankdata

    answer_N, right_N = np.asarray(answers, np.float64), np.asarray(right, np.float64)

    def pearson(places: Places) -> float:
        return _correlation(answer_N[places], right_N[places])

    def spearman(places: Places) -> float:
        return _correlation(rankdata(answer_N[places]), rankdata(right_N[places]))

    squared = bootstrap("squared_error", ((answer_N - right_N) ** 2).tolist(), names=names)
    return [squared, resampled("pearson", len(right), pearson), resampled("spearman", len(right), spearman)]


def _correlation(one_N: NDArray[np.float64], other_N: NDArray[np.float64]) -> float:
    alike = np.ptp(one_N) == 0 or np.ptp(other_N) == 0
    return 0.0 if alike else float(np.corrcoef(one_N, other_N)[0, 1])


def group_names(groups: Sequence[EncodedGroup]) -> list[str]:
    """Names of groups as items, by the ids of their prompts and responses, which a control in front of them does not change."""
    return item_names([[member.ids[member.head :] for member in group.members] for group in groups])


def _of_each(metric: str, values: Sequence[float], tasks: Sequence[str | None]) -> list[Measurement]:
    """A share for each task, where there are several sources."""
    named = dict.fromkeys(task for task in tasks if task is not None)
    return [
        share(f"{name}/{metric}", [value for value, task in zip(values, tasks, strict=True) if task == name]) for name in named
    ]


def _wins(margin_N: Tensor, tie: float = TIE_NATS) -> list[float]:
    return torch.where(margin_N.abs() <= tie, 0.5, (margin_N > 0).float()).tolist()


def _distinct(words: list[str], size: int) -> float:
    """The share of different n-grams among all of a text; 1 for a text that is too short to have any."""
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
