"""The stage that learns: some parameters, one objective, one view of one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from alignlab.data.batching import Batches, Share, padding_share, plan
from alignlab.data.encode import Limits, encode
from alignlab.data.source import Source, drawn_from, shares
from alignlab.models.config import Shape
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import EncodedGroup, View
from alignlab.training import processes
from alignlab.training.arguments import arguments, check_extra
from alignlab.training.config import FitConfig, Length, TrainerConfig
from alignlab.training.method import Work
from alignlab.training.objectives import Objective, Shaped
from alignlab.training.parts import THE_TUNER, Trains, sentence
from alignlab.training.reference_models import Reference
from alignlab.training.second_model import SecondModel
from alignlab.training.session import Session
from alignlab.training.sharded import check_sharding
from alignlab.training.trainable import TrainableParts, load_result, training
from alignlab.training.trainer import FitTrainer, Step
from alignlab.tuners.update import UpdateShape


@dataclass(frozen=True)
class ScheduleSplit:
    """The lengths of the parts of a stream of batches; a stage takes those from `first` to before `behind`."""

    lengths: tuple[Length, ...]
    first: int
    behind: int


@dataclass(frozen=True)
class Truncation:
    """How much of a row a stage reads: a longer prompt is cut on the left, of a response come the first tokens; None = all."""

    prompt_tokens: int | None = None
    response_tokens: int | None = None

    def __call__(self, limits: Limits) -> Limits:
        """The limits, this window included."""
        return replace(limits, prompt_tokens=self.prompt_tokens, response_tokens=self.response_tokens)


EVERYTHING = Truncation()


@dataclass(frozen=True)
class TrainStage:
    """Trains some parts of the policy (`trains`) under `objective` on `view` of `split`.

    `course`: the lengths of all stages that cut their steps from one stream of batches; None = this stage alone.
    `cached_reference`: the model whose log-probabilities are computed beforehand; None leaves that to the objective. `through`:
    a LoRA by which the backbone is moved, None = every weight. `second`: what comes of the backbone is a model of its own,
    which this gets, and the backbone is put back. `sources`: those of a mixture that it draws from, with their weights; None =
    as the data's config says.
    """

    name: str
    split: str
    view: View
    objective: Objective
    fit: FitConfig
    cached_reference: Reference | None = None
    trains: Trains = field(default_factory=lambda: THE_TUNER)
    course: ScheduleSplit | None = None
    window: Truncation = EVERYTHING
    through: UpdateShape | None = None
    second: SecondModel | None = None
    sources: Mapping[str, float] | None = None

    @property
    def stays(self) -> bool:
        """Unless it trains a second model."""
        return self.second is None

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Encodes the split; with loss_on=all the response begins behind BOS, where the model predicts its prompt at all."""
        split, mixing = drawn_from(source, self.split, self.sources)
        groups, account = encode(split, self.view, codec.examples, self.window(limits))
        if self.fit.loss_on == "all" and codec.predicts_prompt:
            groups = [_from_the_start(group) for group in groups]
        if self.cached_reference is not None:
            self.cached_reference.check(codec, groups)
        dealt = f" over {processes.count()} processes" if processes.count() > 1 else ""
        note = (
            f"batch {self.fit.batch}{dealt}, learning rate {self.fit.learning_rate:g};"
            f" trains {sentence(self.trains, self.through, self.second)}"
        )
        begin, end, _ = self._schedule(len(groups))
        return Work(groups, account, end - begin, note, shares(groups, mixing))

    def check(self, work: Work, trainer: TrainerConfig, shape: Shape) -> None:
        """Raises ConfigError for a batch that cannot be dealt out in micro-batches and for what trainer.extra cannot have; and
        what the objective refuses."""
        trainer.micro(self.fit.batch, processes.count())
        check_extra(trainer.extra)
        check_sharding(trainer)
        if isinstance(self.objective, Shaped):
            self.objective.check(shape)

    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Trains, and leaves the result in the stage's folder."""
        folder = session.stage_folder(self.name)
        torch.manual_seed(session.seed)  # what a stage draws depends on its seed, not on the stages before it
        micro = session.trainer.micro(self.fit.batch, processes.count())
        shares = self._shares(work.groups, micro, session.seed, work.weights)
        groups = self._with_references(work.groups, shares, policy, session)
        batches = Batches(groups, shares, policy.backbone.codec.pad)
        session.log(self.name, 0, {"padding_share": padding_share(groups, shares)})
        slim = policy.without_activations(session.trainer.gradient_checkpointing)
        with self.training(policy) as parts, policy.only(parts.parameters()), slim:
            step = Step(policy, self.objective)
            watched = session.validation if session.validation and self.validated(session.trainer) else None
            args = arguments(self.fit, session, folder, work.steps, watched)
            at = watched.config.steps(work.steps, len(groups), self.fit.batch) if watched else frozenset()
            FitTrainer(step, self.name, parts, session, batches, args, watched, at).fit()
            policy.model.eval()
            processes.by_main_process(lambda: parts.save(folder / "result"))
        self._load_result(policy, folder)

    def restore(self, policy: Policy, folder: Path) -> None:
        """Loads the stage's result."""
        with self.training(policy) as parts:
            parts.load(folder / "result")
        self._load_result(policy, folder)

    def validated(self, trainer: TrainerConfig) -> bool:
        """Whether it is measured while it trains."""
        wanted = trainer.validation
        return wanted is not None and (self.stays if wanted.stages is None else self.name in wanted.stages)

    def training(self, policy: Policy) -> AbstractContextManager[TrainableParts]:
        """Inside, what this stage trains."""
        return training(policy, self.trains, self.through, self.second)

    def _load_result(self, policy: Policy, folder: Path) -> None:
        processes.main_process_first(lambda: load_result(policy, folder / "result", self.trains, self.through, self.second))

    def _shares(
        self, groups: Sequence[EncodedGroup], micro: int, seed: int, weights: Mapping[str, float] | None
    ) -> list[Share]:
        """This stage's micro-batches, behind those of the stages before it in its course."""
        begin, end, steps = self._schedule(len(groups))
        every = plan(groups, steps=steps, step_groups=self.fit.batch, micro_groups=micro, seed=seed, weights=weights)
        per_step = self.fit.batch // micro
        return every[begin * per_step : end * per_step]

    def _schedule(self, groups: int) -> tuple[int, int, int]:
        """The first step of this stage, the step behind its last, and the steps of its whole course."""
        course = self.course or ScheduleSplit((self.fit.length,), 0, 1)
        steps = [length.total_steps(groups) for length in course.lengths]
        return sum(steps[: course.first]), sum(steps[: course.behind]), sum(steps)

    def _with_references(
        self, groups: Sequence[EncodedGroup], shares: Sequence[Share], policy: Policy, session: Session
    ) -> Sequence[EncodedGroup]:
        reference, trained_in = self.cached_reference, [share.members for share in shares]
        if reference is None:
            return groups
        return processes.main_process_first(lambda: reference.added(groups, policy, session, self.name, trained_in))


def _from_the_start(group: EncodedGroup) -> EncodedGroup:
    return replace(group, members=tuple(replace(member, start=member.head) for member in group.members))
