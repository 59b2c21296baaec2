"""A small random backbone of each kind, and one batch for it: what the contract of kinds runs over."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from alignlab.data.batching import whole
from alignlab.data.toy.tokenizer import build_encoder_tokenizer, build_seq2seq_tokenizer
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import KINDS
from alignlab.models.policy import Policy
from alignlab.models.text import Template
from alignlab.records import Batch, EncodedGroup, Example, LabelSet
from alignlab.tuners import TUNERS

LABELS = LabelSet(("cheerful", "gloomy", "neither"))
TEXTS = (
    ("Tom was happy. At last Tom went home.", "cheerful"),
    ("Anna was sad.", "gloomy"),
    ("A dog slept by the barn, and nobody could stop him.", "neither"),
)
STORIES = (
    ("Tell a story about Tom and a kite.", "Tom was happy."),
    ("Tell a short story about Anna and a drum.", "Anna felt sad with the drum. She went home."),
    ("Tell a story.", "A dog slept by the barn."),
)
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = 0.2
"""Standard deviation of new weights: with outputs of order 1, equality within a tolerance means something."""

TUNER_SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "bitfit": {},
    "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []},
    "ia3": {"targets": None, "feedforward": None},
    "red": {"edit": "both", "place": "ffn", "targets": None},
    "loreft": {"rank": 3, "layers": None},
    "prefix": {"length": 3, "init": "vocabulary"},
    "prompt": {"length": 3, "init": "vocabulary"},
}


@dataclass(frozen=True)
class Made:
    """A family of models, its kind, and how its batch's outputs are read."""

    kind: str
    family: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.family}"


CASES = (Made("classifier", "roberta"), Made("classifier", "bert"), Made("seq2seq", "t5"))
MORE = (
    *(Made("classifier", family) for family in ("distilbert", "electra", "deberta")),
    *(Made("seq2seq", family) for family in ("mt5", "bart")),
)
"""Families that are held to transformers' own answers, with LoRA."""


def backbone(made: Made) -> Backbone:
    """The same random weights on every call."""
    tokenizer = _tokenizer(made)
    torch.manual_seed(0)
    model = copy.deepcopy(_MODELS[made.family](tokenizer)).eval().requires_grad_(False)
    kind = KINDS[made.kind].implementation()
    codec = kind.codec(tokenizer, Template("{prompt}", chat=False, bos=False), LABELS)
    return Backbone(str(made), model, codec, "random", kind)


def attached(made: Made, tuner: str) -> Policy:
    """A policy whose tuner is new."""
    entry = TUNERS[tuner]
    config = entry.config(name=tuner, likelihood_rate=1e-2, preference_rate=1e-2, **TUNER_SETTINGS[tuner])
    own = backbone(made)
    torch.manual_seed(0)
    return Policy(own, entry.build(config, own.model))


def trained(made: Made, tuner: str) -> Policy:
    """A policy whose tuner holds numbers as a training could have left them."""
    policy = attached(made, tuner)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.tuner.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def batch(policy: Policy, made: Made) -> Batch:
    """Three ragged rows."""
    return whole(groups(policy, made), policy.backbone.codec.pad)


def groups(policy: Policy, made: Made) -> list[EncodedGroup]:
    """The same as ids."""
    pairs = TEXTS if made.kind == "classifier" else STORIES
    rows = [f"row {number}" for number in range(len(pairs))]
    encoded = policy.backbone.codec.examples([Example(*pair) for pair in pairs], rows)
    return [EncodedGroup(row, (example,)) for row, example in zip(rows, encoded, strict=True)]


def outputs(policy: Policy, made: Made) -> Tensor:
    """What the policy says of the batch: class scores, or the nats per token of each response."""
    of_batch = batch(policy, made)
    with torch.no_grad():
        if made.kind == "classifier":
            return policy.class_scores(of_batch)
        return policy.logprobs(of_batch).mean_GM


def _tokenizer(made: Made) -> PreTrainedTokenizerFast:
    return build_seq2seq_tokenizer() if made.kind == "seq2seq" else build_encoder_tokenizer()


def _special(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}


def _quiet(model: PreTrainedModel) -> PreTrainedModel:
    """Biases other than 0, so that a tuner of biases and an export have something to lose."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _roberta(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = RobertaConfig(**SIZE, **_special(tokenizer), initializer_range=WIDE, num_labels=3, type_vocab_size=1)
    return _quiet(RobertaForSequenceClassification(shape))


def _bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = BertConfig(**SIZE, **_special(tokenizer), initializer_range=WIDE, num_labels=3)
    return _quiet(BertForSequenceClassification(shape))


def _t5(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **_special(tokenizer))
    return T5ForConditionalGeneration(shape)


def _distilbert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, **_special(tokenizer), initializer_range=WIDE)
    shape.num_labels = 3
    return _quiet(DistilBertForSequenceClassification(shape))


def _electra(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = ElectraConfig(**SIZE, embedding_size=32, **_special(tokenizer), initializer_range=WIDE, num_labels=3)
    return _quiet(ElectraForSequenceClassification(shape))


def _deberta(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = DebertaV2Config(**SIZE, **_special(tokenizer), initializer_range=WIDE, num_labels=3)
    return _quiet(DebertaV2ForSequenceClassification(shape))


def _mt5(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    # At mT5's own spread of weights, logits are so large that fp32 has no 1e-5 left.
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 0.1}
    shape = MT5Config(**size, decoder_start_token_id=0, **_special(tokenizer))
    return MT5ForConditionalGeneration(shape)


def _bart(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shape = BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        decoder_start_token_id=2,
        init_std=WIDE,
        **_special(tokenizer),
    )
    return _quiet(BartForConditionalGeneration(shape))


_MODELS = {
    "roberta": _roberta,
    "bert": _bert,
    "t5": _t5,
    "distilbert": _distilbert,
    "electra": _electra,
    "deberta": _deberta,
    "mt5": _mt5,
    "bart": _bart,
}
