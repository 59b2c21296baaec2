"""The toy grammar: prompts that can be read back, stories that keep one mood."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from omegaconf import DictConfig

from alignlab.data.toy.tokenizer import build_tokenizer
from alignlab.data.toy.world import FEELINGS, LENGTHS, MOODS, Ask, corpus, read, vocabulary, write
from alignlab.errors import DataError

ASKS = [Ask("Tom", "kite", mood, length) for mood in (None, *MOODS) for length in (None, *LENGTHS)]


def test_a_prompt_names_its_cues_character_and_object() -> None:
    prompt = Ask("Tom", "kite", "gloomy", "long").prompt

    assert prompt == "Tell a gloomy, long story about Tom and a kite."


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.prompt)
def test_every_prompt_is_read_back_as_what_it_asks(ask: Ask) -> None:
    assert read(ask.prompt) == ask


def test_a_prompt_of_another_world_is_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="cannot judge the prompt 'What is a kite\\?'"):
        read("What is a kite?")


@pytest.mark.parametrize(("mood", "other"), [MOODS, MOODS[::-1]])
def test_a_story_uses_no_word_of_the_other_mood(mood: str, other: str) -> None:
    random = Random(0)
    foreign = {word for words in FEELINGS[other] for word in words}

    stories = [write(Ask("Mia", "drum"), mood, "long", random) for _ in range(100)]

    assert not any(foreign & set(story.replace(".", "").split()) for story in stories)


def test_the_same_random_state_writes_the_same_story() -> None:
    first, second = (write(Ask("Mia", "drum"), "gloomy", "short", Random(3)) for _ in range(2))

    assert first == second


def test_no_feeling_belongs_to_two_levels() -> None:
    words = [word for levels in FEELINGS.values() for level in levels for word in level]

    assert len(words) == len(set(words))


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = build_tokenizer()

    lengths = {word: len(tokenizer(word)["input_ids"]) for word in vocabulary()}

    assert set(lengths.values()) == {1}


def test_stories_round_trip_without_falling_back_to_bytes() -> None:
    tokenizer = build_tokenizer()
    words = {ids[0] for ids in tokenizer(vocabulary())["input_ids"]}
    texts = [f"{record.prompt}\n{record.responses[0].text}" for record in corpus(200, seed=0)]

    encoded = tokenizer(texts)["input_ids"]

    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert {token for ids in encoded for token in ids} <= words


def test_prefixes_of_the_config_are_spelt_in_words_and_not_in_bytes(composed: Callable[..., DictConfig]) -> None:
    prefixes = composed("data=toy").data.prefixes

    lengths = [len(build_tokenizer()(text)["input_ids"]) for text in (prefixes.better, prefixes.worse)]

    assert lengths == [8, 8]  # four words, each with a mark behind it


def test_any_other_text_round_trips_too() -> None:
    tokenizer = build_tokenizer()
    text = "Zoë counted 3 ducks,\n\t twice !  <3 \u96ea"

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_specials_are_three_different_tokens_and_none_is_added_unasked() -> None:
    tokenizer = build_tokenizer()

    specials = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]

    assert specials == [0, 1, 2]
    assert not set(specials) & set(tokenizer("At last Tom went home.")["input_ids"])
    assert len(tokenizer) < 640
