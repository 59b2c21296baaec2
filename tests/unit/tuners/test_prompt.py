"""Prompt tuning: the policy's batches say what PEFT's own forward says, on every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from alignlab.errors import ModelError
from alignlab.models.export import export_plain
from alignlab.models.sampling import Sampling
from alignlab.models.strength import Prefix
from alignlab.records import Batch
from tests.conftest import backbone
from tests.contracts import kinds, table

CAUSAL = table.Case("prompt", "gpt2", {"length": 5, "init": "vocabulary"})
ROBERTA, BERT, T5 = kinds.CASES


def read_by_peft(model: PeftModel, batch: Batch, made: kinds.Made) -> Tensor:
    """Class scores, or nats per token of each response, by PEFT's forward, row by row."""
    rows = []
    for ids_T, start, length in zip(batch.ids_GMT[:, 0], batch.start_GM[:, 0], batch.length_GM[:, 0], strict=True):
        source, target = ids_T[None, :start], ids_T[None, start:length]
        given: dict[str, Any] = {"input_ids": source, "attention_mask": torch.ones_like(source)}
        if made.kind == "classifier":
            rows.append(model(**given).logits)
            continue
        begun = torch.cat([torch.zeros(1, 1, dtype=torch.long), target[:, :-1]], dim=1)
        logprobs = model(**given, decoder_input_ids=begun).logits.log_softmax(-1)
        rows.append(logprobs.gather(2, target[..., None]).mean().reshape(1))
    return torch.stack(rows)


@pytest.mark.parametrize("made", [ROBERTA, BERT, T5], ids=str)
def test_peft_loads_what_was_saved_and_says_the_same(made: kinds.Made, tmp_path: Path) -> None:
    policy = kinds.trained(made, "prompt")
    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]

    loaded = PeftModel.from_pretrained(kinds.backbone(made).model, str(tmp_path)).eval()

    with torch.no_grad():
        found = read_by_peft(loaded, kinds.batch(policy, made), made)
    assert torch.allclose(kinds.outputs(policy, made), found, atol=1e-5, rtol=0)


def test_peft_loads_a_causal_prompt_and_says_the_same(tmp_path: Path) -> None:
    policy = table.trained(CAUSAL, backbone("gpt2"))
    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]
    pair = table.batch(policy, table.PAIRS[:1])

    loaded = PeftModel.from_pretrained(backbone("gpt2").model, str(tmp_path)).eval()

    start, ids_1T = int(pair.start_GM[0, 0]), pair.ids_GMT[0, 0, None, : int(pair.length_GM[0, 0])]
    with torch.no_grad():
        logprobs = loaded(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).logits[:, 5:].log_softmax(-1)
        found = policy.logprobs(pair).total_GM[0, 0]
    expected = logprobs[:, start - 1 : -1].gather(2, ids_1T[:, start:, None]).sum()
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_an_answer_is_the_one_that_peft_generates(tmp_path: Path) -> None:
    policy = table.trained(CAUSAL, backbone("gpt2"))
    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]
    loaded = PeftModel.from_pretrained(backbone("gpt2").model, str(tmp_path)).eval()
    codec = policy.backbone.codec

    (answer,) = policy.respond(["Tell a story."], sampling=Sampling(8, 0.0, 1.0), seed=0)

    ids_1T = torch.tensor([codec.prompts(["Tell a story."])[0]])
    made_1T = loaded.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=8, do_sample=False)
    said = made_1T[0, ids_1T.shape[1] :].tolist()
    ends = [place for place, token in enumerate(said) if token in codec.ends]
    assert answer == codec.continuation(list(ids_1T[0]), said[: ends[0] if ends else None])


def test_half_strength_mixes_the_logits_with_and_without_the_vectors() -> None:
    policy = kinds.trained(ROBERTA, "prompt")
    with_vectors = kinds.outputs(policy, ROBERTA)
    with policy.at(0.0):
        without = kinds.outputs(policy, ROBERTA)

    with policy.at(0.5):
        half = kinds.outputs(policy, ROBERTA)

    assert torch.allclose(half, (with_vectors + without) / 2, atol=1e-6, rtol=0)


def test_a_text_has_room_beside_the_vectors() -> None:
    policy = table.attach(CAUSAL, backbone("gpt2"))

    assert policy.room == policy.backbone.context - 5
    assert policy.tuner.passes(1.0)[0].prefix == Prefix((-1, -2, -3, -4, -5))


def test_vectors_have_no_plain_export(tmp_path: Path) -> None:
    policy = table.trained(CAUSAL, backbone("gpt2"))

    with pytest.raises(ModelError, match="PROMPT_TUNING adapter does not merge into the weights; keep it beside its backbone"):
        export_plain(policy.tuner.module, None, tmp_path / "plain")  # type: ignore[attr-defined]
