"""What a suite is, and how a policy is measured by suites: at every point of a control, or on the way through training.

A suite measures a policy at one point, a strength or a class. Texts are sampled once per point, for all suites.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from alignlab.data.classes import LABELLED, Classes, classed
from alignlab.data.encode import Account, Limits, encode, labelled, pair
from alignlab.data.source import Source, Split
from alignlab.evaluation import SUITES, Point
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.report import Row, titles
from alignlab.evaluation.statistics import Measurement
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import ACROSS, NO_CLASS, EncodedGroup, LabelSet, View
from alignlab.tuners.config import FormConfig, StrengthConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Groups of the test split as ids, and the account of its rows."""

    groups: Sequence[EncodedGroup]
    account: Account


def held_out(split: Split, view: View, codec: Codec, limits: Limits) -> HeldOut:
    """Encodes a test split; part of the plan, so that bad rows are found before any training."""
    return HeldOut(*encode(split, view, codec.examples, limits))


class Begun:
    """The batches of an evaluation that were measured, for one that was ended in the middle of a suite. This one keeps none."""

    def of(self, name: str) -> MutableMapping[int, Any]:
        """From the number of a batch to its values, in JSON; `name` says of what, and at which point."""
        del name
        return {}


@dataclass(frozen=True)
class EvaluationContext:
    """What suites work with: the policy, the data, held-out pairs (None where no suite asks for them), the texts sampled so
    far, by point. Where there are classes, those and the held-out items of each; where texts have labels, those that there are
    and the held-out texts. `begun`: batches that an earlier process has measured; `store`: the folder of what all runs share,
    None where nothing is kept."""

    policy: Policy
    source: Source
    held_out: HeldOut | None
    config: EvaluationConfig
    classes: Classes | None = None
    held_out_items: HeldOut | None = None
    labels: LabelSet | None = None
    held_out_labels: HeldOut | None = None
    begun: Begun = field(default_factory=Begun)
    store: Path | None = None
    _answers: dict[Point, tuple[Sequence[str], list[str]]] = field(default_factory=dict)

    def answers(self, point: Point) -> tuple[Sequence[str], list[str]]:
        """Prompts and the responses sampled at this point; the same random numbers at every point."""
        if point not in self._answers:
            config = self.config
            prompts = self._prompts()
            texts = self.policy.respond(
                prompts,
                strength=point.strength,
                control=point.mixture,
                sampling=config.sampling(),
                seed=config.sampling_seed,
                kept=self.begun.of(f"answers at {point}"),
            )
            self._answers[point] = (prompts, texts)
        return self._answers[point]

    def _prompts(self) -> list[str]:
        """The first prompts of the evaluation split that the template takes and that leave room for an answer; how many others
        there are is logged."""
        room = self.policy.prompt_room(self.config.max_new_tokens)
        every = self.source.prompts()
        offered = self.policy.backbone.codec.askable(every)
        if not self._answers and len(offered) < len(every):
            log.info("%d of %d evaluation prompts are none for the chat template", len(every) - len(offered), len(every))
        lengths = [len(ids) for ids in self.policy.backbone.codec.prompts(offered)]
        fitting = [prompt for prompt, length in zip(offered, lengths, strict=True) if length <= room]
        if not self._answers and len(fitting) < len(offered):
            log.info("%d of %d evaluation prompts leave no room for an answer", len(offered) - len(fitting), len(offered))
        return fitting[: self.config.prompts]


def answers_beside(context: EvaluationContext, point: Point, against: str) -> tuple[list[str | None], str]:
    """What the answers at a point are compared with, prompt by prompt, None where there is nothing; and how many of those
    there are, as a note. `against`: strength0 (the model without its tuner or class) or chosen (the data's own)."""
    prompts, _ = context.answers(point)
    if against == "strength0":
        return list(context.answers(without(context, point))[1]), ""
    records = context.source.split("test").records if "test" in context.source.readers else ()
    chosen = {record.prompt: answer.text for record in records if (answer := record.labelled("chosen"))}
    found = [chosen.get(prompt) for prompt in prompts]
    lacking = sum(each is None for each in found)
    return found, f"{lacking} of {len(found)} prompts left out: the data has no preferred answer to them" if lacking else ""


def without(context: EvaluationContext, point: Point) -> Point:
    """The point of the model without its tuner or class, beside this one."""
    return Point(1.0, NO_CLASS, NO_CLASS) if context.classes else Point(0.0, point.control)


class Suite(Protocol):
    """Some metrics. Built once per run, asked once per point."""

    def measure(self, point: Point) -> list[Measurement]:
        """The metrics at this point."""


@runtime_checkable
class SuiteAcross(Suite, Protocol):
    """A suite that also has metrics over all points together."""

    def across(self, points: Sequence[Point]) -> list[Measurement]:
        """Metrics that need more than one point."""


def sweep(
    context: EvaluationContext,
    suites: Sequence[str],
    where: Sequence[Point],
    log_values: Callable[[str, Row], None],
    kept: MutableMapping[str, list[Row]] | None = None,
) -> list[Row]:
    """Measures every suite at every point, in order, and then what some say of all points together. A row with n = 0 is no
    number: it says what could not be measured. `kept`: the rows that are there already, by point and suite; each suite's are
    put there when they are measured."""
    kept = {} if kept is None else kept
    built = {name: SUITES[name].build(context) for name in suites}
    rows: list[Row] = []
    for number, point in enumerate(where):
        if any(f"{number}/{name}" not in kept for name in built):
            log.info("evaluation at %s: %s", point.mixture or f"strength {point.strength:g}", ", ".join(suites))
        for name, suite in built.items():
            if f"{number}/{name}" not in kept:
                kept[f"{number}/{name}"] = [_row(point, name, measured) for measured in suite.measure(point)]
            rows += kept[f"{number}/{name}"]
    for name, suite in built.items():
        if isinstance(suite, SuiteAcross):
            if f"across/{name}" not in kept:
                kept[f"across/{name}"] = [_row(Point(1.0, ACROSS), name, measured) for measured in suite.across(where)]
            rows += kept[f"across/{name}"]
    for row, title in zip(rows, titles(rows), strict=True):
        if row.n:
            log_values(title, row)
        if row.note:
            log.info("%s/%s at %s: %s", row.suite, row.metric, title, row.note)
    return rows


@dataclass(frozen=True)
class Validated:
    """A suite and its rows. It is asked at the first point: strength 1, or the first class; all points are for metrics that
    compare classes."""

    suite: str
    config: EvaluationConfig
    source: Source = field(compare=False)
    points: tuple[Point, ...]
    classes: Classes | None = field(compare=False)
    pairs: HeldOut | None = field(compare=False)
    items: HeldOut | None = field(compare=False)
    labels: LabelSet | None = field(default=None, compare=False)
    texts: HeldOut | None = field(default=None, compare=False)

    def cache_key(self) -> str:
        """A hash of the records: what decides its numbers, besides the fields that are compared."""
        digest = hashlib.sha256()
        for record in self.source.split("test").records:
            digest.update(repr((record.prompt, record.second, record.responses)).encode())
        return digest.hexdigest()

    def measure(self, policy: Policy) -> Mapping[str, float]:
        """The suite's numbers for the policy as it is now; nothing is kept from one time to the next."""
        context = EvaluationContext(
            policy, self.source, self.pairs, self.config, self.classes, self.items, self.labels, self.texts
        )
        suite = SUITES[self.suite].build(context)
        found = suite.measure(self.points[0])
        if isinstance(suite, SuiteAcross):
            found = [*found, *suite.across(self.points)]
        return {measured.metric: measured.value for measured in found if measured.n}


def validated(
    suite: str,
    rows: int,
    config: EvaluationConfig,
    control: StrengthConfig | FormConfig,
    source: Source,
    classes: Classes | None,
    labels: LabelSet | None,
    choices: View | None,
    codec: Codec,
    limits: Limits,
) -> Validated:
    """At most `rows` records of a source's `test` split, encoded for a suite. `choices`: how labels are scored."""
    required = SUITES[suite].requires(config)
    pairs = held_out(source.split("test"), pair, codec, limits) if "pairs" in required else None
    if classes:
        source = classed(source, classes)
        points = tuple(Point(1.0, name, name) for name in classes.names)
    else:
        points = (Point(1.0, control.name),)
    items = held_out(source.split(LABELLED["test"]), labelled, codec, limits) if "classes" in required else None
    texts = held_out(source.split("test"), choices, codec, limits) if choices and "label set" in required else None
    source.prompts()
    settled = replace(config, pairs=rows, prompts=rows)
    return Validated(suite, settled, source, points, classes, pairs, items, labels, texts)


def _row(point: Point, suite: str, measured: Measurement) -> Row:
    low, high = (None if math.isnan(end) else end for end in (measured.low, measured.high))
    return Row(
        point.strength,
        point.control,
        suite,
        measured.metric,
        measured.value,
        measured.n,
        low,
        high,
        measured.items,
        measured.scale,
        measured.note,
        measured.details,
    )
