"""What a run takes, estimated before it begins: the memory of a stage that trains, and its time by that of like runs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from alignlab.config import STORE, RunConfig
from alignlab.models.anatomy import shape_of
from alignlab.models.answers import GIB, Footprint
from alignlab.models.policy import CHUNK_TOKENS
from alignlab.tracking.ledger import Ledger, now
from alignlab.training import processes
from alignlab.training.stages import Stage, TrainStage, Work
from alignlab.training.trainable import BACKBONE, TUNER, named_parts, own_parts
from alignlab.tuners.lora import Update
from alignlab.tuners.tuner import Tuner

FLOAT32 = 4
"""Bytes of a number."""
MOMENTS = 2
"""Numbers that AdamW keeps of each one it trains."""
LOGITS = 3
"""What there is of a chunk of logits at once, in float32: they, their logarithms and the gradient."""
EVALUATION = "evaluation"
"""In the place of a stage's name: all of a run's evaluation."""
FOLDER = "paces"
"""Below the store that runs share: a file for each kind of stage, with the seconds of a step on each machine."""


@dataclass(frozen=True)
class TrainingNeed:
    """Bytes that a stage takes on each device, estimated. `trained`: numbers that it trains; `groups`, `tokens`: groups in a
    pass, and the tokens of one at most."""

    trained: int
    groups: int
    tokens: int
    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.activations

    def sentence(self) -> str:
        """For a plan."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.moments,
            f"activations of {self.groups} x {self.tokens} tokens": self.activations,
        }
        parts = " + ".join(f"{name} {amount(taken)}" for name, taken in named.items())
        return f"trains {self.trained:,} parameters; memory {amount(self.total)}, estimated: {parts}"


def training_need(stage: Stage, work: Work, config: RunConfig, model: PreTrainedModel, tuner: Tuner) -> TrainingNeed | None:
    """What a stage that trains takes; None for another. `model`: without weights, `tuner` in it.

    Parameters, their gradients and AdamW's two moments are counted; activations are those of the largest pass, every block's
    inputs and outputs without attention's, or one number per token, block and width where blocks are computed again. A model
    for comparison counts as further weights. Under `fsdp` all but activations is shared out.
    """
    if not isinstance(stage, TrainStage):
        return None
    itemsize = getattr(torch, config.model.dtype).itemsize
    added = sum(parameter.numel() for parameter in tuner.parameters()) if tuner.adds_parameters else 0
    weights = (model.num_parameters() - added) * itemsize + added * FLOAT32
    trained = gradients = 0
    for part in own_parts(stage.trains, named_parts(model, tuner)):
        if part.settings.learning_rate == 0:
            continue
        own = sum(parameter.numel() for parameter in part.parameters)
        if stage.update is not None and part.name == BACKBONE:
            own = _of_update(stage, model)
            weights += own * FLOAT32
            size = FLOAT32
        elif part.settings.dtype:
            size = getattr(torch, part.settings.dtype).itemsize
            weights += own * (size - itemsize)
        else:
            size = FLOAT32 if tuner.adds_parameters and part.name.partition(".")[0] == TUNER else itemsize
        trained, gradients = trained + own, gradients + own * size
    weights += model.num_parameters() * itemsize if stage.second is not None else 0
    groups = config.trainer.micro(stage.fit.batch, processes.count())
    members = len(work.groups[0].members)
    tokens = members * max(group.length for group in work.groups)
    among = processes.count() if config.trainer.extra.get("fsdp") else 1
    activations = _activations(config, model, groups * tokens, 2 if config.trainer.extra.get("bf16") else max(itemsize, 2))
    taken = (weights // among, gradients // among, MOMENTS * gradients // among)
    return TrainingNeed(trained, groups, tokens, *taken, activations)


def _activations(config: RunConfig, model: PreTrainedModel, tokens: int, itemsize: int) -> int:
    """Bytes that are kept of so many tokens until their gradient is computed."""
    footprint, text = Footprint.of(model, itemsize), model.config.get_text_config(decoder=True)
    blocks = shape_of(model).blocks * (2 if model.config.is_encoder_decoder else 1)
    kept = blocks * footprint.activations
    if config.trainer.gradient_checkpointing:
        kept = blocks * text.hidden_size * itemsize + footprint.activations
    return int(tokens * kept + min(tokens, CHUNK_TOKENS) * text.vocab_size * FLOAT32 * LOGITS)


def _of_update(stage: TrainStage, model: PreTrainedModel) -> int:
    """Parameters of the LoRA that a backbone is trained by."""
    assert stage.update is not None
    update = Update(model, stage.update)
    count = sum(parameter.numel() for parameter in update.parameters())
    update.remove()
    return count


@dataclass(frozen=True)
class Pace:
    """Seconds that a step, or an evaluation, took in a like run; `machine`: where."""

    seconds: float
    machine: str

    @property
    def here(self) -> str:
        """Where it was measured, for a sentence."""
        return "on this machine" if self.machine == this_machine() else f"on {self.machine}"


class Paces:
    """How long like runs took: the ledger of times in the folder of runs. Runs are alike that have the same model, tuner,
    batch, trainer and length of rows; rates and seeds do not count."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._ledger = Ledger(Path(config.paths.runs) / STORE / FOLDER)

    def of(self, stage: str) -> Pace | None:
        """Of a stage's step, or of EVALUATION as a whole: on this machine, else as last measured on another; None if no like
        run was made."""
        seen = self._seen(stage)
        machine = this_machine() if this_machine() in seen else next(reversed(seen), None)
        return None if machine is None else Pace(seen[machine]["seconds"], machine)

    def note(self, stage: str, seconds: float) -> None:
        """Writes down what was measured on this machine; the latest counts."""
        seen = {machine: each for machine, each in self._seen(stage).items() if machine != this_machine()}
        about = {group: getattr(self._config, group).name for group in ("method", "tuner", "model", "data")}
        content = {**about, "stage": stage, "machines": {**seen, this_machine(): {"seconds": seconds, "time": now()}}}
        self._ledger.write(self._file(stage), content, durable=False)

    def _seen(self, stage: str) -> dict[str, Any]:
        found = self._ledger.found(self._file(stage)).get("machines", {})
        return {machine: each for machine, each in found.items() if isinstance(each.get("seconds"), float)}

    def _file(self, stage: str) -> str:
        plain = self._config.plain
        rows = {key: value for key, value in plain["data"].items() if key in ("name", "max_tokens")}
        read: dict[str, Any] = {"model": plain["model"], "tuner": _without_rates(plain["tuner"]), "data": rows, "stage": stage}
        if stage == EVALUATION:
            read |= {key: plain[key] for key in ("evaluation", "control")} | {"suites": list(self._config.suites)}
        else:
            fit = self._config.method.fits().get(stage)
            read |= {"method": plain["method"]["name"], "batch": fit.batch if fit else None}
        read["trainer"] = {key: value for key, value in plain["trainer"].items() if not key.endswith("_every_steps")}
        digest = hashlib.sha256(json.dumps([read, processes.count()], sort_keys=True, default=str).encode()).hexdigest()
        return f"{digest[:24]}.json"


def _without_rates(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if not key.endswith("_rate")}


def this_machine() -> str:
    """The GPU that torch sees, or the processors of this host."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{os.cpu_count()} CPU cores of {socket.gethostname()}"


def amount(taken: int) -> str:
    """Bytes to three digits: 3 KiB, 71.2 MiB, 1.5 GiB."""
    for size, name in ((GIB, "GiB"), (2**20, "MiB")):
        if taken >= size:
            return f"{taken / size:.3g} {name}"
    return f"{taken / 2**10:.3g} KiB"


def lasting(seconds: float) -> str:
    """A length of time to two digits: 8 s, 12 min, 3.5 h."""
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {name}" if seconds / size < 10 else f"{seconds / size:.0f} {name}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
