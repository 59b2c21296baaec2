"""The embedded world's suite: reward and capability of sampled stories, by the exact oracle."""

from __future__ import annotations

from alignlab.errors import ConfigError
from alignlab.evaluation.statistics import Measurement, bootstrap, share
from alignlab.evaluation.suite import EvaluationContext, Point


class Toy:
    """What the stories have of what is to be aligned, and whether they still do what the prompt asked for."""

    def __init__(self, context: EvaluationContext) -> None:
        if context.source.judge is None:
            raise ConfigError(f"evaluation suite toy needs an oracle; data={context.source.name} has none.")
        self._context, self._judge = context, context.source.judge

    def measure(self, point: Point) -> list[Measurement]:
        """Mean reward in [-1, 1], mean capability in [0, 1], the mean share of mood words on their story's side, and for a
        class made of attributes the share of stories that have them all."""
        verdicts = [self._judge(prompt, text) for prompt, text in zip(*self._context.answers(point), strict=True)]
        wanted = self._context.classes.attributes.get(point.control, {}) if self._context.classes else {}
        obeyed = [float(all(verdict.attributes.get(key) == value for key, value in wanted.items())) for verdict in verdicts]
        return [
            bootstrap("reward", [verdict.reward for verdict in verdicts]),
            bootstrap("capability", [verdict.capability for verdict in verdicts]),
            bootstrap("consistency", [verdict.consistency for verdict in verdicts]),
            *([share("obedience", obeyed)] if wanted else []),
        ]
