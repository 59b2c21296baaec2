"""The stage that learns: some parameters, one objective, one view of one split."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from alignlab.data.batching import Batches, padding_share, plan
from alignlab.data.encode import Limits, encode
from alignlab.data.source import Source
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import EncodedGroup, View
from alignlab.training.config import FitConfig, TrainerConfig
from alignlab.training.method import Work
from alignlab.training.objectives import Objective
from alignlab.training.references import with_references
from alignlab.training.session import Session
from alignlab.training.trainer import FitTrainer, Step, arguments, check_extra
from alignlab.tuners.tuner import Part, Tuner
from alignlab.tuners.weights import BackboneWeights, digest


@dataclass(frozen=True)
class TrainStage:
    """Moves the tuner, or the backbone without it, under `objective` on `view` of `split`.

    `moves`: tuner | backbone. `cached_reference`: base (tuner off) or start (the stage's first weights) has its
    log-probabilities computed beforehand; None leaves that to the objective.
    """

    name: str
    split: str
    view: View
    objective: Objective
    fit: FitConfig
    cached_reference: str | None = None
    moves: str = "tuner"

    def check(self, trainer: TrainerConfig) -> None:
        """Raises ConfigError for a micro-batch that does not divide the batch and for unknown keys in trainer.extra."""
        trainer.micro(self.fit.batch)
        check_extra(trainer.extra)

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Encodes the split; with loss_on=all the response begins behind BOS."""
        groups, account = encode(source.split(self.split), self.view, codec.examples, limits)
        if self.fit.loss_on == "all":
            groups = [_from_the_start(group, limits.head_tokens) for group in groups]
        note = f"batch {self.fit.batch}, learning rate {self.fit.learning_rate:g}"
        return Work(groups, account, self.fit.total_steps(len(groups)), note)

    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Trains, and leaves the result in the stage's folder."""
        part, folder = self._part(policy), session.stage_folder(self.name)
        groups = self._with_references(work.groups, policy, session)
        micro = session.trainer.micro(self.fit.batch)
        shares = plan(groups, steps=work.steps, step_groups=self.fit.batch, micro_groups=micro, seed=session.seed)
        batches = Batches(groups, shares, policy.backbone.codec.pad)
        session.log(self.name, 0, {"padding_share": padding_share(groups, shares)})
        slim = policy.backbone.without_activations(session.trainer.gradient_checkpointing)
        with self._beside(policy), policy.only(part.parameters()), slim:
            step = Step(policy, self.objective)
            args = arguments(self.fit, session, folder, work.steps)
            FitTrainer(step, self.name, part, session, batches, args).fit()
        policy.model.eval()
        part.save(folder / "result")
        if self.moves == "backbone":
            policy.backbone.describe(folder / "result")
        self._announce(policy, folder)

    def restore(self, policy: Policy, folder: Path) -> None:
        """Loads the stage's result."""
        with self._beside(policy):
            self._part(policy).load(folder / "result")
        self._announce(policy, folder)

    def _part(self, policy: Policy) -> Part:
        tuner = _tuner_of(policy)
        return BackboneWeights(policy.model, tuner) if self.moves == "backbone" else tuner

    def _beside(self, policy: Policy) -> AbstractContextManager[None]:
        return _tuner_of(policy).aside() if self.moves == "backbone" else nullcontext()

    def _announce(self, policy: Policy, folder: Path) -> None:
        """Other weights get another fingerprint, by which references are cached, and are the base of what comes after."""
        if self.moves == "backbone":
            _tuner_of(policy).rests_on(folder / "result")
            policy.backbone = replace(policy.backbone, fingerprint=digest(folder / "result"))

    def _with_references(self, groups: Sequence[EncodedGroup], policy: Policy, session: Session) -> Sequence[EncodedGroup]:
        if self.cached_reference is None:
            return groups
        inside: AbstractContextManager[None] = policy.off() if self.cached_reference == "base" else nullcontext()
        store = session.store if self.cached_reference == "base" else session.stage_folder(self.name)
        return with_references(groups, policy, store, weights=policy.backbone.fingerprint, inside=inside)


def _from_the_start(group: EncodedGroup, head: int) -> EncodedGroup:
    return replace(group, members=tuple(replace(member, start=head) for member in group.members))


def _tuner_of(policy: Policy) -> Tuner:
    """A policy's knob is its tuner wherever there is something to learn."""
    tuner = policy.knob
    assert isinstance(getattr(tuner, "module", None), nn.Module)
    return tuner  # type: ignore[return-value]
