"""What is said of classes together: hand-made log-probabilities and texts, and once a policy asked directly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignlab.data.classes import LABELLED, Classes, classed
from alignlab.data.encode import Limits, labelled
from alignlab.data.source import Judge, Source, Split
from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.classes import BetweenClasses
from alignlab.evaluation.statistics import Measurement, rank_correlation
from alignlab.evaluation.suite import EvaluationContext, held_out
from alignlab.evaluation.suites import Toy
from alignlab.models.anatomy import Footprint
from alignlab.models.answers import Budget
from alignlab.models.policy import Logprobs, Policy
from alignlab.records import Batch, Record, Response
from tests.conftest import CODEC, backbone
from tests.contracts.controls import Case, batch_of, totals_under, trained
from tests.unit.conftest import PAIRS, evaluation_config

TWO, THREE = ("good", "bad"), ("good", "middle", "bad")
EVALUATION = evaluation_config(suites=["classes"], prompts=3, pairs=4, max_new_tokens=6, temperature=0.0)


@dataclass(frozen=True)
class Said:
    """A verdict."""

    reward: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    capability: float = 1.0
    consistency: float = 1.0


@dataclass
class Told:
    """Stands in for a policy. `nats`: log p of a row under a class; `texts`: what is said under it, prompt by prompt."""

    nats: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    backbone: Any = field(default_factory=lambda: SimpleNamespace(codec=CODEC, device=torch.device("cpu")))
    budget: Budget = field(default_factory=lambda: Budget(Footprint(0, 0, 0, 0)))
    name: str = ""

    def prompt_room(self, new: int) -> int:
        return 128 - new

    @contextmanager
    def under(self, name: str) -> Iterator[None]:
        self.name = name
        yield

    def logprobs(self, batch: Batch) -> Logprobs:
        total_GM = torch.tensor([[self.nats[self.name][row]] for row in batch.rows])
        return Logprobs(total_GM, torch.ones_like(total_GM))

    def respond(self, _prompts: Sequence[str], *, control: str, **_: Any) -> list[str]:
        return list(self.texts[control])


def context(
    policy: Any, classes: Classes, records: Sequence[Record], judge: Judge | None = None, **changes: Any
) -> EvaluationContext:
    plain = Source("made", {name: lambda: Split(tuple(records)) for name in ("train", "test")}, judge)
    source = classed(plain, classes)
    items = held_out(source.split(LABELLED["test"]), labelled, CODEC, Limits(120, "error"))
    return EvaluationContext(policy, source, None, replace(EVALUATION, **changes), classes, items)


def pairs(count: int) -> list[Record]:
    """Records named by number; rows 0/0, 0/1, 1/0 and so on are their sides."""
    return [Record.pair(str(number), *texts) for number, texts in enumerate(PAIRS[:count])]


def by_side(names: tuple[str, str] = ("good", "bad")) -> Classes:
    sides = dict(zip(("chosen", "rejected"), names, strict=True))
    return Classes(names, lambda response: sides[str(response.label)])


def alone(names: Sequence[str]) -> list[Point]:
    return [Point(1.0, name, name) for name in (*names, "none")]


def named(measured: Sequence[Measurement]) -> dict[str, Measurement]:
    return {each.metric: each for each in measured}


def by_number(_prompt: str, text: str) -> Said:
    return Said(reward=float(text))


# log p under good and under bad; favour = their difference, per row: 2, -1, 1, 3, 4, 4
NATS = {
    "good": {"0/0": -3.0, "0/1": -9.0, "1/0": -5.0, "1/1": -2.0, "2/0": -1.0, "2/1": -1.0},
    "bad": {"0/0": -5.0, "0/1": -8.0, "1/0": -6.0, "1/1": -5.0, "2/0": -5.0, "2/1": -5.0},
}


def test_class_accuracy_counts_the_items_that_are_likeliest_under_their_own_class() -> None:
    suite = BetweenClasses(context(Told(NATS), by_side(), pairs(3)))

    measured = named(suite.across(alone(TWO)))["class_accuracy"]

    assert (measured.value, measured.n) == (4 / 6, 6)  # all but 1/1 and 2/1, which good makes likelier


def test_pairs_compare_the_favour_of_the_two_sides() -> None:
    suite = BetweenClasses(context(Told(NATS), by_side(), pairs(3)))

    measured = named(suite.across(alone(TWO)))

    # favours: 2 and -1, 1 and 3, 4 and 4; differences 3, -2 and 0, of which a tie counts half
    assert (measured["pair_accuracy"].value, measured["pair_accuracy"].n) == (0.5, 3)
    assert measured["likelihood_separation"].value == pytest.approx(1 / 3)


def test_items_that_stand_alone_make_no_pairs() -> None:
    records = [Record(row, prompt, (Response(text, label=name),)) for row, name, (prompt, text, _) in zip("ab", TWO, PAIRS)]
    nats = {"good": {"a/0": -1.0, "b/0": -2.0}, "bad": {"a/0": -2.0, "b/0": -1.0}}

    measured = BetweenClasses(context(Told(nats), Classes(TWO, lambda r: str(r.label)), records)).across(alone(TWO))

    assert [each.metric for each in measured] == ["class_accuracy"]
    assert measured[0].value == 1.0


def test_the_loss_of_a_class_is_of_its_own_items_under_it() -> None:
    case = Case("soft_prompt", "llama", settings={"length": 3})
    policy = trained(case, backbone("llama"))
    given = context(policy, by_side(), pairs(4))
    assert given.held_out_items is not None
    own = list(given.held_out_items.groups[1::2])  # rejected, so bad

    measured, bits = BetweenClasses(given).measure(Point(1.0, "bad", "bad"))

    batch = batch_of(own)
    tokens = batch.length_GM[:, 0] - batch.start_GM[:, 0]
    expected = (-totals_under(policy, "bad", batch)[:, 0] / tokens).mean().item()
    assert (measured.metric, measured.n) == ("nats_per_token", 4)
    assert measured.value == pytest.approx(expected, rel=1e-5)
    answers = [CODEC.decode(group.members[0].ids[group.members[0].start :]) for group in own]
    bits_N = -totals_under(policy, "bad", batch)[:, 0] / math.log(2) / torch.tensor([len(text.encode()) for text in answers])
    assert (bits.metric, bits.n) == ("bits_per_byte", 4)
    assert bits.value == pytest.approx(bits_N.mean().item(), rel=1e-5)


def test_likelihoods_are_those_of_the_policy_asked_directly() -> None:
    policy: Policy = trained(Case("lora", "gpt2"), backbone("gpt2"))
    given = context(policy, by_side(), pairs(4))
    assert given.held_out_items is not None
    batch = batch_of(given.held_out_items.groups)

    measured = named(BetweenClasses(given).across([]))

    good_N, bad_N = (totals_under(policy, name, batch)[:, 0] for name in TWO)
    favour_N = good_N - bad_N
    assert measured["class_accuracy"].value == torch.cat([favour_N[::2] > 0, favour_N[1::2] < 0]).float().mean().item()
    assert measured["pair_accuracy"].value == (favour_N[::2] > favour_N[1::2]).float().mean().item()
    assert measured["likelihood_separation"].value == pytest.approx((favour_N[::2] - favour_N[1::2]).mean().item(), rel=1e-4)


@pytest.mark.parametrize("point", [Point(1.0, "none", "none"), Point(0.5, "good/bad")], ids=["none", "mixture"])
def test_where_no_class_is_asked_for_alone_there_is_no_loss(point: Point) -> None:
    assert BetweenClasses(context(Told(NATS), by_side(), pairs(3))).measure(point) == []


def test_gap_and_separation_compare_the_two_classes_prompt_by_prompt() -> None:
    texts = {"good": ["0.9", "0.2", "0.5"], "bad": ["0.1", "0.6", "0.5"], "none": ["9", "9", "9"]}
    suite = BetweenClasses(context(Told(NATS, texts), by_side(), pairs(3), by_number))

    measured = named(suite.across(alone(TWO)))

    # gaps 0.8, -0.4 and 0: one prompt for good, one against, one tie
    assert (measured["gap"].value, measured["gap"].n) == (pytest.approx(0.4 / 3), 3)
    assert measured["separation"].value == 0.5


THREE_NATS = {name: {"0/0": -1.0, "1/0": -1.0, "2/0": -1.0} for name in THREE}
THREE_RECORDS = [
    Record(str(number), prompt, (Response(text, label=name),))
    for number, (name, (prompt, text, _)) in enumerate(zip(THREE, PAIRS, strict=False))
]


@pytest.mark.parametrize(
    ("rewards", "gap", "separation"),
    [((3.0, 2.0, 1.0), 2.0, 1.0), ((1.0, 2.0, 3.0), -2.0, -1.0), ((3.0, 1.0, 2.0), 1.0, 0.5), ((2.0, 2.0, 2.0), 0.0, 0.0)],
)
def test_of_three_classes_separation_is_a_rank_correlation(rewards: Sequence[float], gap: float, separation: float) -> None:
    texts = {name: [str(reward)] * 3 for name, reward in zip(THREE, rewards, strict=True)}
    classes = Classes(THREE, lambda response: str(response.label))
    suite = BetweenClasses(context(Told(THREE_NATS, texts), classes, THREE_RECORDS, by_number))

    measured = named(suite.across(alone(THREE)))

    assert (measured["gap"].value, measured["separation"].value) == (gap, pytest.approx(separation))
    assert "pair_accuracy" not in measured


@pytest.mark.parametrize(
    ("values", "correlation"),
    [([1.0, 2.0, 3.0, 9.0], 1.0), ([9.0, 3.0, 2.0, 1.0], -1.0), ([2.0, 1.0, 3.0], 0.5), ([5.0, 5.0], 0.0)],
)
def test_a_rank_correlation_by_hand(values: list[float], correlation: float) -> None:
    # Spearman (1904): 1 - 6 sum d^2 / (n (n^2 - 1)); for 2 1 3 that is 1 - 6 (1 + 1 + 0) / 24
    measured = rank_correlation("separation", [values] * 4)

    assert (measured.value, measured.n) == (pytest.approx(correlation), 4)
    assert math.isnan(measured.low)  # equal values tell nothing of their spread


MOODS = Classes(
    ("happy-long", "sad-short"),
    lambda response: {"chosen": "happy-long", "rejected": "sad-short"}[str(response.label)],
    attributes={"happy-long": {"mood": "happy", "length": "long"}, "sad-short": {"mood": "sad", "length": "short"}},
)


def by_words(_prompt: str, text: str) -> Said:
    return Said(0.0, dict(zip(("mood", "length"), text.split(), strict=True)))


def test_obedience_is_the_share_of_texts_that_have_all_attributes_of_their_class() -> None:
    texts = {"happy-long": ["happy long", "happy short", "sad long"], "none": ["happy long"] * 3}
    suite = Toy(context(Told({}, texts), MOODS, pairs(3), by_words))

    measured, without = (named(suite.measure(Point(1.0, name, name))) for name in ("happy-long", "none"))

    assert (measured["obedience"].value, measured["obedience"].n) == (1 / 3, 3)
    assert "obedience" not in without


def test_classes_of_attributes_have_no_order_and_so_no_gap() -> None:
    nats = {name: dict.fromkeys(("0/0", "0/1", "1/0", "1/1", "2/0", "2/1"), -1.0) for name in MOODS.names}

    measured = BetweenClasses(context(Told(nats), MOODS, pairs(3), by_words)).across(alone(MOODS.names))

    assert {each.metric for each in measured} == {"class_accuracy", "pair_accuracy", "likelihood_separation"}


def test_without_classes_the_suite_is_refused() -> None:
    made = EvaluationContext(Told(), Source("made", {}), None, EVALUATION)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="evaluation suite classes needs classes; data=made has none here"):
        BetweenClasses(made)
