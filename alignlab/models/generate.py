"""The dial inside transformers' own `generate`: a decoding function for `custom_generate`, so that all its arguments stay.

model.generate(**inputs, custom_generate=at_strength(model, [0.0, 1.0, 1.5]), do_sample=True, min_new_tokens=20)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateDecoderOnlyOutput

from alignlab.errors import ControlError
from alignlab.models.controls import Asked
from alignlab.models.knob import Knob, Term, as_strength, checked_strengths
from alignlab.models.streams import Streams

T = TypeVar("T")
CustomGenerate = Callable[..., "Tensor | GenerateDecoderOnlyOutput"]


def mixing(knob: Knob, strength: float | Sequence[float]) -> CustomGenerate:
    """A function for `generate(..., custom_generate=...)` that decodes at one strength, or at one per prompt; see `_decoding`.

    Raises ControlError for strengths that are not finite or of another number than the prompts.
    """
    values = checked_strengths(strength)

    def terms(rows: int, copies: int, device: torch.device) -> Sequence[Term]:
        each = _per_row(values, rows, copies) if isinstance(strength, Sequence) else values * rows
        return knob.terms(as_strength(each, device))

    return _decoding(knob, terms)


def mixing_classes(knob: Knob, control: Asked | Sequence[Asked]) -> CustomGenerate:
    """The same under one class, or one per prompt; a class is a name, or a mapping from names to weights.

    Raises ControlError for an unknown class and where the tuner has none.
    """
    controls = knob.controls
    if controls is None:
        raise ControlError("this adapter has a strength and no classes; take at_strength.")
    many = isinstance(control, Sequence) and not isinstance(control, str)
    given = controls.asked(control, len(control) if many else 1)

    def terms(rows: int, copies: int, device: torch.device) -> Sequence[Term]:
        each = _per_row(given, rows, copies) if many else given * rows
        return controls.terms(controls.asked(each, rows))

    return _decoding(knob, terms)


def _decoding(knob: Knob, terms: Callable[[int, int, torch.device], Sequence[Term]]) -> CustomGenerate:
    """A decoding function. terms: (rows, answers per prompt, device) -> the passes.

    Streams are mixed before any logits processor sees them, and all of a text's streams get the token that was drawn; with
    a single stream the result is that of `generate` itself, under the same seed. Caches and positions are the streams' own;
    transformers hands neither a `streamer` nor an `assistant_model` to custom functions. Raises ControlError for beams and
    other ways of searching, for hidden states and attentions, and for a cache that already holds something.
    """

    def mix(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **given: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        _refuse(generation_config, given)
        asked = terms(len(input_ids), generation_config.num_return_sequences or 1, input_ids.device)
        mask_BT = given.get("attention_mask")
        made = _Made(input_ids, torch.ones_like(input_ids) if mask_BT is None else mask_BT)
        with Streams(model, knob, asked, len(input_ids), input_ids.device) as streams:
            _run(made, streams, logits_processor, stopping_criteria, generation_config)
        return made.answer(generation_config)

    return mix


@dataclass
class _Made:
    """What has been generated so far: ids and mask B,T, and for each step the scores and the raw logits, B,V, if asked for."""

    ids_BT: Tensor
    mask_BT: Tensor
    scores: list[Tensor] = field(default_factory=list)
    raw: list[Tensor] = field(default_factory=list)

    def answer(self, config: GenerationConfig) -> Tensor | GenerateDecoderOnlyOutput:
        """As `generate` would return it."""
        if not config.return_dict_in_generate:
            return self.ids_BT
        kept: dict[str, Any] = {"scores": tuple(self.scores) or None, "logits": tuple(self.raw) or None}
        return GenerateDecoderOnlyOutput(sequences=cast("Any", self.ids_BT), **kept)


def _run(
    made: _Made, streams: Streams, processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig
) -> None:
    """Token by token, until every text has met a criterion."""
    # Where no pad is named, generate settles on the first end and keeps it here.
    pad = cast("Any", config)._pad_token_tensor
    ends = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    alive_B = torch.ones(len(made.ids_BT), dtype=torch.bool, device=made.ids_BT.device)
    step_BT = made.ids_BT
    while bool(alive_B.any()):
        logits_BV = streams.step(step_BT, made.mask_BT)
        scores_BV: Tensor = processors(cast("Any", made.ids_BT), cast("Any", logits_BV))
        if config.return_dict_in_generate and config.output_scores:
            made.scores.append(scores_BV)
        if config.return_dict_in_generate and config.output_logits:
            made.raw.append(logits_BV)
        drawn = config.do_sample
        token_B = torch.multinomial(scores_BV.softmax(-1), num_samples=1)[:, 0] if drawn else scores_BV.argmax(-1)
        step_BT = (torch.where(alive_B, token_B, pad) if ends else token_B)[:, None]
        made.ids_BT = torch.cat([made.ids_BT, step_BT], dim=1)
        made.mask_BT = torch.cat([made.mask_BT, torch.ones_like(step_BT)], dim=1)
        alive_B = alive_B & ~criteria(cast("Any", made.ids_BT), (scores_BV,))


def _refuse(config: GenerationConfig, given: dict[str, Any]) -> None:
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ControlError(
            f"a dial decodes one token at a time, by argmax or by a draw; {mode.value.replace('_', ' ')} is not offered, so set"
            " num_beams=1 and leave assistants out."
        )
    cache = given.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ControlError("a cache was given that one stream has filled; each stream needs its own, so give the whole text.")
    if config.output_hidden_states or config.output_attentions:
        raise ControlError("hidden states and attentions of a mixture of passes are not defined; leave them out.")
    if given.get("inputs_embeds") is not None:
        raise ControlError("give input_ids; embeddings are not copied to the streams.")


def _per_row(values: Sequence[T], rows: int, copies: int) -> list[T]:
    """One value per row; with several answers per prompt, transformers lays them side by side."""
    prompts = rows // copies
    if len(values) not in (rows, prompts):
        raise ControlError(f"{len(values)} strengths or classes were given for {prompts} prompts; give one, or one per prompt.")
    return list(values) if len(values) == rows else [value for value in values for _ in range(copies)]
