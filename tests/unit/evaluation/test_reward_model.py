"""A reward model beside the policy: its rewards are those of the plain classifier, under its own template."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from alignlab.data.source import Source, Split
from alignlab.data.toy.tokenizer import build_tokenizer
from alignlab.errors import AlignlabError, ConfigError, ModelError
from alignlab.evaluation import Point
from alignlab.evaluation.config import RewardModelConfig
from alignlab.evaluation.reward_model import RewardModel, Scorer, look, messages_of
from alignlab.evaluation.suite import EvaluationContext
from alignlab.models.backbone import Backbone
from alignlab.records import Record
from tests.unit.conftest import PAIRS, attached, checked, evaluation_config

CHAT = "{% for message in messages %}{{ message['role'] }} said {{ message['content'] }} . {% endfor %}"
TALK = "\n\nHuman: Tom ran\n\nAssistant: Ann sat\n\nHuman: Why\n\nAssistant:"
ASKED = [("Tom saw a dog", "the dog was sad"), ("Ann", "ran"), (TALK, "Tom ran home")]


def saved(folder: Path, labels: int = 1) -> tuple[Path, LlamaForSequenceClassification, PreTrainedTokenizerBase]:
    """A random classifier with a tokenizer that has a chat template."""
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        num_labels=labels,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def reward_config(folder: Path, **changes: Any) -> RewardModelConfig:
    return RewardModelConfig(
        **{"path": str(folder), "revision": None, "template": "chat", "against": None, "batch": 2, **changes}
    )


def reward_of(model: LlamaForSequenceClassification, ids: list[int]) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, 0])


def test_rewards_are_those_of_the_classifier_on_its_own_chat_template(tmp_path: Path) -> None:
    folder, model, tokenizer = saved(tmp_path)

    found = Scorer(reward_config(folder), "cpu").rewards(*zip(*ASKED))

    talks = [[{"role": "user", "content": prompt}] for prompt, _ in ASKED]
    said = (("user", "Tom ran"), ("assistant", "Ann sat"), ("user", "Why"))
    talks[2] = [dict(zip(("role", "content"), turn)) for turn in said]
    for (_, answer), talk, reward in zip(ASKED, talks, found, strict=True):
        written = tokenizer.apply_chat_template([*talk, {"role": "assistant", "content": answer}], tokenize=False)
        assert reward == pytest.approx(reward_of(model, tokenizer(written, add_special_tokens=False)["input_ids"]), abs=1e-5)


def test_batches_that_an_earlier_process_has_scored_are_not_scored_again(tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path)
    kept: dict[int, Any] = {}
    first = Scorer(reward_config(folder), "cpu").rewards(*zip(*ASKED), kept)
    one = {0: kept[0]}

    with patch.object(Scorer, "_computed", autospec=True, side_effect=Scorer._computed) as computed:
        again = Scorer(reward_config(folder), "cpu").rewards(*zip(*ASKED), one)

    assert again == first
    assert one == kept
    assert computed.call_count == len(kept) - 1 > 0


def test_a_template_of_text_writes_prompt_and_answer(tmp_path: Path) -> None:
    folder, model, tokenizer = saved(tmp_path)

    (found,) = Scorer(reward_config(folder, template="{answer} was said to {prompt}"), "cpu").rewards(*zip(*ASKED[:1]))

    expected = reward_of(model, tokenizer("the dog was sad was said to Tom saw a dog")["input_ids"])
    assert found == pytest.approx(expected, abs=1e-5)


def test_answers_tie_with_themselves_at_strength_zero_and_win_or_lose_elsewhere(llama: Backbone, tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path)
    context = sampled(llama, reward_config(folder, against="strength0"))
    suite = RewardModel(context)

    reward, zero = suite.measure(Point(0.0, "dial"))
    own, one = suite.measure(Point(1.0, "dial"))

    assert set(zero.items.values()) == {0.5}
    assert one.items == {
        name: 0.5 if own.items[name] == reward.items[name] else float(own.items[name] > reward.items[name])
        for name in own.items
    }


def test_prompts_without_a_preferred_answer_are_left_out_and_counted(llama: Backbone, tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path)
    context = sampled(llama, reward_config(folder, against="chosen"), extra="Nobody knew")

    _, won = RewardModel(context).measure(Point(1.0, "dial"))

    assert won.n == len(PAIRS)
    assert won.note == f"1 of {len(PAIRS) + 1} prompts left out: the data has no preferred answer to them"


def sampled(backbone: Backbone, config: RewardModelConfig, extra: str = "") -> EvaluationContext:
    records = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
    prompts = [*(record.prompt for record in records), *([extra] if extra else [])]
    source = Source("made", {"test": lambda: Split(records)}, evaluation_prompts=lambda: prompts)
    evaluation = evaluation_config(prompts=len(prompts), max_new_tokens=4, reward_model=config)
    return EvaluationContext(attached("lora", backbone), source, None, evaluation)


def test_a_prompt_without_speakers_is_one_message() -> None:
    assert messages_of("Tom saw a dog") == [{"role": "user", "content": "Tom saw a dog"}]


def test_a_classifier_of_several_classes_is_no_reward_model(tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path, labels=3)

    with pytest.raises(ModelError, match=r"has 3 outputs and must have one\.$"):
        Scorer(reward_config(folder), "cpu")


def test_what_gives_no_reward_is_seen_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    good, _, _ = saved(tmp_path / "good")
    shape, three = tmp_path / "shape", tmp_path / "three"
    shutil.copytree(good, shape, ignore=shutil.ignore_patterns("*.safetensors"))
    saved(three, labels=3)
    bare = tmp_path / "bare"
    shutil.copytree(good, bare, ignore=shutil.ignore_patterns("chat_template*"))
    cases = {
        shape: r"evaluation\.reward_model\.path=.*shape holds no weights \(\*\.safetensors\); give a whole checkpoint\.",
        three: r"evaluation\.reward_model\.path=.*three has 3 outputs and must have one\.",
        bare: r"evaluation\.reward_model\.path=.*bare has no chat template; set evaluation\.reward_model\.template to .*",
        Path("nobody/here"): r"evaluation\.reward_model\.path=nobody/here cannot be loaded as a sequence classifier \(no such"
        r" folder, and the hub cannot be reached: HF_HUB_OFFLINE is set\); give a folder with its weights and tokenizer\.",
    }

    look(evaluation_config(reward_model=reward_config(good)))
    for folder, said in cases.items():
        with pytest.raises(AlignlabError) as info:
            look(evaluation_config(reward_model=reward_config(folder)))
        assert re.fullmatch(said, str(info.value)), info.value


def test_a_template_without_its_places_is_refused() -> None:
    config = evaluation_config(reward_model=reward_config(Path("x"), template="{prompt} only"))

    with pytest.raises(ConfigError, match=r"^evaluation.reward_model.template='\{prompt\} only' must be chat, pair, or hold"):
        checked("evaluation", config)
