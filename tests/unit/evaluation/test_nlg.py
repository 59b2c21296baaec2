"""Texts against references, on cases that are worked out by hand."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence

import pytest

from alignlab.errors import ConfigError
from alignlab.evaluation.nlg import compared, nist

REFERENCES = (("The Eagle is a cheap pub.",), ("Aromi, near Crowne Plaza, serves Thai food.",))


def values(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    return {each.metric: each.value for each in compared(texts, references)}


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLEU and NIST only, in a moment."""
    pytest.importorskip("sacrebleu", reason="pip install 'alignlab[nlg]'")
    monkeypatch.setattr("alignlab.evaluation.nlg.shutil.which", lambda _name: None)


@pytest.fixture
def coco() -> None:
    """The package behind METEOR, ROUGE-L and CIDEr, and Java."""
    pytest.importorskip("pycocoevalcap", reason="pip install 'alignlab[nlg]'")
    if shutil.which("java") is None:
        pytest.skip("METEOR and the tokenizer of ROUGE-L and CIDEr run in Java, which is not installed")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        # 4 words, of which a stands twice: log2(4/2) of a, log2(4/1) of b; of a b log2(2/1). (1 + 2) / 2 + 1 / 1
        ("a b", 2.5),
        # one bit in one word, and half as long as the references: exp(ln 0.5 (ln 0.5 / ln 1.5)^2)
        ("a", math.exp(math.log(0.5) * (math.log(0.5) / math.log(1.5)) ** 2)),
        # the second a is in no reference twice: 1 bit in 2 words
        ("a a", 0.5),
        ("", 0.0),
    ],
)
def test_nist_counts_the_bits_of_what_matches(text: str, score: float) -> None:
    measured = nist([tuple(text.split())], [[("a", "b"), ("a", "c")]])

    assert measured.value == pytest.approx(score)


def test_a_text_two_thirds_as_long_as_its_reference_has_half_of_its_nist() -> None:
    # 6 words: bits log2(6/2) twice in two words, and of the pair log2(2/2); the second text has nothing that matches
    measured = nist([("a", "b"), ("x", "y")], [[("a", "b", "a")], [("b", "c", "d")]])

    assert measured.value == pytest.approx(0.5 * 2 * math.log2(3) / 4 + 0.5 * 1 / 2 * math.log2(2 / 1))


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("A b c D e", "a b c d f", 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),  # letters' case aside
        ("a b c d", "a b c d e", 100 * math.exp(1 - 5 / 4)),  # all matches, shorter than the reference
    ],
)
@pytest.mark.usefixtures("no_java")
def test_bleu_is_lower_cased_and_has_a_penalty_of_length(text: str, reference: str, score: float) -> None:
    assert values([text], [[reference]])["bleu"] == pytest.approx(score, abs=0.01)


@pytest.mark.usefixtures("no_java")
def test_bleu_of_all_texts_is_sacrebleus_with_an_interval() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="pip install 'alignlab[nlg]'")
    texts = ["The eagle is a cheap place.", "Near Crowne Plaza, Aromi serves Thai food."]
    references = [["The Eagle is a cheap pub.", "A cheap pub is The Eagle."], ["Aromi serves Thai food."] * 2]

    measured = next(each for each in compared(texts, references) if each.metric == "bleu")

    expected = sacrebleu.corpus_bleu(texts, list(zip(*references, strict=True)), lowercase=True).score
    assert measured.value == pytest.approx(expected, abs=1e-9)
    assert measured.n == 2


@pytest.mark.usefixtures("coco")
def test_rouge_l_and_cider_are_those_of_the_coco_evaluation() -> None:
    found = values(["The eagle is cheap.", REFERENCES[1][0]], REFERENCES)

    # 4 of 4 words in order, of 6: (1 + 1.2^2) P R / (R + 1.2^2 P) with P = 1, R = 2/3; the other text is its reference
    assert found["rouge_l"] == pytest.approx((2.44 * 2 / 3 / (2 / 3 + 1.44) + 1) / 2, abs=0.01)
    # texts that are their references, with no word in common
    same = values([own[0] for own in REFERENCES], REFERENCES)
    assert same["cider"] == pytest.approx(10.0, abs=0.01)
    assert same["meteor"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.usefixtures("no_java")
def test_a_metric_whose_package_is_missing_is_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    found = values(["a b c d e"], [["a b c d f"]])

    assert set(found) == {"bleu", "nist"}
    assert "leaves out meteor, rouge_l, cider: Java is not installed" in caplog.text


def test_without_any_package_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.evaluation.nlg.shutil.which", lambda _name: None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)

    with pytest.raises(ConfigError, match="has none of the packages that it needs; pip install 'alignlab\\[nlg\\]'"):
        compared(["a"], [["a"]])
