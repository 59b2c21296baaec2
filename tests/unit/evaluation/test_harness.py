"""What lm-evaluation-harness asks of a policy, what becomes of its numbers, and texts read from a file."""

from __future__ import annotations

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignlab.errors import ConfigError, DataError
from alignlab.evaluation import Point
from alignlab.evaluation import config as evaluation_module
from alignlab.evaluation.config import TextConfig
from alignlab.evaluation.harness import likelihoods, look, measurements, sampling_of, written
from alignlab.evaluation.suite import EvaluationContext
from alignlab.evaluation.text import TextSuite, read_text, windows
from alignlab.models.backbone import Backbone
from alignlab.models.sampling import Sampling
from tests.unit.conftest import attached, checked, evaluation_config, plain

SHARED, OTHER = (1, 9, 10, 11), (1, 20)
REQUESTS = [(SHARED, (12, 13)), (OTHER, (21,)), (SHARED, (14,)), (SHARED, ()), (OTHER, (22, 23, 24, 25))]
HALF = Point(0.5, "dial")


def logits_of(model: Any, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("tokens", [4, 4096])
def test_log_likelihoods_are_those_of_the_plain_model(llama: Backbone, tokens: int) -> None:
    found = likelihoods(plain(llama), Point(0.0, "dial"), REQUESTS, tokens)

    for (context, continuation), (total, greedy) in zip(REQUESTS, found, strict=True):
        logits_TV = logits_of(llama.model, (*context, *continuation))[len(context) - 1 : -1]
        expected = sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits_TV, continuation))
        assert total == pytest.approx(expected, abs=1e-4)
        assert greedy == all(int(row.argmax()) == token for row, token in zip(logits_TV, continuation))


def test_batches_that_are_kept_are_not_computed_again_and_give_the_same(llama: Backbone) -> None:
    kept: dict[int, Any] = {}
    policy, point = plain(llama), Point(0.0, "dial")
    first = likelihoods(policy, point, REQUESTS, 1, kept)
    whole = json.loads(json.dumps(list(kept.items())))
    del kept[0]

    again = likelihoods(policy, point, REQUESTS, 1, kept)
    restored = likelihoods(policy, point, REQUESTS, 1, dict(map(tuple, whole)))

    assert len(whole) > 1
    assert json.loads(json.dumps(sorted(kept.items()))) == whole
    assert first == again == restored


def test_what_greedy_decoding_writes_is_called_greedy_at_the_same_strength(llama: Backbone) -> None:
    policy = attached("lora", llama)
    chosen = []
    with torch.no_grad(), policy.tuner.at(0.5):
        for _ in range(3):
            chosen.append(int(logits_of(llama.model, (*SHARED, *chosen))[-1].argmax()))
    other = (*chosen[:2], (chosen[2] + 1) % 50)

    found = likelihoods(policy, HALF, [(SHARED, tuple(chosen)), (SHARED, other)], 4096)

    assert [greedy for _, greedy in found] == [True, False]


def test_a_long_context_loses_its_beginning(llama: Backbone) -> None:
    policy = plain(llama)
    long = tuple(5 + place % 40 for place in range(policy.room + 7))

    (found,) = likelihoods(policy, Point(0.0, "dial"), [(long, (12,))], 4096)

    (cut,) = likelihoods(policy, Point(0.0, "dial"), [(long[8:], (12,))], 4096)
    assert found == cut


def test_texts_are_cut_at_the_stop_of_their_own_task(llama: Backbone) -> None:
    policy = plain(llama)
    prompts = [(*llama.codec.head, *llama.codec.prefix("Tom saw a dog")), (*llama.codec.head, *llama.codec.prefix("Ann ran"))]
    free = written(policy, Point(0.0, "dial"), prompts, [{"max_gen_toks": 6}] * 2, seed=0)
    stop = free[1].split()[2]

    texts = written(policy, Point(0.0, "dial"), prompts, [{"max_gen_toks": 6}, {"max_gen_toks": 6, "until": [stop]}], seed=0)

    made = llama.model.generate(torch.tensor([prompts[0]]), do_sample=False, max_new_tokens=6)[0, len(prompts[0]) :]
    assert texts[0].split() == llama.codec.decode(made.tolist()).split()
    assert texts[1] == free[1][: free[1].index(stop)]


def test_texts_that_an_earlier_process_has_written_are_read_back(llama: Backbone) -> None:
    policy, batches = plain(llama), defaultdict[int, dict[int, Any]](dict)
    prompts = [(*llama.codec.head, *llama.codec.prefix(text)) for text in ("Tom saw a dog", "Ann ran")]
    settings = [{"max_gen_toks": 6}, {"max_gen_toks": 3}]
    written(policy, Point(0.0, "dial"), prompts, settings, 0, batches.__getitem__)

    batches[1][0] = ["as it was written before"]
    texts = written(policy, Point(0.0, "dial"), prompts, settings, 0, batches.__getitem__)

    assert sorted(batches) == [0, 1]
    assert texts == [*batches[0][0], "as it was written before"]


@pytest.mark.parametrize(
    ("settings", "sampling"),
    [
        ({}, Sampling(256, 0.0, 1.0)),
        ({"until": "\n", "do_sample": False, "temperature": 0.7, "max_gen_toks": 5}, Sampling(5, 0.0, 1.0, stop=("\n",))),
        ({"do_sample": True, "max_new_tokens": 3, "top_p": 0.9}, Sampling(3, 1.0, 0.9)),
        ({"temperature": 0.7, "until": ["a", ""], "repetition_penalty": 1.1}, Sampling(256, 0.7, 1.0, 0, 0.0, 1.1, 0, ("a",))),
    ],
)
def test_settings_of_a_task_become_our_sampling(settings: dict[str, Any], sampling: Sampling) -> None:
    assert sampling_of(settings) == sampling


def test_a_setting_that_the_decoder_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^a task decodes with penalty_alpha, which this decoder does not have"):
        sampling_of({"penalty_alpha": 0.6})


SAMPLES = [
    {"doc_hash": name, "filter": "none", "acc": value} for name, value in (("a", 1.0), ("b", 0.0), ("c", 1.0), ("d", 1.0))
]
FOUND: dict[str, Any] = {
    "results": {
        "both": {"alias": "both", "acc,none": 0.6, "acc_stderr,none": "N/A"},
        "quiz": {"alias": "quiz", "acc,none": 0.75, "acc_stderr,none": 0.25},
        "sums": {
            "alias": "sums",
            "exact,strict": 0.5,
            "exact_stderr,strict": 0.1,
            "exact,loose": 1.0,
            "exact_stderr,loose": 0.0,
        },
    },
    "group_subtasks": {"both": ["quiz", "sums"]},
    "versions": {"quiz": 2.0, "sums": 3.0},
    "n-shot": {"quiz": 5, "sums": 0},
    "n-samples": {"quiz": {"original": 9, "effective": 4}, "sums": {"original": 9, "effective": 6}},
    "samples": {"quiz": SAMPLES},
    "lm_eval_version": "0.4.13",
}


def test_numbers_of_the_harness_keep_their_n_error_and_version() -> None:
    measured = {each.metric: each for each in measurements(FOUND, ["quiz", "sums"])}

    assert list(measured) == ["average", "both/acc", "quiz/acc", "sums/exact/strict", "sums/exact/loose"]
    quiz = measured["quiz/acc"]
    assert (quiz.value, quiz.n) == (0.75, 4)
    assert [quiz.low, quiz.high] == pytest.approx([0.75 - 1.959964 * 0.25, 0.75 + 1.959964 * 0.25], rel=1e-6)
    assert quiz.details == "lm-eval 0.4.13, task version 2.0, 5 shots, standard error 0.25"
    assert sorted(quiz.items.values()) == [0.0, 1.0, 1.0, 1.0]
    assert measured["both/acc"].n == 10
    assert math.isnan(measured["both/acc"].low)


def test_the_average_is_of_the_first_metric_of_what_was_asked_for() -> None:
    average = measurements(FOUND, ["quiz", "sums"])[0]

    # (0.75 + 0.5) / 2, with the error sqrt(0.25^2 + 0.1^2) / 2
    assert (average.value, average.n) == (0.625, 10)
    assert average.high - average.value == pytest.approx(1.959964 * math.hypot(0.25, 0.1) / 2, rel=1e-6)
    assert average.details == "of quiz/acc, sums/exact/strict"


def test_tasks_without_the_harness_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_module, "find_spec", lambda _name: None)
    config = evaluation_config()
    config.lm_eval.tasks = ["gsm8k"]

    with pytest.raises(ConfigError, match=r"^evaluation.lm_eval.tasks needs lm-evaluation-harness.*'alignlab\[lm_eval\]'"):
        checked("evaluation", config)


def test_every_token_of_a_text_is_predicted_once() -> None:
    ids = tuple(range(20))

    cut = windows(ids, 8, 3)

    assert [token for _, continuation in cut for token in continuation] == list(range(1, 20))
    assert cut[0] == ((0,), (1, 2, 3, 4, 5, 6, 7))
    assert cut[1] == ((3, 4, 5, 6, 7), (8, 9, 10))
    assert all(len(context) + len(continuation) <= 8 for context, continuation in cut)


def test_perplexity_and_bits_per_byte_of_a_file_are_the_plain_models(llama: Backbone, tmp_path: Path) -> None:
    text = "Tom saw a dog .\nThe dog was sad .\nAnn ran .\n"
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress((text + "a line more\n").encode()))
    config = evaluation_config(text=TextConfig(str(tmp_path / "text.txt.gz"), 3, None, None))

    measured = {each.metric: each for each in TextSuite(context(llama, config)).measure(Point(0.0, "dial"))}

    ids = (llama.codec.head[0], *llama.codec.prefix(text))
    logits_TV = logits_of(llama.model, ids)[:-1]
    nats = -sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits_TV, ids[1:]))
    assert measured["nats_per_token"].value == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert measured["perplexity"].value == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert measured["bits_per_byte"].value == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert measured["perplexity"].n == 1


def context(backbone: Backbone, config: Any) -> EvaluationContext:
    return EvaluationContext(plain(backbone), None, None, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(("content", "reason"), [(b"\xff\xfe\x00", "is no text in UTF-8"), (b" \n", "holds no text")])
def test_a_file_without_text_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)

    with pytest.raises(DataError, match=reason):
        read_text(evaluation_config(text=TextConfig(str(tmp_path / "text.txt"), None, None, None)))


def test_a_file_counts_by_its_content_and_has_to_exist(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    config = evaluation_config(text=TextConfig(str(file), None, None, None))
    with pytest.raises(ConfigError, match=r"^evaluation.text.path=.* does not exist"):
        config.cache_key()
    file.write_text("one")
    one = config.cache_key()
    file.write_text("other")

    assert config.cache_key() != one
    assert evaluation_config().cache_key() == []


@pytest.mark.parity
def test_the_harness_gets_from_a_policy_what_its_own_model_class_gives(llama: Backbone, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (alignlab[lm_eval])")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from alignlab.evaluation.harness_model import PolicyLM

    own = PolicyLM(plain(llama), Point(0.0, "dial"), 4096, 0)
    theirs = HFLM(pretrained=llama.model, tokenizer=llama.codec.tokenizer, batch_size=2, max_length=own.max_length)
    asked = {
        "loglikelihood": [("Tom saw", " a dog"), ("Tom saw", " Ann"), ("", "The dog was sad"), ("Ann ran ", "home")],
        "loglikelihood_rolling": [("Tom saw a dog . " * 60,), ("Ann ran .",)],
        "generate_until": [("Tom saw", {"until": ["."], "max_gen_toks": 5}), ("Ann", {"max_gen_toks": 4, "until": []})],
    }

    for kind, every in asked.items():
        requests = [Instance(kind, {}, args, place) for place, args in enumerate(every)]
        ours, others = getattr(own, kind)(requests), getattr(theirs, kind)(requests)
        if kind == "generate_until":
            assert ours == others
        else:
            flat = [[value[0] if isinstance(value, tuple) else value for value in each] for each in (ours, others)]
            assert flat[0] == pytest.approx(flat[1], rel=1e-6, abs=1e-4)  # a sum of hundreds of float32 numbers


class Files:
    """The harness's task files: two by themselves, one more with its own."""

    def __init__(self, include_path: str | None, include_defaults: bool) -> None:
        self.all_tasks = ["own", "own_two", *(["gsm8k"] if include_defaults else [])]

    def match_tasks(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.all_tasks]


@pytest.mark.parity
def test_a_task_that_the_harness_does_not_know_is_named_with_what_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (alignlab[lm_eval])")
    from alignlab.evaluation import harness_model

    monkeypatch.setattr(harness_model, "TaskManager", Files)  # the real one reads thousands of files
    config = evaluation_config().lm_eval
    config.tasks, config.include = ["gsm8kk"], "a folder"

    with pytest.raises(ConfigError, match=r"^unknown task of lm-evaluation-harness 'gsm8kk'; did you mean gsm8k\? python -m"):
        harness_model.known_tasks(config)

    config.tasks = ["own"]
    assert "gsm8k" not in harness_model.known_tasks(config).all_tasks


@pytest.mark.parity
def test_the_data_of_a_task_in_files_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (alignlab[lm_eval])")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data.csv").write_text("question,answer\nWho ran ?,Ann\n")
    task = (
        "task: {name}\ndataset_path: csv\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\ndoc_to_choice: ['Ann', 'Tom']\ndoc_to_target: 0\n"
        "metric_list: [{{metric: acc}}]\n"
    )
    for name, file in (("good", "data.csv"), ("bad", "no.csv")):
        (tmp_path / f"{name}.yaml").write_text(task.format(name=name, file=tmp_path / file))
    config = evaluation_config()
    config.lm_eval.tasks, config.lm_eval.include = ["good"], str(tmp_path)
    look(config)
    config.lm_eval.tasks = ["good", "bad"]

    with pytest.raises(ConfigError, match=r"^the task bad of \S+bad\.yaml cannot be read: .*no\.csv.*; mend its file, or"):
        look(config)
