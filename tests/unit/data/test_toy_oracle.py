"""The toy oracle: every number it gives is worked out by hand here."""

from __future__ import annotations

import pytest

from alignlab.data.toy.world import judge, length_class
from alignlab.errors import DataError

PROMPT = "Tell a story about Tom and a kite."
SHORT = "One day Tom found a kite in the barn. The kite made him happy. He felt content in the park. At last Tom went home."


def test_reward_is_the_mean_intensity_of_the_mood_words() -> None:
    verdict = judge(PROMPT, SHORT)

    assert verdict.reward == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_gloomy_words_count_below_zero() -> None:
    verdict = judge(PROMPT, "Tom was miserable beside the kite.")

    assert (verdict.reward, verdict.mood) == (-1.0, "gloomy")


def test_a_story_without_mood_words_is_worth_nothing_and_contradicts_nothing() -> None:
    verdict = judge(PROMPT, "Once Tom took a kite to the park.")

    assert (verdict.reward, verdict.consistency, verdict.mood) == (0.0, 1.0, "neutral")


def test_consistency_is_the_share_of_the_majority() -> None:
    verdict = judge(PROMPT, "Tom was glad. Tom was thrilled. Tom was cosy. Tom was sad.")

    assert verdict.consistency == 0.75


def test_a_story_that_does_all_that_was_asked_has_full_capability() -> None:
    assert judge(PROMPT, SHORT).capability == 1.0


def test_each_check_is_a_quarter_of_the_capability() -> None:
    assert judge(PROMPT, "Tom found a kite.").capability == 0.25


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (("Tom found", "Ben found"), "opens"),
        (("found a kite", "found a drum"), "opens"),
        (("The kite made", "The barn made"), "returns"),
        (("He felt content in the park. ", "He slept. " * 5), "keeps_length"),
        (("At last Tom went", "Tom went"), "closes"),
        (("went home.", "went"), "closes"),
    ],
    ids=lambda value: str(value),
)
def test_each_broken_promise_costs_its_own_check(change: tuple[str, str], check: str) -> None:
    verdict = judge(PROMPT, SHORT.replace(*change))

    held = {name for name in ("opens", "returns", "keeps_length", "closes") if getattr(verdict, name)}
    assert held == {"opens", "returns", "keeps_length", "closes"} - {check}


@pytest.mark.parametrize(("cue", "kept"), [("short ", True), ("long ", False), ("", True), ("cheerful, long ", False)])
def test_length_is_judged_by_the_cue_of_the_prompt(cue: str, kept: bool) -> None:
    verdict = judge(f"Tell a {cue}story about Tom and a kite.", SHORT)

    assert verdict.keeps_length is kept


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [(0, "other"), (2, "other"), (3, "short"), (4, "short"), (5, "long"), (7, "long"), (8, "other")],
)
def test_length_classes_by_sentences(sentences: int, expected: str) -> None:
    assert length_class(sentences) == expected


def test_an_empty_story_fails_every_check() -> None:
    verdict = judge(PROMPT, "")

    assert (verdict.reward, verdict.capability, verdict.sentences) == (0.0, 0.0, 0)


def test_a_mood_word_inside_another_word_does_not_count() -> None:
    assert judge(PROMPT, "Tom was unhappy and saddled a gladiator.").reward == pytest.approx(-2 / 3)


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(DataError, match="cannot judge"):
        judge("Hello", SHORT)
