"""The plan of a run: everything that can be known before weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from alignlab.config import GROUPS, RunConfig
from alignlab.data.classes import LABELLED, Classes, classed, find
from alignlab.data.encode import Account, Limits, labelled, pair
from alignlab.data.halves import with_halves, with_validation
from alignlab.data.mixture import MixtureConfig
from alignlab.data.source import LeftOut, Source
from alignlab.errors import ConfigError, DataError
from alignlab.evaluation import SUITES, Point, look
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.suite import HeldOut, Validated, held_out, validated
from alignlab.memory import TrainingNeed, training_need
from alignlab.models.anatomy import Footprint, check_answer, context_of, expected, shape_of
from alignlab.models.answers import DECODE_ROWS, Budget, Need
from alignlab.models.backbone import check_weights, load_codec, skeleton
from alignlab.models.config import Shape
from alignlab.models.kinds import KINDS
from alignlab.models.packing import described
from alignlab.models.strength import Inserted
from alignlab.models.text import Codec
from alignlab.records import NO_CLASS, EncodedGroup, LabelSet, View
from alignlab.registry import unknown
from alignlab.training.arguments import device_of
from alignlab.training.stages import Method, Work
from alignlab.training.trainable import check_parts, check_reach
from alignlab.tuners.config import FormConfig, StrengthConfig

LEAST_TOKENS = 4
"""Of a row of text: BOS, at least one token of a prompt and one of a response, EOS."""
SHOWN = 240
"""Characters of a prompt, and of a response, that a plan shows."""


@dataclass(frozen=True)
class Plan:
    """Everything that can be known before weights are loaded.

    `works`: the rows of each stage. `points`: where the result is measured. `learned`: parameters of the tuner; `parameters`:
    of the backbone. `rows`: how batches should be laid into rows; it is decided when there are weights to try. `classes`,
    `control`: of a control, and the form of its classes. `labels`: the label set of the data, if it has one. `held_out`,
    `held_out_items`, `held_out_labels`: pairs, responses and labelled texts of the test split, for the suites. `decoding`: what
    sampling the evaluation's texts takes at once, and the weights beside it, in bytes; None where no suite samples any.
    `validated`: what is measured while it trains. `fed`: one row as the first stage reads it. `needs`: memory that each stage
    takes, None for one that trains nothing.
    """

    config: RunConfig
    source: Source
    method: Method
    works: tuple[Work, ...]
    points: tuple[Point, ...]
    learned: int
    parameters: int
    rows: str
    held_out: HeldOut | None
    classes: Classes | None = None
    control: Any = None
    held_out_items: HeldOut | None = None
    labels: LabelSet | None = None
    held_out_labels: HeldOut | None = None
    decoding: tuple[Need, int] | None = None
    validated: Validated | None = None
    fed: str = ""
    needs: tuple[TrainingNeed | None, ...] = ()

    @property
    def accounts(self) -> dict[str, Account]:
        """The accounts of what the stages and the suites read, as a report names them."""
        held = {"held_out": self.held_out, "held_out_items": self.held_out_items, "held_out_labels": self.held_out_labels}
        stages = {stage.name: work.account for stage, work in zip(self.method.stages, self.works, strict=True)}
        return stages | {name: each.account for name, each in held.items() if each}

    def dropped(self) -> list[tuple[LeftOut, list[str]]]:
        """Every row that is dropped, once for each reason, and the accounts that count it."""
        found: dict[tuple[LeftOut, int], list[str]] = {}
        for name, account in self.accounts.items():
            seen = Counter[LeftOut]()
            for row in account.lost:
                found.setdefault((row, seen[row]), []).append(name)  # files of two folders may have one name
                seen[row] += 1
        return [(row, names) for (row, _), names in found.items()]


@dataclass(frozen=True)
class _Parts:
    """What a run is made of, on a backbone without weights (`skeletal`)."""

    source: Source
    method: Method
    labels: LabelSet | None
    codec: Codec
    skeletal: PreTrainedModel
    classes: Classes | None
    control: Any
    tuner: Any
    parameters: int
    shape: Shape


def make_plan(config: RunConfig) -> Plan:
    """Builds the parts without weights, then encodes the rows of every stage and suite. Raises ConfigError and DataError."""
    look(config.suites, config.evaluation)
    parts = _build(config)
    source, codec, skeletal, tuner = parts.source, parts.codec, parts.skeletal, parts.tuner
    limits = _limits(config, source, context_of(skeletal), tuner.inserted.tokens)
    works = tuple(stage.prepare(source, codec, limits) for stage in parts.method.stages)
    for stage, work in zip(parts.method.stages, works, strict=True):
        stage.check(work, config.trainer, parts.shape)
    needed = frozenset().union(*(SUITES[suite].requires(config.evaluation) for suite in config.suites))
    choices = KINDS[config.model.found_kind].implementation().choices(parts.labels) if parts.labels else None
    items = held_out(source.split(LABELLED["test"]), labelled, codec, limits) if "classes" in needed else None
    pairs = held_out(source.split("test"), pair, codec, limits) if "pairs" in needed else None
    texts = held_out(source.split("test"), choices, codec, limits) if choices and "label set" in needed else None
    watched = _validated(config, parts, choices, limits)
    more = (items, pairs, watched.pairs, watched.items) if watched else (items, pairs)
    encoded: list[Work | HeldOut] = [*works, *filter(None, more)]
    rows = [(group.row, member.ids) for each in encoded for group in each.groups for member in group.members]
    _refuse_reserved(rows, tuner.inserted)
    _refuse_unknown(rows, skeletal, codec)
    sampled = any("sampled texts" in SUITES[suite].provides(config.evaluation) for suite in config.suites)
    asked = _asked(source, config.evaluation, codec, skeletal, tuner.inserted) if sampled else []
    if watched and "sampled texts" in SUITES[watched.suite].provides(watched.config):
        _asked(watched.source, watched.config, codec, skeletal, tuner.inserted)
    where = tuple(points(config.control, parts.classes.names if parts.classes else None))
    rows_each = _rows_each(config, tuner, where)
    return Plan(
        config,
        source,
        parts.method,
        works,
        points=where,
        held_out=pairs,
        learned=sum(parameter.numel() for parameter in tuner.parameters()),
        parameters=parts.parameters,
        rows=described(config.trainer.packing, expected(skeletal, config.model.attention), config.model.attention),
        classes=parts.classes,
        control=parts.control,
        held_out_items=items,
        labels=parts.labels,
        held_out_labels=texts,
        decoding=_decoding(config, asked, skeletal, rows_each) if sampled else None,
        validated=watched,
        fed=_fed(works[0].groups[0], codec) if works else "",
        needs=tuple(
            training_need(stage, work, config, skeletal, tuner) for stage, work in zip(parts.method.stages, works, strict=True)
        ),
    )


def _build(config: RunConfig) -> _Parts:
    """Data, method, tokenizer, backbone without weights, control and tuner, in the order in which each needs the others."""
    source = GROUPS["data"][config.data.name].build(config.data)
    method = GROUPS["method"][config.method.name].build(config.method)
    device_of(config.trainer.device)
    if method.start == "pretrained":
        check_weights(config.model)
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
    for stage in method.stages:
        if stage.trains:
            check_parts(stage.trains, skeletal, tuner)
            compared = getattr(getattr(stage, "objective", None), "highest", None)
            highest = compared(shape) if compared else None
            if highest is not None:
                check_reach(stage.trains, skeletal, tuner, highest)
    return _Parts(source, method, labels, codec, skeletal, classes, control, tuner, parameters, shape)


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


def _validated(config: RunConfig, parts: _Parts, choices: View | None, limits: Limits) -> Validated | None:
    """What is measured while it trains, on the records of its own split."""
    wanted = config.trainer.validation
    if wanted is None:
        return None
    own = replace(parts.source, readers={"test": partial(parts.source.split, wanted.split)}, evaluation_prompts=None, _read={})
    suite, rows, evaluation = wanted.suite, wanted.rows, config.evaluation
    return validated(suite, rows, evaluation, config.control, own, parts.classes, parts.labels, choices, parts.codec, limits)


def _refuse_reserved(encoded: Sequence[tuple[str, Sequence[int]]], inserted: Inserted) -> None:
    """Raises DataError for the first (row, ids) that holds an id which stands for a vector of the tuner."""
    reserved = set(inserted.reserved)
    for row, ids in encoded if reserved else []:  # in most runs none is, and their rows need no second look
        if not reserved.isdisjoint(ids):
            raise DataError(
                f"{row}: holds a token that stands for a vector of the tuner; set placeholders of the control, or of the tuner,"
                " to others."
            )


def _refuse_unknown(encoded: Sequence[tuple[str, Sequence[int]]], skeletal: PreTrainedModel, codec: Codec) -> None:
    """Raises DataError for the first (row, ids) with an id that the embedding has no row for."""
    known = int(skeletal.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    for row, ids in encoded:
        if max(ids, default=0) >= known:
            token = codec.tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"{row}: holds the token {token!r} (id {max(ids)}), but the model's embedding has {known} rows; take it out of"
                " the text, or give the tokenizer that belongs to the model."
            )


def points(control: StrengthConfig | FormConfig, classes: Sequence[str] | None) -> list[Point]:
    """Where a policy is measured. Raises ConfigError for strengths between more than two classes."""
    if classes is None:
        return [Point(strength, control.name) for strength in control.strengths]
    if control.strengths and len(classes) != 2:
        raise ConfigError(f"control.strengths mix two classes, and there are {', '.join(classes)}; set control.strengths=[].")
    alone = [Point(1.0, name, name) for name in (*classes, NO_CLASS)]
    return alone + [Point(strength, "/".join(classes)) for strength in control.strengths]


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


def _asked(
    source: Source, evaluation: EvaluationConfig, codec: Codec, skeletal: PreTrainedModel, inserted: Inserted
) -> list[int]:
    """How many tokens each prompt has that texts are sampled for, a control's included. Raises ConfigError where none leaves
    room for an answer, since nothing could be measured then, and DataError for a token that no prompt may hold."""
    new, context = evaluation.max_new_tokens, context_of(skeletal)
    beside_source = skeletal.config.is_encoder_decoder
    if beside_source:
        check_answer(skeletal, new)
    prompts = codec.askable(source.prompts())
    prefix = inserted.tokens
    room = context - prefix - (0 if beside_source else new)
    fitting: list[tuple[int, ...]] = []
    shortest = context
    for start in range(0, len(prompts), evaluation.prompts):
        some = codec.prompts(prompts[start : start + evaluation.prompts])
        shortest = min(shortest, *map(len, some))
        fitting += [ids for ids in some if len(ids) <= room]
        if len(fitting) >= evaluation.prompts:
            break
    if not fitting:
        raise ConfigError(
            f"no text could be sampled: of {len(prompts)} prompts the shortest has {shortest} tokens, and with"
            f" evaluation.max_new_tokens={new} a context of {context} leaves room for {max(room, 0)}; lower it, take"
            " evaluation=quick, or leave out the suites that sample texts (evaluation.suites)."
        )
    del fitting[evaluation.prompts :]
    named = [("a prompt of the evaluation", ids) for ids in fitting]
    _refuse_reserved(named, inserted)
    _refuse_unknown(named, skeletal, codec)
    return [prefix + len(ids) for ids in fitting]


def _decoding(config: RunConfig, lengths: Sequence[int], skeletal: PreTrainedModel, rows_each: int) -> tuple[Need, int]:
    """What decoding the evaluation's texts takes at once, within the trainer's budget; and the weights, in bytes."""
    itemsize = getattr(torch, config.model.dtype).itemsize
    budget = Budget(Footprint.of(skeletal, itemsize), config.trainer.pass_gib)
    longest, new = max(lengths), config.evaluation.max_new_tokens
    texts = budget.texts(longest, new, rows_each, min(DECODE_ROWS, len(lengths)))
    return budget.need(texts, longest, new, rows_each), budget.footprint.weights


def _limits(config: RunConfig, source: Source, context: int, taken: int) -> Limits:
    """How long a row of text may be, without the `taken` tokens of the tuner, so that rows do not depend on a control while the
    context has room.

    Raises ConfigError where the tuner leaves no room for the text.
    """
    room = context - taken
    if room < LEAST_TOKENS:
        raise ConfigError(
            f"a control or prompt of {taken} tokens leaves {room} of {context} for the text; shorten it (control.length,"
            " control.phrase, tuner.retrieved, tuner.length)."
        )
    room = min(config.data.max_tokens or room, room)
    tasks = config.data.tasks() if isinstance(config.data, MixtureConfig) else {}
    of_tasks = {name: (min(config.max_tokens or room, room), config.too_long) for name, config in tasks.items()}
    return Limits(room, config.data.too_long, tasks=of_tasks, drops=source.drops)


def _fed(group: EncodedGroup, codec: Codec) -> str:
    """The first response of a group with its prompt, special tokens visible, the trained part in marks, both cut in the middle
    to SHOWN characters each."""
    member = group.members[0]
    before, trained = codec.shown(member)
    target = f" -> {member.target:g}" if member.target is not None else f">>>{_short(trained)}<<<"
    return f"{group.row}: {_short(before)}{target}"


def _short(text: str) -> str:
    visible = text.replace("\n", "\\n")
    return visible if len(visible) <= SHOWN else f"{visible[: SHOWN // 2]} ... {visible[-SHOWN // 2 :]}"
