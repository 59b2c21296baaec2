"""A judge's verdicts: how they are asked for, read, counted and kept, with recorded answers and with a server on loopback."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignlab.data.source import Source, Split
from alignlab.errors import ConfigError, DataError, MeasureError
from alignlab.evaluation import Point
from alignlab.evaluation import config as evaluation_module
from alignlab.evaluation.judge import Judge, look, won
from alignlab.evaluation.judging import (
    Answer,
    Ask,
    Pair,
    Question,
    Server,
    agreement,
    cost,
    judge_pairs,
    length_controlled,
    mark,
    people,
    read_questions,
    single_ask,
    verdict,
)
from alignlab.evaluation.statistics import Measurement
from alignlab.evaluation.suite import EvaluationContext
from alignlab.models.backbone import Backbone
from alignlab.records import Record
from tests.conftest import backbone
from tests.unit.conftest import PAIRS, attached, checked, evaluation_config, judge_config

A_WINS, B_WINS, TIE = Answer("A is more detailed. [[A]]"), Answer("Thus: [[B]]"), Answer("Both are alike.\n\n[[C]]")


@pytest.mark.parametrize(
    ("text", "scale", "expected"),
    [
        ("My verdict: [[A]]", "three", ((1.0, 1), "read")),
        ("[[B]]", "three", ((0.0, 1), "read")),
        ("[[C]] for a tie", "three", ((0.5, 1), "read")),
        ("[[A]] at first, but rather [[B]]", "three", (None, "malformed")),
        ("Assistant A is better.", "three", (None, "malformed")),
        ("[[A>B]]", "three", (None, "malformed")),
        ("My final verdict is: [[A>>B]]", "five", ((1.0, 3), "read")),
        ("[[B>A]] ... so [[B>A]]", "five", ((0.0, 1), "read")),
        ("[[A=B]]", "five", ((0.5, 1), "read")),
        ("[[B>>A]]", "five", ((0.0, 3), "read")),
        ("[[A<B]]", "five", (None, "malformed")),
    ],
)
def test_a_verdict_is_read_or_its_absence_named(text: str, scale: str, expected: Any) -> None:
    assert verdict(Answer(text), scale) == expected


def test_a_refusal_is_no_verdict_whatever_it_says() -> None:
    assert verdict(Answer("[[A]]", refused=True), "three") == (None, "refused")
    assert mark(Answer("", refused=True)) == (None, "refused")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[8.5]] of [[10]]", 8.5),
        ("Rating: [3]", 3.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("7/10", None),
    ],
)
def test_a_mark_is_read_as_fastchat_reads_it_and_has_to_be_from_1_to_10(text: str, expected: float | None) -> None:
    assert mark(Answer(text))[0] == expected


def test_each_question_is_asked_in_both_orders_and_ours_wins_where_either_name_is_its() -> None:
    heard: list[Ask] = []

    def ask(asks: Sequence[Ask]) -> list[Answer]:
        heard.extend(asks)
        return [A_WINS, B_WINS, A_WINS, A_WINS, Answer("no idea"), TIE, Answer("x"), Answer("", refused=True)]

    questions = [Question((f"q{number}",)) for number in range(4)]
    pairs, counts = judge_pairs(ask, questions, [("mine {x}",)] * 4, [("theirs",)] * 4, "three")

    assert [pair and pair.share for pair in pairs] == [1.0, 0.5, 0.5, None]
    assert counts == {"read": 5, "malformed": 2, "refused": 1}
    first, second = heard[0].prompt, heard[1].prompt
    assert first.index("mine {x}") < first.index("theirs")
    assert second.index("theirs") < second.index("mine {x}")


def test_a_conversation_of_two_turns_is_shown_whole() -> None:
    question = Question(("one?", "two?"), "81", "math", ("ref 1", "ref 2"))

    asked = single_ask(question, ("first answer", "second answer"), 1)

    places = [asked.prompt.index(text) for text in ("ref 1", "ref 2", "first answer", "second answer")]
    assert places == sorted(places)
    assert "second answer" not in single_ask(question, ("first answer", "second answer"), 0).prompt
    assert "Reference" not in single_ask(Question(("one?",)), ("first answer",), 0).prompt


def test_numbers_of_pairs_count_what_could_not_be_read_and_lose_nothing_silently() -> None:
    pairs = [
        Pair((1.0, 1.0), (1, 1), (1.0, 0.0)),
        Pair((0.5, 0.0), (1, 1), (0.5, 1.0)),
        None,
        Pair((1.0, 0.0), (1, 1), (1.0, 1.0)),
    ]
    counts = Counter({"read": 6, "refused": 1, "malformed": 1})

    measured = {each.metric: each for each in won(pairs, counts, [0, 0, 0, 0], ["a", "b", "c", "d"])}

    assert measured["win_rate"].value == pytest.approx((1 + 0.25 + 0.5) / 3)
    assert measured["win_rate"].items == {"a": 1.0, "b": 0.25, "d": 0.5}
    assert measured["win_rate"].note == "1 of 4 prompts left out: nothing read; of 8 verdicts 1 malformed, 1 refused"
    assert (measured["ties"].value, measured["ties"].n) == (pytest.approx(1 / 6), 6)
    assert measured["unread"].value == pytest.approx(2 / 8)
    assert measured["first"].value == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 1) / 6)


def test_a_significant_difference_counts_three_times() -> None:
    pairs = [Pair((1.0, 1.0), (3, 1), (1.0, 0.0)), Pair((0.0, 0.5), (1, 1), (0.0, 0.5))]

    measured = won(pairs, Counter(read=4), [0, 0], ["a", "b"])

    assert measured[0].value == pytest.approx((3 + 1 + 0 + 0.5) / 6)


def test_nothing_read_is_no_number() -> None:
    measured = won([None], Counter(malformed=2), [0], ["a"])

    assert [(each.metric, each.n) for each in measured] == [("win_rate", 0), ("unread", 2)]
    assert measured[0].note == "1 of 1 prompts left out: nothing read; of 2 verdicts 2 malformed"


def test_the_length_controlled_rate_is_the_logistic_regressions_at_equal_length() -> None:
    generator = np.random.default_rng(0)
    longer_N = generator.normal(size=4000) * 100
    truth_N = 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(longer_N / longer_N.std()))))
    shares_N = (generator.random(4000) < truth_N).astype(float)

    found = length_controlled(shares_N, longer_N + 0.0)

    assert found == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.03)
    assert length_controlled(np.array([1.0, 0.0, 0.5, 1.0]), np.zeros(4)) == pytest.approx(2.5 / 4, abs=1e-5)


def test_agreement_with_people_is_accuracy_kappa_and_the_bias_of_the_place() -> None:
    one, two = Pair((1.0, 1.0), (1, 1), (1.0, 0.0)), Pair((0.0, 0.0), (1, 1), (0.0, 1.0))
    first, half = Pair((1.0, 0.0), (1, 1), (1.0, 1.0)), Pair((1.0,), (1,), (1.0,))

    found = agreement([one, one, two, first, half, None], [1, 2, 2, 0, 1, 1])

    # said 1 1 2 0, right 1 2 2 0: 3 of 4 alike; by chance 1/4 1/4 + 2/4 1/4 + 1/4 2/4 = 5/16
    assert (found.n, found.unread) == (4, 2)
    assert found.accuracy == 0.75
    assert found.kappa == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))
    assert (found.first_bias, found.second_bias) == (0.25, 0.0)


def test_agreement_of_a_judge_that_reads_nothing_is_refused() -> None:
    with pytest.raises(MeasureError, match=r"^no verdict of the judge could be read"):
        agreement([None], [1])


@pytest.mark.real
def test_people_who_judge_as_a_majority_does_agree_with_it_entirely(shared: Path) -> None:
    questions, answers, labels = people(shared / "data/pandalm/testset-v1.jsonl.gz")
    said = iter([{1: (A_WINS, B_WINS), 2: (B_WINS, A_WINS), 0: (TIE, TIE)}[label] for label in labels])

    pairs, counts = judge_pairs(
        lambda asks: [answer for _ in range(len(asks) // 2) for answer in next(said)],
        questions,
        [(one,) for one, _ in answers],
        [(two,) for _, two in answers],
        "three",
    )

    found = agreement(pairs, labels)
    assert counts == {"read": 2 * len(labels)}
    assert (found.n, found.accuracy, found.kappa, found.unread) == (len(labels), 1.0, 1.0, 0)
    assert len(labels) > 900


@pytest.mark.real
def test_published_questions_are_read_with_their_references(shared: Path) -> None:
    folder = shared / "data/judge-questions"

    bench = read_questions(folder / "mt_bench.question.jsonl", str(folder / "mt_bench.reference_gpt-4.jsonl"))
    arena = read_questions(folder / "arena-hard-v0.1.question.jsonl.gz", None)

    assert (len(bench), {len(each.turns) for each in bench}) == (80, {2})
    assert Counter(each.category for each in bench if each.references) == {"reasoning": 10, "math": 10, "coding": 10}
    assert (len(arena), {len(each.turns) for each in arena}) == (500, {1})


def test_a_line_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"instruction": "Why?"}\n{"turns": [" "]}\n')

    with pytest.raises(DataError, match=r"no question; give it turns, a list of texts, or an instruction"):
        read_questions(tmp_path / "asked.jsonl", None)


def test_the_plan_says_what_judging_takes_at_most() -> None:
    said = cost(judge_config(model="gpt-4", max_tokens=100), [Question(("why",))] * 10, answer_tokens=50, points=3)

    assert said.startswith("gpt-4: at most 60 requests, about ")
    assert " and at most 6,000 to write" in said


@pytest.mark.parametrize(("key", "line"), [("questions", '{"a": 1}'), ("references", '{"b": 1}'), ("against", '{"c": 1}')])
def test_the_files_of_a_judge_are_read_before_anything_is_trained(key: str, line: str, tmp_path: Path) -> None:
    files = {"questions": '{"instruction": "Why?"}', "references": "", "against": '{"instruction": "Why?", "output": "So."}'}
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    config = evaluation_config(judge=judge_config(**{name: str(tmp_path / f"{name}.jsonl") for name in files}))
    look(config)
    (tmp_path / f"{key}.jsonl").write_text(line)

    with pytest.raises(DataError, match=rf"^{key}.jsonl:1: no (question|answer)"):
        look(config)


def test_answers_of_the_data_are_none_to_the_questions_of_a_file() -> None:
    config = evaluation_config(judge=judge_config(model="gpt-4", questions="asked.jsonl", against="chosen"))

    with pytest.raises(ConfigError, match=r"^evaluation.judge.against=chosen are answers of the data, but the questions"):
        checked("evaluation", config)


def test_a_judge_without_the_client_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_module, "find_spec", lambda _name: None)

    with pytest.raises(ConfigError, match=r"^evaluation.judge.model needs the openai client.*'alignlab\[judge\]'"):
        checked("evaluation", evaluation_config(judge=judge_config(model="gpt-4")))


def context(backbone: Backbone, **changes: Any) -> EvaluationContext:
    records = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
    config = evaluation_config(prompts=len(PAIRS), max_new_tokens=4, judge=judge_config(model="a judge", **changes))
    return EvaluationContext(attached("lora", backbone), Source("made", {"test": lambda: Split(records)}), None, config)


def named(measured: Sequence[Measurement]) -> dict[str, Measurement]:
    return {each.metric: each for each in measured}


def test_a_judge_that_always_takes_the_first_answer_gives_every_prompt_one_half(llama: Backbone) -> None:
    suite = Judge(context(llama, against="chosen"), lambda asks: [A_WINS] * len(asks))

    measured = named(suite.measure(Point(1.0, "dial")))

    assert set(measured["win_rate"].items.values()) == {0.5}
    assert measured["first"].value == 1.0


def test_questions_of_a_file_are_answered_turn_by_turn_and_marked(llama: Backbone, tmp_path: Path) -> None:
    lines = [
        {"question_id": 1, "category": "math", "turns": ["Tom saw a dog", "Ann ran"]},
        {"question_id": 2, "category": "writing", "turns": ["Ann saw Tom"]},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "known.jsonl").write_text(json.dumps({"question_id": 1, "choices": [{"turns": ["sad", "home"]}]}))
    heard: list[Ask] = []

    def ask(asks: Sequence[Ask]) -> list[Answer]:
        heard.extend(asks)
        return [Answer("[[4]]"), Answer("[[8]]"), Answer("none")]

    made = context(llama, mode="single", questions=str(tmp_path / "asked.jsonl"), references=str(tmp_path / "known.jsonl"))
    measured = named(Judge(made, ask).measure(Point(1.0, "dial")))

    assert (measured["mark"].value, measured["mark"].n) == (6.0, 1)
    assert (measured["turn1"].value, measured["turn2"].value, measured["math/mark"].value) == (4.0, 8.0, 6.0)
    assert measured["writing/mark"].n == 0
    assert measured["unread"].value == pytest.approx(1 / 3)
    assert measured["mark"].note == "of 3 verdicts 1 malformed"
    assert "sad" in heard[0].prompt
    assert "Ann ran" in heard[1].prompt


def test_the_second_turn_may_have_a_strength_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["Tom saw a dog", "Ann ran"]}))
    given = {"mode": "single", "questions": str(tmp_path / "asked.jsonl")}

    def shown(strength: float, **changes: Any) -> str:
        """What the judge sees of both turns."""
        heard: list[Ask] = []
        Judge(context(backbone("llama"), **given, **changes), lambda asks: [heard.append(ask) or TIE for ask in asks]).measure(
            Point(strength, "dial")
        )
        return heard[-1].prompt

    weak, strong, mixed = shown(0.0), shown(3.0), shown(3.0, second_turn_strength=0.0)

    assert mixed.partition("Ann ran")[0] == strong.partition("Ann ran")[0] != weak.partition("Ann ran")[0]
    assert mixed != strong


def test_a_strength_of_the_second_turn_is_of_marks_and_of_no_class(llama: Backbone, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"turns": ["Tom saw a dog"]}))
    with pytest.raises(ConfigError, match=r"^evaluation.judge.second_turn_strength=0.5 is of questions with two turns"):
        checked("evaluation", evaluation_config(judge=judge_config(second_turn_strength=0.5)))
    made = context(llama, mode="single", questions=str(tmp_path / "asked.jsonl"), second_turn_strength=0.5)

    with pytest.raises(ConfigError, match=r"is a strength, and good is a class; leave it out"):
        Judge(made, lambda _: []).measure(Point(1.0, "good", "good"))


class _Openai(BaseHTTPRequestHandler):
    """Answers as OpenAI's server: the first request fails, the others get a verdict, or a refusal where the question asks."""

    seen: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked)
        refused = "forbidden" in asked["messages"][1]["content"]
        message = {"role": "assistant", "content": None if refused else "[[A]]", "refusal": "no" if refused else None}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        said = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
        body = json.dumps({"error": {"message": "busy"}} if len(self.seen) == 1 else said).encode()
        self.send_response(503 if len(self.seen) == 1 else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture
def server() -> Iterator[str]:
    """The address of such a server."""
    pytest.importorskip("openai", reason="the openai client is not installed (alignlab[judge])")
    _Openai.seen = []
    serving = ThreadingHTTPServer(("127.0.0.1", 0), _Openai)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/v1"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_server_is_asked_again_after_a_failure_and_never_twice_for_the_same(server: str, tmp_path: Path) -> None:
    config = judge_config(model="judge", base_url=server, parallel=2)
    asks = [Ask("be fair", "one"), Ask("be fair", "forbidden"), Ask("be fair", "one")]

    first = Server(config, tmp_path)(asks)
    requests = len(_Openai.seen)
    second = Server(config, tmp_path)(asks)

    assert first == second == [Answer("[[A]]"), Answer("", refused=True), Answer("[[A]]")]
    assert (requests, len(_Openai.seen)) == (3, 3)
    assert _Openai.seen[0]["model"] == "judge"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"other": 1}'])
def test_a_damaged_answer_is_asked_for_again(content: bytes, server: str, tmp_path: Path) -> None:
    config = judge_config(model="judge", base_url=server, parallel=1)
    Server(config, tmp_path)([Ask("be fair", "one")])
    (kept,) = tmp_path.iterdir()
    before = kept.read_bytes()
    kept.write_bytes(content)

    again = Server(config, tmp_path)([Ask("be fair", "one")])

    assert again == [Answer("[[A]]")]
    assert kept.read_bytes() == before


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the openai client is not installed (alignlab[judge])")
    config = judge_config(model="judge", base_url="http://127.0.0.1:9/v1", retries=0)

    with pytest.raises(MeasureError, match=r"^the judge at http://127.0.0.1:9/v1/ does not answer"):
        Server(config, tmp_path)([Ask("be fair", "one")])
