"""Runs on the embedded classifier and encoder-decoder model: trained, restored, evaluated, loaded, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import alignlab
from alignlab.errors import ConfigError
from alignlab.exports import export
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from run import run
from tests.contracts.test_methods import composed

CLASSES = ("model=tiny_roberta", "data=toy_classes", "data.pairs=48", "data.test_pairs=24")
STORIES = ("model=tiny_t5", "data=toy", "data.pairs=48", "data.test_pairs=8")
RUNS = [
    *((CLASSES, tuner) for tuner in ("lora", "red", "full", "bitfit", "ia3")),
    *((STORIES, tuner) for tuner in ("lora", "red", "full", "ia3", "prompt")),  # a T5 has no biases
]
NOT_EXPORTED = (STORIES, "red"), (STORIES, "prompt")
"""A T5 has no place for RED's shift; vectors in front of a text are no weights."""
every_run = pytest.mark.parametrize(
    ("data", "tuner"), RUNS, ids=lambda value: str(value if isinstance(value, str) else value[0])
)


def results(folder: Path) -> dict[tuple[str, str, float], dict[str, Any]]:
    rows = json.loads((folder / "run" / "report.json").read_text())["results"]
    return {(row["suite"], row["metric"], row["strength"]): row for row in rows}


def says(policy: Policy) -> Any:
    """What a finished run answers: how likely each class of two texts is, or two stories."""
    prompts = ["Tell a story about Tom and a kite.", "Anna was sad. At last Anna went home."]
    if policy.backbone.model.can_generate():
        return policy.respond(prompts, sampling=Sampling(12, 0.0, 1.0), seed=0)
    return policy.classify(prompts, strength=0.5)


@every_run
def test_a_run_trains_evaluates_loads_and_exports(data: tuple[str, ...], tuner: str, tmp_path: Path) -> None:
    run(composed(tmp_path, "sft", f"tuner={tuner}", data=data))

    loaded, again = alignlab.load(tmp_path / "run", device="cpu"), alignlab.load(tmp_path / "run", device="cpu")
    assert says(loaded) == says(again)
    suite, metric = ("classification", "accuracy") if "toy_classes" in data[1] else ("toy", "reward")
    assert {strength for found, name, strength in results(tmp_path) if (found, name) == (suite, metric)} == {0.0, 1.0}
    if (data, tuner) not in NOT_EXPORTED:
        assert export(tmp_path / "run", tmp_path / "plain")[0].difference <= 1e-4
        auto = AutoModelForSequenceClassification if data is CLASSES else AutoModelForSeq2SeqLM
        assert auto.from_pretrained(tmp_path / "plain").config.architectures


def test_a_classifier_learns_moods(tmp_path: Path) -> None:
    words = ("tuner=full", "data.told=mood", "data.pairs=400")

    run(composed(tmp_path, "sft", *words, data=CLASSES, steps=150, batch=32))

    assert results(tmp_path)["classification", "accuracy", 1.0]["value"] > 0.9


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("method=dpo", "model=tiny_roberta"), "model=tiny_roberta needs label set"),
        (("method=sft", "model=tiny_roberta"), "model=tiny_roberta needs label set, which none of .* data=toy"),
        (("method=rahf", "model=tiny_t5"), "method=rahf needs hidden states and text in front of prompts"),
        (("method=meet", "model=tiny_t5"), "method=meet needs text in front of prompts"),
        (("method=sft", "model.kind=decoder"), "model.kind='decoder' is not known; choose one of causal, seq2seq, classifier"),
    ],
)
def test_what_a_kind_does_not_have_is_refused_before_any_weight(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    method = words[0].removeprefix("method=")

    with pytest.raises(ConfigError, match=says):
        run(composed(tmp_path, method, *words[1:]))

    assert not (tmp_path / "run").exists()
