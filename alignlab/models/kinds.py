"""Kinds of backbone: what goes in, what comes out, and how a batch runs through one. Light: torch comes with `implementation`.

A kind is found from the checkpoint's own config.json, or named by `model.kind`. Nothing else asks its name: policies
call its methods, and a run is checked against the capabilities that it provides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.errors import ModelError
from alignlab.records import Example, Group, Loss, Record, View
from alignlab.registry import deferred

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from alignlab.models.backbone import Backbone
    from alignlab.models.packing import Layout
    from alignlab.models.text import Codec, Template
    from alignlab.records import Batch, LabelSet


class Kind(ABC):
    """How text, batches and weights of one kind of backbone fit together. It has no state.

    Shapes: R rows, T time, K target tokens, D width, V vocabulary, L layers, C classes.
    """

    auto: Any
    """The class of transformers that loads it."""
    scores_classes = False
    """Whether it gives scores to classes, and no likelihood to tokens."""
    apart = ""
    """Why the texts of a batch are not laid into a single row; empty where the probes decide."""

    @abstractmethod
    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Text to ids. `labels`: the classes that the texts of the data can have, None where that is not a closed set."""

    def choices(self, labels: LabelSet) -> View:
        """How a record is seen where its likeliest label is looked for (`Policy.label_scores`): its text with each label as
        response."""

        def view(record: Record) -> tuple[Group, ...]:
            return (Group(record.row, tuple(Example(record.prompt, name, second=record.second) for name in labels.names)),)

        return view

    @abstractmethod
    def layout(self, backbone: Backbone, batch: Batch, packing: str) -> Layout:
        """The rows of a forward pass, and where in them the target tokens are predicted. `packing`: which batches are laid into
        a single row where the backbone can: off | pairs (those whose members share a prefix) | all."""

    @abstractmethod
    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Input of `head` at each of K positions that predict a target token, K,D. Raises ModelError where there are none."""

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Logits, K,V. By default `hidden` gives logits already."""
        del backbone
        return hidden_KD

    def outputs(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Outputs of a pass, row after row: logits K,V, or class scores R,C."""
        return self.head(backbone, self.hidden(backbone, layout))

    def class_scores(self, backbone: Backbone, layout: Layout) -> Tensor:
        """Scores of the classes of each row before softmax, or one number, fp32, R,C. Raises ModelError where there are
        none."""
        raise ModelError(f"model={backbone.name} predicts tokens and has no class scores; take model.kind=classifier.")

    def class_loss(self, scores_RC: Tensor, batch: Batch) -> Loss:
        """The batch's share of the step's loss over classes; called where `scores_classes`; else raises ModelError."""
        raise ModelError("this kind of backbone has no class scores to train; take model.kind=classifier.")

    @abstractmethod
    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` (1 = the first) at the target tokens themselves, L,K,D. Raises ModelError where a kind
        has no such states."""


@dataclass(frozen=True)
class KindEntry:
    """A row of the table. `task_type`: PEFT's word. `provides`: capabilities that methods and suites may require. `requires`:
    those required of the others. `new_head`: a checkpoint may lack the head, which is then drawn from the seed. `one_output`:
    the head says one number, whatever labels the data has."""

    place: str
    task_type: str
    provides: frozenset[str]
    requires: frozenset[str] = frozenset()
    new_head: bool = False
    one_output: bool = False

    def implementation(self) -> Kind:
        """The kind itself; imports torch."""
        made: Kind = deferred(f"alignlab.models.{self.place}")()
        return made


KINDS: Mapping[str, KindEntry] = {
    "causal": KindEntry(
        "anatomy.Causal",
        "CAUSAL_LM",
        frozenset({"token likelihood", "generation", "continuation", "hidden states", "text in front of prompts"}),
    ),
    "seq2seq": KindEntry(
        "encoders.Seq2seq", "SEQ_2_SEQ_LM", frozenset({"token likelihood", "generation", "source apart from the answer"})
    ),
    "classifier": KindEntry(
        "encoders.Classifier", "SEQ_CLS", frozenset({"class scores"}), frozenset({"label set"}), new_head=True
    ),
    "reward": KindEntry(
        "encoders.RewardModel",
        "SEQ_CLS",
        frozenset({"response scores"}),
        frozenset({"pairs", "reward training"}),
        new_head=True,
        one_output=True,
    ),
    "masked": KindEntry("encoders.Masked", "FEATURE_EXTRACTION", frozenset(), frozenset({"corpus"})),
    "spans": KindEntry("encoders.Spans", "SEQ_2_SEQ_LM", frozenset(), frozenset({"corpus"})),
}
"""reward reads a prompt with its response; masked and spans are what encoders and encoder-decoder models are pretrained by
(method=pretrain)."""

_BY_ARCHITECTURE = (
    ("ForSequenceClassification", "classifier"),
    ("ForConditionalGeneration", "seq2seq"),
    ("ForCausalLM", "causal"),
    ("LMHeadModel", "causal"),
    ("ForMaskedLM", "classifier"),
    ("ForPreTraining", "classifier"),
    ("Model", "classifier"),
)
"""Ending of the name in a checkpoint's `architectures` -> its kind. A trunk without a head can be given a classifier's; the
first ending that fits decides."""


def kind_of(config: Mapping[str, Any]) -> str:
    """The name of a checkpoint's kind, from its config.json. Encoder-decoder models are seq2seq whatever they are called."""
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    architecture = next(iter(config.get("architectures") or ()), "ForCausalLM")
    if config.get("text_config") and str(architecture).endswith("ForConditionalGeneration"):
        return "causal"  # a language model that is also shown pictures
    return next((kind for ending, kind in _BY_ARCHITECTURE if str(architecture).endswith(ending)), "causal")


def task_type_of(model: Any) -> str:
    """PEFT's word for a model of transformers."""
    return _entry_of(model).task_type


def new_head(model: Any) -> list[str]:
    """Names of the parameters of a head that no pretraining has made: those of a classifier outside its trunk."""
    trunk = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(trunk)] if _entry_of(model).new_head else []


def _entry_of(model: Any) -> KindEntry:
    described = {
        "architectures": [type(model).__name__],
        "is_encoder_decoder": model.config.is_encoder_decoder,
        "text_config": getattr(model.config, "text_config", None),
    }
    return KINDS[kind_of(described)]
