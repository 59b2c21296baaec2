"""Suites on a small model: held-out pairs, sampled texts, and what the oracle says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from alignlab.data.batching import whole
from alignlab.data.encode import Limits, pair
from alignlab.data.source import Judge, Source, Split
from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.report import Row, headline
from alignlab.evaluation.statistics import Measurement, bootstrap, rank_correlation, share
from alignlab.evaluation.suite import EvaluationContext, held_out, sweep
from alignlab.evaluation.suites import Fluency, PreferenceSuite, Toy, _distinct, _wins, of_classes, of_numbers
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.records import Encoded, EncodedGroup, Example, Record
from alignlab.tuners.config import StrengthConfig
from tests.unit.conftest import PAIRS, attached, batch_of, checked, evaluation_config

RECORDS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))


@dataclass(frozen=True)
class Said:
    """A verdict."""

    reward: float
    capability: float
    consistency: float = 1.0
    attributes: Mapping[str, str] = field(default_factory=dict)


def by_length(prompt: str, response: str) -> Said:
    return Said(reward=len(response) / 100, capability=len(prompt) / 100)


def config(**changes: Any) -> EvaluationConfig:
    return evaluation_config(**{"prompts": 3, "pairs": 4, "max_new_tokens": 6, **changes})


def context(policy: Policy, judge: Judge | None = by_length, **changes: Any) -> EvaluationContext:
    source = Source("made", {"test": lambda: Split(RECORDS)}, judge=judge)
    pairs = held_out(source.split("test"), pair, policy.backbone.codec, Limits(128, "error"))
    return EvaluationContext(policy, source, pairs, config(**changes))


def at(strength: float) -> Point:
    return Point(strength, "dial")


def named(measured: Sequence[Measurement]) -> dict[str, Measurement]:
    return {each.metric: each for each in measured}


@pytest.mark.parametrize(("margin", "worth"), [(2.0, 1.0), (-2.0, 0.0), (0.0, 0.5), (5e-5, 0.5), (-5e-5, 0.5), (2e-4, 1.0)])
def test_a_preference_counts_one_none_or_half(margin: float, worth: float) -> None:
    assert _wins(torch.tensor([margin])) == [worth]


def test_preference_accuracy_is_the_share_of_pairs_whose_chosen_answer_is_likelier(llama: Backbone) -> None:
    policy = attached("lora", llama)
    scores = policy.logprobs(batch_of(llama))
    margin_G = scores.total_GM[:, 0] - scores.total_GM[:, 1]
    per_token_G = scores.mean_GM[:, 0] - scores.mean_GM[:, 1]

    measured = named(PreferenceSuite(context(policy)).measure(at(1.0)))

    assert measured["accuracy"].value == (margin_G > 0).float().mean().item()
    assert measured["accuracy_per_token"].value == (per_token_G > 0).float().mean().item()
    assert {each.n for each in measured.values()} == {4}


def test_the_reward_margin_is_measured_against_the_untouched_backbone(llama: Backbone) -> None:
    policy = attached("lora", llama)
    own = policy.logprobs(batch_of(llama)).total_GM
    with policy.off():
        base = policy.logprobs(batch_of(llama)).total_GM
    margin_G = (own - base)[:, 0] - (own - base)[:, 1]

    measured = named(PreferenceSuite(context(policy)).measure(at(1.0)))

    assert measured["reward_margin"].value == pytest.approx(margin_G.mean().item(), abs=1e-4)
    assert measured["reward_accuracy"].value == (margin_G > 0).float().mean().item()


def test_at_strength_zero_every_reward_is_a_tie(llama: Backbone) -> None:
    measured = named(PreferenceSuite(context(attached("lora", llama))).measure(at(0.0)))

    # Wilson's interval of one half: 1/2 -+ z / (2 root(n + z^2)), with z = 1.96 and n = 4
    half = 1.959964 / (2 * (4 + 1.959964**2) ** 0.5)
    found = measured["reward_accuracy"]
    assert (found.value, found.n) == (0.5, 4)
    assert [found.low, found.high] == pytest.approx([0.5 - half, 0.5 + half], rel=1e-6)
    assert measured["reward_margin"].value == pytest.approx(0.0, abs=1e-4)


def test_as_many_pairs_are_scored_as_the_config_says(llama: Backbone) -> None:
    measured = PreferenceSuite(context(attached("lora", llama), pairs=2)).measure(at(1.0))

    assert {each.n for each in measured} == {2}


def test_texts_are_sampled_once_per_strength_and_are_those_of_the_policy(llama: Backbone) -> None:
    policy = attached("lora", llama)
    made = context(policy)

    prompts, texts = made.answers(at(0.5))

    assert prompts == [prompt for prompt, _, _ in PAIRS[:3]]
    assert texts == policy.respond(prompts, strength=0.5, sampling=Sampling(6, 1.0, 1.0), seed=0)
    assert made.answers(at(0.5))[1] is texts


def test_prompts_that_leave_no_room_for_an_answer_are_passed_over(llama: Backbone) -> None:
    shortest = min(len(ids) for ids in llama.codec.prompts([prompt for prompt, _, _ in PAIRS]))

    prompts, _ = context(attached("lora", llama), max_new_tokens=llama.context - shortest).answers(at(1.0))

    assert prompts == ["Tell a story."]


def test_a_prompt_of_several_pairs_is_asked_once() -> None:
    source = Source("made", {"test": lambda: Split(RECORDS + RECORDS)})

    assert source.prompts() == [prompt for prompt, _, _ in PAIRS]


def test_the_toy_suite_reports_the_oracles_means(llama: Backbone) -> None:
    made = context(attached("lora", llama))
    prompts, texts = made.answers(at(1.0))

    measured = named(Toy(made).measure(at(1.0)))

    assert measured["reward"].value == pytest.approx(sum(map(len, texts)) / 300)
    assert measured["capability"].value == pytest.approx(sum(map(len, prompts)) / 300)


def test_the_toy_suite_needs_an_oracle(llama: Backbone) -> None:
    with pytest.raises(ConfigError, match="toy needs an oracle; data=made has none"):
        Toy(context(attached("lora", llama), judge=None))


def test_perplexity_is_that_of_the_texts_under_the_untouched_backbone(llama: Backbone) -> None:
    policy = attached("lora", llama)
    made = context(policy)
    prompts, texts = made.answers(at(1.0))
    examples = [Example(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    encoded = policy.backbone.codec.examples(examples, ["text"] * len(examples))
    groups = [EncodedGroup("text", (Encoded(e.ids[:-1], e.start),)) for e in encoded]  # a sampled text has no EOS of its own
    with policy.off():
        scores = policy.logprobs(whole(groups, policy.backbone.codec.pad))

    measured = named(Fluency(made).measure(at(1.0)))

    assert measured["perplexity"].value == pytest.approx(math.exp(-scores.mean_GM[:, 0].mean().item()), rel=1e-4)
    assert measured["words"].value == pytest.approx(sum(len(text.split()) for text in texts) / 3)


@pytest.mark.parametrize(
    ("text", "size", "value"),
    [("a b a b a", 2, 0.5), ("a b c", 2, 1.0), ("a", 2, 1.0), ("", 4, 1.0), ("a a a a a a", 4, 1 / 3)],
)
def test_distinct_is_the_share_of_different_n_grams(text: str, size: int, value: float) -> None:
    assert _distinct(text.split(), size) == pytest.approx(value)


def test_a_sweep_measures_every_suite_at_every_strength_and_logs_each_row(llama: Backbone) -> None:
    logged: list[tuple[str, Row]] = []

    rows = sweep(
        context(attached("lora", llama)), ["toy", "preference"], [at(0.0), at(1.0)], lambda *given: logged.append(given)
    )

    visited = list(dict.fromkeys((row.strength, row.suite) for row in rows))
    assert visited == [(0.0, "toy"), (0.0, "preference"), (1.0, "toy"), (1.0, "preference")]
    assert {row.control for row in rows} == {"dial"}
    assert logged == [(f"strength {row.strength:g}", row) for row in rows]


def row(strength: float, suite: str, metric: str) -> Row:
    return Row(strength, "dial", suite, metric, 0.5, 4, 0.25, 0.75)


def test_the_headline_is_the_first_suites_metric_at_the_strength_nearest_to_one() -> None:
    rows = [row(s, suite, metric) for s in (0.0, 0.75, 2.0) for suite, metric in (("toy", "capability"), ("toy", "reward"))]

    assert headline([*rows, row(1.0, "preference", "accuracy")]) == row(0.75, "toy", "reward")


def test_without_its_metric_there_is_no_headline() -> None:
    assert headline([row(1.0, "fluency", "words")]) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": 1}, "at least 2"),
        ({"pairs": 1}, "at least 2"),
        ({"max_new_tokens": 0}, r"evaluation\.max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, r"evaluation\.temperature=-0.1 must be at least 0"),
        ({"temperature": math.nan}, r"evaluation\.temperature=nan must be"),
        ({"temperature": math.inf}, r"evaluation\.temperature=inf must be"),
        ({"top_p": 0.0}, r"evaluation\.top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.1}, r"evaluation\.top_p=1.1 must be"),
        ({"top_k": -1}, r"evaluation\.top_k=-1 must be at least 0"),
        ({"min_p": 1.0}, r"evaluation\.min_p=1.0 must be at least 0 and below 1"),
        ({"min_p": math.nan}, r"evaluation\.min_p=nan must be"),
        ({"repetition_penalty": 0.0}, r"evaluation\.repetition_penalty=0.0 must be at least 0.01"),
        ({"no_repeat_ngram_size": 1}, r"evaluation\.no_repeat_ngram_size=1 must be 0, or at least 2"),
        ({"stop": [".", " ", ""]}, r"evaluation\.stop=.* must be a list of texts, none of them empty"),
        ({"beams": 0}, r"evaluation\.beams=0 must be at least 1"),
        ({"beams": 2}, r"evaluation\.beams=2 draw nothing, so set temperature=0"),
    ],
)
def test_an_evaluation_that_cannot_be_sampled_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        checked("evaluation", config(**changes)).sampling()


@pytest.mark.parametrize(
    ("strengths", "sentence"),
    [([], "at least 1 value"), ([0.0, math.nan], "finite"), ([math.inf], "finite"), ([1.0, 0.5, 1.0], "names a value twice")],
)
def test_a_grid_of_strengths_that_cannot_be_read_is_refused(strengths: list[float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        checked("control", StrengthConfig("dial", strengths, figure=True))


def saying(policy: Policy, texts: Sequence[str], **changes: Any) -> EvaluationContext:
    """A context in which these texts were sampled at strength 1."""
    made = context(policy, prompts=len(texts), **changes)
    made._answers[at(1.0)] = ([prompt for prompt, _, _ in PAIRS[: len(texts)]], list(texts))
    return made


def test_texts_that_cannot_be_read_again_are_counted_and_the_others_measured(llama: Backbone) -> None:
    policy = attached("lora", llama)
    eos = llama.codec.tokenizer.eos_token
    alone = named(Fluency(saying(policy, ["Tom was happy."])).measure(at(1.0)))["perplexity"]

    measured = named(Fluency(saying(policy, ["Tom was happy.", f"Tom{eos} was", " \n", "\x01" * 127])).measure(at(1.0)))

    assert measured["perplexity"].n == 1
    assert measured["perplexity"].value == pytest.approx(alone.value, rel=1e-6)
    assert measured["perplexity"].note.split("; ") == [
        "1 of 4 texts left out: a special token is written out in it",
        "1 of 4 texts left out: empty",
        "1 of 4 texts left out: more tokens than the context when it is read again",
    ]
    assert {each.n for name, each in measured.items() if name != "perplexity"} == {4}


def test_where_every_text_is_empty_there_is_no_perplexity(llama: Backbone) -> None:
    measured = named(Fluency(saying(attached("lora", llama), ["", " "])).measure(at(1.0)))["perplexity"]

    assert (measured.n, measured.note) == (0, "2 of 2 texts left out: empty")
    assert math.isnan(measured.value)


@pytest.mark.parametrize("measure", [bootstrap, share, rank_correlation])
def test_of_nothing_there_is_no_number(measure: Callable[..., Measurement]) -> None:
    measured = measure("reward", [])

    assert measured.n == 0
    assert all(math.isnan(number) for number in (measured.value, measured.low, measured.high))


def test_matthews_and_f1_of_two_classes_are_those_of_their_table() -> None:
    # answers down, right classes across: 3 1 / 2 4
    answer_N = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    right_N = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1, 1])

    found = named(of_classes(answer_N, right_N, 2))

    assert found["matthews"].value == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 6 * 5 * 5))
    assert found["f1"].value == pytest.approx((2 * 3 / 9 + 2 * 4 / 11) / 2)
    assert found["matthews"].low < found["matthews"].value < found["matthews"].high


def test_correlation_of_three_classes_is_gorodkins_and_none_is_zero() -> None:
    # 5 of 6 right; of the classes 2, 2, 2 are answered and 3, 1, 2 right
    answer_N, right_N = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 2, 2])
    found = named(of_classes(answer_N, right_N, 3))

    assert found["matthews"].value == pytest.approx((5 * 6 - (2 * 3 + 2 * 1 + 2 * 2)) / math.sqrt((36 - 12) * (36 - 14)))
    assert named(of_classes(np.zeros(4, int), np.array([0, 1, 0, 1]), 2))["matthews"].value == 0.0


def test_numbers_are_compared_by_size_and_by_rank() -> None:
    found = named(of_numbers([1.0, 2.0, 9.0], [1.0, 2.0, 3.0]))

    assert found["squared_error"].value == pytest.approx(12.0)
    # deviations -3 -2 5 and -1 0 1: 8 / sqrt(38 * 2)
    assert found["pearson"].value == pytest.approx(8 / math.sqrt(76))
    assert found["spearman"].value == pytest.approx(1.0)
    assert named(of_numbers([2.0, 2.0], [1.0, 3.0]))["pearson"].value == 0.0
