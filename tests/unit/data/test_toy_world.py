"""The toy world: what its records promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from random import getstate
from statistics import fmean

import pytest

from alignlab.data.toy.world import Ask, combinations, corpus, evaluation_prompts, judge, pairs, read
from alignlab.errors import DataError
from alignlab.records import Record


def asked(prompts: list[str]) -> set[tuple[str, str]]:
    return {(ask.name, ask.thing) for ask in map(read, prompts)}


def test_no_combination_of_the_test_split_occurs_in_training() -> None:
    trained = asked([record.prompt for record in [*pairs("train", 2000, seed=0), *corpus(2000, seed=0)]])
    held_out = asked([*evaluation_prompts(1000, seed=0), *(record.prompt for record in pairs("test", 500, seed=0))])

    assert not trained & held_out


def test_the_splits_cover_all_combinations_once() -> None:
    train, test = combinations("train"), combinations("test")

    assert len(set(train + test)) == len(train) + len(test) == 24 * 24
    assert len(test) == 24 * 4


def test_an_unknown_split_is_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="no split 'valid'; it has train and test"):
        pairs("valid", 1, seed=0)


def test_chosen_is_the_more_cheerful_of_two_different_stories() -> None:
    records = pairs("train", 300, seed=0)

    scores = [tuple(judge(record.prompt, response.text).reward for response in record.responses) for record in records]

    assert all(chosen > rejected for chosen, rejected in scores)


def test_scores_and_attributes_are_the_oracles() -> None:
    (record,) = pairs("train", 1, seed=0)

    verdict = judge(record.prompt, record.responses[0].text)

    assert record.responses[0].score == verdict.reward
    assert record.responses[0].attributes == {"mood": verdict.mood, "length": verdict.length}


def test_chosen_stories_are_cheerful_with_headroom() -> None:
    chosen = [record.responses[0].score or 0.0 for record in pairs("train", 2000, seed=0)]

    assert 0.65 < fmean(chosen) < 0.75
    assert 0.01 < fmean(score < 0 for score in chosen) < 0.1


def test_the_corpus_is_as_gloomy_as_cheerful_where_no_mood_is_cued() -> None:
    records = [record for record in corpus(4000, seed=0) if read(record.prompt).mood is None]

    rewards = [record.responses[0].score or 0.0 for record in records]

    assert abs(fmean(rewards)) < 0.05
    assert abs(fmean(reward > 0 for reward in rewards) - 0.5) < 0.04


def test_stories_of_the_corpus_follow_a_mood_cue() -> None:
    cued = [record for record in corpus(1000, seed=0) if read(record.prompt).mood]

    assert all(record.responses[0].attributes["mood"] == read(record.prompt).mood for record in cued)


def test_every_story_of_the_corpus_keeps_one_mood() -> None:
    verdicts = [judge(record.prompt, record.responses[0].text) for record in corpus(1000, seed=0)]

    assert {verdict.consistency for verdict in verdicts} == {1.0}


def test_strong_feelings_cost_capability() -> None:
    records = corpus(10_000, seed=0)

    verdicts = [judge(record.prompt, record.responses[0].text) for record in records]
    mild = fmean(verdict.capability for verdict in verdicts if abs(verdict.reward) < 0.5)
    strong = fmean(verdict.capability for verdict in verdicts if abs(verdict.reward) > 0.9)

    assert mild > 0.98
    assert strong < 0.85


def test_evaluation_prompts_cue_no_mood_and_come_once() -> None:
    prompts = evaluation_prompts(288, seed=0)

    assert all(read(prompt).mood is None for prompt in prompts)
    assert len(set(prompts)) == 288


@pytest.mark.parametrize("draw", [lambda seed: pairs("test", 5, seed), lambda seed: corpus(5, seed)])
def test_records_depend_on_the_seed_alone(draw: Callable[[int], list[Record]]) -> None:
    before = getstate()

    same = draw(1) == draw(1)
    different = draw(1) != draw(2)

    assert same
    assert different
    assert getstate() == before


def test_rows_say_where_a_record_came_from() -> None:
    assert [record.row for record in pairs("test", 2, seed=7)] == ["toy/test/7/0", "toy/test/7/1"]


def test_importing_the_world_imports_nothing_heavy() -> None:
    code = "import sys, alignlab.data.toy.world, alignlab.data.toy.tokenizer; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"torch", "transformers", "tokenizers", "datasets"} & set(loaded)


def test_an_ask_without_cues_is_a_plain_prompt() -> None:
    assert Ask("Tom", "kite").prompt == "Tell a story about Tom and a kite."
