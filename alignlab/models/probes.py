"""What a model can do: tried on a few short rows when its weights are loaded, and never looked up by its name.

Right is what the model's own forward gives for one row without padding. Shapes: R rows, T time, K tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.errors import ModelError
from alignlab.models.anatomy import text_config
from alignlab.models.controls import WITHOUT
from alignlab.models.cut import CUTS, Cut
from alignlab.models.layout import Layout, one_row_per_member, without_padding
from alignlab.models.strength import HasStrength, Untuned, WeightedPass
from alignlab.records import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.backbone import Backbone
    from alignlab.models.kinds import Kind

LENGTHS, PREFIXES = ((9, 7), (6, 8)), (3, 4)
"""Tokens of the probe's members, 2 groups of 2, and of what the members of each group have in common."""

FIRST_END = (True, False, False, True)
"""At which of two settings the probe's rows run, where they differ."""


@dataclass(frozen=True)
class Abilities:
    """`cut`: how logits are computed. The others are objections, empty where there is none: to rows side by side with padding
    that nobody is told of, to padding with zeros in the mask, to all rows laid into one, and to the cache of generation."""

    cut: Cut
    unmasked: str = ""
    masked: str = ""
    packed: str = ""
    cached: str = ""


def find(name: str, model: PreTrainedModel) -> Abilities:
    """Tries a causal model. Raises ModelError where it does not run, and where its logits cannot be had in parts."""
    batch = probe_batch(model)
    with _quietly(model):
        right = _row_by_row(name, model, batch)
        first = _one_member(batch, 0)
        cut = _cut(name, model, first, right[0])
        scored = [logits_TV[start - 1 : -1] for logits_TV, start in zip(right, batch.start_GM.flatten().tolist(), strict=True)]

        def laid(layout: Layout) -> Tensor:
            return cut.head(model, cut.through(model, layout)[layout.row_K, layout.time_K])

        unmasked = _objection(lambda: laid(one_row_per_member(batch)), torch.cat(scored))
        masked = unmasked and _objection(lambda: laid(one_row_per_member(batch, masked=True)), torch.cat(scored))
        packed = _objection(lambda: laid(without_padding(batch, model.dtype)), torch.cat(scored))
        cached = _objection(lambda: _stepped(model, batch), torch.stack([logits_TV[-1] for logits_TV in right]))
    return Abilities(cut, unmasked, masked, packed, cached)


def of_rows(backbone: Backbone, kind: Kind, apart: str) -> Abilities:
    """Tries a model whose rows are masked where they are padded: may they stand side by side? `apart`: why they are not laid
    into one. Raises ModelError where the model does not run."""
    batch = probe_batch(backbone.model)

    def said(part: Batch) -> Tensor:
        return kind.outputs(backbone, kind.layout(backbone, part, False))

    with _quietly(backbone.model):
        try:
            alone = torch.cat([said(_one_member(batch, row)) for row in range(batch.length_GM.numel())])
        except Exception as error:
            raise ModelError(f"model={backbone.name} does not run: {_said(error)}") from error
        objection = _objection(lambda: said(batch), alone)
    return Abilities(CUTS[-1], unmasked=objection, masked=objection, packed=apart)


def mixed(backbone: Backbone, tuner: HasStrength) -> str:
    """What speaks against rows of different settings in one pass, with the tuner attached and moved away from its start.

    Raises ModelError where the model does not run with this tuner in it.
    """
    ends = (0.0, 1.0) if tuner.controls is None else (WITHOUT, 0.0)
    reserved = () if tuner.controls is None else tuner.controls.reserved
    batch, kind = probe_batch(backbone.model, reserved), backbone.kind
    settings = [ends[0] if first else ends[1] for first in FIRST_END]

    def said(part: Batch, setting: float | Tensor) -> Tensor:
        with tuner.at(setting):
            return kind.outputs(backbone, kind.layout(backbone, part, False))

    with _quietly(backbone.model), _moved(backbone.model):
        try:
            alone = [said(_one_member(batch, row), setting) for row, setting in enumerate(settings)]
        except Exception as error:
            raise ModelError(f"model={backbone.name} does not run with this tuner in it: {_said(error)}") from error
        return _objection(lambda: said(batch, torch.tensor(settings, device=backbone.device)), torch.cat(alone))


def expected(model: PreTrainedModel, attention: str) -> str:
    """What a configuration lets expect of rows laid into one: an objection as in `Abilities`, or nothing. The probes decide."""
    kinds = {str(kind) for kind in getattr(text_config(model.config), "layer_types", None) or ()}
    states = sorted(kind for kind in kinds if not kind.endswith("attention") or kind.startswith("linear"))
    if states:
        return f"layers of type {', '.join(states)} carry a state from token to token"
    return "" if model._supports_attention_backend else f"its {attention} attention takes no other in its place"


def described(packing: str, objection: str, attention: str) -> str:
    """How batches are laid into rows, in words. `objection`: to rows laid into one."""
    if packing == "off":
        return "one row per member, as trainer.packing=off asks"
    if objection:
        return f"one row per member under {attention} attention; not in one row without padding: {objection}"
    which = "pairs" if packing == "pairs" else "all batches"
    instead = "" if attention == "sdpa" else f" in place of {attention}"
    return f"{which} in one row without padding, common prompts once; sdpa attention in segments{instead}"


def attention_in(model: PreTrainedModel) -> str:
    """The attention that a model was loaded with."""
    return str(text_config(model.config)._attn_implementation)


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


def _one_member(batch: Batch, row: int) -> Batch:
    """The batch of one of its members, without padding."""
    group, member = divmod(row, batch.ids_GMT.shape[1])
    one = batch.member(member)
    alone = replace(
        one,
        ids_GMT=one.ids_GMT[group : group + 1, :, : int(one.length_GM[group, 0])],
        length_GM=one.length_GM[group : group + 1],
        start_GM=one.start_GM[group : group + 1],
        prefix_G=one.prefix_G[group : group + 1],
        rows=one.rows[:1],
    )
    return alone


def _row_by_row(name: str, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The model's own logits of each row, T,V."""
    rows = [_one_member(batch, row).ids_GMT[0] for row in range(batch.length_GM.numel())]
    try:
        return [model(input_ids=ids_1T, use_cache=False).logits[0] for ids_1T in rows]
    except Exception as error:
        raise ModelError(f"model={name} does not run with model.attention={attention_in(model)}: {_said(error)}") from error


def _cut(name: str, model: PreTrainedModel, batch: Batch, right_TV: Tensor) -> Cut:
    """The first place at which the model comes apart. The operations are its own, so the bits should be too."""

    def logits_TV(cut: Cut) -> Tensor:
        return cut.head(model, cut.through(model, one_row_per_member(batch))[0])

    objections = []
    for cut in CUTS:
        objection = _objection(partial(logits_TV, cut), right_TV, _eps(right_TV))
        if not objection:
            return cut
        objections.append(f"{cut.name}: {objection}")
    raise ModelError(f"model={name} cannot be used: its logits are not to be had by {'; by '.join(objections)}.")


def _stepped(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits after the last token of each row, R,V, which is fed alone behind a cache of the others, padded on the left."""
    # The decoder stands on backbones, which ask for probes when they are loaded.
    from alignlab.models.decode import Streams

    length_R = batch.length_GM.flatten()
    width = batch.ids_GMT.shape[2]
    ids_RT = torch.stack(
        [ids_T.roll(width - int(length)) for ids_T, length in zip(batch.ids_GMT.flatten(0, 1), length_R, strict=True)]
    )
    mask_RT = (torch.arange(width, device=ids_RT.device) >= width - length_R[:, None]).long()
    with Streams(model, Untuned(), (WeightedPass(1.0, 1.0),), len(ids_RT), ids_RT.device) as streams:
        streams.step(ids_RT[:, :-1], mask_RT[:, :-1])
        return streams.step(ids_RT[:, -1:], mask_RT)


def _objection(compute: Callable[[], Tensor], right_KV: Tensor, allowed: float | None = None) -> str:
    """Why what is computed is not right: an error, or a distance between logits beyond `allowed` of their spread over the
    vocabulary (None: half of the digits of their type, which another order of rounding explains). Empty where it is right."""
    try:
        ours_KV = compute().double()
    except Exception as error:
        return _said(error)
    right_KV, share = right_KV.double(), _eps(right_KV) ** 0.5 if allowed is None else allowed
    spread_K = (right_KV - right_KV.mean(-1, keepdim=True)).norm(dim=-1)
    if ours_KV.shape == right_KV.shape and bool(((ours_KV - right_KV).norm(dim=-1) <= share * spread_K).all()):
        return ""
    return f"its logits differ from those of rows alone by {(ours_KV - right_KV).abs().max().item():.2g}"


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
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


def _said(error: Exception) -> str:
    """An error's first sentence."""
    first: Sequence[str] = str(error).strip().splitlines()
    return (first[0] if first else type(error).__name__)[:200]
