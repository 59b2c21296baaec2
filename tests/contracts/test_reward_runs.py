"""Reward models: trained on pairs, measured on held-out ones, and loaded by transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import alignlab
from alignlab.data.batching import whole
from alignlab.errors import ConfigError
from alignlab.exports import export
from alignlab.models.policy import Policy
from alignlab.records import EncodedGroup, Example
from run import run
from tests.contracts.test_methods import composed

PROMPT = "Tell a story about Tom and a kite."
ANSWERS = ("Tom was happy.", "Tom was sad and lost his kite. He went home.")


def rewards(policy: Policy) -> torch.Tensor:
    examples = policy.backbone.codec.examples([Example(PROMPT, text) for text in ANSWERS], ["a", "b"])
    with torch.no_grad():
        return policy.class_scores(whole([EncodedGroup("pair", tuple(examples))], policy.backbone.codec.pad))[0, :, 0]


def accuracy(folder: Path) -> dict[str, Any]:
    rows = json.loads((folder / "run" / "report.json").read_text())["results"]
    return next(row for row in rows if row["metric"] == "accuracy")


@pytest.mark.parametrize(("model", "tuner", "ends"), [("tiny_roberta", "red", ""), ("tiny", "lora", "\n")])
def test_others_load_a_reward_model_with_equal_rewards(model: str, tuner: str, ends: str, tmp_path: Path) -> None:
    run(composed(tmp_path, "reward", f"model={model}", f"tuner={tuner}"))
    policy = alignlab.load(tmp_path / "run", device="cpu")

    export(tmp_path / "run", tmp_path / "plain")

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    first, last = ("", "") if model == "tiny_roberta" else (tokenizer.bos_token, tokenizer.eos_token)
    for answer, reward in zip(ANSWERS, rewards(policy), strict=True):
        ids = tokenizer(f"{first}{PROMPT}{ends}{answer}{last}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert plain(ids).logits.item() == pytest.approx(reward.item(), abs=1e-5)
    assert plain.config.num_labels == 1


@pytest.mark.slow
def test_a_reward_model_learns_what_is_preferred(tmp_path: Path) -> None:
    words = ("model=tiny", "tuner=lora", "data.pairs=300", "data.test_pairs=64", "evaluation.pairs=64")

    run(composed(tmp_path, "reward", *words, "control.strengths=[1.0]", steps=40, batch=16))

    assert accuracy(tmp_path)["low"] > 0.7


def test_how_often_held_out_pairs_are_ordered_rightly_has_an_interval(tmp_path: Path) -> None:
    run(composed(tmp_path, "reward", "model=tiny_roberta", "tuner=red", "control.strengths=[1.0]"))

    found = accuracy(tmp_path)
    assert (found["suite"], found["n"]) == ("reward_pairs", 8)
    assert found["low"] < found["value"] < found["high"] or found["value"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("method=reward", "model=tiny_roberta", "model.kind=classifier"),
            "needs label set|method=reward needs response scores",
        ),
        (("method=reward", "model=tiny_t5"), "method=reward needs response scores.* set model.kind=reward"),
        (("method=sft", "model=tiny_roberta", "model.kind=reward"), "needs reward training.* take that, or another model.kind"),
        (("method=reward", "model=tiny_roberta", "data=toy_classes"), "needs pairs"),
    ],
)
def test_what_does_not_go_with_a_reward_model_is_refused(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(composed(tmp_path, words[0].removeprefix("method="), *words[1:]))
