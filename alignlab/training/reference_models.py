"""Which model a stage compares its policy with, where that is known beforehand: the base, the start, or another model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from alignlab.errors import ConfigError
from alignlab.files import file_keys
from alignlab.models.anatomy import context_of
from alignlab.models.backbone import load, load_codec, skeleton
from alignlab.models.config import ModelConfig, TemplateConfig
from alignlab.models.policy import Policy
from alignlab.models.strength import Untuned
from alignlab.models.text import Codec
from alignlab.records import EncodedGroup
from alignlab.training.references import Batching, with_references
from alignlab.training.session import Session


class Reference(Protocol):
    """A model that the log-probabilities of all rows are computed under, once and before the stage begins."""

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Raises ConfigError where it cannot read these rows; no weights yet."""

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """The groups with their reference."""


@dataclass(frozen=True)
class Base:
    """The policy without its tuner."""

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Nothing: it reads what the policy reads."""

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """Kept for all runs."""
        weights = policy.backbone.fingerprint
        return with_references(groups, policy, session.store, weights=weights, inside=policy.off(), trained_in=trained_in)


@dataclass(frozen=True)
class Start:
    """The policy with its tuner, as the stage finds it."""

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Nothing: it reads what the policy reads."""

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """Kept for this stage alone."""
        store, weights = session.stage_folder(stage), policy.backbone.fingerprint
        return with_references(groups, policy, store, weights=weights, inside=nullcontext(), trained_in=trained_in)


@dataclass(frozen=True)
class OtherModel:
    """The model in a folder, with the vocabulary of the run's own. Its weights are there only while they are needed."""

    folder: Path

    def described(self) -> dict[str, Any]:
        """The folder, and what tells apart the weights that lay in it."""
        return {"folder": str(self.folder), "weights": file_keys(sorted(self.folder.glob("*.safetensors")))}

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Raises ConfigError for another vocabulary, and for rows that are longer than its context or hold ids beyond it."""
        config = self._config("float32", "sdpa")
        if load_codec(config).tokenizer.get_vocab() != codec.tokenizer.get_vocab():
            raise ConfigError(
                f"method.reference=model:{self.folder} has another vocabulary than the run's model, so its log-probabilities"
                " would be of other texts; give a model with the same tokenizer."
            )
        model = skeleton(config)
        highest = max(max(member.ids) for group in groups for member in group.members)
        known = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        context = context_of(model)
        longest = max(groups, key=lambda group: group.length)
        if highest >= known or longest.length > context:
            what = f"has {known} embeddings and the rows hold the id {highest}"
            if longest.length > context:
                what = f"reads {context} tokens and {longest.row} has {longest.length}"
            raise ConfigError(f"method.reference=model:{self.folder} {what}; give another model, or set data.max_tokens.")

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """Kept for all runs under the content of its files."""
        with self._standing(policy) as other:
            return with_references(
                groups,
                other,
                session.store,
                weights=self._content(str(policy.backbone.model.dtype)),
                inside=nullcontext(),
                trained_in=trained_in,
            )

    @contextmanager
    def _standing(self, policy: Policy) -> Iterator[Policy]:
        """The model as a policy, on the device and in the dtype of the one that is trained."""
        own: Any = policy.backbone.model
        config = self._config(str(own.dtype).removeprefix("torch."), str(own.config._attn_implementation))
        yield Policy(load(config, start="pretrained", seed=0, device=str(own.device)), Untuned(), packing=policy.packing)

    def _content(self, dtype: str) -> str:
        digest = hashlib.sha256(dtype.encode())
        for file in [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]:
            with file.open("rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
        return digest.hexdigest()[:16]

    def _config(self, dtype: str, attention: str) -> ModelConfig:
        template = TemplateConfig(format="{prompt}", chat=False, bos=None)  # nothing is rendered: the rows are ids
        return ModelConfig("reference", None, "folder", str(self.folder), None, dtype, attention, False, template)
