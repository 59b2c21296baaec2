"""A suite on rows that are neither trained on nor reported: what a run is measured by while it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from alignlab.data.classes import LABELLED, Classes, classed
from alignlab.data.encode import Limits, labelled, pair
from alignlab.data.source import Source
from alignlab.evaluation import SUITES
from alignlab.evaluation.config import EvaluationConfig, FormConfig, StrengthConfig
from alignlab.evaluation.suite import EvaluationContext, HeldOut, Point, SuiteAcross, held_out
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import LabelSet, View


@dataclass(frozen=True)
class Validated:
    """A suite and its rows. It is asked at the first point: strength 1, or the first class; all points are for what a suite
    says of several classes together."""

    suite: str
    config: EvaluationConfig
    source: Source = field(compare=False)
    points: tuple[Point, ...]
    classes: Classes | None = field(compare=False)
    pairs: HeldOut | None = field(compare=False)
    items: HeldOut | None = field(compare=False)
    labels: LabelSet | None = field(default=None, compare=False)
    told: HeldOut | None = field(default=None, compare=False)

    def cache_key(self) -> str:
        """A hash of the records: what decides its numbers, besides the fields that are compared."""
        digest = hashlib.sha256()
        for record in self.source.split("test").records:
            digest.update(repr((record.prompt, record.second, record.responses)).encode())
        return digest.hexdigest()

    def measure(self, policy: Policy) -> Mapping[str, float]:
        """The suite's numbers for the policy as it is now; nothing is kept from one time to the next."""
        context = EvaluationContext(
            policy, self.source, self.pairs, self.config, self.classes, self.items, self.labels, self.told
        )
        suite = SUITES[self.suite].build(context)
        found = suite.measure(self.points[0])
        if isinstance(suite, SuiteAcross):
            found = [*found, *suite.across(self.points)]
        return {measured.metric: measured.value for measured in found}


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
    words = SUITES[suite].requires(config)
    pairs = held_out(source.split("test"), pair, codec, limits) if "pairs" in words else None
    if classes:
        source = classed(source, classes)
        points = tuple(Point(1.0, name, name) for name in classes.names)
    else:
        points = (Point(1.0, control.name),)
    items = held_out(source.split(LABELLED["test"]), labelled, codec, limits) if "classes" in words else None
    told = held_out(source.split("test"), choices, codec, limits) if choices and "label set" in words else None
    source.prompts()
    settled = replace(config, pairs=rows, prompts=rows)
    return Validated(suite, settled, source, points, classes, pairs, items, labels, told)
