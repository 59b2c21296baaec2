"""The mean score of words: by hand, with the letters' case, and what a file of another form is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from alignlab.errors import DataError
from alignlab.evaluation import Point
from alignlab.evaluation.config import EvaluationConfig, LexiconConfig
from alignlab.evaluation.lexicon import Lexicon, word_scores
from tests.unit.conftest import evaluation_config

WORDS = "good\t9\ngood\t2.0\t0.1\t[2, 2]\nbad\t-3\nOK\t1\nok\t0.5\ndon't\t-1\n:)\t2\n\n"


def config(path: Path) -> EvaluationConfig:
    return evaluation_config(lexicon=LexiconConfig(path=str(path)))


class Answers:
    """What suite lexicon asks of an evaluation."""

    def __init__(self, path: Path, texts: list[str]) -> None:
        self.config = config(path)
        self.texts = texts

    def answers(self, point: Point) -> tuple[list[str], list[str]]:
        return [f"question {place}" for place in range(len(self.texts))], self.texts


def test_a_reward_is_the_mean_over_texts_of_the_mean_over_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(WORDS, encoding="utf-8")
    texts = ["Good dog, BAD cat!", "OK", "Ok ok.", "Don’t", "a cat :)", ""]

    reward, found = Lexicon(Answers(path, texts)).measure(Point(1.0, "dial"))  # type: ignore[arg-type]

    assert list(reward.items.values()) == pytest.approx([-0.25, 1.0, 0.5, -1.0, 0.0, 0.0])
    assert reward.value == pytest.approx(0.25 / 6)
    assert list(found.items.values()) == [1, 1, 1, 1, 0, 0]


def test_a_packed_file_has_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt.gz"
    path.write_bytes(gzip.compress(WORDS.encode()))

    assert word_scores(config(path)) == {
        "good": 2.0,
        "bad": -3.0,
        "OK": 1.0,
        "ok": 0.5,
        "don't": -1.0,
        ":)": 2.0,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("good\n", "line 1: 'good' is no word with a score; evaluation.lexicon.path reads lines of a word, a tab and a number"),
        ("good\t1\nbad\tx\n", r"line 2: 'bad\\tx' is no word with a score"),
        ("good\tnan\n", "line 1: .* is no word with a score"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(DataError, match=says):
        word_scores(config(path))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(DataError, match=r"is no text in UTF-8 .*; give evaluation\.lexicon\.path another file"):
        word_scores(config(path))
