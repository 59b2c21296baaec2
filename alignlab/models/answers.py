"""Many texts at once, within a budget of memory: log-probabilities of groups, answers to prompts by `generate`, and
probabilities of classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from alignlab.data.batching import in_order, whole
from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.anatomy import Footprint
from alignlab.models.backbone import Backbone, ends_of
from alignlab.models.decode import decoding
from alignlab.models.following import Finite, Follow, Followed
from alignlab.models.sampling import Sampling
from alignlab.models.strength import (
    AskedStrength,
    AskedStrengths,
    ClassMixture,
    HasStrength,
    WeightedPass,
    as_strength,
    strengths_of,
)
from alignlab.records import EncodedGroup

if TYPE_CHECKING:
    from alignlab.models.policy import Policy
    from alignlab.models.text import Text

DECODE_ROWS = 256
"""Texts that are generated together, where the budget has room for so many."""
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """What decoding takes, in bytes: `texts` together, each in `rows` rows (one per pass of a mixture and beam) of at most
    `tokens` tokens."""

    texts: int
    rows: int
    tokens: int
    cache: int
    logits: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, weights left out."""
        return self.cache + self.logits + self.activations

    def sentence(self, weights: int) -> str:
        """For a plan."""
        named = {"weights": weights, "caches": self.cache, "logits": self.logits, "activations": self.activations}
        parts = " + ".join(f"{name} {taken / GIB:.3g}" for name, taken in named.items())
        whole = (weights + self.total) / GIB
        return f"{self.texts} texts at a time, {self.rows} x {self.tokens} tokens each: {parts} = {whole:.3g} GiB, estimated"


@dataclass(frozen=True)
class Budget:
    """What passes without gradients may take beside the weights, `gib` GiB of it; None = as much as they like."""

    footprint: Footprint
    gib: float | None = None

    def texts(self, prompt: int, new: int, rows: int, at_most: int) -> int:
        """Texts that are decoded together, each in so many rows: `prompt` tokens and `new` ones behind them."""
        return self._fitting(self.need(1, prompt, new, rows).total, at_most)

    def groups(self, members: int, tokens: int, at_most: int) -> int:
        """Groups that are scored together, of so many members of at most so many tokens. Logits exist for a chunk of fixed
        size, and no cache is kept."""
        return self._fitting(members * tokens * self.footprint.activations, at_most)

    def need(self, texts: int, prompt: int, new: int, rows: int) -> Need:
        """What decoding takes at its last step; activations are those of the prompts, which are read in one pass."""
        each = self.footprint
        count = texts * rows
        cache = count * (prompt + new) * each.cache
        return Need(texts, rows, prompt + new, cache, count * each.logits, count * prompt * each.activations)

    def _fitting(self, each: int, at_most: int) -> int:
        return at_most if self.gib is None else max(1, min(at_most, int(self.gib * GIB) // max(1, each)))


def scored(
    policy: Policy, groups: Sequence[EncodedGroup], rows_per_pass: int, kept: MutableMapping[int, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """log p(response | prompt) in nats, summed and per token, groups x members, fp32 on the CPU, in the order of the groups.

    The policy is as the caller has set it; batches are formed by length, `rows_per_pass` groups each or as many as the policy's
    budget has room for. `kept`: the values of batches that are there already, by their numbers; others are put there.
    """
    longest = max(group.length for group in groups)
    at_most = policy.budget.groups(len(groups[0].members), longest, rows_per_pass)
    return scored_in(policy, groups, in_order(groups, at_most), kept)


def scored_in(
    policy: Policy,
    groups: Sequence[EncodedGroup],
    batches: Iterable[Sequence[int]],
    kept: MutableMapping[int, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in given batches of numbers of groups. What stands in several has its values from the first of them, and zeros
    where it stands in none."""
    total_NM = torch.zeros(len(groups), len(groups[0].members))
    mean_NM = torch.zeros_like(total_NM)
    kept = {} if kept is None else kept
    done: set[int] = set()
    for number, rows in enumerate(batches):
        new = [place for place, row in enumerate(rows) if row not in done]
        if not new:
            continue
        if number not in kept:
            batch = whole([groups[row] for row in rows], policy.backbone.codec.pad).to(policy.backbone.device)
            scores = policy.logprobs(batch)
            kept[number] = [found_GM.float().cpu()[new].tolist() for found_GM in (scores.total_GM, scores.mean_GM)]
        chosen = [rows[place] for place in new]
        total_NM[chosen], mean_NM[chosen] = map(torch.tensor, kept[number])
        done.update(chosen)
    return total_NM, mean_NM


def respond(
    policy: Policy,
    prompts: Sequence[str],
    strength: AskedStrengths,
    control: ClassMixture | Sequence[ClassMixture] | None,
    sampling: Sampling,
    seed: int,
    streamer: BaseStreamer | None,
    kept: MutableMapping[int, Any] | None,
) -> list[str]:
    """See `Policy.respond`."""
    check_writes(policy)
    strengths = strengths_of(policy.tuner, strength, len(prompts))
    chosen = None if control is None else policy.controls.mixtures(control, len(prompts))
    if streamer is not None and (len(prompts) > 1 or sampling.beams > 1):
        raise ControlError(
            f"a streamer follows one answer as it is written; give one prompt ({len(prompts)} were given) and no beams."
        )
    encoded = policy.backbone.codec.prompts(prompts)
    for prompt, ids in zip(prompts, encoded, strict=True):
        check_prompt(policy, prompt, ids, sampling.max_new_tokens)
    texts = _continued(policy, encoded, strengths, chosen, sampling, seed, streamer, kept)
    return [policy.backbone.codec.answer(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def check_writes(policy: Policy) -> None:
    """Raises ModelError for a policy that cannot write text."""
    if not policy.backbone.model.can_generate():
        raise ModelError(f"model={policy.backbone.name} writes no text; call classify.")
    with policy.tuner.off():
        objection = policy.backbone.cache_objection
    if objection:
        raise ModelError(
            f"model={policy.backbone.name} cannot generate here: a step behind its cache is not the full pass ({objection})."
        )


def check_prompt(policy: Policy, prompt: str, ids: Sequence[int], new: int) -> None:
    """Raises ControlError for a prompt that holds a vector's id, ConfigError for one that leaves no room for `new` tokens."""
    if not set(policy.tuner.inserted.reserved).isdisjoint(ids):
        raise ControlError(f"prompt {prompt[:40]!r} holds a token that stands for a vector of the tuner; remove it.")
    room = policy.prompt_room(new)
    if len(ids) > room:
        raise ConfigError(f"prompt {prompt[:40]!r} has {len(ids)} tokens{_no_room(policy, room, new)}")


def continued(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    strength: float,
    control: ClassMixture | None,
    sampling: Sampling,
    seed: int,
    kept: MutableMapping[int, Any] | None = None,
) -> list[str]:
    """What follows each prompt of ids, as it is written, at one strength or under one class (`control`); else as
    `Policy.respond`. The caller leaves room for it (`Policy.prompt_room`)."""
    chosen = None if control is None else policy.controls.mixtures(control, len(prompts))
    strengths = strengths_of(policy.tuner, strength, len(prompts))
    return _continued(policy, prompts, strengths, chosen, sampling, seed, None, kept)


def followed(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    strengths: Sequence[AskedStrength],
    controls: Sequence[ClassMixture] | None,
    sampling: Sampling,
    seeds: Sequence[int],
    follow: Follow,
) -> None:
    """Continues each prompt of ids at its strength or under its class; `follow` is told of each text's ids at every step, and
    says where it ends, be it before its end or `sampling.max_new_tokens`. A text's draws come from its own seed, as those of a
    single prompt do in `Policy.respond`."""
    chosen = None if controls is None else policy.controls.mixtures(controls, len(prompts))
    uniform_BT = torch.cat([_uniform(1, sampling.max_new_tokens, seed) for seed in seeds])
    batches = _batches(policy, prompts, strengths_of(policy.tuner, strengths, len(prompts)), chosen, sampling)
    _answers(policy.backbone, policy.tuner, prompts, batches, sampling, uniform_BT, None, {}, follow)


def _continued(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    strengths: Sequence[float],
    chosen: Sequence[Mapping[str, float]] | None,
    sampling: Sampling,
    seed: int,
    streamer: BaseStreamer | None,
    kept: MutableMapping[int, Any] | None,
) -> list[str]:
    if not prompts:
        return []
    batches = _batches(policy, prompts, strengths, chosen, sampling)
    uniform_BT = _uniform(len(prompts), sampling.max_new_tokens, seed)
    return _answers(
        policy.backbone, policy.tuner, prompts, batches, sampling, uniform_BT, streamer, {} if kept is None else kept
    )


def _uniform(texts: int, steps: int, seed: int) -> Tensor:
    """A number in [0, 1) for each step of each text."""
    return torch.rand(texts, steps, generator=torch.Generator().manual_seed(seed))


def _batches(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    strengths: Sequence[float],
    chosen: Sequence[Mapping[str, float]] | None,
    sampling: Sampling,
) -> list[tuple[list[int], Sequence[WeightedPass]]]:
    """Row numbers that are generated together, and their passes."""
    alike: Sequence[Any] = strengths if chosen is None else [tuple(sorted(weights.items())) for weights in chosen]
    every = _asked(policy, strengths, chosen)
    mixed = policy.tuner.per_row or not any(isinstance(weighted.setting, Tensor) for weighted in every)
    longest = max(map(len, prompts)) + policy.backbone.context - policy.room
    at_most = policy.budget.texts(longest, sampling.max_new_tokens, len(every) * sampling.beams, DECODE_ROWS)
    return [
        (rows, _asked(policy, [strengths[row] for row in rows], chosen and [chosen[row] for row in rows]))
        # Beams follow one pass, which texts at both ends of a dial do not have in common.
        for rows in _together(alike, mixed and (sampling.beams == 1 or len(every) == 1), at_most)
    ]


def classify(policy: Policy, texts: Sequence[Text], strength: AskedStrengths) -> list[dict[str, float]]:
    """See `Policy.classify`."""
    codec, labels = policy.backbone.codec, policy.backbone.codec.labels
    encoded = codec.texts(texts)
    strengths = strengths_of(policy.tuner, strength, len(texts))
    if labels is None or not labels.names:
        raise ModelError(f"model={policy.backbone.name} predicts a number, not classes; read its class_scores.")
    for place, each in enumerate(encoded):
        if len(each.ids) > policy.room:
            raise ConfigError(f"text {place} has {len(each.ids)} tokens, but the model has room for {policy.room}; shorten it.")
    order = sorted(range(len(texts)), key=lambda row: -len(encoded[row].ids))
    found: list[dict[str, float]] = [{}] * len(texts)
    at_most = policy.budget.groups(1, max((len(each.ids) for each in encoded), default=1), DECODE_ROWS)
    for places in _together([strengths[row] for row in order], policy.tuner.per_row, at_most):
        rows = [order[place] for place in places]
        groups = [EncodedGroup(f"text {row}", (encoded[row],)) for row in rows]
        batch = whole(groups, codec.pad).to(policy.backbone.device)
        with torch.inference_mode(), policy.at(as_strength([strengths[row] for row in rows], policy.backbone.device)):
            probability_GC = policy.class_scores(batch)[:, 0].softmax(-1)
        for row, probability_C in zip(rows, probability_GC.tolist(), strict=True):
            found[row] = dict(zip(labels.names, probability_C, strict=True))
    return found


def _no_room(policy: Policy, room: int, new: int) -> str:
    """The end of the sentence on a prompt that is too long."""
    if policy.backbone.model.config.is_encoder_decoder:
        return f", but the model's encoder has room for {room}; shorten it."
    return f" and {new} are to follow, but the model has room for {room} before them; shorten it or lower max_new_tokens."


def _asked(policy: Policy, strengths: Sequence[float], chosen: Sequence[Mapping[str, float]] | None) -> Sequence[WeightedPass]:
    """The passes of some texts, each at its strength, or where classes are chosen under its own."""
    if chosen:
        return policy.controls.passes(chosen)
    return policy.tuner.passes(as_strength(strengths, policy.backbone.device))


def _together(alike: Sequence[Any], mixed: bool, at_most: int) -> Iterator[list[int]]:
    """Row numbers that are generated together: all where passes may be `mixed`, else those that are `alike`."""
    rows = list(range(len(alike)))
    sets = [rows] if mixed else [[row for row in rows if alike[row] == each] for each in dict.fromkeys(alike)]
    for chosen in sets:
        for start in range(0, len(chosen), at_most):
            yield chosen[start : start + at_most]


def _answers(
    backbone: Backbone,
    tuner: HasStrength,
    prompts: Sequence[tuple[int, ...]],
    batches: Iterable[tuple[list[int], Sequence[WeightedPass]]],
    sampling: Sampling,
    uniform_BT: Tensor,
    streamer: BaseStreamer | None,
    kept: MutableMapping[int, Any],
    follow: Follow | None = None,
) -> list[str]:
    """The text that answers each prompt. batches: row numbers that are generated together, and their passes. uniform_BT: see
    `decoding`. kept: the texts of batches that are there already. follow: see `followed`.

    A text ends at the tokenizer's EOS, at the end of a turn as the chat template writes it, at any end that the model's
    generation_config names, and in front of a stop string.
    What `sampling` has no word for (forced and suppressed tokens, say) is as the model's generation_config has it.
    """
    model = cast("Any", backbone.model)
    uniform_BT = uniform_BT.to(backbone.device)
    texts = [""] * len(prompts)
    with torch.inference_mode():
        for number, (rows, passes) in enumerate(batches):
            if number in kept:
                for row, text in zip(rows, kept[number], strict=True):
                    texts[row] = text
                continue
            ids_BT, mask_BT = _padded([prompts[row] for row in rows], backbone)
            begin = 1 if model.config.is_encoder_decoder else ids_BT.shape[1]
            settings = _settings(backbone, sampling, begin)
            if follow is not None:
                finite = Finite()
                settings["logits_processor"] = LogitsProcessorList([finite])
                settings.setdefault("stopping_criteria", StoppingCriteriaList()).append(Followed(follow, rows, begin, finite))
            made_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                custom_generate=decoding(tuner, lambda *_, passes=passes: passes, streamer, uniform_BT[rows], sampling.top_p),
                **settings,
            )
            for row, new_ids in zip(rows, made_BT[:, begin:].tolist(), strict=True):
                texts[row] = text_of(backbone, prompts[row], new_ids, (*sampling.stop, *backbone.codec.stop))
            kept[number] = [texts[row] for row in rows]
    return texts


def _settings(backbone: Backbone, sampling: Sampling, begin: int) -> dict[str, Any]:
    """Arguments of `generate`; None turns off what the model's generation_config may ask for. top_p is the draw's own."""
    codec, drawn = backbone.codec, sampling.temperature > 0
    settings: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        **dict.fromkeys(("max_length", "min_length", "min_new_tokens")),
        "do_sample": drawn,
        "temperature": float(sampling.temperature) if drawn else None,
        "top_k": sampling.top_k or None if drawn else None,
        "min_p": sampling.min_p or None if drawn else None,
        "top_p": None,
        "repetition_penalty": float(sampling.repetition_penalty),
        "no_repeat_ngram_size": sampling.no_repeat_ngram_size or None,
        "num_beams": sampling.beams,
        "num_return_sequences": 1,
        "eos_token_id": ends(backbone),
        "pad_token_id": codec.pad,
    }
    if stop := (*sampling.stop, *codec.stop):
        settings["stopping_criteria"] = StoppingCriteriaList([_InAnswer(backbone, stop, begin)])
    if backbone.model.config.is_encoder_decoder:
        # Each stream reads the source at its own setting; this keeps generate from reading it at another one beforehand.
        settings["encoder_outputs"] = BaseModelOutput(last_hidden_state=torch.empty(0, 0, 0))
    return settings


class _InAnswer(StopStringCriteria):
    """transformers' search for stop strings, in the answers alone: one that a prompt ends with or begins is none."""

    def __init__(self, backbone: Backbone, stop: Sequence[str], begin: int) -> None:
        try:
            super().__init__(backbone.codec.tokenizer, list(stop))
        except ValueError as error:
            raise ConfigError(f"no token of this tokenizer ends any of stop={list(stop)}; choose other texts.") from error
        self._begin = begin

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Tensor:
        return super().__call__(input_ids[:, self._begin :], scores, **more)


def ends(backbone: Backbone) -> list[int]:
    """All ids that end an answer: the tokenizer's EOS, the chat template's end of a turn, and those that the model names."""
    return list(dict.fromkeys((*backbone.codec.ends, *ends_of(backbone.model))))


def text_of(backbone: Backbone, prompt: Sequence[int], ids: Sequence[int], stop: Sequence[str]) -> str:
    """New ids as text, up to the first end, in front of the first stop string."""
    last = set(ends(backbone))
    said = ids[: next((place for place, token in enumerate(ids) if token in last), len(ids))]
    codec = backbone.codec
    text = codec.decode(said) if backbone.model.config.is_encoder_decoder else codec.continuation(prompt, said)
    return text[: min((text.index(each) for each in stop if each in text), default=len(text))]


def _padded(prompts: Sequence[tuple[int, ...]], backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Ids and mask: padded on the left where the answer follows, on the right (positions count from 0) for an encoder."""
    width = max(1, *(len(prompt) for prompt in prompts))
    ids_BT = torch.full((len(prompts), width), backbone.codec.pad)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        begin = 0 if backbone.model.config.is_encoder_decoder else width - len(prompt)
        ids_BT[row, begin : begin + len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        mask_BT[row, begin : begin + len(prompt)] = 1
    return ids_BT.to(backbone.device), mask_BT.to(backbone.device)
