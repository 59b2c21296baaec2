"""What a stage that trains takes of memory: counted from shapes alone, before any weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nlargest

import torch
from transformers import PreTrainedModel

from alignlab.config import GROUPS, RunConfig
from alignlab.data.batching import shared_tokens
from alignlab.errors import AlignlabError
from alignlab.models.anatomy import Footprint, shape_of
from alignlab.models.answers import GIB
from alignlab.models.backbone import skeleton
from alignlab.models.kinds import KINDS
from alignlab.models.policy import CHUNK_TOKENS
from alignlab.records import EncodedGroup
from alignlab.training import processes
from alignlab.training.arguments import device_of
from alignlab.training.config import SlurmLaunch
from alignlab.training.stages import Stage, TrainStage, Work
from alignlab.training.trainable import BACKBONE, TUNER, named_parts, own_parts
from alignlab.tuners.config import FormConfig
from alignlab.tuners.lora import Update
from alignlab.tuners.tuner import Tuner

LARGE = 80 * GIB
"""What a large GPU has (A100, H100), in bytes, where nothing tells those of a cluster."""
FLOAT32 = 4
"""Bytes of a number."""
MOMENTS = 2
"""Numbers that AdamW keeps of each one it trains."""
LOGITS = 3
"""What there is of a chunk of logits at once, in float32: they, their logarithms and the gradient."""


@dataclass(frozen=True)
class TrainingNeed:
    """Bytes that a stage takes on each device, estimated. `trained`: numbers that it trains; `groups`, `tokens`: groups in a
    pass, and the tokens of all of them at most; 0 where no rows were read, so that activations are not counted."""

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
        return self.held + self.activations

    def sentence(self) -> str:
        """For a plan."""
        return f"trains {self.trained:,} parameters; memory {amount(self.total)}, estimated: {self.parts}"

    @property
    def held(self) -> int:
        """All but activations."""
        return self.weights + self.gradients + self.moments

    @property
    def parts(self) -> str:
        """What it consists of."""
        named = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.moments}
        if self.groups:
            named[f"activations of {self.groups} rows with {self.tokens:,} tokens"] = self.activations
        return " + ".join(f"{name} {amount(taken)}" for name, taken in named.items())


def training_need(stage: Stage, work: Work, config: RunConfig, model: PreTrainedModel, tuner: Tuner) -> TrainingNeed | None:
    """What a stage that trains takes; None for another. `model`: without weights, `tuner` in it.

    Parameters, their gradients and AdamW's two moments are counted; activations are those of the largest pass, every block's
    inputs and outputs without attention's, or one number per token, block and width where blocks are computed again. A model
    for comparison counts as further weights. Under `fsdp` all but activations is shared out.
    """
    if not isinstance(stage, TrainStage):
        return None
    itemsize, held = getattr(torch, config.model.dtype).itemsize, _held(stage, config, model, tuner)
    groups = config.trainer.micro(stage.fit.batch, processes.count())
    tokens = _tokens(config, work.groups, groups)
    among = processes.count() if config.trainer.extra.get("fsdp") else 1
    activations = _activations(config, model, tokens, 2 if config.trainer.extra.get("bf16") else max(itemsize, 2))
    taken = (held.weights // among, held.gradients // among, held.moments // among)
    return replace(
        held, groups=groups, tokens=tokens, weights=taken[0], gradients=taken[1], moments=taken[2], activations=activations
    )


def need_of_config(config: RunConfig) -> TrainingNeed | None:
    """What the stage that holds most takes without activations, by the model's config alone: nothing is read but that. None
    where the config is not here, where nothing trains, and for a control, whose texts are made by the tokenizer."""
    if not (config.model.facts or config.model.is_here) or isinstance(config.control, FormConfig):
        return None
    try:
        stages = GROUPS["method"][config.method.name].build(config.method).stages
        model = skeleton(config.model)
        tuner = GROUPS["tuner"][config.tuner.name].build(config.tuner, model, None)
        needs = [_held(stage, config, model, tuner) for stage in stages if isinstance(stage, TrainStage)]
    except AlignlabError:  # the run will say it
        return None
    return max(needs, key=lambda need: need.held, default=None)


def misfit(need: TrainingNeed, config: RunConfig, gpus: int | None = None) -> str:
    """Why a stage does not fit a GPU or this machine, and what to do, in one sentence; "" where it fits, on a cluster's CPU,
    and under DeepSpeed, which may put what it likes elsewhere. The GPU is the one that is visible, or on a cluster, where a
    job gets so many `gpus`, one of LARGE."""
    cluster = isinstance(config.launch, SlurmLaunch)
    device = config.trainer.device if cluster else device_of(config.trainer.device)
    if (cluster and (device == "cpu" or not gpus)) or config.trainer.extra.get("deepspeed"):
        return ""
    if device == "cpu":
        return _misfit_here(need)
    has = LARGE if cluster else int(torch.cuda.get_device_properties(0).total_memory)
    sharded = bool(config.trainer.extra.get("fsdp"))
    taken = need.total if not (cluster and sharded) else need.held // (gpus or 1) + need.activations
    if taken <= has:
        return ""
    required = {what for group in ("method", "tuner") for what in _required(config, group)}
    ways = [
        *_ways_of_activations(need),
        "more GPUs (launch.gpus=N)" if sharded else "trainer=fsdp (it is spread over the GPUs of a job)",
        *(["tuner=lora (it trains less)"] if need.gradients > need.weights / 4 else []),
        *(["model.dtype=bfloat16"] if config.model.dtype == "float32" and "float32 weights" not in required else []),
    ]
    where = "a large one" if cluster else "the one here"
    return (
        f"does not fit a GPU: {amount(taken)} on each, estimated{'' if need.groups else ' without activations'}"
        f" ({need.parts}), and {where} has {amount(has)}; take {' or '.join(ways)}"
    )


def _misfit_here(need: TrainingNeed) -> str:
    """The same of the memory of this machine."""
    has = memory_here()
    if need.total <= has:
        return ""
    ways = " or ".join([*_ways_of_activations(need), "a smaller model", "a GPU"])
    return f"may not fit this machine: {amount(need.total)}, estimated, and it has {amount(has)}; take {ways}"


def _ways_of_activations(need: TrainingNeed) -> list[str]:
    """What takes less where most is taken by the texts of a pass, the longest ones."""
    if need.activations <= need.held:
        return []
    fewer = [f"trainer.micro_batch=N below {need.groups} (fewer at once)"] if need.groups > 1 else []
    return [*fewer, "data.max_tokens=N with data.too_long=drop (the longest row decides)"]


def memory_here() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _required(config: RunConfig, group: str) -> frozenset[str]:
    part = getattr(config, group)
    return GROUPS[group][part.name].requires(part)


def _held(stage: TrainStage, config: RunConfig, model: PreTrainedModel, tuner: Tuner) -> TrainingNeed:
    """Without activations, on one device."""
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
    return TrainingNeed(trained, 0, 0, weights, gradients, MOMENTS * gradients, 0)


def _tokens(config: RunConfig, groups: Sequence[EncodedGroup], count: int) -> int:
    """Of the largest pass with so many groups: those of its texts, where they are laid into one row, else as many for each as
    the longest has."""
    members = len(groups[0].members)
    together = config.trainer.packing == "all" or (config.trainer.packing == "pairs" and members > 1)
    if not together or KINDS[config.model.found_kind].implementation().apart:
        return count * members * max(group.length for group in groups)
    once = [sum(len(member.ids) for member in group.members) - (members - 1) * shared_tokens(group) for group in groups]
    repeated, more = divmod(count, len(once))  # a step of more groups than there are holds some again
    return repeated * sum(once) + sum(nlargest(more, once))


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


def amount(taken: int) -> str:
    """Bytes to three digits: 3 KiB, 71.2 MiB, 1.5 GiB."""
    for size, name in ((GIB, "GiB"), (2**20, "MiB")):
        if taken >= size:
            return f"{taken / size:.3g} {name}"
    return f"{taken / 2**10:.3g} KiB"
