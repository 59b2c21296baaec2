"""The dial inside transformers' own `generate`: a decoding function for `custom_generate`, so that all its arguments stay.

model.generate(**inputs, custom_generate=at_strength(model, [0.0, 1.0, 1.5]), do_sample=True, min_new_tokens=20)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateDecoderOnlyOutput

from alignlab.errors import ControlError
from alignlab.models.knob import Knob, checked_strengths
from alignlab.models.streams import Streams

CustomGenerate = Callable[..., "Tensor | GenerateDecoderOnlyOutput"]


def mixing(knob: Knob, strength: float | Sequence[float]) -> CustomGenerate:
    """A function for `generate(..., custom_generate=...)` that decodes at one strength, or at one per prompt.

    Streams are mixed before any logits processor sees them, and all of a text's streams get the token that was drawn; with
    a single stream the result is that of `generate` itself, under the same seed. transformers hands neither a `streamer` nor
    an `assistant_model` to custom functions. Raises ControlError for strengths that are not finite or of another number than
    the prompts, for beams and other ways of searching, and for a cache that already holds something.
    """

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **given: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        _refuse(generation_config, given)
        texts = len(input_ids)
        strengths = _per_row(strength, texts, generation_config.num_return_sequences or 1)
        value = torch.tensor(strengths, device=input_ids.device) if len(set(strengths)) > 1 else strengths[0]
        mask_BT = given.get("attention_mask")
        mask_BT = torch.ones_like(input_ids) if mask_BT is None else mask_BT
        # Where no pad is named, generate settles on the first end and keeps it here.
        pad = cast("Any", generation_config)._pad_token_tensor
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        alive_B = torch.ones(texts, dtype=torch.bool, device=input_ids.device)
        step_BT, scores, raw = input_ids, [], []
        with Streams(model, knob, value, texts, input_ids.device) as streams:
            while bool(alive_B.any()):
                logits_BV = streams.step(step_BT, mask_BT)
                scores_BV = logits_processor(cast("Any", input_ids), cast("Any", logits_BV))
                scores.append(scores_BV)
                raw.append(logits_BV)
                if generation_config.do_sample:
                    token_B = torch.multinomial(scores_BV.softmax(-1), num_samples=1)[:, 0]
                else:
                    token_B = scores_BV.argmax(-1)
                if ends:
                    token_B = torch.where(alive_B, token_B, pad)
                step_BT = token_B[:, None]
                input_ids = torch.cat([input_ids, step_BT], dim=1)
                mask_BT = torch.cat([mask_BT, torch.ones_like(step_BT)], dim=1)
                alive_B = alive_B & ~stopping_criteria(input_ids, tuple(scores))
                if not (generation_config.return_dict_in_generate and generation_config.output_scores):
                    scores.clear()
                if not (generation_config.return_dict_in_generate and generation_config.output_logits):
                    raw.clear()
        if not generation_config.return_dict_in_generate:
            return input_ids
        kept: dict[str, Any] = {"scores": tuple(scores) or None, "logits": tuple(raw) or None}
        return GenerateDecoderOnlyOutput(sequences=cast("Any", input_ids), **kept)

    return decode


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
    if given.get("inputs_embeds") is not None:
        raise ControlError("give input_ids; embeddings are not copied to the streams.")


def _per_row(strength: float | Sequence[float], rows: int, copies: int) -> list[float]:
    """One strength per row; with several answers per prompt, transformers lays them side by side."""
    if isinstance(strength, (int, float)) or len(strength) == rows:
        return checked_strengths(strength, rows)
    return [value for value in checked_strengths(strength, rows // copies) for _ in range(copies)]
