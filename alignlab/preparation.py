"""The plan of a run: everything that can be known before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from alignlab.config import GROUPS, RunConfig
from alignlab.data.classes import LABELLED, Classes, classed, find
from alignlab.data.encode import Limits, labelled, pair
from alignlab.data.halves import with_halves, with_validation
from alignlab.data.source import Source
from alignlab.errors import ConfigError, DataError
from alignlab.evaluation import SUITES
from alignlab.evaluation.config import FormConfig
from alignlab.evaluation.suite import HeldOut, Point, held_out
from alignlab.evaluation.sweep import points
from alignlab.evaluation.validation import Validated, validated
from alignlab.models.anatomy import context_of, expected, shape_of
from alignlab.models.answers import DECODE_ROWS, Budget, Footprint, Need
from alignlab.models.backbone import load_codec, skeleton
from alignlab.models.kinds import KINDS
from alignlab.models.packing import described
from alignlab.models.strength import Controls
from alignlab.models.text import Codec
from alignlab.records import LabelSet, View
from alignlab.registry import unknown
from alignlab.training.stages import Method, Work
from alignlab.training.trainable import check_parts

LEAST_TOKENS = 4
"""Of a row of text: BOS, something of a prompt, something of a response, EOS."""


@dataclass(frozen=True)
class Plan:
    """Everything that can be known before weights are loaded. `points`: where the result is measured. `control`: how classes
    are told to the model, where there are any. `learned`: parameters of the tuner; `parameters`: of the backbone. `labels`:
    what texts are told to be, where the data says so. `decoding`: what sampling the evaluation's texts takes at once, and the
    weights beside it, in bytes; None where no suite samples any. `rows`: how batches should be laid into rows; what is done is
    decided when there are weights to try. `validated`: what is measured while it trains."""

    config: RunConfig
    source: Source
    method: Method
    works: tuple[Work, ...]
    points: tuple[Point, ...]
    held_out: HeldOut | None
    learned: int
    parameters: int
    rows: str
    classes: Classes | None = None
    control: Any = None
    held_out_items: HeldOut | None = None
    labels: LabelSet | None = None
    held_out_labels: HeldOut | None = None
    decoding: tuple[Need, int] | None = None
    validated: Validated | None = None


def make_plan(config: RunConfig) -> Plan:
    """Reads and encodes the data and counts the parameters; no weights yet."""
    source = GROUPS["data"][config.data.name].build(config.data)
    method = GROUPS["method"][config.method.name].build(config.method)
    labels = source.labels() if source.labels else None
    codec = load_codec(config.model, labels)
    skeletal = skeleton(config.model, labels)
    source = _with_validation(source, config, method)
    if config.data.halves or config.data.flipped:
        source = with_halves(source, config.data, codec.examples)
    classes = find(config.control.classes, source) if isinstance(config.control, FormConfig) else None
    source = classed(source, classes) if classes else source
    rows = skeletal.get_input_embeddings().num_embeddings
    control = GROUPS["control"][config.control.name].build(config.control, classes, codec, rows)
    parameters, shape = skeletal.num_parameters(), shape_of(skeletal)
    tuner = GROUPS["tuner"][config.tuner.name].build(config.tuner, skeletal, control)
    learned = sum(parameter.numel() for parameter in tuner.parameters())
    for stage in method.stages:
        if stage.trains:
            check_parts(stage.trains, skeletal, tuner)
    limits = _limits(config, codec, context_of(skeletal), tuner.controls)
    works = tuple(stage.prepare(source, codec, limits) for stage in method.stages)
    for stage, work in zip(method.stages, works, strict=True):
        stage.check(work, config.trainer, shape)
    needed = frozenset().union(*(SUITES[suite].requires(config.evaluation) for suite in config.suites))
    items = held_out(source.split(LABELLED["test"]), labelled, codec, limits) if "classes" in needed else None
    pairs = held_out(source.split("test"), pair, codec, limits) if "pairs" in needed else None
    told = held_out(source.split("test"), _choices(config, labels), codec, limits) if labels and "label set" in needed else None
    watched = _validated(source, config, classes, labels, codec, limits)
    more = (items, pairs, watched.pairs, watched.items) if watched else (items, pairs)
    _refuse_reserved([*works, *filter(None, more)], tuner.controls)
    prompts = source.prompts() if config.suites else []
    sampled = any("sampled texts" in SUITES[suite].provides(config.evaluation) for suite in config.suites)
    where = tuple(points(config.control, classes.names if classes else None))
    rows_each = _rows_each(config, tuner, where)
    return Plan(
        config,
        source,
        method,
        works,
        points=where,
        held_out=pairs,
        learned=learned,
        parameters=parameters,
        rows=described(config.trainer.packing, expected(skeletal, config.model.attention), config.model.attention),
        classes=classes,
        control=control,
        held_out_items=items,
        labels=labels,
        held_out_labels=told,
        decoding=_decoding(config, codec, prompts, skeletal, tuner, rows_each) if sampled else None,
        validated=watched,
    )


def _choices(config: RunConfig, labels: LabelSet) -> View:
    """How the suite that scores labels sees a record."""
    return KINDS[config.model.found_kind].implementation().choices(labels)


def _with_validation(source: Source, config: RunConfig, method: Method) -> Source:
    """The source with the split that is measured on the way, if any. Raises ConfigError where no stage would be measured."""
    wanted = config.trainer.validation
    if wanted is None:
        return source
    names = [stage.name for stage in method.stages if stage.trains]
    for name in wanted.stages or ():
        if name not in names:
            raise ConfigError(unknown("stage in trainer.validation.stages", name, names))
    if not any(stage.validated(config.trainer) for stage in method.stages):
        raise ConfigError(f"method={config.method.name} has no stage that trainer.validation could watch; set it to null.")
    return with_validation(source, wanted.split, wanted.share, wanted.seed)


def _validated(
    source: Source, config: RunConfig, classes: Classes | None, labels: LabelSet | None, codec: Codec, limits: Limits
) -> Validated | None:
    wanted = config.trainer.validation
    if wanted is None:
        return None
    apart = replace(source, readers={"test": partial(source.split, wanted.split)}, evaluation_prompts=None, _read={})
    view = _choices(config, labels) if labels else None
    return validated(wanted.suite, wanted.rows, config.evaluation, config.control, apart, classes, labels, view, codec, limits)


def _refuse_reserved(encoded: Sequence[Work | HeldOut], controls: Controls | None) -> None:
    """Raises DataError for a row that holds an id which stands for a control."""
    if controls is None or not controls.reserved:
        return  # most runs; their rows need no second look
    reserved = set(controls.reserved)
    for part in encoded:
        for group in part.groups:
            if any(not reserved.isdisjoint(member.ids) for member in group.members):
                raise DataError(f"{group.row}: holds a token that stands for a control; set control.placeholders to others.")


def _rows_each(config: RunConfig, tuner: Any, where: Sequence[Point]) -> int:
    """Rows that a text is decoded in at most. Raises ConfigError for beams where passes are mixed."""
    asked = [(point, tuner.controls.mixtures(point.mixture, 1) if point.mixture else None) for point in where]
    passes = {point: len(tuner.controls.passes(each) if each else tuner.passes(point.strength)) for point, each in asked}
    beams = config.evaluation.beams
    mixed = [point.mixture or f"strength {point.strength:g}" for point, count in passes.items() if count > 1]
    if beams > 1 and mixed:
        raise ConfigError(
            f"evaluation.beams={beams} follow one pass, and at {', '.join(mixed)} passes are mixed; set evaluation.beams=1, or"
            " control.strengths to those of one pass."
        )
    return beams * max(passes.values())


def _decoding(
    config: RunConfig, codec: Codec, prompts: Sequence[str], skeletal: PreTrainedModel, tuner: Any, rows_each: int
) -> tuple[Need, int]:
    """What decoding the evaluation's texts takes at once, within the trainer's budget; and the weights, in bytes."""
    itemsize = getattr(torch, config.model.dtype).itemsize
    budget = Budget(Footprint.of(skeletal, itemsize), config.trainer.pass_gib)
    prefix = tuner.controls.longest if tuner.controls else 0
    new = config.evaluation.max_new_tokens
    room = context_of(skeletal) - (0 if skeletal.config.is_encoder_decoder else new)
    lengths = [prefix + len(ids) for ids in codec.prompts(prompts[: config.evaluation.prompts])]
    longest = max((length for length in lengths if length <= room), default=0)
    texts = budget.texts(longest, new, rows_each, min(DECODE_ROWS, len(lengths)))
    return budget.need(texts, longest, new, rows_each), budget.footprint.weights


def _limits(config: RunConfig, codec: Codec, context: int, controls: Controls | None) -> Limits:
    """How long a row of text may be, controls aside, so that rows do not depend on the control while the context has room.

    Raises ConfigError where a control in the text leaves no room for it.
    """
    taken = controls.longest if controls else 0
    room = context - taken
    if room < LEAST_TOKENS:
        raise ConfigError(
            f"a control of {taken} tokens leaves {room} of {context} for the text; shorten it (control.length, control.phrase)."
        )
    room = min(config.data.max_tokens or room, room)
    of_tasks = {name: (min(config.max_tokens or room, room), config.too_long) for name, config in config.data.tasks().items()}
    return Limits(room, config.data.too_long, tasks=of_tasks)
