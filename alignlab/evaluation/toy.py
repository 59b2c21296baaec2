"""The embedded world's suite: reward and capability of sampled stories, by the exact oracle."""

from __future__ import annotations

from alignlab.errors import ConfigError
from alignlab.evaluation.statistics import Measurement, bootstrap
from alignlab.evaluation.suite import Bench


class Toy:
    """What the stories have of what is to be aligned, and whether they still do what the prompt asked for."""

    def __init__(self, bench: Bench) -> None:
        if bench.source.judge is None:
            raise ConfigError(f"evaluation suite toy needs an oracle; data={bench.source.name} has none.")
        self._bench, self._judge = bench, bench.source.judge

    def measure(self, strength: float) -> list[Measurement]:
        """Mean reward in [-1, 1], mean capability in [0, 1], and the mean share of mood words on their story's side."""
        verdicts = [self._judge(prompt, text) for prompt, text in zip(*self._bench.answers(strength), strict=True)]
        return [
            bootstrap("reward", [verdict.reward for verdict in verdicts]),
            bootstrap("capability", [verdict.capability for verdict in verdicts]),
            bootstrap("consistency", [verdict.consistency for verdict in verdicts]),
        ]
