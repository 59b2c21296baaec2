"""Models that a stage compares its policy with: references, whose log-probabilities are computed once beforehand, models that
are read batch by batch, and a second model, which takes the backbone's place for a pass."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from alignlab.data.batching import in_order
from alignlab.errors import ConfigError
from alignlab.files import PART, alone, code_version, content_keys
from alignlab.models.anatomy import context_of
from alignlab.models.answers import scored, scored_in
from alignlab.models.backbone import load, load_codec, skeleton
from alignlab.models.config import ModelConfig, TemplateConfig, decisive_files
from alignlab.models.policy import Pass, Policy
from alignlab.models.strength import Untuned
from alignlab.models.text import Codec
from alignlab.records import Batch, EncodedGroup

if TYPE_CHECKING:
    from alignlab.training.stages import Session

log = logging.getLogger(__name__)
ROWS_PER_PASS = 16
CHECKED_ROWS = 8
CHECKSUM = "sha256"
"""In the file's metadata: of the values."""
WAITING = "waits for another job that computes the same reference log-probabilities"
TOLERANCE_NATS = 1e-3
RELATIVE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""How far a stored value may lie from its recomputation: other batch shapes round differently, by dtype."""

Batching = Sequence[Sequence[int]]
"""Numbers of the groups of each batch."""


class Reference(ABC):
    """A model whose log-probabilities of all rows are computed once, before the stage begins."""

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Raises ConfigError where it cannot read these rows; no weights yet."""
        del codec, groups  # the policy itself reads them all

    @abstractmethod
    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """The groups, each with its reference log-probabilities in nats. `trained_in`: the batches of the training."""


@dataclass(frozen=True)
class Base(Reference):
    """The policy without its tuner."""

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """Kept for all runs."""
        weights = policy.backbone.fingerprint
        return with_references(groups, policy, session.store, weights=weights, inside=policy.off(), trained_in=trained_in)


@dataclass(frozen=True)
class Start(Reference):
    """The policy with its tuner, as the stage finds it."""

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """Kept for this stage alone."""
        store, weights = session.stage_folder(stage), policy.backbone.fingerprint
        return with_references(groups, policy, store, weights=weights, inside=nullcontext(), trained_in=trained_in)


@dataclass(frozen=True)
class OtherModel(Reference):
    """The model in a folder, with the vocabulary of the run's own. Its weights are in memory only while they are needed.
    `key`: how the config names it, up to the folder."""

    folder: Path
    key: str = field(default="method.reference=model:", compare=False)
    _loaded: list[Policy] = field(default_factory=list, compare=False, repr=False)

    def cache_key(self) -> list[str]:
        """The content of its files, wherever the folder lies."""
        return content_keys(decisive_files(self.folder))

    def places(self) -> tuple[str, ...]:
        """Where it lies."""
        return ("folder",)

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """Raises ConfigError for another vocabulary, and for rows that are longer than its context or hold ids beyond it."""
        config = self._config("float32", "eager")
        if load_codec(config).tokenizer.get_vocab() != codec.tokenizer.get_vocab():
            raise ConfigError(
                f"{self.key}{self.folder} has another vocabulary than the run's model, so its log-probabilities"
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
            raise ConfigError(f"{self.key}{self.folder} {what}; give another model, or set data.max_tokens.")

    def added(
        self, groups: Sequence[EncodedGroup], policy: Policy, session: Session, stage: str, trained_in: Batching
    ) -> list[EncodedGroup]:
        """Kept for all runs under the content of its files."""
        weights = self._content(str(policy.backbone.model.dtype))
        with self.ready(policy):
            (other,) = self._loaded
            return with_references(groups, other, session.store, weights=weights, inside=nullcontext(), trained_in=trained_in)

    @contextmanager
    def ready(self, policy: Policy) -> Iterator[None]:
        """Inside, it is in memory, on the device of another policy, in its dtype and with its attention."""
        own: Any = policy.backbone.model
        config = self._config(str(own.dtype).removeprefix("torch."), str(own.config._attn_implementation))
        with torch.autocast(own.device.type, enabled=False):  # what it can do is tried in its own dtype
            backbone = load(config, start="pretrained", seed=0, device=str(own.device))
            self._loaded.append(Policy(backbone, Untuned(), packing=policy.packing))
        try:
            yield
        finally:
            self._loaded.clear()

    def read(self, policy: Policy, batch: Batch) -> list[Pass]:
        """Its passes over a batch; while it is `ready`."""
        del policy
        (other,) = self._loaded
        return other.read(batch)

    def _content(self, dtype: str) -> str:
        """A hash of dtype and files."""
        return hashlib.sha256(json.dumps([dtype, self.cache_key()]).encode()).hexdigest()[:16]

    def _config(self, dtype: str, attention: str) -> ModelConfig:
        # Nothing is rendered: the rows are ids.
        template = TemplateConfig(format="{prompt}", chat=False, bos=None, arguments={})
        return ModelConfig("reference", None, "folder", str(self.folder), None, None, dtype, attention, False, template)


def with_references(
    groups: Sequence[EncodedGroup],
    policy: Policy,
    store: Path,
    *,
    weights: str,
    inside: AbstractContextManager[None],
    trained_in: Batching | None = None,
) -> list[EncodedGroup]:
    """The groups with each member's log-probability under the reference (`inside` makes the policy the reference).

    Ids decide the key, so tokenizer, template, data and length policy are in it; `weights` names the weights. What decides how
    a value is rounded and the version of the code count too, so that a run does not depend on which other came first. Eight
    rows of a stored file are computed again, and a file that disagrees or is damaged is not used.

    `trained_in`: the batches of the training. Another batch rounds otherwise, in bfloat16 by tenths of a nat per response, so
    below float32, or inside autocast to such a type, each group is computed in the batch that trains it first, and those that
    none trains have no reference.
    """
    batches = None if trained_in is None or _dtype(policy) == torch.float32 else trained_in
    path = store / "references" / f"{_key(groups, weights, _rounding(policy, batches))}.safetensors"
    rows = sorted({row for batch in batches for row in batch}) if batches else list(range(len(groups)))
    with torch.no_grad(), inside, alone(path.with_suffix(".lock"), WAITING, stays=False):
        stored = _stored(path)
        if stored is not None and _agrees(groups, rows, stored, policy):
            log.info("reference log-probabilities: read from the store")
            return _joined(groups, rows, stored)
        log.info("reference log-probabilities: computed once for %d rows", len(rows))
        total_NM = scored_in(policy, groups, batches or in_order(groups, ROWS_PER_PASS))[0]
        unfinished = path.with_suffix(PART)  # of a dead process, if there is one
        save_file({"total_NM": total_NM}, unfinished, {CHECKSUM: _checksum(total_NM)})
        unfinished.replace(path)
    return _joined(groups, rows, total_NM)


def _stored(path: Path) -> Tensor | None:
    """What an earlier run left; None where there is no file, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            total_NM: Tensor = file.get_tensor("total_NM")
            whole = (file.metadata() or {}).get(CHECKSUM) == _checksum(total_NM)
    except (OSError, SafetensorError):
        return None
    return total_NM if whole else None


def _checksum(total_NM: Tensor) -> str:
    return hashlib.sha256(total_NM.numpy().tobytes()).hexdigest()


def _rounding(policy: Policy, batches: Batching | None) -> list[object]:
    """What decides how a value is rounded, and by which code; `batches`: where it has to be the rounding of the training."""
    attention = policy.backbone.model.config._attn_implementation
    device = policy.backbone.device.type
    threads = torch.get_num_threads() if device == "cpu" else None
    cast = [str(_dtype(policy))] if torch.is_autocast_enabled(device) else []
    dealt = [] if batches is None else [[list(batch) for batch in batches], *cast]
    return [code_version(), policy.packing, attention, device, threads, *dealt]


def _dtype(policy: Policy) -> torch.dtype:
    """What passes are computed in: the weights' type, or that of an autocast around them."""
    device = policy.backbone.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else policy.backbone.model.dtype


def _key(groups: Sequence[EncodedGroup], weights: str, rounding: Sequence[object]) -> str:
    digest = hashlib.sha256(weights.encode())
    for group in groups:
        digest.update(json.dumps([[member.ids, member.start] for member in group.members]).encode())
    digest.update(json.dumps(rounding).encode())
    return digest.hexdigest()[:24]


def _agrees(groups: Sequence[EncodedGroup], rows: Sequence[int], stored_NM: Tensor, policy: Policy) -> bool:
    if stored_NM.shape != (len(groups), len(groups[0].members)):
        return False
    looked = list(rows[:: max(1, len(rows) // CHECKED_ROWS)][:CHECKED_ROWS])
    again_NM = scored(policy, [groups[row] for row in looked], ROWS_PER_PASS)[0]
    allowed_NM = TOLERANCE_NATS + RELATIVE_TOLERANCE[_dtype(policy)] * again_NM.abs()
    return bool(((again_NM - stored_NM[looked]).abs() <= allowed_NM).all())


def _joined(groups: Sequence[EncodedGroup], rows: Sequence[int], total_NM: Tensor) -> list[EncodedGroup]:
    joined = list(groups)
    for row in rows:
        joined[row] = replace(groups[row], reference=tuple(total_NM[row].tolist()))
    return joined


class SecondModel:
    """A second model beside the backbone: the same module with other weights, so its passes need no second network.

    It belongs to one run: the stage that trains it sets its weights when it has run or was restored.
    """

    def __init__(self) -> None:
        self._weights: list[tuple[nn.Parameter, Tensor]] = []

    def cache_key(self) -> str:
        """A constant, since the key of the stage that trains it covers its weights."""
        return "second model"

    def hold(self, weights: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """From now on it is the backbone with these weights in some of its parameters."""
        self._weights = list(weights)

    @contextmanager
    def instead_of(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Inside, the parameters may become another model's. On leaving this holds what they have become, unless an error
        ends it, and they are what they were."""
        with _in_place([(parameter, parameter.data.clone()) for parameter in parameters]):
            yield
            self.hold([(parameter, parameter.data) for parameter in parameters])

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Every pass inside is the second model's, the tuner being off. Raises ConfigError where it was not trained."""
        if not self._weights:
            raise ConfigError("the second model was not trained in this run; its stage must come before the one that needs it.")
        with _in_place(self._weights):
            yield

    def check(self, codec: Codec, groups: Sequence[EncodedGroup]) -> None:
        """It reads what the backbone reads."""
        del codec, groups

    def ready(self, policy: Policy) -> AbstractContextManager[None]:
        """It is in memory from its stage on."""
        del policy
        return nullcontext()

    def read(self, policy: Policy, batch: Batch) -> list[Pass]:
        """Its passes over a batch."""

        @contextmanager
        def inside() -> Iterator[None]:
            with policy.off(), self.inside():
                yield

        return policy.read(batch, inside)


@contextmanager
def _in_place(weights: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Inside, each parameter holds another value; afterwards it holds its own again, errors included."""
    starts = [parameter.data for parameter, _ in weights]
    try:
        for parameter, value in weights:
            parameter.data = value
        yield
    finally:
        for (parameter, _), start in zip(weights, starts, strict=True):
            parameter.data = start
