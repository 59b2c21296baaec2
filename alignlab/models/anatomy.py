"""Models of transformers: where they keep their parts, what they can do, and how a causal one runs.

Parts are read off a model's structure. What it can do is tried on a few short rows when its weights are loaded, and never
looked up by its name; right is what the model's own forward gives for one row without padding.
Shapes: R rows, T time, K tokens, D width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignlab.errors import ConfigError, ModelError
from alignlab.models.config import Shape
from alignlab.models.kinds import Kind
from alignlab.models.packing import Layout, attending, causal_rows, one_row_per_member, without_padding
from alignlab.models.strength import WITHOUT, HasStrength
from alignlab.models.text import Codec, Template
from alignlab.records import Batch, LabelSet

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone

NO_LIMIT = 1 << 20
"""Tokens of the longest input of a model that counts no positions: a recurrent one, or one with distances in their place."""
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "context_length", "n_ctx")
"""Where configurations keep the longest input; GPT-2's n_positions answers to the first."""
SOURCE_KEYS = ("max_encoder_position_embeddings", *CONTEXT_KEYS)
TARGET_KEYS = ("max_decoder_position_embeddings", *CONTEXT_KEYS)
"""The same of the two stacks of an encoder-decoder model, which may differ (LED)."""
LOGIT_BYTES = 48
"""Of an entry of a row's logits while a token is drawn: as the model gives it, in float32, processed, sorted, in float64."""
LENGTHS, PREFIXES = ((9, 7), (6, 8)), (3, 4)
"""Tokens of the probe's members, 2 groups of 2, and of what the members of each group have in common."""
FIRST_END = (True, False, False, True)
"""At which of two settings the probe's rows run, where they differ."""


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head: the part that it calls its base, or the one beside the output embedding."""
    trunk = getattr(model, model.base_model_prefix, None)
    others = (part for part in model.children() if part is not model.get_output_embeddings())
    return trunk if isinstance(trunk, nn.Module) else next(others)


def block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's blocks, of the text part where there are others: the outermost list that is as long
    as the model is deep. Raises ModelError where there is none."""
    text = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    depth = getattr(text_config(text.config), "num_hidden_layers", None) if hasattr(text, "config") else None
    within = next((name for name, module in model.named_modules() if module is text), "")
    for name, module in text.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return ".".join(filter(None, (within, name))), module
    raise ModelError(f"a {type(model).__name__} has no list of {depth} blocks, so its layers have no numbers.")


def shape_of(model: PreTrainedModel) -> Shape:
    """Depth and width of a model, with weights or without."""
    return Shape(len(block_list(model)[1]), int(text_config(model.config).hidden_size))


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes. `weights`: all of them; `cache`: keys and values of one token of one row; `activations`: what
    one block holds of a token while it is computed; `logits`: of one row while its next token is drawn."""

    weights: int
    cache: int
    activations: int
    logits: int

    @staticmethod
    def of(model: PreTrainedModel, itemsize: int) -> Footprint:
        """From a model's config, weights loaded or not; `itemsize` is the size of a number in bytes."""
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_attention_heads", None) or 1
        wide = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
        keyed = getattr(config, "num_key_value_heads", None) or heads
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return Footprint(
            weights=model.num_parameters() * itemsize,
            cache=2 * config.num_hidden_layers * keyed * wide * itemsize,
            # The residual, its norm, queries, keys, values and their mixture; gate, up and their product.
            activations=(6 * config.hidden_size + 3 * inner) * itemsize,
            logits=LOGIT_BYTES * config.vocab_size,
        )


def context_of(model: PreTrainedModel) -> int:
    """The longest input in tokens, of an encoder-decoder model its source; less than the config says where the first positions
    stand for padding (RoBERTa)."""
    if model.config.is_encoder_decoder:
        limit = _positions(model.config.get_text_config(encoder=True), SOURCE_KEYS)
    else:
        limit = _positions(text_config(model.config), CONTEXT_KEYS)
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = (table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None)
    taken = max((int(index) + 1 for index in padding), default=0)
    return limit if limit == NO_LIMIT else limit - taken


def target_context_of(model: PreTrainedModel) -> int:
    """The longest text that the decoder of an encoder-decoder model writes, in tokens: it reads the start and all but the last
    of them."""
    return _positions(text_config(model.config), TARGET_KEYS)


def check_answer(model: PreTrainedModel, new: int) -> None:
    """Raises ConfigError where the decoder of an encoder-decoder model has fewer positions than `new` tokens take."""
    limit = target_context_of(model)
    if new > limit:
        raise ConfigError(f"max_new_tokens={new} is more than the {limit} positions of the model's decoder; lower it.")


def _positions(config: PreTrainedConfig, keys: Sequence[str]) -> int:
    return next((int(tokens) for tokens in (getattr(config, key, None) for key in keys) if tokens), NO_LIMIT)


def rotary_switch(config: PreTrainedConfig) -> int | None:
    """The length in tokens at which rotary frequencies change for a whole pass (longrope), so that a row's states depend on
    its neighbours; None where they do not."""
    rope = getattr(text_config(config), "rope_parameters", None) or {}
    kinds = rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(text_config(config), "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return next((int(length) for length in lengths if length), None)


def text_config(config: Any) -> Any:
    """The configuration of the part that reads text."""
    return config.get_text_config(decoder=True)


def attention_in(model: PreTrainedModel) -> str:
    """The attention that a model was loaded with."""
    return str(text_config(model.config)._attn_implementation)


def attention_of(model: PreTrainedModel, layout: Layout) -> AbstractContextManager[None]:
    """Inside, the model attends as the rows need it; also where its blocks are computed again for a gradient."""
    return nullcontext() if layout.segments is None else attending(text_config(model.config), layout.segments)


@dataclass(frozen=True)
class Cut:
    """A model in two, so that logits are made at the positions that are scored, in chunks. `states`: (model, inputs) to R,T,D.
    `head`: (model, K,D) to K,V. Where a model has no such place, states are logits."""

    name: str
    states: Callable[..., Tensor]
    head: Callable[[PreTrainedModel, Tensor], Tensor]

    def through(self, model: PreTrainedModel, layout: Layout) -> Tensor:
        """The states of all rows, R,T,D."""
        inputs: dict[str, Any] = {"input_ids": layout.ids_RT, "attention_mask": layout.mask, "use_cache": False}
        if layout.positions_RT is not None:
            inputs["position_ids"] = layout.positions_RT
        with attention_of(model, layout):
            return self.states(model, **inputs)


class _Handed(tuple[Any, ...]):
    """What a trunk would have returned: hidden states, and nothing else that a head might ask for."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def _own_head(model: PreTrainedModel, hidden_KD: Tensor) -> Tensor:
    """The model's forward, with a trunk that hands back the given states: caps and scales are the model's own code."""
    trunk = trunk_of(model)
    before = trunk.__dict__.get("forward")
    trunk.forward = lambda *_args, **_kwargs: _Handed((hidden_KD[None],))
    try:
        ids_1K = torch.zeros(1, len(hidden_KD), dtype=torch.long, device=hidden_KD.device)
        logits_KV: Tensor = model(input_ids=ids_1K, use_cache=False).logits[0]
    finally:
        del trunk.forward
        if before is not None:
            trunk.forward = before
    return logits_KV


def _trunk(model: PreTrainedModel, **inputs: Any) -> Tensor:
    states: Tensor = trunk_of(model)(**inputs).last_hidden_state
    return states


CUTS = (
    Cut("the output embedding", _trunk, lambda model, hidden_KD: model.get_output_embeddings()(hidden_KD)),
    Cut("the model's own head", _trunk, _own_head),
    Cut(
        "the whole model, at every position",
        lambda model, **inputs: model(**inputs).logits,
        lambda _model, logits_KV: logits_KV,
    ),
)
"""In the order in which they are tried."""


@dataclass(frozen=True)
class Abilities:
    """`cut`: how logits are computed. `switch`: see `rotary_switch`. The others are objections, empty where there is none: to
    rows side by side with padding and no mask, to padding with zeros in the mask, and to all rows laid into one."""

    cut: Cut
    unmasked: str = ""
    masked: str = ""
    packed: str = ""
    switch: int | None = None


class Causal(Kind):
    """Causal language models: prompt and response are one text, and every token is predicted from those before it. Target
    tokens are those of the response."""

    auto = AutoModelForCausalLM
    layout = staticmethod(causal_rows)

    def codec(self, tokenizer: PreTrainedTokenizerBase, template: Template, labels: LabelSet | None) -> Codec:
        """Class names are texts like any other, so `labels` change nothing."""
        del labels
        return Codec(tokenizer, template)

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """States at the positions that predict the response tokens, K,D."""
        return backbone.abilities.cut.through(backbone.model, layout)[layout.row_K, layout.time_K]

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Logits, K,V."""
        return backbone.abilities.cut.head(backbone.model, hidden_KD)

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` at the response tokens, L,K,D; the pass stops behind the highest."""
        with backbone.reading(layers) as kept:
            backbone.abilities.cut.through(backbone.model, layout)
        return torch.stack([kept[layer][layout.row_K, layout.state_K] for layer in layers])


def find(name: str, model: PreTrainedModel) -> Abilities:
    """Tries a causal model. Raises ModelError where it does not run, and where its logits cannot be had in parts."""
    batch = probe_batch(model)
    with quietly(model):
        right = row_by_row(name, model, batch)
        cut = _cut(name, model, one_member(batch, 0), right[0])
        scored_KV = torch.cat(
            [logits_TV[start - 1 : -1] for logits_TV, start in zip(right, batch.start_GM.flatten().tolist(), strict=True)]
        )

        def tried(layout: Layout) -> str:
            return objection(lambda: cut.head(model, cut.through(model, layout)[layout.row_K, layout.time_K]), scored_KV)

        unmasked = tried(one_row_per_member(batch))
        masked = unmasked and tried(one_row_per_member(batch, masked=True))
        packed = tried(without_padding(batch, model.dtype))
    return Abilities(cut, unmasked, masked, packed, rotary_switch(model.config))


def of_rows(backbone: Backbone) -> Abilities:
    """Tries a model whose rows are masked where they are padded: may they stand side by side? They are not laid into one, for
    the reason that its kind gives. Raises ModelError where the model does not run."""
    batch, kind = probe_batch(backbone.model), backbone.kind

    def outputs(part: Batch) -> Tensor:
        return kind.outputs(backbone, kind.layout(backbone, part, "off"))

    with quietly(backbone.model):
        try:
            alone = torch.cat([outputs(one_member(batch, row)) for row in range(batch.length_GM.numel())])
        except Exception as error:
            raise ModelError(f"model={backbone.name} does not run: {_first_line(error)}") from error
        found = objection(lambda: outputs(batch), alone)
    return Abilities(CUTS[-1], unmasked=found, masked=found, packed=kind.apart)


def mixed(backbone: Backbone, tuner: HasStrength) -> str:
    """What speaks against rows of different settings in one pass, with the tuner attached and moved away from its start.

    Raises ModelError where the model does not run with this tuner in it.
    """
    ends = (0.0, 1.0) if tuner.controls is None else (WITHOUT, 0.0)
    reserved = tuner.inserted.reserved
    batch, kind = probe_batch(backbone.model, reserved), backbone.kind
    settings = [ends[0] if first else ends[1] for first in FIRST_END]

    def outputs(part: Batch, setting: float | Tensor) -> Tensor:
        with tuner.at(setting):
            return kind.outputs(backbone, kind.layout(backbone, part, "off"))

    with quietly(backbone.model), _moved(backbone.model):
        try:
            alone = [outputs(one_member(batch, row), setting) for row, setting in enumerate(settings)]
        except Exception as error:
            raise ModelError(f"model={backbone.name} does not run with this tuner in it: {_first_line(error)}") from error
        return objection(lambda: outputs(batch, torch.tensor(settings, device=backbone.device)), torch.cat(alone))


def expected(model: PreTrainedModel, attention: str) -> str:
    """What a configuration lets expect of rows laid into one: an objection as in `Abilities`, or nothing. The probes decide."""
    kinds = {str(kind) for kind in getattr(text_config(model.config), "layer_types", None) or ()}
    states = sorted(kind for kind in kinds if not kind.endswith("attention") or kind.startswith("linear"))
    if states:
        return f"layers of type {', '.join(states)} carry a state from token to token"
    return "" if model._supports_attention_backend else f"its {attention} attention takes no other in its place"


def probe_batch(model: PreTrainedModel, reserved: Sequence[int] = ()) -> Batch:
    """2 groups of 2 short members that share a prefix, the same each time; no ids at the ends, where special tokens live, and
    none that is reserved."""
    vocabulary = int(text_config(model.config).vocab_size)
    low, width = min(4, vocabulary - 1), max(max(members) for members in LENGTHS)
    known = torch.arange(low, max(vocabulary // 2, low + 1))
    usable = known[~torch.isin(known, torch.tensor(reserved, dtype=torch.long))]
    ids_GMT = usable[torch.randint(len(usable), (2, 2, width), generator=torch.Generator().manual_seed(0))]
    for group, prefix in enumerate(PREFIXES):
        ids_GMT[group, 1, :prefix] = ids_GMT[group, 0, :prefix]
    prefix_G = torch.tensor(PREFIXES)
    start_GM = prefix_G[:, None].repeat(1, 2)
    return Batch(ids_GMT, torch.tensor(LENGTHS), start_GM, prefix_G, ("probe", "probe"), 2, 1).to(model.device)


def row_by_row(name: str, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The model's own logits of each row, T,V. Raises ModelError where it does not run."""
    rows = [one_member(batch, row).ids_GMT[0] for row in range(batch.length_GM.numel())]
    try:
        return [model(input_ids=ids_1T, use_cache=False).logits[0] for ids_1T in rows]
    except Exception as error:
        raise ModelError(
            f"model={name} does not run with model.attention={attention_in(model)}: {_first_line(error)}"
        ) from error


def objection(compute: Callable[[], Tensor], right_KV: Tensor, allowed: float | None = None) -> str:
    """Why what is computed is not right: an error, or a distance between logits beyond `allowed` of their spread over the
    vocabulary (None: half of the digits of their type, which another order of rounding explains). Empty where it is right."""
    try:
        ours_KV = compute().double()
    except Exception as error:
        return _first_line(error)
    right_KV, tolerance = right_KV.double(), _eps(right_KV) ** 0.5 if allowed is None else allowed
    spread_K = (right_KV - right_KV.mean(-1, keepdim=True)).norm(dim=-1)
    if ours_KV.shape == right_KV.shape and bool(((ours_KV - right_KV).norm(dim=-1) <= tolerance * spread_K).all()):
        return ""
    return f"its logits differ from those of rows alone by {(ours_KV - right_KV).abs().max().item():.2g}"


@contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Passes inside leave no trace: no gradients, no dropout, no number drawn from torch's generators."""
    training = [module for module in model.modules() if module.training]
    devices = {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def one_member(batch: Batch, row: int) -> Batch:
    """The batch of one of its members, without padding."""
    group, member = divmod(row, batch.ids_GMT.shape[1])
    one, own = batch.member(member), slice(group, group + 1)
    return replace(
        one,
        ids_GMT=one.ids_GMT[own, :, : int(one.length_GM[group, 0])],
        length_GM=one.length_GM[own],
        start_GM=one.start_GM[own],
        prefix_G=one.prefix_G[own],
        rows=one.rows[:1],
    )


def _cut(name: str, model: PreTrainedModel, batch: Batch, right_TV: Tensor) -> Cut:
    """The first place at which the model comes apart. The operations are its own, so the bits should be too."""

    def logits_TV(cut: Cut) -> Tensor:
        return cut.head(model, cut.through(model, one_row_per_member(batch))[0])

    objections = []
    for cut in CUTS:
        found = objection(partial(logits_TV, cut), right_TV, _eps(right_TV))
        if not found:
            return cut
        objections.append(f"{cut.name}: {found}")
    raise ModelError(f"model={name} cannot be used: its logits cannot be computed by {'; by '.join(objections)}.")


@contextmanager
def _moved(model: nn.Module) -> Iterator[None]:
    """Inside, what is learned has moved, so that settings differ; afterwards it is what it was, bit for bit."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.data for parameter in learned]
    try:
        for parameter in learned:
            wave = torch.arange(parameter.numel(), device=parameter.device, dtype=torch.float32).sin().view_as(parameter)
            parameter.data = parameter.data + (wave * parameter.shape[-1] ** -0.5).to(parameter.dtype)
        yield
    finally:
        for parameter, data in zip(learned, before, strict=True):
            parameter.data = data


def _eps(numbers: Tensor) -> float:
    return float(torch.finfo(numbers.dtype).eps)


def _first_line(error: Exception) -> str:
    """At most 200 characters of an error's first line."""
    lines: Sequence[str] = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
