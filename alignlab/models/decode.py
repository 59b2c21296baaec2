"""Generation at a strength or under a class: one loop, inside transformers' `generate`, for policies and for models that PEFT
loaded.

model.generate(**inputs, custom_generate=at_strength(model, [0.0, 1.0, 1.5]), do_sample=True, min_new_tokens=20)

A text has a row for each pass of weight other than 0: streams, mixed at the logits before all else. Shapes: B texts, R
rows of a pass, T tokens so far, S tokens of a source (what an encoder reads), V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain, count
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from alignlab.errors import ControlError, ModelError
from alignlab.models.anatomy import check_answer, objection, one_member, probe_batch, quietly, row_by_row
from alignlab.models.strength import HasStrength, Prefix, Strength, Untuned, WeightedPass, insert_prefix_rows

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone
    from alignlab.models.packing import Layout
    from alignlab.records import Batch

CustomGenerate = Callable[..., Any]
OFFERED = tuple(GenerationMode[name] for name in ("GREEDY_SEARCH", "SAMPLE", "BEAM_SEARCH", "BEAM_SAMPLE"))
PassesOfRows = Callable[[int, int, torch.device], Sequence[WeightedPass]]
"""(rows, answers or beams per prompt, device) -> the passes."""


def decoding(
    tuner: HasStrength,
    passes: PassesOfRows,
    streamer: BaseStreamer | None = None,
    uniform_BT: Tensor | None = None,
    top_p: float = 1.0,
) -> CustomGenerate:
    """A decoding function. Streams are mixed before any logits processor sees them, and all of a text's streams get the token
    that was drawn; with a single stream the result is that of `generate` itself, under the same seed. Beams are transformers'
    own, and need a single stream. Ids that stand for a control are never chosen. transformers hands its `streamer` to no custom
    function, so `streamer` is given here; it gets the prompt first, as from `generate`. uniform_BT: a number in [0, 1) per row
    and step, so that a text does not depend on what else is in its batch; None: torch.multinomial, as in `generate`.

    Raises ControlError for beams over a mixture, other ways of searching, hidden states, attentions, and a cache that already
    holds something; ConfigError for more new tokens than the decoder beside an encoder has positions.
    """

    def mix(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor | None = None,
        **given: Any,
    ) -> Any:
        _refuse(generation_config, inputs_tensor, given)
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        asked = passes(len(input_ids), copies, input_ids.device)
        source = None
        mask_BT = given.get("attention_mask")
        if model.config.is_encoder_decoder:
            check_answer(model, (generation_config.max_length or 1) - 1)  # which counts the start
            source, mask_BT = _source(input_ids, inputs_tensor, mask_BT), given.get("decoder_attention_mask")
        mask_BT = torch.ones_like(input_ids) if mask_BT is None else mask_BT
        processors = LogitsProcessorList(logits_processor)
        if tuner.inserted.reserved:
            processors.insert(0, SuppressTokensLogitsProcessor(tuner.inserted.reserved))
        search = _Search(model, input_ids, mask_BT, source, processors, stopping_criteria, generation_config)
        if generation_config.num_beams and generation_config.num_beams > 1:
            if len(asked) > 1 or asked[0].weight != 1.0:
                raise ControlError(
                    "beam search follows one pass, and here passes are mixed; ask at strength 0 or 1 or for one class, the"
                    " same for all prompts, or set num_beams=1."
                )
            if streamer is not None:
                raise ControlError("beam search has its text only at the end, so it cannot stream; leave the streamer out.")
            return search.beams(tuner, asked[0], given)
        with Streams(model, tuner, asked, len(input_ids), input_ids.device, source) as streams:
            return search.steps(streams, streamer, uniform_BT, top_p)

    return mix


@dataclass(frozen=True)
class _Search:
    """What `generate` hands to a decoding function: ids and mask of the texts so far, B,T, and their sources, B,S."""

    model: PreTrainedModel
    ids_BT: Tensor
    mask_BT: Tensor
    source: tuple[Tensor, Tensor] | None
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig

    def steps(self, streams: Streams, streamer: BaseStreamer | None, uniform_BT: Tensor | None, top_p: float) -> Any:
        """Token by token, until every text has met a criterion."""
        # Where no pad is named, generate settles on the first end and keeps it here.
        pad = cast("Any", self.config)._pad_token_tensor
        ends = any(hasattr(criterion, "eos_token_id") for criterion in self.criteria)
        ids_BT, mask_BT, step_BT = self.ids_BT, self.mask_BT, self.ids_BT
        alive_B = torch.ones(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
        kept: dict[str, list[Tensor]] = {"scores": [], "logits": []}
        wanted = [name for name in kept if self.config.return_dict_in_generate and getattr(self.config, f"output_{name}")]
        if streamer is not None:
            streamer.put(ids_BT.cpu())
        for step in count():
            logits_BV = streams.step(step_BT, mask_BT)
            scores_BV: Tensor = self.processors(cast("Any", ids_BT), cast("Any", logits_BV))
            for name, made_BV in (("scores", scores_BV), ("logits", logits_BV)):
                kept[name] += [made_BV] if name in wanted else []
            if not self.config.do_sample:
                token_B = scores_BV.argmax(-1)
            elif uniform_BT is None:
                token_B = torch.multinomial(scores_BV.softmax(-1), num_samples=1)[:, 0]
            else:
                token_B = drawn(scores_BV, top_p, uniform_BT[:, step])
            step_BT = (torch.where(alive_B, token_B, pad) if ends else token_B)[:, None]
            ids_BT = torch.cat([ids_BT, step_BT], dim=1)
            mask_BT = torch.cat([mask_BT, torch.ones_like(step_BT)], dim=1)
            if streamer is not None:
                streamer.put(step_BT[:, 0].cpu())
            alive_B = alive_B & ~self.criteria(cast("Any", ids_BT), (scores_BV,))
            if not bool(alive_B.any()):
                break
        if streamer is not None:
            streamer.end()
        if not self.config.return_dict_in_generate:
            return ids_BT
        output = GenerateDecoderOnlyOutput if self.source is None else GenerateEncoderDecoderOutput
        return output(sequences=cast("Any", ids_BT), **cast("Any", {name: tuple(made) or None for name, made in kept.items()}))

    def beams(self, tuner: HasStrength, weighted: WeightedPass, given: dict[str, Any]) -> Any:
        """transformers' own beam search at one setting. A prefix stands in the text that is searched, and nowhere else."""
        ids_BT, config = self.ids_BT, copy.copy(self.config)
        if self.source is None and weighted.prefix.ids:
            ids_BT, given["attention_mask"] = insert_prefix_rows(self.ids_BT, self.mask_BT, [weighted.prefix] * len(ids_BT))
            if "position_ids" in given:
                given["position_ids"] = _positions(given["attention_mask"])
            config.max_length = (config.max_length or 0) + ids_BT.shape[1] - self.ids_BT.shape[1]
        prompt_PT = self.ids_BT[:: config.num_beams]

        def unled(found_RT: Any) -> Tensor:
            before_RT = prompt_PT.repeat_interleave(len(found_RT) // len(prompt_PT), dim=0)
            return torch.cat([before_RT, found_RT[:, ids_BT.shape[1] :]], dim=1)

        setting = weighted.setting
        if isinstance(setting, Tensor):  # one per prompt, or already one per beam
            setting = setting.repeat_interleave(len(ids_BT) // len(setting))
        with tuner.at(setting):
            if self.source is not None:
                given["encoder_outputs"], given["attention_mask"] = _encoded(
                    self.model, self.source, [weighted.prefix] * len(ids_BT)
                )
            found = cast("Any", self.model)._beam_search(
                ids_BT,
                logits_processor=lambda ids_RT, scores_RV: self.processors(cast("Any", unled(ids_RT)), scores_RV),
                stopping_criteria=lambda ids_RT, scores: self.criteria(cast("Any", unled(ids_RT)), scores),
                generation_config=config,
                **given,
            )
        if isinstance(found, Tensor):
            return unled(found)
        found.sequences = unled(found.sequences)
        return found


@dataclass
class _Stream:
    """Rows that run in one pass. `mixed_R`: the text of each row, and its weight; None = every text once, with weight 1.
    `prefixes`: what stands in each row beside its text. `mask_RT`: what the rows hold so far, prefixes included; of a source,
    what the encoder has read, whose states are `encoded`."""

    mixed_R: tuple[Tensor, Tensor] | None
    setting: Strength
    prefixes: Sequence[Prefix]
    cache: Any = None
    mask_RT: Tensor | None = None
    encoded: Any = None

    def fed(self, ids_RT: Tensor, mask_RT: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens of the rows and the mask of all their tokens; the first ones get their prefixes."""
        if self.mask_RT is None:
            ids_RT, mask_RT = (
                insert_prefix_rows(ids_RT, mask_RT, self.prefixes)
                if any(prefix.ids for prefix in self.prefixes)
                else (ids_RT, mask_RT)
            )
        else:
            mask_RT = torch.cat([self.mask_RT, mask_RT[:, -ids_RT.shape[1] :]], dim=1)
        self.mask_RT = mask_RT
        return ids_RT, mask_RT


class Streams:
    """Runs all passes of a mixture side by side. Where rows of a pass may differ in their setting, it is a single pass.

    A context manager: the tuner is set inside. `step` feeds new tokens of every text and returns the mixed logits. `source`:
    ids and mask, B,S, of what an encoder reads, once per row and at the row's setting; None for a model without an encoder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tuner: HasStrength,
        passes: Sequence[WeightedPass],
        texts: int,
        device: torch.device,
        source: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._model, self._tuner, self._texts, self._source = model, tuner, texts, source
        self._streams = _laid(passes, texts, tuner.per_row, device)
        self._inside = ExitStack()
        taken = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in taken else "past_key_values"
        self._takes_positions = "position_ids" in taken
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}

    def __enter__(self) -> Streams:
        if len(self._streams) == 1:  # one setting for every step
            self._inside.enter_context(self._tuner.at(self._streams[0].setting))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inside.close()

    def step(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits in fp32 after the last of the new tokens, B,V. mask_BT covers all tokens so far, padding on the left."""
        first, *others = self._streams
        logits_BV = self._weighted(first, ids_BT, mask_BT)
        for stream in others:
            logits_BV = logits_BV + self._weighted(stream, ids_BT, mask_BT)
        return logits_BV

    def _weighted(self, stream: _Stream, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if stream.mixed_R is None:
            return self._last_logits(stream, ids_BT, mask_BT)
        owner_R, weight_R = stream.mixed_R
        logits_RV = self._last_logits(stream, ids_BT[owner_R], mask_BT[owner_R]) * weight_R[:, None]
        return logits_RV.new_zeros(self._texts, logits_RV.shape[1]).index_add(0, owner_R, logits_RV)

    def _last_logits(self, stream: _Stream, ids_RT: Tensor, mask_RT: Tensor) -> Tensor:
        with self._at(stream):
            given = self._beside_text(stream, ids_RT, mask_RT) if self._source else self._text(stream, ids_RT, mask_RT)
            output = self._model(**given, **{self._cache_name: stream.cache}, use_cache=True, **self._last_only)
        stream.cache = getattr(output, self._cache_name, None)
        if stream.cache is None:
            raise ModelError(f"a {type(self._model).__name__} gives no cache for passes side by side; use another model.")
        logits_RV: Tensor = output.logits[:, -1].float()
        return logits_RV

    def _text(self, stream: _Stream, ids_RT: Tensor, mask_RT: Tensor) -> dict[str, Any]:
        """Fields of a causal model, which continues its prompt."""
        ids_RT, mask_RT = stream.fed(ids_RT, mask_RT)
        # A recurrent state has left padding behind with the prompt.
        seen = stream.cache is not None and self._cache_name == "cache_params"
        given = {"input_ids": ids_RT, "attention_mask": None if seen else mask_RT}
        return {**given, "position_ids": _positions(mask_RT)[:, -ids_RT.shape[1] :]} if self._takes_positions else given

    def _beside_text(self, stream: _Stream, ids_RT: Tensor, mask_RT: Tensor) -> dict[str, Any]:
        """Fields of an encoder-decoder model, whose decoder starts a new text."""
        if stream.encoded is None:
            assert self._source is not None
            source = self._source if stream.mixed_R is None else tuple(each[stream.mixed_R[0]] for each in self._source)
            stream.encoded, stream.mask_RT = _encoded(self._model, cast("tuple[Tensor, Tensor]", source), stream.prefixes)
        return {
            "encoder_outputs": stream.encoded,
            "attention_mask": stream.mask_RT,
            "decoder_input_ids": ids_RT,
            "decoder_attention_mask": mask_RT,
        }

    def _at(self, stream: _Stream) -> AbstractContextManager[None]:
        return nullcontext() if len(self._streams) == 1 else self._tuner.at(stream.setting)


def _laid(passes: Sequence[WeightedPass], texts: int, together: bool, device: torch.device) -> list[_Stream]:
    """The rows of each pass. Rows of weight 0 do not run, so a text at strength 0 or 1 costs one row."""
    if len(passes) == 1 and passes[0].weight == 1.0:
        return [_Stream(None, passes[0].setting, [passes[0].prefix] * texts)]
    every = torch.arange(texts, device=device)
    owners, weights, settings, prefixes = [], [], [], []
    for weighted in passes:
        weight_B = torch.as_tensor(weighted.weight, dtype=torch.float32, device=device).expand(texts)
        setting_B = torch.as_tensor(weighted.setting, dtype=torch.float32, device=device).expand(texts)
        owners.append(every[weight_B != 0])
        weights.append(weight_B[owners[-1]])
        settings.append(setting_B[owners[-1]])
        prefixes.append([weighted.prefix] * len(owners[-1]))
    if together:
        return [_Stream((torch.cat(owners), torch.cat(weights)), torch.cat(settings), [*chain(*prefixes)])]
    rows = zip(owners, weights, settings, prefixes, strict=True)
    return [_Stream((owner_R, weight_R), setting_R, lead_R) for owner_R, weight_R, setting_R, lead_R in rows if len(owner_R)]


def drawn(scores_BV: Tensor, top_p: float, uniform_B: Tensor) -> Tensor:
    """One draw per row, by inverting the cumulative distribution over descending probabilities; numbers of tokens, B.

    scores_BV: logits of B texts over V tokens. uniform_B: one number in [0, 1) per text.
    """
    sorted_BV, order_BV = scores_BV.sort(dim=-1, descending=True, stable=True)
    cumulative_BV = sorted_BV.double().softmax(-1).cumsum(-1)
    # top_p keeps the smallest set whose mass reaches it; the draw is scaled to that mass.
    inside_BV = (cumulative_BV - sorted_BV.double().softmax(-1)) < top_p
    mass_B = torch.where(inside_BV, cumulative_BV, 0.0).amax(-1)
    drawn_B1 = torch.searchsorted(cumulative_BV, (uniform_B.double() * mass_B)[:, None], right=True)
    last_B1 = inside_BV.sum(-1, keepdim=True) - 1
    return order_BV.gather(1, torch.minimum(drawn_B1, last_B1))[:, 0]


def cache_objection(backbone: Backbone) -> str:
    """Why the logits behind a cache are not those of the full pass; empty where they are. Of a causal model: those after the
    last token of each row, which is fed alone behind a cache of the others, padded on the left. Of an encoder-decoder model:
    those after the last token that its decoder reads, fed token by token."""
    model, batch = backbone.model, probe_batch(backbone.model)
    with quietly(model):
        if model.config.is_encoder_decoder:
            each = [one_member(batch, row) for row in range(batch.length_GM.numel())]
            layouts = [backbone.kind.layout(backbone, member, "off") for member in each]
            right = [backbone.kind.outputs(backbone, layout)[-1] for layout in layouts]
            together = backbone.kind.layout(backbone, batch, "off")
            return objection(lambda: _stepped_beside(model, together), torch.stack(right))
        right = [logits_TV[-1] for logits_TV in row_by_row(backbone.name, model, batch)]
        return objection(lambda: _stepped(model, batch), torch.stack(right))


def _stepped(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits after the last token of each row, R,V, behind a cache of the others."""
    length_R = batch.length_GM.flatten()
    width = batch.ids_GMT.shape[2]
    ids_RT = torch.stack(
        [ids_T.roll(width - int(length)) for ids_T, length in zip(batch.ids_GMT.flatten(0, 1), length_R, strict=True)]
    )
    mask_RT = (torch.arange(width, device=ids_RT.device) >= width - length_R[:, None]).long()
    with Streams(model, Untuned(), (WeightedPass(1.0, 1.0),), len(ids_RT), ids_RT.device) as streams:
        streams.step(ids_RT[:, :-1], mask_RT[:, :-1])
        return streams.step(ids_RT[:, -1:], mask_RT)


def _stepped_beside(model: PreTrainedModel, layout: Layout) -> Tensor:
    """Logits after the last token that the decoder reads of each row, R,V, when it is fed them one by one."""
    assert layout.decoder_RU is not None
    assert layout.mask is not None
    decoder_RU, source = layout.decoder_RU, (layout.ids_RT, layout.mask)
    rows, times = decoder_RU.shape
    last_R = layout.row_K.bincount(minlength=rows) - 1
    with Streams(model, Untuned(), (WeightedPass(1.0, 1.0),), rows, decoder_RU.device, source) as streams:
        steps = [streams.step(decoder_RU[:, t : t + 1], torch.ones_like(decoder_RU[:, : t + 1])) for t in range(times)]
    return torch.stack(steps)[last_R, torch.arange(rows, device=decoder_RU.device)]


def _positions(mask_RT: Tensor) -> Tensor:
    return (mask_RT.cumsum(1) - 1).clamp(min=0)


def _source(ids_BT: Tensor, source_PS: Tensor | None, mask_BS: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the encoder reads for each row: generate repeats the mask for several answers per prompt, and not the ids."""
    assert source_PS is not None  # generate hands it to a function that names it
    source_BS = source_PS.repeat_interleave(len(ids_BT) // len(source_PS), dim=0)
    return source_BS, torch.ones_like(source_BS) if mask_BS is None else mask_BS


def _encoded(model: PreTrainedModel, source: tuple[Tensor, Tensor], prefixes: Sequence[Prefix]) -> tuple[Any, Tensor]:
    """The encoder's states of some rows, prefixes put in, and their mask; padding stays on the right."""
    ids_RS, mask_RS = source
    if any(prefix.ids for prefix in prefixes):
        padding = ids_RS[mask_RS == 0][:1]
        ids_RS, mask_RS = insert_prefix_rows(ids_RS, mask_RS, prefixes)
        padding_R1 = (mask_RS == 0).sum(1, keepdim=True)
        turned_RS = (torch.arange(ids_RS.shape[1], device=ids_RS.device) + padding_R1) % ids_RS.shape[1]
        ids_RS, mask_RS = ids_RS.gather(1, turned_RS), mask_RS.gather(1, turned_RS)
        if len(padding):  # a tuner that looks at the text knows padding by its id
            ids_RS = ids_RS.where(mask_RS.bool(), padding)
    return cast("Any", model).get_encoder()(input_ids=ids_RS, attention_mask=mask_RS, return_dict=True), mask_RS


def _refuse(config: GenerationConfig, inputs_tensor: Tensor | None, given: dict[str, Any]) -> None:
    mode = config.get_generation_mode()
    if mode not in OFFERED:
        raise ControlError(
            f"at a strength, decoding is by argmax, by a draw or with beams; {mode.value.replace('_', ' ')} is not offered, so"
            " leave assistants and other ways of searching out."
        )
    cache = given.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ControlError("a cache was given that one stream has filled; each stream needs its own, so give the whole text.")
    if config.output_hidden_states or config.output_attentions:
        raise ControlError("hidden states and attentions of a mixture of passes are not defined; leave them out.")
    read = inputs_tensor is not None and (inputs_tensor.is_floating_point() or bool((inputs_tensor < 0).any()))
    if given.get("inputs_embeds") is not None or read:
        raise ControlError("give input_ids; embeddings and an encoder's states are not copied to the streams.")
