"""Prefix tuning (arXiv 2101.00190) as PEFT saves it: each block attends to P learned keys and values beside those of the text.

PEFT hands them to its own forward as a filled cache, which moves every position by P; a policy has packed rows, shared prompts
and caches of its own. So here they go into a block's attention on its way through transformers' attention interface: every
query of every row sees them, and they take no place in a text or a cache. By arXiv 2110.04366, equation 7, this adds to what a
block attends to, so the strength c scales what is added: h2 = h1 + c (h(with the prefix) - h1). Of an encoder-decoder model it
is what the decoder attends to in its own text, as in PEFT.
Shapes: B rows, Q queries, K keys, P vectors, H heads of keys, D width of a head, L blocks; R rows of T tokens that are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PrefixTuningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models import packing
from alignlab.models.anatomy import attention_in, block_list, quietly, text_config, trunk_of
from alignlab.models.strength import Strength
from alignlab.tuners.config import PrefixTunerConfig
from alignlab.tuners.peft_tuner import AddingTuner, AroundLayer, per_row

NAME = "alignlab_prefix"
ATTENTIONS = ("sdpa", "eager")
"""Those whose masks are added to scores, so that more keys can stand beside a text."""
READ = 16
"""Most tokens of a row that is read to find a model's keys and values."""


@dataclass(frozen=True)
class Place:
    """The attention of block `number` (from 0), and the keys and values of some tokens there, 1,H,T,D."""

    attention: nn.Module
    number: int
    key_1HTD: Tensor
    value_1HTD: Tensor


class PrefixLayer(AroundLayer, BaseTunerLayer):
    """The attention of block `number` of L, which also sees the vectors of the active adapter. `holder`: PEFT's encoders, each
    with the vectors of all blocks; the model has them elsewhere."""

    adapter_layer_names = ("prefixes",)

    def __init__(self, place: Place, blocks_L: int, holder: nn.ModuleDict, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = place.attention
        self.number, self.laid = place.number, (blocks_L, 2, place.key_1HTD.shape[1], place.key_1HTD.shape[3])
        self._holder = (holder,)  # in a tuple, or it would be a part of every layer
        self.strength: Strength = 1.0
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name

    @property
    def prefixes(self) -> nn.ModuleDict:
        """PEFT's encoder of each adapter."""
        return self._holder[0]

    def own_2PHD(self) -> Tensor:
        """Keys and values of this block, where PEFT has them: behind one another, block by block."""
        every_PN: Tensor = cast("Any", self.prefixes[self.active_adapters[0]]).embedding.weight
        return every_PN.unflatten(1, self.laid)[:, self.number].transpose(0, 1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the attention gives; at strength 0 and when off, untouched."""
        if self.disable_adapters or (not isinstance(self.strength, Tensor) and self.strength == 0):
            return self.base_layer(*args, **kwargs)
        with _through([cast("Any", self.base_layer).config], partial(_with_prefix, self)):
            return self.base_layer(*args, **kwargs)


class PrefixTuner(AddingTuner):
    """h1 + c (h(with the prefix) - h1) at every block's attention. `places`: none on the meta device, where nothing runs.
    `starts_as`: the tokens whose keys and values the vectors are at first; None: random numbers."""

    starts_as_base = False

    def __init__(
        self, model: PreTrainedModel, config: PrefixTuningConfig, places: Sequence[Place], starts_as: Tensor | None
    ) -> None:
        self._places, self._starts_as = places, starts_as
        super().__init__(model, config)

    def _find(self) -> None:
        peft, model = self.module, cast("PreTrainedModel", self.module.get_base_model())
        # PEFT's own forward would hand over the prefix a second time.
        peft.forward, peft.generate = model.forward, getattr(model, "generate", None)
        holder, adapter = cast("nn.ModuleDict", peft.prompt_encoder), cast("str", peft.active_adapter)
        self._check_layout(cast("PrefixTuningConfig", peft.active_peft_config), model)
        _stack(model).prefix_vectors = holder
        names = {id(module): name for name, module in model.named_modules()}
        for place in self._places:
            parent, _, child = names[id(place.attention)].rpartition(".")
            setattr(model.get_submodule(parent), child, PrefixLayer(place, len(self._places), holder, adapter))
        self._places = ()
        super()._find()

    def _check_layout(self, config: PrefixTuningConfig, model: PreTrainedModel) -> None:
        """PEFT lays out the vectors by the model's configuration, whatever it is given."""
        widths = {place.key_1HTD.shape[1] * place.key_1HTD.shape[3] for place in self._places}
        if widths - {config.token_dim}:
            raise ModelError(
                f"peft's prefix for a {type(model).__name__} has keys of {config.token_dim} numbers, and the model's have"
                f" {widths.pop()}; take tuner=lora or tuner=prompt."
            )

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Without the vectors, which afterwards start from the backbone as it is then."""
        with self.off():
            yield
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """What was drawn; of tokens, their keys and values in the backbone (arXiv 2101.00190, section 7.4)."""
        if self._starts_as is None:
            return
        model = cast("PreTrainedModel", self.module.get_base_model())
        for row, ids_T in enumerate(self._starts_as):
            with self.off():
                places = _places(model, ids_T[None])
            for layer, place in zip(cast("list[PrefixLayer]", self.layers), places, strict=True):
                for own_PHD, read_1HTD in zip(layer.own_2PHD(), (place.key_1HTD, place.value_1HTD), strict=True):
                    taken_THD = own_PHD[row * READ : (row + 1) * READ]
                    taken_THD.copy_(read_1HTD[0].transpose(0, 1)[: len(taken_THD)])


def build(config: PrefixTunerConfig, model: PreTrainedModel) -> PrefixTuner:
    """Attaches `length` keys and values to each block. Raises ModelError for a model whose blocks do not all attend through
    transformers' interface, with keys and values of one shape, under sdpa or eager."""
    if attention_in(model) not in ATTENTIONS:
        raise ModelError(f"a prefix goes with model.attention={' or '.join(ATTENTIONS)}, and not with {attention_in(model)}.")
    if any(parameter.is_meta for parameter in model.parameters()):
        layers, heads, width, places = *_sizes(model), []
    else:
        rows = -(-config.length // READ)
        vocabulary = int(text_config(model.config).vocab_size)
        ids_RT = torch.randint(min(4, vocabulary - 1), vocabulary, (rows, min(READ, config.length)), device=model.device)
        places = _places(model, ids_RT[:1])
        layers, (_, heads, _, width) = len(places), places[0].key_1HTD.shape
    made = PrefixTuningConfig(
        num_virtual_tokens=config.length, num_layers=layers, num_attention_heads=heads, token_dim=heads * width
    )
    if not places:
        return PrefixTuner(model, made, places, None)
    tuner = PrefixTuner(model, made, places, ids_RT if config.init == "vocabulary" else None)
    _check_seen(model, ids_RT[:1], places, config.length)
    tuner.start()
    return tuner


def _stack(model: PreTrainedModel) -> nn.Module:
    """The part whose blocks get a prefix."""
    return model.get_decoder() if model.config.is_encoder_decoder else trunk_of(model)


def _sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    """Blocks, heads of keys, and width of a head, as the configuration names them."""
    config = text_config(model.config)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return len(_blocks(model)), heads, int(width or config.hidden_size // config.num_attention_heads)


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    return block_list(model.get_decoder() if model.config.is_encoder_decoder else model)[1]


def _places(model: PreTrainedModel, ids_1T: Tensor) -> list[Place]:
    """Where each block attends to its own text, found by reading some tokens. Raises ModelError where a block does not, or with
    another shape than the first."""
    blocks = _blocks(model)
    block_of = {id(module): number for number, block in enumerate(blocks) for module in block.modules()}
    places = [
        Place(module, block_of[id(module)], key, value)
        for module, key, value in _read(model, ids_1T)
        if id(module) in block_of and key.shape[2] == ids_1T.shape[1]
    ]
    if [place.number for place in places] != [*range(len(blocks))]:
        raise _unreached(model, len({place.number for place in places}), len(blocks))
    shapes = {tuple(states.shape) for place in places for states in (place.key_1HTD, place.value_1HTD)}
    if len(shapes) > 1:
        raise ModelError(
            f"a prefix needs keys and values of one shape, and those of a {type(model).__name__} differ; take tuner=lora or"
            " tuner=prompt."
        )
    return places


def _check_seen(model: PreTrainedModel, ids_1T: Tensor, places: Sequence[Place], vectors_P: int) -> None:
    """Raises ModelError where a block does not see its vectors."""
    seen = {id(module) for module, key, _ in _read(model, ids_1T) if key.shape[2] == ids_1T.shape[1] + vectors_P}
    reached = sum(id(place.attention) in seen for place in places)
    if reached < len(places):
        raise _unreached(model, reached, len(places))


def _unreached(model: PreTrainedModel, reached: int, blocks: int) -> ModelError:
    return ModelError(
        f"a prefix is for models whose blocks all attend through transformers' attention interface, and {reached} of the"
        f" {blocks} blocks of a {type(model).__name__} do, each once; take tuner=lora or tuner=prompt."
    )


def _read(model: PreTrainedModel, ids_1T: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """What passes the attention interface while a model reads some tokens: modules with their keys and values. A decoder reads
    them beside a source that is longer by one, so that its attention to the source differs from that to its own text."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(step: _Step, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Any:
        found.append((module, key, value))
        return step.attention(module)(module, query, key, value, *rest, **more)

    given = {"input_ids": ids_1T}
    if model.config.is_encoder_decoder:
        given = {"input_ids": torch.cat([ids_1T, ids_1T[:, :1]], 1), "decoder_input_ids": ids_1T}
    configs = {
        id(each): each for module in model.modules() if isinstance(each := getattr(module, "config", None), PreTrainedConfig)
    }
    with quietly(model), _through([text_config(model.config), *configs.values()], note):
        model(**given, **({"use_cache": False} if model.can_generate() else {}))
    return found


@dataclass(frozen=True)
class _Step:
    """What runs in the place of the attention `name`. `outer`: of a prefix around this one, whose step that attention is."""

    run: Callable[..., tuple[Tensor, Tensor | None]]
    name: str
    outer: _Step | None

    @property
    def kind(self) -> str:
        """The attention below all prefixes."""
        return self.outer.kind if self.outer is not None and self.name == NAME else self.name

    def attention(self, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The function that would have run. Raises ModelError where a model's own one is not found."""
        if self.name == NAME:
            return partial(_attend, step=self.outer)
        if self.name in ("sdpa", packing.NAME):
            return cast("Callable[..., Any]", AttentionInterface()[self.name])
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if own is None:
            raise ModelError(f"the eager attention of a {type(module).__name__} is not found; take model.attention=sdpa.")
        return cast("Callable[..., Any]", own)


_ACTIVE: ContextVar[_Step] = ContextVar(NAME)


@contextmanager
def _through(configs: Sequence[PreTrainedConfig], run: Callable[..., tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """Inside, attention that looks at these configs is `run(step, module, query, key, value, mask, ...)`; the first config says
    which it was."""
    before = [(config, str(config._attn_implementation)) for config in configs]
    token = _ACTIVE.set(_Step(run, before[0][1], _ACTIVE.get(None)))
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
        _ACTIVE.reset(token)


def _attend(module: nn.Module, *states: Any, step: _Step | None = None, **more: Any) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query B,HQ,Q,D, keys and values B,H,K,D, and a mask, to B,Q,HQ,D."""
    step = step or _ACTIVE.get()
    return step.run(step, module, *states, **more)


def _mask(**given: Any) -> Any:
    """transformers' mask interface: that of the attention below."""
    return AttentionMaskInterface()[_ACTIVE.get().kind](**given)


def _with_prefix(
    layer: PrefixLayer,
    step: _Step,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention with the layer's vectors among its keys and values, or at a strength between that and without."""
    attention = step.attention(module)
    ahead = [own_PHD.transpose(0, 1)[None].to(key.dtype) for own_PHD in layer.own_2PHD()]
    if step.kind == packing.NAME:  # whose rows see what their segments say
        already = more.get("ahead")
        both = ahead if already is None else [torch.cat(pair, 2) for pair in zip(ahead, already, strict=True)]
        seen, weights = attention(module, query, key, value, attention_mask, **{**more, "ahead": both})
    else:
        wide = _widened(step, module, query, key, attention_mask, ahead[0].shape[2], more)
        states = [torch.cat([own.expand(len(key), -1, -1, -1), text], 2) for own, text in zip(ahead, (key, value), strict=True)]
        seen, weights = attention(module, query, *states, **{**more, **wide})
    strength = layer.strength
    if not isinstance(strength, Tensor) and strength == 1:
        return seen, weights
    plain, _ = attention(module, query, key, value, attention_mask, **more)
    factor = per_row(strength, plain) if isinstance(strength, Tensor) else strength
    start = plain.to(torch.promote_types(plain.dtype, torch.float32))
    moved = (start + factor * (seen.to(start.dtype) - start)).to(plain.dtype)
    return torch.where(factor == 0, plain, moved) if isinstance(factor, Tensor) else moved, weights


def _widened(
    step: _Step, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, vectors_P: int, more: dict[str, Any]
) -> dict[str, Any]:
    """Mask and position bias, B,1,Q,P+K and 1,HQ,Q,P+K, which let every query see the vectors."""
    causal = more.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and step.kind == "sdpa" and causal and query.shape[2] > 1:  # sdpa is causal by itself where it has no mask
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()[None, None]
    made: dict[str, Any] = {"attention_mask": mask}
    if mask is not None:
        made["attention_mask"] = F.pad(mask, (vectors_P, 0), value=float(mask.dtype == torch.bool))
    if more.get("position_bias") is not None:
        made["position_bias"] = F.pad(more["position_bias"], (vectors_P, 0))
    return made


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
