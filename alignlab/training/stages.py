"""A method is an ordered list of stages over one tuner. What a stage is and is given, the stage that trains (`TrainStage`),
and how finished stages are found again by their keys."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from tempfile import mkdtemp
from typing import Any, Protocol

import torch

from alignlab.data.batching import Batches, Share, padding_share, plan
from alignlab.data.encode import EVERYTHING, Account, Limits, Truncation, encode
from alignlab.data.source import Source, drawn_from, shares
from alignlab.files import PART, alone, code_version, damage, places, remove_free, sealed
from alignlab.models.config import Shape
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import EncodedGroup, View
from alignlab.tracking import Tracker
from alignlab.tracking.ledger import CARD, Ledger
from alignlab.training import processes
from alignlab.training.arguments import arguments, autocast, check_arguments
from alignlab.training.config import FitConfig, Length, TrainerConfig
from alignlab.training.objectives import Objective
from alignlab.training.processes import Preemption
from alignlab.training.references import Reference, SecondModel
from alignlab.training.trainable import BACKBONE, THE_TUNER, TrainableParts, Trains, load_result, sentence, training
from alignlab.training.trainer import FitTrainer, Step
from alignlab.training.validation import ValidatedTrainer, Validation
from alignlab.tuners.lora import UpdateShape

log = logging.getLogger(__name__)
WEIGHTS, LOCK = ".safetensors", ".lock"
DONE = "done.json"
"""In a stage's folder; written last, with its key and a list of its files."""
KEY = "key.json"
"""In a stage's folder; written first: the stage that its checkpoints and its result are of."""
METRICS = "metrics.json"
"""What the stage has logged, so that a run that fetches it has its curves too."""


@dataclass(frozen=True)
class Session:
    """One run: where it writes, what it reports to, how it trains, its seed, the store shared by all runs, whether it was asked
    to leave, and what is measured while it trains, if anything."""

    folder: Path
    store: Path
    ledger: Ledger
    tracker: Tracker
    trainer: TrainerConfig
    device: str
    seed: int
    preemption: Preemption = field(default_factory=Preemption)
    validation: Validation | None = None
    paces: dict[str, float] = field(default_factory=dict)

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its checkpoints and its result."""
        return self.folder / "stages" / stage

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a stage to the ledger and the tracker, named stage/quantity."""
        named = {f"{stage}/{quantity}": value for quantity, value in values.items()}
        self.ledger.metrics(step, named)
        self.tracker.log(step, named)


@dataclass(frozen=True)
class Work:
    """What a stage is about to do: the rows it will see, their account, its optimiser steps and a note for the plan. `weights`:
    the fraction of its rows that it draws from each of several sources."""

    groups: Sequence[EncodedGroup]
    account: Account
    steps: int
    note: str
    weights: Mapping[str, float] | None = None


class Stage(Protocol):
    """A unit of work with a name: it trains, or it only measures states."""

    @property
    def name(self) -> str:
        """Unique within the method; also its folder and the first half of its metrics' names."""

    @property
    def trains(self) -> Trains:
        """The parts that it trains, by name; none where it only measures."""

    @property
    def stays(self) -> bool:
        """Whether the finished policy needs its result; that of the others is read by later stages only."""

    @property
    def of_the_backbone(self) -> bool:
        """Whether it trains every weight of the backbone and nothing else, from nothing but these weights."""

    def validated(self, trainer: TrainerConfig) -> bool:
        """Whether it is measured while it trains."""

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Reads and encodes its rows; no weights yet."""

    def check(self, work: Work, trainer: TrainerConfig, shape: Shape) -> None:
        """Raises ConfigError where the trainer's config, or the backbone's shape, does not fit this work; no weights yet."""

    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Does the work, from the last checkpoint if there is one."""

    def restore(self, policy: Policy, folder: Path) -> None:
        """Puts back what an earlier, finished run of this stage left in its folder."""


@dataclass(frozen=True)
class Method:
    """`start`: pretrained | random weights."""

    name: str
    stages: tuple[Stage, ...]
    start: str = "pretrained"


@dataclass(frozen=True)
class ScheduleSplit:
    """`lengths` of consecutive ranges of one stream of batches; a stage trains on those from `first` to before `end`."""

    lengths: tuple[Length, ...]
    first: int
    end: int


class MeasuringStage:
    """A stage that trains nothing, and whose result the finished policy does not need."""

    stays = False
    of_the_backbone = False

    @property
    def trains(self) -> Trains:
        """Nothing."""
        return {}

    def validated(self, trainer: TrainerConfig) -> bool:
        """Never: it does not train."""
        return False


@dataclass(frozen=True)
class TrainStage:
    """Trains some parts of the policy (`trains`) under `objective` on `view` of `split`.

    `schedule_split`: which steps of a stream of batches it takes, where several stages share one; None = it has its own.
    `cached_reference`: the model whose log-probabilities are computed beforehand; None leaves that to the objective. `update`:
    the shape of a LoRA by which the backbone is trained, None = every weight. `second`: gets the backbone's trained weights,
    and the backbone gets its own back. `sources`: those of a mixture that it draws from, with their weights or by name
    alone; None = as the data's config says.
    """

    name: str
    split: str
    view: View
    objective: Objective
    fit: FitConfig
    cached_reference: Reference | None = None
    trains: Trains = field(default_factory=lambda: THE_TUNER)
    schedule_split: ScheduleSplit | None = None
    truncation: Truncation = EVERYTHING
    update: UpdateShape | None = None
    second: SecondModel | None = None
    sources: Mapping[str, float] | tuple[str, ...] | None = None

    @property
    def stays(self) -> bool:
        """Unless it trains a second model."""
        return self.second is None

    @property
    def of_the_backbone(self) -> bool:
        """Where a LoRA, a second model or a reference takes part, the tuner's layers or passes do."""
        return set(self.trains) == {BACKBONE} and not (self.update or self.second or self.cached_reference)

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Encodes the split; with loss_on=all the response begins behind BOS, where the model predicts its prompt at all."""
        split, mixing = drawn_from(source, self.split, self.sources)
        groups, account = encode(split, self.view, codec.examples, self.truncation(limits))
        if self.fit.loss_on == "all" and codec.predicts_prompt:
            groups = [
                replace(group, members=tuple(replace(member, start=member.head) for member in group.members))
                for group in groups
            ]
        for check in (getattr(self.cached_reference, "check", None), getattr(self.objective, "check_rows", None)):
            if check is not None:
                check(codec, groups)
        dealt = f" over {processes.count()} processes" if processes.count() > 1 else ""
        beyond = f", more than the {len(groups)} groups, so a step holds some twice (a smaller one makes more steps)"
        again = beyond if self.fit.batch > len(groups) else ""
        first, end, _ = self._steps(len(groups))
        note = (
            f"batch {self.fit.batch}{again}{dealt}, learning rate {self.fit.rates(end - first)};"
            f" trains {sentence(self.trains, self.update, self.second)}"
        )
        return Work(groups, account, end - first, note, shares(groups, mixing))

    def check(self, work: Work, trainer: TrainerConfig, shape: Shape) -> None:
        """Raises ConfigError for a batch that cannot be dealt out in micro-batches and for what trainer.extra cannot have; and
        what the objective refuses."""
        trainer.micro(self.fit.batch, processes.count())
        check_arguments(self.fit, trainer, work.steps)
        if hasattr(self.objective, "check"):
            self.objective.check(shape)

    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Trains, and leaves the result in the stage's folder."""
        folder = session.stage_folder(self.name)
        torch.manual_seed(session.seed)  # what a stage draws depends on its seed, not on the stages before it
        micro_batches = self._micro_batches(work, session)
        groups, reference = work.groups, self.cached_reference
        if reference is not None:
            trained_in = [each.members for each in micro_batches]
            with autocast(session.trainer, policy.backbone.device):
                added = partial(reference.added, work.groups, policy, session, self.name, trained_in)
                groups = processes.main_process_first(added)
        batches = Batches(groups, micro_batches, policy.backbone.codec.pad)
        session.log(self.name, 0, {"padding_share": padding_share(groups, micro_batches)})
        recomputed = policy.without_activations(session.trainer.gradient_checkpointing)
        ready = getattr(self.objective, "ready", nullcontext)(policy)
        with ready, self.training(policy) as parts, policy.only(parts.parameters()), recomputed:
            step = Step(policy, self.objective)
            watched = session.validation if session.validation and self.validated(session.trainer) else None
            given = (
                step,
                self.name,
                parts,
                session,
                batches,
                arguments(self.fit, session.trainer, folder, work.steps, session.seed),
            )
            if watched:
                measured_at = watched.config.steps(work.steps, len(groups), self.fit.batch)
                ValidatedTrainer(*given, validation=watched, measured_at=measured_at).fit()
            else:
                FitTrainer(*given).fit()
            policy.model.eval()
            processes.by_main_process(lambda: parts.save(folder / "result"))
        self._load_result(policy, folder, described=False)

    def restore(self, policy: Policy, folder: Path) -> None:
        """Loads the stage's result."""
        with self.training(policy) as parts:
            parts.load(folder / "result")
        self._load_result(policy, folder, described=True)

    def validated(self, trainer: TrainerConfig) -> bool:
        """Whether it is measured while it trains."""
        wanted = trainer.validation
        return wanted is not None and (self.stays if wanted.stages is None else self.name in wanted.stages)

    def training(self, policy: Policy) -> AbstractContextManager[TrainableParts]:
        """Inside, what this stage trains."""
        return training(policy, self.trains, self.update, self.second)

    def _load_result(self, policy: Policy, folder: Path, *, described: bool) -> None:
        result = folder / "result"
        processes.main_process_first(
            lambda: load_result(policy, result, self.trains, self.update, self.second, described=described)
        )

    def _micro_batches(self, work: Work, session: Session) -> list[Share]:
        """This stage's micro-batches, from its first step in the stream of batches on."""
        micro = session.trainer.micro(self.fit.batch, processes.count())
        first, end, steps = self._steps(len(work.groups))
        every = plan(
            work.groups,
            steps=steps,
            step_groups=self.fit.batch,
            micro_groups=micro,
            seed=session.seed,
            weights=work.weights,
        )
        per_step = self.fit.batch // micro
        return every[first * per_step : end * per_step]

    def _steps(self, groups: int) -> tuple[int, int, int]:
        """The first step of this stage, the step after its last, and the steps of the whole stream of batches."""
        split = self.schedule_split or ScheduleSplit((self.fit.length,), 0, 1)
        steps = [length.total_steps(groups) for length in split.lengths]
        return sum(steps[: split.first]), sum(steps[: split.end]), sum(steps)


def stage_key(stage: Stage, work: Work, before: Mapping[str, Any]) -> str:
    """What decides a stage's result, as 24 hex digits: two jobs with the same key would leave the same bits.

    `before`: what the stage starts from: weights, tuner, seed, the trainer's config, the keys of earlier stages. Rows count by
    their ids, so tokenizer, template and data are in the key, and what only the evaluation reads is not. The sources of
    alignlab and the versions of its dependencies count too.
    """
    parts = [cache_key(stage), cache_key(before), work.steps, cache_key(work.weights), code_version()]
    digest, rows = hashlib.sha256(json.dumps(parts).encode()), hashlib.sha256()
    for group in work.groups:
        members = [[m.ids, m.start, m.control, m.target] for m in group.members]
        rows.update(json.dumps([group.row, group.task, members]).encode())
    digest.update(rows.digest())
    return digest.hexdigest()[:24]


def cache_key(thing: Any) -> Any:
    """A thing as JSON that is equal in every process, and differs where any part differs.

    A dataclass counts by its class, by the fields that it is compared by and that are no places, and by what its method
    `cache_key` adds; another object by its class and `cache_key()`; a function by its name. Raises TypeError for an object with
    none of these.
    """
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, PurePath):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [cache_key(each) for each in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(cache_key(each) for each in thing)
    if isinstance(thing, Mapping):
        return {str(key): cache_key(value) for key, value in sorted(thing.items(), key=lambda item: str(item[0]))}
    if isinstance(thing, functools.partial):
        return [cache_key(thing.func), cache_key(thing.args), cache_key(thing.keywords)]
    if callable(thing) and hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    name = cache_key(type(thing))
    own = [cache_key(thing.cache_key())] if hasattr(thing, "cache_key") else []
    if dataclasses.is_dataclass(thing):
        compared = [each.name for each in dataclasses.fields(thing) if each.compare and each.name not in places(thing)]
        return [name, {each: cache_key(getattr(thing, each)) for each in compared}, *own]
    if own:
        return [name, *own]
    raise TypeError(f"{name} does not say what decides its result; give it a method `cache_key`.")


class StageStore:
    """Finished stages, one folder per `stage_key` below `folder`; safe among jobs that run at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def holds(self, key: str) -> bool:
        """Whether the stage of this key has been finished by any job."""
        return (self._folder / key / DONE).is_file()

    def damage(self, key: str) -> str:
        """What is wrong with a kept stage; empty where it is what was kept."""
        return damage(self._folder / key, DONE)

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """One job at a time per key: a second one waits, and then finds what the first has kept. A job that dies lets go, and
        the next one removes what it had begun to keep."""
        with alone(self._folder / f"{key}{LOCK}", "waits for another job that computes the same stage", stays=False):
            for left in self._folder.glob(f"{key}.*{PART}"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    def tidy(self) -> None:
        """Removes the locks of dead jobs; those of living ones stay."""
        remove_free(self._folder, f"*{LOCK}")

    def keep(self, key: str, stage: Path) -> None:
        """Keeps what a finished stage of a run has left, without its checkpoints, in the place of a damaged one; appears whole
        or not at all. A full disk is a warning: the stage is in the run's own folder."""
        if self.holds(key):
            if not self.damage(key):
                return
            shutil.rmtree(self._folder / key, ignore_errors=True)
        scratch = Path(mkdtemp(prefix=f"{key}.", suffix=PART, dir=self._folder))
        try:
            _copy(stage, scratch)
            scratch.rename(self._folder / key)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not self.holds(key):  # else another job was faster, with the same result
                log.warning("the stage is not kept for other runs (%s)", error.strerror)

    def fetch(self, key: str, stage: Path) -> None:
        """Puts a kept stage into a run's folder, as if the run had finished it; `done.json` comes last. Its files name others
        of the run by relative paths, so nothing in them is changed."""
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        _copy(self._folder / key, stage)


def _copy(source: Path, target: Path) -> None:
    """What a finished stage's mark lists, and then the mark. Weights are written once and never changed, so they are hard links
    where the file system has them; a run may write the others again."""
    found = sealed(source, DONE) or {"files": ()}
    for name in [*found["files"], DONE]:
        file, place = source / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == WEIGHTS:
            try:
                os.link(file, place)
                continue
            except OSError:
                log.debug("%s: no hard links here", place)
        shutil.copyfile(file, place, follow_symlinks=False)


def of_result(name: Path) -> bool:
    """Whether a file of a stage's folder, by its path inside, is part of what the stage leaves: its checkpoints are not, nor
    is the card of an adapter, which is written again with the results of each run."""
    return not name.parts[0].startswith("checkpoint-") and name.name != CARD


def begin(folder: Path, key: str) -> None:
    """Names what will be in a stage's folder, before anything is."""
    Ledger(folder).write(KEY, {"key": key})


def stale(folder: Path, key: str) -> str:
    """Why what is in a stage's folder must not be used for the stage of this key; empty where it may, or where nothing is."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return ""
    if Ledger(folder).found(KEY).get("key") != key:
        return "is of other code, libraries, data or settings"
    wrong = damage(folder, DONE) if (folder / DONE).exists() else ""
    return f"is damaged ({wrong})" if wrong else ""


def set_aside(folder: Path) -> Path:
    """Renames a stage's folder to the first free `NAME.aside-N`."""
    number = next(number for number in itertools.count(1) if not _aside(folder, number).exists())
    return folder.rename(_aside(folder, number))


def _aside(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.aside-{number}")
